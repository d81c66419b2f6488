"""Figures of an evaluation, as PNG files for its folder, its report and the model card."""

import itertools
from pathlib import Path

from matplotlib.figure import Figure

from recipes.evaluation.comparison import Compared
from recipes.evaluation.tables import Column, type_metric, types_of
from smoldriver_common.whole_files import written_whole

MODELS = (
    "#1b6ca8",
    "#d1603d",
    "#3a8f5c",
    "#8a5aa8",
    "#b08d1f",
    "#4aa3a2",
)  # distinct in print and to the colour-blind
CONTROL = "#b4b8bd"
HEADLINE = (
    Column("BLEU", "overall", "bleu"),
    Column("BERTScore precision", "overall", "bertscore_precision"),
    Column("BERTScore recall", "overall", "bertscore_recall"),
    Column("BERTScore F1", "overall", "bertscore_f1"),
    Column("Accuracy, closed questions", "overall", "accuracy"),
)
METRIC_WORDS = {"accuracy": "accuracy", "listing_f1": "F1", "exact_match": "exact match"}
CURVES = (
    ("closed_accuracy", "closed questions"),
    ("yes_no", "yes/no"),
    ("status", "status"),
    ("listing_f1", "listing F1"),
)
LATENCIES = (
    ("encode_seconds_per_frame", "pictures and prompt, per frame"),
    ("answer_seconds_per_question", "answer, per question"),
)


def save(figure: Figure, path: Path) -> Path:
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=130, facecolor="white")
    return path


def bars(contestants: list[Compared], columns: list[Column], across: int = 5) -> Figure:
    """One panel per column with one bar per contestant, in percent, and its 95% interval."""
    names = [one.name for one in contestants]
    rows, across = -(-len(columns) // across), min(across, len(columns))
    label_width = 0.5 + 0.085 * max(map(len, names))
    width, height = label_width + 2.15 * across, rows * (0.75 + 0.26 * len(names))
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, across, sharey=True, squeeze=False)
    colours = bar_colours(contestants)
    for panel in panels.flat[len(columns) :]:
        panel.set_visible(False)
    for panel, column in zip(panels.flat, columns, strict=False):
        for place, (one, colour) in enumerate(zip(contestants, colours, strict=True)):
            draw_bar(panel, place, column.value(one.result), column.interval(one.result), colour)
        panel.set_title(column.head, fontsize=9)
        panel.set_xlim(0, 122)
        panel.set_xticks((0, 50, 100))
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.tick_params(axis="x", labelsize=7.5, length=2)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    panels[0, 0].invert_yaxis()  # shared: the first contestant stands on top
    return figure


def bar_colours(contestants: list[Compared]) -> list[str]:
    """A colour of its own for each model, grey for controls."""
    models = itertools.cycle(MODELS)
    return [CONTROL if one.contestant.control else next(models) for one in contestants]


def draw_bar(panel, place: int, value: float | None, interval: list[float] | None, colour: str) -> None:
    if value is None:
        return
    low, high = (100 * bound for bound in interval or (value, value))
    panel.barh(place, 100 * value, height=0.72, color=colour)
    if high > low:
        panel.plot((low, high), (place, place), color="#333333", linewidth=1.1, solid_capstyle="butt")
    right = max(100 * value, high) + 2
    panel.text(right, place, f"{100 * value:.1f}", va="center", fontsize=7.5, color="#222222")


def headline_bars(contestants: list[Compared]) -> Figure:
    """Models and controls as in the paper's Figure 7: BLEU, BERTScore and accuracy."""
    return bars(
        contestants,
        [column for column in HEADLINE if any(column.metric in one.result["overall"] for one in contestants)],
    )


def type_bars(contestants: list[Compared]) -> Figure:
    """Each question type's own metric."""
    types = types_of({one.name: one.result for one in contestants})
    metrics = {kind: type_metric(kind) for kind in types}
    return bars(
        contestants,
        [Column(f"{kind.replace('_', '/')}, {METRIC_WORDS[metrics[kind]]}", kind, metrics[kind]) for kind in types],
    )


def elastic_curve(budgets: dict[int, dict]) -> Figure:
    """Scores and latency by visual tokens per camera; `budgets` as in `Metrics`."""
    order = sorted(budgets)
    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    scores, latency = figure.subplots(1, 2)
    for (key, label), colour in zip(CURVES, MODELS, strict=False):
        points = [(tokens, 100 * budgets[tokens][key]) for tokens in order if budgets[tokens].get(key) is not None]
        if points:
            scores.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=label)
    scores.set_ylabel("percent", fontsize=8.5)
    scores.set_ylim(0, 102)
    for (key, label), colour in zip(LATENCIES, MODELS, strict=False):
        milliseconds = [1000 * budgets[tokens][key] for tokens in order]
        latency.plot(order, milliseconds, marker="o", markersize=4, color=colour, label=label)
    latency.set_ylabel("milliseconds (median)", fontsize=8.5)
    latency.set_ylim(bottom=0)
    for panel, title in ((scores, "Scores"), (latency, "Latency")):
        panel.set_title(f"{title} by budget", fontsize=10)
        panel.set_xlabel("visual tokens per camera", fontsize=8.5)
        panel.set_xscale("log")
        panel.set_xticks(order, map(str, order))
        panel.set_xticks((), minor=True)
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", color="#e3e3e3", linewidth=0.7)
        panel.legend(fontsize=7.5, frameon=False)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    return figure
