"""What the Space does behind its page: reads pictures, checks questions, keeps encoded scenes, answers in parts.

It imports neither gradio nor the project: the model and its processor are whatever the Hub repository holds.
"""

import base64
import hashlib
import io
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from threading import Lock

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 16_000_000  # of one picture: six of them take 300 MB
MAX_FILE_BYTES = 20_000_000
MAX_QUESTIONS = 100  # DriveLM asks 93 about a frame
MAX_CHARACTERS = 500  # of one question
KEPT_BYTES = 32_000_000  # of encoded scenes; one of the demo takes 0.5 MB
MAX_NEW_TOKENS = 256  # of one answer
PART = 4  # questions that are answered before the page shows them

# Pictures


def decoded(text: str, camera: str) -> bytes:
    """A picture's file from base64, also as a data URI.

    Raises:
        ValueError: an address, too large a file, or anything else that is not base64.
    """
    if not isinstance(text, str):
        raise ValueError(f"{camera}: give the picture as a base64 string, not {type(text).__name__}")
    if text[:8].lower().startswith(("http:", "https:")):
        raise ValueError(f"{camera}: addresses are not fetched here; send the picture itself as base64")
    _check_file_size(len(text) * 3 // 4, camera)
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:image/") else text, validate=True)
    except ValueError:
        raise ValueError(f"{camera}: {text[:40]!r} is not base64; send the file's bytes as base64") from None


def check_picture(file: bytes, camera: str) -> bytes:
    """Called before a picture is decoded; returns the file.

    Raises:
        ValueError: not a picture of `FORMATS`, or a larger one than is read here.
    """
    _check_file_size(len(file), camera)
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise ValueError(f"{camera}: the picture is too large; at most {MAX_PIXELS:,} pixels are read here") from None
    except Exception as error:  # decoders raise errors of every kind
        raise ValueError(f"{camera}: the file is not a picture; give {', '.join(FORMATS)}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"{camera}: the picture has {width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are read here"
        )
    return file


def _check_file_size(size: int, camera: str) -> None:
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{camera}: the file has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read here")


def grey_picture() -> bytes:
    """A file without anything to see. Every size of it gives the model the same input."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()


# Questions


def check_questions(questions) -> list[str]:
    """The questions without blanks around them.

    Raises:
        ValueError: not a list, none, more than `MAX_QUESTIONS`, or one that is empty or too long; its number is named.
    """
    if not isinstance(questions, list):
        raise ValueError(f"the questions must be a list of strings, not {type(questions).__name__}")
    if not questions:
        raise ValueError("there is no question: choose or write at least one")
    if len(questions) > MAX_QUESTIONS:
        raise ValueError(f"{len(questions)} questions are too many: ask at most {MAX_QUESTIONS} at a time")
    for number, question in enumerate(questions, start=1):
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"question {number} is empty or not a string: {question!r:.80}")
        if len(question) > MAX_CHARACTERS:
            raise ValueError(
                f"question {number} has {len(question):,} characters; at most {MAX_CHARACTERS} are read here"
            )
    return [question.strip() for question in questions]


# Scenes and answers


class SceneStore:
    """The scenes that were used last, as many as fit into `limit` bytes, but at least one."""

    def __init__(self, limit: int):
        self.limit, self.nbytes = limit, 0
        self.scenes, self.lock = OrderedDict(), Lock()

    def __len__(self) -> int:
        return len(self.scenes)

    def get(self, key):
        """The scene, which counts as used now; None where it is not kept."""
        with self.lock:
            if key not in self.scenes:
                return None
            self.scenes.move_to_end(key)
            return self.scenes[key]

    def put(self, key, scene) -> None:
        """Keep a scene and forget those that were not used for the longest time. A scene in use stays whole."""
        with self.lock:
            if key in self.scenes:  # another user sent the same pictures at the same time
                return
            self.scenes[key] = scene
            self.nbytes += scene.nbytes
            while self.nbytes > self.limit and len(self.scenes) > 1:
                self.nbytes -= self.scenes.popitem(last=False)[1].nbytes


@dataclass(frozen=True)
class Answered:
    """The answers so far, and what they took.

    Example: `Answered(["CAM_FRONT"], 9, False, 0.02, ["Are there cars?", "Why?"], ["Yes."], 0.03)`
    """

    cameras: list[str]
    visual_tokens: int  # per camera
    scene_kept: bool  # encoded by an earlier request
    encode_seconds: float
    questions: list[str]
    answers: list[str]  # of the first questions
    answer_seconds: float  # for all answers so far


class Answering:
    """A model with its processor and the scenes that it encoded last."""

    def __init__(self, model, processor, limit: int = KEPT_BYTES):
        self.model, self.processor, self.store = model, processor, SceneStore(limit)

    def stream(
        self, pictures: dict[str, bytes], questions: list[str], visual_tokens: int | None
    ) -> Iterator[Answered]:
        """Encode a frame, or find it, and answer `PART` questions at a time.

        Args:
            pictures: checked files by camera name, in any order.
            questions: as `check_questions` returns them.
            visual_tokens: per camera; None for the model's largest budget.

        Raises:
            ValueError: no picture, an unknown camera or budget, a picture that cannot be decoded, or a question that
                may not stand in a prompt or does not fit.
        """
        self.processor.encode_questions(questions)  # a bad one is refused before the first is answered
        tokens = self.processor.visual_token_budgets[0] if visual_tokens is None else visual_tokens
        started = time.perf_counter()
        scene, kept = self.scene_of(pictures, tokens)
        cameras = [camera for camera in self.processor.cameras if camera in pictures]
        answered = Answered(cameras, tokens, kept, time.perf_counter() - started, questions, [], 0.0)
        yield answered
        for start in range(0, len(questions), PART):
            started = time.perf_counter()
            part = questions[start : start + PART]
            texts = self.model.answer(scene, self.processor, part, max_new_tokens=MAX_NEW_TOKENS)
            seconds = answered.answer_seconds + time.perf_counter() - started
            answered = replace(answered, answers=answered.answers + texts, answer_seconds=seconds)
            yield answered

    def scene_of(self, pictures: dict[str, bytes], visual_tokens: int):
        """-> (the encoded scene, whether it was kept from before)"""
        digests = sorted((camera, hashlib.sha256(file).hexdigest()) for camera, file in pictures.items())
        key = (visual_tokens, *digests)
        scene = self.store.get(key)
        if scene is not None:
            return scene, True
        images = {camera: Image.open(io.BytesIO(file), formats=FORMATS) for camera, file in pictures.items()}
        scene = self.model.encode_scene(**self.processor.encode_scene(images, visual_tokens=visual_tokens))
        self.store.put(key, scene)
        return scene, False
