"""The traffic of one synthetic scene: a road, the ego car that follows it, and everything around it.

Frames and units: metres, seconds, radians. `global` is a flat map frame with z up; the ego frame has x forward, y
left, z up and its origin on the ground below the rear axle, as in nuScenes. Along the road, `s` is the arc length of
the road's reference line (the line between the two directions of traffic) and `d` the offset to its left; traffic
keeps to the right.

A scene is a chain of legs. On each leg the ego has one target action (go straight, turn, change lane), which arrows on
its lane announce. The ego and the traffic follow the Intelligent Driver Model (Treiber, Hennecke, Helbing 2000), and
react to whoever is ahead of them in their lane, to red lights and to pedestrians who cross.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

SCENE_SECONDS = 20.0
SAMPLE_SECONDS = 0.5
SAMPLES_PER_SCENE = int(SCENE_SECONDS / SAMPLE_SECONDS)
STEP_SECONDS = 0.25

# Width, length, height in metres, in nuScenes' order of a box's size.
SIZES = {
    "car": (1.9, 4.5, 1.65),
    "truck": (2.5, 7.0, 3.2),
    "bus": (2.6, 10.5, 3.4),
    "trailer": (2.5, 7.5, 3.0),
    "construction vehicle": (2.5, 5.5, 3.2),
    "pedestrian": (1.2, 1.2, 1.8),  # limbs of a walking figure included
    "bicycle": (0.6, 1.8, 1.2),
    "motorcycle": (0.9, 2.2, 1.25),
    "traffic cone": (0.7, 0.7, 1.1),
    "barrier": (0.5, 2.2, 1.1),
}
RIDER_HEIGHT = 1.85
MOTOR_VEHICLES = ("car", "truck", "bus", "trailer", "construction vehicle")

COLOURS = {
    "car": ("white", "blue", "black", "green"),
    "truck": ("brown", "tan"),
    "bus": ("purple", "teal"),
    "trailer": ("gray",),
    "construction vehicle": ("yellow",),
    "pedestrian": ("pink", "white", "light blue"),
    "bicycle": ("cyan",),
    "motorcycle": ("lime",),
    "traffic cone": ("orange",),
    "barrier": ("red and white",),
}

LANE_WIDTH = 3.5
SAME_LANES = 2  # lanes in the ego's direction; 0 is the inner one
STRIP_WIDTH = 2.8  # the parking strip between the outer lane and the kerb
PAVEMENT_WIDTH = 3.0
TURN_RADIUS = 14.0  # of the reference line
PATH_STEP = 0.5
PATH_BEHIND = 60.0
EGO_FRONT, EGO_REAR = 3.4, 1.0  # bumpers, from the rear axle
LIGHT_BEYOND_LINE = 11.0  # a signal hangs over the junction, this far behind the stop line

GO_STRAIGHT, TURN_LEFT, TURN_RIGHT = "Go straight.", "Turn left.", "Turn right."
CHANGE_LEFT, CHANGE_RIGHT = "Change to the left lane.", "Change to the right lane."

# Speed limit in m/s: drivers are slower where the picture is worse.
WEATHERS = {"clear": 9.0, "overcast": 8.5, "dusk": 8.0, "rain": 6.5, "night": 7.0}


@dataclass
class Path:
    """The reference line of the road, sampled every PATH_STEP from s = -PATH_BEHIND."""

    x: np.ndarray
    y: np.ndarray
    yaw: np.ndarray

    def at(self, s, d=0.0):
        """Global x, y and yaw of the points `s`, `d` (scalars or arrays of one shape)."""
        grid = (np.asarray(s, dtype=float) + PATH_BEHIND) / PATH_STEP
        index = np.clip(grid.astype(int), 0, len(self.x) - 2)
        part = grid - index
        x = self.x[index] + part * (self.x[index + 1] - self.x[index])
        y = self.y[index] + part * (self.y[index + 1] - self.y[index])
        yaw = self.yaw[index] + part * (self.yaw[index + 1] - self.yaw[index])
        return x - d * np.sin(yaw), y + d * np.cos(yaw), yaw


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
    def stop_line(self) -> float:
        return self.junction - 9.0 if self.bend_start is None else self.bend_start - 2.0

    @property
    def oncoming_line(self) -> float:
        return self.junction + 9.0 if self.bend_start is None else self.end + 2.0


@dataclass
class Agent:
    """One road user or thing. `direction` is +1 along the ego's direction, -1 against it, 0 for what has no lane."""

    kind: str
    colour: str
    s: float
    d: float
    direction: int = 0
    speed: float = 0.0
    wanted_speed: float = 0.0
    parked: bool = False
    rider: bool = False
    yaw_offset: float = 0.0
    stop_from: float = math.inf  # stops in its lane during these seconds
    stop_until: float = math.inf
    towed_by: int | None = None
    crossing: bool = False  # a pedestrian who crosses the road when the ego comes near
    walk: tuple[float, float] = (0.0, 0.0)  # speeds along s and d of who has no lane

    @property
    def size(self) -> tuple[float, float, float]:
        width, length, height = SIZES[self.kind]
        return (width, length, RIDER_HEIGHT if self.rider else height)


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
    description: str = ""
    asphalt: int = 0  # its grey
    ground: int = 0  # number of the colour beside the road
    houses: list[tuple] = field(default_factory=list)  # see `place_houses`

    @property
    def kerb_left(self) -> float:
        return LANE_WIDTH * self.opposite_lanes + STRIP_WIDTH

    @property
    def kerb_right(self) -> float:
        return -(LANE_WIDTH * SAME_LANES + STRIP_WIDTH)


def lane_offset(lane: int) -> float:
    """`d` of the middle of a lane: 0, 1 in the ego's direction; -1, -2 for oncoming traffic."""
    return -(lane + 0.5) * LANE_WIDTH


def ego_offset(legs: list[Leg], s: float) -> tuple[float, float]:
    """The ego's `d` at `s` and its slope dd/ds; a lane change takes 18 m."""
    leg = leg_at(legs, s)
    before, after = lane_offset(leg.lane), lane_offset(leg.new_lane)
    if leg.lane == leg.new_lane or s <= leg.bend_start:
        return before, 0.0
    part = min((s - leg.bend_start) / 18.0, 1.0)
    return before + (after - before) * part * part * (3 - 2 * part), (after - before) * 6 * part * (1 - part) / 18.0


def leg_at(legs: list[Leg], s: float) -> Leg:
    for leg in legs:
        if s < leg.end:
            return leg
    return legs[-1]


def simulate_scene(seed: int, index: int) -> Scene:
    """The scene `index` of the world `seed`; depends on nothing else."""
    rng = np.random.default_rng([seed, index])
    weather = str(rng.choice(list(WEATHERS), p=[0.3, 0.25, 0.15, 0.15, 0.15]))
    opposite_lanes = 1 if rng.random() < 0.7 else 2
    legs, path = make_route(rng)
    agents = place_agents(rng, legs, opposite_lanes, WEATHERS[weather])
    light_legs = [leg for leg in legs if leg.has_light]
    phases = rng.uniform(0, 13, len(light_legs))
    driven = run_traffic(rng, path, legs, agents, light_legs, phases, WEATHERS[weather])
    scene = Scene(seed, index, weather, opposite_lanes, path, legs, agents, **driven)
    scene.description = describe(scene)
    scene.asphalt, scene.ground = int(rng.integers(70, 105)), int(rng.integers(4))
    scene.houses = place_houses(rng, scene)
    return scene


def make_route(rng) -> tuple[list[Leg], Path]:
    """Legs for 20 s of driving and more, and the reference line they follow. The heading stays within 90 degrees of
    the first one, so that the road never crosses itself."""
    legs, bends, s, lane, quarter = [], [], 0.0, int(rng.integers(SAME_LANES)), 0
    while s < 270.0:
        options = [GO_STRAIGHT, CHANGE_LEFT if lane > 0 else CHANGE_RIGHT]
        options += [TURN_LEFT] * (quarter < 1) + [TURN_RIGHT] * (quarter > -1)
        action = str(rng.choice(options))
        # The first leg has begun before the scene does.
        begin = s - (float(rng.uniform(0, 30)) if not legs else 0.0)
        if action == GO_STRAIGHT:
            length = float(rng.uniform(34, 46))
            leg = Leg(begin, begin + length, action, lane, lane)
            if rng.random() < 0.9 and begin + length - 14.0 > s + 18.0:
                leg.junction, leg.has_light = begin + length - 14.0, bool(rng.random() < 0.9)
        elif action in (TURN_LEFT, TURN_RIGHT):
            straight, arc = float(rng.uniform(28, 38)), math.pi / 2 * TURN_RADIUS
            leg = Leg(begin, begin + straight + arc, action, lane, lane, bend_start=begin + straight)
            leg.junction = leg.bend_start + arc / 2
            leg.has_light = bool(rng.random() < 0.65) and leg.stop_line > s + 12.0
            sign = 1 if action == TURN_LEFT else -1
            quarter += sign
            bends.append((leg.bend_start, arc, sign / TURN_RADIUS))
        else:
            lane_after = lane - 1 if action == CHANGE_LEFT else lane + 1
            start = begin + float(rng.uniform(18, 26))
            leg = Leg(begin, start + 18.0, action, lane, lane_after, bend_start=start)
            lane = lane_after
        legs.append(leg)
        s = leg.end
    grid = np.arange(-PATH_BEHIND, s + 120.0, PATH_STEP)
    curvature = np.zeros_like(grid)
    for start, length, value in bends:
        # The share of each step that lies in the arc, so that every turn is 90 degrees to the digit.
        inside = np.clip(np.minimum(grid + PATH_STEP, start + length) - np.maximum(grid, start), 0, PATH_STEP)
        curvature += value * inside / PATH_STEP
    yaw = float(rng.uniform(-math.pi, math.pi)) + np.concatenate([[0.0], np.cumsum(curvature[:-1] * PATH_STEP)])
    middle = yaw + curvature * PATH_STEP / 2
    x = float(rng.uniform(300, 1700)) + np.concatenate([[0.0], np.cumsum(np.cos(middle[:-1]) * PATH_STEP)])
    y = float(rng.uniform(300, 1700)) + np.concatenate([[0.0], np.cumsum(np.sin(middle[:-1]) * PATH_STEP)])
    return legs, Path(x, y, yaw)


def closed_zones(legs: list[Leg]) -> list[tuple[float, float]]:
    """Intervals of s that belong to junctions: nothing is parked or built there."""
    zones = []
    for leg in legs:
        if leg.action in (TURN_LEFT, TURN_RIGHT):
            zones.append((leg.bend_start - 4.0, leg.end + 4.0))
        elif leg.junction is not None:
            zones.append((leg.junction - 9.0, leg.junction + 9.0))
    return zones


def is_open(zones, start: float, end: float) -> bool:
    return all(end < low or start > high for low, high in zones)


def place_agents(rng, legs, opposite_lanes: int, limit: float) -> list[Agent]:
    """Everything that is on the road and beside it when the scene begins."""
    zones, end = closed_zones(legs), legs[-1].end + 40.0
    agents = []

    def new(kind, s, d, **more):
        colour = COLOURS[kind][int(rng.integers(len(COLOURS[kind])))]
        agents.append(Agent(kind, colour, float(s), float(d), **more))
        return agents[-1]

    # Beside the lanes: what is parked, and roadworks.
    slots = ("car", "truck", "bus", "trailer", "construction vehicle", "bicycle", "motorcycle", "cones", "barriers")
    for side, outer_lane_edge in ((-1, -LANE_WIDTH * SAME_LANES), (1, LANE_WIDTH * opposite_lanes)):
        d = outer_lane_edge + side * STRIP_WIDTH / 2
        s = -45.0 + rng.uniform(0, 15)
        while s < end:
            kind = str(rng.choice(slots, p=[0.13, 0.07, 0.06, 0.07, 0.08, 0.09, 0.10, 0.20, 0.20]))
            if kind in ("cones", "barriers"):
                kind = "traffic cone" if kind == "cones" else "barrier"
                count, step = int(rng.integers(1, 5)), 3.0
                length = step * count
                if is_open(zones, s, s + length):
                    for i in range(count):
                        new(kind, s + i * step, d - side * 0.5)
            else:
                length = SIZES[kind][1]
                if is_open(zones, s, s + length):
                    yaw = 0.0 if side < 0 else math.pi
                    new(kind, s + length / 2, d, parked=True, yaw_offset=yaw)
            s += length + rng.uniform(5, 17)
    # On the pavement.
    for side, kerb in (
        (-1, -LANE_WIDTH * SAME_LANES - STRIP_WIDTH),
        (1, LANE_WIDTH * opposite_lanes + STRIP_WIDTH),
    ):
        s = -30.0 + rng.uniform(0, 20)
        while s < end:
            walking = rng.random() < 0.5
            along = float(rng.choice([-1.3, 1.3])) if walking else 0.0
            yaw = (0.0 if along > 0 else math.pi) if walking else float(rng.uniform(-math.pi, math.pi))
            if is_open(zones, s, s):
                new("pedestrian", s, kerb + side * rng.uniform(0.6, 1.4), walk=(along, 0.0), yaw_offset=yaw)
            s += rng.uniform(12, 34)
    # Cyclists at the edge of the outer lanes.
    for direction, edge in ((1, -LANE_WIDTH * SAME_LANES - 0.2), (-1, LANE_WIDTH * opposite_lanes + 0.2)):
        s = rng.uniform(-20, 60)
        while s < end:
            moving = rng.random() < 0.6
            speed = direction * rng.uniform(3.0, 4.5) if moving else 0.0
            yaw = 0.0 if direction > 0 else math.pi
            new("bicycle", s, edge, rider=True, walk=(float(speed), 0.0), yaw_offset=yaw)
            s += rng.uniform(50, 120)
    # Pedestrians who cross in front of the ego, away from the junctions.
    for leg in legs[1:]:
        s = leg.start + 14.0
        if rng.random() < 0.3 and leg.action not in (TURN_LEFT, TURN_RIGHT) and is_open(zones, s - 3, s + 3):
            side = float(rng.choice([-1.0, 1.0]))
            d = lane_offset(leg.lane) + side * 5.0
            new("pedestrian", s, d, crossing=True, walk=(0.0, -side * 1.5), yaw_offset=-side * math.pi / 2)
    # The traffic in the lanes.
    kinds = ("car", "truck", "bus", "motorcycle", "construction vehicle", "truck and trailer")
    lane_of_ego = legs[0].lane

    def drive(lane: int, s: float):
        kind = str(rng.choice(kinds, p=[0.38, 0.15, 0.14, 0.13, 0.1, 0.1]))
        direction = 1 if lane >= 0 else -1
        speed = limit * float(rng.uniform(0.75, 1.0))
        more = {"direction": direction, "speed": speed * 0.8, "wanted_speed": speed}
        more["yaw_offset"] = 0.0 if direction > 0 else math.pi
        if rng.random() < 0.7:
            more["stop_from"] = float(rng.uniform(0, SCENE_SECONDS))
            more["stop_until"] = more["stop_from"] + float(rng.uniform(5, 9))
        leading = "truck" if kind == "truck and trailer" else kind
        new(leading, s, lane_offset(lane), rider=kind == "motorcycle", **more)
        if kind == "truck and trailer":
            towed = {"towed_by": len(agents) - 1, "direction": direction, "yaw_offset": more["yaw_offset"]}
            distance = (SIZES["truck"][1] + SIZES["trailer"][1]) / 2 + 0.6
            new("trailer", s - direction * distance, lane_offset(lane), speed=speed * 0.8, **towed)

    s = rng.uniform(18, 45)
    while s < 150.0:  # ahead of the ego, in its lane
        drive(lane_of_ego, s)
        s += rng.uniform(35, 80)
    if rng.random() < 0.7:
        drive(lane_of_ego, -rng.uniform(14, 22))
    for lane in range(SAME_LANES):
        s = rng.uniform(-32, 8) if lane != lane_of_ego else end
        while s < 150.0:
            drive(lane, s)
            s += rng.uniform(28, 60)
    for lane in range(-opposite_lanes, 0):
        s = rng.uniform(0, 40)
        while s < end:
            drive(lane, s)
            s += rng.uniform(28, 65)
    return agents


def light_colour(phase: float, time: float) -> str:
    """A cycle of 13 s: green for 5, yellow for 2, red for 6."""
    moment = (phase + time) % 13.0
    return "green" if moment < 5.0 else "yellow" if moment < 7.0 else "red"


def follow(speed: float, wanted: float, gap: float, ahead_speed: float, standstill_gap: float) -> float:
    """Acceleration by the Intelligent Driver Model, in m/s^2, never below a hard brake of 6."""
    if wanted <= 0.1:
        free = -2.5
    else:
        free = 1.6 * (1 - (speed / wanted) ** 4)
    if math.isinf(gap):
        return max(free, -6.0)
    approach = speed * (speed - ahead_speed) / (2 * math.sqrt(1.6 * 2.2))
    desired = standstill_gap + max(0.0, speed * 1.1 + approach)
    return max(free - 1.6 * (desired / max(gap, 0.3)) ** 2, -6.0)


def run_traffic(rng, path, legs, agents, light_legs, phases, limit) -> dict:
    """Drive everyone for the scene's time and record each 2 Hz moment, in the fields of a Scene."""
    drivers = [i for i, agent in enumerate(agents) if agent.direction != 0 and agent.towed_by is None]
    lanes = defaultdict(list)  # the agents of each lane
    for i, agent in enumerate(agents):
        if agent.direction:
            lanes[agent.d].append(i)
    crossers = [agent for agent in agents if agent.crossing]
    same_way = [agent for agent in agents if agent.direction > 0]
    towed = [(i, agent.towed_by) for i, agent in enumerate(agents) if agent.towed_by is not None]
    ego_s, ego_v = 0.0, limit * float(rng.uniform(0.5, 0.9))
    shape = (SAMPLES_PER_SCENE, len(agents))
    poses, road, statuses = np.zeros((*shape, 4)), np.zeros((*shape, 2)), np.full(shape, "", dtype=object)
    ego, ego_road = np.zeros((SAMPLES_PER_SCENE, 4)), np.zeros((SAMPLES_PER_SCENE, 2))
    colours = np.full((SAMPLES_PER_SCENE, len(light_legs)), "", dtype=object)
    steps_per_sample = int(SAMPLE_SECONDS / STEP_SECONDS)

    for step in range(SAMPLES_PER_SCENE * steps_per_sample):
        time = step * STEP_SECONDS
        lights = [light_colour(phase, time) for phase in phases]
        ego_d, slope = ego_offset(legs, ego_s)
        if step % steps_per_sample == 0:
            t = step // steps_per_sample
            x, y, yaw = path.at(ego_s, ego_d)
            ego[t] = x, y, yaw + math.atan(slope), ego_v
            ego_road[t] = ego_s, ego_d
            road[t, :, 0], road[t, :, 1] = [a.s for a in agents], [a.d for a in agents]
            x, y, yaw = path.at(road[t, :, 0], road[t, :, 1])
            poses[t, :, 0], poses[t, :, 1] = x, y
            poses[t, :, 2] = yaw + [a.yaw_offset for a in agents]
            poses[t, :, 3] = [a.speed if a.direction else math.hypot(*a.walk) for a in agents]
            statuses[t] = [status_of(a) for a in agents]
            colours[t] = lights

        for a in crossers:  # a crosser waits until the ego is near, and ends on the other side of the ego's lane
            if not 0 < a.s - ego_s < 26 and a.speed == 0.0:
                continue
            a.speed = abs(a.walk[1])
        obstacles_ego = [(a.s - EGO_FRONT - 0.4, 0.0, 5.0) for a in crossers if a.speed > 0 and in_the_way(a, ego_d)]
        for leg, light in zip(light_legs, lights, strict=True):
            if must_stop(light, leg.stop_line - ego_s - EGO_FRONT, ego_v):
                obstacles_ego.append((leg.stop_line - EGO_FRONT, 0.0, 1.0))
        changing = leg_at(legs, ego_s).new_lane != leg_at(legs, ego_s).lane
        target_d = lane_offset(leg_at(legs, ego_s).new_lane)

        ahead = next_in_lane(agents, lanes)
        accelerations = []
        for i in drivers:
            a = agents[i]
            half = SIZES[a.kind][1] / 2
            wanted = 0.0 if a.stop_from <= time < a.stop_until else a.wanted_speed
            if near_turn(legs, a.s, a.direction):
                wanted = min(wanted, 4.5)
            gap, speed = math.inf, 0.0
            if i in ahead:
                other = agents[ahead[i]]
                gap, speed = abs(other.s - a.s) - half - SIZES[other.kind][1] / 2, other.speed
            if a.direction > 0:
                same_lane = abs(ego_d - a.d) < 2.2 or (changing and abs(target_d - a.d) < 1.5)
                distance = ego_s - a.s
                if same_lane and 0 < distance < 80 and distance - EGO_REAR - half < gap:
                    gap, speed = distance - EGO_REAR - half, ego_v
                if changing and abs(target_d - a.d) < 1.5 and abs(distance) < 14:
                    wanted = ego_v * 0.4 if distance > -5 else max(wanted, ego_v * 1.4)  # make room
            for leg, light in zip(light_legs, lights, strict=True):
                line = leg.stop_line if a.direction > 0 else leg.oncoming_line
                to_line = a.direction * (line - a.s) - half
                if must_stop(light, to_line, a.speed) and to_line < gap:
                    gap, speed = to_line + 1.5, 0.0
            for c in crossers:
                to_crosser = a.direction * (c.s - a.s) - half - 0.5
                if c.speed > 0 and abs(c.d - a.d) < 3.0 and 0 < to_crosser < gap:
                    gap, speed = to_crosser, 0.0
            accelerations.append(follow(a.speed, wanted, gap, speed, 3.0))

        gap, speed = math.inf, 0.0
        for a in same_way:
            in_lane = abs(a.d - ego_d) < 1.5 or (changing and abs(a.d - target_d) < 1.5)
            if in_lane and a.s > ego_s:
                gap, speed = min((gap, speed), (a.s - ego_s - SIZES[a.kind][1] / 2 - EGO_FRONT, a.speed))
        wanted = min(limit, 4.5) if near_turn(legs, ego_s, 1) else limit
        acceleration = follow(ego_v, wanted, gap, speed, 8.0)
        for s, other_speed, standstill in obstacles_ego:
            if s > ego_s - 1.0:
                acceleration = min(acceleration, follow(ego_v, wanted, max(s - ego_s, 0.1), other_speed, standstill))

        for i, value in zip(drivers, accelerations, strict=True):
            a = agents[i]
            a.speed = stopped_or(a.speed + value * STEP_SECONDS)
            a.s += a.direction * a.speed * STEP_SECONDS
        for i, puller in towed:
            distance = (SIZES[agents[i].kind][1] + SIZES[agents[puller].kind][1]) / 2 + 0.6
            agents[i].s, agents[i].speed = agents[puller].s - agents[i].direction * distance, agents[puller].speed
        for a in agents:
            if a.direction == 0 and not a.crossing:
                a.s += a.walk[0] * STEP_SECONDS
            elif a.crossing and a.speed > 0:
                a.d += a.walk[1] * STEP_SECONDS
        ego_v = stopped_or(ego_v + acceleration * STEP_SECONDS)
        ego_s += ego_v * STEP_SECONDS
    return {
        "ego": ego,
        "ego_s": ego_road[:, 0],
        "ego_d": ego_road[:, 1],
        "poses": poses,
        "road": road,
        "statuses": statuses,
        "light_legs": light_legs,
        "light_colours": colours,
    }


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
    if not -1.0 < distance < 40.0 or light == "green":
        return False
    return light == "red" or distance > speed * speed / 6.0


def in_the_way(crosser: Agent, ego_d: float) -> bool:
    """Whether a crossing pedestrian still has to pass the ego's lane, or is in it."""
    return (crosser.d - ego_d) * math.copysign(1.0, -crosser.walk[1]) > -2.2


def near_turn(legs, s: float, direction: int) -> bool:
    for leg in legs:
        if leg.action in (TURN_LEFT, TURN_RIGHT):
            low, high = (leg.bend_start - 8.0, leg.end) if direction > 0 else (leg.bend_start, leg.end + 8.0)
            if low < s < high:
                return True
    return False


def status_of(agent: Agent) -> str:
    if agent.kind in ("traffic cone", "barrier"):
        return ""
    if agent.parked:
        return "parked"
    moving = agent.speed > 0 if agent.direction or agent.crossing else agent.walk[0] != 0
    if agent.kind == "pedestrian":
        return "moving" if moving else "standing"
    return "moving" if moving else "stopped"


def place_houses(rng, scene: Scene) -> list[tuple]:
    """(global x, y, yaw, length along the road, depth, height, colour number) of each house beside the straight
    road."""
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
                houses.append((float(x), float(y), float(yaw), length, depth, height, colour))
            s += length + float(rng.uniform(1, 10))
    return houses


def describe(scene: Scene) -> str:
    """One sentence about the whole clip, as DriveLM's `scene_description`."""
    last = scene.ego_s[-1]
    verbs = {TURN_LEFT: "turns left", TURN_RIGHT: "turns right"}
    verbs |= {CHANGE_LEFT: "changes to the left lane", CHANGE_RIGHT: "changes to the right lane"}
    parts = [verbs[leg.action] for leg in scene.legs if leg.action in verbs and leg.bend_start + 10.0 < last]
    parts = parts[:3] or ["goes straight"]
    stopped = scene.ego[:, 3] == 0
    if stopped.any():
        s = scene.ego_s[stopped]
        at_light = any((abs(leg.stop_line - EGO_FRONT - s) < 4.0).any() for leg in scene.light_legs)
        parts.append("stops at a red light" if at_light else "stops behind the traffic ahead")
    sentence = " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
    setting = {"rain": " in the rain", "night": " at night", "dusk": " at dusk"}.get(scene.weather, "")
    return f"The ego vehicle {sentence}{setting}."
