"""The car that a plan drives: a kinematic bicycle, and the controller that follows the waypoints.

A plan is six waypoints of the rear axle at 0.5, 1.0, ... 3.0 s: metres, in the ego frame of the moment at which it was
made. The controller looks one second ahead along it for the speed (constant acceleration to where the plan is then)
and some metres ahead for the steering (pure pursuit; Coulter 1992).
"""

import math
from dataclasses import dataclass

import numpy as np

from data_scripts.world.traffic import EGO_FRONT, EGO_REAR

DRIVE_SECONDS = 0.05  # one step of the car: 20 Hz
WHEELBASE = 2.7
MAX_STEERING = 0.5  # radians of the front wheel: bends of 5 m radius
MIN_ACCELERATION, MAX_ACCELERATION = -6.0, 3.0  # m/s^2
CRAWL = 0.35  # m/s, as in the traffic: slower is a standstill where the plan does not leave
EGO_LENGTH, EGO_WIDTH = EGO_FRONT + EGO_REAR, 1.85
EGO_AHEAD = (EGO_FRONT - EGO_REAR) / 2  # metres from the rear axle to the middle of the car
WAYPOINTS, WAYPOINT_SECONDS = 6, 0.5
SPEED_PREVIEW = 1.0  # seconds
STEERING_PREVIEW = 0.9  # seconds, at least MIN_PREVIEW and at most MAX_PREVIEW metres
MIN_PREVIEW, MAX_PREVIEW = 3.0, 9.0
PATH_STEP = 0.25  # metres between the points in which the plan's line is searched
STANDS = 0.3  # metres: a plan that reaches less far stands still


@dataclass(frozen=True)
class Car:
    """The rear axle: global x, y (m) and yaw (radians), and the speed in m/s."""

    x: float
    y: float
    yaw: float
    speed: float

    def driven(self, acceleration: float, curvature: float) -> "Car":
        """The car DRIVE_SECONDS later; what it cannot do is cut to what it can."""
        acceleration = min(max(acceleration, MIN_ACCELERATION), MAX_ACCELERATION)
        steering = min(max(math.atan(WHEELBASE * curvature), -MAX_STEERING), MAX_STEERING)
        speed = max(self.speed + acceleration * DRIVE_SECONDS, 0.0)
        way = (self.speed + speed) / 2 * DRIVE_SECONDS
        turn = way * math.tan(steering) / WHEELBASE
        heading = self.yaw + turn / 2
        return Car(self.x + way * math.cos(heading), self.y + way * math.sin(heading), self.yaw + turn, speed)


class PlanFollower:
    """Controls for one plan, step by step.

    Args:
        waypoints: (6, 2) metres in the frame of `start`, finite.
        start: the car when the plan was made.
    """

    def __init__(self, waypoints: np.ndarray, start: Car):
        self.start, self.time, self.way = start, 0.0, 0.0
        points = np.concatenate([[[0.0, 0.0]], waypoints])
        steps = np.diff(points, axis=0)
        lengths = np.hypot(*steps.T)
        self.knots = np.arange(WAYPOINTS + 1) * WAYPOINT_SECONDS
        # A step back is no way forward: a plan that trembles around a standing car does not move it.
        self.ways = np.concatenate([[0.0], np.cumsum(np.where(steps[:, 0] < 0, -lengths, lengths))])
        self.line = line_through(points, lengths)

    def controls(self, car: Car) -> tuple[float, float]:
        """Acceleration (m/s^2) and curvature (1/m) for the next step of `car`, whose steps are counted here."""
        ahead = self._way_at(self.time + SPEED_PREVIEW) - self.way
        acceleration = 2 * (ahead - car.speed * SPEED_PREVIEW) / SPEED_PREVIEW**2
        if car.speed < CRAWL and ahead < STANDS:
            acceleration = -car.speed / DRIVE_SECONDS
        curvature = self._curvature(car)
        self.time += DRIVE_SECONDS
        speed = max(car.speed + min(max(acceleration, MIN_ACCELERATION), MAX_ACCELERATION) * DRIVE_SECONDS, 0.0)
        self.way += (car.speed + speed) / 2 * DRIVE_SECONDS
        return acceleration, curvature

    def _way_at(self, seconds: float) -> float:
        """Metres of the plan's way at a time; beyond its end it keeps its last speed."""
        beyond = max(seconds - self.knots[-1], 0.0)
        last = max(self.ways[-1] - self.ways[-2], 0.0) / WAYPOINT_SECONDS
        return float(np.interp(seconds, self.knots, self.ways)) + last * beyond

    def _curvature(self, car: Car) -> float:
        """Of the arc from the car to the point of the plan's line that is the preview away."""
        preview = min(max(STEERING_PREVIEW * car.speed, MIN_PREVIEW), MAX_PREVIEW)
        c, s = math.cos(self.start.yaw), math.sin(self.start.yaw)
        dx, dy = car.x - self.start.x, car.y - self.start.y
        offset = self.line - (dx * c + dy * s, dy * c - dx * s)
        turn = car.yaw - self.start.yaw
        c, s = math.cos(turn), math.sin(turn)
        x, y = offset[:, 0] * c + offset[:, 1] * s, offset[:, 1] * c - offset[:, 0] * s
        far = np.flatnonzero((np.hypot(x, y) >= preview) & (x > 0))
        if not len(far):
            return 0.0
        target = far[0]
        return float(2 * y[target] / (x[target] ** 2 + y[target] ** 2))


def line_through(points: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(point, 2): the line from waypoint to waypoint, with a point every PATH_STEP, and straight on beyond its end.

    Waypoints of a plan that stands still say nothing about where to steer: the line is then straight ahead.
    """
    if lengths.sum() < STANDS:
        points, lengths = np.array([[0.0, 0.0], [1.0, 0.0]]), np.ones(1)
    places = np.concatenate([[0.0], np.cumsum(lengths)])
    grid = np.arange(0.0, places[-1], PATH_STEP)
    line = np.stack([np.interp(grid, places, points[:, axis]) for axis in (0, 1)], axis=-1)
    back = np.searchsorted(places, max(places[-1] - 1.0, 0.0), side="right") - 1  # a direction of a metre or more
    direction = points[-1] - points[back]
    direction = direction / max(np.hypot(*direction), 1e-9)
    beyond = np.arange(0.0, 2 * MAX_PREVIEW, PATH_STEP)[:, None] * direction
    return np.concatenate([line, points[-1] + beyond])


def ego_boxes(poses: np.ndarray) -> np.ndarray:
    """Boxes (..., 5) x, y, yaw, length, width of the car at poses (..., 3+) of its rear axle."""
    x, y, yaw = poses[..., 0], poses[..., 1], poses[..., 2]
    size = [np.full_like(x, EGO_LENGTH), np.full_like(x, EGO_WIDTH)]
    return np.stack([x + EGO_AHEAD * np.cos(yaw), y + EGO_AHEAD * np.sin(yaw), yaw, *size], axis=-1)
