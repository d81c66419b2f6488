"""Who answers in an evaluation: the model, the model under a control that must do worse, and the majority answer."""

import collections
import time

import torch
from PIL import Image

from data_scripts.question_types import OBJECT_TAG

CONTROLS = {
    "majority": "the training split's most frequent answer to the question's template, without any model",
    "other_scene_images": "the model with the pictures of a frame of another scene",
    "text_only": "the model without pictures",
    "blank_images": "the model with grey pictures",
    "permuted_cameras": "the model with the next camera's picture at each camera",
}


def majority_answers(train) -> dict[str, str]:
    """Most frequent answer of each question template (object tags left open), and under "" of all questions."""
    counts = collections.defaultdict(collections.Counter)
    for row in train:
        for qa in row["qa"]:
            for key in (OBJECT_TAG.sub("<object>", qa["question"]), ""):
                counts[key][qa["answer"]] += 1
    return {key: counter.most_common(1)[0][0] for key, counter in counts.items()}


def other_scenes(scene_tokens: list[str]) -> list[int]:
    """For each row a row of another scene, about half the data away.

    Raises:
        ValueError: if all rows are of one scene.
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
    """The pictures that the model is shown under a control, by camera; None for none at all."""
    if control == "text_only":
        return None
    if control == "blank_images":
        return {camera: Image.new("RGB", image.size, (128, 128, 128)) for camera, image in images.items()}
    if control == "permuted_cameras":
        pictures = list(images.values())
        return dict(zip(images, pictures[1:] + pictures[:1], strict=True))
    return images


class ModelAnswers:
    """Answers of a model, or of a model under a control, to questions about rows.

    `measured` is of the last frame: seconds to `encode` its pictures and the shared prompt, seconds to `answer` a
    question, and how many answers were `cut` at `max_new_tokens`.
    """

    def __init__(self, model, processor, rows, control: str | None, arguments, visual_tokens: int | None):
        self.model, self.processor, self.rows, self.control = model, processor, rows, control
        self.arguments, self.visual_tokens = arguments, visual_tokens
        self.others = other_scenes(rows["scene_token"]) if control == "other_scene_images" else None
        self.measured = None

    def __call__(self, index: int, questions: list[str]) -> list[str]:
        shown = self.rows[index if self.others is None else self.others[index]]
        images = {camera: shown[camera] for camera in self.processor.cameras if shown[camera] is not None}
        images = control_images(images, self.control)
        # the asked frame's own under every control: a control takes the pictures away and nothing else
        description = self.rows["scene_description"][index] if self.arguments.use_scene_description else None
        started = time.perf_counter()
        scene = self.model.encode_scene(**self.processor.encode_scene(images, description, self.visual_tokens))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        encoded = time.perf_counter()
        limit = self.arguments.max_new_tokens
        tokens = self.model.answer_tokens(scene, self.processor, questions, max_new_tokens=limit, batch_size=256)
        answers = [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]
        answered = time.perf_counter()
        seconds = {"encode": encoded - started, "answer": (answered - encoded) / len(questions)}
        self.measured = {**seconds, "cut": sum(self._is_cut(answer) for answer in tokens)}
        return answers

    def _is_cut(self, tokens: list[int]) -> bool:
        """Whether an answer has as many tokens as it may have, and its last one is no end."""
        settings = self.model.generation_config
        ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        return len(tokens) == self.arguments.max_new_tokens and tokens[-1] not in {settings.pad_token_id, *ends}


class MajorityAnswers:
    measured = {"cut": 0}

    def __init__(self, train):
        self.answers = majority_answers(train)

    def __call__(self, index: int, questions: list[str]) -> list[str]:
        return [self.answers.get(OBJECT_TAG.sub("<object>", text), self.answers[""]) for text in questions]
