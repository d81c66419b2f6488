"""Reinforcement learning on driving questions whose answers a rule can judge (yes/no, listings), with TRL's GRPO.

accelerate launch recipes/grpo.py --config recipes/configs/tiny/demo_grpo.yaml

The model answers each question `num_generations` times; LoRA adapters on its language model make the better answers
likelier. The vision model stays as it is. Every value of the YAML can be overridden on the command line, and a stopped
run resumes when the same command is given again. `rewards.json` and `rewards.png` in the output folder show the reward
by step. `--shuffle_rewards true` is the null control: it rewards each answer by another question's truth.
"""

from dataclasses import dataclass, field
from pathlib import Path

import recipes  # noqa: F401 - first, since it silences libraries while they are imported

# isort: split
from trl import ModelConfig, TrlParser

from data_scripts.schema import load_scenes
from modeling_smoldriver.collator_smoldriver import check_row_cameras
from modeling_smoldriver.grpo_smoldriver import SmolDriverGRPOConfig, SmolDriverGRPOTrainer
from recipes.training.loading import load_to_train, quantization_of
from recipes.training.reward_curve import reward_curve, write_reward_curve
from recipes.training.rewards import REWARDED_TYPES, answer_rewards, reward_questions
from recipes.training.run import TrainingRun
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line


@dataclass
class DataArguments:
    scenes: str = field(metadata={"help": "Folder of prepared scene rows (data_scripts/prepare_drivelm.py)."})
    question_types: list[str] = field(
        default_factory=lambda: ["yes_no", "listing"],
        metadata={"help": f"Types of the questions that are asked, of {', '.join(REWARDED_TYPES)}."},
    )
    shuffle_rewards: bool = field(
        default=False,
        metadata={"help": "Reward by the truth of another question of the same type: a null control."},
    )


def load(data_args: DataArguments, training_args: SmolDriverGRPOConfig, model_args: ModelConfig):
    """-> trainer, training rows"""
    # Model
    model, processor, peft_config = load_to_train(model_args, training_args)
    if model.config.model_type != "smoldriver":
        raise ValueError(f"{model_args.model_name_or_path} is a {model.config.model_type!r}: give a SmolDriver")

    # Data
    train = load_scenes(data_args.scenes, "train")
    check_row_cameras(train, processor.cameras)
    questions = reward_questions(
        train, data_args.question_types, processor, data_args.shuffle_rewards, training_args.seed
    )

    trainer = SmolDriverGRPOTrainer(
        model,
        args=training_args,
        reward_funcs=answer_rewards,
        train_dataset=questions,
        processing_class=processor,
        peft_config=peft_config,
    )
    return trainer, train


def main(data_args: DataArguments, training_args: SmolDriverGRPOConfig, model_args: ModelConfig):
    with errors_in_one_line("grpo"):
        run = TrainingRun.begin("grpo", data_args, training_args, model_args)
        trainer, train = load(data_args, training_args, model_args)
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    trainer.accelerator.print(f"{trainable:,} trainable weights, {len(trainer.train_dataset):,} questions")

    # Training
    with run.training(trainer):
        trainer.train(resume_from_checkpoint=run.checkpoint)
        trainer.save_model(training_args.output_dir)
    if trainer.is_world_process_zero():
        quantization = quantization_of(model_args)
        manifest = run.manifest(trainer, train, quantization=quantization and quantization.to_diff_dict())
        with errors_in_one_line("grpo"):
            write_reward_curve(Path(training_args.output_dir), reward_curve(trainer.state.log_history))
            manifest.write(training_args.output_dir)
        print(f"adapters and rewards.png saved in {training_args.output_dir}")


if __name__ == "__main__":
    with stopped_in_one_line("grpo"):
        with errors_in_one_line("grpo"):
            arguments = TrlParser((DataArguments, SmolDriverGRPOConfig, ModelConfig)).parse_args_and_config()
        main(*arguments)
