"""The paper's comparison on the synthetic world, every stage, from random weights: SmolVLM, SmolVLM-FT, SmolDriver.

python recipes/tiny/compare.py --output-dir outputs/compare

1. A tiny SmolVLM is pretrained on general questions about one or two pictures, then about up to six: it plays the part
   of SmolVLM2.
2. SmolDriver is built from it and from a tiny ViT, and learns from its vision tower (knowledge transfer). The paper's
   own resampler learns the same, for comparison.
3. Vision stage (language model frozen), then QLoRA, first with few pictures, then with all six, merged: SmolDriver.
   Beside it, SmolVLM goes through the same stages with the same data, steps and seeds: SmolVLM-FT.
4. All three answer the same questions about held-out scenes, the two tuned models with every control. Report and card.

Every step is a script of its own, with its output in `<output-dir>/logs`. A finished step is not repeated: after an
interruption the same command resumes the run.
"""

from pathlib import Path

from recipes.evaluation.predictions import CONTROLS
from recipes.tiny.pipeline import (
    CONFIGS,
    LOGS,
    Step,
    aside,
    build_step,
    evaluation_step,
    open_run,
    read_log,
    run_steps,
    side_by_side,
    training_step,
    world_steps,
)
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line

FULL = {
    "scenes": 600,
    "every": 4,
    "tower_frames": 3000,
    "tower_steps": 600,
    "few_pictures_steps": 500,
    "pretraining_steps": 900,
    "distillation_steps": 400,
    "vision_steps": 100,
    "few_views_steps": 500,
    "six_views_steps": 700,
    "test_frames": 80,
}
SHORT = {
    "scenes": 60,  # about the fewest that leave a scene for every split
    "every": 8,
    "tower_frames": 100,
    "tower_steps": 20,
    "few_pictures_steps": 5,
    "pretraining_steps": 5,
    "distillation_steps": 10,
    "vision_steps": 4,
    "few_views_steps": 4,
    "six_views_steps": 4,
    "test_frames": 4,
}
FROM_RANDOM_WEIGHTS = ("--learning_rate", 1.5e-3, "--muon_learning_rate", 5.0e-3)
PAPERS_RESAMPLER = ("--resampler-keys", "position", "--no-resampler-residual")


def base_steps(out: Path, size: dict, seed: int) -> list[Step]:
    """The tiny ViT and the tiny SmolVLM, which, as in the demo, learns to see sooner among few pictures."""
    base, captions, few, few_captions = out / "base", out / "captions", out / "few_pictures", out / "few_captions"

    def caption(folder: Path, most_views: int) -> Step:
        return Step(
            folder.name,
            ["data_scripts/prepare_captions.py", "--world", out / "world", "--most-views", most_views]
            + ["--output-dir", folder, "--seed", seed],
            seconds=15,
        )

    def pretrain(model: Path, data: Path, steps: int, output: Path, *options) -> Step:
        return training_step(
            output.name,
            "recipes/sft_qlora.py",
            f"{CONFIGS}/compare_pretrain.yaml",
            model,
            output,
            round(0.45 * steps),
            *("--scenes", data, "--max_steps", steps, "--seed", seed, *options),
        )

    return [
        caption(few_captions, 2),
        caption(captions, 6),
        Step(
            "towers",
            ["recipes/tiny/pretrain_towers.py", "--world", out / "world", "--scenes", out / "scenes", "--both-towers"]
            + ["--captions", captions, "--frames", size["tower_frames"], "--steps", size["tower_steps"]]
            + ["--seed", seed, "--output-dir", aside(base)],
            seconds=190,
            result=base,
        ),
        pretrain(base / "vlm", few_captions, size["few_pictures_steps"], few, *FROM_RANDOM_WEIGHTS),
        pretrain(few, captions, size["pretraining_steps"], out / "smolvlm"),
    ]


def transfer_steps(out: Path, size: dict, seed: int) -> list[Step]:
    """SmolDriver built and taught by SmolVLM's vision tower; before it the paper's resampler, its reference."""
    smolvlm, tower = out / "smolvlm", out / "base" / "tower"

    def distill(built: str, distilled: str, *options) -> Step:
        return training_step(
            distilled,
            "recipes/distill_vision.py",
            f"{CONFIGS}/compare_distill.yaml",
            out / built,
            out / distilled,
            110,
            *("--teacher", smolvlm, "--scenes", out / "scenes", "--max_steps", size["distillation_steps"]),
            *("--seed", seed, *options),
        )

    return [
        build_step(smolvlm, tower, out / "built-paper", seed, *PAPERS_RESAMPLER),
        distill("built-paper", "distilled-paper"),
        build_step(smolvlm, tower, out / "built", seed),
        distill("built", "distilled", "--reference", out / "distilled-paper"),
    ]


def tuning_steps(out: Path, size: dict, seed: int, name: str, start: Path) -> list[Step]:
    """Vision stage, then QLoRA in two parts, each merged: the same for both models."""

    def folder(stage: str) -> Path:
        return out / f"{name}-{stage}"

    def tune(stage: str, model: Path, seconds: int) -> Step:
        return training_step(
            f"{name}-{stage}",
            "recipes/sft_qlora.py",
            f"{CONFIGS}/compare_{stage}.yaml",
            model,
            folder(stage),
            seconds,
            *("--scenes", out / "scenes", "--max_steps", size[f"{stage}_steps"], "--seed", seed),
        )

    def merge(stage: str, merged: Path) -> Step:
        return Step(
            f"{name}-{stage}-merged",
            ["recipes/merge_checkpoint.py", "--adapters", folder(stage), "--output-dir", merged]
            + ["--dtype", "float32"],
            seconds=15,
            done=merged,
        )

    return [
        tune("vision", start, 30),
        tune("few_views", folder("vision"), 320),
        merge("few_views", folder("few_views-merged")),
        tune("six_views", folder("few_views-merged"), 350),
        merge("six_views", out / name),
    ]


def model_steps(out: Path, size: dict, seed: int, name: str, folder: str, start: Path) -> list[Step]:
    """One model tuned, and evaluated with every control."""
    return [*tuning_steps(out, size, seed, folder, start), answer_step(out, size, name, folder, 70, *CONTROLS)]


def answer_step(out: Path, size: dict, name: str, folder: str, seconds: int, *controls: str) -> Step:
    """A model's answers to the questions that all models are asked, and those of its controls."""
    output = out / f"eval-{folder}"
    options = ("--name", name, "--controls", *controls)
    return evaluation_step(output.name, out / folder, out / "scenes", output, size["test_frames"], seconds, *options)


def closing_steps(out: Path) -> list[Step]:
    """The models side by side, and SmolDriver's card."""
    evaluations = [out / f"eval-{folder}" for folder in ("smoldriver", "smolvlm-ft", "smolvlm")]
    report = out / "comparison"
    return [
        Step(
            "comparison",
            ["recipes/evaluate_drivelm.py", "--compare", *evaluations, "--output-dir", report],
            seconds=15,
            done=report / "comparison.json",
        ),
        Step(
            "card",
            ["recipes/push_to_hub.py", "--model", out / "smoldriver", "--evaluation", evaluations[0]]
            + ["--repo-id", "user/smoldriver-tiny", "--data", "synthetic", "--dry-run"],
            seconds=10,
        ),
    ]


def main():
    out, size, seed, short = open_run("compare", __doc__, FULL, SHORT)
    steps = [
        *world_steps(out, size["scenes"], size["every"], seed),
        *base_steps(out, size, seed),
        *transfer_steps(out, size, seed),
        *side_by_side(
            model_steps(out, size, seed, "SmolDriver", "smoldriver", out / "distilled"),
            [
                *model_steps(out, size, seed, "SmolVLM-FT", "smolvlm-ft", out / "smolvlm"),
                answer_step(out, size, "SmolVLM", "smolvlm", 15),  # knows none of the answers: no controls
            ],
        ),
        *closing_steps(out),
    ]
    run_steps(out, steps, estimate=not short)
    with errors_in_one_line("compare"):
        for log in ("distilled", "comparison", "card"):
            print(f"\n--- {log}")
            print("\n".join(read_log(out / LOGS / f"{log}.log")))


if __name__ == "__main__":
    with stopped_in_one_line("compare"):
        main()
