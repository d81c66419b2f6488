"""Fine-tune a SmolDriver on scene rows: full, frozen in parts, LoRA or QLoRA, by the YAML.

accelerate launch recipes/sft_qlora.py --config recipes/configs/tiny_drivelm_sample.yaml

Every value of the YAML can be overridden on the command line (`--max_steps 100`). A run that was stopped goes on from
its last checkpoint when the same command is given again.
"""

import time
from dataclasses import asdict, dataclass, field

import torch
from transformers.trainer_utils import get_last_checkpoint
from trl import ModelConfig, TrlParser, get_peft_config

from data_scripts.schema import load_scenes
from modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverProcessor
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer, modules_to_save
from recipes.checkpoints import nf4, write_training_manifest


@dataclass
class DataArguments:
    scenes: str = field(metadata={"help": "Folder of prepared scene rows (data_scripts/prepare_drivelm.py)."})
    streaming: bool = field(default=False, metadata={"help": "Read shards as they are needed; set max_steps with it."})
    eval_split: str | None = field(default=None, metadata={"help": "Split to evaluate the loss on; none by default."})


# All linear layers of the language model; the vision model trains in full beside them.
LANGUAGE_MODEL_LINEARS = r".*\.text_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def main(data_args: DataArguments, training_args: SmolDriverSFTConfig, model_args: ModelConfig):
    # Model
    quantization = None
    if model_args.load_in_4bit:
        compute = getattr(torch, model_args.dtype or "float32")
        quantization = nf4(compute, model_args.use_bnb_nested_quant, model_args.bnb_4bit_quant_type)
    model = SmolDriverForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
        quantization_config=quantization,
    )
    processor = SmolDriverProcessor.from_pretrained(model_args.model_name_or_path)
    peft_config = get_peft_config(model_args)
    if peft_config is not None:
        peft_config.target_modules = model_args.lora_target_modules or LANGUAGE_MODEL_LINEARS
        peft_config.modules_to_save = modules_to_save(training_args)

    # Data
    train = load_scenes(data_args.scenes, "train", streaming=data_args.streaming)
    evaluation = load_scenes(data_args.scenes, data_args.eval_split) if data_args.eval_split else None

    # Training
    trainer = SmolDriverSFTTrainer(
        model,
        args=training_args,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=processor,
        peft_config=peft_config,
    )
    trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    trainer.accelerator.print(f"{trainable:,} trainable weights")
    started = time.time()
    checkpoint = training_args.resume_from_checkpoint or get_last_checkpoint(training_args.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(training_args.output_dir)
    if trainer.is_world_process_zero():
        manifest = {
            "base": model_args.model_name_or_path,
            "dtype": model_args.dtype,
            "quantization": quantization and quantization.to_diff_dict(),
            "scenes": data_args.scenes,
            "scene_tokens": sorted({row["scene_token"] for row in train.select_columns(["scene_token"])}),
            "steps": trainer.state.global_step,
            "seconds": round(time.time() - started),
            "arguments": {**asdict(model_args), **training_args.to_dict()},
        }
        write_training_manifest(training_args.output_dir, manifest)
        print(f"model saved in {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=data_args.scenes)


if __name__ == "__main__":
    parser = TrlParser((DataArguments, SmolDriverSFTConfig, ModelConfig))
    main(*parser.parse_args_and_config())
