"""Whether a model and a processor belong together, and which weights they are. A processor that differs answers
otherwise, without an error."""

import hashlib
import json

import torch
from torch import nn

from .processing_smoldriver import SPECIAL_TOKENS, SmolDriverProcessor


def check_fit(model, processor: SmolDriverProcessor) -> None:
    """Refuse a processor that is not a model's own.

    It compares cameras, grid, pixel shuffle, picture size, image token and size of the vocabulary. A folder that
    [`record_processor`] marked also knows the other settings that its model was saved with.

    Raises:
        ValueError: names what differs.
    """
    config = model.config
    vision = config.vision_config
    own = model.config.model_type == "smoldriver"
    wanted = {
        "cameras": vision.cameras if own else processor.cameras,
        "grid_size": vision.grid_size if own else vision.image_size // vision.patch_size,
        "scale_factor": config.scale_factor,
        "picture size": vision.tower_image_size if own else vision.image_size,
        "image token id": config.image_token_id,
    }
    given = {
        "cameras": processor.cameras,
        "grid_size": processor.grid_size,
        "scale_factor": processor.scale_factor,
        "picture size": processor.image_processor.size["height"],
        "image token id": processor.image_token_id,
    }
    faults = [f"{name} {given[name]}, not {value}" for name, value in wanted.items() if given[name] != value]
    rows, largest = model.get_input_embeddings().weight.shape[0], max(processor.tokenizer.get_vocab().values())
    if largest >= rows:
        faults.append(f"a tokenizer with the id {largest}, beyond the embedding's {rows} rows")
    saved_with = getattr(config, "processor_digest", None) or {}
    digests = processor_digest(processor)
    changed = [name for name, digest in saved_with.items() if digests.get(name, digest) != digest]
    if changed:
        faults.append(f"other settings of {', '.join(changed)} than the model was saved with")
    if faults:
        raise ValueError(
            f"the processor beside {config._name_or_path or 'the model'} is not the model's: it has"
            f" {'; '.join(faults)}. Put the processor's files back"
            + (", or remove processor_digest from config.json if the change is meant" if changed else "")
        )


def record_processor(model, processor: SmolDriverProcessor) -> None:
    """Let `config.json` say what the model's processor was: `{"processor_digest": {"pictures": "9f0c...", ...}}`."""
    model.config.processor_digest = processor_digest(processor)


def processor_digest(processor: SmolDriverProcessor) -> dict[str, str]:
    """A digest of each kind of setting that a model's answers depend on."""
    pictures, tokenizer = processor.image_processor, processor.tokenizer
    size = pictures.size
    settings = {
        "pictures": [
            [float(value) for value in (*pictures.image_mean, *pictures.image_std)],
            [int(size["height"]), int(size["width"]), int(pictures.resample)],
            [bool(pictures.do_resize), bool(pictures.do_rescale), bool(pictures.do_normalize)],
            float(pictures.rescale_factor),
        ],
        "cameras": [processor.cameras, processor.visual_token_budgets, processor.budget_image_sizes],
        "chat template": processor.chat_template,
        "tokenizer": [
            hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest(),
            [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS],
            [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        ],
    }
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        for name, value in settings.items()
    }


def check_finite(model: nn.Module, source) -> None:
    """Refuse weights that are not numbers, which would give empty answers.

    Raises:
        ValueError: names the first.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not torch.isfinite(weight).all():
            raise ValueError(f"{source}: {name} holds NaN or infinity: train or download the model again")


def weights_sha256(*parts: nn.Module) -> str:
    """SHA-256 of weights as they are stored: the same on every device."""
    digest = hashlib.sha256()
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
