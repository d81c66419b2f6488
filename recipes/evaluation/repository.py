"""The files of a repository on the Hub: a model or a planner with its card, and only as it was evaluated."""

import json
from pathlib import Path

from recipes.evaluation.model_card import write_card
from recipes.evaluation.predictions import Metrics, check_unedited, read_metrics
from recipes.evaluation.provenance import loading_digests, training_record, training_stages, weights_digest
from recipes.evaluation.publishing import (
    CONFIGURATIONS,
    check_file,
    is_planner,
    matches,
    model_files,
    published_settings,
    read_object,
)
from recipes.planning.plan_files import RECIPE, PlanMetrics, read_plan_metrics
from recipes.planning.planner_card import write_planner_card
from recipes.serving.hub_files import hub_files
from recipes.training.manifest import TRAINING_MANIFEST


def repository_files(
    model: Path, evaluation: Path, repo_id: str, data: str, with_space: bool = False
) -> tuple[dict[str, Path | bytes], list]:
    """-> ({name in the repository: path or content}, names in the model folder that stay at home)

    Args:
        with_space: whether a Space of the same name shows the model; the card links to it.

    Raises:
        FileNotFoundError: a file is missing from either folder.
        ValueError: the evaluation is of other weights or files, of another format, was edited, or lacks what the card
            must show.
    """
    files, left = model_files(model)
    config = read_object(model / "config.json")
    planner = is_planner(config)
    if planner and with_space:
        raise ValueError(f"--space shows a model that answers questions; {model} is a planner")
    metrics = read_plan_metrics(evaluation) if planner else read_metrics(evaluation)
    check_unedited(evaluation)
    check_unchanged(
        model, evaluation, metrics, f"{RECIPE} --planner" if planner else "recipes/evaluate_drivelm.py --model"
    )
    shown = {f"figures/{path.name}": path for path in sorted((evaluation / "figures").glob("*.png"))}
    if (evaluation / "report.html").is_file():
        shown["report.html"] = evaluation / "report.html"
    for path in shown.values():
        check_file(path, evaluation)
    files |= {name: published_settings(path) for name, path in files.items() if matches(name, CONFIGURATIONS)} | shown
    stages = training_stages(model, local_files_only=True)
    if stages:
        files[TRAINING_MANIFEST] = json.dumps(slim_manifest(model, stages), indent=1).encode()
    figures = sorted(name for name in files if name.startswith("figures/"))
    if planner:
        card = write_planner_card(repo_id, metrics, stages, config, figures, data)
    else:
        served, widget = hub_files(repo_id, evaluation, metrics, data)
        files |= served
        space = repo_id if with_space else None
        card = write_card(repo_id, metrics, stages, config, figures, data, widget, space)
    files["README.md"] = card.encode()
    return files, left


def check_unchanged(model: Path, evaluation: Path, metrics: Metrics | PlanMetrics, command: str) -> None:
    """The weights, and the files that loading the model reads, are those that were evaluated.

    Args:
        command: evaluates the model whose folder is put behind it.

    Raises:
        ValueError: names the files.
    """
    if metrics.weights_sha256 != weights_digest(model):
        raise ValueError(
            f"{evaluation} is an evaluation of {metrics.settings.model} with other weights than those in {model}: run"
            f" {command} {model} first"
        )
    now = loading_digests(model)
    changed = [
        name for name in sorted({*now, *metrics.files_sha256}) if now.get(name) != metrics.files_sha256.get(name)
    ]
    if changed:
        raise ValueError(
            f"{', '.join(changed)} of {model} changed after the evaluation {evaluation}: run {command} {model} again"
        )


def slim_manifest(model: Path, stages: list[dict]) -> dict:
    """What others may know of the training, without paths.

    For their own leakage check its scenes, its teachers' scenes, and the names of what has no record; and its length.
    """
    record = training_record(model, local_files_only=True)
    return {
        "scene_tokens": sorted(record.scene_tokens),
        "steps": sum(stage.get("steps", 0) for stage in stages),
        "seconds": sum(stage.get("seconds", 0) for stage in stages),
        "unrecorded": record.unrecorded + record.unread + record.gone_names,
    }
