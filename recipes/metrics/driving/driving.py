"""Closed-loop scores of scenes that a policy drove, with 95% intervals over scenes. README.md has what each one
counts.

`predictions` are scenes (`DrivenScene`, as dicts). Metrics, higher is better but for `outside`, `at_fault_hit` and
`ran_red`:

- `driving_score` 0..100, `success`, `completion` and `factor` 0..1: Bench2Drive's driving score and its parts.
- `at_fault_hit`, `ran_red`: share of the scenes; `outside`: share of the way outside the lane.
- `efficiency` (percent of the traffic's speed) and `smoothness` (share of comfortable seconds): Bench2Drive's.
- `plan_pdms`, `plan_nc`, `plan_dac`, `plan_tlc`, `plan_ttc`, `plan_ep`, `plan_comfort`: NAVSIM's, over single plans.
- `failures`: {first cause: scenes}; `events`: {kind: count}.
"""

import datasets
import evaluate

from .drive_scores import compare, compute_metrics
from .driven_scenes import DrivenEvent, DrivenScene
from .hits import hit_kinds, is_at_fault
from .motion_comfort import comfortable_moments
from .oriented_boxes import boxes_overlap
from .plan_replay import PLAN_FIELDS, PlanScores, ReplayedPlan, plan_scores
from .scene_intervals import SceneIntervals

# `evaluate` copies only the files that this one imports, so all siblings are named here.
__all__ = [
    "DrivenEvent",
    "DrivenScene",
    "PlanScores",
    "ReplayedPlan",
    "SceneIntervals",
    "boxes_overlap",
    "comfortable_moments",
    "compare",
    "compute_metrics",
    "hit_kinds",
    "is_at_fault",
    "plan_scores",
]

NUMBER, TEXT = datasets.Value("float64"), datasets.Value("string")
SCENE = {
    "scene_token": TEXT,
    **dict.fromkeys(("metres", "expert_metres", "driven_metres", "outside_metres"), NUMBER),
    "events": [
        {"kind": TEXT, "at_fault": datasets.Value("bool"), "time": NUMBER, "x": NUMBER, "y": NUMBER, "where": TEXT}
    ],
    "ended": TEXT,
    "motion_seconds": NUMBER,
    "motion": [[NUMBER]],
    "traffic_speeds": [NUMBER],
    "plans": [dict.fromkeys(PLAN_FIELDS, NUMBER)],
}


class Driving(evaluate.Metric):
    """The `evaluate` side of this file: scenes as dicts."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=compute_metrics.__doc__,
            features=datasets.Features({"predictions": SCENE}),
        )

    def _compute(self, predictions):
        return compute_metrics([DrivenScene.from_dict(scene) for scene in predictions])
