"""Makes the plans of a planner and of its controls, kept in parts so that a stopped evaluation resumes."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm

from modeling_smoldriver import SmolDriverForTrajectoryPrediction, SmolDriverPlannerConfig
from modeling_smoldriver.collator_smoldriver import pictures_of
from modeling_smoldriver.fitting_smoldriver import check_finite
from recipes.evaluation.asking import CHUNK
from recipes.evaluation.contestants import control_images, other_scenes
from recipes.metrics.planning.planning_frames import SECONDS_PER_STEP, WAYPOINTS
from recipes.planning.blind_planner import BlindPlanner, BlindTraining, features_tensor, train_blind_planner
from recipes.planning.ego_rules import (
    constant_turn_rate,
    constant_velocity,
    speed_features,
    stands_still,
    status_features,
)
from recipes.planning.plan_files import OF_THE_PLANNER, PlanSettings
from recipes.planning.scored_frames import EgoInput, ScoredFrames, load_frames
from recipes.training.loading import load_config
from recipes.training.manifest import check_source
from smoldriver_common.weight_files import check_weight_files
from smoldriver_common.whole_files import write_json

RULES = {
    "stands_still": stands_still,
    "constant_velocity": constant_velocity,
    "constant_turn_rate": constant_turn_rate,
}
BLIND = {"blind_speed": speed_features, "blind_ego_status": status_features}

Maker = Callable[[list[int]], np.ndarray]
"""Frame numbers -> their plans (frames, 6, 2)."""


def load_planner(source: str) -> SmolDriverForTrajectoryPrediction:
    """A planner in eval mode with its processor, from a folder or Hub id.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is no planner, its plans are not six waypoints of half a second each, or its weights or its
            processor do not fit.
    """
    check_source(source)
    config = load_config(source)
    if config.model_type != SmolDriverPlannerConfig.model_type:
        raise ValueError(
            f"{source} is a {config.model_type!r}, not a planner: build one with recipes/build_planner.py"
        )
    if (config.num_waypoints, config.seconds_per_waypoint) != (WAYPOINTS, SECONDS_PER_STEP):
        raise ValueError(
            f"{source} plans {config.num_waypoints} waypoints of {config.seconds_per_waypoint} s: the metrics score"
            f" {WAYPOINTS} of {SECONDS_PER_STEP} s"
        )
    if Path(source).is_dir():
        check_weight_files(source)
    planner = SmolDriverForTrajectoryPrediction.from_pretrained(source, dtype="auto", use_safetensors=True)
    check_finite(planner, source)
    planner.check_processor()
    return planner.to("cuda" if torch.cuda.is_available() else "cpu").eval()


@dataclass
class PlannerPlans:
    """Plans of the planner, under a control or without; a [`Maker`].

    Fields:
        control: of `OF_THE_PLANNER`; None: the planner as it is.
        rows: of the split, with their pictures.
    """

    planner: SmolDriverForTrajectoryPrediction
    control: str | None
    rows: Dataset
    frames: ScoredFrames

    def __post_init__(self):
        self.others = other_scenes(self.frames.scene_tokens) if self.control == "other_scene_images" else None

    @torch.no_grad()
    def __call__(self, numbers: list[int]) -> np.ndarray:
        inputs = [self.frames.inputs[number] for number in numbers]
        commands = [None if self.control == "no_command" else ego.command for ego in inputs]
        histories = [ego.history for ego in inputs] if "history" in self.planner.config.ego_inputs else None
        encoded = self.planner.processor.encode_moments(
            [self.pictures(number) for number in numbers], commands, [ego.speed for ego in inputs], histories
        )
        plans = self.planner(**encoded.to(self.planner.device)).waypoints.double().cpu().numpy()
        for number, plan in zip(numbers, plans, strict=True):
            if not np.isfinite(plan).all():
                token = self.frames.frames[number].token
                raise ValueError(f"frame {token}: the plan is not finite: {plan.tolist()}; are the weights broken?")
        return plans

    def pictures(self, number: int) -> dict:
        row = self.rows[self.frames.places[number if self.others is None else self.others[number]]]
        pictures = pictures_of(row, self.planner.processor.cameras)
        images = {camera: picture for camera, picture in pictures.items() if picture is not None}
        return control_images(images, self.control)


@dataclass
class BlindPlans:
    """Plans of a blind planner, which is trained when the first is asked for; a [`Maker`]."""

    name: str
    training: BlindTraining
    train: ScoredFrames
    frames: ScoredFrames
    planner: BlindPlanner | None = None

    @torch.no_grad()
    def __call__(self, numbers: list[int]) -> np.ndarray:
        features_of = BLIND[self.name]
        if self.planner is None:
            with torch.enable_grad():
                self.planner = train_blind_planner(self.name, features_of, self.train, self.training)
        return self.planner(features_tensor(features_of, [self.frames.inputs[n] for n in numbers])).double().numpy()


@dataclass
class Made:
    """Plans by name, the planner's first, and what became of the rest."""

    plans: dict[str, np.ndarray]
    left_out: dict[str, str]  # {control: why}
    blind_training: dict  # see `PlansRecord`


def make_plans(
    planner: SmolDriverForTrajectoryPrediction,
    controls: list[str],
    rows: Dataset,
    frames: ScoredFrames,
    settings: PlanSettings,
    folder: Path,
) -> Made:
    """Plans of the planner and of each control that the data allow.

    Args:
        controls: keys of `CONTROLS`.
        rows: of the split, with their pictures.
        folder: keeps the parts.

    Raises:
        ValueError: a command or camera that the planner does not know, or a plan that is not finite.
    """
    training = BlindTraining(seed=settings.seed)
    own = in_parts(settings.name, PlannerPlans(planner, None, rows, frames), frames, folder)
    made = Made({settings.name: own}, {}, {})
    train = None
    for control in controls:
        try:
            if control in OF_THE_PLANNER:
                maker = PlannerPlans(planner, control, rows, frames)
            elif control in BLIND:
                train = train or load_frames(settings.scenes, "train")
                maker = BlindPlans(control, training, train, frames)
            else:
                maker = rule_plans(RULES[control], frames)
        except (ValueError, FileNotFoundError) as error:
            made.left_out[control] = str(error)
            continue
        made.plans[control] = in_parts(control, maker, frames, folder)
    if train is not None:
        counts = {"frames": len(train.frames), "scenes": len(set(train.scene_tokens))}
        made.blind_training = {**asdict(training), **counts}
    return made


def rule_plans(rule: Callable[[EgoInput], np.ndarray], frames: ScoredFrames) -> Maker:
    return lambda numbers: np.array([rule(frames.inputs[number]) for number in numbers])


def in_parts(name: str, maker: Maker, frames: ScoredFrames, folder: Path) -> np.ndarray:
    """All plans of one planner or control; parts that are in `folder` are done."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(frames.frames), CHUNK)
    for start in tqdm(starts, desc=name, unit="chunk"):
        part = part_file(folder, name, start)
        if not part.is_file():
            numbers = list(range(start, min(start + CHUNK, len(frames.frames))))
            write_json(part, maker(numbers).tolist(), indent=None)
    parts = [json.loads(part_file(folder, name, start).read_text("utf-8")) for start in starts]
    return np.array([plan for part in parts for plan in part], dtype=np.float64)


def part_file(folder: Path, name: str, start: int) -> Path:
    return folder / f"{name}-{start:06d}.json"
