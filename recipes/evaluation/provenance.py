"""Where a model comes from: its training stages by their manifests, whether a split leaks from them, its weights.

A published manifest (recipes/push_to_hub.py) stands for all stages: its `unrecorded` names those without a record.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from recipes.evaluation.predictions import Leakage
from recipes.training.manifest import TRAINING_MANIFEST, read_training_manifest

SOURCES = ("base", "tower")  # what a stage started from, or a model was built from
TEACHERS = ("teacher", "teacher_model")  # arguments of distill_vision.py and of sft_qlora.py


@dataclass
class TrainingRecord:
    """All that a model learned from: itself, its base, tower and teachers, and what each of those learned from."""

    manifests: dict[str, dict] = field(default_factory=dict)  # {folder or Hub id: training manifest}
    unrecorded: list[str] = field(default_factory=list)  # Hub ids without a manifest
    gone: list[str] = field(default_factory=list)  # folders that are gone or have no manifest
    unread: list[str] = field(default_factory=list)  # Hub ids that could not be read

    @property
    def scene_tokens(self) -> set[str]:
        return {token for manifest in self.manifests.values() for token in manifest.get("scene_tokens", ())}

    @property
    def gone_names(self) -> list[str]:
        """Without their paths, for what is published."""
        return [Path(folder).name for folder in self.gone]


def training_stages(model: str | os.PathLike, local_files_only: bool = False) -> list[dict]:
    """Training manifests of a model and of the models it started from, the first stage first; empty without any.

    A stage's `base` is the folder or the Hub id that it started from. The chain ends at a base that is gone.
    `local_files_only`: of a Hub id, read what an evaluation fetched before and contact nobody.

    Raises:
        ConnectionError: a Hub id could not be read.
    """
    stages, seen = [], set()
    while model and str(model) not in seen:
        seen.add(str(model))
        manifest = _read_manifest(str(model), local_files_only)
        if manifest is None:
            break
        stages.append(manifest)
        model = manifest.get("base")
    return stages[::-1]


def training_record(model: str | os.PathLike, local_files_only: bool = False) -> TrainingRecord:
    """`local_files_only`: see [`training_stages`]."""
    record, without, to_read = TrainingRecord(), [], [str(model)]
    while to_read:
        name = to_read.pop(0)
        if name in record.manifests or name in without or name in record.unread:
            continue
        try:
            manifest = _read_manifest(name, local_files_only)
        except ConnectionError:
            record.unread.append(name)
            continue
        if manifest is None:
            without.append(name)
            continue
        record.manifests[name] = manifest
        without += [other for other in manifest.get("unrecorded", ()) if other not in without]
        arguments = manifest.get("arguments", {})
        sources = [manifest.get(key) for key in SOURCES] + [arguments.get(key) for key in TEACHERS]
        to_read += [source for source in sources if source]
    for name in without:
        (record.unrecorded if is_hub_id(name) else record.gone).append(name)
    return record


def is_hub_id(name: str) -> bool:
    """Whether it has the form of a Hub id and is not a folder, present or gone."""
    return name.count("/") == 1 and not Path(name).is_absolute() and not Path(name).parent.is_dir()


def _read_manifest(model: str, local_files_only: bool) -> dict | None:
    """The manifest of a folder or of a Hub id's repository; None where it has none.

    Raises:
        ConnectionError: the repository could not be read: no network, a busy Hub, or it is hidden or gone.
    """
    if not is_hub_id(model):
        return read_training_manifest(model)
    try:
        path = hf_hub_download(model, TRAINING_MANIFEST, local_files_only=local_files_only)
    except Exception as error:  # also of the client's HTTP library, which differs between its versions
        # LocalEntryNotFoundError means that the file is not in the cache, not that the repository lacks it.
        answered = isinstance(error, LocalEntryNotFoundError) == local_files_only
        if isinstance(error, EntryNotFoundError) and answered:
            return None
        raise ConnectionError(f"could not read {TRAINING_MANIFEST} of {model}: {error}") from error
    return read_training_manifest(Path(path).parent)


def check_leakage(model: str | os.PathLike, scene_tokens: list[str], split: str) -> Leakage:
    """Whether the evaluated scenes are training scenes of the model, or of what it learned from.

    Raises:
        ValueError: they are, though the split is not `train`.
    """
    scenes, record = set(scene_tokens), training_record(model)
    leaked = sorted(scenes & record.scene_tokens)
    if leaked and split != "train":
        raise ValueError(
            f"{len(leaked)} of the {len(scenes)} scenes of split {split!r} are training scenes of {model}"
            f" or of what it learned from (the first: {leaked[0]}); evaluate on other scenes, or name --split train"
        )
    return Leakage(
        evaluated=len(scenes),
        shared=len(leaked),
        trained=len(record.scene_tokens),
        stages=len(record.manifests),
        unrecorded=record.unrecorded,
        gone=record.gone_names,
        unread=record.unread,
    )


def weights_digest(model: str | os.PathLike) -> str | None:
    """SHA-256 over the folder's weight files, by which a model card knows whose numbers these are."""
    digest = hashlib.sha256()
    files = sorted(Path(model).glob("*.safetensors"))
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if files else None
