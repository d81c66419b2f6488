"""What an export costs and what it gains: runtimes answer the same questions, side by side, frame by frame."""

import statistics
from dataclasses import dataclass, field

from tqdm import tqdm

from recipes.evaluation.asking import Asked, frame_predictions
from recipes.evaluation.contestants import ModelAnswers
from recipes.evaluation.predictions import Contestant, Prediction, Settings
from recipes.evaluation.scoring import score

CONTROLS = (None, "blank_images", "other_scene_images")  # None: the frame's own pictures


@dataclass
class Runtime:
    """One way to run a model, and what it answered: `answers` by control, seconds of each frame's own pictures."""

    name: str
    model: object  # has encode_scene, answer_tokens and generation_config
    megabytes: float | None = None  # of an exported folder
    answers: dict[str | None, list[Prediction]] = field(default_factory=lambda: {one: [] for one in CONTROLS})
    scene_seconds: list[float] = field(default_factory=list)  # per frame
    question_seconds: list[float] = field(default_factory=list)  # per question, one entry per frame


def ask_side_by_side(runtimes: list[Runtime], processor, asked: Asked, settings: Settings) -> None:
    """All runtimes answer one frame before the next, so that other work on the machine slows all alike."""
    asking = {
        (runtime.name, control): ModelAnswers(
            Contestant(runtime.name, control), runtime.model, processor, asked.rows, settings
        )
        for runtime in runtimes
        for control in CONTROLS
    }
    for index in tqdm(range(-1, len(asked.texts)), desc="asking", unit="frame"):
        warming = index < 0  # the first call of a runtime plans its graphs
        frame, chosen = asked.texts[max(index, 0)], asked.chosen[max(index, 0)]
        questions = [frame["qa"][number]["question"] for number in chosen]
        for runtime in runtimes:
            for control in CONTROLS:
                answers = asking[runtime.name, control]
                texts, measured = answers(max(index, 0), questions)
                if warming:
                    continue
                runtime.answers[control] += frame_predictions(answers.contestant, frame, chosen, texts)
                if control is None:
                    runtime.scene_seconds.append(measured.encode_seconds)
                    runtime.question_seconds.append(measured.answer_seconds)


def agreement(one: list[Prediction], other: list[Prediction]) -> float:
    """Share of questions with the same answer, character by character."""
    same = [mine.prediction == theirs.prediction for mine, theirs in zip(one, other, strict=True)]
    return sum(same) / len(same)


def table(runtimes: list[Runtime]) -> str:
    """A markdown table; agreement is with the first runtime, accuracy that of closed questions."""
    lines = [
        "| runtime | same answers % | accuracy % | blank pictures | another scene | ms/scene | ms/question | MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for runtime in runtimes:
        results = [score(runtime.answers[control], metrics=("accuracy",))["overall"] for control in CONTROLS]
        accuracies = [100 * result["accuracy"] for result in results]
        cells = [
            f"{100 * agreement(runtime.answers[None], runtimes[0].answers[None]):.1f}",
            *(f"{accuracy:.1f}" for accuracy in accuracies),
            f"{1000 * statistics.median(runtime.scene_seconds):.1f}",
            f"{1000 * statistics.median(runtime.question_seconds):.2f}",
            "-" if runtime.megabytes is None else f"{runtime.megabytes:.1f}",
        ]
        lines.append(f"| {runtime.name} | {' | '.join(cells)} |")
    return "\n".join(lines)
