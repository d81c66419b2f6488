"""Scores of the contestants' answers, as `metrics.json` has them."""

import statistics
from dataclasses import dataclass, replace

import numpy as np

from recipes.evaluation.asking import Answered
from recipes.evaluation.predictions import Leakage, Metrics, Prediction, Settings
from recipes.metrics.drivelm.scores import BERTSCORE, compute_metrics
from recipes.metrics.drivelm.text_metrics import bert_scores

BUDGET_SCORES = (  # name in a budget's entry, group and metric in a result
    ("closed_accuracy", "overall", "accuracy"),
    ("yes_no", "yes_no", "accuracy"),
    ("status", "status", "accuracy"),
    ("listing_f1", "listing", "listing_f1"),
    ("bleu", "overall", "bleu"),
)
BUDGET_METRICS = tuple(dict.fromkeys(metric for _, _, metric in BUDGET_SCORES))


@dataclass(frozen=True)
class Scoring:
    """How answers are scored."""

    bootstrap_samples: int = 1000
    bertscore_model: str | None = None  # folder, or a name that bert-score knows; None: no BERTScore


def score_everyone(
    answered: list[Answered], settings: Settings, leakage: Leakage, budgets: list[int], scoring: Scoring
) -> tuple[Metrics, dict[str, list[Prediction]]]:
    """Each contestant is scored once; the model at other budgets by the main metrics alone.

    -> (metrics, the predictions by `Contestant.name`, with their BERTScores)
    """
    results, predictions, budget_entries = {}, {}, {}
    for one in answered:
        name, texts = one.contestant.name, one.predictions
        if one.contestant.budget is not None:
            result = score(texts, scoring.bootstrap_samples, metrics=BUDGET_METRICS)
            budget_entries[one.contestant.budget] = budget_entry(result, one)
            continue
        texts, bertscores = score_bert(texts, scoring.bertscore_model)
        predictions[name] = texts
        results[name] = score(texts, scoring.bootstrap_samples, bertscores=bertscores)
    info = [result.pop("info") for result in results.values()][0]  # alike for all
    own = budget_entry(results[settings.name], answered[0])  # at the budget that the model was asked at anyway
    metrics = Metrics(
        settings=settings,
        leakage=leakage,
        results=results,
        interval=info["interval"],
        budgets={tokens: budget_entries.get(tokens, own) for tokens in budgets},
        bertscore_encoder=info.get("bertscore_encoder"),
        left_out_metrics=info["left_out"],
        cut_answers={
            one.contestant.name: sum(frame.cut for frame in one.measured)
            for one in answered
            if one.contestant.budget is None
        },
        seconds={str(one.contestant): one.seconds for one in answered},
    )
    return metrics, predictions


def score(predictions: list[Prediction], bootstrap_samples: int, **options) -> dict:
    """`compute_metrics` of one contestant, with question types and tasks as groups; `options` are its own."""
    return compute_metrics(
        [one.prediction for one in predictions],
        [one.reference for one in predictions],
        questions=[one.question for one in predictions],
        question_types=[one.type for one in predictions],
        tasks=[one.task for one in predictions],
        scene_tokens=[one.scene_token for one in predictions],
        frame_tokens=[one.frame_token for one in predictions],
        bootstrap_samples=bootstrap_samples,
        **options,
    )


def score_bert(
    predictions: list[Prediction], model: str | None
) -> tuple[list[Prediction], tuple[np.ndarray, str] | None]:
    """-> (the predictions with their BERTScores, what `bert_scores` returned); without a model (predictions, None).

    The predictions keep the scores so that a report can rank them on a machine without the encoder.
    """
    if model is None:
        return predictions, None
    texts = [one.prediction for one in predictions]
    scores, encoder = bert_scores(texts, [one.reference for one in predictions], model)  # (questions, 3)
    scored = [
        replace(one, **dict(zip(BERTSCORE, values, strict=True)))
        for one, values in zip(predictions, scores.tolist(), strict=True)
    ]
    return scored, (scores, encoder)


def budget_entry(result: dict, answered: Answered) -> dict:
    """metrics.json's entry of one budget: the main scores with their intervals, and the median seconds."""
    measured = answered.measured
    entry = {"frames": len(measured), "questions": len(answered.predictions)}
    for name, group, metric in BUDGET_SCORES:
        if result.get(group, {}).get(metric) is not None:
            entry |= {name: result[group][metric], f"{name}_ci": result[group][f"{metric}_ci"]}
    entry["encode_seconds_per_frame"] = statistics.median(frame.encode_seconds for frame in measured)
    entry["answer_seconds_per_question"] = statistics.median(frame.answer_seconds for frame in measured)
    return entry
