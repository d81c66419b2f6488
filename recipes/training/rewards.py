"""Rewards for answers, from a question's true answer alone, and the questions that are asked for them."""

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from datasets import Dataset

from data_scripts.question_types import question_type
from modeling_smoldriver.collator_smoldriver import pictures_of
from modeling_smoldriver.processing_smoldriver import SmolDriverProcessor
from recipes.metrics.drivelm.answer_metrics import closed_match, listing_f1
from recipes.metrics.drivelm.scores import CLOSED_TYPES

REWARDED_TYPES = (*CLOSED_TYPES, "listing")
"""Question types whose answers have a score of their own, by rule."""


def reward(answer: str, reference: str, kind: str) -> float:
    """0 .. 1, as the metrics of an evaluation score it: F1 of a listing, right or wrong for a closed question."""
    return listing_f1(answer, reference) if kind == "listing" else closed_match(answer, reference, kind)


def answer_rewards(
    completions: list[list[dict]], question_type: list[str], answer: list[str], rewarded: list[str], log_metric, **_
) -> list[float]:
    """A reward function as TRL calls it: one reward per completion.

    Args:
        completions: each a conversation of one turn.
        question_type, answer, rewarded: columns of [`reward_questions`], one entry per completion.
        log_metric: TRL's; gets the mean score against the true answers, `score/<question type>`.
    """
    texts = [turns[0]["content"].strip() for turns in completions]
    scores = defaultdict(list)
    for text, truth, kind in zip(texts, answer, question_type, strict=True):
        scores[kind].append(reward(text, truth, kind))
    for kind, values in scores.items():
        log_metric(f"score/{kind}", sum(values) / len(values))
    return [reward(*given) for given in zip(texts, rewarded, question_type, strict=True)]


def shuffled_within(answers: list[str], kinds: list[str], seed: int) -> list[str]:
    """Another question's answer for each question, of the same type; each answer is given once."""
    places = defaultdict(list)
    for place, kind in enumerate(kinds):
        places[kind].append(place)
    shuffled = list(answers)
    for kind, own in sorted(places.items()):
        random.Random(f"{seed}-{kind}").shuffle(own)
        for place, other in zip(own, own[1:] + own[:1], strict=True):
            shuffled[place] = answers[other]
    return shuffled


@dataclass
class PromptsTaken:
    """Rows of [`reward_questions`] -> the same with their prompts; a loader's worker gets a copy."""

    scenes: Dataset
    processor: SmolDriverProcessor

    def __call__(self, batch: dict) -> dict:
        frames = {number: pictures_of(self.scenes[number], self.processor.cameras) for number in set(batch["frame"])}
        batch["prompt"] = [
            self.processor.scene_messages(frames[number], question)
            for number, question in zip(batch["frame"], batch["question"], strict=True)
        ]
        return batch


def reward_questions(
    scenes: Dataset, kinds: Iterable[str], processor: SmolDriverProcessor, shuffle: bool = False, seed: int = 0
) -> Dataset:
    """Every question of some types about scene rows, one row each. Pictures are read when a row is taken.

    Args:
        kinds: question types, of `REWARDED_TYPES`.
        shuffle: reward answers by the true answer to another question of the same type: a null control.

    Returns:
        Columns `frame` (number of the scene row), `question`, `question_type`, `answer`, `rewarded` (the answer that
        the reward compares with) and, when a row is taken, `prompt` (chat messages with the frame's pictures).

    Raises:
        ValueError: an unknown type, or no question of these types.
    """
    kinds = list(kinds)
    unknown = sorted(set(kinds) - set(REWARDED_TYPES))
    if unknown:
        raise ValueError(f"question type {unknown[0]!r} has no reward by rule; use {', '.join(REWARDED_TYPES)}")
    rows = {"frame": [], "question": [], "question_type": [], "answer": []}
    for number, row in enumerate(scenes.select_columns(["qa"])):
        for qa in row["qa"]:
            kind = question_type(qa["question"], qa["task"])
            if kind in kinds and qa["answer"].strip():
                for column, value in zip(rows.values(), (number, qa["question"], kind, qa["answer"]), strict=True):
                    column.append(value)
    if not rows["frame"]:
        raise ValueError(f"no frame has a question of the types {', '.join(kinds)} with an answer")
    rewarded = shuffled_within(rows["answer"], rows["question_type"], seed) if shuffle else rows["answer"]
    return Dataset.from_dict(rows | {"rewarded": rewarded}).with_transform(PromptsTaken(scenes, processor))
