"""Where a model comes from: its training stages by their manifests, whether a split leaks from them, its weights."""

import hashlib
import os
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from recipes.checkpoints import TRAINING_MANIFEST, read_training_manifest


def training_stages(model: str | os.PathLike, local_files_only: bool = False) -> list[dict]:
    """Training manifests of a model and of the models it started from, the first stage first; empty where none is.

    A stage's `base` is the folder or the Hub id that it went on from. One that is gone ends the chain.
    `local_files_only`: of a Hub id, take what an evaluation fetched before and ask nobody.
    """
    stages, seen = [], set()
    while model and str(model) not in seen:
        seen.add(str(model))
        manifest = read_training_manifest(_folder(str(model), local_files_only))
        if manifest is None:
            break
        stages.append(manifest)
        model = manifest.get("base")
    return stages[::-1]


def _folder(model: str, local_files_only: bool) -> Path:
    """The folder that would hold the model's manifest: itself, or where the Hub's client keeps its copy."""
    if Path(model).parent.is_dir() or model.count("/") != 1:  # a folder, or one that was there
        return Path(model)
    try:
        return Path(hf_hub_download(model, TRAINING_MANIFEST, local_files_only=local_files_only)).parent
    except (EntryNotFoundError, HfHubHTTPError):
        return Path(model)


def check_leakage(model: str | os.PathLike, scene_tokens: list[str], split: str) -> str:
    """One line on whether the evaluated scenes are training scenes.

    Raises:
        ValueError: they are, though the split asked for is not `train`.
    """
    scenes = set(scene_tokens)
    stages = training_stages(model)
    trained = {token for stage in stages for token in stage.get("scene_tokens", ())}
    leaked = sorted(scenes & trained)
    if leaked and split != "train":
        raise ValueError(
            f"{len(leaked)} of the {len(scenes)} scenes of split {split!r} are training scenes of {model}"
            f" (the first: {leaked[0]}); evaluate on scenes that it was not trained on, or name --split train"
        )
    if not stages:
        return f"unknown: the model has no {TRAINING_MANIFEST} that names its training scenes"
    if leaked:
        return f"TRAINING FRAMES: {len(leaked)} of the {len(scenes)} scenes are training scenes; this measures memory"
    return f"none: the {len(scenes)} scenes are not among the {len(trained)} training scenes ({len(stages)} stages)"


def weights_digest(model: str | os.PathLike) -> str | None:
    """SHA-256 over the folder's weight files, by which a model card knows whose numbers these are."""
    digest = hashlib.sha256()
    files = sorted(Path(model).glob("*.safetensors"))
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if files else None
