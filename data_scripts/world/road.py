"""The road of one synthetic scene, and the ego's route along it.

Frames and units: metres, radians. `global` is a flat map frame with z up. Along the road, `s` is the arc length of the
road's reference line (the line between the two directions of traffic) and `d` the offset to its left; traffic keeps to
the right.

The road is a chain of legs. On each leg the ego has one target action (go straight, turn, change lane), which arrows
on its lane announce.
"""

import math
from dataclasses import dataclass

import numpy as np

LANE_WIDTH = 3.5
SAME_LANES = 2  # lanes in the ego's direction; 0 is the inner one
STRIP_WIDTH = 3.2  # the parking strip between the outer lane and the kerb, wide enough to pass what is parked
PAVEMENT_WIDTH = 3.0
TURN_RADIUS = 14.0  # of the reference line
TURN_LENGTH = math.pi / 2 * TURN_RADIUS
LANE_CHANGE_LENGTH = 18.0
ROUTE_LENGTH = 270.0  # at least: more than 20 s of driving
PATH_STEP = 0.5
PATH_BEHIND = 60.0
ARROW_LENGTH, ARROW_PERIOD = 4.4, 7.0
LIGHT_FROM = 14.0  # metres to a light's stop line at least where a scene begins: the ego can stop there

GO_STRAIGHT, TURN_LEFT, TURN_RIGHT = "Go straight.", "Turn left.", "Turn right."
CHANGE_LEFT, CHANGE_RIGHT = "Change to the left lane.", "Change to the right lane."


@dataclass
class Path:
    """The reference line of the road, sampled every PATH_STEP from s = -PATH_BEHIND."""

    x: np.ndarray
    y: np.ndarray
    yaw: np.ndarray

    def at(self, s, d=0.0):
        """Global x, y and yaw of the points `s`, `d` (scalars or arrays of one shape)."""
        index, part = self.samples(s)
        x = self.x[index] + part * (self.x[index + 1] - self.x[index])
        y = self.y[index] + part * (self.y[index + 1] - self.y[index])
        yaw = self.yaw[index] + part * (self.yaw[index + 1] - self.yaw[index])
        return x - d * np.sin(yaw), y + d * np.cos(yaw), yaw

    def heading(self, s):
        """The yaw of the points `s` (a scalar or an array)."""
        index, part = self.samples(s)
        return self.yaw[index] + part * (self.yaw[index + 1] - self.yaw[index])

    def samples(self, s):
        """The sample before each of the points `s` (a scalar or an array), and the part of the way to the next one."""
        grid = (np.asarray(s, dtype=float) + PATH_BEHIND) / PATH_STEP
        index = np.maximum(np.minimum(grid.astype(int), len(self.x) - 2), 0)  # for scalars much faster than np.clip
        return index, grid - index


@dataclass
class Leg:
    """A stretch of road with one target action. `lane` is the ego's lane before the action, `new_lane` the one after
    it."""

    start: float
    end: float
    action: str
    lane: int
    new_lane: int
    bend_start: float | None = None  # where the arc or the lane change begins
    junction: float | None = None  # centre of a crossing street
    has_light: bool = False

    @property
    def is_turn(self) -> bool:
        return self.action in (TURN_LEFT, TURN_RIGHT)

    @property
    def stop_line(self) -> float:
        return self.junction - 9.0 if self.bend_start is None else self.bend_start - 2.0

    @property
    def oncoming_line(self) -> float:
        return self.junction + 9.0 if self.bend_start is None else self.end + 2.0


def make_legs(rng, opening: tuple[str, ...] = (), lane: int | None = None, rightmost: int = -1) -> list[Leg]:
    """Legs for 20 s of driving and more. The heading stays within 90 degrees of the first one, so that the road never
    crosses itself.

    Args:
        rng: numpy's generator; the order of the draws is part of the world's version.
        opening: the actions of the first legs; the others are drawn.
        lane: the ego's first lane; None draws it.
        rightmost: how far the heading may get from the first one to the right, in quarter turns to the left.
    """
    legs, s, quarter = [], 0.0, 0
    lane = int(rng.integers(SAME_LANES)) if lane is None else lane
    while s < ROUTE_LENGTH:
        options = [GO_STRAIGHT, CHANGE_LEFT if lane > 0 else CHANGE_RIGHT]
        options += [TURN_LEFT] * (quarter < 1) + [TURN_RIGHT] * (quarter > rightmost)
        action = opening[len(legs)] if len(legs) < len(opening) else str(rng.choice(options))
        # The first leg has begun before the scene does.
        begin = s - (float(rng.uniform(0, 30)) if not legs else 0.0)
        if action == GO_STRAIGHT:
            leg = straight_leg(rng, begin, s, lane)
        elif action in (TURN_LEFT, TURN_RIGHT):
            leg = turning_leg(rng, begin, s, action, lane)
            quarter += 1 if action == TURN_LEFT else -1
        else:
            leg = lane_change_leg(rng, begin, action, lane)
        legs.append(leg)
        s, lane = leg.end, leg.new_lane
    return legs


def straight_leg(rng, begin: float, s: float, lane: int) -> Leg:
    """A straight leg, with a crossing street where that lies well ahead of `s`."""
    length = float(rng.uniform(34, 46))
    leg = Leg(begin, begin + length, GO_STRAIGHT, lane, lane)
    if rng.random() < 0.9 and begin + length - 14.0 > s + 18.0:
        leg.junction = begin + length - 14.0
        leg.has_light = bool(rng.random() < 0.9) and leg.stop_line > s + LIGHT_FROM
    return leg


def turning_leg(rng, begin: float, s: float, action: str, lane: int) -> Leg:
    straight = float(rng.uniform(28, 38))
    leg = Leg(begin, begin + straight + TURN_LENGTH, action, lane, lane, bend_start=begin + straight)
    leg.junction = leg.bend_start + TURN_LENGTH / 2
    leg.has_light = bool(rng.random() < 0.75) and leg.stop_line > s + LIGHT_FROM
    return leg


def lane_change_leg(rng, begin: float, action: str, lane: int) -> Leg:
    start = begin + float(rng.uniform(18, 26))
    new_lane = lane - 1 if action == CHANGE_LEFT else lane + 1
    return Leg(begin, start + LANE_CHANGE_LENGTH, action, lane, new_lane, bend_start=start)


def make_path(rng, legs: list[Leg]) -> Path:
    """The reference line of the legs, somewhere on the map and in any direction."""
    grid = np.arange(-PATH_BEHIND, legs[-1].end + 120.0, PATH_STEP)
    curvature = np.zeros_like(grid)
    for leg in legs:
        if leg.is_turn:
            # The share of each step that lies in the arc, so that every turn is 90 degrees to the digit.
            start, end = leg.bend_start, leg.bend_start + TURN_LENGTH
            inside = np.clip(np.minimum(grid + PATH_STEP, end) - np.maximum(grid, start), 0, PATH_STEP)
            value = (1 if leg.action == TURN_LEFT else -1) / TURN_RADIUS
            curvature += value * inside / PATH_STEP
    yaw = float(rng.uniform(-math.pi, math.pi)) + np.concatenate([[0.0], np.cumsum(curvature[:-1] * PATH_STEP)])
    middle = yaw + curvature * PATH_STEP / 2
    x = float(rng.uniform(300, 1700)) + np.concatenate([[0.0], np.cumsum(np.cos(middle[:-1]) * PATH_STEP)])
    y = float(rng.uniform(300, 1700)) + np.concatenate([[0.0], np.cumsum(np.sin(middle[:-1]) * PATH_STEP)])
    return Path(x, y, yaw)


def lane_offset(lane: int) -> float:
    """`d` of the middle of a lane: 0, 1 in the ego's direction; -1, -2 for oncoming traffic."""
    return -(lane + 0.5) * LANE_WIDTH


def ego_offset(legs: list[Leg], s: float) -> tuple[float, float]:
    """The ego's `d` at `s` and its slope dd/ds; a lane change takes LANE_CHANGE_LENGTH."""
    leg = leg_at(legs, s)
    before, after = lane_offset(leg.lane), lane_offset(leg.new_lane)
    if leg.lane == leg.new_lane or s <= leg.bend_start:
        return before, 0.0
    part = min((s - leg.bend_start) / LANE_CHANGE_LENGTH, 1.0)
    return before + (after - before) * part * part * (3 - 2 * part), (after - before) * 6 * part * (
        1 - part
    ) / LANE_CHANGE_LENGTH


def leg_at(legs: list[Leg], s: float) -> Leg:
    """The leg that the ego is on at `s`."""
    for leg in legs:
        if s < leg.end:
            return leg
    return legs[-1]


def closed_zones(legs: list[Leg]) -> list[tuple[float, float]]:
    """Intervals of s that belong to junctions: nothing is parked or built there."""
    zones = []
    for leg in legs:
        if leg.is_turn:
            zones.append((leg.bend_start - 4.0, leg.end + 4.0))
        elif leg.junction is not None:
            zones.append((leg.junction - 9.0, leg.junction + 9.0))
    return zones


def is_open(zones: list[tuple[float, float]], start: float, end: float) -> bool:
    """Whether the interval touches none of the zones."""
    return all(end < low or start > high for low, high in zones)


def near_turn(legs: list[Leg], s: float, direction: int) -> bool:
    """Whether a bend is near for who drives along (1) or against (-1) the ego's direction."""
    for leg in legs:
        if leg.is_turn:
            low, high = (leg.bend_start - 8.0, leg.end) if direction > 0 else (leg.bend_start, leg.end + 8.0)
            if low < s < high:
                return True
    return False


def arrow_places(leg: Leg) -> np.ndarray:
    """s at which the arrows of a leg begin."""
    return np.arange(leg.start + 1.0, leg.end - ARROW_LENGTH, ARROW_PERIOD)
