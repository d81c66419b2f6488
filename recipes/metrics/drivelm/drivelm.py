"""Scores of answers to driving questions, as an `evaluate` module. Offline and without Java:

    drivelm = evaluate.load("recipes/metrics/drivelm")
    drivelm.compute(predictions=[...], references=[...], question_types=[...], scene_tokens=[...])

`scores.py` computes them, and its docstring defines each metric. Scripts import `scores.py`, since importing
`evaluate` also imports torch and transformers.
"""

# evaluate.load copies only the siblings that this file names, one per line and without a comment behind it.
# ruff: noqa: F401
import datasets
import evaluate

from .answer_metrics import exact_match
from .ptb_tokenizer import ptb_tokens
from .scene_intervals import SceneIntervals
from .scores import __doc__ as definitions
from .scores import compute_metrics
from .text_metrics import bert_scores


class DriveLM(evaluate.Metric):
    """`compute` takes the arguments of `compute_metrics`."""

    def _info(self):
        return evaluate.MetricInfo(
            description=definitions,
            citation="",
            inputs_description=compute_metrics.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://github.com/OpenDriveLab/DriveLM/tree/main/challenge"],
        )

    def _compute(self, predictions, references, **options):
        return compute_metrics(predictions, references, **options)
