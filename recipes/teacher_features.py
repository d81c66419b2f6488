"""Cache the features of a base VLM's vision tower, for recipes/distill_vision.py to read instead of running the tower.

python recipes/teacher_features.py --teacher HuggingFaceTB/SmolVLM2-2.2B-Instruct --scenes data/drivelm \
    --output-dir data/drivelm_teacher --dtype bfloat16 --device cuda

A view takes 2 * grid^2 * width bytes in bfloat16: 1.68 MB for SmolVLM2-2.2B (27 x 27 x 1152), 1.57 MB for 256M and
500M (32 x 32 x 768), 9 kB for the demo's (6 x 6 x 128); so 37 GB for the 22 thousand views of DriveLM's training and
eval splits at 2.2B. The folder holds `manifest.json` and `<split>/shard-00000.safetensors`, ...: a view is a tensor
`<frame_token>/<camera>` of shape (grid^2, width). Shards appear whole; given again, the command makes only those that
are not there.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import logging

from data_scripts.schema import CAMERAS, load_scenes
from modeling_smoldriver.baseline_smoldriver import tower_image_processor
from modeling_smoldriver.distillation_smoldriver import VisionTeacher
from recipes.training.manifest import check_source, scenes_identity
from smoldriver_common.command_line import errors_in_one_line
from smoldriver_common.whole_files import write_json, written_whole

SHARD_FRAMES = 64  # up to 384 views
MANIFEST = "manifest.json"


def load_teacher(base: str) -> VisionTeacher:
    """The frozen vision tower of a SmolVLM folder or Hub id, with its own picture size and normalisation."""
    check_source(base)
    return VisionTeacher.from_pretrained(base, tower_image_processor(base))


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
            f"the shard {path} cannot be read ({error}): run recipes/teacher_features.py again, which makes it anew"
        ) from None


class TeacherFeatures:
    """A finished cache: `features(frame_token, cameras)` -> `(views, grid^2, width)` bfloat16.

    Raises:
        FileNotFoundError: there is no cache.
        ValueError: it is unfinished, of another teacher, made from other scenes, or a shard is damaged.
    """

    def __init__(self, folder: str | os.PathLike, teacher: VisionTeacher, scenes: str | os.PathLike):
        self.folder = Path(folder)
        manifest = check_manifest(self.folder, teacher, scenes)
        if manifest is None:
            raise FileNotFoundError(
                f"there is no cache of features in {folder}: recipes/teacher_features.py makes one"
            )
        unfinished = manifest.get("unfinished", [])
        if unfinished or not manifest["shards"]:  # an earlier version's unfinished cache names no shards
            which = f" (--splits {' '.join(unfinished)})" if unfinished else ""
            raise ValueError(
                f"the cache {folder} is unfinished: run the same command again, it goes on where it stopped{which}"
            )
        self.shard_of = {
            key: path
            for split, count in manifest["shards"].items()
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


def shard_path(folder: Path, split: str, index: int) -> Path:
    return folder / split / f"shard-{index:05d}.safetensors"


def check_manifest(folder: Path, teacher: VisionTeacher, scenes: str | os.PathLike) -> dict | None:
    """The cache's manifest, None where there is none; refused if it is not of this teacher and these scenes."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        made_by, made_from = manifest["teacher"], manifest["scenes"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not the manifest of a cache of features: give another folder") from None
    wanted = teacher.description()
    different = [
        f"{name} {made_by.get(name)} and not {value}" for name, value in wanted.items() if made_by.get(name) != value
    ]
    if different:
        raise ValueError(
            f"the cache {folder} is of another teacher than {teacher.name}: it has {'; '.join(different)}."
            " Give another folder, or delete this one"
        )
    if made_from != scenes_identity(scenes):
        raise ValueError(f"the cache {folder} was made from other scenes than {scenes}: give another folder")
    return manifest


def write_manifest(
    folder: Path,
    teacher: VisionTeacher,
    scenes: str | os.PathLike,
    shards: dict[str, int],
    unfinished: list[str],
) -> None:
    """`shards`: how many each finished split has; `unfinished`: the splits that were begun."""
    manifest = {
        "teacher": teacher.description(),
        "base": teacher.name,
        "dtype": str(teacher.tower.dtype).removeprefix("torch."),
        "scenes": scenes_identity(scenes),
        "shards": shards,
        "unfinished": unfinished,
    }
    write_json(folder / MANIFEST, manifest)


def make_shard(path: Path, rows, teacher: VisionTeacher, device: torch.device) -> bool:
    """One shard, unless a whole one is there; returns whether it was made."""
    tokens = set(rows["frame_token"])
    if path.is_file():
        try:
            if {key.split("/")[0] for key in read_keys(path)} == tokens:
                return False
        except ValueError:
            pass  # cut short: made anew
    features = {}
    for row in rows:
        cameras = [camera for camera in CAMERAS if row[camera] is not None]
        given = teacher(teacher.pixels([row[camera] for camera in cameras]).to(device)).flatten(1, 2).cpu()
        features |= {
            f"{row['frame_token']}/{camera}": view.clone() for camera, view in zip(cameras, given, strict=True)
        }
    with written_whole(path) as aside:
        save_file(features, aside)
    return True


def make_cache(folder: Path, teacher: VisionTeacher, scenes: str, splits: list[str], device: torch.device) -> int:
    """Complete a cache; returns how many shards had to be made."""
    data = {split: load_scenes(scenes, split) for split in splits}
    manifest = check_manifest(folder, teacher, scenes) or {"shards": {}}
    # other splits stay what they are, finished or not
    finished = {split: count for split, count in manifest["shards"].items() if split not in data}
    unfinished = [split for split in manifest.get("unfinished", []) if split not in data] + list(data)
    write_manifest(folder, teacher, scenes, finished, unfinished)
    made = 0
    for split, rows in data.items():
        count = -(-len(rows) // SHARD_FRAMES)
        for index in tqdm(range(count), desc=f"features of {split}", unit="shard"):
            frames = range(index * SHARD_FRAMES, min(len(rows), (index + 1) * SHARD_FRAMES))
            made += make_shard(shard_path(folder, split, index), rows.select(frames), teacher, device)
        finished[split] = count
        unfinished.remove(split)
        write_manifest(folder, teacher, scenes, finished, unfinished)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="SmolVLM: Hub id or folder")
    parser.add_argument("--scenes", required=True, help="folder of prepared scene rows")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--splits", nargs="+", default=["train", "eval"])
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu", type=torch.device)
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # what the VLM has beyond its tower is no news
    with errors_in_one_line("teacher_features"):
        teacher = load_teacher(arguments.teacher).to(arguments.device, getattr(torch, arguments.dtype))
        made = make_cache(arguments.output_dir, teacher, arguments.scenes, arguments.splits, arguments.device)
    size = sum(path.stat().st_size for path in arguments.output_dir.rglob("*.safetensors"))
    print(f"features in {arguments.output_dir}: {made} shards made, {size / 1e9:.2f} GB in all")


if __name__ == "__main__":
    main()
