"""report.html of one evaluation or of several side by side: tables, bars, the worst answers with their pictures.

One file that needs nothing beside it; its figures also lie as PNG in `figures/`.
"""

import base64
import io
from pathlib import Path

import jinja2

from modeling_smoldriver import CAMERAS
from recipes.evaluation.comparison import Run
from recipes.evaluation.figures import elastic_curve, headline_bars, save, type_bars
from recipes.evaluation.tables import columns, conditions, is_control, type_metric
from recipes.metrics.drivelm.answer_metrics import leading_decision
from recipes.metrics.drivelm.drivelm import BERTSCORE, QUESTION_TYPES
from smoldriver_common.whole_files import written_whole

TEMPLATE = Path(__file__).with_name("report_template.html.jinja")
PICTURE_WIDTH = 240  # pixels of a picture in the report
SAID = ("yes", "no", "neither")


def yes_no_confusion(rows: list[dict]) -> dict[str, dict[str, int]] | None:
    """{true answer: {what was said: questions}} of the yes/no questions; None without any."""
    counts = {truth: dict.fromkeys(SAID, 0) for truth in SAID[:2]}
    for row in rows:
        truth, said = (leading_decision(row[key]) or "neither" for key in ("reference", "prediction"))
        if row["type"] == "yes_no" and truth in counts:
            counts[truth][said] += 1
    return counts if any(sum(row.values()) for row in counts.values()) else None


def worst_answers(rows: list[dict], count: int) -> dict[str, list[dict]]:
    """{"precision", "recall", "F1": the `count` rows of the lowest BERTScore, with `score`}, lowest first.

    A pair of reference and answer is shown once, however often it was given. Empty where rows have no BERTScore.
    """
    if BERTSCORE[0] not in rows[0]:
        return {}
    pairs = {(row["prediction"], row["reference"]): row for row in reversed(rows)}
    worst = {}
    for metric, name in zip(BERTSCORE, ("precision", "recall", "F1"), strict=True):
        ranked = sorted(pairs.values(), key=lambda row: row[metric])
        worst[name] = [row | {"score": row[metric]} for row in ranked[:count]]
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
    tokens = rows["frame_token"]
    found = {}
    for index, token in enumerate(tokens):
        if token in frame_tokens and token not in found:
            row = rows[index]
            found[token] = {camera: small_jpeg(row[camera]) for camera in CAMERAS if row[camera] is not None}
    return found


def write_report(folder: Path, runs: list[Run], comparison: dict, rows, worst: int = 5) -> Path:
    """Write `<folder>/report.html` and `<folder>/figures/*.png`, and remove curves that an earlier report left there.

    Args:
        runs, comparison: see `recipes.evaluation.comparison.compare_runs`.
        rows: the evaluated scene rows, for the pictures of the worst answers; None leaves the pictures out.
        worst: worst answers to show by each of BERTScore's precision, recall and F1, of the first run's model.
    """
    results, predictions = comparison["results"], comparison["predictions"]
    figures = {"scores": headline_bars(results), "question_types": type_bars(results)}
    curves = [
        (name, run.metrics["budgets"], f"elastic_{number}" if number else "elastic")
        for number, (run, name) in enumerate(zip(runs, results, strict=False))  # the models stand first in the results
        if "budgets" in run.metrics
    ]
    figures |= {figure: elastic_curve(budgets) for _, budgets, figure in curves}
    images = {
        name: _data_url(save(figure, folder / "figures" / f"{name}.png").read_bytes(), "png")
        for name, figure in figures.items()
    }
    for path in (folder / "figures").glob("elastic*.png"):
        if path.stem not in figures:
            path.unlink()  # or it would be published as this model's
    model = comparison["first"]
    info = runs[0].metrics["info"]
    encoders = [run.metrics["info"].get("bertscore_encoder") for run in runs]
    worst_rows = worst_answers(predictions[model], worst)
    shown = {row["frame_token"] for group in worst_rows.values() for row in group}
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}"
    html = page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        model=model,
        info=info,
        described=[
            {"name": name, "info": run.metrics["info"], "conditions": conditions(run.metrics["info"]["settings"])}
            for run, name in zip(runs, comparison["leakage"], strict=True)
        ],
        differing=comparison["differing_settings"],
        encoder=next(filter(None, encoders), None),
        results=results,
        columns=columns(results),
        types=[(kind, type_metric(kind)) for kind in QUESTION_TYPES if any(kind in r for r in results.values())],
        differences=comparison["differences"],
        interval=info.get("interval", ""),
        confusions={
            name: counts
            for name, group in predictions.items()
            if not is_control(name) and (counts := yes_no_confusion(group))
        },
        said=SAID,
        curves=curves,
        images=images,
        worst=worst_rows,
        pictures=frame_pictures(rows, shown) if rows is not None and shown else {},
        places=CAMERAS,
        controls={name: text for name, text in info["controls"].items() if any(name in key for key in results)},
        count=results[model]["overall"]["count"],
    )
    path = folder / "report.html"
    with written_whole(path) as aside:
        aside.write_text(html, encoding="utf-8")
    return path
