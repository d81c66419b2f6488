"""How many weights a model has, by part."""

from torch import nn

from modeling_smoldriver import SmolDriverForConditionalGeneration


def parameter_table(model: SmolDriverForConditionalGeneration) -> str:
    """Weights by part, one line each."""
    vision = model.model.vision_model
    return weights_table(
        {
            "tower": vision.tower,
            "projection": vision.projection,
            "resamplers": vision.resampler,
            "connector": model.model.connector,
            "text model": model.model.text_model,
            "whole model": model,
        }
    )


def weights_table(parts: dict[str, nn.Module]) -> str:
    return "\n".join(f"  {name:12s} {count_weights(part):>15,}" for name, part in parts.items())


def count_weights(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
