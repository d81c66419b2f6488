"""Writes report.html of one evaluation or of several side by side: tables, bars, the worst answers with pictures.

The page is one file that needs no other; its figures are also in `figures/`, as PNG.
"""

import base64
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import jinja2

from data_scripts.schema import cameras_of
from recipes.evaluation.comparison import Comparison, Evaluation, compare_evaluations
from recipes.evaluation.figures import elastic_curve, headline_bars, save, type_bars
from recipes.evaluation.predictions import CONTROLS, METRICS_FILE, Prediction, write_metrics, write_predictions
from recipes.evaluation.tables import BUDGET_COLUMNS, columns, conditions, milliseconds, type_metric, types_of
from recipes.metrics.drivelm.answer_metrics import leading_decision
from recipes.metrics.drivelm.scores import BERTSCORE
from smoldriver_common.whole_files import written_whole

TEMPLATE = Path(__file__).with_name("report_template.html.jinja")
PICTURE_WIDTH = 240  # pixels of a picture in the report
SAID = ("yes", "no", "neither")


@dataclass
class Curve:
    """One model's scores by budget."""

    model: str
    budgets: dict[int, dict]
    figure: str  # name of its file in figures/, without .png


def yes_no_confusion(predictions: list[Prediction]) -> dict[str, dict[str, int]] | None:
    """{true answer: {what was said: questions}} of the yes/no questions; None without any."""
    counts = {truth: dict.fromkeys(SAID, 0) for truth in SAID[:2]}
    for one in predictions:
        truth, said = (leading_decision(text) or "neither" for text in (one.reference, one.prediction))
        if one.type == "yes_no" and truth in counts:
            counts[truth][said] += 1
    return counts if any(sum(row.values()) for row in counts.values()) else None


def worst_answers(predictions: list[Prediction], count: int) -> dict[str, list[tuple[float, Prediction]]]:
    """{"precision", "recall", "F1": the `count` answers of the lowest BERTScore, with that score}, lowest first.

    A pair of reference and answer is shown once, however often it was given. Empty without BERTScores.
    """
    if predictions[0].bertscore_f1 is None:
        return {}
    pairs = {(one.prediction, one.reference): one for one in reversed(predictions)}.values()
    worst = {}
    for metric, name in zip(BERTSCORE, ("precision", "recall", "F1"), strict=True):
        ranked = sorted(((getattr(one, metric), one) for one in pairs), key=lambda scored: scored[0])
        worst[name] = ranked[:count]
    return worst


def small_jpeg(image) -> str:
    """A PIL picture as a data URL, at most `PICTURE_WIDTH` pixels wide."""
    image = image.convert("RGB")
    image.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return _data_url(buffer.getvalue(), "jpeg")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def frame_pictures(rows, frame_tokens: set[str]) -> dict[str, dict[str, str]]:
    """{frame: {camera: data URL}} of the asked frames; `rows` are scene rows with decoded pictures."""
    tokens, cameras = rows["frame_token"], cameras_of(rows.features)
    found = {}
    for index, token in enumerate(tokens):
        if token in frame_tokens and token not in found:
            row = rows[index]
            found[token] = {camera: small_jpeg(row[camera]) for camera in cameras if row[camera] is not None}
    return found


def write_report(folder: Path, evaluations: list[Evaluation], comparison: Comparison, rows, worst: int = 5) -> Path:
    """Write `<folder>/report.html` and `<folder>/figures/*.png`, and remove curves that an earlier report left there.

    Args:
        evaluations, comparison: see `recipes.evaluation.comparison.compare_evaluations`.
        rows: the evaluated scene rows, for the pictures of the worst answers; None leaves the pictures out.
        worst: how many worst answers of the first model to show by each of BERTScore's precision, recall and F1.
    """
    curves = elastic_curves(evaluations, comparison)
    images = write_figures(folder / "figures", comparison, curves)
    worst_rows = worst_answers(comparison.first.predictions, worst)
    shown = {one.frame_token for group in worst_rows.values() for _, one in group}
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    html = page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        **how_they_were_asked(evaluations, comparison),
        **what_they_scored(comparison),
        curves=curves,
        budget_columns=BUDGET_COLUMNS,
        milliseconds=milliseconds,
        images=images,
        worst=worst_rows,
        pictures=frame_pictures(rows, shown) if rows is not None and shown else {},
        places=[] if rows is None else cameras_of(rows.features),
    )
    path = folder / "report.html"
    with written_whole(path) as aside:
        aside.write_text(html, encoding="utf-8")
    return path


def elastic_curves(evaluations: list[Evaluation], comparison: Comparison) -> list[Curve]:
    """One per evaluation that asked at several budgets."""
    return [
        Curve(name, evaluation.metrics.budgets, f"elastic_{number}" if number else "elastic")
        for number, (name, evaluation) in enumerate(zip(comparison.models, evaluations, strict=True))
        if evaluation.metrics.budgets
    ]


def write_figures(folder: Path, comparison: Comparison, curves: list[Curve]) -> dict[str, str]:
    """-> {figure's name: data URL}"""
    figures = {
        "scores": headline_bars(comparison.contestants),
        "question_types": type_bars(comparison.contestants),
        **{curve.figure: elastic_curve(curve.budgets) for curve in curves},
    }
    images = {
        name: _data_url(save(figure, folder / f"{name}.png").read_bytes(), "png") for name, figure in figures.items()
    }
    for path in folder.glob("elastic*.png"):
        if path.stem not in figures:
            path.unlink()  # or it would be published as this model's
    return images


def how_they_were_asked(evaluations: list[Evaluation], comparison: Comparison) -> dict:
    """The template's values on settings, leakage and controls."""
    first, encoders = evaluations[0].metrics, [one.metrics.bertscore_encoder for one in evaluations]
    shown = {one.contestant.control for one in comparison.contestants}
    return {
        "split": first.settings.split,
        "interval": first.interval,
        "encoder": next(filter(None, encoders), None),
        "described": [
            (name, one.metrics, conditions(one.metrics.settings))
            for name, one in zip(comparison.models, evaluations, strict=True)
        ],
        "differing": comparison.differing_settings,
        "controls": {name: text for name, text in CONTROLS.items() if name in shown},
    }


def what_they_scored(comparison: Comparison) -> dict:
    """The template's values on results, differences and yes/no answers."""
    results = comparison.results
    return {
        "model": comparison.first.name,
        "count": comparison.first.result["overall"]["count"],
        "results": results,
        "columns": columns(results),
        "types": [(kind, type_metric(kind)) for kind in types_of(results)],
        "differences": comparison.differences,
        "confusions": {
            one.name: counts
            for one in comparison.contestants
            if one.contestant.control is None and (counts := yes_no_confusion(one.predictions))
        },
        "said": SAID,
    }


def write_evaluation(evaluation: Evaluation, rows, worst: int) -> None:
    """Write all of its files. metrics.json comes last: with it the evaluation is finished."""
    folder = evaluation.folder
    (folder / METRICS_FILE).unlink(missing_ok=True)  # an earlier evaluation's: its scores are not of these answers
    write_predictions(folder, [one for answers in evaluation.predictions.values() for one in answers])
    comparison = compare_evaluations([evaluation])
    write_report(folder, [evaluation], comparison, rows, worst)
    write_metrics(folder, evaluation.metrics)
    for unfinished in folder.glob(".parts-*"):
        shutil.rmtree(unfinished)
