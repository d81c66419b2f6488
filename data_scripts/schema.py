"""The scene row: what every data script writes and every recipe reads.

One row is one key frame, with its images once and all its questions:

    {"scene_token": "f0f1...", "frame_token": "4a07...", "scene_description": "The ego vehicle proceeds ..." or None,
     "CAM_FRONT_LEFT": {"bytes": b"<JPEG>", "path": "n008-...jpg"}, ... five more cameras, None where one is missing,
     "qa": [{"task": "perception", "question": "Are there barriers to the front of the ego car?", "answer": "Yes.",
             "tag": []}, ...]}

The cameras are nuScenes' six unless a data script was given others; `manifest.json` then names them in their order.
A model reads rows that have a column for each of its cameras, whatever else they hold.

Rows for a planner (data_scripts/prepare_planning.py) also have the `PLANNING_FEATURES`, and their `qa` may be empty.

A prepared folder holds `<split>/shard-00000.parquet`, ... for the splits train, eval and test, and `manifest.json`:
the source of the rows, the options, the counts, and whether the preparation was finished.
"""

import glob
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, IterableDataset, Value, load_dataset

from smoldriver_common.shipped import CAMERAS, COMMANDS, check_camera_names
from smoldriver_common.whole_files import write_json, written_whole

SPLITS = ("train", "eval", "test")


def scene_features(cameras: Iterable[str] = CAMERAS) -> Features:
    """Columns of a scene row with these cameras, in this order.

    Raises:
        ValueError: see `check_camera_names`; a camera is called as another column.
    """
    cameras = check_camera_names(cameras)
    taken = {"scene_token", "frame_token", "scene_description", "qa", *PLANNING_FEATURES} & set(cameras)
    if taken:
        raise ValueError(f"a camera cannot be called {min(taken)}: a scene row has another column of that name")
    return Features(
        {
            "scene_token": Value("string"),
            "frame_token": Value("string"),
            "scene_description": Value("string"),  # a human's summary of the clip; None where the source has none
            **{camera: Image() for camera in cameras},
            # tag: how the DriveLM challenge scores the question (0 accuracy, 1 GPT, 2 language, 3 match), else empty
            "qa": [
                {
                    "task": Value("string"),
                    "question": Value("string"),
                    "answer": Value("string"),
                    "tag": [Value("int64")],
                }
            ],
        }
    )


def cameras_of(features: Features) -> list[str]:
    """The cameras of scene rows, in their order."""
    return [name for name, feature in features.items() if isinstance(feature, Image)]


PLANNING_FEATURES = Features(
    {
        # ego frame of the key frame: x forward, y left, metres, origin below the rear axle; yaw in radians
        "timestamp": Value("int64"),  # microseconds
        "ego_history": [[Value("float64")]],  # 4 moments of x, y, yaw, the oldest first: 2.0 .. 0.5 s ago
        "ego_history_mask": [Value("bool")],
        "ego_future": [[Value("float64")]],  # 6 moments: 0.5 .. 3.0 s ahead; zero and masked beyond the scene
        "ego_future_mask": [Value("bool")],
        "speed": Value("float64"),  # m/s; None at a scene's first moment
        "command": Value("string"),  # None where neither route nor whole future is known
        "command_source": Value("string"),  # "route" or "future"; the second is a leak: it knows where the ego went
        "scenario": Value("string"),  # what matters for the ego's next 3 s, of SCENARIOS; None: nothing, or not known
        "agents": [
            {
                "category": Value("string"),  # nuScenes'
                "size": [Value("float64")],  # width, length, height in metres: nuScenes' order
                "poses": [[Value("float64")]],  # 7 moments: 0 .. 3.0 s
                "mask": [Value("bool")],
            }
        ],
    }
)
SCENE_FEATURES = scene_features()
PLANNING_ROW = Features({**SCENE_FEATURES, **PLANNING_FEATURES})
COMMAND_SOURCES = ("route", "future")
SCENARIOS = ("crossing_pedestrian", "cut_in", "pull_out", "oncoming_turn", "blocked_lane")
MOMENTS = {"ego_history": 4, "ego_future": 6}  # agents' poses: as many as the future, and the key frame's own
MANIFEST = "manifest.json"


def split_of(scene_token: str) -> str:
    """Split of a scene, 8/1/1, from a hash of its token: the same on every machine, whatever else is in the data."""
    tenth = int(hashlib.sha256(scene_token.encode()).hexdigest(), 16) % 10
    return "train" if tenth < 8 else "eval" if tenth == 8 else "test"


def check_disjoint(splits: Mapping[str, Iterable[str]]) -> None:
    """Refuse splits that share a scene.

    Args:
        splits: scene tokens of each split, in any order, repeated or not.

    Raises:
        ValueError: names the two splits and up to five of the scenes that both hold.
    """
    scenes = {name: set(tokens) for name, tokens in splits.items()}
    for (first, some), (second, others) in combinations(scenes.items(), 2):
        shared = sorted(some & others)
        if shared:
            raise ValueError(
                f"splits {first!r} and {second!r} share {len(shared)} scenes ({', '.join(shared[:5])}): frames of one "
                "drive look alike, so each scene must lie in one split only"
            )


def validate_row(row: Mapping, cameras: Iterable[str] = CAMERAS) -> None:
    """Refuse a row that is not a scene row with these cameras.

    Raises:
        ValueError: names the frame, the column and the value at fault.
    """
    frame = row.get("frame_token")
    columns = set(SCENE_FEATURES) - set(CAMERAS) | set(cameras)
    if set(row) not in (columns, columns | set(PLANNING_FEATURES)):
        raise ValueError(f"frame {frame!r}: a scene row has the columns {sorted(columns)}, not {sorted(row)}")
    for column in ("scene_token", "frame_token"):
        if not isinstance(row[column], str) or not row[column]:
            raise ValueError(f"frame {frame!r}: {column} must be a non-empty string, not {row[column]!r}")
    if not isinstance(row["scene_description"], str | None):
        raise ValueError(f"frame {frame!r}: scene_description must be a string or None")
    for camera in cameras:
        image = row[camera]
        if image is not None and not (isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes)):
            raise ValueError(
                f"frame {frame!r}: {camera} must be None or {{'bytes': ..., 'path': ...}} with an image file's bytes"
            )
    if all(row[camera] is None for camera in cameras):
        raise ValueError(f"frame {frame!r}: none of the cameras {', '.join(cameras)} has an image")
    if not isinstance(row["qa"], list):
        raise ValueError(f"frame {frame!r}: qa must be a list, not {type(row['qa']).__name__}")
    for item in row["qa"]:
        if not isinstance(item, Mapping) or set(item) != {"task", "question", "answer", "tag"}:
            raise ValueError(f"frame {frame!r}: a qa item has task, question, answer and tag, not {item!r}")
        if not (
            isinstance(item["task"], str) and isinstance(item["question"], str) and isinstance(item["answer"], str)
        ):
            raise ValueError(f"frame {frame!r}: task, question and answer must be strings, not {item!r}")
        if not isinstance(item["tag"], list) or not all(type(tag) is int for tag in item["tag"]):
            raise ValueError(f"frame {frame!r}: tag must be a list of integers, not {item['tag']!r}")
    if set(row) > columns:
        _validate_planning(row)


def _validate_planning(row: Mapping) -> None:
    """The same for the columns of `PLANNING_FEATURES`."""
    frame, speed, command, source = (row[name] for name in ("frame_token", "speed", "command", "command_source"))
    if type(row["timestamp"]) is not int:
        raise ValueError(f"frame {frame!r}: timestamp must be whole microseconds, not {row['timestamp']!r}")
    for column, count in MOMENTS.items():
        _validate_poses(f"frame {frame!r}: {column}", row[column], row[f"{column}_mask"], count)
    if speed is not None and not (math.isfinite(speed) and speed >= 0):
        raise ValueError(f"frame {frame!r}: speed must be a finite number of m/s, 0 or more, or None, not {speed}")
    if (command, source) != (None, None) and (command not in COMMANDS or source not in COMMAND_SOURCES):
        raise ValueError(
            f"frame {frame!r}: the command {command!r} from {source!r} must be one of {', '.join(COMMANDS)} from"
            f" {' or '.join(COMMAND_SOURCES)}, or both None"
        )
    if row["scenario"] is not None and row["scenario"] not in SCENARIOS:
        raise ValueError(
            f"frame {frame!r}: the scenario {row['scenario']!r} must be None or of {', '.join(SCENARIOS)}"
        )
    if not isinstance(row["agents"], list):
        raise ValueError(f"frame {frame!r}: agents must be a list, not {type(row['agents']).__name__}")
    for agent in row["agents"]:
        where = f"frame {frame!r}: an agent of category {agent['category']!r}"
        _validate_poses(where, agent["poses"], agent["mask"], MOMENTS["ego_future"] + 1)
        if len(agent["size"]) != 3 or not all(math.isfinite(size) and size > 0 for size in agent["size"]):
            raise ValueError(f"{where} has the size {agent['size']}: give width, length and height in metres")


def _validate_poses(where: str, poses: list, mask: list, count: int) -> None:
    if not (isinstance(poses, list) and isinstance(mask, list) and len(poses) == len(mask) == count):
        raise ValueError(f"{where} must have {count} poses and as many masks, not {poses!r:.80} and {mask!r:.80}")
    if not all(isinstance(known, bool) for known in mask):
        raise ValueError(f"{where} has a mask that is not true or false: {mask!r:.80}")
    if not all(len(pose) == 3 and all(map(math.isfinite, pose)) for pose in poses):
        raise ValueError(f"{where} has a pose that is not three finite numbers x, y, yaw: {poses!r:.80}")


def scene_table(rows: list[Mapping], features: Features = SCENE_FEATURES) -> pa.Table:
    """Arrow table of checked scene rows, ready for `open_shard`; `datasets` reads its camera columns as PIL images.

    Args:
        features: `scene_features(cameras)`, or `PLANNING_ROW` for rows with ego motion.
    """
    for row in rows:
        validate_row(row, cameras_of(features))
    return pa.Table.from_pylist(rows, schema=features.arrow_schema)


def shard_path(folder: str | os.PathLike, split: str, index: int) -> Path:
    """Where shard `index` of a split lies in a prepared folder."""
    return Path(folder) / split / f"shard-{index:05d}.parquet"


@contextmanager
def open_shard(path: str | os.PathLike, features: Features = SCENE_FEATURES) -> Iterator[pq.ParquetWriter]:
    """Write one shard, table by table: `with open_shard(path) as shard: shard.write_table(scene_table(rows))`.

    The file is written aside and renamed at the end: `path` holds a whole shard or nothing, even after a kill -9.
    Each table becomes a row group, the unit that a streaming reader holds in memory; keep it to some tens of rows.
    """
    with written_whole(path) as aside, pq.ParquetWriter(aside, _readable_schema(features)) as writer:
        yield writer


def _readable_schema(features: Features) -> pa.Schema:
    """The Arrow schema with the features written as `datasets` 2 and 3 know them; later versions read them too."""
    described = {"info": {"features": _before_lists(features.to_dict())}}
    return features.arrow_schema.with_metadata({"huggingface": json.dumps(described)})


def _before_lists(feature):
    """A feature as a dict, without the type `List` of `datasets` 4: a list of structs was `[struct]`, any other a
    `Sequence`."""
    if not isinstance(feature, dict):
        return feature
    feature = {name: _before_lists(part) for name, part in feature.items()}
    if feature.get("_type") != "List":
        return feature
    inner = feature["feature"]
    return {**feature, "_type": "Sequence"} if "_type" in inner else [inner]


def write_manifest(folder: str | os.PathLike, manifest: Mapping) -> None:
    """Write a prepared folder's `manifest.json`, whole or not at all.

    Args:
        manifest: `complete` (bool: whether all shards are there), `source`, `options` (what the rows depend on), and,
            when complete, `splits`: {split: {"scenes", "frames", "questions", "shards": counts}} for every split that
            has shards, and `report`; `cameras`, in the order of the columns: without it they are nuScenes' six.
    """
    write_json(Path(folder) / MANIFEST, manifest, ensure_ascii=False)


def read_manifest(folder: str | os.PathLike) -> dict | None:
    """The folder's `manifest.json`, None where there is none.

    Raises:
        ValueError: the file is not a manifest.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete the folder and prepare it again") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("complete"), bool):
        raise ValueError(f"{path} is not the manifest of prepared scenes: it has no field 'complete'")
    if manifest["complete"] and not isinstance(manifest.get("splits"), dict):
        raise ValueError(f"{path} is not the manifest of prepared scenes: it has no field 'splits'")
    for split, count in manifest["splits"].items() if manifest["complete"] else ():
        if split not in SPLITS:
            raise ValueError(f"{path}: unknown split {split!r:.80}, expected {', '.join(SPLITS)}")
        for name in ("frames", "shards"):
            if not isinstance(count, dict) or type(count.get(name)) is not int or count[name] < 0:
                raise ValueError(f"{path}: split {split!r} needs a number of {name}, not {count!r:.80}")
    try:
        scene_features(manifest_cameras(manifest))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} names cameras that cannot be: {error}") from None
    return manifest


def manifest_cameras(manifest: Mapping) -> list[str]:
    """The cameras of a prepared folder's rows, in the order of their columns."""
    return manifest.get("cameras", list(CAMERAS))


def load_scenes(
    folder: str | os.PathLike, split: str, streaming: bool = False, columns: list[str] | None = None
) -> Dataset | IterableDataset:
    """Rows of one split of a prepared folder, camera columns decoded to PIL images as they are read.

    Args:
        folder: a folder that a data script has finished, with `manifest.json` and one folder per split.
        split: `train`, `eval` or `test`.
        streaming: read the shards one after the other (`datasets.IterableDataset`), without a memory-mapped copy in
            the `datasets` cache.
        columns: the columns to read; None reads all.

    Raises:
        FileNotFoundError: the folder, its manifest or one of its shards is missing.
        ValueError: unknown or empty split, unfinished preparation, a scene that lies in two splits, or a picture that
            is not stored in its row.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: prepare the scenes first, e.g. with data_scripts/prepare_drivelm.py"
        )
    manifest = read_manifest(folder)
    if manifest is None:
        raise FileNotFoundError(f"{folder} has no {MANIFEST}: it is not a folder of prepared scenes")
    if not manifest["complete"]:
        raise ValueError(f"the preparation of {folder} was not finished: run the same command again, it resumes")
    counts = manifest["splits"]
    if not counts.get(split, {}).get("frames"):
        others = ", ".join(f"{name} ({count['frames']} frames)" for name, count in counts.items() if count["frames"])
        raise ValueError(f"split {split!r} of {folder} is empty; these have rows: {others or 'none'}")
    shards = {
        name: [shard_path(folder, name, index) for index in range(count["shards"])] for name, count in counts.items()
    }
    for path in (path for paths in shards.values() for path in paths):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing though {MANIFEST} lists it: delete {folder} and prepare it again"
            )
    check_disjoint({name: _scene_tokens(paths) for name, paths in shards.items()})
    for path in shards[split]:
        check_shard(path, manifest_cameras(manifest))
    files = {split: as_patterns(shards[split])}
    return load_dataset("parquet", data_files=files, split=split, streaming=streaming, columns=columns)


def as_patterns(paths: Iterable[Path]) -> list[str]:
    """The files as `load_dataset` takes them: it reads `[ab]`, `*` and `?` in a path as a pattern, and `::` as a chain
    of addresses.

    Raises:
        ValueError: a path holds `::`, which cannot be escaped.
    """
    paths = [str(path) for path in paths]
    for path in paths:
        if "::" in path:
            raise ValueError(f"{path} cannot be loaded because of the '::' in it: rename the folder")
    return [glob.escape(path) for path in paths]


def check_shard(path: Path, cameras: Iterable[str]) -> None:
    """Refuse a shard, perhaps from elsewhere, of other cameras or whose pictures are not stored in it.

    `datasets` opens the path, or fetches the URL, of a picture without bytes: no row may hold one.

    Raises:
        ValueError: the columns are not those of a scene row, a picture has no bytes, or its path is more than a name.
    """
    features = Features.from_arrow_schema(pq.read_schema(path))
    if "command" in features and "scenario" not in features:
        raise ValueError(
            f"{path} holds planning rows of an older format, without the column 'scenario': delete"
            f" {path.parents[1]} and run python data_scripts/prepare_planning.py --nuscenes <tables> --output-dir"
            f" {path.parents[1]}"
        )
    expected = scene_features(cameras)
    if features not in (expected, Features({**expected, **PLANNING_FEATURES})):
        raise ValueError(
            f"{path} does not hold scene rows: its columns are not those of data_scripts/schema.py with the cameras"
            f" {', '.join(cameras)}, which {MANIFEST} names"
        )
    with pq.ParquetFile(path) as shard:
        for group in range(shard.num_row_groups):
            row_group = shard.metadata.row_group(group)
            leaves = {row_group.column(place).path_in_schema: place for place in range(row_group.num_columns)}
            for camera in cameras:
                pictures = shard.read_row_group(group, columns=[f"{camera}.path"])[camera].to_pylist()
                for name in (picture["path"] for picture in pictures if picture is not None):
                    if name is not None and "/" in name:
                        raise ValueError(f"{path}: the path of a {camera} picture is more than a name: {name!r:.80}")
                statistics = row_group.column(leaves[f"{camera}.bytes"]).statistics
                if statistics is None or statistics.null_count != pictures.count(None):
                    raise ValueError(
                        f"{path}: a picture of {camera} has no bytes in its row: prepare the scenes again"
                    )


def _scene_tokens(shards: Iterable[Path]) -> set[str]:
    return {
        token for path in shards for token in pq.read_table(path, columns=["scene_token"])["scene_token"].to_pylist()
    }
