"""Finished evaluations side by side: the same questions, paired bootstrap over scenes against the first model."""

from dataclasses import asdict, dataclass
from pathlib import Path

from recipes.evaluation.predictions import (
    PREDICTIONS_FILE,
    Contestant,
    Leakage,
    Metrics,
    Prediction,
    Settings,
    read_metrics,
    read_predictions,
)
from recipes.metrics.drivelm.scores import compare_predictions

TESTED = ("accuracy", "listing_f1", "exact_match", "bleu")  # metrics that get a p-value


@dataclass
class Evaluation:
    """One finished evaluation: its scores, and its answers by `Contestant.name`, the model's first."""

    folder: Path
    metrics: Metrics
    predictions: dict[str, list[Prediction]]

    @property
    def model(self) -> str:
        return self.metrics.settings.name


@dataclass
class Compared:
    """A contestant as a comparison shows it."""

    name: str  # unique, for people
    contestant: Contestant
    result: dict  # as in metrics.json
    predictions: list[Prediction]  # in the first contestant's order
    differences: dict | None = None  # from the first; {group: {metric: {"difference", "ci", "p_value"}}}


@dataclass
class Comparison:
    """Every evaluation's model, in the evaluations' order, then their controls.

    `comparison.json` holds all of it but the predictions.
    """

    contestants: list[Compared]
    models: list[str]  # names of the evaluations' models among the contestants
    leakage: dict[str, Leakage]  # by those names
    differing_settings: dict[str, dict]  # {setting: {those names: value}}
    info: dict  # what the intervals of the differences are

    @property
    def first(self) -> Compared:
        return self.contestants[0]

    @property
    def results(self) -> dict[str, dict]:
        return {one.name: one.result for one in self.contestants}

    @property
    def differences(self) -> dict[str, dict]:
        return {one.name: one.differences for one in self.contestants if one.differences is not None}

    def as_json(self) -> dict:
        return {
            "first": self.first.name,
            "results": self.results,
            "differences": self.differences,
            "info": self.info,
            "leakage": {name: str(leakage) for name, leakage in self.leakage.items()},
            "differing_settings": self.differing_settings,
        }


def read_evaluation(folder: Path) -> Evaluation:
    """A finished evaluation.

    Raises:
        FileNotFoundError: `metrics.json` or `predictions.parquet` is missing.
        ValueError: another version wrote it, a prediction is duplicated, or contestants answered different questions.
    """
    metrics = read_metrics(folder)
    where = folder / PREDICTIONS_FILE
    predictions = {name: [] for name in metrics.results}
    for prediction in read_predictions(folder):
        if prediction.model not in predictions:
            raise ValueError(f"{where} has answers of {prediction.model!r}, metrics.json has not")
        predictions[prediction.model].append(prediction)
    evaluation = Evaluation(folder, metrics, predictions)
    expected = None
    for name, answers in predictions.items():
        found, counted = references(answers, f"{where}, {name}"), metrics.results[name]["overall"]["count"]
        if len(found) != counted:
            raise ValueError(
                f"{where} has {len(found)} answers of {name}, metrics.json counts {counted}: some are missing;"
                " evaluate again"
            )
        expected = expected or found
        check_same_questions(expected, found, f"{folder}, {evaluation.model}", f"{folder}, {name}")
    return evaluation


def references(predictions: list[Prediction], where: str) -> dict[str, str]:
    """Reference answer by question id.

    Raises:
        ValueError: an id is duplicated.
    """
    found = {}
    for one in predictions:
        if one.id in found:
            raise ValueError(f"{where}: the id {one.id!r} is duplicated")
        found[one.id] = one.reference
    return found


def check_same_questions(first: dict[str, str], other: dict[str, str], where_first: str, where_other: str) -> None:
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


def compare_evaluations(evaluations: list[Evaluation], bootstrap_samples: int) -> Comparison:
    """All models, then their controls, with their differences from the first evaluation's model.

    Raises:
        ValueError: an evaluation is given twice, BERTScores are of different encoders, or questions differ.
    """
    names = model_names(evaluations)
    check_encoders(dict(zip(names, evaluations, strict=True)))
    contestants = [
        in_order_of(evaluations[0], evaluation, name, Contestant(evaluation.model))
        for evaluation, name in zip(evaluations, names, strict=True)
    ]
    for evaluation, name in zip(evaluations, names, strict=True):
        for control in [key for key in evaluation.predictions if key != evaluation.model]:
            # The majority answer needs no model, so evaluations of the same data share it.
            shown = control if control == "majority" or len(evaluations) == 1 else f"{name}: {control}"
            if shown not in (one.name for one in contestants):
                contestant = Contestant(evaluation.model, control)
                contestants.append(in_order_of(evaluations[0], evaluation, shown, contestant))
    info = {}
    for one in contestants[1:]:
        one.differences, info = paired_differences(contestants[0].predictions, one.predictions, bootstrap_samples)
    return Comparison(
        contestants=contestants,
        models=names,
        leakage={name: one.metrics.leakage for name, one in zip(names, evaluations, strict=True)},
        differing_settings=differing_settings(
            {name: one.metrics.settings for name, one in zip(names, evaluations, strict=True)}
        ),
        info=info,
    )


def in_order_of(first: Evaluation, evaluation: Evaluation, name: str, contestant: Contestant) -> Compared:
    """A contestant of `evaluation`, its answers in the order of the first evaluation's model.

    Raises:
        ValueError: the two answered different questions.
    """
    expected = references(first.predictions[first.model], str(first.folder))
    answers, where = evaluation.predictions[contestant.name], f"{evaluation.folder}, {contestant.name}"
    check_same_questions(expected, references(answers, where), f"{first.folder}, {first.model}", where)
    by_id = {one.id: one for one in answers}
    return Compared(name, contestant, evaluation.metrics.results[contestant.name], [by_id[key] for key in expected])


def check_encoders(evaluations: dict[str, Evaluation]) -> None:
    """All BERTScores are of one encoder; evaluations without BERTScore may stand beside them.

    Raises:
        ValueError: names each model's encoder.
    """
    encoders = {name: one.metrics.bertscore_encoder for name, one in evaluations.items()}
    encoders = {name: encoder for name, encoder in encoders.items() if encoder}
    if len(set(encoders.values())) > 1:
        found = "; ".join(f"{name}: {encoder}" for name, encoder in encoders.items())
        raise ValueError(
            f"the BERTScores are of different encoders ({found}) and cannot be compared: evaluate with the same"
            " --bertscore-model"
        )


def differing_settings(settings: dict[str, Settings]) -> dict[str, dict]:
    """{setting: {model: value}} of the settings that differ, beyond which model it was."""
    by_model = {name: asdict(one) for name, one in settings.items()}
    found = {}
    for setting in asdict(next(iter(settings.values()))):
        values = {name: one[setting] for name, one in by_model.items()}
        if setting not in ("model", "name") and len(set(values.values())) > 1:
            found[setting] = values
    return found


def paired_differences(first: list[Prediction], other: list[Prediction], bootstrap_samples: int) -> tuple[dict, dict]:
    """`compare_predictions` of two contestants' answers, which are in the same order -> (groups, info)."""
    compared = compare_predictions(
        [one.prediction for one in first],
        [one.prediction for one in other],
        [one.reference for one in first],
        question_types=[one.type for one in first],
        scene_tokens=[one.scene_token for one in first],
        metrics=TESTED,
        bootstrap_samples=bootstrap_samples,
    )
    return compared, compared.pop("info")


def model_names(evaluations: list[Evaluation]) -> list[str]:
    """The name of each evaluation's model; its folder beside it where several have one name.

    Raises:
        ValueError: the same folder twice.
    """
    folders = [one.folder.resolve() for one in evaluations]
    for folder in folders:
        if folders.count(folder) > 1:
            raise ValueError(f"{folder} is named twice: compare different evaluations")
    names = [one.model for one in evaluations]
    return [
        name if names.count(name) == 1 else f"{name} ({one.folder})"
        for name, one in zip(names, evaluations, strict=True)
    ]
