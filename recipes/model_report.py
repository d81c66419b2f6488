"""Size of a SmolDriver or SmolVLM by part, the memory that training it takes, and, on request, a run of a SmolDriver.

python recipes/model_report.py
python recipes/model_report.py --smolvlm
python recipes/model_report.py --run --dtype bfloat16

Without `--model` the dimensions are SmolVLM2-2.2B's, for SmolDriver with ViT-B/16 at 432 pixels. Memory is computed,
not measured. `--run` is on random weights; SmolVLM's times beside SmolDriver's are those of recipes/benchmark.py.
"""

import argparse
import time

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, SmolVLMConfig

from modeling_smoldriver import CAMERAS, SmolDriverConfig, SmolDriverForConditionalGeneration
from recipes.training.loading import CLASSES
from recipes.training.manifest import check_source
from recipes.training.weights import count_weights, parameter_table, weights_table
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.processes import peak_resident_bytes

TRAINED = 16  # bytes per trained weight: float32 weight and gradient, two float32 moments of AdamW
HALF = 2  # bytes of a frozen bf16 or fp16 weight
# bytes of an NF4 weight: 4 bits; per block of 64 a constant in 8 bits; per 256 of those a float32
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
LORA_RANK = 16
TEXT_TOKENS = 70
SIGLIP = {  # SmolVLM2-2.2B's tower
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


def smolvlm_config() -> SmolVLMConfig:
    """SmolVLM2-2.2B's, whose language model is that of SmolDriver's defaults."""
    text_config = SmolDriverConfig().text_config.to_dict()
    return SmolVLMConfig(
        vision_config=SIGLIP, text_config=text_config, scale_factor=3, image_token_id=49190, tie_word_embeddings=False
    )


def views_patches_tower(config: PretrainedConfig) -> tuple[int, int, PretrainedConfig]:
    """-> views per frame, patches per view, the tower's configuration"""
    vision = config.vision_config
    if isinstance(config, SmolDriverConfig):
        tower, size, views = vision.tower_config, vision.tower_image_size, len(vision.cameras)
    else:
        tower, size, views = vision, vision.image_size, len(CAMERAS)
    return views, (size // tower.patch_size) ** 2, tower


def smolvlm_table(model: PreTrainedModel) -> str:
    """As `parameter_table`."""
    parts = {"tower": model.model.vision_model, "connector": model.model.connector}
    parts |= {"text model": model.model.text_model, "whole model": model}
    return weights_table(parts)


def adapted_linears(model: PreTrainedModel) -> list[torch.nn.Linear]:
    """What QLoRA quantises and puts adapters on: all linear layers of the language model."""
    return [module for module in model.model.text_model.layers.modules() if isinstance(module, torch.nn.Linear)]


def adapter_weights(model: PreTrainedModel) -> int:
    return sum(LORA_RANK * (linear.in_features + linear.out_features) for linear in adapted_linears(model))


def qlora_checkpoint_bytes(model: PreTrainedModel) -> int:
    """Size of what QLoRA saves: adapters and the vision model in float32."""
    return 4 * (adapter_weights(model) + count_weights(model.model.vision_model))


def training_memory(model: PreTrainedModel, tokens: int) -> dict[str, dict[str, float]]:
    """Bytes by part for each way to train.

    Args:
        model: on any device, `meta` too.
        tokens: length of the sequence of a step. Activations are estimated for gradient checkpointing: the inputs of
            every layer of tower and text model, and what the larger of their layers keeps for its backward pass.
    """
    text = model.model.text_model
    quantized = sum(linear.weight.numel() for linear in adapted_linears(model))
    language = count_weights(text) + model.lm_head.weight.numel() * (not model.config.tie_word_embeddings)
    vision, connector = count_weights(model.model.vision_model), count_weights(model.model.connector)

    (views, patches, tower), config = views_patches_tower(model.config), text.config
    patches *= views
    inputs = patches * tower.hidden_size * tower.num_hidden_layers
    inputs += tokens * config.hidden_size * config.num_hidden_layers
    in_layer = max(
        tokens * (6 * config.hidden_size + 3 * config.intermediate_size),
        patches * (6 * tower.hidden_size + 2 * getattr(tower, "intermediate_size", 4 * tower.hidden_size)),
    )
    activations = HALF * (inputs + in_layer) + 12 * TEXT_TOKENS * config.vocab_size  # logits thrice, in float32
    return {
        "full": {
            "vision": TRAINED * vision,
            "connector": TRAINED * connector,
            "language model": TRAINED * language,
            "activations": activations,
        },
        "vision, language model frozen": {
            "vision": TRAINED * vision,
            "connector": TRAINED * connector,
            "language model": HALF * language,
            "activations": activations,
        },
        "QLoRA and vision": {
            "vision": (TRAINED + HALF) * vision,  # PEFT keeps the weights from before training too
            "connector": HALF * connector,
            "language model": NF4 * quantized + HALF * (language - quantized),
            "adapters": TRAINED * adapter_weights(model),
            "activations": activations,
        },
    }


def memory_table(memory: dict[str, dict[str, float]]) -> str:
    lines = []
    for mode, parts in memory.items():
        lines.append(f"  {mode}: {sum(parts.values()) / 1e9:.1f} GB")
        lines += [f"    {part:15s} {size / 1e9:6.2f}" for part, size in parts.items()]
    return "\n".join(lines)


def run(config: SmolDriverConfig, dtype: torch.dtype) -> str:
    """One forward pass of six views and a question, and one answer of 16 tokens, on random weights on the CPU."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = SmolDriverForConditionalGeneration(config).to(dtype).eval()  # a part's own config may name another
    torch.set_default_dtype(torch.float32)
    vision = config.vision_config
    views, budget, size = len(vision.cameras), config.visual_token_budgets[0], vision.tower_image_size
    word = config.text_config.vocab_size // 2  # any token but <image>
    pictures = ([config.image_token_id] * budget + [word]) * views
    inputs = {
        "input_ids": torch.tensor([pictures + [word] * (TEXT_TOKENS - views)]),
        "pixel_values": torch.randn(1, views, 3, size, size, dtype=dtype),
        "camera_ids": torch.arange(views)[None],
    }
    lines = []
    with torch.inference_mode():
        started = time.perf_counter()
        model(**inputs, logits_to_keep=1)
        seconds = time.perf_counter() - started
        lines.append(f"  forward of {views} views, {inputs['input_ids'].shape[1]} tokens: {seconds:.1f} s")
        started = time.perf_counter()
        answer = model.generate(**inputs, max_new_tokens=16, min_new_tokens=16, do_sample=False)
        new = answer.shape[1] - inputs["input_ids"].shape[1]
        lines.append(f"  answer of {new} tokens: {time.perf_counter() - started:.1f} s")
    return "\n".join([*lines, f"  peak memory of the process: {peak_resident_bytes() / 1e9:.1f} GB"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id whose configuration to take")
    parser.add_argument("--smolvlm", action="store_true", help="without --model: SmolVLM2-2.2B's dimensions")
    parser.add_argument("--tokens", type=whole_number(), default=1024, help="tokens of a training sequence")
    parser.add_argument("--run", action="store_true", help="run a forward pass and an answer on random weights")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    arguments = parser.parse_args()
    with errors_in_one_line("model_report"):
        config = smolvlm_config() if arguments.smolvlm else SmolDriverConfig()
        if arguments.model:
            check_source(arguments.model)
            config = AutoConfig.from_pretrained(arguments.model, trust_remote_code=False)
        if config.model_type not in CLASSES:
            raise ValueError(f"{arguments.model} is a {config.model_type!r}; the report knows {', '.join(CLASSES)}")
        ours = isinstance(config, SmolDriverConfig)
        if arguments.run and not ours:
            raise ValueError("--run is for SmolDriver: recipes/benchmark.py times SmolVLM beside it")
    with init_empty_weights():
        model = CLASSES[config.model_type][0](config)
    print(f"parameters\n{parameter_table(model) if ours else smolvlm_table(model)}")
    memory = memory_table(training_memory(model, arguments.tokens))
    print(f"memory for training on {arguments.tokens} tokens per step\n{memory}")
    print(f"what QLoRA saves, adapters and vision model: {qlora_checkpoint_bytes(model) / 1e6:.1f} MB")
    if arguments.run:
        print(f"random weights in {arguments.dtype}\n{run(config, getattr(torch, arguments.dtype))}")


if __name__ == "__main__":
    with stopped_in_one_line("model_report"):
        main()
