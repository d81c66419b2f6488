"""Who drives: the expert, three policies that see nothing, and planners."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from data_scripts.world.drive import Observation
from data_scripts.world.vehicle import WAYPOINT_SECONDS, WAYPOINTS

MOMENTS = [WAYPOINT_SECONDS * (k + 1) for k in range(WAYPOINTS)]
EXPERT, CONSTANT_VELOCITY, LANE_FOLLOWER = "expert", "constant velocity", "lane follower"
BLIND_STATUS, PLANNER = "blind ego status", "planner"
UNTRAINED = (EXPERT, CONSTANT_VELOCITY, LANE_FOLLOWER)


class Policy(Protocol):
    """What drives."""

    def plan(self, now: Observation) -> np.ndarray:
        """(6, 2): waypoints at 0.5 .. 3 s in metres in the ego frame of `now`, x forward, y left."""


@dataclass(frozen=True)
class PolicySpec:
    """A policy by name, as it travels between processes.

    Example: PolicySpec("guided", PLANNER, "outputs/guided")

    Fields:
        name: in tables and folders.
        kind: EXPERT, CONSTANT_VELOCITY, LANE_FOLLOWER, BLIND_STATUS or PLANNER.
        source: the planner's folder, or the file of the blind one; "" for the others.
    """

    name: str
    kind: str
    source: str = ""


class Expert:
    """The scene's own driver, from wherever the car is: the ceiling."""

    def plan(self, now: Observation) -> np.ndarray:
        return now.expert().future[:, :2]


class ConstantVelocity:
    """Straight on at the speed of now."""

    def plan(self, now: Observation) -> np.ndarray:
        return np.stack([now.speed * np.array(MOMENTS), np.zeros(WAYPOINTS)], axis=-1)


class LaneFollower:
    """Knows the route, the lanes and the speed limit, and sees nothing."""

    def plan(self, now: Observation) -> np.ndarray:
        return now.world.way_at(MOMENTS, now.world.traffic.limit)[:, :2]


class BlindStatus:
    """A network that knows the command, the speed and the way of the last 2 s, and sees nothing."""

    def __init__(self, file: Path):
        from recipes.planning.blind import BlindPlanner

        self.planner = BlindPlanner.from_file(file)

    def plan(self, now: Observation) -> np.ndarray:
        return self.planner.plan(now.history, now.speed, now.command)


class Planner:
    """A planner's folder: pictures, command and speed; history where it reads that."""

    def __init__(self, folder: Path):
        from modeling_smoldriver import SmolDriverForTrajectoryPrediction

        self.planner = SmolDriverForTrajectoryPrediction.from_pretrained(folder).eval()
        self.reads_history = "history" in self.planner.config.ego_inputs

    def plan(self, now: Observation) -> np.ndarray:
        history = now.history if self.reads_history else None
        return self.planner.plan(now.pictures, now.command, now.speed, history).double().numpy()


@cache
def load_policy(spec: PolicySpec) -> Policy:
    """The policy; a planner and its libraries are loaded once per process."""
    if spec.kind == PLANNER:
        return Planner(Path(spec.source))
    if spec.kind == BLIND_STATUS:
        return BlindStatus(Path(spec.source))
    return {EXPERT: Expert, CONSTANT_VELOCITY: ConstantVelocity, LANE_FOLLOWER: LaneFollower}[spec.kind]()
