"""Recovery rows: pictures at the states that a planner gets into, labelled by the expert from there (DAgger; Ross,
Gordon, Bagnell 2011). They are planning rows and can be trained on beside prepared ones."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_scripts.schema import (
    MANIFEST,
    MOMENTS,
    PLANNING_ROW,
    open_shard,
    read_manifest,
    scene_table,
    shard_path,
    write_manifest,
)
from data_scripts.world.agents import Agent
from data_scripts.world.cameras import CAMERAS
from data_scripts.world.drive import Label, Observation
from data_scripts.world.nuscenes import ANNOTATION_RANGE, CATEGORIES, timestamp, token

SPLIT = "train"
ROWS_PER_GROUP = 16
FORMAT = 1  # raised when the same drives would give other rows


def recovery_row(now: Observation, policy: str) -> dict:
    """A planning row of this moment. Agents are all those within 50 m, seen or not."""
    scene, expert = now.world.scene, now.expert()
    names = scene.seed, scene.index, policy
    return {
        "scene_token": token("drive", *names),
        "frame_token": token("drive", *names, now.world.sample),
        "scene_description": None,
        **{camera: {"bytes": now.jpegs[camera], "path": f"{camera}.jpg"} for camera in CAMERAS},
        "qa": [],
        "timestamp": timestamp(scene.index, now.world.sample),
        "ego_history": [list(pose or (0.0, 0.0, 0.0)) for pose in now.history],
        "ego_history_mask": [pose is not None for pose in now.history],
        "ego_future": expert.future.tolist(),
        "ego_future_mask": [True] * MOMENTS["ego_future"],
        "speed": now.speed,
        "command": now.command,
        "command_source": "route",
        "scenario": expert.scenario,
        "agents": agents_of(scene.agents, expert),
    }


def agents_of(agents: list[Agent], expert: Label) -> list[dict]:
    near = np.flatnonzero(np.hypot(*expert.agents[0, :, :2].T) < ANNOTATION_RANGE)
    mask = [True] * len(expert.agents)
    return [
        {
            "category": CATEGORIES[agents[n].kind],
            "size": list(agents[n].size),
            "poses": expert.agents[:, n].tolist(),
            "mask": mask,
        }
        for n in near.tolist()
    ]


def begin_rows(folder: Path, source: dict) -> None:
    """Make the folder before anyone drives, or accept one that was begun alike.

    Raises:
        OSError: it cannot be made or written.
        ValueError: it holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begun = read_manifest(folder)
        write_manifest(folder, {**identity_of(source), "complete": False} if begun is None else begun)
    except OSError as error:
        raise OSError(f"--collect {folder} cannot be written: {error}") from error
    if begun is None and any(folder.glob("*/shard-*.parquet")):
        raise ValueError(f"--collect {folder} holds shards of unknown origin (no {MANIFEST}): choose another folder")
    if begun is not None and {name: begun.get(name) for name in identity_of(source)} != identity_of(source):
        raise ValueError(f"--collect {folder} holds rows of other drives: choose another folder or delete it")


def finish_rows(folder: Path, source: dict, scenes: int) -> int:
    """Write the manifest of a folder whose scenes are all there; returns the number of rows."""
    frames = sum(pq.read_metadata(shard_path(folder, SPLIT, index)).num_rows for index in range(scenes))
    counts = {"scenes": scenes, "frames": frames, "questions": 0, "shards": scenes}
    write_manifest(folder, {"complete": True, **identity_of(source), "splits": {SPLIT: counts}, "report": {}})
    return frames


def identity_of(source: dict) -> dict:
    return {"source": source, "options": {"format": FORMAT, "planning": True}}


def write_scene_shard(folder: Path, index: int, rows: list[dict]) -> None:
    """The rows of one scene as a shard of its own, whole or not at all."""
    with open_shard(shard_path(folder, SPLIT, index), PLANNING_ROW) as shard:
        for start in range(0, len(rows), ROWS_PER_GROUP):
            shard.write_table(scene_table(rows[start : start + ROWS_PER_GROUP], PLANNING_ROW))
