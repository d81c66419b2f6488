"""A SmolDriver small enough to build, save and run in every test, and pictures for it."""

import copy
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from modeling_smoldriver import CAMERAS, SmolDriverConfig, SmolDriverForConditionalGeneration, SmolDriverProcessor
from recipes.tiny.tiny_base import train_tokenizer

transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny tensors: more threads cost more than they bring

TOWERS = {
    "vit": {"model_type": "vit", "image_size": 32},
    "dinov2": {"model_type": "dinov2", "image_size": 32},
    "dinov2_with_registers": {"model_type": "dinov2_with_registers", "image_size": 32, "num_register_tokens": 3},
    "siglip": {"model_type": "siglip_vision_model", "image_size": 32},
}
QUESTIONS = [
    "Are there barriers to the front of the ego car?",
    "What are objects to the back left of the ego car?",
    "What is the status of the car that is to the front of the ego car?",
    "Predict the behavior of the ego vehicle.",
]


def tiny_config(tokenizer, tower: str = "vit", **vision) -> SmolDriverConfig:
    """48-pixel views, a 6x6 query grid, pixel shuffle by 2: budgets of 9, 4 and 1 tokens a camera."""
    return SmolDriverConfig(
        vision_config={
            "tower_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "mlp_ratio": 2,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "patch_size": 8,
                **TOWERS[tower],
            },
            "tower_image_size": 48,
            "hidden_size": 32,
            "grid_size": 6,
            "num_attention_heads": 4,
            **vision,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024,
            "rope_theta": 5000.0,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )


def tiny_model(config: SmolDriverConfig, seed: int = 0) -> SmolDriverForConditionalGeneration:
    """Weights wide enough that different pictures and questions give different answers."""
    torch.manual_seed(seed)
    model = SmolDriverForConditionalGeneration(copy.deepcopy(config)).eval()  # which the model may change
    for name, parameter in model.named_parameters():
        if name.startswith(("lm_head", "model.text_model", "model.connector")) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    return model


def assert_same(actual: torch.Tensor, expected: torch.Tensor, name: str = ""):
    """Equal in float32: to 1e-5 of the largest value."""
    difference = (actual - expected).abs().max().item()
    limit = 1e-5 * max(1.0, expected.abs().max().item())
    assert actual.shape == expected.shape and difference <= limit, f"{name} differs by {difference}, more than {limit}"


def picture(seed: int, size: tuple[int, int] = (64, 36)) -> Image.Image:
    """Coarse noise, so that pictures stay different after resizing; `size` is width, height in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


@pytest.fixture(scope="session")
def tokenizer():
    texts = [f"\nQuestion: {question}" for question in QUESTIONS] + [
        " Yes.",
        " No.",
        " The ego vehicle is going straight.",
    ]
    return train_tokenizer(texts * 3, vocab_size=400)


@pytest.fixture(scope="session")
def config(tokenizer):
    return tiny_config(tokenizer)


@pytest.fixture(scope="session")
def image_processor():
    try:
        from transformers import ViTImageProcessorPil as ViTImageProcessor
    except ImportError:
        from transformers import ViTImageProcessor
    return ViTImageProcessor()


@pytest.fixture(scope="session")
def processor(config, image_processor, tokenizer):
    return SmolDriverProcessor.from_config(config, image_processor, tokenizer)


@pytest.fixture
def model(config):
    return tiny_model(config)


@pytest.fixture
def images():
    return {camera: picture(seed) for seed, camera in enumerate(CAMERAS)}


@pytest.fixture(scope="session")
def drivelm_sample(pytestconfig):
    """The real sample frames, where they lie beside the project or were downloaded into it."""
    for folder in ("../shared/data/drivelm_sample", "data/drivelm_sample"):
        path = pytestconfig.rootpath / folder
        if (path / "train_sample.json").is_file():
            return path
    pytest.skip("no real DriveLM sample: python data_scripts/download_drivelm_sample.py fetches it")
