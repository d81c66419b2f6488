"""What a scene stages for the ego: a blocked lane, a vehicle that cuts in, one that pulls out, or oncoming traffic
where the ego turns left. Pedestrians who cross are in most scenes anyway (see `agents.py`).

    name = choose_scenario(rng)
    legs = make_legs(rng, **OPENINGS[name])
    staged = stage(rng, name, legs, limit)
    agents = place_agents(rng, legs, opposite_lanes, limit, staged)

A scene stages one of them at most. How everyone behaves is in `traffic.py`.
"""

import math

import numpy as np

from data_scripts.world.agents import PARKED_FROM_KERB, SIZES, Staged, coloured
from data_scripts.world.manoeuvres import bend_ahead
from data_scripts.world.road import (
    GO_STRAIGHT,
    LANE_WIDTH,
    SAME_LANES,
    STRIP_WIDTH,
    TURN_LEFT,
    Leg,
    closed_zones,
    is_open,
    lane_offset,
    leg_at,
)

BLOCKED_LANE, CUT_IN, PULL_OUT, ONCOMING_TURN = "blocked_lane", "cut_in", "pull_out", "oncoming_turn"
CROSSING_PEDESTRIAN = "crossing_pedestrian"
# In the order in which they count where two are active at once.
SCENARIOS = (CROSSING_PEDESTRIAN, CUT_IN, PULL_OUT, ONCOMING_TURN, BLOCKED_LANE)
SHARES = {None: 0.56, BLOCKED_LANE: 0.11, CUT_IN: 0.11, PULL_OUT: 0.11, ONCOMING_TURN: 0.11}
REACHED = 78.0  # metres along the road that the ego reaches early enough
# A scenario needs room: what `make_legs` is told about the ego's route. The route does not come back across the street
# of those who come straight on.
OPENINGS = {
    None: {},
    BLOCKED_LANE: {"opening": (GO_STRAIGHT,) * 2},
    CUT_IN: {"opening": (GO_STRAIGHT,) * 2},
    PULL_OUT: {"opening": (GO_STRAIGHT,) * 2, "lane": SAME_LANES - 1},
    ONCOMING_TURN: {"opening": (GO_STRAIGHT, TURN_LEFT), "rightmost": 0},
}


def choose_scenario(rng) -> str | None:
    """What a scene stages."""
    return rng.choice(np.array(list(SHARES), dtype=object), p=list(SHARES.values()))


def stage(rng, name: str | None, legs: list[Leg], limit: float) -> Staged:
    """Everything that a scenario puts on the road; nothing where the route has no place for it.

    Args:
        rng: numpy's generator; the order of the draws is part of the world's version.
        name: what is staged.
        legs: the ego's route, with the scenario's opening.
        limit: speed limit in m/s.
    """
    staged = None if name is None else STAGES[name](rng, legs, limit)
    return staged or Staged()


def straight_places(legs: list[Leg], before: float, behind: float) -> list[float]:
    """Places that the ego comes to, and around which its route neither bends nor changes lanes."""
    places = np.arange(34.0, REACHED, 2.0).tolist()
    return [s for s in places if not bend_ahead(legs, s - before, s + behind)]


def stage_blocked_lane(rng, legs: list[Leg], limit: float) -> Staged | None:
    """A parked vehicle in the ego's lane, or roadworks that close it."""
    zones = closed_zones(legs)
    places = [s for s in straight_places(legs, 26.0, 26.0) if is_open(zones, s - 2, s + 12)]
    if not places:
        return None
    s = float(rng.choice(places))
    lane = leg_at(legs, s).lane
    d, kind = lane_offset(lane), str(rng.choice(["car", "truck", "cones", "barriers"]))
    far = 1.0 if lane == 0 else -1.0  # a row of cones leads to the free lane
    closes = {"direction": 1, "blocks": True}
    if kind in SIZES:
        agents = [coloured(rng, kind, s + SIZES[kind][1] / 2, d, parked=True, **closes)]
    else:
        if kind == "cones":
            row = ((0.0, -1.3), (0.8, -0.4), (1.6, 0.4), (2.4, 1.3))
            agents = [coloured(rng, "traffic cone", s + along, d + far * across, **closes) for along, across in row]
        else:
            agents = [coloured(rng, "barrier", s + 1.5, d, yaw_offset=math.pi / 2, **closes)]
        agents.append(coloured(rng, "construction vehicle", s + 6.5, d, parked=True, **closes))
    end = max(a.s + SIZES[a.kind][1] / 2 for a in agents)
    ahead = {(leg.lane, -5.0, end + 14.0) for leg in legs if leg.start < end}
    # Nobody else's place: neither the ego's lane before the block nor a crosser beside it.
    return Staged(agents, lanes=sorted({(lane, -30.0, end + 14.0)} | ahead), strips=[(s - 30.0, end + 14.0)])


def stage_cut_in(rng, legs: list[Leg], limit: float) -> Staged | None:
    """A car or a motorcycle in the lane beside the ego, which changes into the ego's lane before it."""
    places = [s for s in straight_places(legs, 30.0, 30.0) if s < 66.0]
    lane = legs[0].lane if legs[0].new_lane == legs[0].lane else legs[0].new_lane
    lanes = {leg_at(legs, s).lane for s in places}
    if not places or lanes != {lane}:
        return None
    for leg in legs[: len(OPENINGS[CUT_IN]["opening"])]:
        leg.has_light = False  # nobody cuts in where all brake for a light
    kind, other = str(rng.choice(["car", "motorcycle", "truck"])), 1 - lane
    wanted = limit * float(rng.uniform(0.6, 0.8))
    agent = coloured(rng, kind, float(rng.uniform(13, 20)), lane_offset(other), direction=1, speed=0.75 * limit)
    agent.wanted_speed, agent.rider = wanted, kind == "motorcycle"
    agent.joins, agent.joins_after = lane_offset(lane), float(rng.uniform(1.0, 5.0))
    return Staged([agent], lanes=[(lane, 0.0, 95.0), (other, -12.0, 75.0)])


def stage_pull_out(rng, legs: list[Leg], limit: float) -> Staged | None:
    """A parked car that pulls out into the ego's lane, the outer one."""
    zones = closed_zones(legs)
    places = [s for s in straight_places(legs, 28.0, 24.0) if leg_at(legs, s).lane == SAME_LANES - 1]
    places = [s for s in places if is_open(zones, s - 4, s + 4)]
    if not places:
        return None
    s = float(rng.choice(places))
    d = -LANE_WIDTH * SAME_LANES - (STRIP_WIDTH - PARKED_FROM_KERB)
    agent = coloured(rng, "car", s, d, direction=1, parked=True)
    agent.wanted_speed, agent.joins = limit * float(rng.uniform(0.6, 0.9)), lane_offset(SAME_LANES - 1)
    lanes = [(lane, -10.0 if lane == SAME_LANES - 1 else 0.0, s + 16.0) for lane in {leg.lane for leg in legs[:3]}]
    return Staged([agent], lanes=lanes, strips=[(s - 6.0, s + 20.0)], crossers=[(s - 35.0, s + 30.0)], cyclists=False)


def stage_oncoming_turn(rng, legs: list[Leg], limit: float) -> Staged | None:
    """Vehicles that come along the street which leads straight on where the ego turns left."""
    turns = [leg for leg in legs if leg.action == TURN_LEFT and 24.0 < leg.bend_start < 82.0]
    if not turns:
        return None
    start, end = turns[0].bend_start, turns[0].end
    agents, arrives = [], start / (0.8 * limit)
    u = (arrives - float(rng.uniform(0.0, 1.5))) * 0.75 * limit
    for _ in range(int(rng.integers(2, 5))):
        kind = str(rng.choice(["car", "truck", "bus", "motorcycle"], p=[0.5, 0.2, 0.15, 0.15]))
        agent = coloured(rng, kind, start + u, lane_offset(-1), direction=-1, street=start, yaw_offset=math.pi)
        agent.speed, agent.rider = 0.75 * limit, kind == "motorcycle"
        agent.wanted_speed = 0.8 * limit
        agents.append(agent)
        u += float(rng.uniform(16.0, 30.0))
    lanes = [(lane, -12.0, end + 26.0) for lane in range(SAME_LANES)]
    lanes += [(-1, start - 30.0, start + u + 20.0)]
    green = (1.5 - arrives) % 13.0  # the light turns green shortly before the ego comes
    return Staged(
        agents,
        lanes=lanes,
        crossers=[(start - 30.0, end + 20.0)],
        walkers=[(start - 30.0, end + 30.0)],
        cyclists=False,
        green=(start, green),
    )


STAGES = {
    BLOCKED_LANE: stage_blocked_lane,
    CUT_IN: stage_cut_in,
    PULL_OUT: stage_pull_out,
    ONCOMING_TURN: stage_oncoming_turn,
}
