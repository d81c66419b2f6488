# ruff: noqa: T201 - a script, not a test: what it prints is its report
"""What must be seen on a GPU, in ten minutes, offline: tests, the paper's stages, speed. One JSON, one table.

    PYTHONPATH=. python3 tests/cuda/check.py --output-dir outputs/check-cuda
    make check-cuda PYTHON=python3 WHEELS=wheels

It runs under any Python that has torch and transformers, without a network, and writes into `--output-dir` alone:
`report.json`, `report.md` and the log of each part. What needs a package that is missing is skipped by its name; the
package can also come as a wheel in `--wheels`, which is installed into the output folder. Where there is no GPU, or
with `--cpu`, the same parts run at tiny size on the CPU. The parts:

    tests      those marked `cuda`
    stages     20 steps of knowledge transfer, vision stage and QLoRA at 2.2B dimensions with random weights
    planner    a planner beside SmolDriver's own answer (recipes/benchmarking/planner.py)
    benchmark  recipes/benchmark.py in bfloat16 at 256M and 2.2B dimensions

A part that would outlast `--minutes` is stopped, and what is left is named. Exit status: 1 where something failed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from xml.etree import ElementTree

try:
    from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
    from smoldriver_common.whole_files import write_json
except ModuleNotFoundError as error:
    sys.exit(f"check_cuda: {sys.executable} has no {error.name}: name one with torch and transformers (PYTHON=...)")

ROOT = Path(__file__).parents[2]
STAGES = {
    "distill_2b": "knowledge transfer",
    "sft_vision_2b": "vision stage",
    "sft_qlora_2b": "QLoRA",
}
TRAINING = ("accelerate", "datasets", "peft", "trl")
NEEDS = {
    "tests": ("pytest",),
    "planner": ("psutil",),
    "benchmark": ("matplotlib", "psutil"),
    "distill_2b": TRAINING,
    "sft_vision_2b": TRAINING,
    "sft_qlora_2b": (*TRAINING, "bitsandbytes"),
}
"""Packages of each part and stage beside torch and transformers."""
PARTS = ("tests", "stages", "planner", "benchmark")
BENCHMARK_RUNS = {"inference": ("vision", "prefill", "answers"), "training": ("training",)}
BENCHMARK_ROWS = (  # part, what, other values
    ("vision", "smoldriver", {}),
    ("prefill", "encode_scene", {}),
    ("answers", "scene, smoldriver", {"questions": 93}),
    ("training", "one question", {}),
    ("training", "packed in 1", {"questions": 93}),
)
"""Rows of a benchmark's report that the table shows; the others are in its JSON."""
# What the machine is, as JSON on the last line; `find_spec` sees what is missing without importing it.
DESCRIBE = """
import importlib.metadata, importlib.util, json, platform
import torch
names = "torch transformers accelerate peft trl datasets bitsandbytes pytest psutil matplotlib".split()
versions = {name: importlib.metadata.version(name) for name in names if importlib.util.find_spec(name)}
found = torch.cuda.is_available()
card = torch.cuda.get_device_properties(0) if found else None
print()
print(json.dumps({
    "device": card.name if found else "CPU", "gpu_bytes": card.total_memory if found else None,
    "cuda": torch.version.cuda, "python": platform.python_version(), "versions": versions,
}))
"""


@dataclass
class Line:
    """One line of the table: what was checked and what came out; None where there is no such figure."""

    check: str
    result: str
    seconds: float | None = None
    share: float | None = None  # of the device's measured matrix products
    peak_bytes: int | None = None
    stated_bytes: float | None = None


@dataclass
class Report:
    """What a run found, also while it is under way."""

    machine: dict
    lines: list[Line] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    details: dict[str, dict] = field(default_factory=dict)  # the parts' own reports

    @property
    def on_gpu(self) -> bool:
        return self.machine["device"] != "CPU"


@dataclass
class Runner:
    """Starts the parts, each in a process of its own, and ends them at the deadline."""

    folder: Path  # of the report and the logs
    work: Path  # of all else; removed at the end
    environment: dict[str, str]
    deadline: float  # of time.monotonic
    steps: int | None = None  # of each stage; None: by the device

    def run(self, name: str, command: list[str]) -> str | None:
        """Run Python with this command line; what it prints goes to `<name>.log`. -> None, or what went wrong."""
        log = self.folder / f"{name}.log"
        left = self.deadline - time.monotonic()
        if left <= 0:
            return "not started: the time was up"
        with log.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own processes end with it
            )
            try:
                status = process.wait(timeout=left)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    return f"stopped after {left:.0f} s: the time was up"
                raise
        if status == 0:
            return None
        printed = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"exit status {status}: {printed[-1] if printed else 'it printed nothing'} ({log.name})"


def environment_of(work: Path, on_cpu: bool) -> dict[str, str]:
    """Of the parts: offline, caches in the work folder, one GPU or none."""
    site = work / "site"
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", ".")]
    folders = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR")
    environment = {
        **os.environ,
        **{name: str(work / name.lower()) for name in (*folders, "CUDA_CACHE_PATH", "TMPDIR")},
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(site), *given]),
    }
    if on_cpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif "CUDA_VISIBLE_DEVICES" not in environment:
        environment["CUDA_VISIBLE_DEVICES"] = "0"
    Path(environment["TMPDIR"]).mkdir(parents=True)
    return environment


def install(wheels: Path, runner: Runner) -> None:
    """The wheels of a folder into the work folder, without the packages that they ask for.

    Raises:
        ValueError: there are none, or pip refuses them.
    """
    found = sorted(map(str, wheels.resolve().glob("*.whl")))
    if not found:
        raise ValueError(f"--wheels {wheels} holds no wheel")
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--quiet"]
    fault = runner.run("wheels", ["-m", "pip", "install", *options, "--target", str(runner.work / "site"), *found])
    if fault:
        raise ValueError(f"--wheels {wheels} cannot be installed: {fault}")


def describe(runner: Runner) -> dict:
    """The machine, as `DESCRIBE` prints it.

    Raises:
        ValueError: this Python lacks torch.
    """
    fault = runner.run("machine", ["-c", DESCRIBE])
    if fault:
        raise ValueError(f"{sys.executable} cannot run the check: {fault}; name another with make's PYTHON=...")
    return json.loads((runner.folder / "machine.log").read_text(encoding="utf-8").splitlines()[-1])


def lacks(report: Report, part: str) -> bool:
    """Whether a part needs a package that is missing; if so, it is noted as skipped."""
    missing = [name for name in NEEDS[part] if name not in report.machine["versions"]]
    if missing:
        report.skipped.append(f"{STAGES.get(part, part)}: without {', '.join(missing)}")
    return bool(missing)


# Parts


def run_tests(report: Report, runner: Runner) -> None:
    if lacks(report, "tests"):
        return
    xml = runner.work / "tests.xml"
    folder = str(ROOT / "tests" / "cuda")
    options = [f"--confcutdir={folder}", "-m", "cuda", "-p", "no:cacheprovider", f"--junitxml={xml}"]
    fault = runner.run("tests", ["-m", "pytest", "-q", *options, f"--basetemp={runner.work / 'pytest'}", folder])
    if not xml.is_file():
        report.failed.append(f"tests: {fault}")
        return
    for case in ElementTree.parse(xml).iter("testcase"):
        name, outcome = case.get("name"), "passed"
        for kind in ("failure", "error"):
            if case.find(kind) is not None:
                outcome = "failed"
                message = case.find(kind).get("message") or "without a message"
                report.failed.append(f"{name}: {message.splitlines()[0]}")
        if case.find("skipped") is not None:
            outcome = "skipped"
            report.skipped.append(f"{name}: {case.find('skipped').get('message')}")
        report.lines.append(Line(name.removeprefix("test_").replace("_", " "), outcome, float(case.get("time"))))
    if fault and not report.failed:
        report.failed.append(f"tests: {fault}")


def run_stages(report: Report, runner: Runner) -> None:
    size, device = ("2.2b", "cuda") if report.on_gpu else ("tiny", "cpu")
    stages = [stage for stage in STAGES if not lacks(report, stage)]
    if not stages:
        return
    same = ["--size", size, "--device", device]
    steps = runner.steps or (20 if report.on_gpu else 6)
    fault = runner.run("base", ["tests/cuda/base.py", *same, "--output-dir", str(runner.work)])
    if fault:
        report.failed.append(f"stages: {fault}")
        return
    for stage in stages:
        path = runner.work / f"{stage}.json"
        command = ["tests/cuda/stage.py", *same, "--stage", stage, "--steps", str(steps), "--base", str(runner.work)]
        fault = runner.run(stage, [*command, "--json", str(path)])
        if fault:
            report.failed.append(f"{STAGES[stage]}: {fault}")
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        report.details[stage] = result
        losses = result["losses"]
        what = f"{result['steps']} steps, {result['dtype']}, loss {losses[0]:.2f} to {losses[-1]:.2f}"
        what += f", {1e3 * result['computing_seconds']:,.0f} ms of a step computing"
        line = Line(f"{STAGES[stage]}, {size}", what, result["seconds"], result["matmul_share"], result["peak_bytes"])
        if report.on_gpu:  # the head speaks of 2.2B dimensions, and of tensors alone
            line.stated_bytes = result["stated_bytes"]
        report.lines.append(line)


def run_planner(report: Report, runner: Runner) -> None:
    if lacks(report, "planner"):
        return
    path = runner.work / "planner.json"
    options = [] if report.on_gpu else ["--device", "cpu", "--sizes", "tiny", "--repeats", "3"]
    fault = runner.run("planner", ["recipes/benchmarking/planner.py", "--json", str(path), *options])
    if fault:
        report.failed.append(f"planner: {fault}")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    report.details["planner"] = found
    report.skipped += [f"planner, {reason}" for reason in found["left_out"]]
    for row in found["rows"]:
        what = f"{row['what']}, {row['budget']} tokens per camera"
        result = f"{row['times_the_planner']:.1f} times the planner"
        report.lines.append(Line(f"{what}, {row['size']}", result, row["seconds"], row["matmul_share"]))


def run_benchmark(report: Report, runner: Runner) -> None:
    if lacks(report, "benchmark"):
        return
    sizes = ("256m", "2.2b") if report.on_gpu else ("tiny",)
    for kind, parts in BENCHMARK_RUNS.items():  # apart: where the time is up for training, the rest is there
        for size in sizes:
            name = f"benchmark_{size}_{kind}"
            path = runner.work / f"{name}.json"
            options = ["--size", size, "--parts", *parts, "--json", str(path)]
            options += ["--dtype", "bfloat16"] if report.on_gpu else ["--device", "cpu", "--repeats", "1"]
            fault = runner.run(name, ["recipes/benchmark.py", *options])
            if fault:
                report.failed.append(f"benchmark, {size}, {kind}: {fault}")
                continue
            found = json.loads(path.read_text(encoding="utf-8"))
            report.details[name] = found
            report.skipped += [f"benchmark, {size}, {reason}" for reason in found["left_out"]]
            report.lines += benchmark_lines(found, size)


def benchmark_lines(found: dict, size: str) -> list[Line]:
    """The rows of `BENCHMARK_ROWS` at the full budget, then the ratios in one line."""
    lines, full = [], found["machine"]["full_budget"]
    for part, what, wanted in BENCHMARK_ROWS:
        wanted = {"part": part, "what": what, "budget": full, "size": size, **wanted}
        for row in found["rows"]:
            if all(row.get(name) == value for name, value in wanted.items()):
                result = f"{row['questions']} questions" if "questions" in row else f"{row['tokens']} tokens"
                check = f"{part}, {what}, {size}, {found['machine']['dtype']}"
                lines.append(Line(check, result, row["seconds"], row["matmul_share"], row.get("peak_bytes")))
    ratios = ", ".join(f"{name} {value:.3g}" for name, value in found["ratios"].items())
    return [*lines, Line(f"benchmark's ratios, {size}", ratios)] if ratios else lines


RUN: dict[str, Callable[[Report, Runner], None]] = {
    "tests": run_tests,
    "stages": run_stages,
    "planner": run_planner,
    "benchmark": run_benchmark,
}


# Report


def table(report: Report) -> str:
    """The report in Markdown, for recipes/RESULTS.md."""
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    card = machine["device"]
    if report.on_gpu:
        card += f", {machine['gpu_bytes'] / 1e9:.0f} GB, CUDA {machine['cuda']}"
    lines = [
        f"{card}; Python {machine['python']}, {versions}:",
        "",
        "| check | result | seconds | share of matrix products | peak GB | stated by the YAML, GB |",
        "|---|---|---|---|---|---|",
    ]
    for line in report.lines:
        cells = (
            line.check,
            line.result,
            "" if line.seconds is None else f"{line.seconds:.3g}",
            "" if line.share is None else f"{line.share:.1%}",
            "" if line.peak_bytes is None else f"{line.peak_bytes / 1e9:.2f}",
            "" if line.stated_bytes is None else f"{line.stated_bytes / 1e9:.1f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    if not report.on_gpu:
        lines += [
            "",
            "No GPU: tiny sizes on the CPU, which say nothing about a GPU's speed; peaks are whole processes'.",
        ]
    for title, reasons in (("Skipped", report.skipped), ("Failed", report.failed)):
        if reasons:
            lines += ["", f"{title}:", "", *(f"- {reason}" for reason in reasons)]
    return "\n".join(lines) + "\n"


def write(report: Report, folder: Path) -> None:
    write_json(folder / "report.json", asdict(report))
    (folder / "report.md").write_text(table(report), encoding="utf-8")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="nothing is written outside it")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of packages that this Python lacks")
    parser.add_argument("--cpu", action="store_true", help="the form for the CPU, although there may be a GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all of them")
    parser.add_argument("--steps", type=whole_number(4), help="of each stage; default: 20, on the CPU 6")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    folder = options.output_dir.resolve()
    work = folder / "check-work"
    shutil.rmtree(work, ignore_errors=True)  # of a killed run
    work.mkdir(parents=True)
    deadline = time.monotonic() + 60 * options.minutes
    runner = Runner(folder, work, environment_of(work, options.cpu), deadline, options.steps)
    try:
        if options.wheels:
            install(options.wheels, runner)
        report = Report(describe(runner))
        if not report.on_gpu:
            print("no GPU: the check runs at tiny size on the CPU, and its figures say nothing about a GPU")
        for part in PARTS:
            if part in options.parts:
                print(f"{part} ...", flush=True)
                RUN[part](report, runner)
                write(report, folder)  # after each part: whatever ends the run, the rest is there
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(table(report))
    print(f"report.json, report.md and the logs are in {folder}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    with stopped_in_one_line("check_cuda"), errors_in_one_line("check_cuda"):
        status = main()
    sys.exit(status)
