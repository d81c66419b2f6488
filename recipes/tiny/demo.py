"""The whole path on the synthetic world: make it, build a tiny SmolDriver, train, evaluate, ask. For two CPU cores.

python recipes/tiny/demo.py --output-dir outputs/demo

Training has two stages. In the first, each prompt shows one to three pictures and asks about the direction of one of
them: among few pictures a tiny language model learns to find the right one many times sooner than among six. In the
second, it learns all questions with all six pictures.

Every step is a script of its own, with its output in `<output-dir>/logs`. A finished step is not repeated: after an
interruption the same command resumes the run.
"""

from pathlib import Path

from recipes.evaluation.predictions import read_metrics
from recipes.evaluation.tables import score_table
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
from smoldriver_common.command_line import errors_in_one_line

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
    """Two stages, from `<out>/built` to `<out>/training`; `prefix` begins their names in the run."""

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
    with errors_in_one_line("demo"):
        print(score_table(read_metrics(out / "eval").results))
    print("\n".join(read_log(out / LOGS / "ask.log")))


if __name__ == "__main__":
    main()
