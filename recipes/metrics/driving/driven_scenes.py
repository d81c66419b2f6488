"""What is scored: one scene as it was driven, checked once. numpy alone."""

import math
from dataclasses import dataclass, field

import numpy as np

HITS = ("pedestrian", "vehicle", "thing")
EVENTS = (*HITS, "red light", "left the route")
ENDS = ("time", "hit", "left the route")


@dataclass(frozen=True)
class DrivenEvent:
    """Something that happened.

    Example: DrivenEvent("vehicle", at_fault=True, time=7.35, x=612.4, y=1033.0, where="stands in the lane")

    Fields:
        kind: of EVENTS.
        at_fault: whether it counts against the driver; always so for a red light and the route.
        time: seconds since the scene began.
        x, y: where the ego was, in metres on the map.
        where: a few words for the table of failures.
    """

    kind: str
    at_fault: bool
    time: float
    x: float
    y: float
    where: str = ""


@dataclass(frozen=True)
class DrivenScene:
    """One scene as a policy drove it.

    Example: DrivenScene("synthetic-0007-00003", metres=80.1, expert_metres=84.0, driven_metres=82.5,
                         outside_metres=0.0, events=[], ended="time", motion_seconds=0.05, motion=[[...], ...],
                         traffic_speeds=[6.1, None, ...], plans=[{"nc": 1.0, ...}, ...])

    Fields:
        scene_token: the scene's name.
        metres, expert_metres: progress along the route, of the policy and of the expert in the same time.
        driven_metres: length of the way driven.
        outside_metres: how much of it was outside the route's lane.
        events: list of `DrivenEvent`, in order.
        ended: what ended the scene, of ENDS.
        motion_seconds: between two moments of `motion`.
        motion: (T, 4): x, y (m), yaw (radians), speed (m/s).
        traffic_speeds: mean speed in m/s of the vehicles that drive near the ego, None where there are none; equally
            many moments apart, from the first to the last.
        plans: for each replayed plan the sub-scores of `PlanScores`, as a dict.
    """

    scene_token: str
    metres: float
    expert_metres: float
    driven_metres: float
    outside_metres: float
    events: list
    ended: str
    motion_seconds: float
    motion: list
    traffic_speeds: list
    plans: list = field(default_factory=list)

    @classmethod
    def from_dict(cls, values):
        """The scene of `dataclasses.asdict(scene)`, as JSON and `evaluate` store it."""
        return cls(**{**values, "events": [DrivenEvent(**event) for event in values["events"]]})


def check_scenes(scenes):
    """Raises ValueError, naming the scene and the bad value."""
    if not scenes:
        raise ValueError("no scenes: there is nothing to score")
    seen = set()
    for scene in scenes:
        name = f"scene {scene.scene_token}"
        if scene.scene_token in seen:
            raise ValueError(f"{name} is duplicated: score each scene once")
        seen.add(scene.scene_token)
        for field_name in ("metres", "expert_metres", "driven_metres", "outside_metres"):
            if not math.isfinite(getattr(scene, field_name)):
                raise ValueError(
                    f"{name}: {field_name} {getattr(scene, field_name)} must be a finite number of metres"
                )
        if not 0 <= scene.outside_metres <= scene.driven_metres + 1e-6:
            raise ValueError(
                f"{name}: {scene.outside_metres} m of {scene.driven_metres} m driven are outside the lane"
            )
        if scene.ended not in ENDS:
            raise ValueError(f"{name}: it ended by {scene.ended!r}, not by one of {', '.join(ENDS)}")
        for event in scene.events:
            if event.kind not in EVENTS or not math.isfinite(event.time):
                raise ValueError(f"{name}: {event} is not one of {', '.join(EVENTS)} at a finite time")
        motion = np.asarray(scene.motion, dtype=float)
        if motion.ndim != 2 or motion.shape[1] != 4 or not np.isfinite(motion).all():
            raise ValueError(f"{name}: motion of shape {motion.shape} must be finite x, y, yaw and speed per moment")
