"""Fine-tune a SmolDriver, or SmolVLM as the baseline, on scene rows: full, in parts, LoRA or QLoRA, by the YAML.

accelerate launch recipes/sft_qlora.py --config recipes/configs/tiny/drivelm_sample.yaml

Every value of the YAML can be overridden on the command line (`--max_steps 100`). A run that was stopped resumes from
its last checkpoint when the same command is given again.
"""

from dataclasses import dataclass, field

import recipes  # noqa: F401 - first, since it silences libraries while they are imported

# isort: split
from trl import ModelConfig, TrlParser

from data_scripts.schema import load_scenes
from modeling_smoldriver.collator_smoldriver import check_directions, check_questions
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer, modules_to_save
from recipes.training.loading import load_model, load_to_train, quantization_of
from recipes.training.run import TrainingRun
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line

SHUFFLE_BUFFER = 256  # frames that a streaming run holds, as undecoded images, to draw from


@dataclass
class DataArguments:
    scenes: str = field(metadata={"help": "Folder of prepared scene rows (data_scripts/prepare_drivelm.py)."})
    streaming: bool = field(default=False, metadata={"help": "Read shards as they are needed; set max_steps with it."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate the loss on; none by default."})


def load(data_args: DataArguments, training_args: SmolDriverSFTConfig, model_args: ModelConfig):
    """-> trainer, training rows"""
    # Model
    model, processor, peft_config = load_to_train(model_args, training_args)
    teacher = training_args.teacher_model and load_model(training_args.teacher_model, training_args.activation_dtype)
    if peft_config is not None:
        peft_config.modules_to_save = modules_to_save(training_args)

    # Data
    train = load_scenes(data_args.scenes, "train", streaming=data_args.streaming)
    evaluation = load_scenes(data_args.scenes, data_args.eval_split) if data_args.eval_split else None
    shuffled = train
    if data_args.streaming:
        check_questions(train)
        if training_args.most_views:
            check_directions(train, training_args.most_views, processor.cameras)
        # Endless: processes whose shards differ in length need not agree on where an epoch stops.
        shuffled = train.repeat(None).shuffle(seed=training_args.seed, buffer_size=SHUFFLE_BUFFER)
        training_args.accelerator_config.dispatch_batches = False  # frame tokens are not tensors to send around

    trainer = SmolDriverSFTTrainer(
        model,
        args=training_args,
        train_dataset=shuffled,
        eval_dataset=evaluation,
        processing_class=processor,
        teacher=teacher,
        peft_config=peft_config,
    )
    return trainer, train


def main(data_args: DataArguments, training_args: SmolDriverSFTConfig, model_args: ModelConfig):
    with errors_in_one_line("sft_qlora"):
        run = TrainingRun.begin("sft_qlora", data_args, training_args, model_args)
        trainer, train = load(data_args, training_args, model_args)
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    trainer.accelerator.print(f"{trainable:,} trainable weights")

    # Training
    with run.training(trainer):
        trainer.train(resume_from_checkpoint=run.checkpoint)
        trainer.save_model(training_args.output_dir)
    if trainer.is_world_process_zero():
        quantization = quantization_of(model_args)
        manifest = run.manifest(trainer, train, quantization=quantization and quantization.to_diff_dict())
        with errors_in_one_line("sft_qlora"):
            manifest.write(training_args.output_dir)
        print(f"model saved in {training_args.output_dir}")


if __name__ == "__main__":
    with stopped_in_one_line("sft_qlora"):
        with errors_in_one_line("sft_qlora"):
            arguments = TrlParser((DataArguments, SmolDriverSFTConfig, ModelConfig)).parse_args_and_config()
        main(*arguments)
