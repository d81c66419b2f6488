"""Train a planner on the expert's way: by imitation alone, or guided by a SmolDriver.

accelerate launch recipes/train_planner.py --config recipes/configs/tiny/planner_imitation.yaml

The rows are those of data_scripts/prepare_planning.py. As long as the vision model is frozen, each frame's visual
tokens are computed once and kept in `feature_cache`; the head then learns from them. Guidance is a switch each, see
`modeling_smoldriver/guidance_smoldriver.py`: `joint_weight`, `hidden_states_weight`, `answers_weight`. Joint training
also saves the SmolDriver, in `<output_dir>/smoldriver`. `leave_out_scenario` keeps the ways of one kind of situation
from the planner; its questions stay. A run that was stopped resumes from its last checkpoint when the same command is
given again.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import recipes  # noqa: F401 - first, since it silences libraries while they are imported

# isort: split
from datasets import concatenate_datasets
from trl import ModelConfig, TrlParser

from modeling_smoldriver.guidance_smoldriver import SMOLDRIVER, PlannerTrainingConfig, SmolDriverPlannerTrainer
from recipes.training.planning_data import LeftOut, PlanningSource, load_planner, prepare
from recipes.training.run import TrainingRun
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line


@dataclass
class DataArguments:
    scenes: str = field(metadata={"help": "Folder of rows with ego motion (data_scripts/prepare_planning.py)."})
    more_scenes: list[str] = field(default_factory=list, metadata={"help": "Other folders to train on besides."})
    leave_out_scenario: str | None = field(
        default=None, metadata={"help": "Frames of this scenario teach no way: crossing_pedestrian, blocked_lane, ..."}
    )
    feature_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of what is computed once; runs may share it. Default: in the output_dir."},
    )
    eval_split: str | None = field(default=None, metadata={"help": "Split to measure metres on; none by default."})


def load(data_args: DataArguments, training_args: PlannerTrainingConfig, model_args: ModelConfig):
    """-> trainer, training rows"""
    planner = load_planner(model_args.model_name_or_path)
    folders = [data_args.scenes, *data_args.more_scenes]
    sources = [PlanningSource.read(folder, "train", planner) for folder in folders]
    evaluation = data_args.eval_split and PlanningSource.read(data_args.scenes, data_args.eval_split, planner)
    cache = Path(data_args.feature_cache or Path(training_args.output_dir) / "frames")
    data = prepare(planner, sources, evaluation or None, training_args, cache, data_args.leave_out_scenario)
    if data.left_out != LeftOut():
        print(data.left_out)
    trainer = SmolDriverPlannerTrainer(
        data.model,
        args=training_args,
        data_collator=data.collator,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
    )
    return trainer, concatenate_datasets([source.rows.select_columns(["scene_token"]) for source in sources])


def main(data_args: DataArguments, training_args: PlannerTrainingConfig, model_args: ModelConfig):
    with errors_in_one_line("train_planner"):
        if model_args.use_peft or model_args.load_in_4bit:
            raise ValueError("a planner trains in full: leave use_peft and load_in_4bit out")
        run = TrainingRun.begin("train_planner", data_args, training_args, model_args)
        trainer, train = load(data_args, training_args, model_args)
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    trainer.accelerator.print(f"{trainable:,} trainable weights, {len(trainer.train_dataset):,} training frames")

    # Training
    with run.training(trainer):
        trainer.train(resume_from_checkpoint=run.checkpoint)
        trainer.save_model(training_args.output_dir)
        metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    if trainer.is_world_process_zero():
        manifest = run.manifest(trainer, train)
        with errors_in_one_line("train_planner"):
            manifest.write(training_args.output_dir)
            if training_args.joint:
                beside = replace(manifest, base=training_args.teacher_model)
                beside.write(Path(training_args.output_dir) / SMOLDRIVER)
        for name in ("eval_loss", "eval_l2_avg"):
            if name in metrics:
                print(f"{name} {metrics[name]:.3f} m")
        print(f"planner saved in {training_args.output_dir}")


if __name__ == "__main__":
    with stopped_in_one_line("train_planner"):
        with errors_in_one_line("train_planner"):
            arguments = TrlParser((DataArguments, PlannerTrainingConfig, ModelConfig)).parse_args_and_config()
        main(*arguments)
