"""What a plan is scored against: one frame with its expert, its agents and its speed, checked once.

Frame of every coordinate: the ego frame at the frame's own moment. x points forward, y left, the origin lies on the
ground below the middle of the rear axle. Metres and radians; yaw is counter-clockwise from x. One step is 0.5 s.
"""

import math
from dataclasses import dataclass

import numpy as np

WAYPOINTS = 6
SECONDS_PER_STEP = 0.5


@dataclass(frozen=True)
class EgoBox:
    """The ego's footprint.

    Example: the default, nuScenes' Renault Zoe, which reaches from 0.56 m behind its rear axle to 3.53 m ahead of it:
        EgoBox(length=4.084, width=1.85, ahead=1.485793)

    Fields:
        length, width: metres.
        ahead: metres from the rear axle to the middle of the box. The default is the 0.985793 m to the LiDAR and the
            0.5 m from there to the middle that the public protocols use.
    """

    length: float = 4.084
    width: float = 1.85
    ahead: float = 1.485793

    def __post_init__(self):
        if not all(math.isfinite(value) for value in (self.length, self.width, self.ahead)):
            raise ValueError(f"{self}: every value must be a finite number of metres")
        if self.length <= 0 or self.width <= 0:
            raise ValueError(f"{self}: length and width must be above 0 m")


@dataclass(frozen=True)
class Agent:
    """An annotated box and where it goes.

    Example: a car 12 m ahead that stands still and is annotated for 1 s:
        Agent("vehicle.car", (1.9, 4.6, 1.7), [[12.0, 0.0, 0.0]] * 7, [True] * 3 + [False] * 4)

    Fields:
        category: nuScenes' name, such as "human.pedestrian.adult".
        size: width, length, height in metres (nuScenes' order).
        poses: (7, 3): x, y and yaw of the box's middle at 0, 0.5, ..., 3 s; ignored where `mask` is False.
        mask: (7,) bool: True where the agent is annotated.
    """

    category: str
    size: tuple
    poses: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class PlanningFrame:
    """A frame that a plan is scored against.

    Example: the expert drives on at 5 m/s, the scene ends after 1 s:
        future = [[2.5, 0.0], [5.0, 0.0]] + [[0.0, 0.0]] * 4
        PlanningFrame("a3f1", "scene-0103", 5.0, future, mask=[True] * 2 + [False] * 4, agents=[])

    Fields:
        token: the frame's name, in every error message.
        scene_token: its scene's name; intervals are over scenes.
        speed: m/s; None where it is unknown. The frame is then in no subset that asks for it.
        future: (6, 2) or (6, 3): where the expert was after 0.5, ..., 3 s. Plans have no yaw, so the expert's third
            column is ignored and both get their heading from their waypoints.
        mask: (6,) bool: True where `future` is ground truth; False beyond the scene's end.
        agents: list of `Agent`.
        first_of_scene: True for the first frame of a scene, which `paradrive` leaves out.
    """

    token: str
    scene_token: str
    speed: float | None
    future: np.ndarray
    mask: np.ndarray
    agents: list
    first_of_scene: bool = False

    @classmethod
    def from_dict(cls, values):
        """The frame of `dataclasses.asdict(frame)`, as `evaluate` stores it."""
        return cls(**{**values, "agents": [Agent(**agent) for agent in values["agents"]]})


def checked_plans(plans, frames):
    """-> plans as (frames, 6, 2) float64. Raises ValueError, naming the frame and the bad value."""
    if len(plans) != len(frames):
        raise ValueError(f"{len(plans)} plans for {len(frames)} frames: one plan per frame is needed")
    if not len(frames):
        raise ValueError("no plans: there is nothing to score")
    seen = set()
    for frame, plan in zip(frames, plans, strict=True):
        if frame.token in seen:
            raise ValueError(f"frame {frame.token} is duplicated: score each frame once")
        seen.add(frame.token)
        plan = np.asarray(plan, dtype=np.float64)
        if plan.shape != (WAYPOINTS, 2):
            raise ValueError(f"frame {frame.token}: the plan has shape {plan.shape}, (6, 2) was expected")
        if not np.isfinite(plan).all():
            raise ValueError(f"frame {frame.token}: the plan is not finite: {plan.tolist()}")
        _check_frame(frame)
    return np.asarray(plans, dtype=np.float64)


def _check_frame(frame):
    if frame.speed is not None and not (math.isfinite(frame.speed) and frame.speed >= 0):
        raise ValueError(f"frame {frame.token}: speed {frame.speed!r} must be finite and at least 0 m/s, or None")
    future, mask = np.asarray(frame.future, dtype=np.float64), np.asarray(frame.mask)
    if future.shape not in ((WAYPOINTS, 2), (WAYPOINTS, 3)):
        raise ValueError(f"frame {frame.token}: future has shape {future.shape}, (6, 2) or (6, 3) was expected")
    _check_mask(mask, WAYPOINTS, f"frame {frame.token}: mask")
    if not np.isfinite(future[mask]).all():
        raise ValueError(f"frame {frame.token}: future is not finite where its mask is True: {future.tolist()}")
    for index, agent in enumerate(frame.agents):
        _check_agent(agent, f"frame {frame.token}: agent {index} ({agent.category})")


def _check_agent(agent, name):
    size, poses, mask = np.asarray(agent.size), np.asarray(agent.poses, dtype=np.float64), np.asarray(agent.mask)
    if size.shape != (3,) or not (np.isfinite(size).all() and (size > 0).all()):
        raise ValueError(f"{name}: size {agent.size!r} must be width, length and height above 0 m")
    if poses.shape != (WAYPOINTS + 1, 3):
        raise ValueError(f"{name}: poses has shape {poses.shape}, (7, 3) was expected")
    _check_mask(mask, WAYPOINTS + 1, f"{name}: mask")
    if not np.isfinite(poses[mask]).all():
        raise ValueError(f"{name}: poses is not finite where its mask is True: {poses.tolist()}")


def _check_mask(mask, length, name):
    if mask.shape != (length,) or mask.dtype != bool:
        raise ValueError(f"{name} is {mask.tolist()!r}: {length} values True or False were expected")
