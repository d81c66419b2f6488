"""Cache the features of a base VLM's vision tower, for recipes/distill_vision.py to read instead of running the tower.

python recipes/teacher_features.py --teacher HuggingFaceTB/SmolVLM2-2.2B-Instruct --scenes data/drivelm \
    --output-dir data/drivelm_teacher --dtype bfloat16 --device cuda

A view takes 2 * grid^2 * width bytes in bfloat16: 1.68 MB for SmolVLM2-2.2B (27 x 27 x 1152), 1.57 MB for 256M and
500M (32 x 32 x 768), 9 kB for the demo's (6 x 6 x 128); so 37 GB for the 22 thousand views of DriveLM's training and
eval splits at 2.2B. The folder holds `manifest.json` and `<split>/shard-00000.safetensors`, ...: a view is a tensor
`<frame_token>/<camera>` of shape (grid^2, width). Shards appear whole; given again, the command makes only the missing
ones.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import logging

from data_scripts.schema import cameras_of, load_scenes
from modeling_smoldriver.distillation_smoldriver import VisionTeacher
from recipes.training.teacher_cache import CacheState, load_teacher, read_keys, shard_path
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import check_apart, written_whole

SHARD_FRAMES = 64  # up to 384 views


def make_shard(path: Path, rows, teacher: VisionTeacher, device: torch.device) -> bool:
    """Make one shard unless a whole one exists; returns whether it was made."""
    tokens = set(rows["frame_token"])
    if path.is_file():
        try:
            if {key.split("/")[0] for key in read_keys(path)} == tokens:
                return False
        except ValueError:
            pass  # cut short: made again
    features = {}
    for row in rows:
        cameras = [camera for camera in cameras_of(rows.features) if row[camera] is not None]
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
    before = CacheState.read(folder, teacher, scenes) or CacheState()
    state = CacheState(  # other splits stay what they are, finished or not
        {split: count for split, count in before.shards.items() if split not in data},
        [split for split in before.unfinished if split not in data] + list(data),
    )
    state.write(folder, teacher, scenes)
    made = 0
    for split, rows in data.items():
        count = -(-len(rows) // SHARD_FRAMES)
        for index in tqdm(range(count), desc=f"features of {split}", unit="shard"):
            frames = range(index * SHARD_FRAMES, min(len(rows), (index + 1) * SHARD_FRAMES))
            made += make_shard(shard_path(folder, split, index), rows.select(frames), teacher, device)
        state.shards[split] = count
        state.unfinished.remove(split)
        state.write(folder, teacher, scenes)
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
    logging.set_verbosity_error()  # that the VLM has more than its tower is no news
    with errors_in_one_line("teacher_features"):
        check_apart(arguments.output_dir, {"the teacher": arguments.teacher, "the folder of scenes": arguments.scenes})
        teacher = load_teacher(arguments.teacher).to(arguments.device, getattr(torch, arguments.dtype))
        made = make_cache(arguments.output_dir, teacher, arguments.scenes, arguments.splits, arguments.device)
    size = sum(path.stat().st_size for path in arguments.output_dir.rglob("*.safetensors"))
    print(f"features in {arguments.output_dir}: {made} shards made, {size / 1e9:.2f} GB in all")


if __name__ == "__main__":
    with stopped_in_one_line("teacher_features"):
        main()
