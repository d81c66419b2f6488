"""Questions that a model cannot be asked, found before its weights are loaded."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from modeling_smoldriver.inputs_smoldriver import MAX_CHARACTERS, check_text
from recipes.training.loading import base_of_adapters, is_adapters, load_config, load_processor
from recipes.training.manifest import check_source

LONGEST_TURN = 64  # tokens that the chat template adds to a question


@dataclass(frozen=True)
class Question:
    """One question with all that must fit into the model's context together.

    Example: `Question("question 3 of frame '4a07...'", "Are there cars?", "Yes.", "The ego vehicle waits.")`.
    """

    where: str
    text: str
    answer: str | None  # None: unknown
    scene_description: str | None = None


def check_lengths(model: str | os.PathLike, questions: Iterable[Question], visual_tokens: list[int | None]) -> None:
    """Each question and, alone, its true answer fit into the model's context behind a frame of all cameras.

    A question that holds a special token is refused as well.

    Reads the model's configuration and processor, not its weights.

    Args:
        visual_tokens: the budgets per camera at which the model will be asked; None is the largest.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: names the first question that does not fit, and says how many do not; a question that is empty or
            holds a special token; an unknown budget.
    """
    check_source(str(model))
    source = base_of_adapters(model)[0] if is_adapters(model) else model
    processor = load_processor(source)
    context = load_config(source).text_config.max_position_embeddings
    largest = max(processor.visual_token_budgets[0] if tokens is None else tokens for tokens in visual_tokens)

    @cache
    def frame_tokens(description: str | None) -> int:
        return count_tokens(processor, processor.scene_prompt(processor.cameras, description, largest))

    total, too_long = 0, []
    for question in questions:
        total += 1
        if not fits(processor, question, context - frame_tokens(question.scene_description)):
            too_long.append(question)
        else:
            check_text(question.text, question.where)
    if too_long:
        first = too_long[0]
        raise ValueError(
            f"{len(too_long)} of {total} questions are too long, the first is {first.where}: {first.text!r:.80};"
            f" the model's context has {context} tokens, and its frame takes {frame_tokens(first.scene_description)}:"
            " leave them out"
        )


def fits(processor, question: Question, room: int) -> bool:
    """Whether `room` tokens hold the question's prompt with one token of an answer, and the true answer alone."""
    answer = question.answer or ""
    if max(len(question.text), len(answer)) > MAX_CHARACTERS:
        return False
    # A token is at least one byte: most texts fit without a count of their tokens.
    if max(len(question.text.encode()), len(answer.encode())) + LONGEST_TURN < room:
        return True
    prompt = processor.question_prompt(question.text)
    return max(count_tokens(processor, prompt), count_tokens(processor, answer)) < room


def count_tokens(processor, text: str) -> int:
    return len(processor.tokenizer(text, add_special_tokens=False)["input_ids"])
