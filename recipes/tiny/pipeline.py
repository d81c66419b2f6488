"""A run of several scripts, each done once: what demo.py, drive_demo.py, compare.py and the others here share.

A finished step is not repeated, and a stopped script resumes. After an interruption the same command resumes the run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from data_scripts.synthesize_world import MAX_SEED
from data_scripts.world.folder import WORLD_FILE, WORLD_VERSION, read_json
from smoldriver_common.command_line import errors_in_one_line, named_folder, whole_number
from smoldriver_common.processes import killed_with_parent
from smoldriver_common.whole_files import LOCK, sole_writer, write_json

CONFIGS = "recipes/configs/tiny"
SETTINGS = "settings.json"
LOGS = "logs"
LONGEST_ANSWER = 64  # tokens, in the synthetic world; without pictures a model may not end its answers
TOGETHER = 0.65  # time of two steps side by side, each on one core, over their time in turn on both cores
# not copied with the model; the last two are of a planner that was guided
TRAINING_FILES = ("checkpoint-*", "training_args.bin", "samples.json", LOCK, "guidance.safetensors", "smoldriver")


@dataclass
class Step:
    """One script.

    Args:
        name (`str`): for the progress line and the log, `<out>/logs/<name>.log`.
        command (`list`): script and arguments.
        seconds (`int`): time on two idle cores, for the estimate of the time that remains.
        done (`Path`, *optional*): exists when the script has finished; default: an empty file beside the log.
        result (`Path`, *optional*): a folder that the script writes as `<result>.tmp`, renamed when the script has
            finished; serves as `done`.
        before (`Callable`, *optional*): called before the script.
        lane (`int`): 0, or see [`side_by_side`].
        group (`object`, *optional*): what the steps of one [`side_by_side`] share.
    """

    name: str
    command: list
    seconds: int
    done: Path | None = None
    result: Path | None = None
    before: Callable[[], None] | None = None
    lane: int = 0
    group: object = None


def side_by_side(*lanes: list[Step]) -> list[Step]:
    """Lists of steps that run at the same time, each list in its order and on its share of the cores."""
    group = object()
    for number, lane in enumerate(lanes, start=1):
        for step in lane:
            step.lane, step.group = number, group
    return [step for lane in lanes for step in lane]


def aside(folder: Path) -> Path:
    """Where a step writes what becomes `folder`."""
    return folder.with_name(folder.name + ".tmp")


def open_run(name: str, description: str, full: dict, short: dict) -> tuple[Path, dict, int, bool]:
    """A run's command line -> (its folder, by default `outputs/<name>`, its size, its seed, whether it is short)"""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs") / name)
    parser.add_argument("--seed", type=whole_number(0, MAX_SEED), default=0)
    parser.add_argument("--short", action="store_true", help="a small run, to check that all steps work")
    arguments = parser.parse_args()
    size = short if arguments.short else full
    with errors_in_one_line(name):
        settings = {"size": size, "seed": arguments.seed, "world version": WORLD_VERSION}
        check_settings(arguments.output_dir, settings)
    return arguments.output_dir, size, arguments.seed, arguments.short


@dataclass(frozen=True)
class RunAfterDemo:
    """A run that begins with a finished demo's models: its folder, the demo's folder and seed, its size, and whose
    vision models it takes, by name."""

    out: Path
    demo: Path
    demo_seed: int
    size: dict
    short: bool
    visions: dict[str, Path]


def open_run_after_demo(
    name: str, description: str, full: dict, short: dict, visions: dict[str, str] | None = None
) -> RunAfterDemo:
    """The command line of such a run, as [`open_run`]. Ends the program where the demo is missing.

    Args:
        visions: {name: folder of the demo} of SmolDrivers, instead of which the user may give others.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("outputs/demo"), help="folder of a finished demo")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs") / name)
    parser.add_argument("--short", action="store_true", help="a small run, to check that all steps work")
    if visions:
        default = " ".join(f"{name}=DEMO/{folder}" for name, folder in visions.items())
        text = f"SmolDrivers whose vision models are taken; default: {default}"
        parser.add_argument("--vision", nargs="+", type=named_folder, metavar="NAME=FOLDER", help=text)
    arguments = parser.parse_args()
    demo, size = arguments.demo, short if arguments.short else full
    given = getattr(arguments, "vision", None) or []
    chosen = dict(given) or {name: demo / folder for name, folder in (visions or {}).items()}
    if len(dict(given)) < len(given):
        parser.error(f"--vision: a name is given twice: {', '.join(name for name, _ in given)}")
    with errors_in_one_line(name):
        if not (demo / "model" / "config.json").is_file():
            raise FileNotFoundError(f"--demo {demo} holds no finished demo: run `make demo` first")
        for folder in chosen.values():
            if not (folder / "config.json").is_file():
                raise FileNotFoundError(f"--vision {folder} holds no model")
        settings = read_json(demo / SETTINGS)
        record = {"size": size, "demo": str(demo), "demo's settings": settings}
        if visions:
            record["visions"] = {name: str(folder) for name, folder in chosen.items()}
        check_settings(arguments.output_dir, record)
    return RunAfterDemo(arguments.output_dir, demo, settings["seed"], size, arguments.short, chosen)


def check_settings(out: Path, settings: dict) -> None:
    """Refuse a folder that holds a run with other settings; record the settings in a new one.

    Raises:
        ValueError: names the settings that differ.
    """
    (out / LOGS).mkdir(parents=True, exist_ok=True)
    record = out / SETTINGS
    if record.is_file():
        old = json.loads(record.read_text(encoding="utf-8"))
        changed = {name: (old.get(name), value) for name, value in settings.items() if old.get(name) != value}
        if changed:
            differing = "; ".join(f"{name} was {before}, now {now}" for name, (before, now) in changed.items())
            raise ValueError(
                f"{out} holds a run with other settings ({differing}): delete it or give another --output-dir"
            )
        return
    write_json(record, settings)


def run_steps(out: Path, steps: list[Step], estimate: bool) -> None:
    """Run the steps that are not done yet. A failed step ends the program with the last lines of its log."""
    with errors_in_one_line("run"), sole_writer(out):
        _run_steps(out, steps, estimate)


def _run_steps(out: Path, steps: list[Step], estimate: bool) -> None:
    for step in steps:
        step.done = step.done or step.result or out / LOGS / f"{step.name}.done"
    progress = _Progress(steps, estimate)
    for _, group in groupby(steps, key=lambda step: step.group):
        lanes = defaultdict(list)
        for step in group:
            lanes[step.lane].append(step)
        _run_lanes(list(lanes.values()), out / LOGS, progress)


class _Progress:
    """One line per finished step; the last line names the running steps and estimates the remaining time."""

    def __init__(self, steps: list[Step], estimate: bool):
        self.steps, self.estimate = steps, estimate

    def running(self, steps: list[Step]) -> None:
        remains = sum(step.seconds * (TOGETHER if step.lane else 1) for step in self.steps if not step.done.exists())
        estimate = f" (about {remains / 60:.0f} min remain)" if self.estimate else ""
        self._show(f"{', '.join(map(self._head, steps)):26s} ...{estimate}", end="")

    def ended(self, step: Step, how: str) -> None:
        self._show(f"{self._head(step):26s} {how}")

    def _head(self, step: Step) -> str:
        return f"[{self.steps.index(step) + 1:2d}/{len(self.steps)}] {step.name}"

    def _show(self, line: str, end: str = "\n") -> None:
        print(f"\r{line:<110s}", end=end, flush=True)


def _run_lanes(lanes: list[list[Step]], logs: Path, progress: _Progress) -> None:
    environment = dict(os.environ)
    if len(lanes) > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(lanes)))
    for step in (step for lane in lanes for step in lane if step.done.exists()):
        progress.ended(step, "done already")
    waiting = [[step for step in lane if not step.done.exists()] for lane in lanes]
    running = {}
    try:
        while running or any(waiting):
            for lane, steps in enumerate(waiting):
                if steps and lane not in running:
                    step = steps.pop(0)
                    running[lane] = step, _start(step, logs, environment), time.perf_counter()
            progress.running([step for step, *_ in running.values()])
            step, process, started = running.pop(_first_to_end(running))
            _end(step, process.returncode, logs)
            progress.ended(step, f"{time.perf_counter() - started:6.0f} s")
    finally:
        for _, process, _ in running.values():
            process.kill()
            process.wait()


def _first_to_end(running: dict) -> int:
    """Waits until a lane's process has ended and returns the lane."""
    while True:
        for lane, (_, process, _) in running.items():
            if process.poll() is not None:
                return lane
        time.sleep(0.1)


def _start(step: Step, logs: Path, environment: dict) -> subprocess.Popen:
    if step.before is not None:
        step.before()
    if step.result is not None:
        shutil.rmtree(aside(step.result), ignore_errors=True)
    with _log(step, logs).open("w", encoding="utf-8") as output:
        return subprocess.Popen(
            [sys.executable, *map(str, step.command)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=partial(killed_with_parent, os.getpid()) if os.name == "posix" else None,
        )


def _end(step: Step, code: int, logs: Path) -> None:
    log = _log(step, logs)
    if code:
        sys.exit(f"\nstep {step.name!r} failed (see {log}):\n" + "\n".join(read_log(log)[-8:]))
    if step.result is not None:
        aside(step.result).rename(step.result)
    elif step.done.parent == logs:
        step.done.touch()


def _log(step: Step, logs: Path) -> Path:
    return logs / f"{step.name}.log"


def read_log(log: Path) -> list[str]:
    """Its lines as a terminal shows them in the end: a progress bar in its last state."""
    with log.open(encoding="utf-8", newline="\n") as text:
        lines = [line.rstrip().rpartition("\r")[2] for line in text]
    return [line for line in lines if line.strip()]


def print_logs(out: Path, names: Iterable[str]) -> None:
    """What these steps printed."""
    for name in names:
        print(f"\n--- {name}")
        print("\n".join(read_log(out / LOGS / f"{name}.log")))


def export(training: Path, model: Path) -> None:
    """Copy the trained model without the files of its training: the folder that could go to the Hub."""
    new = aside(model)
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(training, new, ignore=shutil.ignore_patterns(*TRAINING_FILES))
    shutil.rmtree(model, ignore_errors=True)
    new.rename(model)


def world_steps(out: Path, scenes: int, every: int, seed: int) -> list[Step]:
    """The synthetic world and its scene rows, without questions that name object tags, as in the paper."""
    world, rows = out / "world", out / "scenes"
    return [
        Step(
            "world",
            ["data_scripts/synthesize_world.py", "--output-dir", world, "--scenes", scenes]
            + ["--frames-every", every, "--seed", seed, "--workers", 2],
            seconds=30,
            done=world / WORLD_FILE,
        ),
        Step(
            "scenes",
            ["data_scripts/prepare_drivelm.py", "--json", world / "drivelm.json", "--image-root", world]
            + ["--output-dir", rows, "--object-tags", "drop", "--workers", 2],
            seconds=15,
        ),
    ]


def planning_world_steps(out: Path, size: dict, seed: int, *options: Path | str, prefix: str = "") -> list[Step]:
    """A synthetic world of `size["scenes"]` with a key frame every `size["every"]` half seconds, and its rows with ego
    motion, in `<prefix>world` and `<prefix>scenes`; `options`: of the preparation."""
    world, scenes, frames = out / f"{prefix}world", out / f"{prefix}scenes", 40 * size["scenes"] // size["every"]
    make = ["data_scripts/synthesize_world.py", "--output-dir", world, "--scenes", size["scenes"], "--seed", seed]
    make += ["--frames-every", size["every"], "--workers", 2]
    prepare = ["data_scripts/prepare_planning.py", "--nuscenes", world, *options, "--output-dir", scenes]
    return [
        Step(world.name, make, seconds=round(0.0065 * frames), done=world / WORLD_FILE),
        Step(scenes.name, [*prepare, "--workers", 2], seconds=round(0.003 * frames)),
    ]


def pairs_step(pairs: Path, scenes: int, seed: int, *options: str) -> Step:
    """Moments that differ in one thing."""
    command = ["data_scripts/make_counterfactuals.py", "--scenes", scenes, "--seed", seed, *options]
    return Step(pairs.name, [*command, "--output-dir", pairs], seconds=round(0.6 * scenes))


def planner_build_step(planner: Path, smoldriver: Path, seed: int) -> Step:
    """A planner on a SmolDriver's vision model."""
    command = ["recipes/build_planner.py", "--model", smoldriver, "--seed", seed, "--output-dir", aside(planner)]
    return Step(planner.name, command, seconds=10, result=planner)


def planner_training_step(
    built: Path, trained: Path, out: Path, size: dict, seed: int, seconds: int, *more: str
) -> Step:
    """Imitation on the rows of `out`. Planners on one vision model share their visual tokens in `<out>/frames`."""
    options = ("--scenes", out / "scenes", "--feature_cache", out / "frames", "--max_steps", size["steps"])
    config, script = f"{CONFIGS}/planner_imitation.yaml", "recipes/train_planner.py"
    return training_step(trained.name, script, config, built, trained, seconds, *options, "--seed", seed, *more)


def plans_step(name: str, planner: Path, scenes: Path, plans: Path, seconds: int, *options) -> Step:
    """The planner in open loop on the test scenes; `name` is its name in the tables."""
    command = ["recipes/evaluate_planner.py", "--planner", planner, "--name", name, "--scenes", scenes, *options]
    return Step(plans.name, [*command, "--output-dir", plans], seconds, done=plans / "metrics.json")


def pair_scores_step(out: Path, planners: list[str], seconds: int) -> Step:
    """How planners of `out` respond to its pairs; the picture is written last."""
    scores = out / "pairs-scores"
    command = ["recipes/evaluate_pairs.py", "--pairs", out / "pairs", "--planners", *(out / name for name in planners)]
    command += ["--blind-rows", out / "scenes", "--output-dir", scores]
    return Step(scores.name, command, seconds, done=scores / "pairs.png")


def driven_planners(out: Path, names: Iterable[str]) -> list[str]:
    """Options of recipes/drive.py: these planners of `out`, by name."""
    return [option for name in names for option in ("--planner", f"{name}={out / name}")]


def build_step(base: Path, tower: Path, built: Path, seed: int, *options: str) -> Step:
    """A SmolDriver from a base VLM and a vision tower."""
    command = ["recipes/build_checkpoint.py", "--base", base, "--tower", tower, "--seed", seed, *options]
    return Step(built.name, [*command, "--output-dir", aside(built)], seconds=10, result=built)


def training_step(name: str, script: str, config: str, model: Path, output: Path, seconds: int, *options) -> Step:
    """One training stage with a recipe's YAML; `options` override it."""
    command = [script, "--config", config, "--model_name_or_path", model, "--output_dir", output, *options]
    return Step(name, command, seconds, done=output / "training_manifest.json")


def evaluation_step(name: str, model: Path, scenes: Path, output: Path, frames: int, seconds: int, *options) -> Step:
    """Questions about `frames` frames, evenly spread over the test scenes."""
    command = ["recipes/evaluate_drivelm.py", "--model", model, "--scenes", scenes, "--max-frames", frames]
    command += ["--max-new-tokens", LONGEST_ANSWER, *options, "--output-dir", output]
    return Step(name, command, seconds, done=output / "metrics.json")
