"""Planners that differ in one thing, each with several seeds, compared by scene on the same frames."""

from dataclasses import dataclass

import numpy as np

from recipes.evaluation.tables import aligned
from recipes.metrics.planning.plan_scores import subsets
from recipes.metrics.planning.planning_frames import PlanningFrame, checked_plans
from recipes.metrics.planning.protocols import frame_statistics, mean_of_ratios
from recipes.metrics.planning.scene_intervals import SceneIntervals, SceneScore

PROTOCOLS = {"ours": "known waypoints", "uniad": "UniAD's"}


@dataclass
class Comparison:
    """One kind of planner against the reference, on one subset of the frames in one protocol; metres.

    Example: Comparison("questions", "all", "uniad", [1.29, 1.31, 1.27], 1.29, -0.21, [-0.29, -0.13], 0.0001)
    """

    name: str
    subset: str
    protocol: str
    seeds: list[float]
    l2_avg: float
    difference: float | None = None  # this less the reference's; below 0: nearer to the expert
    interval: list[float] | None = None
    p_value: float | None = None


def compare_planners(
    plans: dict[str, list[np.ndarray]], frames: list[PlanningFrame], reference: str
) -> list[Comparison]:
    """Every kind of planner on every subset of the frames, open loop.

    A score of another kind, such as the driving score of a scene or the response of a counterfactual pair, joins here:
    one value per seed and scene, averaged over the seeds, compared by `SceneScore.minus`.

    Args:
        plans: {name: plans `(frames, 6, 2)` in metres, one per seed}.
        reference: the name that the others are compared with.

    Raises:
        ValueError: see `checked_plans`.
    """
    statistics = {
        name: [frame_statistics(checked_plans(made, frames), frames) for made in of_seeds]
        for name, of_seeds in plans.items()
    }
    intervals, results = SceneIntervals([frame.scene_token for frame in frames]), []
    for subset, rows in subsets(frames).items():
        for protocol in PROTOCOLS:
            columns = {name: [one[protocol]["l2_avg"] for one in of_seeds] for name, of_seeds in statistics.items()}
            # The seeds share their denominators, so the mean of their numerators gives their mean score.
            means = {name: (np.mean(of_seeds, axis=0), mean_of_ratios) for name, of_seeds in columns.items()}
            scores = intervals.score(means, rows)
            for name, score in scores.items():
                values = [float(mean_of_ratios(one[rows].sum(axis=0))) for one in columns[name]]
                results.append(
                    _comparison(Comparison(name, subset, protocol, values, score.value), score, scores[reference])
                )
    return results


def _comparison(result: Comparison, score: SceneScore, reference: SceneScore) -> Comparison:
    difference = score.minus(reference)
    interval = difference.interval_without_ends()
    if score is not reference and interval is not None:
        result.difference, result.interval = difference.value, interval
        result.p_value = difference.p_value()
    return result


def comparison_table(results: list[Comparison], reference: str) -> str:
    lines = [["metres", "subset", "protocol", "L2 avg", "seeds", f"minus {reference}", "p"]]
    for one in results:
        seeds = " ".join(f"{value:.2f}" for value in one.seeds)
        difference, p_value = "", "" if one.p_value is None else f"{one.p_value:.4f}"
        if one.interval is not None:
            difference = f"{one.difference:+.2f} [{one.interval[0]:+.2f}, {one.interval[1]:+.2f}]"
        lines.append([one.name, one.subset, PROTOCOLS[one.protocol], f"{one.l2_avg:.2f}", seeds, difference, p_value])
    return aligned(lines)
