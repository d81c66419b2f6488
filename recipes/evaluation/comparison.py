"""Finished evaluations side by side: the same questions, paired bootstrap over scenes against the first."""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from recipes.metrics.drivelm.drivelm import compare_predictions

TESTED = ("accuracy", "listing_f1", "exact_match", "bleu")  # what a p-value is computed for


@dataclass
class Run:
    """One evaluation's folder: its `metrics.json` and the rows of its `predictions.parquet` by contestant."""

    folder: Path
    metrics: dict
    predictions: dict[str, list[dict]]  # the model first, then its controls

    @property
    def model(self) -> str:
        return next(iter(self.predictions))


def read_run(folder: Path) -> Run:
    """A finished evaluation.

    Raises:
        FileNotFoundError: `metrics.json` or `predictions.parquet` is missing.
        ValueError: a prediction is there twice, or a contestant lacks or adds one.
    """
    for name in ("metrics.json", "predictions.parquet"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no finished evaluation: it has no {name}")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    predictions = {name: [] for name in metrics["results"]}
    for row in pq.read_table(folder / "predictions.parquet").to_pylist():
        if row["model"] not in predictions:
            raise ValueError(f"{folder}/predictions.parquet has answers of {row['model']!r}, metrics.json has not")
        predictions[row["model"]].append(row)
    run = Run(folder, metrics, predictions)
    expected = None
    for name, rows in predictions.items():
        ids = references(rows, f"{folder}/predictions.parquet, {name}")
        if len(ids) != metrics["results"][name]["overall"]["count"]:
            raise ValueError(
                f"{folder}/predictions.parquet has {len(ids)} answers of {name}, metrics.json counts"
                f" {metrics['results'][name]['overall']['count']}: some are missing; evaluate again"
            )
        expected = expected or ids
        check_same(expected, ids, f"{folder}, {run.model}", f"{folder}, {name}")
    return run


def references(rows: list[dict], where: str) -> dict[str, str]:
    """Reference answer by question id.

    Raises:
        ValueError: an id is there twice.
    """
    found = {}
    for row in rows:
        if row["id"] in found:
            raise ValueError(f"{where}: the id {row['id']!r} is there twice")
        found[row["id"]] = row["reference"]
    return found


def check_same(first: dict[str, str], other: dict[str, str], where_first: str, where_other: str) -> None:
    """Two contestants answered the same questions.

    Raises:
        ValueError: names the first id that one of them lacks or whose reference differs.
    """
    for ids, others, where in ((first, other, where_other), (other, first, where_first)):
        missing = sorted(ids.keys() - others.keys())
        if missing:
            raise ValueError(
                f"{where} lacks {len(missing)} of the questions, the first is {missing[0]!r}: only answers to the"
                " same questions can be compared"
            )
    differing = sorted(key for key in first if first[key] != other[key])
    if differing:
        raise ValueError(
            f"{where_first} and {where_other} have different references for {len(differing)} questions, the first is"
            f" {differing[0]!r}: they were evaluated on different data"
        )


def compare_runs(runs: list[Run], bootstrap_samples: int) -> dict:
    """All runs' models, then their controls, with their differences from the first run's model.

    -> {"first": name, "results": {name: as in metrics.json}, "predictions": {name: rows in the first's order},
        "differences": {name: {group: {metric: {"difference", "ci", "p_value"}}}}, "info": what the intervals are,
        "leakage": {model: its line}, "differing_settings": {setting: {model: value}}}
    The majority answer needs no model, so that runs on the same data share it: it is shown once.
    """
    labels = contestant_labels(runs)
    infos = {label: run.metrics["info"] for run, label in zip(runs, labels, strict=True)}
    check_encoders(infos)
    first = runs[0].predictions[runs[0].model]
    ids = references(first, str(runs[0].folder))
    results, predictions = {}, {}

    def add(key: str, run: Run, name: str) -> None:
        check_same(ids, references(run.predictions[name], f"{run.folder}, {name}"), labels[0], f"{run.folder}, {name}")
        by_id = {row["id"]: row for row in run.predictions[name]}
        results[key], predictions[key] = run.metrics["results"][name], [by_id[identity] for identity in ids]

    for run, label in zip(runs, labels, strict=True):
        add(label, run, run.model)
    for run, label in zip(runs, labels, strict=True):
        for name in list(run.predictions)[1:]:
            key = name if name == "majority" or len(runs) == 1 else f"{label}: {name}"
            if key not in results:
                add(key, run, name)
    differences, info = {}, {}
    for name in list(predictions)[1:]:
        differences[name], info = paired(first, predictions[name], bootstrap_samples)
    return {
        "first": labels[0],
        "results": results,
        "differences": differences,
        "predictions": predictions,
        "info": info,
        "leakage": {label: described["leakage"] for label, described in infos.items()},
        "differing_settings": differing_settings({label: infos[label]["settings"] for label in labels}),
    }


def check_encoders(infos: dict[str, dict]) -> None:
    """All BERTScores are of one encoder; runs without any may stand beside them.

    Raises:
        ValueError: names each model's encoder.
    """
    encoders = {label: info["bertscore_encoder"] for label, info in infos.items() if info.get("bertscore_encoder")}
    if len(set(encoders.values())) > 1:
        told = "; ".join(f"{label}: {encoder}" for label, encoder in encoders.items())
        raise ValueError(
            f"the BERTScores are of different encoders ({told}) and cannot be compared: evaluate with the same"
            " --bertscore-model"
        )


def differing_settings(settings: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """{setting: {model: value}} of the settings that differ, beyond which model it was."""
    first = next(iter(settings.values()))
    found = {}
    for name in first:
        values = {label: one.get(name, "not recorded") for label, one in settings.items()}
        if name not in ("model", "name") and len(set(values.values())) > 1:
            found[name] = values
    return found


def paired(first: list[dict], other: list[dict], bootstrap_samples: int) -> tuple[dict, dict]:
    """`compare_predictions` of two contestants' rows, which are in the same order -> (groups, info)."""
    compared = compare_predictions(
        [row["prediction"] for row in first],
        [row["prediction"] for row in other],
        [row["reference"] for row in first],
        question_types=[row["type"] for row in first],
        scene_tokens=[row["scene_token"] for row in first],
        metrics=TESTED,
        bootstrap_samples=bootstrap_samples,
    )
    return compared, compared.pop("info")


def contestant_labels(runs: list[Run]) -> list[str]:
    """Each run's name; its folder beside it where several runs are named the same.

    Raises:
        ValueError: the same folder twice.
    """
    folders = [run.folder.resolve() for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(f"{folder} is named twice: compare different runs")
    names = [run.model for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.folder})" for name, run in zip(names, runs, strict=True)
    ]
