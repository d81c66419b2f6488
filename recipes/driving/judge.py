"""What a driven stretch of road means for the score: hits, red lights, lanes, the drivable area."""

import math

import numpy as np

from data_scripts.world.agents import SIZES, THINGS, Agent
from data_scripts.world.drive import DRIVES_PER_SAMPLE, DrivingWorld, Stretch
from data_scripts.world.nuscenes import scene_name
from data_scripts.world.road import LANE_WIDTH, ego_offset
from data_scripts.world.traffic import EGO_FRONT
from data_scripts.world.vehicle import DRIVE_SECONDS, ego_boxes
from recipes.metrics.driving.driven_scenes import DrivenEvent, DrivenScene
from recipes.metrics.driving.hits import STANDS, hit_kinds, is_at_fault
from recipes.metrics.driving.oriented_boxes import box_corners
from recipes.metrics.driving.plan_replay import PlanScores, ReplayedPlan, plan_scores

OUTSIDE_LANE = LANE_WIDTH / 2  # metres from the route to the middle of the ego
LEFT_ROUTE = 6.0  # metres
NEAR = 45.0  # metres, in which traffic gives the pace: as far as the pictures show
REPLAY_EVERY = 2  # of the 20 Hz moments: NAVSIM's 10 Hz


class SceneJudge:
    """Follows one scene, stretch by stretch, from where the world is now.

    `ended` tells when the scene is over for the policy: "hit" or "left the route"; None as long as it may drive on.
    """

    def __init__(self, world: DrivingWorld):
        self.world, self.start = world, world.sample
        self.start_s, self.start_time = world.traffic.ego.s, world.time
        self.last_place = np.array([world.car.x, world.car.y])
        self.last_s = self.start_s
        self.driven = self.outside = 0.0
        self.motion, self.events, self.met, self.traffic_speeds = [], [], set(), []
        self.ended = None

    def watch(self, stretch: Stretch) -> None:
        """Judge half a second; what comes after an end does not count."""
        footprint = Footprint(self.world, stretch)
        beside = beside_route(self.world, stretch.road)
        self.traffic_speeds.append(pace(self.world.scene.agents, stretch))
        for t in range(len(stretch.ego)):
            self._move(stretch.ego[t], beside[t])
            self._lights(stretch, t)
            self._hits(stretch, footprint, t)
            if beside[t] > LEFT_ROUTE:
                self._happened("left the route", True, stretch.ego[t])
                self.ended = self.ended or "left the route"
            self.last_s = float(stretch.road[t, 0])
            if self.ended:
                return

    def result(self, plans: list[PlanScores]) -> DrivenScene:
        """The scene as it was driven until now."""
        scene = self.world.scene
        return DrivenScene(
            scene_token=scene_name(scene.seed, scene.index),
            metres=self.last_s - self.start_s,
            expert_metres=float(scene.ego_s[-1] - scene.ego_s[self.start]),
            driven_metres=self.driven,
            outside_metres=self.outside,
            events=self.events,
            ended=self.ended or "time",
            motion_seconds=DRIVE_SECONDS,
            motion=[[round(float(value), 4) for value in moment] for moment in self.motion],
            traffic_speeds=self.traffic_speeds,
            plans=[scores.as_dict() for scores in plans],
        )

    def _move(self, ego: np.ndarray, beside: float) -> None:
        way = math.hypot(*(ego[:2] - self.last_place))
        self.driven += way
        self.outside += way * (beside > OUTSIDE_LANE)
        self.motion.append(ego)
        self.last_place = ego[:2]

    def _lights(self, stretch: Stretch, t: int) -> None:
        front, before = stretch.road[t, 0] + EGO_FRONT, self.last_s + EGO_FRONT
        for leg, colour in zip(self.world.scene.light_legs, stretch.lights[t], strict=True):
            if colour == "red" and before < leg.stop_line <= front:
                self._happened("red light", True, stretch.ego[t])

    def _hits(self, stretch: Stretch, footprint: "Footprint", t: int) -> None:
        agents, speeds = self.world.scene.agents, stretch.agents[t, :, 3]
        ego = stretch.ego[t]
        kinds = hit_kinds(footprint.boxes[t], ego[:2], ego[3], footprint.agents[t], speeds)
        for n, kind in enumerate(kinds):
            if kind is None or n in self.met:
                continue
            self.met.add(n)
            at_fault = is_at_fault(kind, footprint.several_lanes[t] or footprint.off_road[t])
            self._happened(kind_of(agents[n]), at_fault, ego, description_of(agents[n], kind, speeds[n]))
            if at_fault:
                self.ended = self.ended or "hit"

    def _happened(self, kind: str, at_fault: bool, ego: np.ndarray, where: str = "") -> None:
        time = self.start_time + len(self.motion) * DRIVE_SECONDS
        self.events.append(DrivenEvent(kind, bool(at_fault), round(time, 2), float(ego[0]), float(ego[1]), where))


class Footprint:
    """The ego's boxes in a stretch (T, 5), those of the agents (T, N, 5), and on what the ego stands, (T,) bool."""

    def __init__(self, world: DrivingWorld, stretch: Stretch):
        sizes = np.array([SIZES[agent.kind] for agent in world.scene.agents]).reshape(-1, 3)
        lengths, widths = (np.broadcast_to(sizes[:, axis], stretch.agents.shape[:2]) for axis in (1, 0))
        self.boxes = ego_boxes(stretch.ego)
        self.agents = np.concatenate([stretch.agents[..., :3], lengths[..., None], widths[..., None]], axis=-1)
        corners = box_corners(self.boxes)  # (T, 4, 2)
        places = [world.road.places_along(corners[:, k], float(stretch.road[0, 0])) for k in range(4)]
        across = np.stack([place[:, 1] for place in places], axis=-1)  # (T, 4)
        lanes = np.floor(across / LANE_WIDTH)
        self.several_lanes = lanes.min(axis=1) != lanes.max(axis=1)
        self.off_road = ~world.road.is_paved(corners, across).all(axis=1)


def beside_route(world: DrivingWorld, road: np.ndarray) -> np.ndarray:
    """(T,): metres across the road from the route, or from where the scene's own driver drove, whichever is less: that
    one may have had to go round something."""
    scene = world.scene
    route = np.array([ego_offset(scene.legs, s)[0] for s in road[:, 0].tolist()])
    expert = np.interp(road[:, 0], scene.ego_s, scene.ego_d)
    return np.minimum(np.abs(road[:, 1] - route), np.abs(road[:, 1] - expert))


def pace(agents: list[Agent], stretch: Stretch) -> float | None:
    """Mean speed in m/s of those who drive in the ego's direction near it at the end of the stretch."""
    near = np.hypot(*(stretch.agents[-1, :, :2] - stretch.ego[-1, :2]).T) < NEAR
    drive = np.array([agent.direction > 0 and agent.wanted_speed > 0 for agent in agents], dtype=bool)
    return float(stretch.agents[-1, near & drive, 3].mean()) if (near & drive).any() else None


def replayed_scores(world: DrivingWorld, waypoints: np.ndarray) -> PlanScores:
    """NAVSIM's sub-scores of a plan made now, while the scene's own driver still drives."""
    stretch = world.replay(waypoints)
    footprint = Footprint(world, stretch)
    fronts = np.concatenate([[world.traffic.ego.s], stretch.road[:, 0]]) + EGO_FRONT
    ran_red = any(
        colours[n] == "red" and before < leg.stop_line <= front
        for colours, before, front in zip(stretch.lights, fronts, fronts[1:], strict=False)
        for n, leg in enumerate(world.scene.light_legs)
    )
    kept = slice(REPLAY_EVERY - 1, None, REPLAY_EVERY)
    later = world.sample + len(stretch.ego) // DRIVES_PER_SAMPLE
    return plan_scores(
        ReplayedPlan(
            seconds=DRIVE_SECONDS * REPLAY_EVERY,
            motion=stretch.ego[kept],
            boxes=footprint.boxes[kept],
            agents=footprint.agents[kept],
            agent_speeds=stretch.agents[kept, :, 3],
            things=np.array([agent.kind in THINGS for agent in world.scene.agents], dtype=bool),
            several_lanes=footprint.several_lanes[kept],
            off_road=footprint.off_road[kept],
            ran_red=ran_red,
            progress=float(stretch.road[-1, 0] - world.traffic.ego.s),
            best_progress=float(world.scene.ego_s[later] - world.scene.ego_s[world.sample]),
        )
    )


def kind_of(agent: Agent) -> str:
    """Of the events' kinds."""
    return "pedestrian" if agent.kind == "pedestrian" else "thing" if agent.kind in THINGS else "vehicle"


def description_of(agent: Agent, kind: str, speed: float) -> str:
    """A few words on whom the ego touched, for the table of failures."""
    if kind == "rear":
        return "from behind"
    if agent.kind == "pedestrian":
        return "crosses" if agent.crossing else "on the pavement"
    if agent.kind in THINGS:
        return agent.kind
    if agent.kind == "bicycle":
        return "cyclist"
    if agent.parked:
        return "parked"
    if agent.direction < 0:
        return "oncoming"
    if speed <= STANDS:
        return "stands in the lane"
    return "drives ahead" if kind == "front" else "drives beside"
