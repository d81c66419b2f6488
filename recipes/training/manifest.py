"""What a training run or a build leaves beside its weights, so that a later stage knows where a model comes from."""

import json
import os
from dataclasses import asdict, dataclass, field, fields
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


@dataclass
class TrainingManifest:
    """What one stage did: `<folder>/training_manifest.json` beside the weights that it wrote.

    Example, of a QLoRA run; what only other stages have is not in the file:

        {"machine": "1 x Tesla T4", "base": "outputs/smoldriver-2b", "dtype": "float16",
         "quantization": {"load_in_4bit": true, "bnb_4bit_quant_type": "nf4", ...},
         "scenes": "data/drivelm", "scene_tokens": ["0ac05652a4c44374998be876ba5cd6fd", ...],
         "steps": 11000, "seconds": 68200, "arguments": {"learning_rate": 2e-05, ...}}
    """

    base: str | None  # folder or Hub id that the stage started from; None: random weights
    machine: str | None = None  # None: this one
    tower: str | None = None  # of a build: folder or Hub id
    teacher: dict | None = None  # of knowledge transfer: `VisionTeacher.description`
    dtype: str | None = None  # of the base's weights: "float32", ...
    quantization: dict | None = None  # of the base, as transformers writes it
    scenes: str | None = None  # folder of scene rows; None: the model was built, not trained
    scene_tokens: list[str] = field(default_factory=list)  # of the training split
    steps: int = 0
    seconds: int = 0
    explained_variance: dict | None = None  # of knowledge transfer: {tokens per camera: {camera or "all": value}}
    arguments: dict = field(default_factory=dict)  # of the command line, by name
    merged: dict | None = None  # of a merge: dtype, difference of the logits and its tolerance

    @classmethod
    def from_folder(cls, folder: str | os.PathLike) -> "TrainingManifest | None":
        """The manifest of a model folder; None where there is none. Fields that it does not know are left out."""
        kept = read_training_manifest(folder)
        if kept is None:
            return None
        known = {one.name for one in fields(cls)}
        return cls(**{"base": None, **{name: value for name, value in kept.items() if name in known}})

    def write(self, folder: str | os.PathLike) -> None:
        """Write it beside the weights, whole or not at all."""
        optional = ("machine", "tower", "teacher", "dtype", "explained_variance", "merged")
        kept = {name: value for name, value in asdict(self).items() if value is not None or name not in optional}
        write_training_manifest(folder, kept)


def write_training_manifest(folder: str | os.PathLike, manifest: dict) -> None:
    """Write the fields of a [`TrainingManifest`]; `machine` is added where it is missing."""
    manifest = {"machine": machine(), **manifest}
    write_json(Path(folder) / TRAINING_MANIFEST, manifest, ensure_ascii=False, default=str)


def machine() -> str:
    """What this process and those beside it compute on, for the model card."""
    import torch  # here: whoever only reads manifests needs no model library
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
    identity = {name: manifest.get(name) for name in ("source", "options")}
    if "cameras" in manifest:  # an earlier version's rows had nuScenes' six and did not say so
        identity["cameras"] = manifest["cameras"]
    return identity


def check_source(name: str) -> None:
    """Refuse what is neither a folder nor of the form of a Hub id, before anything is looked up on the Hub.

    Raises:
        FileNotFoundError: names the folder.
    """
    folder = Path(name)
    if not folder.is_dir() and (len(folder.parts) != 2 or folder.is_absolute() or folder.parent.is_dir()):
        raise FileNotFoundError(f"there is no model folder {name}")


def check_output(folder: str | os.PathLike, *sources: str) -> None:
    """Refuse to write a model over one of its sources: its manifest would name itself as its own base.

    Raises:
        ValueError: names the folder.
    """
    for source in sources:
        check_apart(folder, {"the model to start from": source})
