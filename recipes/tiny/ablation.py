"""What each choice of the model and its training is worth: the demo with one choice changed, for the same time.

python recipes/tiny/ablation.py --output-dir outputs/ablation

All variants start from the same world and the same tiny base and go through the demo's two stages. A variant with
slower steps gets fewer of them. The table shows the seconds of training that each took on half of the cores, beside
another variant.
"""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from recipes.evaluation.predictions import read_metrics
from recipes.evaluation.tables import aligned, columns, percent
from recipes.tiny.demo import FULL, SHORT, base_steps, tuning_steps
from recipes.tiny.pipeline import Step, build_step, evaluation_step, open_run, run_steps, side_by_side
from recipes.training.manifest import read_training_manifest
from smoldriver_common.command_line import errors_in_one_line

SHOWN = ("yes_no", "status", "listing", "counting", "planning")


@dataclass
class Variant:
    """One change: options of build_checkpoint.py, options of the training, and its share of the default's steps."""

    build: tuple = ()
    training: tuple = ()
    share: float = 1.0


VARIANTS = {
    "default": Variant(),
    "resampler keys: position": Variant(build=("--resampler-keys", "position")),
    "resampler without residual": Variant(build=("--no-resampler-residual",)),
    "9 tokens per camera alone": Variant(training=("--train_visual_tokens", 9), share=0.93),
}
BUDGETS = (9, 1)
"""Visual tokens per camera to evaluate with: the full budget, and the smallest, which elastic budgets are for."""


def folder_of(out: Path, name: str) -> Path:
    return out / name.replace(":", "").replace(" ", "-")


def variant_steps(out: Path, name: str, size: dict, seed: int) -> list[Step]:
    folder, base, scenes, variant = folder_of(out, name), out / "base", out / "scenes", VARIANTS[name]
    stages = {key: max(1, round(size[key] * variant.share)) for key in ("few_views_steps", "six_views_steps")}
    build = build_step(base / "vlm", base / "tower", folder / "built", seed, *variant.build)
    build.name = f"{folder.name} built"
    return [
        build,
        *tuning_steps(folder, scenes, stages, seed, *variant.training, prefix=f"{folder.name} "),
        *(
            evaluation_step(
                f"{folder.name} at {budget}",
                folder / "training",
                scenes,
                folder / f"eval-{budget}",
                size["test_frames"],
                15,
                *("--visual-tokens", budget, "--controls"),
            )
            for budget in BUDGETS
        ),
    ]


def ablation_table(out: Path) -> str:
    """One line per variant: seconds of its two stages, and its scores in percent at each budget."""
    lines = []
    for name in VARIANTS:
        folder, scores = folder_of(out, name), {}
        for budget in BUDGETS:
            results = read_metrics(folder / f"eval-{budget}").results
            (result,) = results.values()
            for column in columns(results):
                if column.group in SHOWN:
                    scores[f"{column.group} at {budget}"] = percent(column.value(result))
        seconds = sum(read_training_manifest(folder / stage)["seconds"] for stage in ("views", "training"))
        line = {"": name, "seconds": str(seconds)} | scores
        lines.append(line)
    return aligned([list(lines[0]), *(list(line.values()) for line in lines)])


def main():
    out, size, seed, short = open_run("ablation", __doc__, FULL, SHORT)
    variants = [variant_steps(out, name, size, seed) for name in VARIANTS]
    lanes = (list(chain.from_iterable(variants[first::2])) for first in (0, 1))
    run_steps(out, [*base_steps(out, size, seed), *side_by_side(*lanes)], estimate=not short)
    with errors_in_one_line("ablation"):
        print(ablation_table(out))


if __name__ == "__main__":
    main()
