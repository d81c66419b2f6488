"""What the Space shows: its examples, and answers as HTML. Without gradio."""

import json
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path

from answering import Answered

QUESTIONS = (
    "What are objects to the front of the ego car?",
    "Are there cars to the front of the ego car?",
    "Are there pedestrians to the back of the ego car?",
    "How many cars are there to the back right of the ego car?",
    "What is the target action of the ego vehicle?",
    "Predict the behavior of the ego vehicle.",
)
"""Suggested for pictures whose truth nobody knows."""


@dataclass(frozen=True)
class Example:
    """A frame to try. Example: `Example({"CAM_FRONT": Path("front.jpg")}, {"Are there cars?": "Yes."})`"""

    pictures: dict[str, Path]
    truth: dict[str, str]  # question -> answer

    @property
    def front(self) -> Path:
        """The picture that stands for the frame."""
        return self.pictures.get("CAM_FRONT") or next(iter(self.pictures.values()))


def read_examples(folder: Path) -> list[Example]:
    """The examples that recipes/serving/space_files.py wrote; none where there is no folder."""
    if not folder.is_dir():
        return []
    entries = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    return [
        Example({camera: folder / name for camera, name in entry["pictures"].items()}, entry["truth"])
        for entry in entries
    ]


def camera_label(camera: str) -> str:
    """CAM_FRONT_LEFT -> front left"""
    return camera.removeprefix("CAM_").replace("_", " ").lower()


def answers_html(answered: Answered, truth: dict[str, str], shown: str) -> str:
    """A row per question, and below them what each step took."""
    rows = (
        row_html(question, answer, truth.get(question))
        for question, answer in zip_longest(answered.questions, answered.answers)
    )
    return f'<div class="answers">{"".join(rows)}</div><p class="steps">{escape(steps(answered, shown))}</p>'


def row_html(question: str, answer: str | None, truth: str | None) -> str:
    if answer is None:
        return f'<div class="row"><b>{escape(question)}</b><span class="pending">...</span></div>'
    kind, told = "", ""
    if truth is not None:
        kind = " right" if answer.strip().lower() == truth.strip().lower() else " wrong"
        told = f'<span class="truth">truth: {escape(truth)}</span>'
    return f'<div class="row"><b>{escape(question)}</b><span class="answer{kind}">{escape(answer)}</span>{told}</div>'


def steps(answered: Answered, shown: str) -> str:
    """What was read and what it took, in words."""
    count = len(answered.cameras)
    what = f"{count} {'picture' if count == 1 else 'pictures'} ({shown}) at {answered.visual_tokens} tokens per camera"
    if answered.scene_kept:
        scene = f"{what}: the scene was kept, nothing was encoded"
    else:
        scene = f"{what}: encoded in {answered.encode_seconds:.3f} s"
    done = len(answered.answers)
    if not done:
        return f"{scene}; answering"
    total = answered.answer_seconds
    return f"{scene}; {done} of {len(answered.questions)} answers in {total:.3f} s, {total / done:.3f} s each"


def error_html(message: str) -> str:
    return f'<p class="error">{escape(message)}</p>'
