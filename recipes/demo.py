"""The whole path on the synthetic world: make it, build a tiny SmolDriver, train, evaluate, ask. For two CPU cores.

python recipes/demo.py --output-dir outputs/demo

Every step is a script of its own, with its output in `<output-dir>/logs`. A step that is done is not done again: after
an interruption the same command goes on where it stopped.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from recipes.evaluate_drivelm import table

FULL = {"scenes": 600, "every": 4, "frames": 3000, "tower_steps": 450, "steps": 800, "test_frames": 150}
SHORT = {"scenes": 40, "every": 8, "frames": 100, "tower_steps": 20, "steps": 30, "test_frames": 8}
TRAINING_FILES = ("checkpoint-*", "training_args.bin", "samples.json")  # stay with the training


@dataclass
class Step:
    name: str
    command: list[str]
    done: Path  # exists when the step is done
    seconds: int  # what it takes of two idle cores, for the estimate of what remains
    result: Path | None = None  # a folder that the command writes, put in its place when it is whole


def steps_of(out: Path, size: dict, seed: int) -> list[Step]:
    world, scenes, base, built, training = (out / name for name in ("world", "scenes", "base", "built", "training"))
    test = ["--scenes", scenes, "--split", "test"]
    return [
        Step(
            "world",
            ["data_scripts/synthesize_world.py", "--output-dir", world, "--scenes", size["scenes"]]
            + ["--frames-every", size["every"], "--seed", seed, "--workers", 2],
            world / "world.json",
            45,
        ),
        Step(
            "scenes",
            ["data_scripts/prepare_drivelm.py", "--json", world / "drivelm.json", "--image-root", world]
            + ["--output-dir", scenes, "--object-tags", "drop", "--workers", 2],
            out / "logs" / "scenes.done",
            17,
        ),
        Step(
            "base",
            ["recipes/pretrain_demo_base.py", "--world", world, "--scenes", scenes, "--frames", size["frames"]]
            + ["--steps", size["tower_steps"], "--seed", seed, "--output-dir", f"{base}.tmp"],
            base,
            90,
            base,
        ),
        Step(
            "build",
            ["recipes/build_checkpoint.py", "--base", base / "vlm", "--tower", base / "tower", "--seed", seed]
            + ["--output-dir", f"{built}.tmp"],
            built,
            10,
            built,
        ),
        Step(
            "train",
            ["recipes/sft_qlora.py", "--config", "recipes/configs/demo.yaml", "--model_name_or_path", built]
            + ["--scenes", scenes, "--output_dir", training, "--max_steps", size["steps"], "--seed", seed],
            training / "training_manifest.json",
            360,
        ),
        Step(
            "evaluate",
            ["recipes/evaluate_drivelm.py", "--model", training, *test, "--output-dir", out / "eval"]
            + ["--max-frames", size["test_frames"]],
            out / "eval" / "metrics.json",
            90,
        ),
        Step(
            "ask",
            ["recipes/ask.py", "--model", out / "model", *test, "--picture", out / "eval" / "answers.png"],
            out / "eval" / "answers.png",
            12,
        ),
    ]


def run(step: Step, log: Path) -> None:
    """Run a step's script; a failure ends the demo with the last lines of its log."""
    if step.result is not None:
        shutil.rmtree(f"{step.result}.tmp", ignore_errors=True)
    with log.open("w", encoding="utf-8") as output:
        command = [sys.executable, *map(str, step.command)]
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        last = log.read_text(encoding="utf-8").replace("\r", "\n").strip().splitlines()[-8:]
        sys.exit(f"demo: step {step.name!r} failed (see {log}):\n" + "\n".join(last))
    if step.result is not None:
        Path(f"{step.result}.tmp").rename(step.result)


def export(training: Path, model: Path) -> None:
    """The trained model without what belongs to its training: the folder that could go to the Hub."""
    aside = model.with_name(model.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(training, aside, ignore=shutil.ignore_patterns(*TRAINING_FILES))
    shutil.rmtree(model, ignore_errors=True)
    aside.rename(model)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="small everything: checks that the steps run")
    arguments = parser.parse_args()
    out, size = arguments.output_dir, SHORT if arguments.short else FULL
    (out / "logs").mkdir(parents=True, exist_ok=True)
    settings = {"size": size, "seed": arguments.seed}
    record = out / "demo.json"
    if record.is_file() and json.loads(record.read_text()) != settings:
        sys.exit(f"demo: {out} holds a demo with other settings ({record}); delete it or give another --output-dir")
    record.write_text(json.dumps(settings))

    steps = steps_of(out, size, arguments.seed)
    for number, step in enumerate(steps, start=1):
        head = f"[{number}/{len(steps)}] {step.name:9s}"
        if step.done.exists():
            print(f"{head} done already", flush=True)
            continue
        remains = sum(later.seconds for later in steps[number - 1 :] if not later.done.exists())
        estimate = "" if arguments.short else f" (about {remains / 60:.0f} min remain)"
        print(f"{head} ...{estimate}", end="", flush=True)
        if step.name == "ask":
            export(out / "training", out / "model")
        started = time.perf_counter()
        run(step, out / "logs" / f"{step.name}.log")
        if step.done.parent == out / "logs":
            step.done.touch()
        print(f"\r{head} {time.perf_counter() - started:5.0f} s" + " " * 30, flush=True)

    print(table(json.loads((out / "eval" / "metrics.json").read_text(encoding="utf-8"))["results"]))
    print((out / "logs" / "ask.log").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
