"""What an evaluation of plans leaves for others to read: `plans.parquet` and `metrics.json`. Needs no model library.

`plans.parquet` has one row per planner or control and frame,

    {"planner": "blind_speed", "scene_token": "f0f1...", "frame_token": "4a07...", "plan": [[2.1, 0.0], ... six]}

and, in its schema, a [`PlansRecord`]: how the plans were made. Waypoints are metres in the ego frame (x forward, y
left, origin below the rear axle) at 0.5 .. 3 s.

`metrics.json` holds the scores (recipes/metrics/planning: metres and shares 0..1, with 95% intervals over scenes):

    {"format": "plans 1",
     "results": {"planner": {"all": {"count": 432, "scenes": 48, "ours": {"l2_avg": 1.1, "l2_avg_ci": [1.0, 1.2],
                                     "collision_3s": 0.03, ...}, "uniad": {...}, ...}, "not_straight": {...}, ...},
                 "expert": {...}, ...one entry per control},
     "differences": {"constant_velocity": {"all": {"ours": {"l2_avg": {"difference": -0.7, "ci": [-0.9, -0.5],
                                                                       "p_value": 0.0}, ...}}}, ...},
     "record": {...}, "interval": "95% t interval ...",
     "sha256": "..."}   # of all the above: a file that was edited is not published

A difference is the planner's score less the control's: below 0, the planner is better.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipes.evaluation.predictions import METRICS_FILE, Leakage, content_digest, read_content
from recipes.metrics.planning.planning_frames import EgoBox
from smoldriver_common.whole_files import write_json, written_whole

FORMAT = "plans 1"  # of plans.parquet and metrics.json; another number when a value changes its type
PLANS_FILE = "plans.parquet"
RECIPE = "recipes/evaluate_planner.py"
EXPERT = "expert"  # the floor: what the expert's own way scores

CONTROLS = {
    "stands_still": "stays where it is, without any model",
    "constant_velocity": "drives straight on at the speed of now, without any model",
    "constant_turn_rate": "drives on at the speed and the turn rate of now, without any model",
    "blind_speed": "a perceptron on speed and command that sees nothing, trained on the training split",
    "blind_ego_status": "the same on speed, acceleration, turn rate, 2 s of poses and command, as AD-MLP",
    "no_command": "the planner with its command withheld",
    "blank_images": "the planner with grey pictures",
    "other_scene_images": "the planner with the pictures of a frame of another scene",
}
OF_THE_PLANNER = ("no_command", "blank_images", "other_scene_images")  # controls that run the planner itself
SCHEMA = pa.schema(
    [
        ("planner", pa.string()),
        ("scene_token", pa.string()),
        ("frame_token", pa.string()),
        ("plan", pa.list_(pa.list_(pa.float64()))),
    ]
)


@dataclass(frozen=True)
class PlanSettings:
    """What plans depend on, except the data and the weights themselves."""

    model: str  # folder or Hub id of the planner
    name: str  # in tables and files
    scenes: str  # folder of prepared rows
    split: str
    max_frames: int | None = None  # None: all
    seed: int = 0  # of the blind planners


@dataclass
class PlansRecord:
    """How the plans of a file were made."""

    settings: PlanSettings
    leakage: Leakage
    ego_inputs: list[str]  # what the planner reads of the ego: "speed", "history"
    blind_training: dict = field(default_factory=dict)  # `BlindTraining`, with the frames and scenes learned from
    left_out_controls: dict[str, str] = field(default_factory=dict)  # {control: why}
    counted: dict[str, list[str]] = field(default_factory=dict)  # see `ScoredFrames`
    command_sources: dict[str, int] = field(default_factory=dict)
    ego: EgoBox = EgoBox()
    weights_sha256: str | None = None
    files_sha256: dict[str, str] = field(default_factory=dict)  # by name: the planner's files beside its weights

    def as_json(self) -> dict:
        leakage = {"kind": self.leakage.kind, **asdict(self.leakage), "line": str(self.leakage)}
        return {**asdict(self), "leakage": leakage}

    @classmethod
    def from_json(cls, content: dict) -> "PlansRecord":
        return cls(
            **{
                **content,
                "settings": PlanSettings(**content["settings"]),
                "leakage": Leakage(**{entry.name: content["leakage"][entry.name] for entry in fields(Leakage)}),
                "ego": EgoBox(**content["ego"]),
            }
        )


@dataclass
class Plans:
    """The plans of a planner and its controls for the same frames.

    Fields:
        record: how they were made.
        frame_tokens, scene_tokens: of the frames, in the order of every entry of `plans`.
        plans: {the planner's name or a key of `CONTROLS`: (frames, 6, 2) float64}, the planner first.
    """

    record: PlansRecord
    frame_tokens: list[str]
    scene_tokens: list[str]
    plans: dict[str, np.ndarray]


@dataclass
class PlanMetrics:
    """`metrics.json` with its types: see this file's docstring."""

    record: PlansRecord
    results: dict[str, dict]  # the planner first, then the expert and the controls
    differences: dict[str, dict]  # by control
    interval: str  # what the intervals are

    @property
    def settings(self) -> PlanSettings:
        return self.record.settings

    @property
    def weights_sha256(self) -> str | None:
        return self.record.weights_sha256

    @property
    def files_sha256(self) -> dict[str, str]:
        return self.record.files_sha256

    def as_json(self) -> dict:
        content = {"format": FORMAT, **asdict(self), "record": self.record.as_json()}
        return content | {"sha256": content_digest(content)}


def write_plans(folder: Path, plans: Plans) -> None:
    rows = [
        {"planner": name, "scene_token": scene, "frame_token": frame, "plan": plan.tolist()}
        for name, made in plans.plans.items()
        for scene, frame, plan in zip(plans.scene_tokens, plans.frame_tokens, made, strict=True)
    ]
    kept = {"format": FORMAT, "record": json.dumps(plans.record.as_json())}
    with written_whole(folder / PLANS_FILE) as aside:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA.with_metadata(kept)), aside)


def read_plans(folder: Path) -> Plans:
    """The plans of a finished evaluation.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: not such a file, of another format, a duplicated frame, or planners with other frames.
    """
    path = folder / PLANS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {PLANS_FILE}: make it with {RECIPE}")
    table = pq.read_table(path)
    kept = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    if kept.get("format") != FORMAT or not table.schema.equals(SCHEMA):
        raise ValueError(f"{path} has the format {kept.get('format')}, not {FORMAT!r}: plan again with {RECIPE}")
    record = PlansRecord.from_json(json.loads(kept["record"]))
    by_planner = {}
    for row in table.to_pylist():
        made = by_planner.setdefault(row["planner"], {})
        if row["frame_token"] in made:
            raise ValueError(f"{path}: frame {row['frame_token']} of {row['planner']} is duplicated: plan again")
        made[row["frame_token"]] = row
    first = by_planner.get(record.settings.name)
    if first is None:
        raise ValueError(f"{path} has no plan of {record.settings.name!r}: plan again with {RECIPE}")
    plans = {}
    for name, made in by_planner.items():
        if made.keys() != first.keys():
            one = sorted(made.keys() ^ first.keys())[0]
            raise ValueError(f"{path}: {name} and {record.settings.name} have other frames, such as {one}: plan again")
        plans[name] = _plans_array(path, name, [made[token] for token in first])
    return Plans(record, list(first), [row["scene_token"] for row in first.values()], plans)


def _plans_array(path: Path, name: str, rows: list[dict]) -> np.ndarray:
    for row in rows:
        plan = np.array([point for point in row["plan"] or () if point and len(point) == 2], dtype=np.float64)
        if plan.shape != (6, 2) or not np.isfinite(plan).all():
            raise ValueError(
                f"{path}: the plan of {name} for frame {row['frame_token']} is {row['plan']}, not six finite waypoints"
                " x, y"
            )
    return np.array([row["plan"] for row in rows], dtype=np.float64)


def write_plan_metrics(folder: Path, metrics: PlanMetrics) -> None:
    write_json(folder / METRICS_FILE, metrics.as_json())


def read_plan_metrics(folder: Path) -> PlanMetrics:
    """The scores of a finished evaluation of a planner.

    Raises:
        FileNotFoundError: the evaluation is not finished.
        ValueError: it is of another format, or damaged.
    """
    path = folder / METRICS_FILE
    content = read_content(path)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} has format {content.get('format')!r}, a planner's has {FORMAT!r}: evaluate with {RECIPE}"
        )
    try:
        record = PlansRecord.from_json(content["record"])
        return PlanMetrics(record, content["results"], content["differences"], content["interval"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): evaluate again") from None
