# ruff: noqa: T201 - a script, not a test
"""What the paper's stages start from, with random weights and noise for pictures.

    PYTHONPATH=. python tests/cuda/base.py --size 2.2b --device cuda --output-dir outputs/check-cuda/check-work

Writes `model` (a SmolDriver), `teacher` (a SmolVLM without its language model) and `scenes` (a few rows) there.
"""

import argparse
import io
from pathlib import Path

import torch
from transformers import SmolVLMForConditionalGeneration

from data_scripts.schema import open_shard, scene_table, shard_path, write_manifest
from modeling_smoldriver import CAMERAS
from recipes.benchmarking.models import SIZES, Size, make_processor, make_smoldriver, scene_row

FRAMES = {"train": 8, "eval": 1}
QUESTIONS = 16  # per frame: what one pack of the recipes holds
DESCRIPTION = (  # as long as DriveLM's
    "The ego vehicle drives along a street with parked cars on both sides, waits behind a truck at a red light, turns"
    " left when it is green, passes pedestrians on a crossing and goes on behind a bus."
)


def encoded_row(number: int, split: str) -> dict:
    row = scene_row(QUESTIONS) | {"frame_token": f"{split}{number}", "scene_token": f"{split} scene {number}"}
    for camera in CAMERAS:
        buffer = io.BytesIO()
        row[camera].save(buffer, "JPEG", quality=90)
        row[camera] = {"bytes": buffer.getvalue(), "path": f"{camera}.jpg"}
    return row | {"scene_description": DESCRIPTION}


def write_scenes(folder: Path) -> None:
    counts = {}
    for split, frames in FRAMES.items():
        with open_shard(shard_path(folder, split, 0)) as writer:
            writer.write_table(scene_table([encoded_row(number, split) for number in range(frames)]))
        counts[split] = {"scenes": frames, "frames": frames, "shards": 1, "questions": frames * QUESTIONS}
    write_manifest(folder, {"complete": True, "source": {}, "options": {}, "splits": counts, "report": {}})


def write_models(size: Size, device: str, folder: Path) -> None:
    """In bfloat16, half the size of float32; the stages load them in the dtype that they ask for."""
    processor, config, _ = make_processor(size)
    make_smoldriver(config, device, torch.bfloat16).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    _, _, teacher = make_processor(size.without_language_model())
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration._from_config(teacher, dtype=torch.bfloat16).save_pretrained(folder / "teacher")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(SIZES), required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    write_models(SIZES[options.size], options.device, options.output_dir)
    write_scenes(options.output_dir / "scenes")
    print(f"{options.size} with random weights in {options.output_dir}")


if __name__ == "__main__":
    main()
