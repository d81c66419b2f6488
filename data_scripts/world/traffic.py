"""The traffic of a synthetic scene, one time step after the other.

Traffic and ego follow the Intelligent Driver Model (Treiber, Hennecke, Helbing 2000). They react to whoever is ahead
of them in their lane, to red lights and to pedestrians who cross. Cyclists drive like this too, on a line of their own
beside the lanes. A pedestrian begins to cross only where everyone who comes can stop. The ego may be driven from
outside: everyone else reacts to it as it is.

    traffic = Traffic(path, legs, agents, limit=8.5, phases=[0.0, 4.2], ego_speed=6.0)
    traffic.ego, traffic.poses(), traffic.statuses(), traffic.lights()  # now
    traffic.step()  # the ego's own driver
    traffic.step(traffic.ego_at(s=3.0, speed=5.0))  # or any Ego
    expert = copy.deepcopy(traffic)  # may be driven on by itself: the first is not touched
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from data_scripts.world.agents import SIZES, Agent, hitch_distance, status_of
from data_scripts.world.road import Leg, Path, ego_offset, lane_offset, leg_at, near_turn

STEP_SECONDS = 0.25
EGO_FRONT, EGO_REAR = 3.4, 1.0  # bumpers, from the rear axle
SPEED_IN_TURNS = 4.5
BESIDE_CROSSER = 2.2  # metres across the road between a crosser and the middle of the lane that it has passed
EGO_NEAR = 36.0  # metres to the ego from which on a crosser wants to go


@dataclass(frozen=True)
class Ego:
    """The ego's rear axle: on the map (m, radians), its speed (m/s), and along and across the road (m)."""

    x: float
    y: float
    yaw: float
    speed: float
    s: float
    d: float


@dataclass
class Ahead:
    """What a driver must not run into: `gap` metres ahead, driving at `speed` m/s; infinity where there is nothing."""

    gap: float = math.inf
    speed: float = 0.0


class Traffic:
    """Everyone on one road, at one moment.

    Between two steps all of it can be read: `time` (seconds), `ego`, `agents` (their `s`, `d` and `speed` in place),
    and by methods the poses, the statuses and the lights. Steps draw no random numbers.

    Args:
        path: the road's reference line.
        legs: the ego's route.
        agents: everyone else; they are moved in place.
        limit: speed limit in m/s.
        phases: for each leg with a light the second of its cycle in which it is at time 0.
        ego_speed: the ego's speed at time 0, when it is at s = 0.
    """

    def __init__(
        self, path: Path, legs: list[Leg], agents: list[Agent], limit: float, phases: list[float], ego_speed: float
    ):
        self.path, self.legs, self.limit = path, legs, limit
        self.light_legs, self.phases = [leg for leg in legs if leg.has_light], phases
        self.time = 0.0
        self.ego = self.ego_at(0.0, ego_speed)
        self.replace_agents(agents)

    def replace_agents(self, agents: list[Agent]) -> None:
        """From now on these are on the road; whoever is not among them is gone."""
        self.agents = agents
        self._drivers = [i for i, a in enumerate(agents) if a.direction and a.wanted_speed > 0]
        self._crossers = [a for a in agents if a.crossing]
        self._lanes = defaultdict(list)  # the agents of each lane
        for i, a in enumerate(agents):
            if a.direction:
                self._lanes[a.d].append(i)

    def ego_at(self, s: float, speed: float) -> Ego:
        """The ego at `s` of its route."""
        d, slope = ego_offset(self.legs, s)
        x, y, yaw = self.path.at(s, d)
        return Ego(float(x), float(y), float(yaw + math.atan(slope)), speed, s, d)

    def places(self) -> np.ndarray:
        """(agent, 2): s and d."""
        return np.array([(a.s, a.d) for a in self.agents], dtype=float).reshape(-1, 2)

    def poses(self) -> np.ndarray:
        """(agent, 4): global x, y and yaw; speed."""
        places = self.places()
        x, y, yaw = self.path.at(places[:, 0], places[:, 1])
        speeds = [a.speed if a.direction or a.crossing else math.hypot(*a.walk) for a in self.agents]
        return np.stack([x, y, yaw + [a.yaw_offset for a in self.agents], speeds], axis=-1)

    def statuses(self) -> list[str]:
        """For each agent moving, stopped, parked, standing, or "" for things."""
        return [status_of(a) for a in self.agents]

    def lights(self) -> list[str]:
        """The colours of the lights at `light_legs`."""
        return [light_colour(phase, self.time) for phase in self.phases]

    def step(self, ego: Ego | None = None) -> None:
        """Move everyone on by STEP_SECONDS.

        Args:
            ego: where the ego is after the step. None: where its own driver, who keeps to the route, drives it.
        """
        self._start_crossers()
        ahead = next_in_lane(self.agents, self._lanes)
        signals = [(leg, light) for leg, light in zip(self.light_legs, self.lights(), strict=True) if light != "green"]
        walkers = [c for c in self._crossers if c.speed > 0]
        accelerations = [
            self._acceleration_of(self.agents[i], self.agents[ahead[i]] if i in ahead else None, signals, walkers)
            for i in self._drivers
        ]
        after = self._driven_ego() if ego is None else ego
        for i, acceleration in zip(self._drivers, accelerations, strict=True):
            a = self.agents[i]
            a.speed = stopped_or(a.speed + acceleration * STEP_SECONDS)
            a.s += a.direction * a.speed * STEP_SECONDS
        self._move_others()
        self.ego = after
        self.time += STEP_SECONDS

    def _start_crossers(self) -> None:
        """A crosser waits until the ego is near and everyone who comes can stop."""
        for c in self._crossers:
            if c.speed == 0.0 and c.d != c.walk_to and 0 < c.s - self.ego.s < EGO_NEAR and self._lets_cross(c):
                c.speed = abs(c.walk[1])

    def _lets_cross(self, c: Agent) -> bool:
        """Whether nobody stands in a crosser's way, and all who drive towards it can stop before it."""
        if not can_stop(c.s - self.ego.s - EGO_FRONT, self.ego.speed):
            return False
        for a in self.agents:
            if a.direction:
                half = SIZES[a.kind][1] / 2
                gap = a.direction * (c.s - a.s) - half
                if gap > -2 * half - 1.0 and not can_stop(gap, a.speed):
                    return False
        return True

    def _acceleration_of(
        self, a: Agent, next_one: Agent | None, signals: list[tuple[Leg, str]], walkers: list[Agent]
    ) -> float:
        """Of a driver in a lane, in m/s^2; `next_one` is ahead in its lane, `signals` are the lights that are not
        green, `walkers` those who cross just now."""
        wanted = 0.0 if a.stop_from <= self.time < a.stop_until else a.wanted_speed
        if near_turn(self.legs, a.s, a.direction):
            wanted = min(wanted, SPEED_IN_TURNS)
        ahead, half = Ahead(), SIZES[a.kind][1] / 2
        if next_one is not None:
            ahead = Ahead(abs(next_one.s - a.s) - half - SIZES[next_one.kind][1] / 2, next_one.speed)
        if a.direction > 0 and a.kind != "bicycle":  # a cyclist has room beside the ego
            ahead, wanted = self._minding_ego(a, ahead, wanted)
        for leg, light in signals:
            line = leg.stop_line if a.direction > 0 else leg.oncoming_line
            to_line = a.direction * (line - a.s) - half
            if must_stop(light, to_line, a.speed) and to_line < ahead.gap:
                ahead = Ahead(to_line + 1.5)
        for c in walkers:
            to_crosser = a.direction * (c.s - a.s) - half - 0.6
            if has_to_pass(c, c.d, a.d) and 0 < to_crosser < ahead.gap:
                ahead = Ahead(to_crosser)
        return follow(a.speed, wanted, ahead, 3.0)

    def _minding_ego(self, a: Agent, ahead: Ahead, wanted: float) -> tuple[Ahead, float]:
        """What is ahead of a driver in the ego's direction, and how fast it wants to drive, with the ego there."""
        ego, target_d = self.ego, self._target_d()
        changes_here = target_d is not None and abs(target_d - a.d) < 1.5
        distance = ego.s - a.s
        gap = distance - EGO_REAR - SIZES[a.kind][1] / 2
        if (abs(ego.d - a.d) < 2.2 or changes_here) and 0 < distance < 80 and gap < ahead.gap:
            ahead = Ahead(gap, ego.speed)
        if changes_here and abs(distance) < 14:
            wanted = ego.speed * 0.4 if distance > -5 else max(wanted, ego.speed * 1.4)  # make room
        return ahead, wanted

    def _target_d(self) -> float | None:
        """The middle of the lane that the ego changes to; None where it keeps its lane."""
        leg = leg_at(self.legs, self.ego.s)
        return lane_offset(leg.new_lane) if leg.new_lane != leg.lane else None

    def _driven_ego(self) -> Ego:
        """The ego a step later, driven by its own driver."""
        ego = self.ego
        wanted = min(self.limit, SPEED_IN_TURNS) if near_turn(self.legs, ego.s, 1) else self.limit
        acceleration = follow(ego.speed, wanted, self._ahead_of_ego(), 8.0)
        for s, standstill_gap in self._stops_of_ego():
            if s > ego.s - 1.0:
                stop = Ahead(max(s - ego.s, 0.1))
                acceleration = min(acceleration, follow(ego.speed, wanted, stop, standstill_gap))
        speed = stopped_or(ego.speed + acceleration * STEP_SECONDS)
        return self.ego_at(ego.s + speed * STEP_SECONDS, speed)

    def _ahead_of_ego(self) -> Ahead:
        """The nearest vehicle ahead of the ego in its lane, or in the lane that it changes to."""
        ego, target_d = self.ego, self._target_d()
        nearest = Ahead()
        for a in self.agents:
            if a.direction <= 0 or a.s <= ego.s:
                continue
            if abs(a.d - ego.d) < 1.5 or (target_d is not None and abs(a.d - target_d) < 1.5):
                other = Ahead(a.s - ego.s - SIZES[a.kind][1] / 2 - EGO_FRONT, a.speed)
                nearest = min(nearest, other, key=lambda ahead: (ahead.gap, ahead.speed))
        return nearest

    def _stops_of_ego(self) -> list[tuple[float, float]]:
        """(s at which the ego has to stand, the gap it keeps to that) for crossers and red lights."""
        ego = self.ego
        stops = [(c.s - EGO_FRONT - 0.4, 5.0) for c in self._crossers if c.speed > 0 and has_to_pass(c, c.d, ego.d)]
        for leg, light in zip(self.light_legs, self.lights(), strict=True):
            if must_stop(light, leg.stop_line - ego.s - EGO_FRONT, ego.speed):
                stops.append((leg.stop_line - EGO_FRONT, 1.0))
        return stops

    def _move_others(self) -> None:
        """Trailers, and who does not drive."""
        for a in self.agents:
            if a.towed_by is not None:
                puller = self.agents[a.towed_by]
                a.s = puller.s - a.direction * hitch_distance(puller.kind, a.kind)
                a.speed = puller.speed
            elif a.crossing:
                if a.speed > 0:
                    a.d += a.walk[1] * STEP_SECONDS
                    if (a.d - a.walk_to) * a.walk[1] >= 0:
                        a.d, a.speed = a.walk_to, 0.0  # it has arrived
            elif a.direction == 0:
                a.s += a.walk[0] * STEP_SECONDS


def light_colour(phase: float, time: float) -> str:
    """A cycle of 13 s: green for 5, yellow for 2, red for 6."""
    moment = (phase + time) % 13.0
    return "green" if moment < 5.0 else "yellow" if moment < 7.0 else "red"


def follow(speed: float, wanted: float, ahead: Ahead, standstill_gap: float) -> float:
    """Acceleration by the Intelligent Driver Model, in m/s^2, never below a hard brake of 6."""
    if wanted <= 0.1:
        free = -2.5
    else:
        free = 1.6 * (1 - (speed / wanted) ** 4)
    if math.isinf(ahead.gap):
        return max(free, -6.0)
    approach = speed * (speed - ahead.speed) / (2 * math.sqrt(1.6 * 2.2))
    desired = standstill_gap + max(0.0, speed * 1.1 + approach)
    return max(free - 1.6 * (desired / max(ahead.gap, 0.3)) ** 2, -6.0)


def next_in_lane(agents: list[Agent], lanes: dict[float, list[int]]) -> dict[int, int]:
    """For each agent in a lane the one ahead of it."""
    ahead = {}
    for members in lanes.values():
        members.sort(key=lambda i: agents[i].direction * agents[i].s)
        ahead.update(zip(members, members[1:], strict=False))
    return ahead


def stopped_or(speed: float) -> float:
    """Speeds below a crawl are a standstill, so that nobody is half stopped."""
    return speed if speed > 0.35 else 0.0


def must_stop(light: str, distance: float, speed: float) -> bool:
    """Whether who is `distance` metres before the stop line stops: yes at red, at yellow where the brakes allow."""
    if not -1.0 < distance < 40.0 or light == "green":
        return False
    return light == "red" or distance > speed * speed / 6.0


def can_stop(gap: float, speed: float) -> bool:
    """Whether who drives at `speed` stops in time before a crosser who is `gap` metres ahead and begins to walk."""
    return gap > 2.0 + speed * 0.5 + speed * speed / 5.0


def has_to_pass(crosser: Agent, d: float, lane_d: float) -> bool:
    """Whether a crosser who is at `d` still has to pass a lane whose middle is at `lane_d`, or is on it."""
    return (d - lane_d) * math.copysign(1.0, -crosser.walk[1]) > -BESIDE_CROSSER
