"""The tables of a synthetic scene in nuScenes' v1.0 schema (https://www.nuscenes.org/nuscenes#data-format).

Names of categories and attributes are nuScenes'. Metres, quaternions w-x-y-z, timestamps in microseconds, global frame
with z up. What differs from the real data set: a sparse lidar (see `lidar.py`) and no radar, no sweeps, cameras and
lidar all read at the moment of the key frame with one ego pose, all cameras level and without distortion. `ego_pose`
holds the pose at every 2 Hz moment of a scene, also at those that are not key frames.

Visibility is the share of an object's outline that is seen in the six pictures, in nuScenes' four levels and a level
of our own, "0": no picture shows a pixel of it. An instance has a box in every key frame from the one before it is
first seen near the ego to the one after it is last seen. So nuscenes-devkit knows the velocity of every box, wherever
key frames are at most 1.5 s apart (--frames-every 3, the default, or less). The devkit evaluates boxes that hold at
least one lidar point.

Two files beside the tables:

    splits.json  {"synthetic": [scene names]}: what nuscenes-devkit 1.2 reads for `eval_set="synthetic"`
    route.json   {sample token: {"command", "scenario"}}: what a planner is told to do, see ROUTE_COMMANDS; and which
                 scenario of `scenarios.py` matters for the ego's next 3 s, or null
"""

import hashlib
import math

from data_scripts.world import lidar
from data_scripts.world.agents import THINGS, Agent
from data_scripts.world.cameras import CAMERA_CALIBRATION, CAMERAS, camera_intrinsics
from data_scripts.world.road import CHANGE_LEFT, CHANGE_RIGHT, GO_STRAIGHT, TURN_LEFT, TURN_RIGHT, Leg, leg_at
from data_scripts.world.sight import Frame
from data_scripts.world.simulation import SAMPLE_SECONDS, SAMPLES_PER_SCENE, Scene

VERSION = "v1.0-mini"
SCENE_TABLES = ("instance", "ego_pose", "log", "scene", "sample", "sample_data", "sample_annotation")
TABLES = (*SCENE_TABLES, "category", "attribute", "visibility", "sensor", "calibrated_sensor", "map")
CATEGORIES = {
    "car": "vehicle.car",
    "truck": "vehicle.truck",
    "bus": "vehicle.bus.rigid",
    "trailer": "vehicle.trailer",
    "construction vehicle": "vehicle.construction",
    "pedestrian": "human.pedestrian.adult",
    "bicycle": "vehicle.bicycle",
    "motorcycle": "vehicle.motorcycle",
    "traffic cone": "movable_object.trafficcone",
    "barrier": "movable_object.barrier",
}
ATTRIBUTES = (
    "vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider", "cycle.without_rider",
    "pedestrian.moving", "pedestrian.standing",
)  # fmt: skip
UNSEEN = "0"  # the level of a box that no picture shows
VISIBILITIES = {UNSEEN: (0.0, 0.0), "1": (0.0, 0.4), "2": (0.4, 0.6), "3": (0.6, 0.8), "4": (0.8, 1.0)}
MAP_FILE = "maps/empty.png"
FIRST_TIMESTAMP = 1_700_000_000_000_000
ANNOTATION_RANGE = 50.0  # metres around the ego
SPLIT = "synthetic"  # the name of all scenes in splits.json
# The command at a key frame is the action of the route's leg that lies ROUTE_AHEAD of the ego: what a navigator would
# say, known before anyone drives, and not taken from what the ego does next.
ROUTE_AHEAD = 12.0  # metres along the road
ROUTE_COMMANDS = {
    TURN_LEFT: "turn left",
    TURN_RIGHT: "turn right",
    CHANGE_LEFT: "change lane left",
    CHANGE_RIGHT: "change lane right",
    GO_STRAIGHT: "go straight",
}


def token(*parts) -> str:
    """32 hexadecimal digits that depend on the parts alone."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def quaternion(yaw: float) -> list[float]:
    """w, x, y, z of a turn around z."""
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def camera_quaternion(name: str) -> list[float]:
    """w, x, y, z of the rotation from the camera's frame (x right, y down, z forward) to the ego's.

    A camera that looks along the ego's x axis has (0.5, -0.5, 0.5, -0.5); the mounting adds a turn around z before it.
    """
    half = math.radians(CAMERA_CALIBRATION[name][1]) / 2
    c, s = math.cos(half), math.sin(half)
    return [0.5 * (c + s), -0.5 * (c + s), 0.5 * (c - s), -0.5 * (c - s)]


def timestamp(index: int, t: int) -> int:
    return FIRST_TIMESTAMP + index * 60_000_000 + int(t * SAMPLE_SECONDS * 1_000_000)


def scene_name(seed: int, index: int) -> str:
    return f"synthetic-{seed:04d}-{index:05d}"


def image_file(seed: int, index: int, t: int, camera: str) -> str:
    """Path of a picture below the world's folder."""
    return f"samples/{camera}/{scene_name(seed, index)}__{camera}__{timestamp(index, t)}.jpg"


def lidar_file(seed: int, index: int, t: int) -> str:
    """Path of a key frame's points below the world's folder."""
    name = scene_name(seed, index)
    return f"samples/{lidar.LIDAR}/{name}__{lidar.LIDAR}__{timestamp(index, t)}.pcd.bin"


def shared_tables(seed: int, scenes: int, width: int, height: int) -> dict[str, list[dict]]:
    """The tables that do not belong to a scene."""
    return {
        "category": [
            {"token": token("category", name), "name": name, "description": kind, "index": number}
            for number, (kind, name) in enumerate(CATEGORIES.items(), 1)
        ],
        "attribute": [{"token": token("attribute", name), "name": name, "description": name} for name in ATTRIBUTES],
        "visibility": [
            {
                "token": level,
                "level": f"v{low * 100:.0f}-{high * 100:.0f}",
                "description": f"{low:.0%} to {high:.0%} seen",
            }
            for level, (low, high) in VISIBILITIES.items()
        ],
        "sensor": [
            {
                "token": token("sensor", name),
                "channel": name,
                "modality": "lidar" if name == lidar.LIDAR else "camera",
            }
            for name in (*CAMERAS, lidar.LIDAR)
        ],
        "calibrated_sensor": [
            {
                "token": token("calibrated_sensor", name),
                "sensor_token": token("sensor", name),
                "translation": list(CAMERA_CALIBRATION[name][0]),
                "rotation": camera_quaternion(name),
                "camera_intrinsic": camera_intrinsics(name, width, height).tolist(),
            }
            for name in CAMERAS
        ]
        + [
            {
                "token": token("calibrated_sensor", lidar.LIDAR),
                "sensor_token": token("sensor", lidar.LIDAR),
                "translation": list(lidar.POSITION),
                "rotation": list(lidar.QUATERNION),
                "camera_intrinsic": [],
            }
        ],
        "map": [
            {
                "token": token("map"),
                "log_tokens": [token("log", seed, index) for index in range(scenes)],
                "category": "semantic_prior",
                "filename": MAP_FILE,
            }
        ],
    }


def attribute_of(agent: Agent, status: str) -> list[str]:
    if agent.kind in THINGS:
        return []
    if agent.kind in ("bicycle", "motorcycle"):
        name = "cycle.with_rider" if agent.rider else "cycle.without_rider"
    else:
        name = f"{'pedestrian' if agent.kind == 'pedestrian' else 'vehicle'}.{status}"
    return [token("attribute", name)]


def route_command(legs: list[Leg], s: float) -> str:
    """What the route asks of an ego at `s`."""
    return ROUTE_COMMANDS[leg_at(legs, s + ROUTE_AHEAD).action]


def route_rows(scene: Scene, times: list[int]) -> dict[str, dict[str, str | None]]:
    """{sample token: {"command", "scenario"}} of a scene's key frames."""
    return {
        token("sample", scene.seed, scene.index, t): {
            "command": route_command(scene.legs, float(scene.ego_s[t])),
            "scenario": scene.scenario_at(t),
        }
        for t in times
    }


def scene_tables(
    scene: Scene, frames: list[Frame], points_on: list[dict[int, int]], width: int, height: int
) -> dict[str, list[dict]]:
    """The rows of one scene: log, scene, sample, sample_data, ego_pose, instance and sample_annotation.

    Args:
        points_on: for each frame the number of lidar points on each agent near the ego.
    """
    instances, annotations = annotation_rows(scene, frames, points_on)
    times = [frame.t for frame in frames]
    return {
        "log": [log_row(scene)],
        "scene": [scene_row(scene, times)],
        "ego_pose": ego_pose_rows(scene),
        "sample": sample_rows(scene, times),
        "sample_data": sample_data_rows(scene, times, width, height),
        "instance": instances,
        "sample_annotation": annotations,
    }


def log_row(scene: Scene) -> dict:
    return {
        "token": token("log", scene.seed, scene.index),
        "logfile": scene_name(scene.seed, scene.index),
        "vehicle": "synthetic",
        "date_captured": "2023-11-14",
        "location": "synthetic-town",
    }


def scene_row(scene: Scene, times: list[int]) -> dict:
    seed, index = scene.seed, scene.index
    return {
        "token": token("scene", seed, index),
        "log_token": token("log", seed, index),
        "nbr_samples": len(times),
        "first_sample_token": token("sample", seed, index, times[0]),
        "last_sample_token": token("sample", seed, index, times[-1]),
        "name": scene_name(seed, index),
        "description": f"{scene.description} ({scene.weather})",
    }


def ego_pose_rows(scene: Scene) -> list[dict]:
    """The pose at every 2 Hz moment, key frame or not."""
    return [
        {
            "token": token("ego_pose", scene.seed, scene.index, t),
            "timestamp": timestamp(scene.index, t),
            "rotation": quaternion(float(scene.ego[t, 2])),
            "translation": [round(float(scene.ego[t, 0]), 4), round(float(scene.ego[t, 1]), 4), 0.0],
        }
        for t in range(SAMPLES_PER_SCENE)
    ]


def sample_rows(scene: Scene, times: list[int]) -> list[dict]:
    seed, index = scene.seed, scene.index
    chain = [token("sample", seed, index, t) for t in times]
    return [
        {
            "token": chain[place],
            "scene_token": token("scene", seed, index),
            "timestamp": timestamp(index, t),
            **links(chain, place),
        }
        for place, t in enumerate(times)
    ]


def sample_data_rows(scene: Scene, times: list[int], width: int, height: int) -> list[dict]:
    """One row for each picture, and one for the lidar's points."""
    seed, index = scene.seed, scene.index
    sensors = (*CAMERAS, lidar.LIDAR)
    chains = {sensor: [token("sample_data", seed, index, t, sensor) for t in times] for sensor in sensors}
    picture = {"fileformat": "jpg", "height": height, "width": width}
    points = {"fileformat": "pcd", "height": 0, "width": 0}
    return [
        {
            "token": chains[sensor][place],
            "sample_token": token("sample", seed, index, t),
            "ego_pose_token": token("ego_pose", seed, index, t),
            "calibrated_sensor_token": token("calibrated_sensor", sensor),
            "timestamp": timestamp(index, t),
            "is_key_frame": True,
            **(points if sensor == lidar.LIDAR else picture),
            "filename": lidar_file(seed, index, t) if sensor == lidar.LIDAR else image_file(seed, index, t, sensor),
            **links(chains[sensor], place),
        }
        for place, t in enumerate(times)
        for sensor in sensors
    ]


def annotation_rows(
    scene: Scene, frames: list[Frame], points_on: list[dict[int, int]]
) -> tuple[list[dict], list[dict]]:
    """The instances of a scene, and their boxes in the frames that show them, between them and beside them."""
    instances, annotations = [], []
    points = {frame.t: counts for frame, counts in zip(frames, points_on, strict=True)}
    for i, agent in enumerate(scene.agents):
        shown = [place for place, frame in enumerate(frames) if is_shown(scene, frame, i)]
        if not shown:
            continue
        near = frames[max(shown[0] - 1, 0) : shown[-1] + 2]
        chain = [token("sample_annotation", scene.seed, scene.index, frame.t, i) for frame in near]
        instances.append(
            {
                "token": token("instance", scene.seed, scene.index, i),
                "category_token": token("category", CATEGORIES[agent.kind]),
                "nbr_annotations": len(chain),
                "first_annotation_token": chain[0],
                "last_annotation_token": chain[-1],
            }
        )
        for place, frame in enumerate(near):
            count = points[frame.t].get(i, 0)
            annotations.append(annotation_row(scene, frame, i, chain, place) | {"num_lidar_pts": count})
    return instances, annotations


def is_shown(scene: Scene, frame: Frame, i: int) -> bool:
    """Whether agent `i` is near the ego, and a picture shows a pixel of it."""
    distance = math.hypot(*(scene.poses[frame.t, i, :2] - scene.ego[frame.t, :2]))
    return distance < ANNOTATION_RANGE and frame.visibility.get(i, 0.0) > 0.0


def annotation_row(scene: Scene, frame: Frame, i: int, chain: list[str], place: int) -> dict:
    """The box of agent `i` in a frame, the one at `place` in the chain of its boxes."""
    agent, t = scene.agents[i], frame.t
    size = list(agent.size)
    x, y, yaw, _ = scene.poses[t, i].tolist()
    share = frame.visibility.get(i, 0.0)
    return {
        "token": chain[place],
        "sample_token": token("sample", scene.seed, scene.index, t),
        "instance_token": token("instance", scene.seed, scene.index, i),
        "visibility_token": next(level for level, (_, high) in VISIBILITIES.items() if share <= high),
        "attribute_tokens": attribute_of(agent, str(scene.statuses[t, i])),
        "translation": [round(x, 4), round(y, 4), size[2] / 2],
        "size": size,
        "rotation": quaternion(yaw),
        **links(chain, place),
        "num_radar_pts": 0,
    }


def links(chain: list[str], place: int) -> dict[str, str]:
    """The tokens before and after a place in a chain, "" at its ends."""
    before = chain[place - 1] if place else ""
    return {"prev": before, "next": chain[place + 1] if place + 1 < len(chain) else ""}
