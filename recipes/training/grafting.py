"""How a SmolDriver is put together from a base VLM or a language model, a vision tower and fresh resamplers."""

import inspect
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_smoldriver import SmolDriverConfig, SmolDriverForConditionalGeneration, SmolDriverProcessor
from modeling_smoldriver.baseline_smoldriver import tower_image_processor
from modeling_smoldriver.fitting_smoldriver import check_finite, record_processor
from modeling_smoldriver.modeling_smoldriver import SmolDriverVisionModel
from modeling_smoldriver.processing_smoldriver import END_OF_TURN, IMAGE_TOKEN, SPECIAL_TOKENS

BASE_TYPES = ("smolvlm", "idefics3")  # SmolVLM2, and the first SmolVLM, whose parts and names are the same


@dataclass(frozen=True)
class BuildOptions:
    """Options of recipes/build_checkpoint.py; exactly one of `base` and `language_model` is given."""

    tower: str  # folder or Hub id, as `base` and `language_model`
    output_dir: Path
    base: str | None = None
    language_model: str | None = None
    gguf_file: str | None = None  # name of the file in `language_model`
    tower_image_size: int | None = None  # pixels
    cameras: list[str] | None = None  # None: nuScenes' six
    resampler_keys: str = "content"
    resampler_residual: bool = True
    vision_width: int | None = None  # this and the next three: with `language_model` alone
    vision_heads: int | None = None
    grid_size: int | None = None
    scale_factor: int | None = None
    dtype: str = "float32"
    seed: int = 0

    def record(self) -> dict:
        """What was given, as the manifest keeps it."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return given | {"output_dir": str(self.output_dir)}


@dataclass
class LanguageSide:
    """What the base lends to a SmolDriver."""

    tokenizer: PreTrainedTokenizerBase
    fields: dict  # of SmolDriverConfig
    grid: dict  # fields of SmolDriverVisionConfig
    weights: dict[str, torch.Tensor]  # by SmolDriver's own names


def load_whole(auto_class, base: str, **arguments) -> PreTrainedModel:
    """A model with every weight from its checkpoint; transformers would silently fill in random ones.

    Raises:
        ValueError: names the weights that are missing or of a wrong shape.
    """
    # wrong shapes are reported like missing weights, without a traceback
    arguments |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "trust_remote_code": False}
    model, info = auto_class.from_pretrained(base, **arguments)
    for fault, names in (("lacks", info["missing_keys"]), ("holds in another shape", info["mismatched_keys"])):
        if names:
            raise ValueError(f"the base {base} {fault} {', '.join(sorted(map(str, names)))}")
    check_finite(model, base)
    return model


def parts_of_vlm(base: str, dtype: torch.dtype) -> LanguageSide:
    """What a SmolVLM lends.

    Raises:
        ValueError: another kind of model, or one that lacks weights.
    """
    model_type = AutoConfig.from_pretrained(base, trust_remote_code=False).model_type
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
    return LanguageSide(AutoTokenizer.from_pretrained(base, trust_remote_code=False), fields, grid, weights)


def parts_of_language_model(options: BuildOptions, dtype: torch.dtype) -> LanguageSide:
    """A language model alone: its embedding gets SmolVLM's tokens, the connector is fresh.

    Raises:
        ValueError: it lacks weights.
    """
    name, gguf_file = options.language_model, options.gguf_file
    model = load_whole(AutoModelForCausalLM, name, gguf_file=gguf_file, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(name, gguf_file=gguf_file, trust_remote_code=False)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL_TOKENS)})
    tokenizer.eos_token = END_OF_TURN
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=128, mean_resizing=False)
    text_config = model.config
    for stale in ("quantization_config", "_name_or_path"):
        if hasattr(text_config, stale):
            delattr(text_config, stale)
    text_config.eos_token_id = tokenizer.eos_token_id
    text_config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    tokenizer.pad_token_id = text_config.pad_token_id
    grid = {
        "hidden_size": options.vision_width,
        "num_attention_heads": options.vision_heads,
        "grid_size": options.grid_size,
    }
    fields = {
        "text_config": text_config,
        "scale_factor": options.scale_factor,
        "image_token_id": tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        "tie_word_embeddings": text_config.tie_word_embeddings,
    }
    connector = torch.empty(text_config.hidden_size, options.vision_width * options.scale_factor**2, dtype=dtype)
    weights = {"model.connector.modality_projection.proj.weight": torch.nn.init.normal_(connector, std=0.02)}
    for name, tensor in model.state_dict().items():
        weights[name if name.startswith("lm_head.") else name.replace("model.", "model.text_model.", 1)] = tensor
    return LanguageSide(tokenizer, fields, grid, weights)


def tower_weights(path: str, tower: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights for `tower` from the checkpoint at `path`, without its pooler or text model."""
    cls = type(tower)
    arguments = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(cls).parameters else {}
    loaded, info = cls.from_pretrained(path, config=tower.config, dtype=dtype, output_loading_info=True, **arguments)
    if info["missing_keys"]:
        raise ValueError(f"the tower {path} lacks {sorted(info['missing_keys'])}")
    check_finite(loaded, path)
    return loaded.state_dict()


def graft(options: BuildOptions) -> tuple[SmolDriverForConditionalGeneration, SmolDriverProcessor]:
    """The model and its processor.

    Raises:
        ValueError: a base or a tower that lacks weights, is of another kind, or does not fit.
    """
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(options.seed)
    lent = parts_of_vlm(options.base, dtype) if options.base else parts_of_language_model(options, dtype)
    config = config_of(options, lent)
    with init_empty_weights(include_buffers=False):  # the base's tensors move in, they are not copied
        model = SmolDriverForConditionalGeneration(config)
    model.model.vision_model = make_vision_model(options, config, dtype)
    missing, unexpected = model.load_state_dict(lent.weights, strict=False, assign=True)
    missing = [name for name in missing if not name.startswith("model.vision_model.")]
    model.tie_weights()
    if unexpected or any(name != "lm_head.weight" or not config.tie_word_embeddings for name in missing):
        raise ValueError(f"the base does not fit: missing {missing}, unexpected {unexpected}")
    end = lent.tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.generation_config = GenerationConfig(
        bos_token_id=config.text_config.bos_token_id, eos_token_id=end, pad_token_id=config.text_config.pad_token_id
    )
    processor = SmolDriverProcessor.from_config(config, tower_image_processor(options.tower), lent.tokenizer)
    record_processor(model, processor)
    return model, processor


def config_of(options: BuildOptions, lent: LanguageSide) -> SmolDriverConfig:
    tower_config = AutoConfig.from_pretrained(options.tower, trust_remote_code=False)
    vision_config = {
        "tower_config": getattr(tower_config, "vision_config", tower_config).to_dict(),
        "tower_image_size": options.tower_image_size,
        "cameras": options.cameras,
        "resampler_keys": options.resampler_keys,
        "resampler_residual": options.resampler_residual,
        **lent.grid,
    }
    return SmolDriverConfig(vision_config=vision_config, **lent.fields)


def make_vision_model(options: BuildOptions, config: SmolDriverConfig, dtype: torch.dtype) -> SmolDriverVisionModel:
    """Fresh projection and resamplers behind the tower's own weights."""
    vision = SmolDriverVisionModel(config.vision_config).to(dtype)
    vision.tower.load_state_dict(tower_weights(options.tower, vision.tower, dtype))
    size = config.vision_config.tower_image_size
    with torch.no_grad():
        vision.tower_features(torch.zeros(1, 3, size, size))  # refuses a tower that does not give a grid of patches
    return vision
