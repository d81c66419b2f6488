"""Ego motion and other road users from nuScenes' tables: what a planner learns from and is judged by.

Source: the JSON tables of nuScenes v1.0 (https://www.nuscenes.org/nuscenes#data-format, non-commercial terms), of
v1.0-mini, v1.0-trainval or a synthetic world. Nothing else is needed: no devkit, no map, no CAN bus.

The ego frame: x forward, y left, metres, origin on the ground below the rear axle, at the key frame itself; yaw in
radians, counter-clockwise. Poses are those of LIDAR_TOP's key frames, as in VAD and UniAD; a synthetic world has no
lidar poses of its own moment, so CAM_FRONT's, which are the same. One sample:

    EgoMotion(timestamp=1_532_402_927_647_951, speed=4.1, command="go straight", command_source="future",
              history=[(-8.2, 0.1, 0.0), ...] four moments, the oldest first, 2.0 to 0.5 s ago,
              history_mask=[True, True, True, True],
              future=[(2.0, 0.0, 0.0), ...] six moments, 0.5 to 3.0 s ahead, future_mask=[True] * 6,
              agents=[Agent("vehicle.car", (4.6, 1.9, 1.7), poses=[(12.0, -3.5, 0.0), ...] seven moments, 0 to 3.0 s,
                            mask=[True] * 7), ...])

A moment beyond the scene's first or last is masked and zero. It is never the last pose again, nor the next scene's.
"""

import json
import math
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HISTORY, FUTURE = 4, 6  # moments
STEP = 0.5  # seconds between moments
KEY_FRAME_GAP = 0.75  # seconds; key frames that are closer than this are 2 Hz, whose next one is the next moment
TOLERANCE = 0.1  # seconds between a moment and the pose that stands for it, where key frames are rarer
TURN = 2.0  # metres to the side after 3 s from which a future counts as a turn, as in UniAD, VAD and ST-P3
COMMANDS = ("turn left", "turn right", "change lane left", "change lane right", "go straight")
COMMAND_SOURCES = ("route", "future")
REFERENCE_CHANNELS = ("LIDAR_TOP", "CAM_FRONT")
ROUTE_FILE = "route.json"  # of a synthetic world: {sample token: command}

Pose = tuple[float, float, float]  # x, y in metres, yaw in radians


@dataclass(frozen=True)
class Agent:
    """Another road user or thing: nuScenes' category, length, width and height in metres, poses at 0 .. 3 s."""

    category: str
    size: tuple[float, float, float]
    poses: list[Pose]
    mask: list[bool]


@dataclass(frozen=True)
class EgoMotion:
    """One key frame's motion, see the module's docstring; `speed` in m/s, None at a scene's first moment."""

    timestamp: int
    history: list[Pose]
    history_mask: list[bool]
    future: list[Pose]
    future_mask: list[bool]
    speed: float | None
    command: str | None
    command_source: str | None
    agents: list[Agent]


@dataclass(frozen=True)
class _Moment:
    time: float  # seconds
    position: np.ndarray  # (3,) metres, global
    rotation: np.ndarray  # (3, 3) ego to global


class NuScenesTables:
    """The tables of one version of a nuScenes folder.

    Args:
        root: the folder that holds `v1.0-trainval/` or another version, and `samples/`.
        version: folder of the tables; None: the only one there is.

    Raises:
        FileNotFoundError: the folder, the version or one of its tables is missing.
        ValueError: several versions and none named, or a table that is cut short or lacks a field.
    """

    def __init__(self, root: Path, version: str | None = None):
        self.root = Path(root)
        self.folder = self.root / (version or _only_version(self.root))
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.root} has no tables {version}; it has {_versions(self.root) or 'none'}")
        try:
            self._read()
        except KeyError as error:
            raise ValueError(
                f"a table in {self.folder} lacks the field or token {error}: it is not nuScenes v1.0"
            ) from None

    def _table(self, name: str) -> list[dict]:
        path = self.folder / f"{name}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: copy the whole folder of tables")
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}): it is cut short, copy it again") from None
        if not isinstance(rows, list):
            raise ValueError(f"{path} holds a {type(rows).__name__}, not a table's list of rows")
        return rows

    def _read(self) -> None:
        self.scenes = {scene["token"]: scene for scene in self._table("scene")}
        self.samples = {sample["token"]: sample for sample in self._table("sample")}
        self.categories = {instance["token"]: instance["category_token"] for instance in self._table("instance")}
        names = {category["token"]: category["name"] for category in self._table("category")}
        self.categories = {instance: names[category] for instance, category in self.categories.items()}
        self.annotations = defaultdict(dict)  # {sample: {instance: row}}
        for row in self._table("sample_annotation"):
            self.annotations[row["sample_token"]][row["instance_token"]] = row
        self._read_pictures_and_poses()

    def _read_pictures_and_poses(self) -> None:
        channels = {sensor["token"]: sensor["channel"] for sensor in self._table("sensor")}
        channel_of = {row["token"]: channels[row["sensor_token"]] for row in self._table("calibrated_sensor")}
        self.pictures = defaultdict(dict)  # {sample: {camera: path below the root}}
        reference = {}
        for row in self._table("sample_data"):
            if not row["is_key_frame"]:
                continue
            channel = channel_of[row["calibrated_sensor_token"]]
            if channel.startswith("CAM_"):
                self.pictures[row["sample_token"]][channel] = row["filename"]
            if channel in REFERENCE_CHANNELS:
                reference.setdefault(row["sample_token"], {})[channel] = row["ego_pose_token"]
        wanted = {
            sample: next(poses[channel] for channel in REFERENCE_CHANNELS if channel in poses)
            for sample, poses in reference.items()
        }
        poses = {row["token"]: row for row in self._table("ego_pose")}
        self.pose_of = {sample: _moment(poses[token]) for sample, token in wanted.items()}
        self._chains = {scene: self._chain(scene) for scene in self.scenes}
        self._rare_poses = self._poses_between_key_frames(poses)
        route = self.folder / ROUTE_FILE
        self.route = json.loads(route.read_text(encoding="utf-8")) if route.is_file() else {}

    def _chain(self, scene_token: str) -> list[str]:
        """Sample tokens of a scene in order."""
        chain, token = [], self.scenes[scene_token]["first_sample_token"]
        while token:
            chain.append(token)
            token = self.samples[token]["next"]
        return chain

    def _poses_between_key_frames(self, poses: dict[str, dict]) -> dict[str, list[_Moment]]:
        """{scene: all its poses by time} of scenes whose key frames are rarer than 2 Hz.

        Such poses belong to a scene by their time alone: those within half a minute of its key frames that are nearer
        to them than to another scene's.
        """
        rare = {}
        for scene, chain in self._chains.items():
            times = [self.pose_of[sample].time for sample in chain]
            gaps = np.diff(times)
            if len(chain) > 1 and np.median(gaps) <= KEY_FRAME_GAP:
                continue
            rare[scene] = (min(times), max(times))
        if not rare:
            return {}
        moments = sorted((_moment(row) for row in poses.values()), key=lambda moment: moment.time)
        times = [moment.time for moment in moments]
        found = {}
        for scene, (first, last) in rare.items():
            found[scene] = moments[bisect_left(times, first - 20.0) : bisect_left(times, last + 20.0)]
        return found

    def sample_tokens(self, scene_token: str) -> list[str]:
        """Tokens of a scene's key frames, in order."""
        return self._chains[scene_token]

    def motion(self, sample_token: str) -> EgoMotion:
        """What the ego and everyone annotated did around a key frame.

        Raises:
            KeyError: a sample that the tables do not have.
        """
        now = self.pose_of[sample_token]
        around = {k: self._at(sample_token, k) for k in range(-HISTORY, FUTURE + 1) if k}
        history, history_mask = _relative(now, [around[k] for k in range(-HISTORY, 0)])
        future, future_mask = _relative(now, [around[k] for k in range(1, FUTURE + 1)])
        before = around[-1]
        speed = None
        if before is not None:
            speed = float(np.linalg.norm((now.position - before.position)[:2]) / (now.time - before.time))
        command, source = self._command(sample_token, future, future_mask)
        return EgoMotion(
            timestamp=self.samples[sample_token]["timestamp"],
            history=history,
            history_mask=history_mask,
            future=future,
            future_mask=future_mask,
            speed=speed,
            command=command,
            command_source=source,
            agents=self._agents(sample_token, now),
        )

    def _at(self, sample_token: str, steps: int) -> _Moment | None:
        """The ego at so many half seconds after a key frame; None beyond the scene."""
        scene = self.samples[sample_token]["scene_token"]
        if scene not in self._rare_poses:
            other = self._sample_at(sample_token, steps)
            return None if other is None else self.pose_of[other]
        moments = self._rare_poses[scene]
        return _nearest(moments, [moment.time for moment in moments], self.pose_of[sample_token].time + steps * STEP)

    def _sample_at(self, sample_token: str, steps: int) -> str | None:
        scene = self.samples[sample_token]["scene_token"]
        chain = self._chains[scene]
        if scene not in self._rare_poses:
            place = chain.index(sample_token) + steps
            return chain[place] if 0 <= place < len(chain) else None
        wanted = self.pose_of[sample_token].time + steps * STEP
        near = [other for other in chain if abs(self.pose_of[other].time - wanted) < TOLERANCE]
        return near[0] if near else None

    def _command(self, sample_token: str, future: list[Pose], mask: list[bool]) -> tuple[str | None, str | None]:
        if sample_token in self.route:
            return self.route[sample_token], "route"
        if not all(mask):
            return None, None
        side = future[-1][1]
        return ("turn left" if side >= TURN else "turn right" if side <= -TURN else "go straight"), "future"

    def _agents(self, sample_token: str, now: _Moment) -> list[Agent]:
        moments = [sample_token, *(self._sample_at(sample_token, k) for k in range(1, FUTURE + 1))]
        agents = []
        for instance, row in self.annotations[sample_token].items():
            rows = [None if sample is None else self.annotations[sample].get(instance) for sample in moments]
            poses, mask = _relative(now, [None if other is None else _moment(other) for other in rows])
            width, length, height = row["size"]
            agents.append(Agent(self.categories[instance], (length, width, height), poses, mask))
        return agents


def _versions(root: Path) -> str:
    return ", ".join(sorted(path.name for path in root.glob("v1.0*") if path.is_dir()))


def _only_version(root: Path) -> str:
    found = sorted(path.name for path in root.glob("v1.0*") if path.is_dir())
    if not found:
        raise FileNotFoundError(f"{root} holds no nuScenes tables: there is no folder v1.0-*")
    if len(found) > 1:
        raise ValueError(f"{root} holds the tables of {', '.join(found)}: name one with --nuscenes-version")
    return found[0]


def _moment(row: dict) -> _Moment:
    return _Moment(row.get("timestamp", 0) / 1e6, np.asarray(row["translation"], float), _matrix(row["rotation"]))


def _matrix(quaternion: list[float]) -> np.ndarray:
    """(3, 3) rotation of a unit quaternion w, x, y, z."""
    w, x, y, z = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _nearest(moments: list[_Moment], times: list[float], wanted: float) -> _Moment | None:
    place = bisect_left(times, wanted)
    near = [moments[i] for i in (place - 1, place) if 0 <= i < len(moments)]
    best = min(near, key=lambda moment: abs(moment.time - wanted), default=None)
    return best if best is not None and abs(best.time - wanted) < TOLERANCE else None


def _relative(now: _Moment, others: list[_Moment | None]) -> tuple[list[Pose], list[bool]]:
    """Poses in the ego frame of `now`, zero and masked where there is none."""
    poses = []
    for other in others:
        if other is None:
            poses.append((0.0, 0.0, 0.0))
            continue
        x, y, _ = now.rotation.T @ (other.position - now.position)
        turn = now.rotation.T @ other.rotation
        poses.append((float(x), float(y), math.atan2(turn[1, 0], turn[0, 0])))
    return poses, [other is not None for other in others]
