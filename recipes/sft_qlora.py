"""Fine-tune a SmolDriver, or SmolVLM as the baseline, on scene rows: full, in parts, LoRA or QLoRA, by the YAML.

accelerate launch recipes/sft_qlora.py --config recipes/configs/tiny/drivelm_sample.yaml

Every value of the YAML can be overridden on the command line (`--max_steps 100`). A run that was stopped goes on from
its last checkpoint when the same command is given again.
"""

from dataclasses import asdict, dataclass, field

import recipes  # noqa: F401 - first, since it silences libraries while they are imported

# isort: split
import torch
from trl import ModelConfig, TrlParser, get_peft_config

from data_scripts.schema import load_scenes
from modeling_smoldriver.collator_smoldriver import check_directions
from modeling_smoldriver.trainer_smoldriver import (
    SmolDriverSFTConfig,
    SmolDriverSFTTrainer,
    activation_dtype,
    modules_to_save,
)
from recipes.training.loading import (
    base_dtype,
    keep_loaded_weights,
    load_base,
    load_model,
    load_processor,
    multiply_4bit_in,
    nf4,
)
from recipes.training.manifest import write_training_manifest
from recipes.training.run import SettingsKeeper, check_run, checkpoint_to_go_on_from, run_settings, run_training
from smoldriver_common.command_line import errors_in_one_line

SHUFFLE_BUFFER = 256  # frames that a streaming run holds, as undecoded images, to draw from


@dataclass
class DataArguments:
    scenes: str = field(metadata={"help": "Folder of prepared scene rows (data_scripts/prepare_drivelm.py)."})
    streaming: bool = field(default=False, metadata={"help": "Read shards as they are needed; set max_steps with it."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate the loss on; none by default."})


# All linear layers of the language model; the vision model trains in full beside them.
LANGUAGE_MODEL_LINEARS = r".*\.text_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def load(data_args: DataArguments, training_args: SmolDriverSFTConfig, model_args: ModelConfig):
    """-> trainer, training rows, quantization of the base or None, checkpoint to go on from or None"""
    check_run(training_args, model_args)
    # Model
    settings = run_settings(data_args, training_args, model_args)
    checkpoint = checkpoint_to_go_on_from(training_args, settings)
    peft_config = get_peft_config(model_args)
    source = checkpoint if checkpoint and peft_config is None else model_args.model_name_or_path
    dtype = base_dtype(model_args)
    quantization = None
    if model_args.load_in_4bit:
        quantization = nf4(dtype, model_args.use_bnb_nested_quant, model_args.bnb_4bit_quant_type)
    # A checkpoint's trained weights are in float32; the frozen ones are narrowed again below.
    loaded_as = torch.float32 if source == checkpoint else dtype
    model = load_base(source, loaded_as, quantization, attn_implementation=model_args.attn_implementation)
    if training_args.bf16 or training_args.fp16:
        multiply_4bit_in(model, activation_dtype(training_args))
    processor = load_processor(model_args.model_name_or_path)
    teacher = training_args.teacher_model and load_model(training_args.teacher_model, activation_dtype(training_args))
    if peft_config is not None:
        peft_config.target_modules = model_args.lora_target_modules or LANGUAGE_MODEL_LINEARS
        peft_config.modules_to_save = modules_to_save(training_args)

    # Data
    train = load_scenes(data_args.scenes, "train", streaming=data_args.streaming)
    evaluation = load_scenes(data_args.scenes, data_args.eval_split) if data_args.eval_split else None
    shuffled = train
    if data_args.streaming:
        if training_args.most_views:
            check_directions(train, training_args.most_views)
        # without an end: processes whose shards are of unequal length need not agree on where an epoch stops
        shuffled = train.repeat(None).shuffle(seed=training_args.seed, buffer_size=SHUFFLE_BUFFER)
        training_args.accelerator_config.dispatch_batches = False  # frame tokens are no tensors to send around

    trainer = SmolDriverSFTTrainer(
        model,
        args=training_args,
        train_dataset=shuffled,
        eval_dataset=evaluation,
        processing_class=processor,
        teacher=teacher,
        peft_config=peft_config,
    )
    trainer.add_callback(SettingsKeeper(settings))
    if source == checkpoint:
        keep_loaded_weights(trainer, dtype)
    return trainer, train, quantization, checkpoint


def main(data_args: DataArguments, training_args: SmolDriverSFTConfig, model_args: ModelConfig):
    with errors_in_one_line("sft_qlora"):
        trainer, train, quantization, checkpoint = load(data_args, training_args, model_args)
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    trainer.accelerator.print(f"{trainable:,} trainable weights")

    # Training
    seconds = run_training(trainer, checkpoint, "sft_qlora")
    if trainer.is_world_process_zero():
        manifest = {
            "base": model_args.model_name_or_path,
            "dtype": str(base_dtype(model_args)).removeprefix("torch."),
            "quantization": quantization and quantization.to_diff_dict(),
            "scenes": data_args.scenes,
            "scene_tokens": sorted({row["scene_token"] for row in train.select_columns(["scene_token"])}),
            "steps": trainer.state.global_step,
            "seconds": seconds,
            "arguments": {**asdict(model_args), **training_args.to_dict()},
        }
        write_training_manifest(training_args.output_dir, manifest)
        print(f"model saved in {training_args.output_dir}")


if __name__ == "__main__":
    with errors_in_one_line("sft_qlora"):
        arguments = TrlParser((DataArguments, SmolDriverSFTConfig, ModelConfig)).parse_args_and_config()
    main(*arguments)
