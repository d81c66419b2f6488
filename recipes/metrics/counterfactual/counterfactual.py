"""The response of plans to counterfactual pairs, as an `evaluate` module and as plain functions.

    counterfactual = evaluate.load("recipes/metrics/counterfactual")
    counterfactual.compute(predictions=[[plan, plan_changed], ...], references=[dataclasses.asdict(pair), ...])

or `compute_metrics(plans, pairs)` of pair_scores.py, which needs numpy alone. Everything runs offline.

A pair is one moment twice, as it was and with one thing changed in front of the ego; ego status, history and command
are the same. A plan is six waypoints of the rear axle after 0.5 .. 3 s, in metres in the ego frame (x forward, y left,
origin below the rear axle). Its length is the way from the origin through all waypoints. Higher is better:

- `response`, -1 .. 1: change of the plan's length over the change of the expert's, cut to -1 .. 1; mean over pairs.
  The expert's own plans score 1, any function of the ego's status alone exactly 0.
- `right_direction`, 0 .. 1: share of pairs in which the plan's length changes by at least 0.1 m in the expert's
  direction.

`<metric>_ci` is the 95% interval over scenes, null below three scenes. README.md says how pairs are made.
"""

import datasets
import evaluate

from .pair_scores import CounterfactualPair, compute_metrics
from .scene_intervals import SceneIntervals

# `evaluate` copies only the files that this one imports, so all siblings are named here.
__all__ = ["CounterfactualPair", "SceneIntervals", "compute_metrics"]

NUMBERS = datasets.Value("float64")
PAIR = {
    "token": datasets.Value("string"),
    "scene_token": datasets.Value("string"),
    "kind": datasets.Value("string"),
    "expert": [[[NUMBERS]]],
}


class Counterfactual(evaluate.Metric):
    """The `evaluate` side of this file: plans and pairs as lists and dicts."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=compute_metrics.__doc__,
            features=datasets.Features({"predictions": [[[NUMBERS]]], "references": PAIR}),
        )

    def _compute(self, predictions, references):
        return compute_metrics(predictions, [CounterfactualPair(**pair) for pair in references])
