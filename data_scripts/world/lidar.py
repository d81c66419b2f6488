"""A sparse lidar on the roof of the synthetic car: rays cast against the quads and the ground that the pictures show.

Mounted and turned as nuScenes' LIDAR_TOP, which has 32 rings from 30.67 degrees below the horizon to 10.67 above it. A
key frame's points are the first hits of RINGS x AZIMUTHS rays, all cast at the moment of the key frame, without noise;
a ray that hits nothing within RANGE metres has no point. The file is nuScenes' `.pcd.bin`: float32 rows of x (right),
y (forward), z (up) in metres in the lidar's frame, intensity (0 to 255: how bright the painted surface is) and ring (0
is the lowest).
"""

import math
from dataclasses import dataclass

import numpy as np

from data_scripts.world.surroundings import Surroundings

LIDAR = "LIDAR_TOP"
POSITION = (0.94, 0.0, 1.84)  # in the ego frame, metres
QUATERNION = (math.sqrt(0.5), 0.0, 0.0, -math.sqrt(0.5))  # w, x, y, z: its x axis points to the right of the ego
RINGS, LOWEST, HIGHEST = 32, math.radians(-30.67), math.radians(10.67)
AZIMUTHS = 180
RANGE = 50.0

RING_STEP, AZIMUTH_STEP = (HIGHEST - LOWEST) / (RINGS - 1), 2 * math.pi / AZIMUTHS
_ELEVATIONS = LOWEST + RING_STEP * np.arange(RINGS)
_AZIMUTHS = -math.pi + AZIMUTH_STEP * (np.arange(AZIMUTHS) + 0.5)  # from the ego's x axis, to the left
RAYS = np.stack(
    [
        np.outer(np.cos(_ELEVATIONS), np.cos(_AZIMUTHS)),
        np.outer(np.cos(_ELEVATIONS), np.sin(_AZIMUTHS)),
        np.outer(np.sin(_ELEVATIONS), np.ones(AZIMUTHS)),
    ],
    axis=-1,
).reshape(-1, 3)  # (ring * AZIMUTHS + azimuth, xyz) of length 1, in the ego frame
GROUND = np.where(RAYS[:, 2] < 0, -POSITION[2] / np.minimum(RAYS[:, 2], -1e-9), np.inf)  # metres to the flat ground


@dataclass(frozen=True)
class Scan:
    """The points of one key frame."""

    points: np.ndarray  # (P, 5) float32: x, y, z, intensity, ring, as in the file
    on_agent: dict[int, int]  # agent of the scene -> number of points on it


def scan(things: Surroundings, ground_brightness: float) -> Scan:
    """The first hits of all rays.

    Args:
        things: what is around the ego, in the ego frame.
        ground_brightness: intensity of the points on the ground.
    """
    metres, intensity, owner = GROUND.copy(), np.full(len(RAYS), ground_brightness), np.full(len(RAYS), -1)
    rays, distance, quads = hits(things)
    nearer = distance < metres[rays]
    rays, distance, quads = rays[nearer], distance[nearer], quads[nearer]
    metres[rays], owner[rays] = distance, things.owner[quads]
    intensity[rays] = things.colours[quads].mean(axis=1)
    hit = np.flatnonzero(metres < RANGE)
    x, y, z = (RAYS[hit] * metres[hit, None]).T
    points = np.stack([-y, x, z, intensity[hit], hit // AZIMUTHS], axis=1).astype("<f4")
    counts = np.bincount(owner[hit] + 1, minlength=len(things.sources) + 1)[1:]
    sources = enumerate(things.sources)
    return Scan(points, {source.index: int(counts[n]) for n, source in sources if source.what == "agent"})


def hits(things: Surroundings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ray, metres, quad) of the first solid quad that each ray hits, of those that hit one."""
    corners = things.corners - POSITION
    near = np.hypot(corners[..., 0], corners[..., 1]).min(axis=1) < RANGE
    facing = (corners[:, 0] * things.normals).sum(axis=1) < 0
    quads = np.flatnonzero(things.solid & near & (facing | things.both_sides))
    corners = corners[quads]
    edges = np.roll(corners, -1, axis=1) - corners
    normals = np.cross(edges[:, 0], corners[:, 2] - corners[:, 0])
    inward = np.cross(normals[:, None], edges)  # (quad, edge, xyz), in the quad's plane
    limits = (inward * corners).sum(axis=-1)
    offsets = (normals * corners[:, 0]).sum(axis=-1)

    quad, ray = candidates(corners, edges)
    direction = RAYS[ray]
    steepness = (normals[quad] * direction).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        metres = offsets[quad] / steepness
    inside = np.isfinite(metres) & (metres > 0)
    for k in range(4):
        inside &= (inward[quad, k] * direction).sum(axis=-1) * metres >= limits[quad, k]
    quad, ray, metres = quad[inside], ray[inside], metres[inside]
    order = np.lexsort((quad, metres, ray))
    _, first = np.unique(ray[order], return_index=True)
    first = order[first]
    return ray[first], metres[first], quads[quad[first]]


def candidates(corners: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(quad, ray) of all rays between the lowest and the highest, and the leftmost and the rightmost, of each quad
    (Q, 4, 3), seen from the origin."""
    azimuths = np.arctan2(corners[..., 1], corners[..., 0])
    beside = np.remainder(azimuths - azimuths[:, :1] + math.pi, 2 * math.pi) - math.pi
    first_azimuth = np.ceil((azimuths[:, 0] + beside.min(axis=1) + math.pi) / AZIMUTH_STEP - 0.5).astype(int)
    last_azimuth = np.floor((azimuths[:, 0] + beside.max(axis=1) + math.pi) / AZIMUTH_STEP - 0.5).astype(int)

    length = np.maximum((edges[..., :2] ** 2).sum(axis=-1), 1e-12)
    part = np.clip(-(corners[..., :2] * edges[..., :2]).sum(axis=-1) / length, 0, 1)[..., None]
    nearest = np.linalg.norm(corners[..., :2] + part * edges[..., :2], axis=-1).min(axis=1)
    farthest = np.linalg.norm(corners[..., :2], axis=-1).max(axis=1)
    low, high = corners[..., 2].min(axis=1), corners[..., 2].max(axis=1)
    lowest = np.arctan2(low, np.where(low < 0, nearest, farthest))
    highest = np.arctan2(high, np.where(high > 0, nearest, farthest))
    first_ring = np.clip(np.ceil((lowest - LOWEST) / RING_STEP), 0, RINGS).astype(int)
    last_ring = np.clip(np.floor((highest - LOWEST) / RING_STEP), -1, RINGS - 1).astype(int)

    across, up = np.maximum(last_azimuth - first_azimuth + 1, 0), np.maximum(last_ring - first_ring + 1, 0)
    counts = across * up
    quad = np.repeat(np.arange(len(corners)), counts)
    place = np.arange(len(quad)) - np.repeat(np.cumsum(counts) - counts, counts)
    azimuth = (first_azimuth[quad] + place // np.maximum(up[quad], 1)) % AZIMUTHS
    ring = first_ring[quad] + place % np.maximum(up[quad], 1)
    return quad, ring * AZIMUTHS + azimuth
