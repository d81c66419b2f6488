"""One synthetic scene from beginning to end: its road, who is on it, and 20 s of traffic.

Frames and units: metres, seconds, radians. `global` is a flat map frame with z up; the ego frame has x forward, y
left, z up and its origin on the ground below the rear axle, as in nuScenes. `s` and `d` run along and across the road
(see `road.py`).
"""

from dataclasses import dataclass, field

import numpy as np

from data_scripts.world.agents import Agent, place_agents
from data_scripts.world.road import (
    CHANGE_LEFT,
    CHANGE_RIGHT,
    LANE_WIDTH,
    PATH_BEHIND,
    PAVEMENT_WIDTH,
    SAME_LANES,
    STRIP_WIDTH,
    TURN_LEFT,
    TURN_RIGHT,
    Leg,
    Path,
    closed_zones,
    is_open,
    make_legs,
    make_path,
)
from data_scripts.world.scenarios import (
    BLOCKED_LANE,
    CROSSING_PEDESTRIAN,
    CUT_IN,
    ONCOMING_TURN,
    OPENINGS,
    PULL_OUT,
    SCENARIOS,
    choose_scenario,
    stage,
)
from data_scripts.world.traffic import EGO_FRONT, STEP_SECONDS, Traffic

SCENE_SECONDS = 20.0
SAMPLE_SECONDS = 0.5
SAMPLES_PER_SCENE = int(SCENE_SECONDS / SAMPLE_SECONDS)
STEPS_PER_SAMPLE = int(SAMPLE_SECONDS / STEP_SECONDS)

# Speed limit in m/s: drivers are slower where the picture is worse.
MATTERS_FOR = round(3 / SAMPLE_SECONDS)  # moments in which a scenario must be active to matter now
WEATHERS = {"clear": 9.0, "overcast": 8.5, "dusk": 8.0, "rain": 6.5, "night": 7.0}


@dataclass(frozen=True)
class House:
    """A house beside the road: global x, y (m) and yaw of its middle, its size in metres, and its colour's number."""

    x: float
    y: float
    yaw: float
    length: float  # along the road
    depth: float
    height: float
    colour: int


@dataclass
class Scene:
    """A simulated scene. Arrays run over the SAMPLES_PER_SCENE moments at 2 Hz (T), then over agents (N) or lights
    (L)."""

    seed: int
    index: int
    weather: str
    opposite_lanes: int
    path: Path
    legs: list[Leg]
    agents: list[Agent]
    ego: np.ndarray  # (T, 4): global x, y, yaw; speed
    ego_s: np.ndarray  # (T,)
    ego_d: np.ndarray  # (T,)
    poses: np.ndarray  # (T, N, 4): global x, y, yaw; speed
    road: np.ndarray  # (T, N, 2): s, d
    statuses: np.ndarray  # (T, N) of str: moving, stopped, parked, standing, or "" for things
    light_legs: list[Leg]
    light_colours: np.ndarray  # (T, L) of str
    active: list[list[str]]  # T: what the ego has to deal with at each moment, of SCENARIOS
    description: str = ""
    asphalt: int = 0  # its grey
    ground: int = 0  # number of the colour beside the road
    houses: list[House] = field(default_factory=list)

    @property
    def scenarios(self) -> list[str]:
        """What the ego has to deal with in this scene, in the order of SCENARIOS."""
        return [name for name in SCENARIOS if any(name in names for names in self.active)]

    def scenario_at(self, t: int) -> str | None:
        """What matters for the ego from moment `t` to 3 s later: what is active first."""
        return next((names[0] for names in self.active[t : t + MATTERS_FOR + 1] if names), None)

    @property
    def kerb_left(self) -> float:
        return LANE_WIDTH * self.opposite_lanes + STRIP_WIDTH

    @property
    def kerb_right(self) -> float:
        return -(LANE_WIDTH * SAME_LANES + STRIP_WIDTH)


@dataclass
class SceneStart:
    """A scene at time 0, and the generator of what is drawn for it later."""

    rng: np.random.Generator
    weather: str
    opposite_lanes: int
    traffic: Traffic


def start_scene(seed: int, index: int) -> SceneStart:
    """The scene `index` of the world `seed` before anyone drives."""
    rng = np.random.default_rng([seed, index])
    weather = str(rng.choice(list(WEATHERS), p=[0.3, 0.25, 0.15, 0.15, 0.15]))
    limit, opposite_lanes = WEATHERS[weather], 1 if rng.random() < 0.7 else 2
    name = choose_scenario(rng)
    legs = make_legs(rng, **OPENINGS[name])
    path = make_path(rng, legs)
    staged = stage(rng, name, legs, limit)
    agents = place_agents(rng, legs, opposite_lanes, limit, staged)
    light_legs = [leg for leg in legs if leg.has_light]
    phases = rng.uniform(0, 13, len(light_legs)).tolist()
    if staged.green is not None:
        start, phase = staged.green
        phases = [phase if leg.bend_start == start else old for leg, old in zip(light_legs, phases, strict=True)]
    traffic = Traffic(path, legs, agents, limit, phases, ego_speed=limit * float(rng.uniform(0.5, 0.9)))
    return SceneStart(rng, weather, opposite_lanes, traffic)


def simulate_scene(seed: int, index: int) -> Scene:
    """The scene `index` of the world `seed`; depends on nothing else."""
    start = start_scene(seed, index)
    rng, traffic = start.rng, start.traffic
    road = start.opposite_lanes, traffic.path, traffic.legs, traffic.agents
    scene = Scene(seed, index, start.weather, *road, light_legs=traffic.light_legs, **recorded(traffic))
    scene.description = describe(scene)
    scene.asphalt, scene.ground = int(rng.integers(70, 105)), int(rng.integers(4))
    scene.houses = place_houses(rng, scene)
    return scene


def recorded(traffic: Traffic) -> dict[str, np.ndarray]:
    """Drive everyone for the scene's time; the arrays of a Scene, by its fields."""
    egos, poses, places, statuses, lights, active = [], [], [], [], [], []
    for _ in range(SAMPLES_PER_SCENE):
        egos.append(traffic.ego)
        poses.append(traffic.poses())
        places.append(traffic.places())
        statuses.append(traffic.statuses())
        lights.append(traffic.lights())
        active.append(traffic.scenarios())
        for _ in range(STEPS_PER_SAMPLE):
            traffic.step()
    return {
        "ego": np.array([(ego.x, ego.y, ego.yaw, ego.speed) for ego in egos]),
        "ego_s": np.array([ego.s for ego in egos]),
        "ego_d": np.array([ego.d for ego in egos]),
        "poses": np.array(poses),
        "road": np.array(places),
        "statuses": np.array(statuses, dtype=object),
        "light_colours": np.array(lights, dtype=object),
        "active": active,
    }


def place_houses(rng, scene: Scene) -> list[House]:
    """Houses beside the straight parts of the road."""
    houses = []
    zones = [(low - 8.0, high + 8.0) for low, high in closed_zones(scene.legs)]
    for side, kerb in ((-1, scene.kerb_right), (1, scene.kerb_left)):
        s = -PATH_BEHIND
        while s < scene.legs[-1].end + 60.0:
            length = float(rng.uniform(8, 16))
            depth, height, colour = 8.0, float(rng.uniform(4, 12)), int(rng.integers(6))
            if rng.random() < 0.75 and is_open(zones, s, s + length):
                d = kerb + side * (PAVEMENT_WIDTH + 2.0 + depth / 2)
                x, y, yaw = scene.path.at(s + length / 2, d)
                houses.append(House(float(x), float(y), float(yaw), length, depth, height, colour))
            s += length + float(rng.uniform(1, 10))
    return houses


STORIES = {
    CROSSING_PEDESTRIAN: "lets a pedestrian cross",
    CUT_IN: "makes room for a vehicle that cuts in",
    PULL_OUT: "makes room for a car that pulls out",
    ONCOMING_TURN: "gives way to oncoming traffic",
    BLOCKED_LANE: "comes to a blocked lane",
}


def describe(scene: Scene) -> str:
    """One sentence about the whole clip, as DriveLM's `scene_description`."""
    last = scene.ego_s[-1]
    verbs = {TURN_LEFT: "turns left", TURN_RIGHT: "turns right"}
    verbs |= {CHANGE_LEFT: "changes to the left lane", CHANGE_RIGHT: "changes to the right lane"}
    parts = [verbs[leg.action] for leg in scene.legs if leg.action in verbs and leg.bend_start + 10.0 < last]
    parts = parts[:3] or ["goes straight"]
    parts += [STORIES[name] for name in scene.scenarios]
    stopped = scene.ego[:, 3] == 0
    if stopped.any():
        s = scene.ego_s[stopped]
        at_light = any((abs(leg.stop_line - EGO_FRONT - s) < 4.0).any() for leg in scene.light_legs)
        parts.append("stops at a red light" if at_light else "stops behind the traffic ahead")
    sentence = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    setting = {"rain": " in the rain", "night": " at night", "dusk": " at dusk"}.get(scene.weather, "")
    return f"The ego vehicle {sentence}{setting}."
