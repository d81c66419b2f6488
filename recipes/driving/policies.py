"""Who drives: the expert, three policies that see nothing, and planners."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

from data_scripts.world.drive import Observation
from data_scripts.world.vehicle import WAYPOINT_SECONDS, WAYPOINTS
from recipes.planning.ego_rules import BLIND_STATUS
from recipes.planning.guard import Guard, SmolDriverAnswers
from recipes.planning.scored_frames import EgoInput

MOMENTS = [WAYPOINT_SECONDS * (k + 1) for k in range(WAYPOINTS)]
EXPERT, CONSTANT_VELOCITY, LANE_FOLLOWER = "expert", "constant velocity", "lane follower"
PLANNER = "planner"
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
        guard: folder of the SmolDriver whose answers guard it; "": nobody does.
    """

    name: str
    kind: str
    source: str = ""
    guard: str = ""

    def guarded(self, guard: Path) -> "PolicySpec":
        """The same policy under a guard: a policy of its own, with a name of its own."""
        return replace(self, name=f"{self.name} + guard", guard=str(guard))


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
        from recipes.planning.blind_planner import StatusPlanner

        self.planner = StatusPlanner(file)

    def plan(self, now: Observation) -> np.ndarray:
        return self.planner.plan(EgoInput(now.command, now.speed, now.history))


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
    """The policy without its guard; a planner and its libraries are loaded once per process."""
    if spec.kind == PLANNER:
        return Planner(Path(spec.source))
    if spec.kind == BLIND_STATUS:
        return BlindStatus(Path(spec.source))
    return {EXPERT: Expert, CONSTANT_VELOCITY: ConstantVelocity, LANE_FOLLOWER: LaneFollower}[spec.kind]()


def new_guard(spec: PolicySpec) -> Guard | None:
    """A guard that has counted nothing yet; None where the policy drives without one."""
    return Guard(load_answers(spec.guard)) if spec.guard else None


@cache
def load_answers(folder: str) -> SmolDriverAnswers:
    """Who answers the guard's questions, loaded once per process."""
    from recipes.training.loading import load_model

    return SmolDriverAnswers(*load_model(folder))
