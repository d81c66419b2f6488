"""What an evaluation leaves for others to read: predictions, how they were asked for, and their scores.

`predictions.parquet` has one row per answered question:

    {"model": "smoldriver", "id": "4a07..._3", "scene_token": "f0f1...", "frame_token": "4a07...",
     "task": "perception", "type": "yes_no", "tag": [0], "question": "Are there barriers to the front of the ego car?",
     "reference": "Yes.", "prediction": "Yes, there are."}

`model` is the model's name, or the control's ("text_only"): see [`Contestant`]. `id` is the frame's token and the
question's number in its frame. Where BERTScore was asked for, `bertscore_precision`, `bertscore_recall` and
`bertscore_f1` follow.

`metrics.json` holds the scores, mostly 0 to 1, with 95% intervals (metrics: recipes/metrics/drivelm/scores.py):

    {"format": 2,
     "results": {"smoldriver": {"overall": {"count": 980, "scenes": 50, "accuracy": 0.81, "accuracy_ci": [0.78, 0.84],
                                            "accuracy_count": 700, ...},
                                "yes_no": {...}, ...one entry per question type and task},
                 "majority": {...}, ...one entry per control},
     "info": {"settings": {"model": "outputs/model", "split": "test", "max_frames": null, ...},      # see Settings
              "leakage": {"kind": "none", "evaluated": 50, "shared": 0, ..., "line": "none: the 50 scenes are ..."},
              "controls": {"majority": "the training split's ...", ...}, "left_out_controls": {control: why},
              "left_out": {metric: why}, "interval": "95% t interval ...", "bertscore_encoder": null,
              "cut_answers": {"smoldriver": 0, ...}, "seconds": {"smoldriver": 31.4, ...}, "weights_sha256": "...",
              "files_sha256": {"config.json": "...", ...}},                 # of the model folder's other files
     "budgets": {"81": {"closed_accuracy": 0.81, "closed_accuracy_ci": [0.78, 0.84], "yes_no": ..., "listing_f1": ...,
                        "bleu": ..., "frames": 96, "questions": 980, "encode_seconds_per_frame": 0.021,
                        "answer_seconds_per_question": 0.004}, ...one entry per budget},   # only with --budgets
     "sha256": "..."}   # of all the above: a file that was edited is not published

This file needs no model library.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recipes.training.manifest import TRAINING_MANIFEST
from smoldriver_common.whole_files import write_json, written_whole

FORMAT = 2  # of metrics.json; counted up when a value changes its type
NO_RECORD = f"the model has no {TRAINING_MANIFEST} that names its training scenes"
METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.parquet"

CONTROLS = {
    "majority": "the training split's most frequent answer to the question's template, without any model",
    "other_scene_images": "the model with the pictures of a frame of another scene",
    "text_only": "the model without pictures",
    "blank_images": "the model with grey pictures",
    "permuted_cameras": "the model with the next camera's picture at each camera",
}


@dataclass(frozen=True)
class Contestant:
    """Who answers: a model, the model under a control that must do worse, or the model at another budget.

    Example: `Contestant("smoldriver", control="text_only")`.
    """

    model: str
    control: str | None = None  # a key of CONTROLS
    budget: int | None = None  # visual tokens per camera; None: as the settings say

    @property
    def name(self) -> str:
        """What its results and predictions are filed under; a budget's are in `budgets` instead."""
        return self.control or self.model

    def __str__(self) -> str:
        return self.name if self.budget is None else f"{self.name} at {self.budget} visual tokens per camera"


@dataclass(frozen=True)
class Settings:
    """How a model was asked: everything that its answers depend on, except the data and the weights themselves."""

    model: str  # folder or Hub id
    name: str  # in tables and files
    scenes: str  # folder of scene rows
    split: str
    max_frames: int | None = None  # None: all
    questions_per_frame: int | None = None  # None: all
    visual_tokens: int | None = None  # per camera; None: the model's largest budget
    use_scene_description: bool = False
    max_new_tokens: int = 256
    dtype: str | None = None  # None: the dtype it was trained in
    seed: int = 0  # of the draw of questions
    int8: bool = False  # linear layers quantised when the model was loaded


@dataclass(frozen=True)
class Prediction:
    """One answered question: a row of `predictions.parquet`."""

    model: str
    id: str
    scene_token: str
    frame_token: str
    task: str
    type: str
    tag: list[int]
    question: str
    reference: str
    prediction: str
    bertscore_precision: float | None = None
    bertscore_recall: float | None = None
    bertscore_f1: float | None = None

    def as_row(self) -> dict:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Leakage:
    """Whether a model, or what it learned from, was trained on the scenes that it is asked about.

    `str(leakage)` is the line that is printed and published; it names folders without their paths.
    """

    evaluated: int  # scenes asked about
    shared: int  # how many of them are training scenes
    trained: int  # training scenes on record
    stages: int  # training manifests read
    unrecorded: list[str] = field(default_factory=list)  # Hub ids without a manifest; they leave `kind` as it is
    gone: list[str] = field(default_factory=list)  # names of folders that are gone or have no manifest
    unread: list[str] = field(default_factory=list)  # Hub ids that could not be read

    @property
    def kind(self) -> str:
        """ "none", "training_frames" or, where a part of the training is not on record, "unknown"."""
        if self.shared:
            return "training_frames"
        return "unknown" if self.gone or self.unread or not self.stages else "none"

    def __str__(self) -> str:
        if self.shared:
            shared = f"{self.shared} of the {self.evaluated} scenes are training scenes"
            return f"TRAINING FRAMES: {shared}; this measures memory"
        gaps = [f"could not read {TRAINING_MANIFEST} of {', '.join(self.unread)}"] if self.unread else []
        if not self.stages:
            return f"unknown: {gaps[0] if gaps else NO_RECORD}"
        if self.gone:
            gaps.append(f"it learned from {', '.join(self.gone)}, gone or without {TRAINING_MANIFEST}")
        found = f"the {self.evaluated} scenes are not among the {self.trained} training scenes ({self.stages} stages)"
        if self.unrecorded:
            found += f"; not recorded: {', '.join(self.unrecorded)}"
        return f"unknown: {'; '.join(gaps)}; of the recorded, {found}" if gaps else f"none: {found}"


@dataclass
class Metrics:
    """`metrics.json` with its types: see this file's docstring."""

    settings: Settings
    leakage: Leakage
    results: dict[str, dict]  # by Contestant.name, the model first
    interval: str  # what the intervals are
    budgets: dict[int, dict] = field(default_factory=dict)  # by visual tokens per camera
    bertscore_encoder: str | None = None  # name and layer
    left_out_metrics: dict[str, str] = field(default_factory=dict)  # {metric: why}
    left_out_controls: dict[str, str] = field(default_factory=dict)  # {control: why}
    cut_answers: dict[str, int] = field(default_factory=dict)  # by Contestant.name: cut at max_new_tokens
    seconds: dict[str, float] = field(default_factory=dict)  # by str(Contestant): time to ask
    weights_sha256: str | None = None
    files_sha256: dict[str, str] = field(default_factory=dict)  # by name: the model folder's files beside its weights

    def as_json(self) -> dict:
        content = {
            "format": FORMAT,
            "results": self.results,
            "info": {
                "settings": asdict(self.settings),
                "leakage": {"kind": self.leakage.kind, **asdict(self.leakage), "line": str(self.leakage)},
                "controls": CONTROLS,
                "left_out_controls": self.left_out_controls,
                "left_out": self.left_out_metrics,
                "interval": self.interval,
                "bertscore_encoder": self.bertscore_encoder,
                "cut_answers": self.cut_answers,
                "seconds": self.seconds,
                "weights_sha256": self.weights_sha256,
                "files_sha256": self.files_sha256,
            },
        }
        if self.budgets:
            content["budgets"] = {str(tokens): entry for tokens, entry in self.budgets.items()}
        return content | {"sha256": content_digest(content)}

    @classmethod
    def from_json(cls, content: dict) -> "Metrics":
        info = content["info"]
        return cls(
            settings=Settings(**info["settings"]),
            leakage=Leakage(**{entry.name: info["leakage"][entry.name] for entry in fields(Leakage)}),
            results=content["results"],
            interval=info["interval"],
            budgets={int(tokens): entry for tokens, entry in content.get("budgets", {}).items()},
            bertscore_encoder=info["bertscore_encoder"],
            left_out_metrics=info["left_out"],
            left_out_controls=info["left_out_controls"],
            cut_answers=info["cut_answers"],
            seconds=info["seconds"],
            weights_sha256=info["weights_sha256"],
            files_sha256=info.get("files_sha256", {}),
        )


def content_digest(content: dict) -> str:
    """SHA-256 of what a metrics.json says."""
    said = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def write_metrics(folder: Path, metrics: Metrics) -> None:
    write_json(folder / METRICS_FILE, metrics.as_json())


def read_metrics(folder: Path) -> Metrics:
    """The scores of a finished evaluation.

    Raises:
        FileNotFoundError: the evaluation is not finished.
        ValueError: it was written by a version of the project with another format, or is damaged.
    """
    path = folder / METRICS_FILE
    content = read_content(path)
    found = content.get("format", 1)
    if found != FORMAT:
        raise ValueError(
            f"{path} has format {found}, this version reads format {FORMAT}: evaluate again with"
            " recipes/evaluate_drivelm.py"
        )
    try:
        return Metrics.from_json(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): evaluate again") from None


def check_unedited(folder: Path) -> None:
    """Refuse scores that were edited after the evaluation.

    Raises:
        ValueError: names the file.
    """
    path = folder / METRICS_FILE
    content = read_content(path)
    if content.get("sha256") != content_digest(content):
        raise ValueError(f"{path} was edited after the evaluation: evaluate again")


def read_content(path: Path) -> dict:
    """The object in an evaluation's `metrics.json`, of a language model or of a planner.

    Raises:
        FileNotFoundError: the evaluation is not finished.
        ValueError: the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is not a finished evaluation: it has no {METRICS_FILE}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): evaluate again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, not {type(content).__name__}: evaluate again")
    return content


def write_predictions(folder: Path, predictions: Iterable[Prediction]) -> None:
    with written_whole(folder / PREDICTIONS_FILE) as aside:
        pq.write_table(pa.Table.from_pylist([prediction.as_row() for prediction in predictions]), aside)


def read_predictions(folder: Path) -> list[Prediction]:
    """All answers of a finished evaluation.

    Raises:
        FileNotFoundError: the evaluation is not finished.
    """
    path = folder / PREDICTIONS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a finished evaluation: it has no {PREDICTIONS_FILE}")
    return [Prediction(**row) for row in pq.read_table(path).to_pylist()]
