"""NAVSIM's sub-scores of one plan that is driven while everyone else is replayed. numpy and siblings alone."""

from dataclasses import asdict, dataclass

import numpy as np

from .hits import AHEAD, BEHIND, STANDS, angle_to, hit_kinds, is_at_fault
from .motion_comfort import comfortable_moments
from .oriented_boxes import boxes_overlap

LOOK_AHEAD = (0.0, 0.3, 0.6, 0.9)  # seconds
SHORT = 5.0  # metres: where the best progress is less, nobody is judged by progress
WEIGHTS = {"ttc": 5, "ep": 5, "comfort": 2}
PLAN_FIELDS = ("pdms", "nc", "dac", "tlc", "ttc", "ep", "comfort")  # of `PlanScores.as_dict`


@dataclass(frozen=True)
class ReplayedPlan:
    """A plan as it was driven; T moments at one rate. Metres, radians, one frame for all.

    Example: a second at 10 Hz on an empty road:
        ReplayedPlan(0.1, motion=np.zeros((10, 4)), boxes=np.zeros((10, 5)), agents=np.zeros((10, 0, 5)), ...)

    Fields:
        seconds: between two moments.
        motion: (T, 4): x, y, yaw of the rear axle; speed.
        boxes: (T, 5): x, y, yaw, length, width of the ego.
        agents: (T, N, 5): the boxes of the others.
        agent_speeds: (T, N).
        things: (N,) bool: neither vehicle nor human.
        several_lanes: (T,) bool: the ego is in more than one lane.
        off_road: (T,) bool: a corner of the ego is off the drivable area.
        ran_red: it passed the stop line of a red light.
        progress, best_progress: metres along the route, of the plan and of the expert in the same time.
    """

    seconds: float
    motion: np.ndarray
    boxes: np.ndarray
    agents: np.ndarray
    agent_speeds: np.ndarray
    things: np.ndarray
    several_lanes: np.ndarray
    off_road: np.ndarray
    ran_red: bool
    progress: float
    best_progress: float


@dataclass(frozen=True)
class PlanScores:
    """Sub-scores of a plan, 0 .. 1: no at-fault collision, drivable area, traffic lights, time to collision, ego
    progress, comfort.

    Example: PlanScores(nc=1.0, dac=1.0, tlc=1.0, ttc=0.0, ep=0.8, comfort=1.0).pdms == 0.5
    """

    nc: float
    dac: float
    tlc: float
    ttc: float
    ep: float
    comfort: float

    @property
    def pdms(self):
        """NAVSIM v1's score."""
        parts = sum(weight * getattr(self, name) for name, weight in WEIGHTS.items())
        return self.nc * self.dac * parts / sum(WEIGHTS.values())

    def as_dict(self):
        return {**asdict(self), "pdms": self.pdms}


def plan_scores(replay):
    """`ReplayedPlan` -> `PlanScores`."""
    nc = no_collision(replay)
    dac = 0.0 if replay.off_road.any() else 1.0
    comfort = comfortable_moments(replay.motion, replay.seconds).all()
    return PlanScores(
        nc=nc,
        dac=dac,
        tlc=0.0 if replay.ran_red else 1.0,
        ttc=time_to_collision(replay),
        ep=ego_progress(replay, nc * dac),
        comfort=float(comfort),
    )


def no_collision(replay):
    """1, or the worst of the at-fault hits: 0 of a vehicle or a human, 0.5 of a thing. The first contact counts."""
    score, met = 1.0, np.zeros(replay.agents.shape[1], dtype=bool)
    for t, (motion, box) in enumerate(zip(replay.motion, replay.boxes, strict=True)):
        kinds = hit_kinds(box, motion[:2], motion[3], replay.agents[t], replay.agent_speeds[t])
        outside = replay.several_lanes[t] or replay.off_road[t]
        for n, kind in enumerate(kinds):
            if kind is not None and not met[n]:
                met[n] = True
                if is_at_fault(kind, outside):
                    score = min(score, 0.5 if replay.things[n] else 0.0)
    return score


def time_to_collision(replay):
    """0 where the ego, straight on at its speed for up to 0.9 s, meets who is ahead of it, or beside it while it is
    in several lanes or off the road. What it has touched already does not count again."""
    met = np.zeros(replay.agents.shape[1], dtype=bool)
    for t, (motion, box) in enumerate(zip(replay.motion, replay.boxes, strict=True)):
        if motion[3] <= STANDS:
            continue
        for look in LOOK_AHEAD:
            later = t + round(look / replay.seconds)
            if later >= len(replay.motion):
                break
            moved, way = box.copy(), look * motion[3] * np.array([np.cos(motion[2]), np.sin(motion[2])])
            moved[:2] += way
            angles = angle_to(motion[:2] + way, motion[2], replay.agents[later, :, :2])
            outside = replay.several_lanes[t] or replay.off_road[t]
            hits = boxes_overlap(moved, replay.agents[later]) & ~met
            if look == 0.0:
                met |= hits
            if (hits & ((angles < AHEAD) | (outside & (angles <= BEHIND)))).any():
                return 0.0
    return 1.0


def ego_progress(replay, multiplier):
    """Share of the expert's progress; 1 where that is short. A plan that fails the multiplied scores has none."""
    if replay.best_progress <= SHORT:
        return float(multiplier > 0)
    return float(np.clip(multiplier * replay.progress / replay.best_progress, 0.0, 1.0))
