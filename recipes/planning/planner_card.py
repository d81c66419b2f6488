"""Fills in planner_card.md: numbers stand beside the expert's, their controls and intervals, or there is no card."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from recipes.evaluation.model_card import DATA, stage_rows
from recipes.evaluation.provenance import SOURCES, is_hub_id
from recipes.metrics.drivelm.scene_intervals import MIN_SCENES
from recipes.planning.plan_files import CONTROLS, EXPERT, PlanMetrics
from recipes.planning.plan_report import notes
from recipes.planning.plan_tables import tables

TEMPLATE = Path(__file__).parents[2] / "planner_card.md"
HEADLINES = {  # (protocol, metric): the name on the Hub
    ("ours", "l2_avg"): "L2 (m), mean of 1, 2 and 3 s",
    ("ours", "l2_3s"): "L2 (m) at 3 s",
    ("ours", "collision_3s"): "share of plans that touch a road user within 3 s",
    ("uniad", "l2_avg"): "L2 (m), UniAD's protocol",
    ("stp3", "l2_avg"): "L2 (m), VAD's protocol",
}


def write_planner_card(
    repo_id: str, metrics: PlanMetrics, stages: list[dict], config: dict, figures: list[str], data: str = "drivelm"
) -> str:
    """The card as text: YAML front matter with the model-index, then planner_card.md filled in.

    Args:
        metrics: of an evaluation.
        stages: training manifests, the first stage first.
        config: the planner's `config.json`.
        figures: names of figures in the repository.
        data: a key of `DATA`, what the planner was trained and evaluated on.

    Raises:
        ValueError: a control or an interval is missing, or numbers of training frames.
    """
    check_evidence(metrics)
    planner = next(iter(metrics.results))
    everything = metrics.results[planner]["all"]
    card = ModelCard.from_template(
        front_matter(repo_id, metrics, stages, data),
        template_path=str(TEMPLATE),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        data=DATA[data],
        figures=figures,
        stages=stage_rows(stages),
        cameras=config["vision_config"]["cameras"],
        commands=config["commands"],
        ego_inputs=config["ego_inputs"],
        waypoints=config["num_waypoints"],
        seconds=f"{config['num_waypoints'] * config['seconds_per_waypoint']:g}",
        split=metrics.settings.split,
        count=everything["count"],
        scenes=everything["scenes"],
        notes=notes(metrics.interval, {planner: metrics.record}),
        tables=tables(metrics.results, metrics.differences),
        controls=CONTROLS,
        not_clear=not_clearly_better(metrics),
    )
    return card.content


def check_evidence(metrics: PlanMetrics) -> None:
    """The evaluation is of held-out frames, has every control, and its headline numbers have intervals.

    Raises:
        ValueError: names what is missing.
    """
    if metrics.settings.split == "train":
        raise ValueError("the evaluation planned for training frames (split 'train'): a card needs a held-out split")
    missing = [name for name in (EXPERT, *CONTROLS) if name not in metrics.results]
    if missing:
        why = [f"{name}: {reason}" for name, reason in metrics.record.left_out_controls.items() if name in missing]
        raise ValueError(
            f"the evaluation lacks {', '.join(missing)}{f' ({why[0]})' if why else ''}: evaluate with all --controls"
        )
    planner = metrics.results[metrics.settings.name]["all"]
    for protocol, metric in HEADLINES:
        if planner[protocol].get(metric) is not None and planner[protocol].get(f"{metric}_ci") is None:
            raise ValueError(
                f"the headline number {protocol} {metric} lacks its interval: it is of {planner['scenes']} scenes,"
                f" evaluate at least {MIN_SCENES}"
            )


def not_clearly_better(metrics: PlanMetrics) -> list[str]:
    """Controls with the difference in L2, where its interval is not below 0."""
    found = []
    for name, difference in metrics.differences.items():
        l2 = difference["all"]["ours"]["l2_avg"]
        if l2["ci"] is None or l2["ci"][1] >= 0:
            found.append(f"`{name}` ({l2['difference']:+.2f} m)")
    return found


def front_matter(repo_id: str, metrics: PlanMetrics, stages: list[dict], data: str) -> ModelCardData:
    bases = [stage[key] for stage in stages for key in SOURCES if is_hub_id(stage.get(key) or "")]
    return ModelCardData(
        model_name=repo_id.split("/")[-1],
        license=DATA[data]["license"],
        library_name="transformers",
        pipeline_tag="robotics",
        tags=["autonomous-driving", "planning", "multi-camera", "smoldriver", "custom_code"],
        datasets=[DATA[data]["id"]] if data == "drivelm" else None,
        base_model=list(dict.fromkeys(bases)) or None,
        eval_results=model_index(metrics, data),
    )


def model_index(metrics: PlanMetrics, data: str) -> list[EvalResult]:
    """The headline numbers, each with its interval and the same number of the expert and of every control."""
    planner, *others = metrics.results
    everything = metrics.results[planner]["all"]

    def value(name: str, protocol: str, metric: str) -> float | None:
        found = metrics.results[name]["all"][protocol].get(metric)
        return None if found is None else round(found, 4)

    return [
        EvalResult(
            task_type="robotics",
            task_name="Open-loop planning",
            dataset_type=DATA[data]["id"],
            dataset_name=DATA[data]["name"],
            dataset_split=metrics.settings.split,
            metric_type=f"{protocol}_{metric}",
            metric_name=name,
            metric_value=value(planner, protocol, metric),
            metric_args={
                "interval_95": [round(bound, 4) for bound in everything[protocol][f"{metric}_ci"]],
                "controls": {other: value(other, protocol, metric) for other in others},
            },
        )
        for (protocol, metric), name in HEADLINES.items()
        if value(planner, protocol, metric) is not None
    ]
