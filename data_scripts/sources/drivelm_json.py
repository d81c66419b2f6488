"""Reader of DriveLM's JSON: nesting checked, questions filtered, one dict per key frame.

The official nesting (`v1_1_train_nus.json`; the challenge's test files have neither `scene_description` nor
`key_object_infos`, their questions carry a `tag`, and their answers may be empty):

    {scene_token: {"scene_description": "The ego vehicle ...",
                   "key_frames": {frame_token: {"key_object_infos": {...},
                                                "QA": {"perception": [{"Q": "...", "A": "...", "tag": [0], ...}],
                                                       "prediction": [...], "planning": [...], "behavior": [...]},
                                                "image_paths": {"CAM_FRONT": "../nuscenes/samples/CAM_FRONT/n008.jpg",
                                                                ... six cameras}}}}}

A file of another car may name other cameras in `image_paths`. Those that are not asked for are left out and counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from data_scripts.question_types import names_object_tag
from data_scripts.schema import CAMERAS

TASKS = ("perception", "prediction", "planning", "behavior")
CHALLENGE_TAGS = (0, 1, 2, 3)  # accuracy, GPT score, language metrics, match of object tags


def read_drivelm(
    paths: Iterable[Path], drop_object_tags: bool, keep_unlabelled: bool, cameras: Sequence[str] = CAMERAS
) -> tuple[list[dict], dict]:
    """Key frames of one or more DriveLM files, in the order of the files.

    A file is read whole: its text alone (about 500 MB for the full training set), never an image.

    Args:
        paths: the JSON files.
        drop_object_tags: leave out the questions that name an object tag `<cN,CAM,x,y>` in question or answer.
        keep_unlabelled: keep questions without an answer, with the answer "" (the challenge's test files).
        cameras: whose image paths to read.

    Returns:
        The frames, each {"scene_token", "frame_token", "scene_description", "image_paths": {camera: path under the
        nuScenes root}, "other_sensors": [name], "qa", "dropped": Counter of reasons}, and the sha256 of each file by
        its name.

    Raises:
        ValueError: a file is not JSON, is not nested as above, repeats a frame, or holds an image path that leaves
            the nuScenes folder. The message names file, scene, frame and value.
        OSError: a file cannot be read.
    """
    frames, digests, seen = [], {}, {}
    for path in paths:
        if path.name in digests:
            raise ValueError(f"{path}: a second file named {path.name} was given, rename one")
        data = path.read_bytes()
        digests[path.name] = hashlib.sha256(data).hexdigest()
        try:
            for frame in parse_drivelm(data, drop_object_tags, keep_unlabelled, cameras):
                token = frame["frame_token"]
                if token in seen:
                    raise ValueError(f"frame {token!r} is duplicated, first in {seen[token]}")
                seen[token] = f"{path.name}, scene {frame['scene_token']!r}"
                frames.append(frame)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return frames, digests


def parse_drivelm(
    data: bytes, drop_object_tags: bool, keep_unlabelled: bool, cameras: Sequence[str] = CAMERAS
) -> list[dict]:
    """Key frames in the text of one DriveLM file; see `read_drivelm`.

    Raises:
        ValueError: the text or its nesting is wrong.
    """
    try:
        scenes = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON, perhaps cut short: {error}") from None
    except RecursionError:
        raise ValueError("not DriveLM: nested too deeply") from None
    frames = []
    for scene_token, scene in _object(scenes, "the file").items():
        where = f"scene {scene_token!r}"
        _token(scene_token, where)
        description = _object(scene, where).get("scene_description") or None
        if description is not None:
            _token(description, f"{where}: scene_description")
        for frame_token, frame in _object(scene.get("key_frames"), f"{where}: key_frames").items():
            where = f"scene {scene_token!r}, frame {frame_token!r}"
            _token(frame_token, where)
            qa, dropped = _questions(_object(frame, where).get("QA"), where, drop_object_tags, keep_unlabelled)
            paths = _object(frame.get("image_paths"), f"{where}: image_paths")
            frames.append(
                {
                    "scene_token": scene_token,
                    "frame_token": frame_token,
                    "scene_description": description,
                    "image_paths": _image_paths(paths, cameras, where),
                    "other_sensors": [
                        _token(name, f"{where}: a name in image_paths") for name in paths if name not in cameras
                    ],
                    "qa": qa,
                    "dropped": dropped,
                }
            )
    return frames


def filter_question(
    question: object, answer: object, drop_object_tags: bool, keep_unlabelled: bool
) -> tuple[str, str] | str:
    """A usable (question, answer), or the reason to drop it."""
    if keep_unlabelled and answer is None:
        answer = ""
    for name, text in (("question", question), ("answer", answer)):
        if not isinstance(text, str):
            return f"{name} is not a string"
        if not text.strip() and not (name == "answer" and keep_unlabelled):
            return f"{name} is empty"
        if not _is_unicode(text):
            return f"{name} is not valid Unicode"
    if drop_object_tags and (names_object_tag(question) or names_object_tag(answer)):
        return "names an object tag"
    return question, answer


def _questions(qa: object, where: str, drop_object_tags: bool, keep_unlabelled: bool) -> tuple[list[dict], Counter]:
    kept, dropped = [], Counter()
    for task, items in _object(qa, f"{where}: QA").items():
        if task not in TASKS:
            raise ValueError(f"{where}: unknown task {task!r} in QA, expected {', '.join(TASKS)}")
        if not isinstance(items, list):
            raise ValueError(f"{where}: QA.{task} must be a list, not {_kind(items)}")
        for number, item in enumerate(items):
            item = _object(item, f"{where}: QA.{task}[{number}]")
            if "Q" not in item:
                raise ValueError(
                    f"{where}: QA.{task}[{number}] has no question 'Q', only {', '.join(item) or 'nothing'}"
                )
            tag = [] if item.get("tag") is None else item["tag"]
            if not isinstance(tag, list) or any(
                type(entry) is not int or entry not in CHALLENGE_TAGS for entry in tag
            ):
                raise ValueError(f"{where}: QA.{task}[{number}].tag must be a list of 0, 1, 2 or 3, not {tag!r:.80}")
            filtered = filter_question(item["Q"], item.get("A"), drop_object_tags, keep_unlabelled)
            if isinstance(filtered, str):
                dropped[filtered] += 1
            else:
                kept.append({"task": task, "question": filtered[0], "answer": filtered[1], "tag": tag})
    return kept, dropped


def _image_paths(paths: dict, cameras: Sequence[str], where: str) -> dict[str, str]:
    """Image paths by camera, relative to the nuScenes root; no lookup on disk."""
    relative = {}
    for camera in (name for name in paths if name in cameras):
        path = paths[camera]
        if not isinstance(path, str) or "\0" in path or not _is_unicode(path):
            raise ValueError(f"{where}: the image path of {camera} must be a string, not {path!r:.80}")
        try:
            relative[camera] = path_below(path.removeprefix("../nuscenes/"))
        except ValueError:
            message = f"{where}: the image path of {camera} leaves the nuScenes folder: {path!r:.200}"
            raise ValueError(message) from None
    return relative


def path_below(path: str) -> str:
    """A path that a JSON file names, as one below the folder that it is relative to, in its shortest form.

    Everyone who resolves names from a JSON file uses this check.

    Raises:
        ValueError: the path is empty, absolute (`/a`, `//a`) or climbs out (`..`), on Windows too (`C:a`, `..\\a`).
    """
    pure, windows = PurePosixPath(path), PureWindowsPath(path)
    if not pure.parts or pure.root or windows.anchor or ".." in (*pure.parts, *windows.parts):
        raise ValueError(f"{path!r:.200} is not a path below a folder")
    return "/".join(pure.parts)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is duplicated in one object: scenes, frames and cameras must be unique")
    return result


def _object(value: object, where: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object, not {_kind(value)}")
    return value


def _token(value: object, where: str) -> str:
    if not isinstance(value, str) or not value or not _is_unicode(value):
        raise ValueError(f"{where} must be text, not {value!r:.80}")
    return value


def _kind(value: object) -> str:
    return "missing or null" if value is None else type(value).__name__


def _is_unicode(text: str) -> bool:
    """False for text with half a surrogate pair, which JSON's escapes allow and UTF-8 does not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
