"""Where a model comes from: its training stages by their manifests, whether a split leaks from them, its weights.

A published manifest (recipes/push_to_hub.py) stands for all stages: its `unrecorded` names those that left none.
"""

import hashlib
import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from recipes.training.manifest import TRAINING_MANIFEST, read_training_manifest

SOURCES = ("base", "tower")  # what a stage started from, or a model was built from
TEACHERS = ("teacher", "teacher_model")  # arguments of distill_vision.py and of sft_qlora.py


def training_stages(model: str | os.PathLike, local_files_only: bool = False) -> list[dict]:
    """Training manifests of a model and of the models it started from, the first stage first; empty where none is.

    A stage's `base` is the folder or the Hub id that it went on from. One that is gone ends the chain.
    `local_files_only`: of a Hub id, take what an evaluation fetched before and ask nobody.

    Raises:
        ConnectionError: a Hub id that could not be looked at.
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


def training_record(
    model: str | os.PathLike, local_files_only: bool = False
) -> tuple[dict[str, dict], list[str], list[str], list[str]]:
    """All that a model learned from: itself, its base, its tower, its teachers, and what each of those learned from.

    -> ({folder or Hub id: training manifest}, Hub ids without a manifest, folders that are gone or have none, Hub ids
        that could not be looked at)
    `local_files_only`: see [`training_stages`].
    """
    manifests, without, unread, left = {}, [], [], [str(model)]
    while left:
        name = left.pop(0)
        if name in manifests or name in without or name in unread:
            continue
        try:
            manifest = _read_manifest(name, local_files_only)
        except ConnectionError:
            unread.append(name)
            continue
        if manifest is None:
            without.append(name)
            continue
        manifests[name] = manifest
        without += [other for other in manifest.get("unrecorded", ()) if other not in without]
        arguments = manifest.get("arguments", {})
        sources = [manifest.get(key) for key in SOURCES] + [arguments.get(key) for key in TEACHERS]
        left += [source for source in sources if source]
    hub_ids = [name for name in without if is_hub_id(name)]
    return manifests, hub_ids, [name for name in without if name not in hub_ids], unread


def is_hub_id(name: str) -> bool:
    """Whether it is of the form of a Hub id and names no folder, nor one that was there."""
    return name.count("/") == 1 and not Path(name).is_absolute() and not Path(name).parent.is_dir()


def _read_manifest(model: str, local_files_only: bool) -> dict | None:
    """The manifest of a folder or of a Hub id's repository; None where it has none.

    Raises:
        ConnectionError: the repository could not be looked at: no network, a busy Hub, or it is hidden or gone.
    """
    if not is_hub_id(model):
        return read_training_manifest(model)
    try:
        path = hf_hub_download(model, TRAINING_MANIFEST, local_files_only=local_files_only)
    except Exception as error:  # of the client's HTTP library too, which differs between its versions
        # an EntryNotFoundError of the local kind says that nothing was fetched, not that nothing is there
        answered = isinstance(error, LocalEntryNotFoundError) == local_files_only
        if isinstance(error, EntryNotFoundError) and answered:
            return None
        raise ConnectionError(f"could not read {TRAINING_MANIFEST} of {model}: {error}") from error
    return read_training_manifest(Path(path).parent)


def check_leakage(model: str | os.PathLike, scene_tokens: list[str], split: str) -> str:
    """One line on whether the evaluated scenes are training scenes of the model, or of what it learned from.

    It begins with "none", "TRAINING FRAMES" or, where a folder's training is not recorded or a repository on the Hub
    could not be looked at, "unknown". What came from the Hub without a manifest is named and does not make it unknown.

    Raises:
        ValueError: they are, though the split asked for is not `train`.
    """
    scenes = set(scene_tokens)
    manifests, hub_ids, folders, unread = training_record(model)
    trained = {token for manifest in manifests.values() for token in manifest.get("scene_tokens", ())}
    leaked = sorted(scenes & trained)
    if leaked and split != "train":
        raise ValueError(
            f"{len(leaked)} of the {len(scenes)} scenes of split {split!r} are training scenes of {model}"
            f" or of what it learned from (the first: {leaked[0]}); evaluate on other scenes, or name --split train"
        )
    could_not = f"could not read {TRAINING_MANIFEST} of {', '.join(unread)}"
    if not manifests:
        if unread:
            return f"unknown: {could_not}"
        return f"unknown: the model has no {TRAINING_MANIFEST} that names its training scenes"
    if leaked:
        return f"TRAINING FRAMES: {len(leaked)} of the {len(scenes)} scenes are training scenes; this measures memory"
    found = f"the {len(scenes)} scenes are not among the {len(trained)} training scenes ({len(manifests)} stages)"
    if hub_ids:
        found += f"; not recorded: {', '.join(hub_ids)}"
    gaps = [could_not] if unread else []
    if folders:  # named without their paths, since the line is published
        names = ", ".join(Path(folder).name for folder in folders)
        gaps.append(f"it learned from {names}, gone or without {TRAINING_MANIFEST}")
    return f"unknown: {'; '.join(gaps)}; of the recorded, {found}" if gaps else f"none: {found}"


def weights_digest(model: str | os.PathLike) -> str | None:
    """SHA-256 over the folder's weight files, by which a model card knows whose numbers these are."""
    digest = hashlib.sha256()
    files = sorted(Path(model).glob("*.safetensors"))
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if files else None
