"""What the benchmark compares: SmolDriver and SmolVLM of four sizes with random weights, and inputs for them."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from modeling_smoldriver import SmolDriverConfig, SmolDriverForConditionalGeneration, SmolDriverProcessor
from modeling_smoldriver.modeling_smoldriver import SmolDriverVisionModel
from modeling_smoldriver.processing_smoldriver import IMAGE_TOKEN
from modeling_smoldriver.resampler_smoldriver import grid_positions, resize_grid
from recipes.benchmarking.inputs import drivelm_style_questions, pictures
from recipes.tiny.tokenizer import train_tokenizer

try:
    from transformers import ViTImageProcessorPil as ViTImageProcessor
except ImportError:  # its name in transformers 4.57
    from transformers import ViTImageProcessor


@dataclass(frozen=True)
class Size:
    """Dimensions of a SmolVLM and of the SmolDriver in its place. Widths in channels, sides of pictures in pixels."""

    # SmolVLM's SigLIP tower
    siglip_width: int
    siglip_layers: int
    siglip_mlp: int
    siglip_heads: int
    siglip_image_size: int
    siglip_patch: int
    scale_factor: int
    # SmolDriver's tower, with patches of 16 pixels
    tower_width: int
    tower_layers: int
    tower_image_size: int
    budget_image_sizes: dict[int, int]  # budgets (tokens per camera) whose pictures are smaller
    budgets: tuple[int, ...]  # measured, full budget first, then falling
    # language model of both
    text_width: int
    text_mlp: int
    text_layers: int
    text_heads: int
    text_kv_heads: int
    vocabulary: int

    @property
    def grid(self) -> int:
        return self.siglip_image_size // self.siglip_patch

    @property
    def small_budget(self) -> int:
        """9 tokens per camera; in the tiny model, where 9 is the full budget, 4."""
        return 9 if self.budgets[0] > 9 else 4

    def without_language_model(self) -> "Size":
        return replace(self, text_layers=0, vocabulary=1024)


SIGLIP_BASE = {
    "siglip_width": 768,
    "siglip_layers": 12,
    "siglip_mlp": 3072,
    "siglip_heads": 12,
    "siglip_image_size": 512,
    "siglip_patch": 16,
    "scale_factor": 4,
}
VIT_BASE = {"tower_width": 768, "tower_layers": 12}
# 21 x 21 patches instead of SigLIP's 32 x 32: the resamplers still write all 64 tokens per camera.
SMALL_TOWER = {
    **VIT_BASE,
    "tower_image_size": 336,
    "budget_image_sizes": {9: 144, 1: 96},
    "budgets": (64, 36, 9, 1),
}
SIZES = {
    "tiny": Size(
        siglip_width=128,
        siglip_layers=4,
        siglip_mlp=512,
        siglip_heads=4,
        siglip_image_size=96,
        siglip_patch=16,
        scale_factor=2,
        tower_width=128,
        tower_layers=4,
        tower_image_size=96,
        budget_image_sizes={4: 64, 1: 32},
        budgets=(9, 4, 1),
        text_width=192,
        text_mlp=512,
        text_layers=4,
        text_heads=3,
        text_kv_heads=3,
        vocabulary=1024,
    ),
    "256m": Size(
        **SIGLIP_BASE,
        **SMALL_TOWER,
        text_width=576,
        text_mlp=1536,
        text_layers=30,
        text_heads=9,
        text_kv_heads=3,
        vocabulary=49280,
    ),
    "500m": Size(
        **SIGLIP_BASE,
        **SMALL_TOWER,
        text_width=960,
        text_mlp=2560,
        text_layers=32,
        text_heads=15,
        text_kv_heads=5,
        vocabulary=49280,
    ),
    "2.2b": Size(
        siglip_width=1152,
        siglip_layers=27,
        siglip_mlp=4304,
        siglip_heads=16,
        siglip_image_size=384,
        siglip_patch=14,
        scale_factor=3,
        **VIT_BASE,
        tower_image_size=432,
        budget_image_sizes={9: 144, 1: 96},
        budgets=(81, 36, 9, 1),
        text_width=2048,
        text_mlp=8192,
        text_layers=24,
        text_heads=32,
        text_kv_heads=32,
        vocabulary=49280,
    ),
}

QUESTION_COUNTS = (1, 8, 32, 93)
CONTESTANTS = (*((count, 1) for count in QUESTION_COUNTS), (QUESTION_COUNTS[-1], 2))
"""Of the training part: (questions per step, packs that they fill)."""


def name_of(questions: int, packs: int) -> str:
    return f"{questions} questions in {packs}"


def scene_row(questions: int) -> dict:
    """A scene row with decoded pictures (see `data_scripts/schema.py`)."""
    qa = [
        {"task": "perception", "question": question, "answer": answer, "tag": []}
        for question, answer in drivelm_style_questions(questions)
    ]
    return {"scene_token": "scene", "frame_token": "frame", "scene_description": None, **pictures(), "qa": qa}


def smoldriver_config(size: Size, processor_ids: dict) -> SmolDriverConfig:
    return SmolDriverConfig(
        vision_config={
            "tower_config": {
                "model_type": "vit",
                "hidden_size": size.tower_width,
                "intermediate_size": 4 * size.tower_width,
                "num_hidden_layers": size.tower_layers,
                "num_attention_heads": size.tower_width // (32 if size.tower_width < 768 else 64),
                "image_size": min(224, size.tower_image_size),
                "patch_size": 16,
            },
            "tower_image_size": size.tower_image_size,
            "hidden_size": size.siglip_width,
            "grid_size": size.grid,
            "num_attention_heads": size.siglip_heads,
        },
        text_config=text_config(size, processor_ids),
        scale_factor=size.scale_factor,
        image_token_id=processor_ids["image"],
    )


def smolvlm_config(size: Size, processor_ids: dict) -> SmolVLMConfig:
    return SmolVLMConfig(
        vision_config={
            "hidden_size": size.siglip_width,
            "intermediate_size": size.siglip_mlp,
            "num_hidden_layers": size.siglip_layers,
            "num_attention_heads": size.siglip_heads,
            "image_size": size.siglip_image_size,
            "patch_size": size.siglip_patch,
        },
        text_config=text_config(size, processor_ids),
        scale_factor=size.scale_factor,
        image_token_id=processor_ids["image"],
    )


def text_config(size: Size, processor_ids: dict) -> dict:
    config = LlamaConfig(
        hidden_size=size.text_width,
        intermediate_size=size.text_mlp,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_heads,
        num_key_value_heads=size.text_kv_heads,
        vocab_size=size.vocabulary,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        bos_token_id=processor_ids["bos"],
        eos_token_id=processor_ids["eos"],
        pad_token_id=processor_ids["pad"],
    )
    return config.to_dict()


def make_processor(size: Size) -> tuple[SmolDriverProcessor, SmolDriverConfig, SmolVLMConfig]:
    """The processor, with a tokenizer trained on the benchmark's own questions, and both models' configurations."""
    texts = [text for pair in drivelm_style_questions(400) for text in (f"\nQuestion: {pair[0]}", f" {pair[1]}")]
    tokenizer = train_tokenizer(texts, vocab_size=1024)
    ids = {
        "image": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
    }
    config = smoldriver_config(size, ids)
    processor = SmolDriverProcessor.from_config(
        config, ViTImageProcessor(), tokenizer, budget_image_sizes=size.budget_image_sizes
    )
    return processor, config, smolvlm_config(size, ids)


def make_smoldriver(config: SmolDriverConfig, device: str, dtype: torch.dtype) -> SmolDriverForConditionalGeneration:
    torch.manual_seed(0)
    with torch.device(device):
        model = SmolDriverForConditionalGeneration._from_config(config, dtype=dtype).eval()
    return model


def make_smolvlm(
    config: SmolVLMConfig, smoldriver: SmolDriverForConditionalGeneration
) -> SmolVLMForConditionalGeneration:
    """A SmolVLM that shares the language model of `smoldriver`."""
    torch.manual_seed(0)
    text_config = config.text_config
    config.text_config = LlamaConfig(**{**text_config.to_dict(), "num_hidden_layers": 0})
    with torch.device(smoldriver.device):
        model = SmolVLMForConditionalGeneration._from_config(config, dtype=smoldriver.dtype).eval()
    model.config.text_config = text_config
    model.model.text_model = smoldriver.model.text_model
    model.lm_head = smoldriver.lm_head
    return model


@torch.no_grad()
def one_camera_after_another(
    vision: SmolDriverVisionModel, pixel_values: torch.Tensor, camera_ids: list[int], side: int
) -> torch.Tensor:
    """The paper's way to the vision model's output: one call of the tower and of a resampler per camera, in a loop.

    Shapes as in [`SmolDriverVisionModel`]; the weights are its own, so that the outputs can be compared.
    """
    resampler = vision.resampler
    reference, channels = vision.config.grid_size, vision.config.hidden_size
    heads = (-1, resampler.num_heads, resampler.head_dim)
    tokens = []
    for picture, camera in zip(pixel_values, camera_ids, strict=True):

        def linear(layer, hidden, camera=camera):
            return F.linear(hidden, layer.weight[camera], layer.bias[camera])

        def norm(layer, hidden, camera=camera):
            return F.layer_norm(hidden, (channels,), layer.weight[camera], layer.bias[camera], layer.eps)

        features = vision.projection(vision.tower_features(picture[None]))  # (1, height, width, channels)
        patches = features.flatten(0, 2)
        position = grid_positions(features.shape[1], reference, channels, features)
        normed = norm(resampler.feature_norm, patches)
        content = resampler.config.resampler_keys == "content"
        key_input = normed + position if content else norm(resampler.feature_norm, position)
        query = resize_grid(resampler.query[camera][None], side).view(-1, channels)
        query = norm(resampler.query_norm, query) + grid_positions(side, reference, channels, features)
        query, key, value = (
            linear(layer, hidden).view(heads).transpose(0, 1)[None]
            for layer, hidden in (
                (resampler.camera_query, query),
                (resampler.camera_key, key_input),
                (resampler.camera_value, normed),
            )
        )
        output = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)
        output = linear(resampler.camera_output, output)
        if resampler.config.resampler_residual:
            output = output + resize_grid(features, side).view(-1, channels)
        tokens.append(norm(resampler.output_norm, output))
    return torch.stack(tokens)
