"""The traffic of a synthetic scene, one time step after the other.

Traffic and ego follow the Intelligent Driver Model. They react to whoever is ahead of them in their lane, to red
lights and to pedestrians who cross. Cyclists drive like this too, on a line of their own beside the lanes. A
pedestrian begins to cross only where everyone who comes can stop. A vehicle that cuts in or pulls out does so only
where the ego can brake for it. Who turns left lets those pass who come straight on.

The ego may be driven from outside: everyone else reacts to it as it is. Its own driver keeps no memory: from any
place it drives back to its route, and round what blocks its lane.

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
from data_scripts.world.car_following import Ahead, braking, can_stop, follow, light_colour, must_stop, stopped_or
from data_scripts.world.manoeuvres import (
    STREET_HALF,
    Block,
    SideStreet,
    bend_ahead,
    blocks_of,
    lane_of,
    side_streets,
    steered,
)
from data_scripts.world.road import Leg, Path, ego_offset, lane_offset, leg_at, near_turn
from data_scripts.world.scenarios import (
    BLOCKED_LANE,
    CROSSING_PEDESTRIAN,
    CUT_IN,
    ONCOMING_TURN,
    PULL_OUT,
    SCENARIOS,
)

STEP_SECONDS = 0.25
EGO_FRONT, EGO_REAR = 3.4, 1.0  # bumpers, from the rear axle
SPEED_IN_TURNS = 4.5
BESIDE_CROSSER = 2.2  # metres across the road between a crosser and the middle of the lane that it has passed
EGO_NEAR = 36.0  # metres to the ego from which on a crosser wants to go
CUT_IN_GAPS = (10.0, 15.0)  # metres between the ego and the vehicle that cuts in
MINDED_FROM = 28.0  # metres from which on the ego's driver minds a blocked lane, or who comes where it turns left
WAITS_BEFORE = 12.0  # metres before a blocked stretch where the ego waits: room enough to get round it
TOO_NEAR = 9.0  # metres before it from which on nobody begins to go round
SPEED_AROUND = 6.0  # m/s
SPEED_BEFORE_STREET = 5.5  # m/s in the last metres before a turn across oncoming traffic
MAY_BRAKE = 4.0  # m/s^2 that giving way may ask for
ASIDE = 1.0  # metres from its route from which on the ego is in another lane, or on its way there


@dataclass(frozen=True)
class Ego:
    """The ego's rear axle: on the map (m, radians), its speed (m/s), and along and across the road (m)."""

    x: float
    y: float
    yaw: float
    speed: float
    s: float
    d: float


class Traffic:
    """Everyone on one road, at one moment.

    Between two steps all of it can be read: `time` (seconds), `ego`, `agents` (their `s`, `d` and `speed` in place),
    and by methods the poses, the statuses, the lights and the scenario. Steps draw no random numbers.

    An ego that is driven from outside may leave its route and its lane. Its `s` and `d` must then be those of its
    place, and its `yaw` that of its body: those beside it see by them that it changes lanes. A vehicle cuts in or
    pulls out only before an ego that keeps to the lane in question.

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
        self._joiners = {i: PULL_OUT if a.parked else CUT_IN for i, a in enumerate(agents) if a.joins is not None}
        self.blocks, self.streets = blocks_of(agents), side_streets(self.legs, agents)
        self._lanes = defaultdict(list)  # the agents of each lane, those on their way there too
        for i, a in enumerate(agents):
            if a.direction:
                self._lanes[lane_offset(lane_of(a.d)) if a.blocks else a.d].append(i)

    def ego_at(self, s: float, speed: float) -> Ego:
        """The ego at `s` of its route."""
        d, slope = ego_offset(self.legs, s)
        x, y, yaw = self.path.at(s, d)
        return Ego(float(x), float(y), float(yaw + math.atan(slope)), speed, s, d)

    def places(self) -> np.ndarray:
        """(agent, 2): s and d."""
        places = np.array([(a.s, a.d) for a in self.agents], dtype=float).reshape(-1, 2)
        for street, i in self._in_streets():
            places[i] = street.on_road(*places[i])
        return places

    def poses(self) -> np.ndarray:
        """(agent, 4): global x, y and yaw; speed."""
        places = np.array([(a.s, a.d) for a in self.agents], dtype=float).reshape(-1, 2)
        x, y, yaw = self.path.at(places[:, 0], places[:, 1])
        for street, i in self._in_streets():
            x[i], y[i], yaw[i] = street.pose(self.path, *places[i])
        speeds = [a.speed if a.direction or a.crossing else math.hypot(*a.walk) for a in self.agents]
        return np.stack([x, y, yaw + [a.yaw_offset for a in self.agents], speeds], axis=-1)

    def statuses(self) -> list[str]:
        """For each agent moving, stopped, parked, standing, or "" for things."""
        return [status_of(a) for a in self.agents]

    def lights(self) -> list[str]:
        """The colours of the lights at `light_legs`."""
        return [light_colour(phase, self.time) for phase in self.phases]

    def scenarios(self) -> list[str]:
        """What the ego has to deal with at this moment, in the order of SCENARIOS."""
        ego, active = self.ego, set()
        for c in self._crossers:
            if c.speed > 0 and 0 < c.s - ego.s < 28.0 and has_to_pass(c, c.d, ego.d):
                active.add(CROSSING_PEDESTRIAN)
        for i, name in self._joiners.items():
            if self.agents[i].joining and 0 < self.agents[i].s - ego.s < 40.0:
                active.add(name)
        if self._block_ahead() is not None:
            active.add(BLOCKED_LANE)
        if self._gives_way_at() is not None:
            active.add(ONCOMING_TURN)
        return [name for name in SCENARIOS if name in active]

    def step(self, ego: Ego | None = None) -> None:
        """Move everyone on by STEP_SECONDS.

        Args:
            ego: where the ego is after the step. None: where its own driver, who keeps to the route, drives it.
        """
        self._measure()
        self._start_crossers()
        self._start_joiners()
        ahead = next_in_lane(self.agents, self._lanes)
        signals = [(leg, light) for leg, light in zip(self.light_legs, self.lights(), strict=True) if light != "green"]
        walkers = [c for c in self._crossers if c.speed > 0]
        accelerations = [self._acceleration_of(i, ahead.get(i), signals, walkers) for i in self._drivers]
        after = self._driven_ego() if ego is None else ego
        for i, acceleration in zip(self._drivers, accelerations, strict=True):
            a = self.agents[i]
            a.speed = stopped_or(a.speed + acceleration * STEP_SECONDS)
            a.s += a.direction * a.speed * STEP_SECONDS
        self._move_joiners()
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
            if a.direction and not behind_bend(a, c.s):
                half = SIZES[a.kind][1] / 2
                gap = a.direction * (c.s - a.s) - half
                if gap > -2 * half - 1.0 and not can_stop(gap, a.speed):
                    return False
        return True

    def _start_joiners(self) -> None:
        """A vehicle cuts in, or pulls out, close before the ego, and only where the ego can brake for it."""
        for i in self._joiners:
            a = self.agents[i]
            if a.joining or a.d == a.joins or abs(self.ego.d - a.joins) > 0.5 or self.ego.speed < 3.0:
                continue
            gap = a.s - SIZES[a.kind][1] / 2 - self.ego.s - EGO_FRONT
            if bend_ahead(self.legs, self.ego.s - EGO_REAR, a.s + 22.0):
                continue
            if (self._may_pull_out if a.parked else self._may_cut_in)(a, gap):
                a.joining, a.parked = True, False
                self._lanes[a.joins].append(i)

    def _may_cut_in(self, a: Agent, gap: float) -> bool:
        fast = a.speed >= self.ego.speed - 0.5
        lights = zip(self.light_legs, self.lights(), strict=True)
        stops = any(light != "green" and 0.0 < leg.stop_line - a.s < 30.0 for leg, light in lights)
        crossed = any(c.speed > 0 and 0.0 < c.s - a.s < 30.0 for c in self._crossers)
        on_time = self.time >= a.joins_after and CUT_IN_GAPS[0] <= gap <= CUT_IN_GAPS[1]
        return on_time and fast and not stops and not crossed and self._has_room(a)

    def _may_pull_out(self, a: Agent, gap: float) -> bool:
        near = not can_stop(gap - 10.0, self.ego.speed)
        return near and can_stop(gap - 3.0, self.ego.speed) and self._has_room(a)

    def _has_room(self, a: Agent) -> bool:
        """Whether the lane that a vehicle changes to is free, but for the ego behind it."""
        half = SIZES[a.kind][1] / 2
        for other in self.agents:
            if other is a or other.direction <= 0 or abs(other.d - a.joins) > 1.9:
                continue
            apart, halves = other.s - a.s, half + SIZES[other.kind][1] / 2
            if 0 <= apart < halves + 12.0:
                return False
            if apart < 0 and not can_stop(-apart - halves - 2.0, max(other.speed - a.speed, 0.0)):
                return False
        return True

    def _measure(self) -> None:
        """The road's heading at everyone's place: gaps in bends are measured along the lane."""
        self._ego_heading = float(self.path.heading(self.ego.s))
        self._headings = self.path.heading(np.array([a.s for a in self.agents])).tolist() if self.agents else []

    def _acceleration_of(
        self, i: int, next_one: int | None, signals: list[tuple[Leg, str]], walkers: list[Agent]
    ) -> float:
        """Of driver `i` in a lane, in m/s^2; agent `next_one` is ahead in its lane, `signals` are the lights that are
        not green, `walkers` those who cross just now."""
        a = self.agents[i]
        wanted = 0.0 if a.stop_from <= self.time < a.stop_until else a.wanted_speed
        waits_to_join, pace = a.joins is not None and a.d != a.joins and not a.joining, 0.0
        if waits_to_join:
            if a.parked:
                return 0.0
            pace, wanted = self._pace_beside_ego(a), 1.2 * self.limit
        if not behind_bend(a, a.s) and near_turn(self.legs, a.s, a.direction):
            wanted = min(wanted, SPEED_IN_TURNS)
        ahead, half = Ahead(), SIZES[a.kind][1] / 2
        if next_one is not None:
            other = self.agents[next_one]
            bent = 0.0 if behind_bend(a, a.s) else a.d * (self._headings[next_one] - self._headings[i])
            metres = a.direction * (other.s - a.s - bent)
            ahead = Ahead(metres - half - SIZES[other.kind][1] / 2, other.speed)
        if a.direction > 0 and a.kind != "bicycle":  # a cyclist has room beside the ego
            ahead, wanted = self._minding_ego(i, ahead, wanted)
        for leg, light in signals:
            line = leg.stop_line if a.direction > 0 else self._oncoming_line(a, leg)
            to_line = a.direction * (line - a.s) - half
            if must_stop(light, to_line, a.speed) and to_line < ahead.gap:
                ahead = Ahead(to_line + 1.5)
        for c in walkers:
            to_crosser = a.direction * (c.s - a.s) - half - 0.6
            if has_to_pass(c, c.d, a.d) and 0 < to_crosser < ahead.gap and not behind_bend(a, c.s):
                ahead = Ahead(to_crosser)
        for street in self.streets:
            ahead = self._minding_street(a, half, street, ahead)
        acceleration = follow(a.speed, wanted, ahead, 3.0)
        return min(acceleration, pace) if waits_to_join else acceleration

    def _minding_ego(self, i: int, ahead: Ahead, wanted: float) -> tuple[Ahead, float]:
        """What is ahead of a driver in the ego's direction, and how fast it wants to drive, with the ego there."""
        a, ego, target_d = self.agents[i], self.ego, self._target_d()
        changes_here = target_d is not None and abs(target_d - a.d) < 1.5
        distance = ego.s - a.s
        gap = distance - a.d * (self._ego_heading - self._headings[i]) - EGO_REAR - SIZES[a.kind][1] / 2
        if (abs(ego.d - a.d) < 2.2 or changes_here) and 0 < distance < 80 and gap < ahead.gap:
            ahead = Ahead(gap, ego.speed)
        if changes_here and abs(distance) < 14:
            # Make room. Who is level with an ego that stands drives on, or both would wait for ever.
            wanted = ego.speed * 0.4 if distance > -5 and ego.speed > 0 else max(wanted, ego.speed * 1.4)
        return ahead, wanted

    def _pace_beside_ego(self, a: Agent) -> float:
        """Acceleration, in m/s^2, of a vehicle that is about to cut in: it keeps a little ahead of the ego."""
        gap = a.s - SIZES[a.kind][1] / 2 - self.ego.s - EGO_FRONT
        faster = self.ego.speed - a.speed + 0.5 * (sum(CUT_IN_GAPS) / 2 - gap)
        return min(max(faster, -1.5 if a.speed > 0.3 * self.limit else 0.0), 2.5)

    def _oncoming_line(self, a: Agent, leg: Leg) -> float:
        """`s` of the stop line of an oncoming driver at a light; one behind it for lights that are not on its way."""
        for street in self.streets:
            if a.street == street.start:
                return street.line if leg is street.leg else leg.oncoming_line if leg.end < a.street else math.inf
        return leg.oncoming_line

    def _minding_street(self, a: Agent, half: float, street: SideStreet, ahead: Ahead) -> Ahead:
        """What is ahead of a driver where a street meets the road: who has priority, or who is in the way all the
        same."""
        if a.direction > 0:
            stop = self._stop_at_street(street, a.s + half, a.s - half, a.speed, a.d)
            return Ahead(stop - a.s - half + 1.5) if stop is not None and stop - a.s - half < ahead.gap else ahead
        if a.street != street.start:
            return ahead
        u = a.s - street.start
        ego = self.ego
        others = [(ego.s + 1.2, ego.d, 2.2, 0.95)]
        others += [(b.s, b.d, SIZES[b.kind][1] / 2, SIZES[b.kind][0] / 2) for b in self.agents if b.direction > 0]
        for s, d, half_length, half_width in others:
            if not street.start - 2.0 < s < street.leg.end + 6.0:
                continue
            other_u, other_d, turn = street.within(s, d)
            across = half_length * math.sin(turn) + half_width * math.cos(turn)
            along = half_length * math.cos(turn) + half_width * math.sin(turn)
            gap = u - half - other_u - along
            if abs(other_d - a.d) < across + STREET_HALF + 0.3 and -2.0 < gap < ahead.gap:
                ahead = Ahead(max(gap, 0.1))
        return ahead

    def _stop_at_street(self, street: SideStreet, front: float, rear: float, speed: float, d: float) -> float | None:
        """`s` at which the front of who turns left stops to give way; None where it need not, or no longer can: those
        in the street brake for who is in their way."""
        line = street.leg.stop_line
        into = street.zone(d)[0]
        if not line - MINDED_FROM < front < into:
            return None
        users = [a for a in self.agents if a.street == street.start]
        lights = zip(self.light_legs, self.lights(), strict=True)
        waits = any(leg is street.leg and light != "green" for leg, light in lights)
        if not street.gives_way(front, rear, speed, d, users, waits):
            return None
        for stop in (line, into):
            if front < stop + 0.5 and speed * speed / (2 * max(stop - front, 0.3)) < MAY_BRAKE:
                return stop
        return None

    def _gives_way_at(self) -> float | None:
        """`s` at which the ego's front stops to give way where it turns left."""
        ego = self.ego
        for street in self.streets:
            stop = self._stop_at_street(street, ego.s + EGO_FRONT, ego.s - EGO_REAR, ego.speed, ego.d)
            if stop is not None:
                return stop
        return None

    def _target_d(self) -> float | None:
        """The middle of the lane that the ego changes to; None where it keeps its lane."""
        leg = leg_at(self.legs, self.ego.s)
        aside, slope = self._beside_route()
        if abs(aside) > 0.3 and abs(slope) > 0.1:
            return lane_offset(lane_of(self.ego.d + math.copysign(1.75, slope)))
        return lane_offset(leg.new_lane) if leg.new_lane != leg.lane else None

    def _beside_route(self) -> tuple[float, float]:
        """How far the ego is to the left of its route, and how many metres it gets further per metre along."""
        ego = self.ego
        d, slope = ego_offset(self.legs, ego.s)
        turn = math.remainder(ego.yaw - float(self.path.at(ego.s)[2]), 2 * math.pi)
        return ego.d - d, math.tan(min(max(turn, -0.8), 0.8)) - slope

    def _block_ahead(self) -> Block | None:
        """The blocked stretch of the route's lane that the ego comes to, or is beside."""
        for block in self.blocks:
            near = block.start - EGO_FRONT - MINDED_FROM < self.ego.s < block.end + EGO_REAR + 2.0
            if near and abs(ego_offset(self.legs, block.start)[0] - block.d) < 1.0:
                return block
        return None

    def _way_round(self, aside: float) -> tuple[float, float | None]:
        """Where the ego's own driver wants to be, in metres to the left of its route, and the `s` at which it has to
        stand, because its lane is blocked and the other is not free."""
        ego, block = self.ego, self._block_ahead()
        if block is None:
            back = ego.d - aside
            return (0.0 if abs(aside) < ASIDE or self._is_free(back) else aside), None
        gap, beside = block.start - ego.s - EGO_FRONT, block.free_d - block.d
        if aside / beside > 0.15 or (gap > TOO_NEAR and self._is_free(block.free_d)):
            clear = abs(ego.d - block.d) > 2.4 or gap > 6.0
            return beside, None if clear else block.start - EGO_FRONT - 1.5
        wait = block.start - EGO_FRONT - WAITS_BEFORE
        return 0.0, wait if ego.s < wait + 1.0 else max(block.start - EGO_FRONT - 2.0, ego.s + 0.1)

    def _is_free(self, d: float) -> bool:
        """Whether the ego may change to the lane whose middle is at `d`: nobody is beside it, those behind can slow
        down, and there is room behind those ahead."""
        ego = self.ego
        for a in self.agents:
            if a.direction <= 0 or a.blocks or min(abs(a.d - d), abs((a.joins or math.inf) - d)) > 1.5 or a.parked:
                continue
            half = SIZES[a.kind][1] / 2
            ahead, behind = a.s - half - ego.s - EGO_FRONT, ego.s - EGO_REAR - a.s - half
            if ahead < 6.0 + 0.5 * ego.speed and behind < 3.0 + 3.0 * max(a.speed - max(ego.speed, 3.0), 0.0):
                return False
        return True

    def _driven_ego(self) -> Ego:
        """The ego a step later, driven by its own driver."""
        ego = self.ego
        wanted = min(self.limit, SPEED_IN_TURNS) if near_turn(self.legs, ego.s, 1) else self.limit
        aside, slope = self._beside_route()
        line, stand = self._way_round(aside)
        if abs(aside - line) > ASIDE or stand is not None:
            wanted = min(wanted, SPEED_AROUND)
        if any(-20.0 < ego.s + EGO_FRONT - street.leg.stop_line < 0.0 for street in self.streets):
            wanted = min(wanted, SPEED_BEFORE_STREET)
        acceleration = follow(ego.speed, wanted, self._ahead_of_ego(), 8.0)
        gives_way_at = self._gives_way_at()
        for s in (stand, None if gives_way_at is None else gives_way_at - EGO_FRONT - 0.3):
            if s is not None:
                acceleration = min(acceleration, braking(ego.speed, s - ego.s))
        for s, standstill_gap in self._stops_of_ego():
            if s > ego.s - 1.0:
                stop = Ahead(max(s - ego.s, 0.1))
                acceleration = min(acceleration, follow(ego.speed, wanted, stop, standstill_gap))
        speed = stopped_or(ego.speed + acceleration * STEP_SECONDS)
        metres = speed * STEP_SECONDS
        if metres:
            aside, slope = steered(aside - line, slope, speed, metres)
            aside += line
        return self._ego_beside(ego.s + metres, speed, aside, slope)

    def _ego_beside(self, s: float, speed: float, aside: float, slope: float) -> Ego:
        """The ego so many metres to the left of its route, and getting further by `slope`."""
        if aside == 0.0 and abs(slope) < 1e-9:
            return self.ego_at(s, speed)
        d, along = ego_offset(self.legs, s)
        x, y, yaw = self.path.at(s, d + aside)
        return Ego(float(x), float(y), float(yaw + math.atan(along + slope)), speed, s, d + aside)

    def _ahead_of_ego(self) -> Ahead:
        """The nearest vehicle ahead of the ego in its lane, or in the lane that it changes to."""
        ego, target_d = self.ego, self._target_d()
        nearest = Ahead()
        for i, a in enumerate(self.agents):
            if a.direction <= 0 or a.blocks or a.s <= ego.s:
                continue
            places = (a.d, a.joins) if a.joining else (a.d,)
            if any(abs(d - to) < 1.5 for d in places for to in (ego.d, target_d) if to is not None):
                metres = a.s - ego.s - ego.d * (self._headings[i] - self._ego_heading)
                other = Ahead(metres - SIZES[a.kind][1] / 2 - EGO_FRONT, a.speed)
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

    def _move_joiners(self) -> None:
        """Those who change lanes, across the road."""
        for i in self._joiners:
            a = self.agents[i]
            metres = a.speed * STEP_SECONDS
            if a.joining and metres:
                slope = math.tan(a.yaw_offset)
                aside, slope = steered(a.d - a.joins, slope, a.speed, metres)
                a.d, a.yaw_offset = a.joins + aside, math.atan(slope)
                if a.d == a.joins:
                    a.joining = False
                    for members in (members for d, members in self._lanes.items() if d != a.d):
                        if i in members:
                            members.remove(i)

    def _in_streets(self) -> list[tuple[SideStreet, int]]:
        """The agents that are still in a street, beyond the place where it meets the road."""
        return [
            (street, i)
            for street in self.streets
            for i, a in enumerate(self.agents)
            if a.street == street.start and a.s > street.start
        ]

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


def next_in_lane(agents: list[Agent], lanes: dict[float, list[int]]) -> dict[int, int]:
    """For each agent in a lane the one ahead of it."""
    ahead = {}
    for members in lanes.values():
        members.sort(key=lambda i: agents[i].direction * agents[i].s)
        for i, other in zip(members, members[1:], strict=False):
            nearest = ahead.setdefault(i, other)  # who changes lanes is in two of them
            if abs(agents[other].s - agents[i].s) < abs(agents[nearest].s - agents[i].s):
                ahead[i] = other
    return ahead


def behind_bend(a: Agent, s: float) -> bool:
    """Whether an agent is still in its street, and a place lies behind the bend there: not on its way."""
    return a.street is not None and a.s > a.street and s > a.street


def has_to_pass(crosser: Agent, d: float, lane_d: float) -> bool:
    """Whether a crosser who is at `d` still has to pass a lane whose middle is at `lane_d`, or is on it."""
    return (d - lane_d) * math.copysign(1.0, -crosser.walk[1]) > -BESIDE_CROSSER
