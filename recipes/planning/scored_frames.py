"""The frames that plans are made for and scored against, read from prepared rows. Needs no model library."""

import os
from collections import Counter
from dataclasses import dataclass, field

import pyarrow.parquet as pq
from datasets import Dataset

from data_scripts.schema import PLANNING_FEATURES, load_scenes, read_manifest, shard_path
from data_scripts.sources.nuscenes_tables import ROUTE_FILE
from data_scripts.world.traffic import EGO_FRONT, EGO_REAR
from recipes.metrics.planning.planning_frames import Agent, EgoBox, PlanningFrame
from recipes.metrics.planning.protocols import ZOE

COLUMNS = ["scene_token", "frame_token", *PLANNING_FEATURES]
WORLD_EGO = EgoBox(length=EGO_FRONT + EGO_REAR, width=1.9, ahead=(EGO_FRONT - EGO_REAR) / 2)
UNKNOWN_SPEED = "speed unknown (a scene's first moment): left out"
NO_FUTURE = "no moment of the future known: planned, without an error"
PART_OF_FUTURE = "future cut by the scene's end: planned, scored as far as it is known"
NO_COMMAND = "no command known: planned with the command withheld"
SOME_AGENT_MOMENTS = "agents not annotated at some of the six moments: hits at these are not seen"


@dataclass(frozen=True)
class EgoInput:
    """What a planner may know of its ego at one frame.

    Example: `EgoInput("turn left", 4.5, [None, [-4.4, 0.1, 0.0], [-3.9, 0.0, 0.0], [-2.2, 0.0, 0.0]])`

    Fields:
        command: of `COMMANDS`; None where it is unknown.
        speed: m/s.
        history: x, y in metres and yaw in radians, 2.0, 1.5, 1.0 and 0.5 s ago in the ego frame of now; None where
            a moment is unknown.
    """

    command: str | None
    speed: float
    history: list


@dataclass
class ScoredFrames:
    """Frames of one split of which the speed is known; lists of equal length.

    Fields:
        frames: what plans are scored against.
        inputs: what is known of the ego.
        places: of the frames among the rows of their split.
        counted: {what is missing: tokens of the frames}, those that are left out first.
        command_sources: {"route" or "future": frames}.
        ego: the footprint of the car.
    """

    frames: list[PlanningFrame] = field(default_factory=list)
    inputs: list[EgoInput] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    counted: dict[str, list[str]] = field(default_factory=dict)
    command_sources: dict[str, int] = field(default_factory=dict)
    ego: EgoBox = ZOE

    @property
    def scene_tokens(self) -> list[str]:
        return [frame.scene_token for frame in self.frames]


def load_frames(folder: str | os.PathLike, split: str, max_frames: int | None = None) -> ScoredFrames:
    """The frames of one split of a prepared folder, without their pictures.

    Args:
        max_frames: as many, evenly spread; None: all.

    Raises:
        FileNotFoundError, ValueError: see `load_scenes`; rows without ego motion, or no frame whose speed is known.
    """
    check_motion(folder, split)
    found = frames_of(load_scenes(folder, split, columns=COLUMNS), max_frames)
    if not found.frames:
        raise ValueError(f"no frame in split {split!r} of {folder} has a speed: there is nothing to plan")
    found.ego = ego_of(folder)
    return found


def check_motion(folder: str | os.PathLike, split: str) -> None:
    """Refuse rows that were prepared without ego motion; what `load_scenes` refuses is left to it.

    Raises:
        ValueError: names the folder.
    """
    shard = shard_path(folder, split, 0)
    if shard.is_file() and "ego_future" not in pq.read_schema(shard).names:
        raise ValueError(f"{folder} holds rows without ego motion: prepare it with data_scripts/prepare_planning.py")


def ego_of(folder: str | os.PathLike) -> EgoBox:
    """The footprint of the car that recorded the rows: nuScenes' Renault Zoe, or the synthetic world's, which alone
    has a file of routes among its tables."""
    source = (read_manifest(folder) or {}).get("source", {})
    return WORLD_EGO if ROUTE_FILE in source.get("tables sha256", {}) else ZOE


def frames_of(rows: Dataset, max_frames: int | None = None) -> ScoredFrames:
    """As `load_frames`, of rows with `COLUMNS`."""
    rows = list(rows)
    first = {}
    for row in rows:
        first[row["scene_token"]] = min(row["timestamp"], first.get(row["scene_token"], row["timestamp"]))
    known = [place for place, row in enumerate(rows) if row["speed"] is not None]
    if max_frames is not None and max_frames < len(known):
        known = [known[index * len(known) // max_frames] for index in range(max_frames)]
    unknown = [row["frame_token"] for row in rows if row["speed"] is None]
    found = ScoredFrames(counted={UNKNOWN_SPEED: unknown} if unknown else {})
    for place in known:
        row = rows[place]
        found.frames.append(_frame(row, row["timestamp"] == first[row["scene_token"]]))
        found.inputs.append(ego_input(row))
        found.places.append(place)
        for what in _missing(row):
            found.counted.setdefault(what, []).append(row["frame_token"])
    sources = Counter(rows[place]["command_source"] for place in known)
    found.command_sources = {source: count for source, count in sources.items() if source is not None}
    return found


def _frame(row: dict, first_of_scene: bool) -> PlanningFrame:
    return PlanningFrame(
        token=row["frame_token"],
        scene_token=row["scene_token"],
        speed=row["speed"],
        future=row["ego_future"],
        mask=row["ego_future_mask"],
        agents=[Agent(**agent) for agent in row["agents"]],
        first_of_scene=first_of_scene,
    )


def ego_input(row: dict) -> EgoInput:
    """What a row with a known speed says of its ego."""
    known = zip(row["ego_history"], row["ego_history_mask"], strict=True)
    return EgoInput(row["command"], row["speed"], [pose if there else None for pose, there in known])


def _missing(row: dict) -> list[str]:
    missing = []
    if not all(row["ego_future_mask"]):
        missing.append(PART_OF_FUTURE if any(row["ego_future_mask"]) else NO_FUTURE)
    if row["command"] is None:
        missing.append(NO_COMMAND)
    annotated = [any(moment) for moment in zip(*(agent["mask"][1:] for agent in row["agents"]), strict=True)]
    if annotated and not all(
        there or not known for there, known in zip(annotated, row["ego_future_mask"], strict=True)
    ):
        missing.append(SOME_AGENT_MOMENTS)
    return missing
