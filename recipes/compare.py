"""The paper's comparison on the synthetic world, every stage, from nothing: SmolVLM, SmolVLM-FT and SmolDriver.

python recipes/compare.py --output-dir outputs/compare

1. A tiny SmolVLM is pretrained on general questions about one to six pictures: it plays the part of SmolVLM2.
2. SmolDriver is built from it and from a tiny ViT, and learns from its vision tower (knowledge transfer); the paper's
   own resampler learns the same, to compare.
3. Vision stage (language model frozen), then QLoRA, first behind few views, then behind all six, merged: SmolDriver.
   SmolVLM goes through the same stages with the same data, steps and seeds: SmolVLM-FT.
4. All three answer the same questions of held-out scenes, with every control; report and card.

Every step is a script of its own, with its output in `<output-dir>/logs`. A step that is done is not done again: after
an interruption the same command goes on where it stopped.
"""

from pathlib import Path

from recipes.eval_controls import CONTROLS
from recipes.pipeline import (
    LOGS,
    Step,
    aside,
    build_step,
    evaluation_step,
    open_run,
    read_log,
    run_steps,
    training_step,
    world_steps,
)

FULL = {
    "scenes": 600,
    "every": 4,
    "tower_frames": 3000,
    "tower_steps": 600,
    "pretraining_steps": 1000,
    "distillation_steps": 400,
    "vision_steps": 100,
    "few_views_steps": 500,
    "six_views_steps": 700,
    "test_frames": 80,
}
SHORT = {
    "scenes": 60,  # the fewest, about, of which each split gets one
    "every": 8,
    "tower_frames": 100,
    "tower_steps": 20,
    "pretraining_steps": 10,
    "distillation_steps": 10,
    "vision_steps": 4,
    "few_views_steps": 4,
    "six_views_steps": 4,
    "test_frames": 4,
}
CONFIGS = "recipes/configs"
PAPERS_RESAMPLER = ("--resampler-keys", "position", "--no-resampler-residual")


def base_steps(out: Path, size: dict, seed: int) -> list[Step]:
    """The tiny SmolVLM and the tiny ViT."""
    base, captions = out / "base", out / "captions"
    return [
        Step(
            "captions",
            ["data_scripts/prepare_captions.py", "--world", out / "world", "--output-dir", captions, "--seed", seed],
            seconds=20,
        ),
        Step(
            "towers",
            ["recipes/pretrain_demo_base.py", "--world", out / "world", "--scenes", out / "scenes", "--both-towers"]
            + ["--captions", captions, "--frames", size["tower_frames"], "--steps", size["tower_steps"]]
            + ["--seed", seed, "--output-dir", aside(base)],
            seconds=190,
            result=base,
        ),
        training_step(
            "smolvlm",
            "recipes/sft_qlora.py",
            f"{CONFIGS}/compare_pretrain.yaml",
            base / "vlm",
            out / "smolvlm",
            450,
            *("--scenes", captions, "--max_steps", size["pretraining_steps"], "--seed", seed),
        ),
    ]


def transfer_steps(out: Path, size: dict, seed: int) -> list[Step]:
    """SmolDriver built and taught by SmolVLM's vision tower; before it the paper's resampler, shown beside it."""
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
    """Vision stage and QLoRA in two parts, each merged: the same for both contestants."""

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


def evaluation_steps(out: Path, size: dict) -> list[Step]:
    """Every contestant with every control, side by side, and SmolDriver's card."""
    contestants = {"SmolDriver": "smoldriver", "SmolVLM-FT": "smolvlm-ft", "SmolVLM": "smolvlm"}
    evaluations = [out / f"eval-{folder}" for folder in contestants.values()]
    report = out / "comparison"
    return [
        *(
            evaluation_step(
                evaluation.name,
                out / folder,
                out / "scenes",
                evaluation,
                size["test_frames"],
                60,
                *("--name", name, "--controls", *CONTROLS),
            )
            for (name, folder), evaluation in zip(contestants.items(), evaluations, strict=True)
        ),
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
        *tuning_steps(out, size, seed, "smoldriver", out / "distilled"),
        *tuning_steps(out, size, seed, "smolvlm-ft", out / "smolvlm"),
        *evaluation_steps(out, size),
    ]
    run_steps(out, steps, estimate=not short)
    for log in ("distilled", "comparison", "card"):
        print(f"\n--- {log}")
        print("\n".join(read_log(out / LOGS / f"{log}.log")))


if __name__ == "__main__":
    main()
