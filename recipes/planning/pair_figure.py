"""One counterfactual pair of each kind as a picture: both front views, and both ways seen from above."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Polygon

from recipes.metrics.counterfactual.pair_scores import lengths
from recipes.planning.pairs import PairedFrames
from smoldriver_common.whole_files import written_whole

COLOURS = {"as it was": "tab:blue", "changed": "tab:red"}
EGO = (4.084, 1.85, 1.485793)  # length, width, and metres from the rear axle to the middle: nuScenes' car
AHEAD, BESIDE = (-8.0, 38.0), 11.0  # metres shown


def draw_pairs(paired: PairedFrames, plans: np.ndarray, name: str, path: Path) -> None:
    """Of each kind the pair with the median response: as it was, changed, and the ways from above.

    Args:
        plans: (rows, 6, 2) of the planner `name`, in the order of the rows.
    """
    chosen = typical_pairs(paired, paired.of_pairs(plans))
    figure, grid = plt.subplots(
        len(chosen), 3, figsize=(15, 3.1 * len(chosen)), squeeze=False, width_ratios=[1, 1, 1.25], layout="constrained"
    )
    for axes, (kind, number) in zip(grid, chosen.items(), strict=True):
        rows = [paired.rows[place] for place in paired.frames[number]]
        for panel, row, version in zip(axes, rows, COLOURS, strict=False):
            if row["CAM_FRONT"] is not None:
                panel.imshow(row["CAM_FRONT"])
            panel.set_title(f"{kind}: {version}", color=COLOURS[version], fontsize=10)
            panel.axis("off")
        from_above(axes[2], rows, [plans[place] for place in paired.frames[number]], name)
    figure.get_layout_engine().set(h_pad=0.1)
    grid[0, 2].legend(fontsize=8, loc="upper left")
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=100)
    plt.close(figure)


def typical_pairs(paired: PairedFrames, plans: np.ndarray) -> dict[str, int]:
    """{kind: number of the pair whose response is the median one}."""
    change = np.diff(lengths(plans), axis=1)[:, 0]
    wanted = np.array([np.diff(lengths(pair.expert))[0] for pair in paired.pairs])
    chosen = {}
    for kind in sorted({pair.kind for pair in paired.pairs}):
        numbers = [n for n, pair in enumerate(paired.pairs) if pair.kind == kind]
        chosen[kind] = sorted(numbers, key=lambda n: change[n] / wanted[n])[len(numbers) // 2]
    return chosen


def from_above(axes, rows: list[dict], plans: list[np.ndarray], name: str) -> None:
    """The ego, the agents of both versions, and plan and expert's way in each; x forward is drawn to the right."""
    length, width, middle = EGO
    axes.add_patch(Polygon(corners(middle, 0.0, 0.0, length, width), color="black"))
    for row, version in zip(rows, COLOURS, strict=True):
        for agent in row["agents"]:
            shape = corners(*agent["poses"][0], agent["size"][1], agent["size"][0])
            alone = all(other["poses"][0] != agent["poses"][0] for other in rows[version == "as it was"]["agents"])
            axes.add_patch(Polygon(shape, color=COLOURS[version] if alone else "lightgray", alpha=0.8, zorder=1))
    for row, plan, (version, colour) in zip(rows, plans, COLOURS.items(), strict=True):
        expert = np.array([[0.0, 0.0, 0.0], *row["ego_future"]])
        axes.plot(expert[:, 0], expert[:, 1], "-", color=colour, alpha=0.45, linewidth=6, label=f"expert, {version}")
        plan = np.concatenate([[[0.0, 0.0]], plan])
        axes.plot(plan[:, 0], plan[:, 1], ".--", color=colour, markersize=7, label=f"{name}, {version}")
    axes.set(xlim=AHEAD, ylim=(-BESIDE, BESIDE), aspect="equal", xlabel="metres ahead")


def corners(x: float, y: float, yaw: float, length: float, width: float) -> np.ndarray:
    """(4, 2) of a box."""
    forward, left = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    signs = ((1, 1), (1, -1), (-1, -1), (-1, 1))
    return np.array([[x, y] + a * length / 2 * forward + b * width / 2 * left for a, b in signs])
