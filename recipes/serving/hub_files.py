"""What the Hub shows and serves beside a model: example frames with its answers, its scores as YAML, an endpoint."""

import io
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from datasets import Image as ImageFeature
from huggingface_hub.utils import yaml_dump
from PIL import Image

from data_scripts.schema import load_scenes
from recipes.evaluation.model_card import DATA, Headline, publishable_headlines
from recipes.evaluation.predictions import METRICS_FILE, Metrics, Prediction, read_predictions
from recipes.evaluation.tables import percent
from smoldriver_common.shipped import CAMERAS

ENDPOINT_FILES = ("handler.py", "requirements.txt")
EVAL_RESULTS = ".eval_results/smoldriver.yaml"
HUB_FILES = (*ENDPOINT_FILES, EVAL_RESULTS, "examples/*")  # the next push removes stale ones
FOLDER = Path(__file__).parent
COLUMNS = 3  # of an example's picture: front left, front, front right above the cameras behind
EXAMPLE_TYPES = ("yes_no", "listing", "behavior")  # one frame for each


@dataclass
class Example:
    """A question about a test frame with the model's answer, and its pictures by name in the repository."""

    prediction: Prediction
    views: dict[str, bytes]  # by camera, as the row holds them
    suffix: str

    def files(self, number: int) -> dict[str, bytes]:
        each = {f"examples/{number}_{camera}.{self.suffix}": content for camera, content in self.views.items()}
        return {f"examples/{number}.png": self.montage(), **each}

    def montage(self) -> bytes:
        """All views in one picture, as the cameras look; a missing one stays black."""
        views = {camera: Image.open(io.BytesIO(content)) for camera, content in self.views.items()}
        width, height = next(iter(views.values())).size
        whole = Image.new("RGB", (COLUMNS * width, -(-len(CAMERAS) // COLUMNS) * height))
        for place, camera in enumerate(CAMERAS):
            if camera in views:
                whole.paste(
                    views[camera].resize((width, height)), (place % COLUMNS * width, place // COLUMNS * height)
                )
        buffer = io.BytesIO()
        whole.save(buffer, "PNG")
        return buffer.getvalue()

    def widget(self, repo_id: str, number: int) -> dict:
        """What the page shows; no provider runs the model, so it shows the answer too."""
        asked = self.prediction
        return {
            "src": f"https://huggingface.co/{repo_id}/resolve/main/examples/{number}.png",
            "text": asked.question,
            "example_title": f"{asked.question} (truth: {asked.reference})",
            "output": {"text": asked.prediction},
        }


def read_examples(evaluation: Path, metrics: Metrics, data: str) -> list[Example]:
    """Answers of the evaluation about frames of different scenes, one for each of `EXAMPLE_TYPES` that it has.

    None for DriveLM: its pictures are nuScenes', which may not be published again.

    Raises:
        FileNotFoundError: the evaluation's scenes are gone.
        ValueError: the predictions are not of these scenes.
    """
    if data != "synthetic":
        return []
    settings = metrics.settings
    rows = load_scenes(Path(settings.scenes), settings.split)
    places = {row["frame_token"]: place for place, row in enumerate(rows.select_columns(["frame_token", "qa"]))}
    for camera in CAMERAS:
        rows = rows.cast_column(camera, ImageFeature(decode=False))
    model = next(iter(metrics.results))
    answered = [entry for entry in read_predictions(evaluation) if entry.model == model]
    chosen: list[Prediction] = []
    for kind in EXAMPLE_TYPES:
        seen = {entry.scene_token for entry in chosen}
        chosen += [entry for entry in answered if entry.type == kind and entry.scene_token not in seen][:1]
    return [_example(entry, rows, places, evaluation) for entry in chosen]


def _example(asked: Prediction, rows, places: dict[str, int], evaluation: Path) -> Example:
    row = rows[places[asked.frame_token]] if asked.frame_token in places else {"qa": []}
    if not any((qa["question"], qa["answer"]) == (asked.question, asked.reference) for qa in row["qa"]):
        raise ValueError(
            f"the predictions of {evaluation} are not of its scenes: {asked.id} asks {asked.question!r:.100}; evaluate"
            " again with recipes/evaluate_drivelm.py"
        )
    views = {camera: row[camera]["bytes"] for camera in CAMERAS if row[camera] is not None}
    with Image.open(io.BytesIO(next(iter(views.values())))) as image:
        return Example(asked, views, image.format.lower().replace("jpeg", "jpg"))


def eval_results(repo_id: str, evaluation: Path, split: str, found: list[Headline], data: str) -> bytes:
    """The headline numbers in percent, in the Hub's format; each entry's notes name its interval and its controls."""
    written = datetime.fromtimestamp((evaluation / METRICS_FILE).stat().st_mtime, UTC)
    entries = []
    for headline in found:
        interval = (
            "no interval" if headline.interval is None else "95% {} to {}".format(*map(percent, headline.interval))
        )
        controls = ", ".join(f"{name} {percent(value)}" for name, value in headline.controls.items())
        entries.append(
            {
                "dataset": {"id": DATA[data]["id"], "task_id": headline.column.head.lower().replace(" ", "_")},
                "value": round(100 * headline.value, 2),
                "date": written.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "source": {"url": f"https://huggingface.co/{repo_id}", "name": "Model card"},
                "notes": f"split {split}; {interval}; controls: {controls}",
            }
        )
    return yaml_dump(entries, sort_keys=False).encode()


def hub_files(
    repo_id: str, evaluation: Path, metrics: Metrics, data: str
) -> tuple[dict[str, Path | bytes], list[dict]]:
    """-> ({name in the repository: path or content}, the card's widget entries)

    Raises:
        FileNotFoundError, ValueError: see `read_examples` and `publishable_headlines`.
    """
    found = publishable_headlines(metrics)
    files: dict[str, Path | bytes] = {name: FOLDER / name for name in ENDPOINT_FILES}
    if "/" in DATA[data]["id"]:  # a data set on the Hub
        files[EVAL_RESULTS] = eval_results(repo_id, evaluation, metrics.settings.split, found, data)
    widget = []
    for number, example in enumerate(read_examples(evaluation, metrics, data), start=1):
        files |= example.files(number)
        widget.append(example.widget(repo_id, number))
    return files, widget
