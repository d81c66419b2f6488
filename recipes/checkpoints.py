"""What a training run leaves beside its weights, and how a trained model is loaded again, adapters included."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState
from bitsandbytes.nn import Linear4bit
from peft import (
    PeftConfig,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from transformers import BitsAndBytesConfig
from transformers.trainer import TRAINER_STATE_NAME

from modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverProcessor

TRAINING_MANIFEST = "training_manifest.json"


@contextmanager
def errors_in_one_line(program: str):
    """Bad input ends the program with one line and no traceback: wrap what reads what the user named."""
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: {' '.join(str(error).split())}")


def check_source(name: str) -> None:
    """Refuse what is neither a folder nor of the form of a Hub id, before anything is looked up on the Hub.

    Raises:
        FileNotFoundError: names the folder.
    """
    folder = Path(name)
    if not folder.is_dir() and (len(folder.parts) != 2 or folder.is_absolute() or folder.parent.is_dir()):
        raise FileNotFoundError(f"there is no model folder {name}")


def write_training_manifest(folder: str | os.PathLike, manifest: dict) -> None:
    """Write `<folder>/training_manifest.json`, whole or not at all.

    Args:
        manifest: `base` (folder or Hub id that the run started from), its `dtype` and `quantization` or None, `scenes`
            (data folder), `scene_tokens` (of the training split), `arguments`, `steps`, `seconds`.
    """
    path = Path(folder) / TRAINING_MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(manifest, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    os.replace(aside, path)


def read_training_manifest(folder: str | os.PathLike) -> dict | None:
    path = Path(folder) / TRAINING_MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def last_whole_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest `checkpoint-<step>` of a run; one whose saving was cut short is passed over.

    transformers writes a checkpoint in place, its trainer state last: where that can be read, the rest is there.
    """
    checkpoints = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    for path in sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        try:
            json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return str(path)
    return None


def nf4(compute_dtype: torch.dtype, double: bool, kind: str = "nf4") -> BitsAndBytesConfig:
    """4-bit weights for the language model's layers only: vision, connector and lm_head keep their precision."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=["model.vision_model", "model.connector", "lm_head"],
    )


def load_base(source: str | os.PathLike, dtype, quantization: BitsAndBytesConfig | None = None, **arguments):
    """SmolDriver from a folder or Hub id; if quantised, on this process's device."""
    if quantization is not None:
        arguments["device_map"] = {"": PartialState().device}
    model = SmolDriverForConditionalGeneration.from_pretrained(
        source, dtype=dtype, quantization_config=quantization, **arguments
    )
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs bitsandbytes 0.50 re-orders the weights at the first forward pass in eval mode, for good, and
            # then no gradient passes the layer: a sample table in the middle of a run would end the training.
            module.support_avx512bf16_for_cpu = False
    return model


def load_model(path: str | os.PathLike, dtype: torch.dtype | None = None):
    """A trained SmolDriver and its processor, from a model folder, a Hub id or a folder of adapters.

    Adapters are put on the base they were trained on, quantised as it was then; `dtype` is by default as it was too.
    -> (model in eval mode, processor)

    Raises:
        FileNotFoundError: no such folder, or adapters that do not say what their base is.
        ValueError: weights are missing, or there are some too many or of a wrong shape.
    """
    check_source(str(path))
    adapters = (Path(path) / "adapter_config.json").is_file()
    model = _load_adapters(path, dtype) if adapters else load_base(path, dtype or "auto")
    return model.to(PartialState().device).eval(), SmolDriverProcessor.from_pretrained(path)


def _load_adapters(path: str | os.PathLike, dtype: torch.dtype | None):
    manifest = read_training_manifest(path)
    if manifest is None:
        raise FileNotFoundError(f"{path} holds adapters without {TRAINING_MANIFEST}: which base they fit is unknown")
    quantization = manifest["quantization"] and BitsAndBytesConfig(**manifest["quantization"])
    base = load_base(manifest["base"], dtype or getattr(torch, manifest["dtype"]), quantization)
    peft_config = PeftConfig.from_pretrained(path)
    peft_config.inference_mode = False  # so that what was trained can be told by requires_grad
    model = get_peft_model(base, peft_config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # what was trained in float32 stays so beside a narrower base
            parameter.data = parameter.data.to(dtype or torch.float32)
    weights, expected = load_peft_weights(str(path), device="cpu"), get_peft_model_state_dict(model)
    if weights.keys() != expected.keys():
        missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        raise ValueError(f"the adapters in {path} do not fit their base: missing {missing}, unexpected {unexpected}")
    set_peft_model_state_dict(model, weights)
    return model.get_base_model()
