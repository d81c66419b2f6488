"""The whole path on the synthetic world: make it, build a tiny SmolDriver, train, evaluate, ask. For two CPU cores.

python recipes/tiny/demo.py --output-dir outputs/demo

Training has two stages. First each question about one direction is asked behind one to three pictures, that camera's
among them: among few a tiny language model finds what is asked for many times sooner than among six. Then it learns
all questions, behind all six.

Every step is a script of its own, with its output in `<output-dir>/logs`. A step that is done is not done again: after
an interruption the same command goes on where it stopped.
"""

import json
from pathlib import Path

from recipes.evaluation.tables import table
from recipes.tiny.pipeline import (
    LOGS,
    Step,
    aside,
    build_step,
    evaluation_step,
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
    "tower_steps": 700,
    "few_views_steps": 450,
    "six_views_steps": 550,
    "test_frames": 96,
}
SHORT = {
    "scenes": 40,
    "every": 8,
    "frames": 100,
    "tower_steps": 20,
    "few_views_steps": 8,
    "six_views_steps": 8,
    "test_frames": 8,
}


def base_steps(out: Path, size: dict, seed: int) -> list[Step]:
    """The world, its scene rows, a tiny SmolVLM and a tiny pretrained ViT."""
    scenes, base = out / "scenes", out / "base"
    return [
        *world_steps(out, size["scenes"], size["every"], seed),
        Step(
            "base",
            ["recipes/tiny/pretrain_towers.py", "--world", out / "world", "--scenes", scenes, "--seed", seed]
            + ["--frames", size["frames"], "--steps", size["tower_steps"], "--output-dir", aside(base)],
            seconds=100,
            result=base,
        ),
    ]


def tuning_steps(out: Path, scenes: Path, size: dict, seed: int, *options, prefix: str = "") -> list[Step]:
    """From `<out>/built` in two stages to `<out>/training`; their names in the run begin with `prefix`."""

    def train(stage: str, model: Path, output: Path, seconds: int) -> Step:
        return training_step(
            f"{prefix}{stage}",
            "recipes/sft_qlora.py",
            f"recipes/configs/tiny/demo_{stage}.yaml",
            model,
            output,
            seconds,
            *("--scenes", scenes, "--max_steps", size[f"{stage}_steps"], "--seed", seed, *options),
        )

    return [
        train("few_views", out / "built", out / "views", 245),
        train("six_views", out / "views", out / "training", 210),
    ]


def steps_of(out: Path, size: dict, seed: int) -> list[Step]:
    scenes, base, picture = out / "scenes", out / "base", out / "eval" / "answers.png"
    return [
        *base_steps(out, size, seed),
        build_step(base / "vlm", base / "tower", out / "built", seed),
        *tuning_steps(out, scenes, size, seed),
        evaluation_step("evaluate", out / "training", scenes, out / "eval", size["test_frames"], 35),
        Step(
            "ask",
            ["recipes/ask.py", "--model", out / "model", "--scenes", scenes, "--split", "test", "--picture", picture],
            seconds=15,
            done=picture,
            before=lambda: export(out / "training", out / "model"),
        ),
    ]


def main():
    out, size, seed, short = open_run("demo", __doc__, FULL, SHORT)
    run_steps(out, steps_of(out, size, seed), estimate=not short)
    print(table(json.loads((out / "eval" / "metrics.json").read_text(encoding="utf-8"))["results"]))
    print("\n".join(read_log(out / LOGS / "ask.log")))


if __name__ == "__main__":
    main()
