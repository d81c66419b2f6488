"""Counterfactual pairs: one moment of a synthetic scene twice, as it was and with one thing changed.

Time, ego, route and the way driven so far are the same in both. The ego's own driver is driven on for 3 s in both, and
everyone reacts to it: that gives both labels. So a function of the ego's status alone must answer both alike, and
only who looks at the pictures can do better. What is changed (`KINDS`):

    light switched      a light 10 to 25 m ahead is green instead of red, or red instead of green
    leader removed      the vehicle that the ego follows is gone, its trailer too
    stopped car put     a car stands in the ego's lane, 12 to 25 m ahead
    pedestrian removed  who crosses in front of the ego is gone

A light that is switched keeps its colour for the 3 s, in both versions: no picture tells when it would change.

A pair counts only where the front camera shows what was changed, and where the expert drives at least MIN_DIFFERENCE
further because of it. Rarely a change has the opposite effect: without the leader a pedestrian begins to cross, for
example. Such a pair is left out.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from data_scripts.world.agents import COLOURS, SIZES, Agent
from data_scripts.world.expert import ExpertDrive, copied, driven_on
from data_scripts.world.ground import GroundMap
from data_scripts.world.render import Renderer
from data_scripts.world.road import closed_zones, is_open
from data_scripts.world.sight import frame_of
from data_scripts.world.simulation import (
    SAMPLES_PER_SCENE,
    STEPS_PER_SAMPLE,
    Scene,
    simulate_scene,
    start_scene,
)
from data_scripts.world.traffic import EGO_FRONT, Traffic, has_to_pass

FIRST_MOMENT = 4  # the first with 2 s of history
TRIES = 10  # moments of a scene at which a change is tried; the first that gives a pair is taken
MIN_DIFFERENCE = 2.0  # metres between the lengths of the expert's ways
LIGHT_NEAR, LIGHT_FAR = 10.0, 25.0  # metres from the ego's front to the stop line
CAR_NEAR, CAR_FAR = 12.0, 25.0  # metres from the ego's front to the car that is put
CAR_ROOM = 2.0  # metres that stay free before and behind it
LEADER_FAR = 25.0  # metres from the ego's front to the leader
CROSSER_FAR = 28.0  # metres from the ego's rear axle to a crosser
RED_FROM, GREEN_FROM = 7.0, 0.0  # seconds of a light's cycle

TOO_ALIKE = f"the expert's ways differ by less than {MIN_DIFFERENCE:g} m"
OPPOSITE = "the expert's way differs for another reason"
NOT_SEEN = "the front camera does not show the change"


@dataclass(frozen=True)
class Change:
    """A moment's traffic in both versions, and what the front camera must show: an agent in one of them, or a light
    in both."""

    as_it_was: Traffic
    changed: Traffic
    further: bool  # whether the ego can drive further in the changed version
    agent: int | None = None  # its number in the version that has it; None: a light
    put: bool = False  # the agent is in the changed version, not in the one as it was


@dataclass(frozen=True)
class Pair:
    """A moment of a scene as it was, and changed."""

    scene: Scene  # as it was simulated
    t: int  # number of the 2 Hz moment
    kind: str
    as_it_was: ExpertDrive
    changed: ExpertDrive

    @property
    def wanted(self) -> float:
        """Metres by which the expert drives further in the changed version."""
        return self.changed.length - self.as_it_was.length


@dataclass(frozen=True)
class ScenePairs:
    """The pairs of a scene, what their pictures are painted on, and how many changes gave none, by (kind, reason)."""

    ground: GroundMap
    pairs: list[Pair]
    left_out: Counter


def scene_pairs(seed: int, index: int, renderer: Renderer) -> ScenePairs:
    """At most one pair of each kind of a scene.

    Depends on seed and index alone, whatever the renderer's picture size.
    """
    scene = simulate_scene(seed, index)
    ground, moments = GroundMap(scene), dict(moments_of(seed, index))
    pairs, left_out = [], Counter()
    for number, (kind, make_change) in enumerate(CHANGES.items()):
        rng = np.random.default_rng([seed, index, number])
        changes = ((t, make_change(moments[t], rng)) for t in rng.permutation(list(moments)).tolist())
        possible = ((t, change) for t, change in changes if change is not None)
        for t, change in itertools.islice(possible, TRIES):
            pair = Pair(scene, t, kind, driven_on(change.as_it_was), driven_on(change.changed))
            reason = fault_of(pair, change, renderer, ground)
            if reason is None:
                pairs.append(pair)
                break
            left_out[kind, reason] += 1
    return ScenePairs(ground, pairs, left_out)


def moments_of(seed: int, index: int) -> Iterator[tuple[int, Traffic]]:
    """The 2 Hz moments of a scene with 2 s of history, each a copy that may be driven on."""
    traffic = start_scene(seed, index).traffic
    for t in range(SAMPLES_PER_SCENE):
        if t >= FIRST_MOMENT:
            yield t, copied(traffic)
        for _ in range(STEPS_PER_SAMPLE):
            traffic.step()


def scene_at(scene: Scene, t: int, traffic: Traffic) -> Scene:
    """The scene with its moment `t` as the traffic is; only this moment of it may be rendered."""
    arrays = {
        "poses": traffic.poses(),
        "road": traffic.places(),
        "statuses": np.array(traffic.statuses(), dtype=object),
        "light_colours": np.array(traffic.lights(), dtype=object),
    }
    arrays = {name: np.broadcast_to(now, (t + 1, *now.shape)) for name, now in arrays.items()}
    return replace(scene, agents=traffic.agents, **arrays)


def fault_of(pair: Pair, change: Change, renderer: Renderer, ground: GroundMap) -> str | None:
    """Why a pair does not count; None where it does."""
    if abs(pair.wanted) < MIN_DIFFERENCE:
        return TOO_ALIKE
    if (pair.wanted > 0) != change.further:
        return OPPOSITE
    versions = (pair.as_it_was, pair.changed)
    if change.agent is not None:
        versions = versions[change.put : change.put + 1]
    for version in versions:
        scene = scene_at(pair.scene, pair.t, version.traffic)
        frame = frame_of(scene, pair.t, renderer.render(scene, ground, pair.t)[1])
        if change.agent is None and frame.light() is None:
            return NOT_SEEN
        if change.agent is not None and all(o.agent != change.agent for o in frame.in_camera("CAM_FRONT")):
            return NOT_SEEN
    return None


def switch_light(traffic: Traffic, rng) -> Change | None:
    """The next light, where it is red or green."""
    ahead = [i for i, leg in enumerate(traffic.light_legs) if leg.stop_line > traffic.ego.s + EGO_FRONT]
    if not ahead:
        return None
    light, now = ahead[0], traffic.lights()[ahead[0]]
    if now == "yellow":
        return None
    if not LIGHT_NEAR <= traffic.light_legs[light].stop_line - traffic.ego.s - EGO_FRONT <= LIGHT_FAR:
        return None
    red, green = copied(traffic), copied(traffic)
    red.phases[light], green.phases[light] = RED_FROM - traffic.time, GREEN_FROM - traffic.time
    return Change(red, green, further=True) if now == "red" else Change(green, red, further=False)


def remove_leader(traffic: Traffic, rng) -> Change | None:
    """The nearest vehicle ahead in the ego's lane, with its trailer."""
    ego = traffic.ego
    ahead = [i for i, a in enumerate(traffic.agents) if a.direction > 0 and a.s > ego.s and abs(a.d - ego.d) < 1.5]
    if not ahead:
        return None
    leader = min(ahead, key=lambda i: traffic.agents[i].s)
    a = traffic.agents[leader]
    if a.s - a.size[1] / 2 - ego.s - EGO_FRONT > LEADER_FAR:
        return None
    gone = {leader} if a.towed_by is None else {leader, a.towed_by}
    gone |= {i for i, other in enumerate(traffic.agents) if other.towed_by in gone}
    return Change(traffic, without(traffic, gone), further=True, agent=leader)


def remove_pedestrian(traffic: Traffic, rng) -> Change | None:
    """The nearest of those who cross in front of the ego."""
    ego = traffic.ego
    crossing = [
        i
        for i, a in enumerate(traffic.agents)
        if a.crossing and a.speed > 0 and has_to_pass(a, a.d, ego.d) and 0 < a.s - ego.s < CROSSER_FAR
    ]
    if not crossing:
        return None
    nearest = min(crossing, key=lambda i: traffic.agents[i].s)
    return Change(traffic, without(traffic, {nearest}), further=True, agent=nearest)


def without(traffic: Traffic, gone: set[int]) -> Traffic:
    """A copy in which these agents are not there."""
    changed = copied(traffic)
    places = {old: new for new, old in enumerate(i for i in range(len(traffic.agents)) if i not in gone)}
    agents = [changed.agents[old] for old in places]
    for a in agents:
        a.towed_by = None if a.towed_by is None else places[a.towed_by]
    changed.replace_agents(agents)
    return changed


def put_car(traffic: Traffic, rng) -> Change | None:
    """A car that stands in the ego's lane, where the lane goes on and nobody is in the way."""
    ego, length = traffic.ego, SIZES["car"][1]
    s = ego.s + EGO_FRONT + float(rng.uniform(CAR_NEAR, CAR_FAR)) + length / 2
    colour = COLOURS["car"][int(rng.integers(len(COLOURS["car"])))]
    d = traffic.ego_at(s, 0.0).d
    keeps_lane = all(abs(traffic.ego_at(at, 0.0).d - ego.d) < 0.01 for at in np.arange(ego.s, s + length, 1.0))
    if not keeps_lane or not is_open(closed_zones(traffic.legs), s - length / 2, s + length / 2):
        return None
    for a in traffic.agents:
        room = (length + a.size[1]) / 2 + CAR_ROOM
        on_the_way = a.direction > 0 and ego.s < a.s < s  # it would hide the car, and stop the ego first
        if abs(a.d - d) < 2.2 and (abs(a.s - s) < room or on_the_way):
            return None
    changed = copied(traffic)
    changed.replace_agents([*changed.agents, Agent("car", colour, s, d, direction=1)])
    return Change(traffic, changed, further=False, agent=len(traffic.agents), put=True)


CHANGES: dict[str, Callable[[Traffic, np.random.Generator], Change | None]] = {
    "light switched": switch_light,
    "leader removed": remove_leader,
    "stopped car put": put_car,
    "pedestrian removed": remove_pedestrian,
}
KINDS = tuple(CHANGES)
