"""Fills in model_card.md: every headline number stands beside its controls and its interval, or there is no card.

A question type in fewer than three scenes cannot have an interval: its number says so.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_smoldriver.configuration_smoldriver import visual_token_budgets
from recipes.evaluation.predictions import CONTROLS, Metrics
from recipes.evaluation.provenance import SOURCES, is_hub_id
from recipes.evaluation.tables import BUDGET_COLUMNS, Column, conditions, milliseconds, percent
from recipes.metrics.drivelm.scene_intervals import MIN_SCENES

TEMPLATE = Path(__file__).parents[2] / "model_card.md"
REQUIRED_CONTROLS = ("majority", "other_scene_images", "text_only")  # the pictures must be worth more than these
HEADLINES = {  # column: the Hub's name of its metric
    Column("closed accuracy", "overall", "accuracy"): "accuracy",
    Column("yes/no accuracy", "yes_no", "accuracy"): "accuracy",
    Column("listing F1", "listing", "listing_f1"): "f1",
    Column("BLEU", "overall", "bleu"): "bleu",
    Column("BERTScore F1", "overall", "bertscore_f1"): "bertscore",
}
CARD_BUDGET_COLUMNS = tuple(key for key in BUDGET_COLUMNS if key != "bleu")
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


@dataclass
class Headline:
    """A number of the model that the card shows, and the same number of each control."""

    column: Column
    value: float
    interval: list[float] | None
    controls: dict[str, float | None]

    def best_control(self) -> tuple[str, float]:
        known = {name: value for name, value in self.controls.items() if value is not None}
        return max(known.items(), key=lambda entry: entry[1])


def headlines(metrics: Metrics) -> list[Headline]:
    """The model's headline numbers with their controls.

    Each has an interval, unless it is of a question type in fewer than three scenes.

    Raises:
        ValueError: names the number, and the interval or the control that it lacks.
    """
    model, *controls = metrics.results
    found = []
    for column in HEADLINES:
        result = metrics.results[model]
        if column.value(result) is None:
            continue
        headline = Headline(
            column,
            column.value(result),
            column.interval(result),
            {name: column.value(metrics.results[name]) for name in controls},
        )
        check_headline(headline, result, metrics.left_out_controls)
        found.append(headline)
    if not found:
        names = ", ".join(column.head for column in HEADLINES)
        raise ValueError(f"the evaluation has none of the headline numbers {names}")
    return found


def check_headline(headline: Headline, result: dict, left_out: dict[str, str]) -> None:
    """The headline has an interval, where it can have one, and the required controls.

    Raises:
        ValueError: names what the headline lacks.
    """
    name, group = headline.column.head, headline.column.group
    scenes = headline.column.scenes(result)
    if headline.interval is None and (group == "overall" or scenes >= MIN_SCENES):
        raise ValueError(
            f"the headline number {name!r} lacks its interval: it is of {scenes} scenes, evaluate at least"
            f" {MIN_SCENES}"
        )
    for control in REQUIRED_CONTROLS:
        if headline.controls.get(control) is None:
            why = f" (left out: {left_out[control]})" if control in left_out else ""
            raise ValueError(
                f"the headline number {name!r} lacks its control {control!r}{why}: evaluate with --controls"
                f" {' '.join(REQUIRED_CONTROLS)}"
            )


def publishable_headlines(metrics: Metrics) -> list[Headline]:
    """As `headlines`, of frames that the model did not learn from.

    Raises:
        ValueError: see `headlines`; the evaluation is of the training split.
    """
    if metrics.settings.split == "train":
        raise ValueError("the evaluation asked about training frames (split 'train'): a card needs a held-out split")
    return headlines(metrics)


def cell(result: dict, column: Column) -> str:
    value, interval = column.value(result), column.interval(result)
    if value is None:
        return "-"
    if interval is None:
        return f"{percent(value)} (no interval: {column.scenes(result)} scenes)"
    return f"{percent(value)} ({percent(interval[0])} to {percent(interval[1])})"


def not_clearly_better(found: list[Headline]) -> list[str]:
    """Headline numbers without an interval, and those whose best control is not below the model's interval."""
    sentences = []
    for headline in found:
        name, value = headline.best_control()
        if headline.interval is None:
            sentences.append(f"{headline.column.head} (no interval: fewer than {MIN_SCENES} scenes)")
        elif value >= headline.interval[0]:
            sentences.append(f"{headline.column.head} ({name}: {percent(value)})")
    return sentences


def stage_rows(stages: list[dict]) -> list[dict]:
    """What the card says of each stage, without paths: a local base is named by its folder alone."""
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
    repo_id: str,
    metrics: Metrics,
    stages: list[dict],
    config: dict,
    figures: list[str],
    data: str = "drivelm",
    widget: list[dict] | None = None,
    space: str | None = None,
) -> str:
    """The card as text: YAML front matter with the model-index, then model_card.md filled in.

    Args:
        metrics: of an evaluation.
        stages: training manifests, the first stage first.
        config: the model's `config.json`.
        figures: names of figures in the repository.
        data: a key of `DATA`, what the model was trained and evaluated on.
        widget: the page's examples; default questions alone.
        space: the Space that shows the model, as user/name.

    Raises:
        ValueError: a headline number without its interval or its controls, or numbers of training frames.
    """
    found = publishable_headlines(metrics)
    card = ModelCard.from_template(
        front_matter(repo_id, found, metrics.settings.split, stages, data, widget),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        data=DATA[data],
        figures=figures,
        space=space,
        stages=stage_rows(stages),
        **what_the_model_is(config),
        **what_it_scored(metrics, found),
    )
    return card.content


def front_matter(
    repo_id: str, found: list[Headline], split: str, stages: list[dict], data: str, widget: list[dict] | None
) -> ModelCardData:
    bases = [stage[key] for stage in stages for key in SOURCES if is_hub_id(stage.get(key) or "")]
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        language="en",
        license=DATA[data]["license"],
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=[
            "autonomous-driving",
            "vision-language-model",
            "multi-camera",
            "smoldriver",
            "conversational",
            "custom_code",
        ],
        datasets=[DATA[data]["id"]] if data == "drivelm" else None,
        base_model=list(dict.fromkeys(bases)) or None,
        eval_results=[model_index_entry(headline, split, data) for headline in found],
        widget=widget or [{"text": text, "example_title": text} for text in WIDGET],
    )


def model_index_entry(headline: Headline, split: str, data: str) -> EvalResult:
    return EvalResult(
        task_type="image-text-to-text",
        task_name="Questions about driving scenes",
        dataset_type=DATA[data]["id"],
        dataset_name=DATA[data]["name"],
        dataset_split=split,
        metric_type=HEADLINES[headline.column],
        metric_name=headline.column.head,
        metric_value=round(headline.value, 4),
        metric_args={
            "interval_95": headline.interval and [round(bound, 4) for bound in headline.interval],
            "controls": {
                name: None if value is None else round(value, 4) for name, value in headline.controls.items()
            },
        },
    )


def what_the_model_is(config: dict) -> dict:
    """The template's values on the architecture, of the model's `config.json`."""
    vision, text = config["vision_config"], config["text_config"]
    return {
        "cameras": vision["cameras"],
        "tower": vision["tower_config"]["model_type"],
        "layers": text["num_hidden_layers"],
        "width": text["hidden_size"],
        "budgets": visual_token_budgets(vision["grid_size"], config["scale_factor"]),
    }


def what_it_scored(metrics: Metrics, found: list[Headline]) -> dict:
    """The template's values on results and on how they came about."""
    model = next(iter(metrics.results))
    return {
        "split": metrics.settings.split,
        "count": metrics.results[model]["overall"]["count"],
        "scenes": metrics.results[model]["overall"]["scenes"],
        "conditions": conditions(metrics.settings),
        "interval": metrics.interval,
        "encoder": metrics.bertscore_encoder,
        "leakage": metrics.leakage,
        "headlines": [headline.column.head for headline in found],
        "rows": [
            {
                "name": f"**{name}**" if name == model else f"`{name}`",
                "cells": [cell(result, headline.column) for headline in found],
            }
            for name, result in metrics.results.items()
        ],
        "controls": {name: text for name, text in CONTROLS.items() if name in metrics.results},
        "not_clear": not_clearly_better(found),
        "budget_rows": [
            [tokens, *(percent(entry.get(key)) for key in CARD_BUDGET_COLUMNS), *milliseconds(entry)]
            for tokens, entry in metrics.budgets.items()
        ],
    }
