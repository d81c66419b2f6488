# ruff: noqa: T201 - a script, not a test: what it prints is its report
"""Runs other libraries' own tests on SmolDriver and prints what passed, what failed, and why a failure is legitimate.

    PYTHONPATH=. python tests/peers/run.py

Exit status: 0 if every failure is one that the suite names with a reason; 1 for any other, and for a named one that
passes. A suite that cannot be had is skipped with the reason. A further library is one more suite in `SUITES`, with a
`LEGITIMATE` of its own.
"""

import argparse
import importlib
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.peers.sources import Unavailable, transformers_tests

SUITES = {"transformers_suite": transformers_tests}
"""File of a suite -> what fetches its tests."""

OPTIONS = "-o addopts= -q --no-header --tb=no -p no:cacheprovider -W ignore".split()
"""Of pytest; without the project's own, whose strict markers do not know those of other libraries."""


@dataclass
class Results:
    """A pytest plugin: the outcome of each test by its class."""

    outcomes: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    errors: dict[tuple[str, str], str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report):
        _, group, test = report.nodeid.split("::")
        if report.failed:
            self.outcomes[group][test] = "failed"
            self.errors[group, test] = str(getattr(report.longrepr, "reprcrash", report.longrepr)).splitlines()[0]
        elif report.when == "call" or report.skipped:
            self.outcomes[group].setdefault(test, report.outcome)


def report(results: Results, legitimate: dict[str, dict[str, str]]) -> list[str]:
    """Prints the table -> one line per failure without a reason, and per reason without a failure."""
    faults = []
    print("| tests | passed | failed, legitimate | failed | skipped |\n|---|---|---|---|---|")
    for group, outcomes in results.outcomes.items():
        reasons = legitimate.get(group, {})
        failed = {test for test, outcome in outcomes.items() if outcome == "failed"}
        excused = {test for test in failed if test.split("[")[0] in reasons or test in reasons}
        counts = Counter(outcomes.values())
        row = (counts["passed"], len(excused), len(failed - excused), counts["skipped"])
        print(f"| {group} | " + " | ".join(map(str, row)) + " |")
        faults += [f"{group}.{test}: {results.errors[group, test]}" for test in sorted(failed - excused)]
        faults += [
            f"{group}.{test} passes now: take it out of LEGITIMATE"
            for test in reasons
            if outcomes.get(test) == "passed"
        ]
    for group, reasons in legitimate.items():
        for test, reason in reasons.items():
            if test in results.outcomes.get(group, {}):
                print(f"legitimate: {group}.{test}: {reason}")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", default="", help="only tests with such names, as for pytest")
    arguments = parser.parse_args()
    faults = []
    for suite, fetch in SUITES.items():
        try:
            found = fetch()
        except Unavailable as error:
            print(f"{suite} skipped: {error}")
            continue
        print(found.version)
        for line in found.left_out:
            print(f"left out: {line}")
        results = Results()
        path = Path(__file__).with_name(f"{suite}.py")
        status = pytest.main([str(path), *OPTIONS, "-k", arguments.k], plugins=[results])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            faults.append(f"{suite}: pytest ended with {status!r}")
            continue
        faults += report(results, importlib.import_module(f"tests.peers.{suite}").LEGITIMATE)
    for fault in faults:
        print(f"failed: {fault}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
