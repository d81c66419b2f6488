"""What a training run or a build leaves beside its weights, so that a later stage knows where a model comes from."""

import json
import os
from pathlib import Path

from data_scripts.schema import read_manifest
from smoldriver_common.whole_files import write_json

TRAINING_MANIFEST = "training_manifest.json"


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
    path = Path(folder) / TRAINING_MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


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
    if Path(folder).resolve() in [Path(source).resolve() for source in sources]:
        raise ValueError(f"the output folder {folder} is the model to start from: give another")
