# ruff: noqa: T201 - a script, not a test: what it prints is its report
"""Runs other libraries' own tests on SmolDriver and prints what passed, what failed, and why a failure is legitimate.

    PYTHONPATH=.:tests python tests/peers/run.py
    PYTHONPATH=.:tests python tests/peers/run.py --suites trl --sources ~/checkouts    # where GitHub is not reached

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

from tests.peers.sources import Unavailable, accelerate_tests, peft_tests, transformers_tests, trl_tests

SUITES = {
    "transformers": transformers_tests,
    "peft": peft_tests,
    "trl": trl_tests,
    "accelerate": accelerate_tests,
}
"""Library, whose suite is `<library>_suite.py` -> what fetches its tests."""

OPTIONS = "-o addopts= -q --no-header --tb=no -p no:cacheprovider -W ignore".split()
"""Of pytest; without the project's own, whose strict markers do not know those of other libraries."""


@dataclass
class Results:
    """A pytest plugin: the outcome of each test by its class."""

    outcomes: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    errors: dict[tuple[str, str], str] = field(default_factory=dict)

    def pytest_runtest_logreport(self, report):
        _, group, test = report.nodeid.split("::", 2)
        if report.failed:
            self.outcomes[group][test] = "failed"
            self.errors[group, test] = str(getattr(report.longrepr, "reprcrash", report.longrepr)).splitlines()[0]
        elif report.when == "call" or report.skipped:
            self.outcomes[group].setdefault(test, report.outcome)


@dataclass
class Report:
    """What all suites gave.

    Example: `Report(rows=["| peft 0.21.2 | TestPeft | 526 | 0 | 2 | 40 |"], reasons=["TestPeft.test_x: ..."])`.
    """

    rows: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # of legitimate failures, one line each
    faults: list[str] = field(default_factory=list)  # failures without a reason, reasons without a failure

    def add(self, library: str, results: Results, legitimate: dict[str, dict[str, str]]) -> None:
        for group, outcomes in results.outcomes.items():
            reasons = legitimate.get(group, {})
            failed = {test for test, outcome in outcomes.items() if outcome == "failed"}
            excused = {test: reason_of(test, reasons) for test in failed if reason_of(test, reasons)}
            counts = Counter(outcomes.values())
            row = (library, group, counts["passed"], len(failed) - len(excused), len(excused), counts["skipped"])
            self.rows.append("| " + " | ".join(map(str, row)) + " |")
            self.faults += [f"{group}.{test}: {results.errors[group, test]}" for test in sorted(failed - set(excused))]
            self.faults += [
                f"{group}.{test} passes now: take it out of LEGITIMATE"
                for test, outcome in outcomes.items()
                if outcome == "passed" and test in reasons
            ]
            for reason, count in Counter(excused.values()).items():
                names = sorted({test.split("[")[0] for test in excused if excused[test] == reason})
                self.reasons.append(f"{group}, {count}: {', '.join(names)}: {reason}")


def reason_of(test: str, reasons: dict[str, str]) -> str | None:
    """By a test's name with or without its parameters, or by a part of them (`[LoraConfig]`)."""
    name, _, parameters = test.partition("[")
    parts = [reason for key, reason in reasons.items() if key.startswith("[") and key.strip("[]") in parameters]
    return reasons.get(test) or reasons.get(name) or next(iter(parts), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES), help="only these libraries'")
    parser.add_argument("-k", default="", help="only tests with such names, as for pytest")
    parser.add_argument(
        "--sources", type=Path, help="folder with checkouts (transformers/, trl/) for what source distributions lack"
    )
    arguments = parser.parse_args()
    report, notes = Report(), []
    for library in arguments.suites:
        try:
            found = SUITES[library](arguments.sources)
        except Unavailable as error:
            notes.append(f"{library} skipped: {error}")
            continue
        notes += [f"{library} {found.version}: {line}" for line in found.left_out]
        results = Results()
        path = Path(__file__).with_name(f"{library}_suite.py")
        status = pytest.main([str(path), *OPTIONS, "-k", arguments.k], plugins=[results])
        if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            report.faults.append(f"{library}: pytest ended with {status!r}")
            continue
        suite = importlib.import_module(f"tests.peers.{library}_suite")
        report.add(f"{library} {found.version}", results, suite.LEGITIMATE)
    print("\n| suite | tests | passed | failed, real | failed, legitimate | skipped |\n|---|---|---|---|---|---|")
    print(*report.rows, sep="\n")
    for title, lines in (("note", notes), ("legitimate", report.reasons), ("failed", report.faults)):
        for line in lines:
            print(f"{title}: {line}")
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
