"""What guided and unguided planners of several seeds did, read from a run's folders and compared by scene."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_scripts.schema import load_scenes
from recipes.driving.drives import read_all_records, scenes_of
from recipes.metrics.driving.drive_scores import score_of_scene
from recipes.metrics.driving.driven_scenes import DrivenScene
from recipes.planning.paired_planners import (
    L2,
    Comparison,
    Measure,
    compare_braking,
    compare_l2,
    compare_means,
    compare_planners,
    compare_responses,
)
from recipes.planning.pairs import PairedFrames
from recipes.planning.plan_files import Plans, read_plans
from recipes.planning.plan_scoring import in_order_of
from recipes.planning.scored_frames import load_frames

DRIVING_SCORE = Measure("driving score", digits=1, highest=100.0)
HITS = Measure("scenes with a hit (%)", digits=0, highest=100.0)
PEDESTRIANS = Measure("with a pedestrian hit (%)", digits=0, highest=100.0)


@dataclass(frozen=True)
class PlannerRuns:
    """Planners that differ in one thing and have a head per seed.

    Example: PlannerRuns(Path("out"), {"pretrained": ["pretrained-0", "pretrained-1"], "joint": ["joint-0", ...]})

    Fields:
        folder: of the run.
        heads: {name in the tables: one planner per seed}.
    """

    folder: Path
    heads: dict[str, list[str]]

    def plans_of(self, scenes: Path) -> dict[str, list[Plans]]:
        """`<folder>/plans/<planner>/<scenes>`. Raises FileNotFoundError, ValueError: see `read_plans`."""
        plans = self.folder / "plans"
        return {name: [read_plans(plans / head / scenes.name) for head in of] for name, of in self.heads.items()}


def of_planner(plans: Plans) -> np.ndarray:
    return plans.plans[plans.record.settings.name]


def general_results(runs: PlannerRuns, scenes: Path, pairs: Path, drives: Path, reference: str) -> list[Comparison]:
    """The distance to the expert, the response to counterfactual pairs, and the closed loop."""
    frames = load_frames(scenes, "test").frames
    plans = ordered(runs.plans_of(scenes), frames)
    paired = PairedFrames.read(pairs)
    answers = {name: [on_pairs(paired, one) for one in of] for name, of in runs.plans_of(pairs).items()}
    return [
        *compare_planners(plans, frames, reference),
        *compare_responses(answers, paired.pairs, reference),
        *compare_drives(runs, drives, "all", reference),
    ]


def scenario_results(
    runs: PlannerRuns, taught: PlannerRuns, scenes: Path, drives: Path, scenario: str, reference: str
) -> list[Comparison]:
    """The same on frames and drives of one scenario, and whether plans brake there.

    Args:
        runs: planners that were not taught what to do in it.
        taught: the same planners, taught; they are beside the others in open loop, as `<name>, taught`.
    """
    everyone = runs.plans_of(scenes) | {f"{name}, taught": of for name, of in taught.plans_of(scenes).items()}
    found = load_frames(scenes, "test")
    plans = ordered(everyone, found.frames)
    names = load_scenes(scenes, "test", columns=["scenario"])["scenario"]
    rows = np.array([number for number, place in enumerate(found.places) if names[place] == scenario], dtype=int)
    subset = f"{scenario}, left out"
    return [
        *(one for one in compare_l2(plans, found.frames, reference, {subset: rows}) if one.measure == L2),
        *compare_braking(plans, found.frames, reference, subset, rows),
        *compare_drives(runs, drives, subset, reference),
    ]


def ordered(plans: dict[str, list[Plans]], frames: list) -> dict[str, list[np.ndarray]]:
    """Raises ValueError: they are of other frames."""
    return {
        name: [in_order_of(frames, one, name)[one.record.settings.name] for one in of] for name, of in plans.items()
    }


def on_pairs(paired: PairedFrames, plans: Plans) -> np.ndarray:
    """`(pairs, 2, 6, 2)`. Raises ValueError: the plans lack a row of the pairs; names it."""
    places = {token: place for place, token in enumerate(plans.frame_tokens)}
    tokens = paired.rows["frame_token"]
    missing = [token for token in tokens if token not in places]
    if missing:
        raise ValueError(f"{plans.record.settings.name} has no plan for {missing[0]} of {paired.folder}: plan again")
    return paired.of_pairs(of_planner(plans)[[places[token] for token in tokens]])


def compare_drives(runs: PlannerRuns, drives: Path, subset: str, reference: str) -> list[Comparison]:
    """Scenes as every planner drove them, in `<drives>/<name>/<planner>`.

    Raises:
        ValueError: a planner has driven other scenes than the first.
    """
    first, found = None, {measure: {} for measure in (DRIVING_SCORE, HITS, PEDESTRIANS)}
    for name, heads in runs.heads.items():
        for head in heads:
            scenes = scenes_of(read_all_records(drives / name / head))
            tokens = [scene.scene_token for scene in scenes]
            first = first or tokens
            if not tokens or tokens != first:
                raise ValueError(f"{drives / name / head} has {len(tokens)} scenes that are not those of the first")
            scores = [driving_scores(scene) for scene in scenes]
            for measure, values in found.items():
                values.setdefault(name, []).append([one[measure] for one in scores])
    return [
        one for measure, values in found.items() for one in compare_means(measure, values, first, reference, subset)
    ]


def driving_scores(scene: DrivenScene) -> dict[Measure, float]:
    scores = score_of_scene(scene)
    pedestrian = any(event.at_fault and event.kind == "pedestrian" for event in scene.events)
    return {
        DRIVING_SCORE: scores["driving_score"],
        HITS: 100.0 * scores["at_fault_hit"],
        PEDESTRIANS: 100.0 * pedestrian,
    }
