"""Graft a SmolDriver from a base VLM and a vision tower: the base's connector and language model, fresh resamplers.

python recipes/build_checkpoint.py --base HuggingFaceTB/SmolVLM2-2.2B-Instruct \
    --tower google/vit-base-patch16-224-in21k --output-dir outputs/smoldriver-2b

Or from a language model alone (SmolLM2, a GGUF file included), with a fresh connector:

python recipes/build_checkpoint.py --language-model HuggingFaceTB/SmolLM2-135M-Instruct \
    --tower google/vit-base-patch16-224-in21k --output-dir outputs/smoldriver-135m
"""

import argparse
import inspect
import time
from pathlib import Path

import torch
from accelerate import init_empty_weights
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    logging,
)

from modeling_smoldriver import SmolDriverConfig, SmolDriverForConditionalGeneration, SmolDriverProcessor
from modeling_smoldriver.baseline_smoldriver import tower_image_processor
from modeling_smoldriver.modeling_smoldriver import SmolDriverVisionModel
from modeling_smoldriver.processing_smoldriver import END_OF_TURN, IMAGE_TOKEN, SPECIAL_TOKENS
from recipes.training.manifest import check_output, check_source, read_training_manifest, write_training_manifest
from smoldriver_common.command_line import errors_in_one_line
from smoldriver_common.processes import peak_resident_bytes

BASE_TYPES = ("smolvlm", "idefics3")  # SmolVLM2, and the first SmolVLM, whose parts and names are the same

FRESH = {
    "vision-width": (768, "width of visual tokens"),
    "vision-heads": (4, "heads of the resamplers"),
    "grid-size": (32, "side of the query grid"),
    "scale-factor": (4, "pixel shuffle"),
}
"""Options that a base VLM answers by itself: default and meaning."""


def load_whole(auto_class, base: str, **arguments) -> PreTrainedModel:
    """A model of which nothing is missing, where transformers would put random weights in silence.

    Raises:
        ValueError: names the weights that are missing or of a wrong shape.
    """
    # so that wrong shapes are told like missing weights, and end in no traceback
    model, info = auto_class.from_pretrained(base, output_loading_info=True, ignore_mismatched_sizes=True, **arguments)
    for fault, names in (("lacks", info["missing_keys"]), ("holds in another shape", info["mismatched_keys"])):
        if names:
            raise ValueError(f"the base {base} {fault} {', '.join(sorted(map(str, names)))}")
    return model


def base_parts(base: str, dtype: torch.dtype):
    """Tokenizer, config fields and weights that a SmolVLM lends; weight names are SmolDriver's own.

    Raises:
        ValueError: another kind of model, or one that lacks weights.
    """
    model_type = AutoConfig.from_pretrained(base).model_type
    if model_type not in BASE_TYPES:
        raise ValueError(f"the base {base} is a {model_type!r}: give a SmolVLM ({', '.join(BASE_TYPES)})")
    model = load_whole(AutoModelForImageTextToText, base, dtype=dtype)
    config = model.config
    vision = config.vision_config
    fields = {
        "text_config": config.text_config,
        "scale_factor": config.scale_factor,
        "image_token_id": config.image_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    grid = {
        "hidden_size": vision.hidden_size,
        "num_attention_heads": vision.num_attention_heads,
        "grid_size": vision.image_size // vision.patch_size,
    }
    weights = {
        name: tensor for name, tensor in model.state_dict().items() if not name.startswith("model.vision_model.")
    }
    return AutoTokenizer.from_pretrained(base), fields, grid, weights


def language_parts(arguments, dtype: torch.dtype):
    """As `base_parts`, from a language model alone: its embedding gets SmolVLM's tokens, the connector is fresh.

    Raises:
        ValueError: it lacks weights.
    """
    name, gguf_file = arguments.language_model, arguments.gguf_file
    model = load_whole(AutoModelForCausalLM, name, gguf_file=gguf_file, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(name, gguf_file=gguf_file)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.eos_token = END_OF_TURN
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=128, mean_resizing=False)
    text_config = model.config
    for left_over in ("quantization_config", "_name_or_path"):
        if hasattr(text_config, left_over):
            delattr(text_config, left_over)
    text_config.eos_token_id = tokenizer.eos_token_id
    text_config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    tokenizer.pad_token_id = text_config.pad_token_id
    grid = {
        "hidden_size": arguments.vision_width,
        "num_attention_heads": arguments.vision_heads,
        "grid_size": arguments.grid_size,
    }
    fields = {
        "text_config": text_config,
        "scale_factor": arguments.scale_factor,
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "tie_word_embeddings": text_config.tie_word_embeddings,
    }
    connector = torch.empty(text_config.hidden_size, arguments.vision_width * arguments.scale_factor**2, dtype=dtype)
    weights = {"model.connector.modality_projection.proj.weight": torch.nn.init.normal_(connector, std=0.02)}
    for name, tensor in model.state_dict().items():
        weights[name if name.startswith("lm_head.") else name.replace("model.", "model.text_model.", 1)] = tensor
    return tokenizer, fields, grid, weights


def tower_weights(path: str, tower: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights for `tower` from the checkpoint at `path`, without what that has beside it: a pooler, a text model."""
    cls = type(tower)
    arguments = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(cls).parameters else {}
    loaded, info = cls.from_pretrained(path, config=tower.config, dtype=dtype, output_loading_info=True, **arguments)
    if info["missing_keys"]:
        raise ValueError(f"the tower {path} lacks {sorted(info['missing_keys'])}")
    return loaded.state_dict()


def options(arguments) -> dict:
    """What was given, as the manifest keeps it."""
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    return given | {"output_dir": str(arguments.output_dir)}


def check_free(arguments) -> None:
    """Refuse a folder that holds another model, which would be lost; the same command may be given again.

    Raises:
        ValueError: names the folder.
    """
    folder = arguments.output_dir
    if (folder / "config.json").is_file():
        built_by = (read_training_manifest(folder) or {}).get("arguments")
        if built_by != options(arguments):
            raise ValueError(f"{folder} holds another model already: remove it or give another --output-dir")


def graft(arguments) -> tuple[SmolDriverForConditionalGeneration, SmolDriverProcessor]:
    sources = (arguments.base or arguments.language_model, arguments.tower)
    for source in sources:
        check_source(source)
    check_output(arguments.output_dir, *sources)
    check_free(arguments)
    dtype = getattr(torch, arguments.dtype)
    torch.manual_seed(arguments.seed)
    parts = base_parts(arguments.base, dtype) if arguments.base else language_parts(arguments, dtype)
    tokenizer, fields, grid, weights = parts
    tower_config = AutoConfig.from_pretrained(arguments.tower)
    vision_config = {
        "tower_config": getattr(tower_config, "vision_config", tower_config).to_dict(),
        "tower_image_size": arguments.tower_image_size,
        "resampler_keys": arguments.resampler_keys,
        "resampler_residual": arguments.resampler_residual,
        **grid,
    }
    config = SmolDriverConfig(vision_config=vision_config, **fields)
    with init_empty_weights(include_buffers=False):  # the base's tensors move in, they are not copied
        model = SmolDriverForConditionalGeneration(config)
    vision = SmolDriverVisionModel(config.vision_config).to(dtype)
    vision.tower.load_state_dict(tower_weights(arguments.tower, vision.tower, dtype))
    size = config.vision_config.tower_image_size
    with torch.no_grad():
        vision.tower_features(torch.zeros(1, 3, size, size))  # refuses a tower that gives no grid of patches
    model.model.vision_model = vision
    missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
    missing = [name for name in missing if not name.startswith("model.vision_model.")]
    model.tie_weights()
    if unexpected or any(name != "lm_head.weight" or not config.tie_word_embeddings for name in missing):
        raise ValueError(f"the base does not fit: missing {missing}, unexpected {unexpected}")
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id, eos_token_id=end, pad_token_id=config.text_config.pad_token_id
    )
    processor = SmolDriverProcessor.from_config(config, tower_image_processor(arguments.tower), tokenizer)
    return model, processor


def parameter_table(model: SmolDriverForConditionalGeneration) -> str:
    """Weights by part, a line each."""
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


def weights_table(parts: dict[str, torch.nn.Module]) -> str:
    return "\n".join(f"  {name:12s} {count_weights(part):>15,}" for name, part in parts.items())


def count_weights(part: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--base", help="SmolVLM2: Hub id or folder")
    source.add_argument("--language-model", help="SmolLM2 alone: Hub id or folder")
    parser.add_argument("--gguf-file", help="name of the GGUF file in --language-model")
    parser.add_argument("--tower", required=True, help="vision backbone with patch tokens: Hub id or folder")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--tower-image-size", type=int, help="pixels; default 16 a grid cell")
    parser.add_argument("--resampler-keys", default="content", choices=("content", "position"))
    parser.add_argument("--resampler-residual", default=True, action=argparse.BooleanOptionalAction)
    for name, (default, what) in FRESH.items():
        parser.add_argument(f"--{name}", type=int, help=f"with --language-model: {what}; default {default}")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if bool(arguments.gguf_file) and not arguments.language_model:
        parser.error("--gguf-file goes with --language-model")
    for name, (default, _) in FRESH.items():
        field = name.replace("-", "_")
        if arguments.base and getattr(arguments, field) is not None:
            parser.error(f"--{name} goes with --language-model: a --base brings its own")
        if arguments.language_model and getattr(arguments, field) is None:
            setattr(arguments, field, default)
    started = time.perf_counter()
    logging.set_verbosity_error()  # what a checkpoint has beyond the tower is no news
    with errors_in_one_line(parser.prog):
        model, processor = graft(arguments)
    model.save_pretrained(arguments.output_dir)
    processor.save_pretrained(arguments.output_dir)
    seconds = time.perf_counter() - started
    manifest = {
        "base": arguments.base or arguments.language_model,
        "tower": arguments.tower,
        "dtype": arguments.dtype,
        "quantization": None,
        "scenes": None,
        "scene_tokens": [],
        "steps": 0,
        "seconds": round(seconds),
        "arguments": options(arguments),
    }
    write_training_manifest(arguments.output_dir, manifest)
    print(f"SmolDriver in {arguments.output_dir}, budgets {processor.visual_token_budgets} tokens a camera")
    pictures = processor.image_processor
    how = Image.Resampling(pictures.resample).name.lower()
    print(f"pictures: {how} resize, mean {list(pictures.image_mean)}, deviation {list(pictures.image_std)}")
    print(parameter_table(model))
    print(f"built in {seconds:.0f} s, peak memory {peak_resident_bytes() / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
