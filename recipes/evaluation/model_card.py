"""Fills model_card.md: every headline number stands beside its controls and its interval, or there is no card.

A question type whose questions are all of one scene can have no interval: its number says so.
"""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_smoldriver.configuration_smoldriver import visual_token_budgets
from recipes.evaluation.provenance import SOURCES, is_hub_id
from recipes.evaluation.tables import conditions

TEMPLATE = Path(__file__).parents[2] / "model_card.md"
REQUIRED_CONTROLS = ("majority", "other_scene_images", "text_only")  # what pictures must bring anything beyond
HEADLINES = (  # name, group, metric, the Hub's name of the metric
    ("closed accuracy", "overall", "accuracy", "accuracy"),
    ("yes/no accuracy", "yes_no", "accuracy", "accuracy"),
    ("listing F1", "listing", "listing_f1", "f1"),
    ("BLEU", "overall", "bleu", "bleu"),
    ("BERTScore F1", "overall", "bertscore_f1", "bertscore"),
)
BUDGET_COLUMNS = ("closed_accuracy", "yes_no", "status", "listing_f1")
DATA = {
    "drivelm": {
        "name": "DriveLM-nuScenes",
        "id": "OpenDriveLab/DriveLM",
        "license": "cc-by-nc-sa-4.0",
        "licences": (
            "Trained and evaluated on [DriveLM](https://github.com/OpenDriveLab/DriveLM), whose language data is CC"
            " BY-NC-SA 4.0, with pictures of [nuScenes](https://www.nuscenes.org/terms-of-use), which are CC"
            " BY-NC-SA 4.0 and for non-commercial use. These weights are bound by the same terms: no commercial use."
            " Pictures in report.html are nuScenes' and stay under its terms."
        ),
    },
    "synthetic": {
        "name": "SmolDriver's synthetic world",
        "id": "smoldriver-synthetic-world",
        "license": "apache-2.0",
        "licences": (
            "Trained and evaluated on pictures and questions that the project draws itself; no road was recorded, and"
            " nothing here says how the model does on real pictures. DriveLM and nuScenes, whose formats the world"
            " follows, are for non-commercial use (CC BY-NC-SA 4.0); none of their data is in it."
        ),
    },
}
WIDGET = (
    "Are there cars to the front of the ego car?",
    "What are objects to the front left of the ego car?",
    "Predict the behavior of the ego vehicle.",
)


def headlines(results: dict[str, dict], left_out: dict[str, str]) -> list[dict]:
    """The model's headline numbers with their controls: {"name", "group", "metric", "hub", "controls": {name: value}}.

    Each has an interval, but for a question type whose questions are all of one scene: that can have none.

    Raises:
        ValueError: names the number, and the interval or the control that it lacks.
    """
    model, *others = results
    found = []
    for name, group, metric, hub in HEADLINES:
        entry = results[model].get(group, {})
        if entry.get(metric) is None:
            continue
        if entry.get(f"{metric}_ci") is None and (group == "overall" or entry["scenes"] > 1):
            raise ValueError(
                f"the headline number {name!r} lacks its interval: evaluate several scenes, with --bootstrap-samples"
                " above 0 (default 1000)"
            )
        controls = {other: results[other].get(group, {}).get(metric) for other in others}
        for control in REQUIRED_CONTROLS:
            if controls.get(control) is None:
                why = f" (left out: {left_out[control]})" if control in left_out else ""
                raise ValueError(
                    f"the headline number {name!r} lacks its control {control!r}{why}: evaluate with --controls"
                    f" {' '.join(REQUIRED_CONTROLS)}"
                )
        found.append({"name": name, "group": group, "metric": metric, "hub": hub, "controls": controls})
    if not found:
        raise ValueError(
            f"the evaluation has none of the headline numbers {', '.join(name for name, *_ in HEADLINES)}"
        )
    return found


def cell(result: dict, headline: dict) -> str:
    entry = result.get(headline["group"], {})
    value, interval = entry.get(headline["metric"]), entry.get(headline["metric"] + "_ci")
    if value is None:
        return "-"
    if interval is None:
        return f"{100 * value:.1f} (no interval)"
    return f"{100 * value:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def not_clearly_better(result: dict, found: list[dict]) -> list[str]:
    """Headline numbers without an interval, or that a control reaches: its value is not below the model's interval."""
    sentences = []
    for headline in found:
        interval = result[headline["group"]].get(headline["metric"] + "_ci")
        if interval is None:
            sentences.append(f"{headline['name']} (no interval: all questions are of one scene)")
            continue
        control = max(
            (name for name, value in headline["controls"].items() if value is not None), key=headline["controls"].get
        )
        if headline["controls"][control] >= interval[0]:
            value = 100 * headline["controls"][control]
            sentences.append(f"{headline['name']} ({control}: {value:.1f})")
    return sentences


def stage_rows(stages: list[dict]) -> list[dict]:
    """What the card tells of each stage, without paths: a local base is named by its folder alone."""
    rows = []
    for stage in stages:
        sources = [stage[key] or "random weights" for key in SOURCES if key in stage] or ["not recorded"]
        seconds = stage.get("seconds")
        rows.append(
            {
                "base": " and ".join(source if is_hub_id(source) else Path(source).name for source in sources),
                "scenes": len(stage["scene_tokens"]) if "scene_tokens" in stage else "not recorded",
                "steps": stage.get("steps", "not recorded"),
                "time": "not recorded" if seconds is None else f"{seconds / 60:.0f} min ({seconds:,} s)",
                "machine": stage.get("machine", "not recorded"),
            }
        )
    return rows


def write_card(
    repo_id: str, metrics: dict, stages: list[dict], config: dict, figures: list[str], data: str = "drivelm"
) -> str:
    """The card as text: YAML front matter with the model-index, then model_card.md filled in.

    Args:
        metrics: `metrics.json` of an evaluation.
        stages: training manifests, the first stage first.
        config: the model's `config.json`.
        figures: names of figures in the repository.
        data: a key of `DATA`, what it was trained and evaluated on.

    Raises:
        ValueError: a headline number without its interval or its controls, or numbers of training frames.
    """
    results, info, source = metrics["results"], metrics["info"], DATA[data]
    split = info["settings"]["split"]
    if split == "train":
        raise ValueError("the evaluation asked about training frames (split 'train'): a card takes a split held out")
    model = next(iter(results))
    found = headlines(results, info["left_out_controls"])
    evaluations = [
        EvalResult(
            task_type="image-text-to-text",
            task_name="Questions about driving scenes",
            dataset_type=source["id"],
            dataset_name=source["name"],
            dataset_split=split,
            metric_type=headline["hub"],
            metric_name=headline["name"],
            metric_value=round(results[model][headline["group"]][headline["metric"]], 4),
            metric_args={
                "interval_95": _rounded(results[model][headline["group"]].get(headline["metric"] + "_ci")),
                "controls": {name: _rounded(value) for name, value in headline["controls"].items()},
            },
        )
        for headline in found
    ]
    bases = [stage[key] for stage in stages for key in SOURCES if is_hub_id(stage.get(key) or "")]
    front_matter = ModelCardData(
        model_name=repo_id.split("/")[-1],
        language="en",
        license=source["license"],
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["autonomous-driving", "vision-language-model", "multi-camera", "smoldriver", "custom_code"],
        datasets=[source["id"]] if data == "drivelm" else None,
        base_model=list(dict.fromkeys(bases)) or None,
        eval_results=evaluations,
        widget=[{"text": text, "example_title": text} for text in WIDGET],
    )
    budgets = [
        [tokens, *("-" if row.get(key) is None else f"{100 * row[key]:.1f}" for key in BUDGET_COLUMNS)]
        + [f"{1000 * row[key]:.1f}" for key in ("encode_seconds_per_frame", "answer_seconds_per_question")]
        for tokens, row in metrics.get("budgets", {}).items()
    ]
    card = ModelCard.from_template(
        front_matter,
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        data=source,
        cameras=config["vision_config"]["cameras"],
        tower=config["vision_config"]["tower_config"]["model_type"],
        layers=config["text_config"]["num_hidden_layers"],
        width=config["text_config"]["hidden_size"],
        budgets=visual_token_budgets(config["vision_config"]["grid_size"], config["scale_factor"]),
        split=split,
        count=results[model]["overall"]["count"],
        scenes=results[model]["overall"]["scenes"],
        conditions=conditions(info["settings"]),
        interval=info["interval"],
        encoder=info.get("bertscore_encoder"),
        leakage=info["leakage"],
        headlines=found,
        rows=[
            {"name": f"`{name}`" if name != model else f"**{name}**", "cells": [cell(result, h) for h in found]}
            for name, result in results.items()
        ],
        controls={name: text for name, text in info["controls"].items() if name in results},
        not_clear=not_clearly_better(results[model], found),
        budget_rows=budgets,
        figures=figures,
        stages=stage_rows(stages),
    )
    return card.content


def _rounded(value):
    if isinstance(value, list):
        return [round(bound, 4) for bound in value]
    return None if value is None else round(value, 4)
