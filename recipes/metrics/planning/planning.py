"""Open-loop scores of plans in five public protocols and in ours, as an `evaluate` module and as plain functions.

    planning = evaluate.load("recipes/metrics/planning")
    planning.compute(predictions=[plan.tolist(), ...], references=[dataclasses.asdict(frame), ...])

or `compute_metrics(plans, frames)` of plan_scores.py, which needs numpy alone. Everything runs offline.

A plan is six waypoints of the rear axle after 0.5 .. 3 s, in metres in the ego frame (x forward, y left, origin below
the rear axle). The frame that it is scored against is `PlanningFrame`. Lower is better everywhere.

Protocols: `ours` (the headline), `uniad`, `stp3` (VAD's code), `bevplanner`, `sparsedrive` and `paradrive` (L2 alone:
its code is not public). README.md has what each one counts. Metrics of each:

- `l2_1s`, `l2_2s`, `l2_3s`: metres to the expert at or up to that time; `l2_avg`, the mean of the three; `l2_all`, the
  mean over six waypoints (paradrive).
- `collision_1s` .. `collision_avg`: share of plans, 0..1. The public protocols leave out what the expert hits.
- `expert_collision_1s` .. `expert_collision_avg`: the same for the expert's own waypoints, nothing left out. This is
  the floor of the instrument: a difference between planners that is smaller than it says little.

A metric that only some of a subset's frames count for carries `<metric>_count`, one without any is absent.
`<metric>_ci` is the 95% interval over scenes, null below three scenes.

The public code gave the same scores, to 1e-9 or better, for 1,660 frames of random plans, experts and agents:
OpenDriveLab/UniAD @dd161b2, hustvl/VAD @1688c4b, NVlabs/BEV-Planner @01c28d6, swc-17/SparseDrive @ec0225d, with OpenCV
4.10. Compared were L2 and box collisions at 1, 2 and 3 s.
"""

import datasets
import evaluate

from .occupancy_grid import fill_polygon, grid_hits
from .oriented_boxes import box_corners, boxes_overlap, plan_headings
from .plan_scores import compute_metrics
from .planning_frames import EgoBox, PlanningFrame
from .protocols import ZOE, frame_statistics
from .scene_intervals import SceneIntervals

# `evaluate` copies only the files that this one imports, so all siblings are named here.
__all__ = [
    "EgoBox",
    "PlanningFrame",
    "SceneIntervals",
    "box_corners",
    "boxes_overlap",
    "compute_metrics",
    "fill_polygon",
    "frame_statistics",
    "grid_hits",
    "plan_headings",
]

NUMBERS = datasets.Value("float64")
AGENT = {
    "category": datasets.Value("string"),
    "size": [NUMBERS],
    "poses": [[NUMBERS]],
    "mask": [datasets.Value("bool")],
}
FRAME = {
    "token": datasets.Value("string"),
    "scene_token": datasets.Value("string"),
    "speed": NUMBERS,
    "future": [[NUMBERS]],
    "mask": [datasets.Value("bool")],
    "agents": [AGENT],
    "first_of_scene": datasets.Value("bool"),
}


class Planning(evaluate.Metric):
    """The `evaluate` side of this file: plans and frames as lists and dicts. `ego` is the `EgoBox` as a dict."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=compute_metrics.__doc__,
            features=datasets.Features({"predictions": [[NUMBERS]], "references": FRAME}),
        )

    def _compute(self, predictions, references, ego=None):
        frames = [PlanningFrame.from_dict(frame) for frame in references]
        return compute_metrics(predictions, frames, ego=EgoBox(**ego) if ego else ZOE)
