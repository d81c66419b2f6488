"""Who drives: the expert, three policies that see nothing, and planners."""

import json
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from data_scripts.world.drive import Observation
from data_scripts.world.vehicle import WAYPOINT_SECONDS, WAYPOINTS
from recipes.planning.ego_rules import BLIND_STATUS
from recipes.planning.guard import RATE, Guard, SmolDriverAnswers, check_rate
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
        guard_rate: times per second that the guard asks.
    """

    name: str
    kind: str
    source: str = ""
    guard: str = ""
    guard_rate: float = RATE


def guarded_policies(
    planners: list[PolicySpec], guard: Path | None, names: list[str] | None, rate: float
) -> list[PolicySpec]:
    """The planners under a guard: policies of their own, with names of their own.

    Args:
        guard: a SmolDriver's folder; None: nobody is guarded.
        names: of the planners that it guards; None: all.
        rate: times per second that it asks.

    Raises:
        ValueError: no SmolDriver's folder, nobody to guard, or a rate that is not above 0.
    """
    if guard is None:
        return []
    check_rate(rate)
    config = guard / "config.json"
    model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if model_type != "smoldriver":
        raise ValueError(f"--guard {guard} is not a SmolDriver's folder")
    unknown = set(names or []) - {spec.name for spec in planners}
    if unknown or not planners:
        who = f"no --planner is named {', '.join(sorted(unknown))}" if unknown else "there is no --planner"
        raise ValueError(f"--guard {guard} guards planners: {who}")
    chosen = [spec for spec in planners if names is None or spec.name in names]
    return [replace(spec, name=f"{spec.name} + guard", guard=str(guard), guard_rate=rate) for spec in chosen]


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


@lru_cache(1)
def load_policy(spec: PolicySpec) -> Policy:
    """The policy without its guard. A process drives one policy after the other, and keeps one at a time in memory."""
    if spec.kind == PLANNER:
        return Planner(Path(spec.source))
    if spec.kind == BLIND_STATUS:
        return BlindStatus(Path(spec.source))
    return {EXPERT: Expert, CONSTANT_VELOCITY: ConstantVelocity, LANE_FOLLOWER: LaneFollower}[spec.kind]()


def new_guard(spec: PolicySpec) -> Guard | None:
    """A guard that has counted nothing yet; None where the policy drives without one."""
    return Guard(load_answers(spec.guard), spec.guard_rate) if spec.guard else None


@cache
def load_answers(folder: str) -> SmolDriverAnswers:
    """Who answers the guard's questions, loaded once per process."""
    from recipes.training.loading import load_model

    return SmolDriverAnswers(*load_model(folder))
