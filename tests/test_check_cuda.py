"""The check for a GPU: its table, what it skips and stops, and its stages on the CPU at tiny size."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cuda import base, check, stage
from tests.cuda.check import Line, Report, Runner

ROOT = Path(__file__).parents[1]
MACHINE = {
    "device": "NVIDIA X1",
    "gpu_bytes": 80 * 10**9,
    "cuda": "13.0",
    "python": "3.12.3",
    "versions": {"torch": "2.11.0", "transformers": "5.17.0", "pytest": "9.0"},
}
# Put first on the path of a process, it hides packages as if they were not installed.
HIDING = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {hidden}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    base.write_models(base.SIZES["tiny"], "cpu", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "QUESTIONS", 2)
        base.write_scenes(folder / "scenes")
    return folder


def runner(folder: Path, minutes: float = 1) -> Runner:
    work = folder / "work"
    return Runner(folder, work, check.environment_of(work, on_cpu=True), time.monotonic() + 60 * minutes)


# Stages


@pytest.mark.parametrize("name", ["distill_2b", "sft_vision_2b"])
def test_a_stage_is_measured(name, base_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "matmul_flops", lambda *arguments: 1e12)  # measured in seconds: see test_benchmark.py
    result = stage.run_stage(name, base_folder, "tiny", "cpu", steps=4, output=tmp_path)
    assert len(result.losses) == 4 and result.dtype == "float32"
    assert 0 < result.computing_seconds <= result.seconds and 0 < result.matmul_share < 1
    assert 10**9 < result.macs < 10**12


@pytest.mark.parametrize("name, stated", [("distill_2b", 9e9), ("sft_vision_2b", 6.3e9), ("sft_qlora_2b", 4.1e9)])
def test_stated_memory_is_that_of_the_yamls_head(name, stated):
    assert stage.stated_bytes(name) == pytest.approx(stated)
    assert set(check.STAGES) == set(stage.RECIPES)


# The check


def test_table_names_the_card_and_what_was_left_out():
    report = Report(MACHINE, skipped=["QLoRA: without trl"], failed=["planner: exit status 1"])
    report.lines = [
        Line("scene cache answers as generate", "passed", 1.5),
        Line("vision stage, 2.2b", "20 steps", 0.25, 0.4123, 6_400_000_000, 6.3e9),
    ]
    lines = check.table(report).splitlines()
    assert lines[0].startswith("NVIDIA X1, 80 GB, CUDA 13.0; Python 3.12.3, torch 2.11.0, transformers 5.17.0")
    assert "| scene cache answers as generate | passed | 1.5 |  |  |  |" in lines
    assert "| vision stage, 2.2b | 20 steps | 0.25 | 41.2% | 6.40 | 6.3 |" in lines
    assert "- QLoRA: without trl" in lines and "- planner: exit status 1" in lines
    assert "No GPU" not in "\n".join(lines)
    assert "No GPU" in check.table(Report(MACHINE | {"device": "CPU"}))


def test_a_part_that_lacks_a_package_is_skipped_by_its_name():
    report = Report(MACHINE)
    assert (
        check.lacks(report, "sft_qlora_2b") and check.lacks(report, "benchmark") and not check.lacks(report, "tests")
    )
    assert report.skipped == [
        "QLoRA: without accelerate, datasets, peft, trl, bitsandbytes",
        "benchmark: without matplotlib, psutil",
    ]


def test_a_part_is_stopped_at_the_deadline_with_its_processes(tmp_path):
    part = runner(tmp_path, minutes=0.05)
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    assert part.run("part", ["-c", child]).startswith("stopped after 3 s")
    assert part.run("next", ["-c", "print(1)"]) == "not started: the time was up"


def test_a_failed_part_names_its_last_line(tmp_path):
    fault = runner(tmp_path).run("part", ["-c", "raise SystemExit('no such thing')"])
    assert fault == "exit status 1: no such thing (part.log)"
    assert (tmp_path / "part.log").read_text() == "no such thing\n"


def test_rows_of_a_benchmark_at_the_full_budget_are_shown():
    row = {"part": "vision", "what": "smoldriver", "size": "256m", "tokens": 384, "seconds": 0.5, "matmul_share": 0.3}
    found = {
        "machine": {"full_budget": 64, "dtype": "bfloat16"},
        "rows": [row | {"budget": budget} for budget in (64, 9)] + [row | {"budget": 64, "size": "2.2b"}],
        "ratios": {"vision_vs_siglip": 4.04},
    }
    lines = check.benchmark_lines(found, "256m")
    assert lines == [
        Line("vision, smoldriver, 256m, bfloat16", "384 tokens", 0.5, 0.3),
        Line("benchmark's ratios, 256m", "vision_vs_siglip 4.04"),
    ]


def test_tests_are_read_from_what_pytest_writes(tmp_path, monkeypatch):
    part = runner(tmp_path)
    (part.work / "tests.xml").write_text(
        "<testsuites><testsuite>"
        '<testcase name="test_a_b" time="1.5" /><testcase name="test_c" time="0"><failure message="1 is&#10;2" />'
        '</testcase><testcase name="test_d" time="0"><skipped message="the package trl is missing" /></testcase>'
        "</testsuite></testsuites>"
    )
    monkeypatch.setattr(Runner, "run", lambda *arguments: "exit status 1")
    report = Report(MACHINE)
    check.run_tests(report, part)
    assert report.lines == [Line("a b", "passed", 1.5), Line("c", "failed", 0), Line("d", "skipped", 0)]
    assert report.failed == ["test_c: 1 is"] and report.skipped == ["test_d: the package trl is missing"]


@pytest.mark.parametrize("wheels", ["none", "broken"])
def test_wheels_that_cannot_be_installed_end_it_with_one_line(wheels, tmp_path):
    folder = tmp_path / "wheels"
    folder.mkdir()
    if wheels == "broken":
        (folder / "trl-1.0-py3-none-any.whl").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=rf"^--wheels {folder} (holds no wheel|cannot be installed: exit status)"):
        check.install(folder, runner(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), ("trl", "datasets", "bitsandbytes")], ids=["all", "without trl"])
def test_the_form_for_the_cpu_runs_whole(hidden, tmp_path, monkeypatch):
    """Also where the training libraries cannot be imported: then their parts are skipped by name."""
    (tmp_path / "hiding").mkdir()
    (tmp_path / "hiding" / "sitecustomize.py").write_text(HIDING.replace("{hidden}", repr(set(hidden))))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hiding'}:{ROOT}")
    output = tmp_path / "output"
    command = [sys.executable, "tests/cuda/check.py", "--cpu", "--output-dir", str(output), "--minutes", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((output / "report.json").read_text())
    assert not report["failed"] and (output / "report.md").read_text() in done.stdout
    checks = [line["check"] for line in report["lines"] if line["result"] != "skipped"]
    assert sum("packed attention" in name for name in checks) == 3
    assert any("planner" in name for name in checks) and any(name.startswith("answers") for name in checks)
    stages = [name for name in checks if name.startswith(tuple(check.STAGES.values()))]
    assert len(stages) == (0 if hidden else 3)
    skipped = "\n".join(report["skipped"])
    assert ("QLoRA: without datasets, trl, bitsandbytes" in skipped) == bool(hidden)
    assert not (output / "check-work").exists()
