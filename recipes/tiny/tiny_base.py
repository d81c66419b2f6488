"""Tiny stand-ins for what a user of the real sizes downloads: a tokenizer, a SmolVLM and a ViT, with random weights.

python recipes/tiny/tiny_base.py --scenes data/drivelm_sample_scenes --output-dir outputs/sample/base

Writes `<output-dir>/vlm` (SmolVLM with its tokenizer and image processor) and `<output-dir>/tower` (ViT).
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from data_scripts.schema import CAMERAS, load_scenes
from modeling_smoldriver.processing_smoldriver import IMAGE_TOKEN
from recipes.tiny.tokenizer import train_tokenizer
from recipes.training.manifest import TrainingManifest
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line

VISION_WIDTH = 128
TEXT_WIDTH = 192
IMAGE_SIZE = 96  # pixels
PATCH_SIZE = 16  # pixels
SCALE_FACTOR = 2
EVEN_ATTENTION = 0.3  # of the TEXT_WIDTH**-0.5 that the other weights start at
CONNECTOR_STD = 0.1


def scene_texts(scenes):
    """Every question, answer and scene description of the rows, for the tokenizer."""
    for row in scenes:
        if row["scene_description"]:
            yield row["scene_description"]
        for qa in row["qa"]:
            yield f"\nQuestion: {qa['question']}"
            yield f" {qa['answer']}"


def tiny_vlm(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> SmolVLMForConditionalGeneration:
    """A SmolVLM of some million random weights: 96-pixel views in 36 patches, 9 tokens per view."""
    torch.manual_seed(seed)
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 4 * VISION_WIDTH,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        text_config=LlamaConfig(
            hidden_size=TEXT_WIDTH,
            intermediate_size=8 * TEXT_WIDTH // 3,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=3,
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            initializer_range=TEXT_WIDTH**-0.5,  # 0.02 is right for a width of 2048; here it delays learning threefold
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).to_dict(),
        scale_factor=SCALE_FACTOR,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        tie_word_embeddings=False,
    )
    model = SmolVLMForConditionalGeneration(config)
    for layer in model.model.text_model.layers:  # even attention finds the pictures many times sooner
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            projection.weight.data.mul_(EVEN_ATTENTION)
    torch.nn.init.normal_(model.model.connector.modality_projection.proj.weight, std=CONNECTOR_STD)
    return model


def tiny_tower(seed: int = 0) -> ViTModel:
    """A four-layer ViT with random weights."""
    torch.manual_seed(seed)
    return ViTModel(
        ViTConfig(
            hidden_size=VISION_WIDTH,
            intermediate_size=4 * VISION_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        add_pooling_layer=False,
    )


def save_with_record(model: PreTrainedModel, folder: Path, manifest: TrainingManifest) -> None:
    """A model that began with random weights, and what it learned from."""
    model.save_pretrained(folder)
    manifest.write(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", required=True, help="folder of prepared scenes; its text trains the tokenizer")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with errors_in_one_line("tiny_base"):
        scenes = load_scenes(arguments.scenes, "train").select_columns(["scene_description", "qa"])
    tokenizer = train_tokenizer(scene_texts(scenes), whole=CAMERAS)
    vlm = tiny_vlm(tokenizer, arguments.seed)
    tower = tiny_tower(arguments.seed)
    untrained = TrainingManifest(base=None, scenes=arguments.scenes, arguments=vars(arguments))
    save_with_record(vlm, arguments.output_dir / "vlm", untrained)
    tokenizer.save_pretrained(arguments.output_dir / "vlm")
    save_with_record(tower, arguments.output_dir / "tower", untrained)
    print(
        f"tiny base in {arguments.output_dir}: SmolVLM {vlm.num_parameters():,} weights,"
        f" tower {tower.num_parameters():,}, {len(tokenizer)} tokens"
    )


if __name__ == "__main__":
    with stopped_in_one_line("tiny_base"):
        main()
