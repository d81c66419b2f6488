"""What an export costs and what it gains: runtimes answer the same questions, side by side, frame by frame."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile, zip_longest

from tqdm import tqdm

from recipes.evaluation.asking import Asked, frame_predictions
from recipes.evaluation.contestants import ModelAnswers
from recipes.evaluation.predictions import Contestant, Prediction, Settings
from recipes.evaluation.scoring import score

OWN = (None,)  # the frame's own pictures
CONTROLS = (*OWN, "blank_images", "other_scene_images")
COLUMNS = dict(zip(CONTROLS, ("accuracy %", "blank pictures", "another scene"), strict=True))


@dataclass
class Runtime:
    """One way to run a model, and what it answered: `answers` by control, seconds of each frame's own pictures."""

    name: str
    model: object  # has encode_scene, answer_tokens and generation_config
    megabytes: float | None = None  # of an exported folder
    answers: dict[str | None, list[Prediction]] = field(default_factory=dict)
    scene_seconds: list[float] = field(default_factory=list)  # per frame
    question_seconds: list[float] = field(default_factory=list)  # per question, one entry per frame


def ask_side_by_side(
    runtimes: list[Runtime], processor, asked: Asked, settings: Settings, controls: Sequence[str | None] = CONTROLS
) -> None:
    """All runtimes answer one frame before the next, so that other work on the machine slows all alike."""
    asking = {
        (runtime.name, control): ModelAnswers(
            Contestant(runtime.name, control), runtime.model, processor, asked.rows, settings
        )
        for runtime in runtimes
        for control in controls
    }
    for index in tqdm(range(-1, len(asked.texts)), desc="asking", unit="frame"):
        warming = index < 0  # the first call of a runtime plans its graphs
        frame, chosen = asked.texts[max(index, 0)], asked.chosen[max(index, 0)]
        questions = [frame["qa"][number]["question"] for number in chosen]
        for runtime in runtimes:
            for control in controls:
                answers = asking[runtime.name, control]
                texts, measured = answers(max(index, 0), questions)
                if warming:
                    continue
                predictions = frame_predictions(answers.contestant, frame, chosen, texts)
                runtime.answers.setdefault(control, []).extend(predictions)
                if control is None:
                    runtime.scene_seconds.append(measured.encode_seconds)
                    runtime.question_seconds.append(measured.answer_seconds)


def agreement(one: list[Prediction], other: list[Prediction]) -> float:
    """Share of questions with the same answer, character by character."""
    same = [mine.prediction == theirs.prediction for mine, theirs in zip(one, other, strict=True)]
    return sum(same) / len(same)


def common_beginning(one: list[Prediction], other: list[Prediction]) -> float:
    """Share of the words of `other` that stand before the first word in which the two answers differ."""
    common = words = 0
    for mine, theirs in zip(one, other, strict=True):
        pairs = zip_longest(mine.prediction.split(), theirs.prediction.split())
        common += len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        words += len(theirs.prediction.split())
    return common / max(words, 1)


def table(runtimes: list[Runtime]) -> str:
    """A markdown table; agreement is with the first runtime, accuracy that of closed questions."""
    first, controls = runtimes[0].answers[None], list(runtimes[0].answers)
    accuracies = [COLUMNS[control] for control in controls]
    columns = ["runtime", "same answers %", "same words %", *accuracies, "ms/scene", "ms/question", "MB"]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for runtime in runtimes:
        own = runtime.answers[None]
        scores = [score(runtime.answers[control], metrics=("accuracy",))["overall"] for control in controls]
        cells = [
            f"{100 * agreement(own, first):.1f}",
            f"{100 * common_beginning(own, first):.1f}",
            *(f"{100 * found['accuracy']:.1f}" for found in scores),
            f"{1000 * statistics.median(runtime.scene_seconds):.1f}",
            f"{1000 * statistics.median(runtime.question_seconds):.2f}",
            "-" if runtime.megabytes is None else f"{runtime.megabytes:.1f}",
        ]
        lines.append(f"| {runtime.name} | {' | '.join(cells)} |")
    return "\n".join(lines)
