"""Plans and inputs that need nothing but the ego's own motion. numpy alone.

Waypoints are metres in the ego frame: x forward, y left, origin below the rear axle; at 0.5 .. 3 s.
"""

import math

import numpy as np

from recipes.metrics.planning.planning_frames import SECONDS_PER_STEP, WAYPOINTS
from recipes.planning.scored_frames import EgoInput
from smoldriver_common.shipped import COMMANDS

TIMES = SECONDS_PER_STEP * np.arange(1, WAYPOINTS + 1)
STRAIGHT = 1e-6  # rad/s: slower turns are straight
BLIND_STATUS = "blind ego status"  # what tables call the blind planner that reads `status_features`


def stands_still(ego: EgoInput) -> np.ndarray:
    """-> (6, 2) metres."""
    return np.zeros((WAYPOINTS, 2))


def constant_velocity(ego: EgoInput) -> np.ndarray:
    """Straight ahead at the speed of now -> (6, 2) metres."""
    return np.stack([ego.speed * TIMES, np.zeros(WAYPOINTS)], axis=-1)


def constant_turn_rate(ego: EgoInput) -> np.ndarray:
    """On the arc of the speed and turn rate of now; straight where the turn rate is unknown -> (6, 2) metres."""
    rate = turn_rate(ego) or 0.0
    if abs(rate) < STRAIGHT:
        return constant_velocity(ego)
    radius = ego.speed / rate
    return np.stack([radius * np.sin(rate * TIMES), radius * (1 - np.cos(rate * TIMES))], axis=-1)


def turn_rate(ego: EgoInput) -> float | None:
    """rad/s, counter-clockwise, over the last half second; None where the pose before is unknown."""
    before = ego.history[-1]
    return None if before is None else -math.remainder(before[2], 2 * math.pi) / SECONDS_PER_STEP


def acceleration(ego: EgoInput) -> float | None:
    """m/s², from the last half second and the one before; None where a pose is unknown."""
    earlier, before = ego.history[-2:]
    if earlier is None or before is None:
        return None
    return (ego.speed - math.dist(earlier[:2], before[:2]) / SECONDS_PER_STEP) / SECONDS_PER_STEP


def speed_features(ego: EgoInput) -> list[float]:
    """Speed and command, one value per command, all 0 where it is unknown."""
    return [ego.speed, *(float(ego.command == command) for command in COMMANDS)]


def status_features(ego: EgoInput) -> list[float]:
    """What AD-MLP reads (Zhai et al., arXiv 2305.10430): speed, acceleration, turn rate, 2 s of poses, command. An
    unknown value is 0, and a value of its own says so."""
    motion = [(value or 0.0, float(value is not None)) for value in (acceleration(ego), turn_rate(ego))]
    poses = [(*(pose or (0.0, 0.0, 0.0)), float(pose is not None)) for pose in ego.history]
    return [*speed_features(ego), *(value for part in (*motion, *poses) for value in part)]
