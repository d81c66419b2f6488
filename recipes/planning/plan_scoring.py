"""Scores of plans against their frames, of one evaluation or of several side by side. Needs no model library."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipes.evaluation.predictions import METRICS_FILE
from recipes.metrics.planning.plan_scores import paired_differences, scores_of_statistics
from recipes.metrics.planning.planning_frames import PlanningFrame, checked_plans
from recipes.metrics.planning.protocols import expert_futures, frame_statistics_of_many, known_paths
from recipes.planning.birds_eye import draw_frames
from recipes.planning.plan_files import (
    CONTROLS,
    EXPERT,
    PlanMetrics,
    Plans,
    PlansRecord,
    read_plans,
    write_plan_metrics,
)
from recipes.planning.plan_report import write_report
from recipes.planning.scored_frames import ScoredFrames, load_frames
from smoldriver_common.whole_files import write_json


@dataclass
class Scored:
    """Planners and controls of the same frames, the first planner first.

    Fields:
        records: how the plans were made, by the name of each planner.
        plans: {name: (frames, 6, 2)}, without the expert.
        results: {name: scores by subset and protocol}, the expert and the controls behind the planners.
        differences: {name: the first planner's scores less this one's}.
        interval: what the intervals are.
    """

    records: dict[str, PlansRecord]
    plans: dict[str, np.ndarray]
    results: dict[str, dict]
    differences: dict[str, dict]
    interval: str

    @property
    def first(self) -> str:
        return next(iter(self.records))


def score_folder(folder: Path) -> Scored:
    """Score the plans of one evaluation; write its metrics.json, tables.md, report.html and figures/, and print them.

    Raises:
        FileNotFoundError, ValueError: see `read_plans`, `load_frames` and [`in_order_of`].
    """
    (folder / METRICS_FILE).unlink(missing_ok=True)  # of other plans, should the scoring be stopped
    plans = read_plans(folder)
    frames = frames_of_plans(plans)
    scored = score([plans], frames)
    draw_frames(folder / "figures" / "birds_eye.png", scored.plans, frames, plans.record.settings)
    write_report(folder, scored)
    metrics = PlanMetrics(plans.record, scored.results, scored.differences, scored.interval)
    write_plan_metrics(folder, metrics)
    return scored


def compare_folders(folders: list[Path], output: Path) -> Scored:
    """Put evaluations of the same frames side by side; write comparison.json, tables.md and report.html.

    Raises:
        FileNotFoundError, ValueError: as [`score_folder`]; a folder named twice, or an output folder that is an
            evaluation itself.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"{', '.join(map(str, folders))}: a folder is named twice; compare different evaluations")
    if (output / METRICS_FILE).is_file():
        raise ValueError(f"{output} is an evaluation itself: give the comparison an --output-dir of its own")
    everyone = [read_plans(folder) for folder in folders]
    scored = score(everyone, frames_of_plans(everyone[0]))
    write_report(output, scored)
    content = {"first": scored.first, "results": scored.results, "differences": scored.differences}
    records = {name: record.as_json() for name, record in scored.records.items()}
    write_json(output / "comparison.json", {**content, "interval": scored.interval, "records": records})
    return scored


def frames_of_plans(plans: Plans) -> ScoredFrames:
    settings = plans.record.settings
    return load_frames(settings.scenes, settings.split, settings.max_frames)


def score(everyone: list[Plans], frames: ScoredFrames) -> Scored:
    """Scores of every planner and control, and the expert's own. Controls with equal plans are shared.

    Raises:
        ValueError: plans of other frames.
    """
    names = planner_names(everyone)
    planners, controls = {}, {}
    for name, plans in zip(names, everyone, strict=True):
        for contestant, made in in_order_of(frames.frames, plans, name).items():
            if contestant == plans.record.settings.name:
                planners[name] = made
            elif contestant not in controls:
                controls[contestant] = made
            elif not np.array_equal(controls[contestant], made):
                controls[f"{name}: {contestant}"] = made
    order = sorted(controls, key=lambda name: list(CONTROLS).index(name.rpartition(": ")[2]))
    made = {**planners, **{name: controls[name] for name in order}}
    first = names[0]
    everything = {**planners, EXPERT: known_paths(*expert_futures(frames.frames)), **made}
    plans = [checked_plans(plans, frames.frames) for plans in everything.values()]
    statistics = frame_statistics_of_many(plans, frames.frames, frames.ego)
    statistics = dict(zip(everything, statistics, strict=True))
    results = {name: scores_of_statistics(one, frames.frames) for name, one in statistics.items()}
    interval = [result.pop("info")["interval"] for result in results.values()][0]
    differences = {
        name: paired_differences(statistics[first], one, frames.frames)
        for name, one in statistics.items()
        if name not in (first, EXPERT)
    }
    records = {name: plans.record for name, plans in zip(names, everyone, strict=True)}
    return Scored(records, made, results, differences, interval)


def planner_names(everyone: list[Plans]) -> list[str]:
    """The name of each evaluation's planner, its folder beside it where several have one name.

    Raises:
        ValueError: two planners of one name and folder.
    """
    settings = [plans.record.settings for plans in everyone]
    names = [one.name for one in settings]
    names = [one.name if names.count(one.name) == 1 else f"{one.name} ({Path(one.model).name})" for one in settings]
    if len(set(names)) < len(names):
        raise ValueError(f"planners with the same name: {', '.join(names)}; plan again with another --name")
    return names


def in_order_of(frames: list[PlanningFrame], plans: Plans, name: str) -> dict[str, np.ndarray]:
    """Plans in the order of the frames.

    Raises:
        ValueError: names the first frame that only one of the two has.
    """
    places = {token: place for place, token in enumerate(plans.frame_tokens)}
    tokens = [frame.token for frame in frames]
    missing, unknown = [token for token in tokens if token not in places], places.keys() - set(tokens)
    if missing or unknown:
        what = f"no plan for {len(missing)} frames" if missing else f"plans for {len(unknown)} other frames"
        one = missing[0] if missing else sorted(unknown)[0]
        raise ValueError(f"{name} has {what} of the {len(tokens)} to be scored, such as {one}: plan again")
    order = [places[token] for token in tokens]
    return {contestant: made[order] for contestant, made in plans.plans.items()}
