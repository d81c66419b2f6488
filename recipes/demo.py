"""The whole path on the synthetic world: make it, build a tiny SmolDriver, train, evaluate, ask. For two CPU cores.

python recipes/demo.py --output-dir outputs/demo

Every step is a script of its own, with its output in `<output-dir>/logs`. A step that is done is not done again: after
an interruption the same command goes on where it stopped.
"""

import json
from pathlib import Path

from recipes.eval_tables import table
from recipes.pipeline import (
    LOGS,
    Step,
    aside,
    build_step,
    export,
    open_run,
    run_steps,
    training_step,
    world_steps,
)

FULL = {"scenes": 400, "every": 4, "frames": 2500, "tower_steps": 300, "steps": 1700, "test_frames": 64}
SHORT = {"scenes": 40, "every": 8, "frames": 100, "tower_steps": 20, "steps": 30, "test_frames": 8}


def steps_of(out: Path, size: dict, seed: int) -> list[Step]:
    scenes, base, built, training = (out / name for name in ("scenes", "base", "built", "training"))
    test = ["--scenes", scenes, "--split", "test"]
    return [
        *world_steps(out, size["scenes"], size["every"], seed),
        Step(
            "base",
            ["recipes/pretrain_demo_base.py", "--world", out / "world", "--scenes", scenes, "--seed", seed]
            + ["--frames", size["frames"], "--steps", size["tower_steps"], "--output-dir", aside(base)],
            seconds=180,
            result=base,
        ),
        build_step(base / "vlm", base / "tower", built, seed),
        training_step(
            "train",
            "recipes/sft_qlora.py",
            "recipes/configs/demo.yaml",
            built,
            training,
            360,
            *("--scenes", scenes, "--max_steps", size["steps"], "--seed", seed),
        ),
        Step(
            "evaluate",
            ["recipes/evaluate_drivelm.py", "--model", training, *test, "--output-dir", out / "eval"]
            + ["--max-frames", size["test_frames"]],
            seconds=60,
            done=out / "eval" / "metrics.json",
        ),
        Step(
            "ask",
            ["recipes/ask.py", "--model", out / "model", *test, "--picture", out / "eval" / "answers.png"],
            seconds=15,
            done=out / "eval" / "answers.png",
            before=lambda: export(training, out / "model"),
        ),
    ]


def main():
    out, size, seed, short = open_run("demo", __doc__, FULL, SHORT)
    run_steps(out, steps_of(out, size, seed), estimate=not short)
    print(table(json.loads((out / "eval" / "metrics.json").read_text(encoding="utf-8"))["results"]))
    print((out / LOGS / "ask.log").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
