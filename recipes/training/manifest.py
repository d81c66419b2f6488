"""What a training run or a build leaves beside its weights, so that a later stage knows where a model comes from."""

import json
import os
from pathlib import Path

from data_scripts.schema import read_manifest
from smoldriver_common.whole_files import check_apart, write_json

TRAINING_MANIFEST = "training_manifest.json"
LARGEST_MANIFEST = 50_000_000  # bytes; nuScenes' scenes take 40 kB
TEACHERS = ("teacher", "teacher_model")  # arguments of distill_vision.py and of sft_qlora.py
FIELD_TYPES = {
    **dict.fromkeys(("base", "tower", "machine", "dtype", "scenes"), "text or null"),
    **dict.fromkeys((f"arguments.{name}" for name in TEACHERS), "text or null"),
    **dict.fromkeys(("quantization", "teacher", "merged", "explained_variance"), "an object or null"),
    **dict.fromkeys(("steps", "seconds"), "a number"),
    **dict.fromkeys(("scene_tokens", "unrecorded"), "a list of text"),
    "arguments": "an object",
}
"""Of a manifest's fields, which may also be missing."""


def write_training_manifest(folder: str | os.PathLike, manifest: dict) -> None:
    """Write `<folder>/training_manifest.json`, whole or not at all.

    Args:
        manifest: `base` (folder or Hub id that the run started from), its `dtype` and `quantization` or None, `scenes`
            (data folder), `scene_tokens` (of the training split), `arguments`, `steps`, `seconds`; of a model that was
            built and not trained, no scenes, 0 steps and its `tower`. `machine` is added where it does not say.
    """
    manifest = {"machine": machine(), **manifest}
    write_json(Path(folder) / TRAINING_MANIFEST, manifest, ensure_ascii=False, default=str)


def machine() -> str:
    """What this process and those beside it compute on, for the model card."""
    import torch  # here, since who only reads manifests needs no model library
    from accelerate import PartialState

    if torch.cuda.is_available():
        return f"{PartialState().num_processes} x {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores"


def read_training_manifest(folder: str | os.PathLike) -> dict | None:
    """A folder's manifest as it is in the file; None where there is none.

    Raises:
        ValueError: it is huge, or see [`checked_manifest`].
    """
    path = Path(folder) / TRAINING_MANIFEST
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes: it is not a training manifest")
    return checked_manifest(path, path.read_bytes())


def checked_manifest(path: Path, content: bytes) -> dict:
    """The manifest that a file holds, its fields of the types that their readers rely on.

    Raises:
        ValueError: names the file and the field.
    """
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): copy it again or delete it") from None
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} must hold an object, not {type(manifest).__name__}")
    arguments = manifest.get("arguments", {})
    fields = manifest | {f"arguments.{name}": arguments.get(name) for name in TEACHERS if isinstance(arguments, dict)}
    for name, kind in FIELD_TYPES.items():
        if name in fields and not _is_a(kind, fields[name]):
            raise ValueError(f"{path}: {name} must be {kind}, not {fields[name]!r:.80}")
    return manifest


def _is_a(kind: str, value: object) -> bool:
    if kind == "text or null":
        return isinstance(value, str | None)
    if kind == "an object or null":
        return isinstance(value, dict | None)
    if kind == "an object":
        return isinstance(value, dict)
    if kind == "a number":
        return type(value) in (int, float) and value >= 0
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def scenes_identity(scenes: str | os.PathLike) -> dict:
    """What the rows of a prepared folder depend on."""
    manifest = read_manifest(scenes) or {}
    return {name: manifest.get(name) for name in ("source", "options")}


def check_source(name: str) -> None:
    """Refuse what is neither a folder nor of the form of a Hub id, before anything is looked up on the Hub.

    Raises:
        FileNotFoundError: names the folder.
    """
    folder = Path(name)
    if not folder.is_dir() and (len(folder.parts) != 2 or folder.is_absolute() or folder.parent.is_dir()):
        raise FileNotFoundError(f"there is no model folder {name}")


def check_output(folder: str | os.PathLike, *sources: str) -> None:
    """Refuse to write a model over one that it is made from: its manifest would name itself as what came before.

    Raises:
        ValueError: names the folder.
    """
    for source in sources:
        check_apart(folder, {"the model to start from": source})
