"""Figures of an evaluation, as PNG files for its folder, its report and the model card."""

from pathlib import Path

from matplotlib.figure import Figure

from recipes.evaluation.tables import is_control, type_metric
from recipes.metrics.drivelm.drivelm import QUESTION_TYPES
from smoldriver_common.whole_files import written_whole

MODELS = ("#1b6ca8", "#d1603d", "#3a8f5c", "#8a5aa8", "#b08d1f", "#4aa3a2")  # told apart in print and by colour-blind
CONTROL = "#b4b8bd"
HEADLINE = (
    ("BLEU", "overall", "bleu"),
    ("BERTScore precision", "overall", "bertscore_precision"),
    ("BERTScore recall", "overall", "bertscore_recall"),
    ("BERTScore F1", "overall", "bertscore_f1"),
    ("Accuracy, closed questions", "overall", "accuracy"),
)
METRIC_WORDS = {"accuracy": "accuracy", "listing_f1": "F1", "exact_match": "exact match"}
CURVES = (
    ("closed_accuracy", "closed questions"),
    ("yes_no", "yes/no"),
    ("status", "status"),
    ("listing_f1", "listing F1"),
)


def save(figure: Figure, path: Path) -> Path:
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=130, facecolor="white")
    return path


def bars(results: dict[str, dict], columns, across: int = 5) -> Figure:
    """A panel a column (head, group, metric) with a bar a contestant, in percent, and its 95% interval."""
    names = list(results)
    rows = -(-len(columns) // across)
    across = min(across, len(columns))
    label_width = 0.5 + 0.085 * max(map(len, names))
    width, height = label_width + 2.15 * across, rows * (0.75 + 0.26 * len(names))
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, across, sharey=True, squeeze=False)
    models = [name for name in names if not is_control(name)]
    colours = {name: MODELS[number % len(MODELS)] for number, name in enumerate(models)}
    for panel in panels.flat[len(columns) :]:
        panel.set_visible(False)
    for panel, (head, group, metric) in zip(panels.flat, columns, strict=False):
        for place, name in enumerate(names):
            found = results[name].get(group, {})
            if found.get(metric) is None:
                continue
            value = 100 * found[metric]
            panel.barh(place, value, height=0.72, color=colours.get(name, CONTROL))
            low, high = (100 * bound for bound in found.get(metric + "_ci") or (found[metric],) * 2)
            if high > low:
                panel.plot((low, high), (place, place), color="#333333", linewidth=1.1, solid_capstyle="butt")
            panel.text(max(value, high) + 2, place, f"{value:.1f}", va="center", fontsize=7.5, color="#222222")
        panel.set_title(head, fontsize=9)
        panel.set_xlim(0, 122)
        panel.set_xticks((0, 50, 100))
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.tick_params(axis="x", labelsize=7.5, length=2)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    panels[0, 0].invert_yaxis()  # shared: the first contestant stands on top
    return figure


def headline_bars(results: dict[str, dict]) -> Figure:
    """Models and controls as in the paper's Figure 7: BLEU, BERTScore and accuracy."""
    return bars(results, [column for column in HEADLINE if any(column[2] in r["overall"] for r in results.values())])


def type_bars(results: dict[str, dict]) -> Figure:
    types = [kind for kind in QUESTION_TYPES if any(kind in result for result in results.values())]
    heads = [f"{kind.replace('_', '/')}, {METRIC_WORDS[type_metric(kind)]}" for kind in types]
    return bars(results, list(zip(heads, types, map(type_metric, types), strict=True)))


def elastic_curve(budgets: dict[str, dict]) -> Figure:
    """Scores and latency by visual tokens a camera; `budgets` as in metrics.json."""
    order = sorted(budgets, key=int)
    tokens = list(map(int, order))
    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    scores, latency = figure.subplots(1, 2)
    for (key, label), colour in zip(CURVES, MODELS, strict=False):
        points = [(int(name), 100 * budgets[name][key]) for name in order if budgets[name].get(key) is not None]
        if points:
            scores.plot(*zip(*points, strict=True), marker="o", markersize=4, color=colour, label=label)
    scores.set_ylabel("percent", fontsize=8.5)
    scores.set_ylim(0, 102)
    for key, label, colour in (
        ("encode_seconds_per_frame", "pictures and prompt, a frame", MODELS[0]),
        ("answer_seconds_per_question", "answer, a question", MODELS[1]),
    ):
        seconds = [1000 * budgets[name][key] for name in order]
        latency.plot(tokens, seconds, marker="o", markersize=4, color=colour, label=label)
    latency.set_ylabel("milliseconds (median)", fontsize=8.5)
    latency.set_ylim(bottom=0)
    for panel, title in ((scores, "Scores"), (latency, "Latency")):
        panel.set_title(f"{title} by budget", fontsize=10)
        panel.set_xlabel("visual tokens a camera", fontsize=8.5)
        panel.set_xscale("log")
        panel.set_xticks(tokens, order)
        panel.set_xticks((), minor=True)
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", color="#e3e3e3", linewidth=0.7)
        panel.legend(fontsize=7.5, frameon=False)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    return figure
