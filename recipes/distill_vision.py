"""Teach a SmolDriver's vision model what its base VLM's own vision tower sees, before any question is asked.

accelerate launch recipes/distill_vision.py --config recipes/configs/tiny/compare_distill.yaml

The teacher is the frozen tower of `teacher`. Its features are computed during training or read from a cache
(`feature_cache`, made by recipes/teacher_features.py). The student's tower stays frozen for `frozen_tower_steps`, then
learns too. At the end the recipe prints the explained variance on the scenes of `eval_split`, by budget and camera.
`reference` names another run to show beside it, for example that of a model built with `--resampler-keys position
--no-resampler-residual`, the paper's resampler. A run that was stopped resumes from its last checkpoint when the same
command is given again.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import recipes  # noqa: F401 - first, since it silences libraries while they are imported

# isort: split
from transformers import logging
from trl import ModelConfig, TrlParser

from data_scripts.schema import load_scenes
from modeling_smoldriver import SmolDriverProcessor
from modeling_smoldriver.distillation_smoldriver import (
    EXPLAINED_VARIANCE,
    VisionDistillationConfig,
    VisionDistillationTrainer,
)
from recipes.training.loading import base_dtype, load_base
from recipes.training.run import TrainingRun
from recipes.training.teacher_cache import TeacherCache, load_teacher
from smoldriver_common.command_line import errors_in_one_line


@dataclass
class DataArguments:
    scenes: str = field(metadata={"help": "Folder of prepared scene rows (data_scripts/prepare_drivelm.py)."})
    teacher: str = field(metadata={"help": "The SmolVLM that the model was built from: Hub id or folder."})
    feature_cache: str | None = field(default=None, metadata={"help": "Folder of recipes/teacher_features.py."})
    eval_split: str = field(default="eval", metadata={"help": "Split to measure the explained variance on."})
    eval_frames: int | None = field(default=None, metadata={"help": "Frames of it, evenly spread; default: all."})
    reference: str | None = field(default=None, metadata={"help": "Another run's folder, to show beside this one."})


def load(data_args: DataArguments, training_args: VisionDistillationConfig, model_args: ModelConfig):
    """-> trainer, training rows"""
    # Models
    model = load_base(
        model_args.model_name_or_path, base_dtype(model_args), attn_implementation=model_args.attn_implementation
    )
    processor = SmolDriverProcessor.from_pretrained(model_args.model_name_or_path)
    teacher = load_teacher(data_args.teacher)

    # Data
    cache = None
    if data_args.feature_cache:
        cache = TeacherCache(data_args.feature_cache, teacher, data_args.scenes)
    train, evaluation = (load_scenes(data_args.scenes, split) for split in ("train", data_args.eval_split))
    count = min(data_args.eval_frames or len(evaluation), len(evaluation))
    evaluation = evaluation.select([index * len(evaluation) // count for index in range(count)])

    trainer = VisionDistillationTrainer(
        model,
        args=training_args,
        teacher=teacher,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        cached_features=cache,
    )
    return trainer, train


def read_explained_variance(run: str) -> dict[str, dict[str, float]]:
    return json.loads((Path(run) / EXPLAINED_VARIANCE).read_text(encoding="utf-8"))["explained_variance"]


def table(runs: dict[str, dict]) -> str:
    """Explained variance in percent, one row per run and budget, one column per camera."""
    columns = list(dict.fromkeys(name for run in runs.values() for row in run.values() for name in row))
    names = [name.removeprefix("CAM_").lower() for name in columns]
    width = max(len(name) for name in runs)
    lines = [f"{'explained variance, %':{width}s} tokens " + " ".join(f"{name:>11s}" for name in names)]
    for name, run in runs.items():
        for tokens, row in run.items():
            values = " ".join(f"{100 * row[column]:11.1f}" if column in row else f"{'-':>11s}" for column in columns)
            lines.append(f"{name:{max(width, 21)}s} {tokens:>6s} {values}")
    return "\n".join([*lines, "the training views' mean feature explains 0 by definition"])


def main(data_args: DataArguments, training_args: VisionDistillationConfig, model_args: ModelConfig):
    logging.set_verbosity_error()  # that the VLM has more than its tower is no news
    with errors_in_one_line("distill_vision"):
        if model_args.use_peft or model_args.load_in_4bit or model_args.load_in_8bit:
            raise ValueError("knowledge transfer trains the vision model in full: leave use_peft and load_in_4bit out")
        run = TrainingRun.begin("distill_vision", data_args, training_args, model_args)
        trainer, train = load(data_args, training_args, model_args)
        runs = {}
        if data_args.reference:
            runs[Path(data_args.reference).name] = read_explained_variance(data_args.reference)

    # Training
    with run.training(trainer):
        trainer.train(resume_from_checkpoint=run.checkpoint)
        trainer.save_model(training_args.output_dir)
    trainer.evaluate()
    if trainer.is_world_process_zero():
        explained = read_explained_variance(training_args.output_dir)
        manifest = run.manifest(trainer, train, teacher=trainer.teacher.description(), explained_variance=explained)
        manifest.write(training_args.output_dir)
        print(table({"this run": explained, **runs}))
        print(f"model saved in {training_args.output_dir}")


if __name__ == "__main__":
    with errors_in_one_line("distill_vision"):
        arguments = TrlParser((DataArguments, VisionDistillationConfig, ModelConfig)).parse_args_and_config()
    main(*arguments)
