"""The files of a Space: the page of recipes/serving/space, the name of its model, frames to try it on."""

import io
import json
from collections import Counter
from pathlib import Path

from datasets import Image as ImageFeature
from PIL import Image

from data_scripts.question_types import question_type
from data_scripts.schema import load_scenes
from recipes.evaluation.predictions import read_metrics
from smoldriver_common.shipped import CAMERAS

PAGE = Path(__file__).parent / "space"
PAGE_FILES = ("README.md", "app.py", "answering.py", "requirements.txt", "showing.py")
SPACE_FILES = (*PAGE_FILES, "settings.json", "examples/*")  # the next push removes stale ones
FRAMES = 6
QUESTIONS = 8  # suggested with each frame


def space_files(model: str, scenes: Path | None = None, split: str = "test") -> dict[str, Path | bytes]:
    """-> {name in the Space: path or content}

    Args:
        model: Hub id or folder, which the page loads.
        scenes: prepared scene rows to take the examples from; None for a page without examples.

    Raises:
        FileNotFoundError, ValueError: see `load_scenes`.
    """
    files: dict[str, Path | bytes] = {name: PAGE / name for name in PAGE_FILES}
    readme = files["README.md"].read_text(encoding="utf-8")
    if not Path(model).is_dir():  # the Hub shows the Space beside the model
        readme = readme.replace("\nlicense:", f"\nmodels:\n- {model}\nlicense:").replace('"user/space"', f'"{model}"')
    files["README.md"] = readme.encode()
    files["settings.json"] = json.dumps({"model": model}, indent=1).encode()
    return files | ({} if scenes is None else example_files(scenes, split))


def published_space(repo_id: str, evaluation: Path, data: str) -> dict[str, Path | bytes]:
    """The Space beside a model on the Hub, with examples from the scenes of its evaluation.

    Only the synthetic world's: DriveLM's pictures are nuScenes', which may not be published again.

    Raises:
        FileNotFoundError, ValueError: no evaluation, and see `space_files`.
    """
    settings = read_metrics(evaluation).settings
    return space_files(repo_id, Path(settings.scenes) if data == "synthetic" else None, settings.split)


def example_files(scenes: Path, split: str) -> dict[str, bytes]:
    """Frames of as many scenes, spread over the split, with their questions and true answers.

    The pictures are the rows' own files: the page answers what an evaluation answers.

    Raises:
        FileNotFoundError, ValueError: see `load_scenes`; no frame with questions.
    """
    rows = load_scenes(scenes, split)
    for camera in CAMERAS:
        rows = rows.cast_column(camera, ImageFeature(decode=False))
    texts = rows.select_columns(["scene_token", "qa"])
    places = {row["scene_token"]: place for place, row in enumerate(texts) if row["qa"]}  # the last frame of each
    places = list(places.values())
    if not places:
        raise ValueError(f"no frame in split {split!r} of {scenes} has a question")
    count = min(FRAMES, len(places))
    entries, files = [], {}
    for number in range(count):
        row = rows[places[number * len(places) // count]]
        pictures = {}
        for camera in CAMERAS:
            if row[camera] is not None:
                with Image.open(io.BytesIO(row[camera]["bytes"])) as image:
                    pictures[camera] = f"{number}_{camera}.{image.format.lower()}"
                files[f"examples/{pictures[camera]}"] = row[camera]["bytes"]
        truth = {qa["question"]: qa["answer"] for qa in varied(row["qa"], QUESTIONS)}
        entries.append({"pictures": pictures, "truth": truth})
    files["examples/examples.json"] = json.dumps(entries, indent=1, ensure_ascii=False).encode()
    return files


def varied(qa: list[dict], count: int) -> list[dict]:
    """The first question of each type, then the second of each, up to `count`."""
    seen, ranked = Counter(), []
    for place, entry in enumerate(qa):
        kind = question_type(entry["question"], entry["task"])
        ranked.append((seen[kind], place))
        seen[kind] += 1
    return [qa[place] for _, place in sorted(ranked)[:count]]
