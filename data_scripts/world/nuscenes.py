"""The tables of a synthetic scene in nuScenes' v1.0 schema (https://www.nuscenes.org/nuscenes#data-format).

Names of categories and attributes are nuScenes'. Metres, quaternions w-x-y-z, timestamps in microseconds, global frame
with z up. What differs from the real data set: no lidar and no radar (the numbers of points are 0), no sweeps, all six
cameras exposed at the moment of the key frame with one ego pose, all cameras level and without distortion. `ego_pose`
holds the pose at every 2 Hz moment of a scene, also at those which are not kept as key frames: the way driven is never
lost. Visibility is the share of an object's outline that is seen in the six pictures, in nuScenes' four levels. As
nuScenes has no box without a lidar or radar point in it, so there is none here of which no picture shows a pixel.
"""

import hashlib
import math

from data_scripts.world.questions import View
from data_scripts.world.render import (
    CAMERA_CALIBRATION,
    CAMERAS,
    camera_intrinsics,
)
from data_scripts.world.simulation import SAMPLE_SECONDS, SAMPLES_PER_SCENE, Scene

VERSION = "v1.0-mini"
SCENE_TABLES = ("instance", "ego_pose", "log", "scene", "sample", "sample_data", "sample_annotation")
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
VISIBILITIES = {"1": (0.0, 0.4), "2": (0.4, 0.6), "3": (0.6, 0.8), "4": (0.8, 1.0)}
MAP_FILE = "maps/empty.png"
FIRST_TIMESTAMP = 1_700_000_000_000_000
ANNOTATION_RANGE = 50.0  # metres around the ego


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


def shared_tables(width: int, height: int) -> dict[str, list[dict]]:
    """The tables that do not belong to a scene; `map` lists its logs later."""
    sensors = [{"token": token("sensor", name), "channel": name, "modality": "camera"} for name in CAMERAS]
    calibrated = [
        {
            "token": token("calibrated_sensor", name),
            "sensor_token": token("sensor", name),
            "translation": list(CAMERA_CALIBRATION[name][0]),
            "rotation": camera_quaternion(name),
            "camera_intrinsic": camera_intrinsics(name, width, height).tolist(),
        }
        for name in CAMERAS
    ]
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
        "sensor": sensors,
        "calibrated_sensor": calibrated,
    }


def attribute_of(agent, status: str) -> list[str]:
    if agent.kind in ("traffic cone", "barrier"):
        return []
    if agent.kind in ("bicycle", "motorcycle"):
        name = "cycle.with_rider" if agent.rider else "cycle.without_rider"
    else:
        name = f"{'pedestrian' if agent.kind == 'pedestrian' else 'vehicle'}.{status}"
    return [token("attribute", name)]


def scene_tables(scene: Scene, views: list[View], width: int, height: int) -> dict[str, list[dict]]:
    """The rows of one scene: log, scene, sample, sample_data, ego_pose, instance and sample_annotation."""
    seed, index = scene.seed, scene.index
    name, scene_token, log_token = scene_name(seed, index), token("scene", seed, index), token("log", seed, index)
    times = [view.t for view in views]
    samples = [token("sample", seed, index, t) for t in times]
    tables = {
        "log": [
            {
                "token": log_token,
                "logfile": name,
                "vehicle": "synthetic",
                "date_captured": "2023-11-14",
                "location": "synthetic-town",
            }
        ],
        "scene": [
            {
                "token": scene_token,
                "log_token": log_token,
                "nbr_samples": len(samples),
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": name,
                "description": f"{scene.description} ({scene.weather})",
            }
        ],
        "ego_pose": [
            {
                "token": token("ego_pose", seed, index, t),
                "timestamp": timestamp(index, t),
                "rotation": quaternion(float(scene.ego[t, 2])),
                "translation": [round(float(scene.ego[t, 0]), 4), round(float(scene.ego[t, 1]), 4), 0.0],
            }
            for t in range(SAMPLES_PER_SCENE)
        ],
        "sample": [],
        "sample_data": [],
        "instance": [],
        "sample_annotation": [],
    }
    for number, t in enumerate(times):
        before, after = links(samples, number)
        moment = {"timestamp": timestamp(index, t), "prev": before, "next": after}
        tables["sample"].append({"token": samples[number], "scene_token": scene_token, **moment})
        for camera in CAMERAS:
            chain = [token("sample_data", seed, index, other, camera) for other in times]
            before, after = links(chain, number)
            tables["sample_data"].append(
                {
                    "token": chain[number],
                    "sample_token": samples[number],
                    "ego_pose_token": token("ego_pose", seed, index, t),
                    "calibrated_sensor_token": token("calibrated_sensor", camera),
                    "timestamp": timestamp(index, t),
                    "fileformat": "jpg",
                    "is_key_frame": True,
                    "height": height,
                    "width": width,
                    "filename": image_file(seed, index, t, camera),
                    "prev": before,
                    "next": after,
                }
            )
    for i, agent in enumerate(scene.agents):
        near = [
            number
            for number, t in enumerate(times)
            if math.hypot(*(scene.poses[t, i, :2] - scene.ego[t, :2])) < ANNOTATION_RANGE
            and views[number].visibility.get(i, 0.0) > 0.0
        ]
        if not near:
            continue
        chain = [token("sample_annotation", seed, index, times[number], i) for number in near]
        instance = token("instance", seed, index, i)
        tables["instance"].append(
            {
                "token": instance,
                "category_token": token("category", CATEGORIES[agent.kind]),
                "nbr_annotations": len(chain),
                "first_annotation_token": chain[0],
                "last_annotation_token": chain[-1],
            }
        )
        size = list(agent.size)
        for place, number in enumerate(near):
            t = times[number]
            before, after = links(chain, place)
            share = views[number].visibility[i]
            level = next(level for level, (_, high) in VISIBILITIES.items() if share <= high)
            x, y, yaw, _ = scene.poses[t, i].tolist()
            tables["sample_annotation"].append(
                {
                    "token": chain[place],
                    "sample_token": samples[number],
                    "instance_token": instance,
                    "visibility_token": level,
                    "attribute_tokens": attribute_of(agent, str(scene.statuses[t, i])),
                    "translation": [round(x, 4), round(y, 4), size[2] / 2],
                    "size": size,
                    "rotation": quaternion(yaw),
                    "prev": before,
                    "next": after,
                    "num_lidar_pts": 0,
                    "num_radar_pts": 0,
                }
            )
    return tables


def links(chain: list[str], place: int) -> tuple[str, str]:
    """Tokens before and after a place in a chain, "" at its ends."""
    return chain[place - 1] if place else "", chain[place + 1] if place + 1 < len(chain) else ""
