"""How drivers get round a blocked lane, change lanes and give way where they turn left: geometry, without traffic.

Metres and radians; `s` and `d` run along and across the road (see `road.py`).
"""

import math
from dataclasses import dataclass

from data_scripts.world.agents import SIZES, Agent
from data_scripts.world.road import LANE_WIDTH, TURN_LEFT, TURN_LENGTH, TURN_RADIUS, Leg, Path, lane_offset

STEEPEST, STEEPEST_SLOW, SLOW = 0.3, 0.45, 4.0  # metres across per metre along; m/s below which is slow
SIDEWAYS = 4.0  # m/s^2 across at most
SHARPEST = 0.16  # 1/m: the tightest bend of a lane change
STREET_LINE = 26.0  # metres from where a street meets the road to its stop line
STREET_HALF = 1.3  # half the width of the widest who comes along a street
SPEED_ACROSS = 4.5  # m/s of who turns left
SEEN_ACROSS = 32.0  # metres: who comes from further away has not to be let pass
SPARE_SECONDS = 1.0  # between who turns left and who comes next


def steered(aside: float, slope: float, speed: float, metres: float) -> tuple[float, float]:
    """Where who drives back to a line is after some metres.

    Args:
        aside: metres to the left of the line.
        slope: metres to the left per metre along.
        speed: m/s.
        metres: along the road.

    Returns:
        `aside` and `slope` there; both are 0 on the line.
    """
    steepest = STEEPEST if speed > SLOW else STEEPEST_SLOW
    wanted = min(max(-aside / 4.0, -steepest), steepest)
    bend = min(SHARPEST, SIDEWAYS / max(speed, 1.0) ** 2) * metres
    turned = slope + min(max(wanted - slope, -bend), bend)
    after = aside + (slope + turned) / 2 * metres
    return (0.0, 0.0) if abs(after) < 0.03 and abs(turned) < 0.02 else (after, turned)


@dataclass(frozen=True)
class Block:
    """A stretch of a lane that vehicles or things close for good: `s` of its ends, `d` of the lane's middle."""

    start: float
    end: float
    d: float

    @property
    def free_d(self) -> float:
        """`d` of the other lane of the ego's direction."""
        return lane_offset(1 - lane_of(self.d))


def lane_of(d: float) -> int:
    """The lane that a place across the road lies in."""
    return math.floor(-d / LANE_WIDTH)


def blocks_of(agents: list[Agent]) -> list[Block]:
    """The blocked stretches, one per lane."""
    by_lane = {}
    for a in agents:
        if a.blocks:
            by_lane.setdefault(lane_of(a.d), []).append(a)
    return [
        Block(
            min(a.s - SIZES[a.kind][1] / 2 for a in group),
            max(a.s + SIZES[a.kind][1] / 2 for a in group),
            lane_offset(lane),
        )
        for lane, group in sorted(by_lane.items())
    ]


@dataclass(frozen=True)
class SideStreet:
    """The street that leads straight on where the road turns left. Who comes along it crosses the way of those who
    turn left, and has priority.

    Its users count `s` straight on from `start`, the place where the bend begins; `u` is `s - start`.
    """

    leg: Leg

    @property
    def start(self) -> float:
        return self.leg.bend_start

    @property
    def line(self) -> float:
        """`s` of its stop line."""
        return self.start + STREET_LINE

    def pose(self, path: Path, s: float, d: float) -> tuple[float, float, float]:
        """Global x, y and the road's yaw of a place in the street."""
        x, y, yaw = (float(value) for value in path.at(self.start, d))
        return x + (s - self.start) * math.cos(yaw), y + (s - self.start) * math.sin(yaw), yaw

    def on_road(self, s: float, d: float) -> tuple[float, float]:
        """`s` and `d` of the place on the bending road that is nearest to a place in the street."""
        u, w = s - self.start, TURN_RADIUS - d
        return self.start + TURN_RADIUS * math.atan2(u, w), TURN_RADIUS - math.hypot(u, w)

    def within(self, s: float, d: float) -> tuple[float, float, float]:
        """u, `d` and heading in the street's frame of a place on the bending road."""
        turn = min(max((s - self.start) / TURN_RADIUS, 0.0), math.pi / 2)
        over = s - self.start - TURN_RADIUS * turn  # before or behind the bend
        radius = TURN_RADIUS - d
        u, left = radius * math.sin(turn), TURN_RADIUS - radius * math.cos(turn)
        return u + over * math.cos(turn), left + over * math.sin(turn), turn

    def zone(self, d: float) -> tuple[float, float, float, float]:
        """Where who turns left on the line `d` is in the way of lane -1 of the street: `s` at which its front gets
        in and its rear out, and the lowest and highest u of the street's users that it meets there."""
        radius, inner = TURN_RADIUS - d, TURN_RADIUS - lane_offset(-1)
        into = TURN_RADIUS * math.acos(min((inner + STREET_HALF + 1.2) / radius, 1.0))
        out = TURN_RADIUS * math.acos(min((inner - STREET_HALF - 1.2) / radius, 1.0))
        middle = math.sqrt(radius**2 - inner**2)
        return self.start + into, self.start + out, middle - 4.5, middle + 4.5

    def gives_way(self, front: float, rear: float, speed: float, d: float, users: list[Agent], waits: bool) -> bool:
        """Whether who turns left has to let one of the street's users pass.

        Args:
            front: `s` of its front.
            rear: `s` of its rear.
            speed: m/s.
            d: its line across the road.
            users: those who come along the street.
            waits: whether the street's light makes those wait who have not passed its line.
        """
        into, out, low, high = self.zone(d)
        if rear > out:
            return False
        arrives = max(into - front, 0.0) / max(SPEED_ACROSS, speed)
        leaves = seconds_for(out - rear, speed)
        for a in users:
            half = SIZES[a.kind][1] / 2
            nose, tail = a.s - half - self.start, a.s + half - self.start
            far = nose - max(front - self.start, 0.0) > SEEN_ACROSS  # and can brake for who is on its way
            if tail < low or far or (waits and nose > STREET_LINE):
                continue
            comes = (nose - high) / max(a.speed + 1.0, 4.0)
            gone = (tail - low) / max(a.speed, 1.0)
            if comes < leaves + SPARE_SECONDS and gone + 0.5 > arrives:
                return True
        return False


def side_streets(legs: list[Leg], agents: list[Agent]) -> list[SideStreet]:
    """The streets that somebody comes along."""
    used = {a.street for a in agents if a.street is not None}
    return [SideStreet(leg) for leg in legs if leg.action == TURN_LEFT and leg.bend_start in used]


def seconds_for(metres: float, speed: float) -> float:
    """How long it takes to drive that far from `speed`, with 1.3 m/s^2 up to the speed of a turn."""
    rate = 1.3
    if speed >= SPEED_ACROSS:
        return metres / SPEED_ACROSS
    ramp = (SPEED_ACROSS**2 - speed**2) / (2 * rate)
    if metres > ramp:
        return (SPEED_ACROSS - speed) / rate + (metres - ramp) / SPEED_ACROSS
    return (math.sqrt(speed**2 + 2 * rate * metres) - speed) / rate


def bend_ahead(legs: list[Leg], low: float, high: float) -> bool:
    """Whether the route turns or changes lanes anywhere between two places."""
    for leg in legs:
        if leg.bend_start is not None:
            end = leg.bend_start + TURN_LENGTH if leg.is_turn else leg.end
            if leg.bend_start < high and end > low:
                return True
    return False
