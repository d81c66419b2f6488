"""The synthetic world with another driver at the wheel: the closed loop.

    world = DrivingWorld((160, 90))
    world.reset(seed=7, index=3)
    world.follow(2.0)  # the scene's own driver
    while not world.is_over:
        now = world.observe()
        stretch = world.step(policy.plan(now))  # half a second: a bicycle at 20 Hz, and everyone else reacts

As long as the scene's own driver drives, the world is `simulate_scene`'s, to the bit. `Observation` has what a policy
may look at. The pictures are those that `synthesize_world.py` would write for the same state, JPEG included; they are
rendered when somebody asks for them. `Observation.expert()` drives a copy of the traffic by the scene's own driver,
from wherever the car is: a label for any state. `replay` drives a plan through a recorded scene, where nobody reacts.
"""

import io
import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from data_scripts.world.cameras import CAMERAS
from data_scripts.world.expert import driven_on
from data_scripts.world.ground import GroundMap, cross_streets
from data_scripts.world.nuscenes import route_command
from data_scripts.world.render import Renderer, to_jpeg
from data_scripts.world.road import LANE_WIDTH, PATH_BEHIND, PATH_STEP, SAME_LANES, Path
from data_scripts.world.simulation import (
    SAMPLE_SECONDS,
    SAMPLES_PER_SCENE,
    STEPS_PER_SAMPLE,
    Scene,
    simulate_scene,
    start_scene,
)
from data_scripts.world.traffic import STEP_SECONDS, Ego
from data_scripts.world.vehicle import DRIVE_SECONDS, WAYPOINTS, Car, PlanFollower

DRIVES_PER_STEP = round(STEP_SECONDS / DRIVE_SECONDS)
DRIVES_PER_SAMPLE = DRIVES_PER_STEP * STEPS_PER_SAMPLE
PLAN_SAMPLES = WAYPOINTS  # the waypoints are as far apart as the samples
HISTORY_SAMPLES = 4
SEARCHED = 20.0  # metres along the road, either way, in which the car is looked for
STREET_HALF_WIDTH, STREET_LENGTH = 6.0, 60.0  # of a crossing street, as `ground.py` paints it
RETURN_METRES, RETURN_SECONDS = 8.0, 2.0  # at least, in which the expert is back on its way
RETURN_SIDEWAYS = 2.0  # m/s^2 that it takes for that


class Diverged(ValueError):
    """A plan that cannot be driven."""


@dataclass(frozen=True)
class Stretch:
    """What happened while a plan was driven: T moments at 20 Hz, the first one a step after the plan.

    Fields:
        ego: (T, 4): global x, y, yaw of the rear axle; speed.
        road: (T, 2): its s and d.
        agents: (T, N, 4): global x, y, yaw; speed.
        lights: T lists of the colours of the lights.
    """

    ego: np.ndarray
    road: np.ndarray
    agents: np.ndarray
    lights: list[list[str]]


@dataclass(frozen=True)
class Label:
    """Three seconds of the scene's own driver, in the ego frame of the moment before: metres and radians.

    Fields:
        future: (6, 3): x, y, yaw at 0.5 .. 3 s.
        agents: (7, N, 3): x, y, yaw of everyone at 0 .. 3 s.
        scenario: what the ego has to deal with, of SCENARIOS; None: nothing.
    """

    future: np.ndarray
    agents: np.ndarray
    scenario: str | None


class Observation:
    """One moment, as a policy sees it; valid until the world moves on.

    Attributes:
        time: seconds since the scene began.
        command: what the route asks for.
        speed: m/s: the way of the last half second, as in rows of prepared scenes.
        history: four moments of x, y, yaw in the ego frame, 2.0 to 0.5 s ago; None where the scene had not begun.
    """

    def __init__(self, world: "DrivingWorld"):
        self.world, self.time, self.command = world, world.time, world.command()
        self.history, self.speed = world.history()

    @cached_property
    def jpegs(self) -> dict[str, bytes]:
        """{camera: the file's bytes}, as the synthetic world stores them."""
        return self.world.pictures()

    @cached_property
    def pictures(self) -> dict[str, Image.Image]:
        """{camera: picture}, decoded from `jpegs`."""
        return {camera: Image.open(io.BytesIO(data)) for camera, data in self.jpegs.items()}

    def expert(self) -> Label:
        """What the scene's own driver does from here."""
        return self.world.expert()


class DrivingWorld:
    """One scene after the other, driven from outside. Holds what is constant per picture size and per scene.

    Args:
        image_size: width and height of the pictures.
    """

    def __init__(self, image_size: tuple[int, int] = (160, 90)):
        self.renderer = Renderer(*image_size)
        self.scene: Scene | None = None

    def reset(self, seed: int, index: int) -> None:
        """Go to the beginning of a scene."""
        if self.scene is None or (self.scene.seed, self.scene.index) != (seed, index):
            self.scene = simulate_scene(seed, index)  # what its own driver does, whom everyone is measured by
            self.road = Road(self.scene)
            self.ground = None  # laid out when a picture is asked for
        self.traffic = start_scene(seed, index).traffic
        self.car, self.sample = self._car_of(self.traffic.ego), 0
        self.poses = [(self.car.x, self.car.y, self.car.yaw)]  # at every sample until now

    @property
    def time(self) -> float:
        return self.sample * SAMPLE_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether this is the scene's last moment: its own driver's record ends here too."""
        return self.sample >= SAMPLES_PER_SCENE - 1

    def follow(self, seconds: float) -> None:
        """Let the scene's own driver drive, exactly as in `simulate_scene`."""
        for _ in range(round(seconds / SAMPLE_SECONDS)):
            for _ in range(STEPS_PER_SAMPLE):
                self.traffic.step()
            self._arrive(self._car_of(self.traffic.ego))

    def step(self, waypoints: np.ndarray) -> Stretch:
        """Drive a plan for half a second.

        Args:
            waypoints: (6, 2) metres in the ego frame of now.

        Raises:
            Diverged: the plan is not finite or of another shape; names scene and step.
        """
        waypoints = np.asarray(waypoints, dtype=float)
        if waypoints.shape != (WAYPOINTS, 2) or not np.isfinite(waypoints).all():
            raise Diverged(f"{self.place()}: the plan is not six finite waypoints: {waypoints.tolist()}")
        follower, car = PlanFollower(waypoints, self.car), self.car
        cars, agents, lights = [], [], []
        for _ in range(STEPS_PER_SAMPLE):
            before, colours = self.traffic.poses(), self.traffic.lights()
            for _ in range(DRIVES_PER_STEP):
                car = car.driven(*follower.controls(car))
                cars.append(car)
            self.traffic.step(self._ego_of(car))
            agents += between(before, self.traffic.poses())
            lights += [colours] * DRIVES_PER_STEP
        self._arrive(car)
        return self._stretch(cars, np.array(agents), lights)

    def observe(self) -> Observation:
        return Observation(self)

    def place(self) -> str:
        """Where the simulation is, for messages."""
        return f"scene seed {self.scene.seed}, index {self.scene.index}, step {self.sample} ({self.time:.1f} s)"

    def command(self) -> str:
        return route_command(self.scene.legs, self.traffic.ego.s)

    def history(self) -> tuple[list[tuple[float, float, float] | None], float]:
        """The poses before in the ego frame of now, the oldest first, and the speed of the last half second."""
        past = self.poses[-1 - HISTORY_SAMPLES : -1]
        known = [tuple(pose) for pose in in_frame_of(self.car, np.array(past).reshape(-1, 3)).tolist()]
        speed = math.hypot(*known[-1][:2]) / SAMPLE_SECONDS if known else self.car.speed
        return [None] * (HISTORY_SAMPLES - len(known)) + known, speed

    def state(self) -> Scene:
        """The scene with the state of now at moment `self.sample`: what the renderer reads."""
        ego, traffic = self.traffic.ego, self.traffic

        def all_moments(value) -> np.ndarray:
            value = np.asarray(value)
            return np.broadcast_to(value, (self.sample + 1, *value.shape))

        return replace(
            self.scene,
            ego=all_moments([ego.x, ego.y, ego.yaw, ego.speed]),
            ego_s=all_moments(ego.s),
            ego_d=all_moments(ego.d),
            poses=all_moments(traffic.poses()),
            road=all_moments(traffic.places()),
            statuses=all_moments(np.array(traffic.statuses(), dtype=object)),
            light_colours=all_moments(np.array(traffic.lights(), dtype=object)),
        )

    def pictures(self) -> dict[str, bytes]:
        self.ground = self.ground or GroundMap(self.scene)
        images, _ = self.renderer.render(self.state(), self.ground, self.sample)
        return {camera: to_jpeg(image) for camera, image in zip(CAMERAS, images, strict=True)}

    def expert(self) -> Label:
        """Three seconds of the scene's own driver, who comes back to its way from wherever the car is."""
        drive = driven_on(self.traffic)
        way = np.array([(ego.x, ego.y, ego.yaw) for ego in drive.egos[1:]])
        return Label(in_frame_of(self.car, way), in_frame_of(self.car, drive.poses[..., :3]), drive.scenario)

    def way_at(self, seconds: list[float], speed: float) -> np.ndarray:
        """(len(seconds), 3): x, y, yaw in the ego frame of who drives along the route at one speed."""
        traffic = self.traffic
        egos = [traffic.ego_at(traffic.ego.s + speed * t, speed) for t in (0.0, *seconds)]
        return in_frame_of(self.car, returning(traffic.path, traffic.ego, egos)[1:])

    def replay(self, waypoints: np.ndarray) -> Stretch:
        """Drive a plan for three seconds, from now, through the scene as its own driver left it: nobody reacts.

        Only where the car is where the scene's own driver was, and at least three seconds before the scene's end.
        """
        follower, car, cars = PlanFollower(np.asarray(waypoints, dtype=float), self.car), self.car, []
        for _ in range(PLAN_SAMPLES * DRIVES_PER_SAMPLE):
            car = car.driven(*follower.controls(car))
            cars.append(car)
        samples = range(self.sample, self.sample + PLAN_SAMPLES)
        agents = [
            pose for t in samples for pose in between(self.scene.poses[t], self.scene.poses[t + 1], DRIVES_PER_SAMPLE)
        ]
        lights = [list(self.scene.light_colours[t]) for t in samples for _ in range(DRIVES_PER_SAMPLE)]
        return self._stretch(cars, np.array(agents), lights)

    def can_replay(self) -> bool:
        return self.sample + PLAN_SAMPLES < SAMPLES_PER_SCENE

    def _arrive(self, car: Car) -> None:
        self.car = car
        self.sample += 1
        self.poses.append((car.x, car.y, car.yaw))

    def _ego_of(self, car: Car) -> Ego:
        ((s, d),) = self.road.places(np.array([[car.x, car.y]]), self.traffic.ego.s).tolist()
        return Ego(car.x, car.y, car.yaw, max(car.speed / self._way_per_s(s, d, car.yaw), 0.0), s, d)

    def _car_of(self, ego: Ego) -> Car:
        return Car(ego.x, ego.y, ego.yaw, ego.speed * self._way_per_s(ego.s, ego.d, ego.yaw))

    def _way_per_s(self, s: float, d: float, yaw: float) -> float:
        """Metres of the car for each metre along the reference line, by which the traffic counts: fewer inside of
        a bend."""
        turned = yaw - float(self.road.path.at(s)[2])
        return float(self.road.stretch(s, d)) / max(math.cos(turned), 0.1)

    def _stretch(self, cars: list[Car], agents: np.ndarray, lights: list[list[str]]) -> Stretch:
        ego = np.array([(car.x, car.y, car.yaw, car.speed) for car in cars])
        return Stretch(ego, self.road.places_along(ego[:, :2], self.traffic.ego.s), agents, lights)


class Road:
    """Where points of the map lie on a scene's road."""

    def __init__(self, scene: Scene):
        self.path: Path = scene.path
        self.kerbs = scene.kerb_right, scene.kerb_left
        self.lanes = -LANE_WIDTH * SAME_LANES, LANE_WIDTH * scene.opposite_lanes
        arms = [arm for leg in scene.legs if leg.junction is not None for arm in cross_streets(scene, leg)]
        self.arms = np.array(arms, dtype=float).reshape(-1, 3)

    def places(self, points: np.ndarray, near: float) -> np.ndarray:
        """(point, 2): s and d of points (point, 2) within SEARCHED of `near`."""
        path, reach = self.path, round(SEARCHED / PATH_STEP)
        middle = round((near + PATH_BEHIND) / PATH_STEP)
        low, high = max(middle - reach, 0), min(middle + reach, len(path.x) - 1)
        line = np.stack([path.x[low:high], path.y[low:high]], axis=-1)
        nearest = low + np.hypot(*np.moveaxis(points[:, None] - line, -1, 0)).argmin(axis=1)
        s = nearest * PATH_STEP - PATH_BEHIND
        for _ in range(6):
            x, y, yaw = path.at(s)
            dx, dy = points[:, 0] - x, points[:, 1] - y
            d = dy * np.cos(yaw) - dx * np.sin(yaw)
            s = s + (dx * np.cos(yaw) + dy * np.sin(yaw)) / self.stretch(s, d)
        return np.stack([s, d], axis=-1)

    def stretch(self, s, d):
        """Metres driven at `d` for each metre of the reference line at `s`: scalars, or arrays of one shape."""
        index, _ = self.path.samples(s)
        bend = (self.path.yaw[index + 1] - self.path.yaw[index]) / PATH_STEP
        return np.maximum(1 - bend * d, 0.3)

    def places_along(self, points: np.ndarray, near: float) -> np.ndarray:
        """The same for the points of a way, in parts so short that each lies near the one before."""
        found = []
        for start in range(0, len(points), DRIVES_PER_SAMPLE):
            found.append(self.places(points[start : start + DRIVES_PER_SAMPLE], near))
            near = float(found[-1][-1, 0])
        return np.concatenate(found)

    def is_paved(self, points: np.ndarray, d: np.ndarray) -> np.ndarray:
        """Whether points (..., 2) at `d` (...) across the road lie between its kerbs, or on a street that crosses."""
        paved = (d >= self.kerbs[0]) & (d <= self.kerbs[1])
        for x, y, yaw in self.arms:
            dx, dy = points[..., 0] - x, points[..., 1] - y
            along, across = dx * math.cos(yaw) + dy * math.sin(yaw), dy * math.cos(yaw) - dx * math.sin(yaw)
            paved |= (along >= 0) & (along <= STREET_LENGTH) & (np.abs(across) <= STREET_HALF_WIDTH)
        return paved


def between(before: np.ndarray, after: np.ndarray, steps: int = DRIVES_PER_STEP) -> list[np.ndarray]:
    """`steps` poses on the way from one (N, 4) to the next, the last one included."""
    return [before + (after - before) * (k + 1) / steps for k in range(steps)]


def in_frame_of(car: Car | Ego, poses: np.ndarray) -> np.ndarray:
    """Global poses (..., 3) in the frame of a car: x, y in metres, yaw in radians between -pi and pi."""
    c, s = math.cos(car.yaw), math.sin(car.yaw)
    dx, dy = poses[..., 0] - car.x, poses[..., 1] - car.y
    turn = (poses[..., 2] - car.yaw + math.pi) % (2 * math.pi) - math.pi
    return np.stack([dx * c + dy * s, dy * c - dx * s, turn], axis=-1)


def returning(path: Path, now: Ego, egos: list[Ego]) -> np.ndarray:
    """(len(egos), 3): global x, y, yaw of the way from where the car is now to the way of `egos`, whose first one is
    where it should be now. A cubic takes it across: it begins with the car's place and heading."""
    should = egos[0]
    beside = now.d - should.d
    turned = (now.yaw - should.yaw + math.pi) % (2 * math.pi) - math.pi
    slope = math.tan(min(max(turned, -1.0), 1.0))
    length = now.speed * max(RETURN_SECONDS, math.sqrt(6 * abs(beside) / RETURN_SIDEWAYS))
    length = max(RETURN_METRES, length)
    poses = []
    for ego in egos:
        part = min((ego.s - should.s) / length, 1.0)
        left = 1 - part
        aside = beside * left * left * (1 + 2 * part) + slope * length * part * left * left
        leaning = -6 * beside / length * part * left + slope * left * (1 - 3 * part)
        x, y, yaw = path.at(ego.s, ego.d + aside)
        poses.append((float(x), float(y), ego.yaw + math.atan(leaning)))
    return np.array(poses)
