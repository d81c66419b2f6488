"""What a training run leaves beside its weights, and how a trained model is loaded again, adapters included."""

import json
import os
from pathlib import Path

import torch
from peft import PeftModel
from transformers import BitsAndBytesConfig

from modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverProcessor

TRAINING_MANIFEST = "training_manifest.json"


def write_training_manifest(folder: str | os.PathLike, manifest: dict) -> None:
    """Write `<folder>/training_manifest.json`, whole or not at all.

    Args:
        manifest: `base` (folder or Hub id that the run started from), `quantization` (of the base, or None), `scenes`
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


def nf4(compute_dtype: torch.dtype, double: bool, kind: str = "nf4") -> BitsAndBytesConfig:
    """4-bit weights for the language model's layers only: vision, connector and lm_head keep their precision."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=["vision_model", "connector", "lm_head"],
    )


def load_model(path: str | os.PathLike, dtype: torch.dtype | None = None, device: str | None = None):
    """A trained SmolDriver and its processor, from a model folder, a Hub id or a folder of adapters.

    Adapters are put on the base they were trained on, quantised as it was then.
    -> (model in eval mode, processor)
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    manifest = read_training_manifest(path) if os.path.isdir(path) else None
    if not (Path(path) / "adapter_config.json").is_file():
        model = SmolDriverForConditionalGeneration.from_pretrained(path, dtype=dtype or torch.float32).to(device)
    else:
        if manifest is None:
            raise FileNotFoundError(
                f"{path} holds adapters without {TRAINING_MANIFEST}: which base they fit is unknown"
            )
        quantization = manifest["quantization"] and BitsAndBytesConfig(**manifest["quantization"])
        base = SmolDriverForConditionalGeneration.from_pretrained(
            manifest["base"],
            dtype=dtype or getattr(torch, manifest["dtype"] or "float32"),
            quantization_config=quantization,
            device_map=device if quantization else None,
        )
        if not quantization:
            base = base.to(device)
        model = PeftModel.from_pretrained(base, str(path), autocast_adapter_dtype=False).get_base_model()
    return model.eval(), SmolDriverProcessor.from_pretrained(path)
