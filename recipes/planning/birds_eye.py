"""A picture of some frames: the front camera, and from above the agents, the expert, the plan and a blind plan."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from data_scripts.schema import load_scenes
from recipes.evaluation.figures import MODELS, save
from recipes.metrics.planning.plan_scores import subsets
from recipes.planning.from_above import box_patch, draw_way
from recipes.planning.plan_files import PlanSettings
from recipes.planning.plan_tables import SUBSETS
from recipes.planning.scored_frames import ScoredFrames

BLIND = ("blind_ego_status", "blind_speed", "constant_velocity")  # the first that there is
BEHIND, AHEAD, ASIDE = 8.0, 34.0, 14.0  # metres that are shown
AGENT, EXPERT = "#b4b8bd", "#222222"


def draw_frames(path: Path, plans: dict[str, np.ndarray], frames: ScoredFrames, settings: PlanSettings) -> None:
    """Draw the frame of each subset on which the planner's error is the median.

    Args:
        plans: {name: (frames, 6, 2)}, the planner first.
        settings: name the rows, whose front pictures are shown.
    """
    planner = next(iter(plans))
    blind = next((name for name in BLIND if name in plans), None)
    chosen = chosen_frames(plans[planner], frames)
    rows = load_scenes(settings.scenes, settings.split)
    figure = Figure(figsize=(3.1 * len(chosen), 6.0), layout="constrained")
    panels = figure.subplots(2, len(chosen), squeeze=False, height_ratios=(1, 2.4))
    for column, (subset, index) in enumerate(chosen.items()):
        front = rows[frames.places[index]]["CAM_FRONT"]
        if front is not None:
            panels[0, column].imshow(front)
        panels[0, column].set_axis_off()
        panels[0, column].set_title(f"{SUBSETS[subset]}\n{frames.inputs[index].command}", fontsize=8.5)
        shown = {planner: plans[planner][index]} | ({blind: plans[blind][index]} if blind else {})
        draw_from_above(panels[1, column], frames, index, shown)
    panels[1, 0].legend(fontsize=7, loc="lower left", framealpha=0.9)
    save(figure, path)


def chosen_frames(plans: np.ndarray, frames: ScoredFrames) -> dict[str, int]:
    """{subset: the frame with the median error at 3 s}, without repetitions; only frames whose future is known."""
    whole = np.array([all(frame.mask) for frame in frames.frames])
    future = np.array([np.asarray(frame.future)[:, :2] for frame in frames.frames])
    errors = np.linalg.norm(plans[:, -1] - future[:, -1], axis=-1)
    chosen = {}
    for subset, rows in subsets(frames.frames).items():
        rows = [row for row in rows if whole[row] and row not in chosen.values()]
        if rows:
            chosen[subset] = sorted(rows, key=lambda row: errors[row])[len(rows) // 2]
    return chosen or {"all": 0}


def draw_from_above(panel, frames: ScoredFrames, index: int, plans: dict[str, np.ndarray]) -> None:
    """The ego drives upwards; agents are drawn as they are now."""
    frame, ego = frames.frames[index], frames.ego
    for agent in frame.agents:
        if agent.mask[0]:
            width, length, _ = agent.size
            panel.add_patch(box_patch([*agent.poses[0], length, width], facecolor=AGENT, edgecolor="none"))
    panel.add_patch(box_patch([ego.ahead, 0.0, 0.0, ego.length, ego.width], facecolor="none", edgecolor=EXPERT))
    known = np.asarray(frame.future)[np.asarray(frame.mask, dtype=bool), :2]
    ways = [("expert", known, EXPERT), *zip(plans, plans.values(), MODELS, strict=False)]
    for name, way, colour in ways:
        draw_way(panel, way, color=colour, label=name)
    panel.set_xlim(-ASIDE, ASIDE)
    panel.set_ylim(-BEHIND, AHEAD)
    panel.set_aspect("equal")
    panel.tick_params(labelsize=7)
    panel.set_xlabel(f"m to the right; {frame.speed:.1f} m/s", fontsize=7.5)
