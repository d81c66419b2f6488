"""Reader of the paper's two data sets on the Hugging Face Hub, or of the same tables as local Parquet.

The question table has one row per question:

    {"scene_token": "f0f1...", "frame_token": "4a07...", "scene_description": "The ego vehicle ...",
     "task": "perception", "question": "Are there barriers to the front of the ego car?", "answer": "Yes.",
     "nuscenes_index": 17}

The image table has one row per key frame, in six image columns named after the cameras; row `nuscenes_index` of the
same split belongs to the question. The splits of the tables are not kept, as nothing shows that they are disjoint by
scene: frames are assigned again by the hash of their scene, and a frame that several splits hold becomes one.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets import Dataset, DatasetDict, Image, load_dataset

from data_scripts.schema import CAMERAS, as_patterns
from data_scripts.sources.camera_images import UnusableImage
from data_scripts.sources.drivelm_json import filter_question

QUESTION_COLUMNS = ("scene_token", "frame_token", "scene_description", "task", "question", "answer", "nuscenes_index")


def open_paper_tables(
    questions: str, images: str, drop_object_tags: bool, keep_unlabelled: bool
) -> tuple[list[dict], Callable[[dict, str], bytes], dict]:
    """Frames of the two tables, a function that reads a frame's image, and what identifies the source.

    Args:
        questions: Hub id or local folder of the question table.
        images: Hub id or local folder of the image table. A local folder holds `<split>/*.parquet` or
            `[data/]<split>-*.parquet`.
        drop_object_tags: leave out the questions that name an object tag.
        keep_unlabelled: keep a question whose answer is empty or missing, with the answer "".

    Returns:
        Frames as `drivelm_json.read_drivelm` gives them, `read_image(frame, camera) -> bytes` (raises UnusableImage
        where the table has no image), and the names and digest of the tables.

    Raises:
        ValueError: a column is missing, or a question's picture is uncertain: index out of range, two frames at one
            index, one frame in two scenes.
        OSError: a table cannot be loaded.
    """
    question_splits = _load(questions, QUESTION_COLUMNS)
    image_splits = _load(images, CAMERAS)
    digest = hashlib.sha256()
    frames: dict[str, dict] = {}
    owners: dict[tuple[str, int], str] = {}
    for split, table in question_splits.items():
        if split not in image_splits:
            raise ValueError(
                f"{images} has no split {split!r}, which {questions} has; it has {', '.join(image_splits)}"
            )
        for number, item in enumerate(_items(table, digest)):
            where = f"{questions}, split {split}, row {number}"
            frame = _frame_of(item, split, len(image_splits[split]), frames, owners, where)
            _add_question(frame, item, drop_object_tags, keep_unlabelled, where)
    source = {
        "questions": questions,
        "questions sha256": digest.hexdigest(),
        "images": images,
        "image table bytes": {split: table.data.nbytes for split, table in image_splits.items()},
    }
    in_order = sorted(frames.values(), key=lambda frame: frame["table_row"])
    return in_order, _image_reader(image_splits), source


def _items(table: Dataset, digest) -> Iterator[dict]:
    """The rows of a question table, added to the digest as they are read."""
    for batch in table.select_columns(list(QUESTION_COLUMNS)).iter(batch_size=1000):
        digest.update(json.dumps(batch, sort_keys=True).encode())
        for values in zip(*(batch[column] for column in QUESTION_COLUMNS), strict=True):
            yield dict(zip(QUESTION_COLUMNS, values, strict=True))


def _image_reader(splits: DatasetDict) -> Callable[[dict, str], bytes]:
    columns = {
        (split, camera): table.select_columns([camera]).cast_column(camera, Image(decode=False))
        for split, table in splits.items()
        for camera in CAMERAS
    }

    def read_image(frame: dict, camera: str) -> bytes:
        split, index = frame["table_row"]
        image = columns[split, camera][index][camera]
        if image is None or not image["bytes"]:
            raise UnusableImage("no image in the table")
        return image["bytes"]

    return read_image


def _load(name: str, columns: tuple[str, ...]) -> DatasetDict:
    """All splits of a table on the Hub or in a folder of Parquet files; every split has the columns."""
    folder = Path(name)
    try:
        if folder.is_dir():
            files: dict[str, list[Path]] = {}
            for path in sorted(folder.rglob("*.parquet")):
                in_folder_of_split = path.parent not in (folder, folder / "data")
                split = path.parent.name if in_folder_of_split else path.stem.split("-")[0]
                files.setdefault(split, []).append(path)
            if not files:
                raise FileNotFoundError("the folder has no Parquet file")
            patterns = {split: as_patterns(paths) for split, paths in files.items()}
            splits = load_dataset("parquet", data_files=patterns)
        else:
            splits = load_dataset(name)
    except Exception as error:  # datasets, the Hub's client and Arrow each raise errors of their own
        raise OSError(f"cannot load {name}: {error} (give a Hub id owner/name or an existing folder)") from error
    for split, table in splits.items():
        absent = [column for column in columns if column not in table.column_names]
        if absent:
            raise ValueError(
                f"{name}, split {split}: no column {', '.join(absent)}; it has {', '.join(table.column_names)}"
            )
    return splits


def _frame_of(item: dict, split: str, num_images: int, frames: dict, owners: dict, where: str) -> dict:
    """The frame that a question belongs to, made when its first question comes."""
    scene, token, index = item["scene_token"], item["frame_token"], item["nuscenes_index"]
    if not isinstance(scene, str) or not scene or not isinstance(token, str) or not token:
        raise ValueError(f"{where}: scene_token and frame_token must be text, not {scene!r} and {token!r}")
    if type(index) is not int or not 0 <= index < num_images:
        raise ValueError(
            f"{where}: nuscenes_index is {index!r}, the image table's split {split!r} has {num_images} rows"
        )
    owner = owners.setdefault((split, index), token)
    if owner != token:
        raise ValueError(f"{where}: frame {token!r} has nuscenes_index {index}, which is frame {owner!r}'s")
    frame = frames.setdefault(
        token,
        {
            "scene_token": scene,
            "frame_token": token,
            "scene_description": item["scene_description"],
            "table_row": (split, index),
            "image_paths": {camera: f"{split}-{index}-{camera}" for camera in CAMERAS},
            "qa": [],
            "dropped": Counter(),
        },
    )
    if frame["scene_token"] != scene:
        raise ValueError(f"{where}: frame {token!r} is in scene {scene!r} here and in {frame['scene_token']!r} before")
    return frame


def _add_question(frame: dict, item: dict, drop_object_tags: bool, keep_unlabelled: bool, where: str) -> None:
    if not isinstance(item["task"], str) or not item["task"]:
        raise ValueError(f"{where}: task must be text, not {item['task']!r}")
    filtered = filter_question(item["question"], item["answer"], drop_object_tags, keep_unlabelled)
    if isinstance(filtered, str):
        frame["dropped"][filtered] += 1
    else:
        question, answer = filtered
        frame["qa"].append({"task": item["task"].lower(), "question": question, "answer": answer, "tag": []})
