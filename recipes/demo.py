"""The whole path on the synthetic world: make it, build a tiny SmolDriver, train, evaluate, ask. For two CPU cores.

python recipes/demo.py --output-dir outputs/demo

Training has two stages. First each question that names a direction is asked behind that camera's picture alone: in one
picture a tiny language model finds what is asked for many times sooner than among six. Then it learns all questions,
behind all six.

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
    read_log,
    run_steps,
    training_step,
    world_steps,
)

FULL = {
    "scenes": 400,
    "every": 4,
    "frames": 3000,
    "tower_steps": 1200,
    "single_views_steps": 580,
    "six_views_steps": 700,
    "test_frames": 64,
}
SHORT = {
    "scenes": 40,
    "every": 8,
    "frames": 100,
    "tower_steps": 20,
    "single_views_steps": 8,
    "six_views_steps": 8,
    "test_frames": 8,
}


def steps_of(out: Path, size: dict, seed: int) -> list[Step]:
    scenes, base, built, views, training = (out / name for name in ("scenes", "base", "built", "views", "training"))
    test = ["--scenes", scenes, "--split", "test"]

    def train(stage: str, model: Path, output: Path, seconds: int) -> Step:
        return training_step(
            stage,
            "recipes/sft_qlora.py",
            f"recipes/configs/demo_{stage}.yaml",
            model,
            output,
            seconds,
            *("--scenes", scenes, "--max_steps", size[f"{stage}_steps"], "--seed", seed),
        )

    return [
        *world_steps(out, size["scenes"], size["every"], seed),
        Step(
            "base",
            ["recipes/pretrain_demo_base.py", "--world", out / "world", "--scenes", scenes, "--seed", seed]
            + ["--frames", size["frames"], "--steps", size["tower_steps"], "--output-dir", aside(base)],
            seconds=150,
            result=base,
        ),
        build_step(base / "vlm", base / "tower", built, seed),
        train("single_views", built, views, 225),
        train("six_views", views, training, 250),
        Step(
            "evaluate",
            ["recipes/evaluate_drivelm.py", "--model", training, *test, "--output-dir", out / "eval"]
            + ["--max-frames", size["test_frames"]],
            seconds=35,
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
    print("\n".join(read_log(out / LOGS / "ask.log")))


if __name__ == "__main__":
    main()
