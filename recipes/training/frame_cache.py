"""Tensors of every frame, computed once by a model that does not train and kept on disk in shards."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from smoldriver_common.whole_files import sole_writer, write_json, written_whole

MADE_FROM = "made_from.json"
SHARD_FRAMES = 256


def cached_tensors(
    folder: Path, made_from: dict, rows: Dataset, encode: Callable[[list[dict]], dict[str, torch.Tensor]], what: str
) -> list[dict[str, torch.Tensor]]:
    """Tensors of all rows, memory-mapped; those that are missing are made, so that a stopped run resumes.

    Several runs may share `folder`: each `made_from` has a folder of its own in it.

    Args:
        made_from: what the tensors depend on, as JSON keeps it: weights, rows, options.
        encode: rows -> tensors by name, each `(rows, ...)`.
        what: for the progress line.

    Returns:
        One dict for each SHARD_FRAMES rows, the last perhaps shorter.

    Raises:
        BlockingIOError: another process is making them.
    """
    text = json.dumps(made_from, sort_keys=True)
    folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
    starts = range(0, len(rows), SHARD_FRAMES)
    paths = [folder / f"shard-{number:05d}.safetensors" for number in range(len(starts))]
    missing = [number for number, path in enumerate(paths) if not _holds(path, _count(rows, starts[number]))]
    if missing:
        print(f"{what} of {len(rows)} frames are computed once and kept in {folder}")
        with sole_writer(folder):
            write_json(folder / MADE_FROM, made_from)
            for number in tqdm(missing, desc=what, unit="shard", disable=None):
                frames = range(starts[number], starts[number] + _count(rows, starts[number]))
                tensors = encode(list(rows.select(frames)))
                with written_whole(paths[number]) as aside:
                    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside)
    else:
        print(f"{what} of {len(rows)} frames are read from {folder}")
    return [load_file(path) for path in paths]


def _count(rows: Dataset, start: int) -> int:
    return min(SHARD_FRAMES, len(rows) - start)


def _holds(path: Path, frames: int) -> bool:
    """Whether a shard is whole and has that many frames."""
    try:
        with safe_open(path, "pt") as shard:
            return all(shard.get_slice(name).get_shape()[0] == frames for name in shard.keys())
    except (OSError, SafetensorError):
        return False


def in_batches(
    encode: Callable[[list[dict]], dict[str, torch.Tensor]], size: int
) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """`encode`, called with at most `size` rows at a time."""

    def encode_all(rows: list[dict]) -> dict[str, torch.Tensor]:
        parts = [encode(rows[start : start + size]) for start in range(0, len(rows), size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return encode_all
