"""A teacher's features on disk: recipes/teacher_features.py makes the cache, recipes/distill_vision.py reads it."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from modeling_smoldriver.baseline_smoldriver import tower_image_processor
from modeling_smoldriver.distillation_smoldriver import VisionTeacher
from recipes.training.manifest import check_source, scenes_identity
from smoldriver_common.whole_files import write_json

MANIFEST = "manifest.json"


def load_teacher(base: str) -> VisionTeacher:
    """The frozen vision tower of a SmolVLM folder or Hub id, with its own picture size and normalisation."""
    check_source(base)
    return VisionTeacher.from_pretrained(base, tower_image_processor(base))


def shard_path(folder: Path, split: str, index: int) -> Path:
    return folder / split / f"shard-{index:05d}.safetensors"


def read_keys(path: Path) -> list[str]:
    """Names of a shard's tensors.

    Raises:
        ValueError: it is missing or cut short.
    """
    try:
        with safe_open(path, "pt") as shard:
            return list(shard.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"the shard {path} cannot be read ({error}): run recipes/teacher_features.py again, which replaces it"
        ) from None


@dataclass
class CacheState:
    """How far a cache is."""

    shards: dict[str, int] = field(default_factory=dict)  # of each finished split
    unfinished: list[str] = field(default_factory=list)  # splits that were begun

    @classmethod
    def read(cls, folder: Path, teacher: VisionTeacher, scenes: str | os.PathLike) -> "CacheState | None":
        """The state in the cache's manifest; None where there is no cache.

        Raises:
            ValueError: it is not a cache, or one of another teacher or other scenes.
        """
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            made_by, source, shards = manifest["teacher"], manifest["scenes"], manifest["shards"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} is not the manifest of a cache of features: give another folder") from None
        wanted = teacher.description()
        different = [
            f"{name} {made_by.get(name)} and not {value}"
            for name, value in wanted.items()
            if made_by.get(name) != value
        ]
        if different:
            raise ValueError(
                f"the cache {folder} is of another teacher than {teacher.name}: it has {'; '.join(different)}."
                " Give another folder, or delete this one"
            )
        if source != scenes_identity(scenes):
            raise ValueError(f"the cache {folder} was made from other scenes than {scenes}: give another folder")
        return cls(shards, manifest.get("unfinished", []))

    def write(self, folder: Path, teacher: VisionTeacher, scenes: str | os.PathLike) -> None:
        manifest = {
            "teacher": teacher.description(),
            "base": teacher.name,
            "dtype": str(teacher.tower.dtype).removeprefix("torch."),
            "scenes": scenes_identity(scenes),
            "shards": self.shards,
            "unfinished": self.unfinished,
        }
        write_json(folder / MANIFEST, manifest)


class TeacherCache:
    """A finished cache: `cache(frame_token, cameras)` -> `(views, grid^2, width)` bfloat16.

    Raises:
        FileNotFoundError: there is no cache.
        ValueError: see [`CacheState.read`]; it is unfinished, or a shard is damaged.
    """

    def __init__(self, folder: str | os.PathLike, teacher: VisionTeacher, scenes: str | os.PathLike):
        self.folder = Path(folder)
        state = CacheState.read(self.folder, teacher, scenes)
        if state is None:
            raise FileNotFoundError(
                f"there is no cache of features in {folder}: recipes/teacher_features.py makes one"
            )
        if state.unfinished or not state.shards:  # an earlier version's unfinished cache names no shards
            which = f" (--splits {' '.join(state.unfinished)})" if state.unfinished else ""
            raise ValueError(
                f"the cache {folder} is unfinished: run the same command again, it resumes where it stopped{which}"
            )
        self.shard_of = {
            key: path
            for split, count in state.shards.items()
            for path in (shard_path(self.folder, split, index) for index in range(count))
            for key in read_keys(path)
        }

    def __call__(self, frame_token: str, cameras: list[str]) -> torch.Tensor:
        keys = [f"{frame_token}/{camera}" for camera in cameras]
        missing = [key for key in keys if key not in self.shard_of]
        if missing:
            raise ValueError(
                f"the cache {self.folder} lacks {', '.join(missing)}: make it from these scenes and splits"
            )
        with safe_open(self.shard_of[keys[0]], "pt") as shard:  # a frame's views lie in one shard
            return torch.stack([shard.get_tensor(key) for key in keys])
