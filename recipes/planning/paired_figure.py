"""Comparisons as a picture: the difference from the reference with its interval, a panel per measure."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from recipes.planning.paired_planners import Comparison
from smoldriver_common.whole_files import written_whole

COLUMNS = 4
COLOURS = {True: "tab:blue", False: "lightgray"}  # by whether the interval leaves 0 out


def draw_comparisons(results: list[Comparison], reference: str, path: Path) -> None:
    """A bar per planner: its difference from the reference, which is the line at 0, and the 95% interval."""
    panels = {}
    for one in results:
        panels.setdefault((one.measure.name, one.subset), []).append(one)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (3.6 * columns, 3.2 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, ((measure, subset), of_panel) in zip(grid.flat, panels.items(), strict=False):
        draw_panel(axes, [one for one in of_panel if one.interval is not None])
        value = next(f"{one.value:.{one.measure.digits}f}" for one in of_panel if one.name == reference)
        axes.set_title(f"{measure}\n{subset}, {reference}: {value}", fontsize=9)
    figure.supylabel(f"minus {reference}, 95% interval over scenes", fontsize=9)
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=100)
    plt.close(figure)


def draw_panel(axes, compared: list[Comparison]) -> None:
    if not compared:
        axes.text(0.5, 0.5, "no difference\nor too few scenes", ha="center", va="center", transform=axes.transAxes)
    for place, one in enumerate(compared):
        low, high = one.interval
        reach = [[one.difference - low], [high - one.difference]]
        axes.bar(place, one.difference, yerr=reach, capsize=5, width=0.6, color=COLOURS[low > 0 or high < 0])
    axes.set_xticks(range(len(compared)), [one.name.replace(", ", ",\n") for one in compared], fontsize=8)
    axes.set_xlim(-0.6, max(len(compared), 3) - 0.4)
    axes.axhline(0.0, color="black", linewidth=0.8)
