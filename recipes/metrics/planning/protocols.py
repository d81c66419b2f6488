"""L2 and collision of plans in five public protocols and in ours, frame by frame. numpy and siblings alone.

Each protocol gives statistics per frame, numerators beside denominators; a score is the mean over its columns of
sum / sum (`mean_of_ratios`). README.md compares the protocols in a table.

The public protocols work in the LiDAR frame (x right, y forward, origin 0.985793 m ahead of the rear axle at the
frame's moment). Their plans are the LiDAR's path, ours is the rear axle's: the waypoints are taken over as
displacements, so the two differ by how far the LiDAR swings out in a turn.
"""

from functools import cached_property

import numpy as np

from .occupancy_grid import grid_hits
from .oriented_boxes import box_corners, boxes_overlap, plan_headings
from .planning_frames import EgoBox

PROTOCOLS = ("ours", "uniad", "stp3", "bevplanner", "sparsedrive", "paradrive")
SECONDS = (1, 2, 3)
STEPS_PER_SECOND = 2

LIDAR_AHEAD = 0.985793  # metres from the rear axle, as in BEV-Planner
ZOE = EgoBox()
MIDDLE_AHEAD = ZOE.ahead - LIDAR_AHEAD  # 0.5 m from the LiDAR to the middle of the ego

# The categories that the detection task of nuScenes names vehicles and pedestrians; no emergency vehicles.
DETECTION_VEHICLES = {
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
}
DETECTION_PEDESTRIANS = {
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.police_officer",
}
STP3_RANGE = (15.0, 30.0)  # metres to the right or left of the LiDAR and ahead or behind it, at the frame's moment

HALF_METRE_CELLS = 200  # cells of 0.5 m from -50 m to 50 m
TENTH_CELLS = 1000  # cells of 0.1 m from -50 m to 50 m
TENTH_ORIGIN = 499.5  # where the ego frame's origin lies among the middles of those cells


class FrameAgents:
    """A frame's agents as arrays: `boxes` (agents, 6, 5) x, y, yaw, length, width at 0.5 .. 3 s in the ego frame,
    `present` (agents, 6) bool, and which of them each protocol looks at, (agents,) bool each."""

    def __init__(self, agents):
        poses = np.array([agent.poses for agent in agents], dtype=np.float64).reshape(-1, 7, 3)
        mask = np.array([agent.mask for agent in agents], dtype=bool).reshape(-1, 7)
        poses = np.where(mask[..., None], poses, 0.0)
        size = np.array([agent.size for agent in agents], dtype=np.float64).reshape(-1, 1, 3).repeat(6, axis=1)
        self.boxes = np.concatenate([poses[:, 1:], size[..., [1]], size[..., [0]]], axis=-1)
        self.present = mask[:, 1:]
        categories = [agent.category for agent in agents]
        self.vehicles = np.array([name in DETECTION_VEHICLES for name in categories], dtype=bool)
        detected = np.array([name in DETECTION_VEHICLES | DETECTION_PEDESTRIANS for name in categories], dtype=bool)
        right, forward = -poses[:, 0, 1], poses[:, 0, 0] - LIDAR_AHEAD
        self.stp3 = detected & mask[:, 0] & (np.abs(right) < STP3_RANGE[0]) & (np.abs(forward) < STP3_RANGE[1])
        self.road_users = np.array([name.startswith(("vehicle.", "human.")) for name in categories], dtype=bool)

    @cached_property
    def lidar_boxes(self):
        """`boxes` in the LiDAR frame."""
        x, y, yaw, length, width = np.moveaxis(self.boxes, -1, 0)
        return np.stack([-y, x - LIDAR_AHEAD, yaw + np.pi / 2, length, width], axis=-1)

    @cached_property
    def half_metre_corners(self):
        """Corners (agents, 6, 4, 2) in the LiDAR frame in cells of 0.5 m, rounded: UniAD's."""
        return np.round((box_corners(self.lidar_boxes) + 50.0) / 0.5).astype(np.int64)

    @cached_property
    def flipped_half_metre_corners(self):
        """The same on the grid whose rows run backwards: VAD's."""
        return np.round((box_corners(self.lidar_boxes) * [1, -1] + 50.0) / 0.5).astype(np.int64)

    @cached_property
    def tenth_corners(self):
        """Corners (agents, 6, 4, 2) in the ego frame in cells of 0.1 m, cut off: BEV-Planner's."""
        return np.trunc((box_corners(self.boxes) + 49.95) / 0.1).astype(np.int64)


def lidar_path(waypoints):
    """Waypoints (6, 2) of the ego frame as the LiDAR's displacements in its frame."""
    return np.stack([-waypoints[:, 1], waypoints[:, 0]], axis=-1)


def uniad_hits(waypoints, agents):
    """-> (6,) bool. Vehicles on 0.5 m cells; the ego as 8 x 4 cells, its yaw ignored."""
    ego = _half_metre_ego(waypoints, flipped=False)
    return grid_hits(ego, agents.half_metre_corners, agents.present & agents.vehicles[:, None])


def stp3_hits(waypoints, agents):
    """-> (6,) bool. As `uniad_hits` with pedestrians, on a grid whose rows run backwards: agents come to lie one cell
    further back. Agents that are out of range or not annotated at the frame's moment are not seen later either."""
    ego = _half_metre_ego(waypoints, flipped=True)
    return grid_hits(ego, agents.flipped_half_metre_corners, agents.present & agents.stp3[:, None])


def _half_metre_ego(waypoints, flipped):
    """Cells of the ego (6, 32, 2). A cell counts where its middle lies in the ego's box at the origin."""
    columns = _cells_between(-ZOE.width / 2, ZOE.width / 2, 0.5)
    rows = _cells_between(MIDDLE_AHEAD - ZOE.length / 2, MIDDLE_AHEAD + ZOE.length / 2, 0.5)
    cells = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(1, -1, 2)
    cells = lidar_path(waypoints)[:, None] / 0.5 + cells
    if flipped:
        cells = np.stack([cells[..., 0], HALF_METRE_CELLS - cells[..., 1]], axis=-1)
    return np.clip(np.trunc(cells).astype(np.int64), 0, HALF_METRE_CELLS - 1)


def _cells_between(low, high, resolution):
    """Indices of the cells whose middles lie between two coordinates in metres; the grid begins at -50 m."""
    first = -50.0 + resolution / 2
    return np.arange(np.ceil((low - first) / resolution), np.floor((high - first) / resolution) + 1)


def bevplanner_hits(waypoints, agents):
    """-> (6,) bool. Vehicles on 0.1 m cells of the ego frame; the ego turned about its rear axle to each step's
    direction, straight ahead where the step is below 1 m."""
    along = _cells_between(ZOE.ahead - ZOE.length / 2, ZOE.ahead + ZOE.length / 2, 0.1)
    across = _cells_between(-ZOE.width / 2, ZOE.width / 2, 0.1)
    x, y = np.stack(np.meshgrid(along, across)).reshape(2, -1) - TENTH_ORIGIN
    step = np.diff(waypoints, axis=0, prepend=0.0)
    yaw = np.where(np.linalg.norm(step, axis=-1) < 1, 0.0, np.arctan2(step[:, 1], step[:, 0]))[:, None]
    turned = np.stack([x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw)], axis=-1)
    turned = np.round(turned + TENTH_ORIGIN)
    ego = np.clip(np.trunc(waypoints[:, None] / 0.1 + turned).astype(np.int64), 0, TENTH_CELLS - 1)
    return grid_hits(ego, agents.tenth_corners, agents.present & agents.vehicles[:, None])


def sparsedrive_hits(waypoints, agents):
    """-> (6,) bool. Oriented boxes without a grid, every annotated box; the ego's middle 0.5 m ahead of the LiDAR
    along its yaw. Yaw is that of central differences, straight ahead for a path below 0.5 m; where two waypoints two
    steps apart are equal it is 0 in the LiDAR frame, which points to the right."""
    path = lidar_path(waypoints)
    if np.linalg.norm(path[-1] - path[0]) < 0.5:
        yaw = np.full(len(path), np.pi / 2)
    else:
        points = np.concatenate([np.zeros((1, 2)), path])
        chords = np.concatenate([points[2:] - points[:-2], points[-1:] - points[-2:-1]])
        yaw = np.arctan2(chords[:, 1], chords[:, 0])
    middle = path + MIDDLE_AHEAD * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    return _box_hits(middle, yaw, ZOE, agents.lidar_boxes, agents.present)


def our_hits(waypoints, agents, ego):
    """-> (6,) bool. Oriented boxes without a grid, every vehicle and every human; the ego's box by its heading
    (`plan_headings`), its middle `ego.ahead` metres ahead of the rear axle."""
    yaw = plan_headings(waypoints)
    middle = waypoints + ego.ahead * np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
    return _box_hits(middle, yaw, ego, agents.boxes, agents.present & agents.road_users[:, None])


def _box_hits(middle, yaw, ego, boxes, present):
    size = np.broadcast_to([ego.length, ego.width], middle.shape)
    ego_boxes = np.concatenate([middle, yaw[:, None], size], axis=-1)
    return (boxes_overlap(ego_boxes, boxes) & present).any(axis=0)


def mean_of_ratios(sums):
    """The score of statistics: sums (..., 2 k), k numerators and k denominators -> (...), NaN where one is 0."""
    numerators, denominators = np.split(np.asarray(sums, dtype=np.float64), 2, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (numerators / denominators).mean(axis=-1)


def frame_statistics(plans, frames, ego=ZOE):
    """What each protocol counts in each frame.

    Args:
        plans: (frames, 6, 2) float, finite (`checked_plans`).
        frames: list of `PlanningFrame`.
        ego: the footprint of `ours`; the public protocols are defined by nuScenes' car.
    -> {protocol: {metric: (frames, 2 k) float: k numerators, then k denominators}}
    """
    return frame_statistics_of_many([plans], frames, ego)[0]


def frame_statistics_of_many(many, frames, ego=ZOE):
    """`frame_statistics` of several planners (planners, frames, 6, 2), the hits of agents and expert prepared once.
    -> list of what `frame_statistics` gives
    """
    future, valid = expert_futures(frames)
    hits = _all_hits([*many, known_paths(future, valid)], frames, ego)
    not_first = valid & ~np.array([[frame.first_of_scene] for frame in frames])
    found = []
    for place, plans in enumerate(many):
        errors = np.where(valid, np.linalg.norm(plans - future, axis=-1), 0.0)
        own = {protocol: (both[place], both[-1]) for protocol, both in hits.items()}
        found.append(_statistics(errors, own, valid, not_first))
    return found


def expert_futures(frames):
    """-> (frames, 6, 2) float, zero where there is no ground truth, and (frames, 6) bool: where there is."""
    valid = np.array([frame.mask for frame in frames], dtype=bool)
    future = np.array([np.asarray(frame.future, dtype=np.float64)[:, :2] for frame in frames])
    return np.where(valid[..., None], future, 0.0), valid


def _statistics(errors, hits, valid, not_first):
    """As `frame_statistics`, of errors (frames, 6) and {protocol: (hits of the plans (frames, 6), the expert's)}."""
    every = np.ones(valid.shape, dtype=bool)
    whole = np.repeat(valid.all(axis=1, keepdims=True), valid.shape[1], axis=1)
    up_to = np.logical_and.accumulate(valid, axis=1)
    return {
        "ours": {
            **_by_seconds("l2", errors, valid),
            **_by_seconds("collision", _any_so_far(hits["ours"][0]), up_to),
            **_by_seconds("expert_collision", _any_so_far(hits["ours"][1]), up_to),
        },
        "uniad": {
            **_by_seconds("l2", errors, every),
            **_by_seconds("collision", hits["uniad"][0] & ~hits["uniad"][1] & valid, every),
            **_by_seconds("expert_collision", hits["uniad"][1], valid),
        },
        "stp3": _mean_protocol(errors, *hits["stp3"], whole),
        "bevplanner": {
            **_by_seconds("l2", _mean_so_far(errors), whole),
            **_by_seconds("collision", _any_so_far(hits["bevplanner"][0] & ~hits["bevplanner"][1]), whole),
            **_by_seconds("expert_collision", _any_so_far(hits["bevplanner"][1]), whole),
        },
        "sparsedrive": _mean_protocol(errors, *hits["sparsedrive"], whole),
        "paradrive": {
            **_by_seconds("l2", errors, not_first),
            "l2_all": np.concatenate([errors * not_first, not_first], axis=1),
        },
    }


def _all_hits(paths, frames, ego):
    """Paths: list of (frames, 6, 2) -> {protocol: hits (paths, frames, 6) bool}."""
    counters = {
        "ours": lambda waypoints, agents: our_hits(waypoints, agents, ego),
        "uniad": uniad_hits,
        "stp3": stp3_hits,
        "bevplanner": bevplanner_hits,
        "sparsedrive": sparsedrive_hits,
    }
    hits = {name: np.zeros((len(paths), len(frames), 6), dtype=bool) for name in counters}
    for index, frame in enumerate(frames):
        if not frame.agents:
            continue
        agents = FrameAgents(frame.agents)
        for name, count in counters.items():
            for place, path in enumerate(paths):
                hits[name][place, index] = count(path[index], agents)
    return hits


def known_paths(futures, valid):
    """The expert's paths (frames, 6, 2) with the last known waypoint held where there is no ground truth: headings
    before it then do not turn towards the origin. What is hit beyond it is never counted."""
    paths = []
    for future, there in zip(futures, valid, strict=True):
        known = np.flatnonzero(there)
        paths.append(future[np.minimum(np.arange(len(future)), known[-1])] if len(known) else future)
    return np.array(paths)


def _mean_protocol(errors, hits, expert_hits, counts):
    return {
        **_by_seconds("l2", _mean_so_far(errors), counts),
        **_by_seconds("collision", _mean_so_far(hits & ~expert_hits), counts),
        **_by_seconds("expert_collision", _mean_so_far(expert_hits), counts),
    }


def _by_seconds(name, values, counts):
    """Values (frames, 6) of the frames and steps that count, at 1, 2 and 3 s and the mean of the three."""
    steps = [seconds * STEPS_PER_SECOND - 1 for seconds in SECONDS]
    values, counts = (values * counts)[:, steps].astype(np.float64), counts[:, steps].astype(np.float64)
    columns = {
        f"{name}_{seconds}s": np.stack([values[:, i], counts[:, i]], axis=1) for i, seconds in enumerate(SECONDS)
    }
    return {**columns, f"{name}_avg": np.concatenate([values, counts], axis=1)}


def _mean_so_far(values):
    return np.cumsum(values, axis=1) / np.arange(1, values.shape[1] + 1)


def _any_so_far(hits):
    return np.logical_or.accumulate(hits, axis=1)
