"""Ego motion and other road users from nuScenes' tables: what a planner learns from and is judged by.

Source: the JSON tables of nuScenes v1.0 (https://www.nuscenes.org/nuscenes#data-format, non-commercial terms), of
v1.0-mini, v1.0-trainval or a synthetic world. Nothing else is needed: no devkit, no map, no CAN bus.

The ego frame: x forward, y left, metres, origin on the ground below the rear axle, at the key frame itself; yaw in
radians, counter-clockwise. Poses are those of LIDAR_TOP's key frames, as in VAD and UniAD, and CAM_FRONT's where there
is no lidar, as in a synthetic world. One key frame:

    EgoMotion(timestamp=1_532_402_927_647_951, speed=4.1, command="go straight", command_source="future",
              history=[(-8.2, 0.1, 0.0), ...] four moments, the oldest first, 2.0 to 0.5 s ago,
              history_mask=[True, True, True, True],
              future=[(2.0, 0.0, 0.0), ...] six moments, 0.5 to 3.0 s ahead, future_mask=[True] * 6,
              agents=[Agent("vehicle.car", (1.9, 4.6, 1.7), poses=[(12.0, -3.5, 0.0), ...] seven moments, 0 to 3.0 s,
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

from smoldriver_common.shipped import COMMANDS

HISTORY, FUTURE = 4, 6  # moments
STEP = 0.5  # seconds between moments
KEY_FRAME_GAP = 0.75  # seconds; key frames closer than this come at 2 Hz: the next one is the next moment
TOLERANCE = 0.1  # seconds between a moment and the pose that stands for it, where key frames are rarer
SCENE_SECONDS = 20.0  # a pose further than this from a scene's key frames is not the scene's
TURN = 2.0  # metres to the side after 3 s from which a future counts as a turn, as in UniAD, VAD and ST-P3
REFERENCE_CHANNELS = ("LIDAR_TOP", "CAM_FRONT")
ROUTE_FILE = "route.json"  # {sample token: command}, or {sample token: {"command", "scenario"}} of a synthetic world

Pose = tuple[float, float, float]  # x, y in metres, yaw in radians


@dataclass(frozen=True)
class Agent:
    """Another road user or thing: nuScenes' category, width, length and height in metres, poses at 0 .. 3 s."""

    category: str
    size: tuple[float, float, float]
    poses: list[Pose]
    mask: list[bool]


@dataclass(frozen=True)
class EgoMotion:
    """One key frame's motion, see the module's docstring.

    `timestamp` is in microseconds. `speed` (m/s) is the way driven since the moment before over the time since then,
    None at a scene's first moment. `command` comes from the "route" where `route.json` has one, else from the
    "future": a leak, since a planner that reads it knows where the ego went. Without a whole future it is None.
    """

    timestamp: int
    history: list[Pose]
    history_mask: list[bool]
    future: list[Pose]
    future_mask: list[bool]
    speed: float | None
    command: str | None
    command_source: str | None
    scenario: str | None  # what matters for the ego's next 3 s, where `route.json` has one
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
        ValueError: several versions and none named, a table that is cut short or lacks a field, a key frame without a
            pose, or a scene whose time runs backwards.
    """

    def __init__(self, root: Path, version: str | None = None):
        self.root = Path(root)
        self.folder = self.root / (version or _only_version(self.root))
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.root} has no tables {version}; it has {_versions(self.root) or 'none'}")
        try:
            self._read_scenes()
            self._read_annotations()
            self._read_pictures_and_poses()
            self.route = self._read_route()
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"the tables in {self.folder} are not nuScenes v1.0: no field or token {error} where one is expected"
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

    def _read_scenes(self) -> None:
        self.scenes = {scene["token"]: scene for scene in self._table("scene")}
        self.samples = {sample["token"]: sample for sample in self._table("sample")}
        self._chains = {scene: self._chain(scene) for scene in self.scenes}

    def _chain(self, scene_token: str) -> list[str]:
        """Sample tokens of a scene in order."""
        chain, token, before = [], self.scenes[scene_token]["first_sample_token"], -math.inf
        while token:
            sample = self.samples[token]
            if sample["timestamp"] <= before or sample["scene_token"] != scene_token:
                raise ValueError(
                    f"{self.folder}: sample {token} in scene {scene_token} is of another scene or not later than the"
                    " sample before it: copy the tables again"
                )
            chain.append(token)
            token, before = sample["next"], sample["timestamp"]
        return chain

    def _read_annotations(self) -> None:
        names = {category["token"]: category["name"] for category in self._table("category")}
        instances = self._table("instance")
        categories = {instance["token"]: names[instance["category_token"]] for instance in instances}
        self.annotations = defaultdict(dict)  # {sample: {instance: row}}
        for row in self._table("sample_annotation"):
            kept = {name: row[name] for name in ("translation", "rotation", "size")}
            kept["category"] = categories[row["instance_token"]]
            self.annotations[row["sample_token"]][row["instance_token"]] = kept

    def _read_pictures_and_poses(self) -> None:
        channels = {sensor["token"]: sensor["channel"] for sensor in self._table("sensor")}
        channel_of = {row["token"]: channels[row["sensor_token"]] for row in self._table("calibrated_sensor")}
        self.pictures = defaultdict(dict)  # {sample: {camera: path below the root}}
        reference = defaultdict(dict)  # {sample: {channel: token of its pose}}
        for row in self._table("sample_data"):
            if not row["is_key_frame"]:
                continue
            channel = channel_of[row["calibrated_sensor_token"]]
            if channel.startswith("CAM_"):
                self.pictures[row["sample_token"]][channel] = row["filename"]
            if channel in REFERENCE_CHANNELS:
                reference[row["sample_token"]][channel] = row["ego_pose_token"]
        wanted = {}
        for sample in (sample for chain in self._chains.values() for sample in chain):
            found = [reference[sample][channel] for channel in REFERENCE_CHANNELS if channel in reference[sample]]
            if not found:
                raise ValueError(f"{self.folder}: sample {sample} has no pose of {' or '.join(REFERENCE_CHANNELS)}")
            wanted[sample] = found[0]
        rows = self._table("ego_pose")
        needed = set(wanted.values())
        poses = {row["token"]: _moment(row, row["timestamp"]) for row in rows if row["token"] in needed}
        self.pose_of = {sample: poses[token] for sample, token in wanted.items()}
        self._rare_poses = self._poses_between_key_frames(rows)

    def _poses_between_key_frames(self, rows: list[dict]) -> dict[str, list[_Moment]]:
        """{scene: all its poses by time} of scenes whose key frames are rarer than 2 Hz.

        No table says which scene such a pose belongs to. It is the scene whose key frames are nearest in time, unless
        they are more than `SCENE_SECONDS` away.
        """
        times = {scene: [self.pose_of[sample].time for sample in chain] for scene, chain in self._chains.items()}
        rare = {scene for scene, of in times.items() if len(of) == 1 or np.median(np.diff(of)) > KEY_FRAME_GAP}
        if not rare:
            return {}
        spans = sorted((min(of), max(of), scene) for scene, of in times.items())
        moments = sorted((_moment(row, row["timestamp"]) for row in rows), key=lambda moment: moment.time)
        by_time = [moment.time for moment in moments]
        found = {}
        for place, (first, last, scene) in enumerate(spans):
            if scene not in rare:
                continue
            low, high = first - SCENE_SECONDS, last + SCENE_SECONDS
            if place > 0:
                low = max(low, (spans[place - 1][1] + first) / 2)
            if place + 1 < len(spans):
                high = min(high, (last + spans[place + 1][0]) / 2)
            found[scene] = moments[bisect_left(by_time, low) : bisect_left(by_time, high)]
        return found

    def _read_route(self) -> dict[str, str]:
        """{sample: command}; empty where the folder has no such file. Also keeps {sample: scenario}."""
        self.scenarios = {}
        path = self.folder / ROUTE_FILE
        if not path.is_file():
            return {}
        try:
            route = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}): it is cut short, copy it again") from None
        for sample, said in route.items():
            if isinstance(said, dict):
                route[sample], self.scenarios[sample] = said.get("command"), said.get("scenario")
            if route[sample] not in COMMANDS:
                raise ValueError(
                    f"{path}: sample {sample} has the command {route[sample]!r}, not {', '.join(COMMANDS)}"
                )
        return route

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
            scenario=self.scenarios.get(sample_token),
            agents=self._agents(sample_token, now),
        )

    def _at(self, sample_token: str, steps: int) -> _Moment | None:
        """The ego at so many half seconds after a key frame; None beyond the scene."""
        moments = self._rare_poses.get(self.samples[sample_token]["scene_token"])
        if moments is None:
            other = self._sample_at(sample_token, steps)
            return None if other is None else self.pose_of[other]
        return _nearest(moments, self.pose_of[sample_token].time + steps * STEP)

    def _sample_at(self, sample_token: str, steps: int) -> str | None:
        """The key frame at so many half seconds after another; None where there is none."""
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
            agents.append(Agent(row["category"], tuple(row["size"]), poses, mask))
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


def _moment(row: dict, timestamp: int = 0) -> _Moment:
    """A row's translation and rotation; an annotation needs no time of its own."""
    return _Moment(timestamp / 1e6, np.asarray(row["translation"], float), _matrix(row["rotation"]))


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


def _nearest(moments: list[_Moment], wanted: float) -> _Moment | None:
    best = min(moments, key=lambda moment: abs(moment.time - wanted), default=None)
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
