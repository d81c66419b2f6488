"""Who answers in an evaluation: the model, the model under a control that must do worse, and the majority answer.

Each answers the questions of one frame at a time: `texts, measured = answers(frame_number, questions)`.
"""

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from data_scripts.question_types import OBJECT_TAG
from data_scripts.schema import load_scenes
from recipes.evaluation.predictions import Contestant, Settings


@dataclass(frozen=True)
class Measured:
    """What it took to answer the questions of one frame; the majority answer has no seconds."""

    cut: int = 0  # answers that reached max_new_tokens without an end
    encode_seconds: float | None = None  # for the pictures and the shared prompt
    answer_seconds: float | None = None  # per question


Answers = Callable[[int, list[str]], tuple[list[str], Measured]]
"""Called with a frame's number among the rows and the questions about it."""


def contestants(settings: Settings, controls: list[str], budgets: list[int], offered: list[int]) -> list[Contestant]:
    """The model, its controls, and the model at each other budget, without repetitions.

    Args:
        controls: keys of `CONTROLS`.
        budgets: visual tokens per camera.
        offered: the model's budgets, the largest first.

    Raises:
        ValueError: a budget that the model does not offer.
    """
    for tokens in budgets:
        if tokens not in offered:
            raise ValueError(f"--budgets {tokens}: the model has no such budget; choose from {offered}")
    own = settings.visual_tokens or offered[0]  # the model is asked at this one anyway
    found = [Contestant(settings.name), *(Contestant(settings.name, control) for control in controls)]
    found += [Contestant(settings.name, budget=tokens) for tokens in budgets if tokens != own]
    return list(dict.fromkeys(found))


def answers_of(contestant: Contestant, model, processor, rows, settings: Settings) -> Answers:
    """What answers in the name of a contestant.

    Raises:
        ValueError: the data does not allow this control.
    """
    if contestant.control == "majority":
        # Streamed, and without the pictures: the datasets cache would keep a copy of them.
        return MajorityAnswers(load_scenes(settings.scenes, "train", True, columns=["qa"]))
    return ModelAnswers(contestant, model, processor, rows, settings)


def majority_answers(train) -> dict[str, str]:
    """The most frequent answer to each question template (object tags removed); under "", to all questions."""
    counts = collections.defaultdict(collections.Counter)
    for row in train:
        for qa in row["qa"]:
            for key in (OBJECT_TAG.sub("<object>", qa["question"]), ""):
                counts[key][qa["answer"]] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}


def other_scenes(scene_tokens: list[str]) -> list[int]:
    """For each row, the number of a row of another scene, about half the data away.

    Raises:
        ValueError: all rows are of one scene.
    """
    count = len(scene_tokens)
    if len(set(scene_tokens)) < 2:
        raise ValueError("the split has one scene only, so there are no pictures of another")
    others = []
    for index, scene in enumerate(scene_tokens):
        candidates = ((index + count // 2 + step) % count for step in range(count))
        others.append(next(other for other in candidates if scene_tokens[other] != scene))
    return others


def control_images(images: dict, control: str | None) -> dict | None:
    """The pictures that the model is shown under a control, by camera; None for no pictures."""
    if control == "text_only":
        return None
    if control == "blank_images":
        return {camera: Image.new("RGB", image.size, (128, 128, 128)) for camera, image in images.items()}
    if control == "permuted_cameras":
        pictures = list(images.values())
        return dict(zip(images, pictures[1:] + pictures[:1], strict=True))
    return images


def count_cut(answers: list[list[int]], limit: int, generation_config) -> int:
    """How many answers, as token ids, have `limit` tokens and no end token as their last."""
    ends = generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return sum(len(tokens) == limit and tokens[-1] not in ends for tokens in answers)


class ModelAnswers:
    """Answers of a model, or of a model under a control, to questions about the frames in `rows`."""

    def __init__(self, contestant: Contestant, model, processor, rows, settings: Settings):
        self.contestant, self.settings = contestant, settings
        self.model, self.processor, self.rows = model, processor, rows
        self.others = other_scenes(rows["scene_token"][:]) if contestant.control == "other_scene_images" else None
        self.descriptions = rows["scene_description"][:] if settings.use_scene_description else None

    def __call__(self, index: int, questions: list[str]) -> tuple[list[str], Measured]:
        limit = self.settings.max_new_tokens
        inputs = self.shown(index)
        started = time.perf_counter()
        scene = self.model.encode_scene(**self.processor.encode_scene(*inputs))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        encoded = time.perf_counter()
        tokens = self.model.answer_tokens(scene, self.processor, questions, batch_size=256, max_new_tokens=limit)
        texts = [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        answered = time.perf_counter()
        cut = count_cut(tokens, limit, self.model.generation_config)
        return texts, Measured(cut, encoded - started, (answered - encoded) / len(questions))

    def shown(self, index: int) -> tuple[dict | None, str | None, int | None]:
        """What `processor.encode_scene` takes: pictures by camera, scene description, visual tokens per camera."""
        row = self.rows[index if self.others is None else self.others[index]]
        images = {camera: row[camera] for camera in self.processor.cameras if row[camera] is not None}
        # Under every control the asked frame's own description: a control changes the pictures and nothing else.
        description = self.descriptions and self.descriptions[index]
        budget = self.contestant.budget or self.settings.visual_tokens
        return control_images(images, self.contestant.control), description, budget


class MajorityAnswers:
    """Answers each question template with its most frequent answer in `train`."""

    def __init__(self, train):
        self.answers = majority_answers(train)

    def __call__(self, index: int, questions: list[str]) -> tuple[list[str], Measured]:
        templates = [OBJECT_TAG.sub("<object>", text) for text in questions]
        return [self.answers.get(template, self.answers[""]) for template in templates], Measured()
