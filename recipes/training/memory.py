"""The memory that training takes, computed from a model's dimensions."""

import torch
from transformers import PretrainedConfig, PreTrainedModel

from modeling_smoldriver import CAMERAS, SmolDriverConfig
from recipes.training.weights import count_weights

TRAINED = 16  # bytes per trained weight: float32 weight and gradient, two float32 moments of AdamW
HALF = 2  # bytes of a frozen bf16 or fp16 weight
# bytes of an NF4 weight: 4 bits; per block of 64 a constant in 8 bits; per 256 of those a float32
NF4 = (4 + 8 / 64 + 32 / (64 * 256)) / 8
LORA_RANK = 16
TEXT_TOKENS = 70  # of a question and its answer


def views_patches_tower(config: PretrainedConfig) -> tuple[int, int, PretrainedConfig]:
    """-> views per frame, patches per view, the tower's configuration"""
    vision = config.vision_config
    if isinstance(config, SmolDriverConfig):
        tower, size, views = vision.tower_config, vision.tower_image_size, len(vision.cameras)
    else:
        tower, size, views = vision, vision.image_size, len(CAMERAS)
    return views, (size // tower.patch_size) ** 2, tower


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
