"""The painted quads of everything around the ego at one moment of a scene."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from data_scripts.world.agents import MOTOR_VEHICLES
from data_scripts.world.cameras import CAMERA_CALIBRATION, CAMERAS
from data_scripts.world.ground import MAP_RANGE
from data_scripts.world.road import SAME_LANES, Leg, lane_offset
from data_scripts.world.shapes import (
    LIGHT_BOTTOM,
    LIGHT_SIZE,
    Shape,
    gantry_shape,
    house_shape,
    light_shape,
    post_shape,
    shape_of,
)
from data_scripts.world.simulation import Scene

MIN_HEIGHT, MIN_SLIM_HEIGHT = 80.0, 100.0  # pixels of 900
MIN_METRE = 42.0
LIGHT_MIN_HEIGHT = 75.0
LIGHT_BEYOND_LINE = 11.0  # a signal hangs over the junction, this far behind the stop line
HOUSE_RANGE = 55.0


class Source(NamedTuple):
    """Which agent or light of a scene an object in the pictures is."""

    what: str  # "agent" or "light"
    index: int  # in the scene's `agents` or `light_legs`


class Placed(NamedTuple):
    """A shape at its place in the ego frame (m, radians)."""

    shape: Shape
    x: float
    y: float
    yaw: float
    min_metre: float  # not drawn where a metre takes fewer pixels of 900


@dataclass
class Surroundings:
    """The quads (Q) of the objects (N) near the ego, in the ego frame. The named objects come first (agents, then
    the heads of lights), then scenery."""

    sources: list[Source]  # of the named objects
    corners: np.ndarray  # (Q, 4, 3)
    normals: np.ndarray  # (Q, 3)
    both_sides: np.ndarray  # (Q,) bool
    colours: np.ndarray  # (Q, 3)
    shining: np.ndarray  # (Q,) bool
    solid: np.ndarray  # (Q,) bool
    owner: np.ndarray  # (Q,): number of the object
    part_distance: np.ndarray  # (camera, Q): of the part that the quad belongs to
    centre: np.ndarray  # (N, 3)
    radius: np.ndarray  # (N,)
    distance: np.ndarray  # (camera, N)
    min_metre: np.ndarray  # (N,)


def surroundings(scene: Scene, t: int) -> Surroundings:
    """Everything near the ego at moment `t`."""
    agents, lights = placed_agents(scene, t), placed_lights(scene, t)
    sources = [source for source, _ in (*agents, *lights)]
    named = [item for _, item in (*agents, *lights)]
    return joined_quads(sources, named + placed_scenery(scene, t))


def in_ego_frame(
    scene: Scene, t: int, shape: Shape, x: float, y: float, yaw: float | None, min_metre: float
) -> Placed:
    """A shape at a place of the global frame; `yaw` None turns it to the ego."""
    ego_x, ego_y, ego_yaw, _ = scene.ego[t]
    c, s = math.cos(ego_yaw), math.sin(ego_yaw)
    dx, dy = x - ego_x, y - ego_y
    px, py = dx * c + dy * s, dy * c - dx * s
    return Placed(shape, px, py, math.atan2(py, px) if yaw is None else yaw - ego_yaw, min_metre)


def placed_agents(scene: Scene, t: int) -> list[tuple[Source, Placed]]:
    ego_x, ego_y, _, _ = scene.ego[t]
    near = np.hypot(scene.poses[t, :, 0] - ego_x, scene.poses[t, :, 1] - ego_y) < MAP_RANGE
    found = []
    for i in np.nonzero(near)[0].tolist():
        agent = scene.agents[i]
        shape = shape_of(agent.kind, agent.colour, str(scene.statuses[t, i]), agent.rider)
        x, y, yaw, _ = scene.poses[t, i].tolist()
        flat = agent.kind in ("pedestrian", "traffic cone")
        min_height = MIN_HEIGHT if agent.kind in MOTOR_VEHICLES else MIN_SLIM_HEIGHT
        min_metre = max(MIN_METRE, min_height / agent.size[2])
        found.append((Source("agent", i), in_ego_frame(scene, t, shape, x, y, None if flat else yaw, min_metre)))
    return found


def lights_ahead(scene: Scene, t: int) -> list[tuple[int, Leg]]:
    """The lights near enough to be drawn."""
    legs = enumerate(scene.light_legs)
    return [(i, leg) for i, leg in legs if 0 < leg.stop_line - scene.ego_s[t] + LIGHT_BEYOND_LINE < 60]


def placed_lights(scene: Scene, t: int) -> list[tuple[Source, Placed]]:
    """The heads of the lights, one above each lane."""
    found = []
    for i, leg in lights_ahead(scene, t):
        shape = light_shape(str(scene.light_colours[t, i]))
        for lane in range(SAME_LANES):
            pose = light_pose(scene, leg, lane_offset(lane))
            found.append((Source("light", i), in_ego_frame(scene, t, shape, *pose, LIGHT_MIN_HEIGHT / LIGHT_SIZE[2])))
    return found


def placed_scenery(scene: Scene, t: int) -> list[Placed]:
    """The gantries that the lights hang on, and houses."""
    found = []
    for _, leg in lights_ahead(scene, t):
        edge = scene.kerb_right - 0.5
        post, beam = post_shape(LIGHT_BOTTOM + LIGHT_SIZE[2] + 0.2), gantry_shape(-edge)
        found.append(in_ego_frame(scene, t, post, *light_pose(scene, leg, edge), 0.0))
        found.append(in_ego_frame(scene, t, beam, *light_pose(scene, leg, edge / 2), 0.0))
    for house in scene.houses:
        if math.hypot(house.x - scene.ego[t, 0], house.y - scene.ego[t, 1]) < HOUSE_RANGE:
            shape = house_shape(house.length, house.depth, house.height, house.colour)
            found.append(in_ego_frame(scene, t, shape, house.x, house.y, house.yaw, 0.0))
    return found


def light_pose(scene: Scene, leg: Leg, d: float) -> tuple[float, float, float]:
    """Global x, y and yaw of a point on the beam of a signal, which hangs straight on from the stop line."""
    x, y, yaw = (float(value) for value in scene.path.at(leg.stop_line, d))
    return x + LIGHT_BEYOND_LINE * math.cos(yaw), y + LIGHT_BEYOND_LINE * math.sin(yaw), yaw


def joined_quads(sources: list[Source], placed: list[Placed]) -> Surroundings:
    """The quads of all objects in the ego frame, and how far they are from the cameras."""
    shapes = [item.shape for item in placed]
    sizes = [len(shape.corners) for shape in shapes]
    owner = np.repeat(np.arange(len(placed)), sizes)
    spin, shift = rotations([item.yaw for item in placed])[owner], np.array([[p.x, p.y, 0.0] for p in placed])
    corners = np.einsum("qij,qkj->qki", spin, np.concatenate([s.corners for s in shapes])) + shift[owner][:, None]
    normals = np.concatenate([shape.normals for shape in shapes])
    parts = np.einsum("qij,qj->qi", spin, np.concatenate([s.part_centres for s in shapes])) + shift[owner]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    nearest = np.minimum.reduceat(distances(corners).min(axis=2), starts, axis=1)
    low = np.minimum.reduceat(corners.min(axis=1), starts)
    high = np.maximum.reduceat(corners.max(axis=1), starts)
    centre = (low + high) / 2
    return Surroundings(
        sources=sources,
        corners=corners,
        normals=np.einsum("qij,qj->qi", spin, normals),
        both_sides=~normals.any(axis=1),
        colours=np.concatenate([shape.colours for shape in shapes]),
        shining=np.concatenate([shape.shining for shape in shapes]),
        solid=np.concatenate([shape.solid for shape in shapes]),
        owner=owner,
        part_distance=distances(parts),
        centre=centre,
        radius=np.hypot(high[:, 0] - low[:, 0], high[:, 1] - low[:, 1]) / 2,
        distance=(nearest + distances(centre)) / 2,
        min_metre=np.array([item.min_metre for item in placed]),
    )


def rotations(angles: list[float]) -> np.ndarray:
    """(angle, 3, 3): turns around z."""
    spin = np.zeros((len(angles), 3, 3))
    spin[:, 0, 0] = spin[:, 1, 1] = np.cos(angles)
    spin[:, 0, 1], spin[:, 1, 0], spin[:, 2, 2] = -np.sin(angles), np.sin(angles), 1.0
    return spin


def distances(points: np.ndarray) -> np.ndarray:
    """(camera, ...): metres along the ground from each camera to points (..., xyz)."""
    positions = np.array([CAMERA_CALIBRATION[name][0] for name in CAMERAS])
    return np.stack([np.hypot(points[..., 0] - x, points[..., 1] - y) for x, y, _ in positions])
