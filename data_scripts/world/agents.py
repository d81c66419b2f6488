"""Road users and things of a synthetic scene, and where they are when it begins."""

import math
from dataclasses import dataclass, field

from data_scripts.world.road import (
    LANE_WIDTH,
    SAME_LANES,
    STRIP_WIDTH,
    Leg,
    closed_zones,
    ego_offset,
    is_open,
    lane_offset,
)

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
THINGS = ("traffic cone", "barrier")  # which neither move nor have a status
PARKED_FROM_KERB = 1.4  # metres from the kerb to the middle of what is parked
CYCLIST_BESIDE = 0.15  # metres from an outer lane's edge to a cyclist's line, which lies in the parking strip
CROSSER_BESIDE = 1.6  # metres from an outer lane's edge to where a pedestrian waits to cross
CROSSERS = 0.7  # share of the places for a crosser that have one
CROSSER_SPEED = 2.0  # m/s: in a hurry
CROSSER_ROOM = 2.5  # metres along the road, on both sides, that nothing in the parking strip takes from a crosser
TAKEN_BESIDE = 6.0  # metres from a scenario's room to the middle of a driver, who may draw a trailer
STOPS_WITHIN = 20.0  # seconds from the beginning in which a driver may begin to stop


@dataclass
class Agent:
    """One road user or thing. `direction` is +1 along the ego's direction, -1 against it, 0 for who does not drive."""

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
    walk: tuple[float, float] = (0.0, 0.0)  # speeds along s and d of who does not drive
    walk_to: float = 0.0  # `d` at which a crosser has arrived
    blocks: bool = False  # closes its lane for good
    joins: float | None = None  # `d` of the lane that it changes to when the ego comes near: cuts in, or pulls out
    joins_after: float = 0.0  # seconds from the beginning
    joining: bool = False  # on its way there
    street: float | None = None  # comes straight on along a street that meets the road at this `s`

    @property
    def size(self) -> tuple[float, float, float]:
        width, length, height = SIZES[self.kind]
        return (width, length, RIDER_HEIGHT if self.rider else height)


@dataclass(frozen=True)
class Staged:
    """What a scenario puts on the road, and the room that it needs there.

    Intervals run along `s`; in those of `lanes` (lane, low, high) no other driver begins. `green` is the `s` at which
    the bend of a leg with a light begins, and the second of its cycle in which that light is at time 0.
    """

    agents: list[Agent] = field(default_factory=list)
    lanes: list[tuple[int, float, float]] = field(default_factory=list)
    strips: list[tuple[float, float]] = field(default_factory=list)  # nothing is parked, nobody crosses
    crossers: list[tuple[float, float]] = field(default_factory=list)  # nobody crosses
    walkers: list[tuple[float, float]] = field(default_factory=list)  # nobody walks on the right pavement
    cyclists: bool = True  # whether cyclists ride beside the ego's lanes
    green: tuple[float, float] | None = None


def coloured(rng, kind: str, s: float, d: float, **more) -> Agent:
    """An agent in one of the colours of its kind."""
    return Agent(kind, COLOURS[kind][int(rng.integers(len(COLOURS[kind])))], float(s), float(d), **more)


def status_of(agent: Agent) -> str:
    """What a picture can show of its motion: moving, stopped, parked or standing; "" for things."""
    if agent.kind in THINGS:
        return ""
    if agent.parked:
        return "parked"
    moving = agent.speed > 0 if agent.direction or agent.crossing else agent.walk[0] != 0
    if agent.kind == "pedestrian":
        return "moving" if moving else "standing"
    return "moving" if moving else "stopped"


def place_agents(rng, legs: list[Leg], opposite_lanes: int, limit: float, staged: Staged | None = None) -> list[Agent]:
    """Everything that is on the road and beside it when the scene begins.

    Args:
        rng: numpy's generator; the order of the draws is part of the world's version.
        legs: the ego's route.
        opposite_lanes: lanes of the oncoming traffic.
        limit: speed limit in m/s.
        staged: what a scenario has on the road; everyone else leaves it room.
    """
    staged = staged or Staged()
    placing = _Placing(rng, legs, opposite_lanes, limit, staged)
    outer_edges = ((-1, -LANE_WIDTH * SAME_LANES), (1, LANE_WIDTH * opposite_lanes))
    placing.place_crossers(legs[1:], outer_edges)
    for side, edge in outer_edges:
        placing.fill_strip(side, edge + side * (STRIP_WIDTH - PARKED_FROM_KERB))
    for side, edge in outer_edges:
        placing.fill_pavement(side, edge + side * STRIP_WIDTH)
    for side, edge in outer_edges:
        if side > 0 or staged.cyclists:
            placing.place_cyclists(-side, edge + side * CYCLIST_BESIDE)
    placing.fill_lanes(legs[0].lane, opposite_lanes)
    return placing.agents


class _Placing:
    """The agents of a scene as they are placed, one part of the street after the other."""

    def __init__(self, rng, legs: list[Leg], opposite_lanes: int, limit: float, staged: Staged):
        self.rng, self.limit, self.staged = rng, limit, staged
        self.zones, self.end = closed_zones(legs), legs[-1].end + 40.0
        self.crossings = list(staged.strips)  # intervals of s where the parking strips are kept free
        self.taken = list(staged.lanes)
        if ego_offset(legs, 0.0)[0] != lane_offset(legs[0].lane):  # the ego begins between its lanes
            self.taken += [(lane, -16.0, 30.0) for lane in range(SAME_LANES)]
        self.agents = list(staged.agents)

    def add(self, kind: str, s: float, d: float, **more) -> None:
        self.agents.append(coloured(self.rng, kind, s, d, **more))

    def fill_strip(self, side: int, d: float) -> None:
        """What is parked beside the lanes, and roadworks."""
        slots = (
            "car",
            "truck",
            "bus",
            "trailer",
            "construction vehicle",
            "bicycle",
            "motorcycle",
            "cones",
            "barriers",
        )
        s = -45.0 + self.rng.uniform(0, 15)
        while s < self.end:
            kind = str(self.rng.choice(slots, p=[0.13, 0.07, 0.06, 0.07, 0.08, 0.09, 0.10, 0.20, 0.20]))
            if kind in ("cones", "barriers"):
                kind = "traffic cone" if kind == "cones" else "barrier"
                count, step = int(self.rng.integers(1, 5)), 3.0
                length = step * count
                if is_open(self.zones + self.crossings, s, s + length):
                    for i in range(count):
                        self.add(kind, s + i * step, d - side * 0.5)
            else:
                length = SIZES[kind][1]
                if is_open(self.zones + self.crossings, s, s + length):
                    self.add(kind, s + length / 2, d, parked=True, yaw_offset=0.0 if side < 0 else math.pi)
            s += length + self.rng.uniform(5, 17)

    def fill_pavement(self, side: int, kerb: float) -> None:
        """Pedestrians who walk or stand beside the road."""
        rng = self.rng
        s = -30.0 + rng.uniform(0, 20)
        while s < self.end:
            walking = rng.random() < 0.5 and (side > 0 or is_open(self.staged.walkers, s, s))
            along = float(rng.choice([-1.3, 1.3])) if walking else 0.0
            yaw = (0.0 if along > 0 else math.pi) if walking else float(rng.uniform(-math.pi, math.pi))
            if is_open(self.zones, s, s):
                self.add("pedestrian", s, kerb + side * rng.uniform(0.6, 1.4), walk=(along, 0.0), yaw_offset=yaw)
            s += rng.uniform(12, 34)

    def place_cyclists(self, direction: int, d: float) -> None:
        """Cyclists between an outer lane and what is parked: they drive like everyone else, on a line of their own."""
        s = self.rng.uniform(-20, 60)
        while s < self.end:
            moving = self.rng.random() < 0.6
            speed = float(self.rng.uniform(3.0, 4.5)) if moving else 0.0
            yaw = 0.0 if direction > 0 else math.pi
            alike = {"direction": direction, "speed": speed, "wanted_speed": speed}
            self.add("bicycle", s, d, rider=True, yaw_offset=yaw, **alike)
            s += self.rng.uniform(50, 120)

    def place_crossers(self, legs: list[Leg], outer_edges) -> None:
        """Pedestrians who cross in front of the ego, away from the junctions. They wait in one parking strip and walk
        to the other."""
        for leg in legs:
            s = leg.start + 14.0
            if not is_open(self.staged.strips + self.staged.crossers, s, s):
                continue
            if self.rng.random() < CROSSERS and not leg.is_turn and is_open(self.zones, s - 3, s + 3):
                (side, edge), (_, far_edge) = outer_edges if self.rng.random() < 0.5 else outer_edges[::-1]
                start, end = edge + side * CROSSER_BESIDE, far_edge - side * CROSSER_BESIDE
                walk = {"walk": (0.0, -side * CROSSER_SPEED), "walk_to": end, "yaw_offset": -side * math.pi / 2}
                self.add("pedestrian", s, start, crossing=True, **walk)
                self.crossings.append((s - CROSSER_ROOM, s + CROSSER_ROOM))

    def fill_lanes(self, lane_of_ego: int, opposite_lanes: int) -> None:
        """The traffic: ahead of the ego, behind it, in the other lane of its direction, and oncoming."""
        rng = self.rng
        s = rng.uniform(18, 45)
        while s < 150.0:
            self.place_driver(lane_of_ego, s)
            s += rng.uniform(35, 80)
        if rng.random() < 0.7:
            self.place_driver(lane_of_ego, -rng.uniform(14, 22))
        for lane in range(SAME_LANES):
            s = rng.uniform(-32, 8) if lane != lane_of_ego else self.end
            while s < 150.0:
                self.place_driver(lane, s)
                s += rng.uniform(28, 60)
        for lane in range(-opposite_lanes, 0):
            s = rng.uniform(0, 40)
            while s < self.end:
                self.place_driver(lane, s)
                s += rng.uniform(28, 65)

    def place_driver(self, lane: int, s: float) -> None:
        """A vehicle in a lane, perhaps with a trailer, perhaps one that stops on the way. Nobody where a scenario
        needs the room."""
        if any(lane == other and low - TAKEN_BESIDE < s < high + TAKEN_BESIDE for other, low, high in self.taken):
            return
        kinds = ("car", "truck", "bus", "motorcycle", "construction vehicle", "truck and trailer")
        kind = str(self.rng.choice(kinds, p=[0.38, 0.15, 0.14, 0.13, 0.1, 0.1]))
        direction = 1 if lane >= 0 else -1
        yaw = 0.0 if direction > 0 else math.pi
        wanted = self.limit * float(self.rng.uniform(0.75, 1.0))
        speed, stop = wanted * 0.8, {}
        if self.rng.random() < 0.7:
            stop["stop_from"] = float(self.rng.uniform(0, STOPS_WITHIN))
            stop["stop_until"] = stop["stop_from"] + float(self.rng.uniform(5, 9))
        has_trailer, is_rider = kind == "truck and trailer", kind == "motorcycle"
        alike = {"direction": direction, "speed": speed, "yaw_offset": yaw}
        kind = "truck" if has_trailer else kind
        self.add(kind, s, lane_offset(lane), rider=is_rider, wanted_speed=wanted, **alike, **stop)
        if has_trailer:
            distance = hitch_distance("truck", "trailer")
            towed_by = len(self.agents) - 1
            self.add("trailer", s - direction * distance, lane_offset(lane), towed_by=towed_by, **alike)


def hitch_distance(puller: str, towed: str) -> float:
    """Metres between the middles of a vehicle and its trailer."""
    return (SIZES[towed][1] + SIZES[puller][1]) / 2 + 0.6
