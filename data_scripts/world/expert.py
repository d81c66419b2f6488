"""What the ego's own driver does from any moment of the traffic: the labels of a planner."""

import copy
import math
from dataclasses import dataclass

import numpy as np

from data_scripts.world.simulation import MATTERS_FOR, STEPS_PER_SAMPLE
from data_scripts.world.traffic import Ego, Traffic


@dataclass(frozen=True)
class ExpertDrive:
    """Three seconds from a moment on, with the ego's own driver at the wheel.

    Fields:
        traffic: the moment itself.
        egos: 7: the ego at 0, 0.5 .. 3 s.
        poses: (7, N, 4): global x, y, yaw (m, radians) and speed (m/s) of everyone at 0 .. 3 s.
        scenario: what the ego had to deal with first, of SCENARIOS; None: nothing.
    """

    traffic: Traffic
    egos: list[Ego]
    poses: np.ndarray
    scenario: str | None

    @property
    def length(self) -> float:
        """Metres that the ego drives."""
        return sum(math.hypot(b.x - a.x, b.y - a.y) for a, b in zip(self.egos, self.egos[1:], strict=False))


def copied(traffic: Traffic) -> Traffic:
    """A deep copy, but of the road: that never changes."""
    return copy.deepcopy(traffic, {id(part): part for part in (traffic.path, traffic.legs, traffic.light_legs)})


def driven_on(traffic: Traffic) -> ExpertDrive:
    """Everyone reacts; the traffic itself stays where it is."""
    ahead = copied(traffic)
    egos, poses, active = [ahead.ego], [ahead.poses()], ahead.scenarios()
    for _ in range(MATTERS_FOR):
        for _ in range(STEPS_PER_SAMPLE):
            ahead.step()
        egos.append(ahead.ego)
        poses.append(ahead.poses())
        active = active or ahead.scenarios()
    return ExpertDrive(traffic, egos, np.array(poses), active[0] if active else None)
