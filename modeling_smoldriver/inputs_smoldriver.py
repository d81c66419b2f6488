"""What a model may be shown and told: the names of cameras and commands, pictures as RGB, what a text may hold.

It needs no model library. The scene rows are written by the same rules (see `smoldriver_common/shipped.py`).
"""

import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

CAMERAS = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
)
"""nuScenes' six surround cameras, in the one order that data, prompt and resamplers share."""

COMMANDS = ("turn left", "turn right", "change lane left", "change lane right", "go straight")
"""What a route may ask of a planner, in the one order that data and planners share."""

FRONT_CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT")


def check_camera_names(cameras: Iterable[str]) -> list[str]:
    """The names as a list. Configuration, processors and scene rows set their cameras through this check.

    Raises:
        ValueError: no name, one that is duplicated, or one that cannot stand before a picture in a prompt, where
            `CAM_FRONT:<image>` is read by letters, digits and underscores.
    """
    cameras = [cameras] if isinstance(cameras, str) else list(cameras)
    unfit = [name for name in cameras if not isinstance(name, str) or not re.fullmatch(r"\w+", name)]
    if unfit:
        raise ValueError(f"a camera's name is of letters, digits and underscores, not {unfit[0]!r}")
    if len(set(cameras)) != len(cameras) or not cameras:
        raise ValueError(f"cameras must be distinct names, got {cameras}")
    return cameras


def cameras_by_place(cameras: list[str], count: int) -> list[str] | None:
    """The cameras of `count` pictures without names; the chat template holds the same rule.

    All cameras in their order, the front alone, or the three that look ahead from left to right; None for any other
    count: nobody could know which cameras these are.
    """
    if count == len(cameras):
        return list(cameras)
    found = {1: FRONT_CAMERAS[1:2], 3: FRONT_CAMERAS}.get(count, ())
    return list(found) if found and set(found) <= set(cameras) else None


# Pictures

MAX_PIXELS = 50_000_000
"""Of one picture. A nuScenes picture has 1.44 million; a PNG of some kB may unpack to gigabytes."""
MAX_FILE_BYTES = 100_000_000
"""Of one picture's file or download."""

ORIENTATION = 0x0112  # the EXIF tag: how a camera was held
_TURNED = (5, 6, 7, 8)  # its values for which width and height change places


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 for an upright picture."""
    return image.getexif().get(ORIENTATION, 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of the upright picture. A PNG is decoded for them, since its EXIF may come last."""
    return image.size[::-1] if orientation(image) in _TURNED else image.size


def check_pixels(width: int, height: int) -> None:
    """Called before a picture is decoded.

    Raises:
        ValueError: no pixel, or more than `MAX_PIXELS`.
    """
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"a picture of {width} x {height} pixels; give one of 1 to {MAX_PIXELS:,} pixels")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL picture as 8-bit RGB, upright: its EXIF orientation is applied.

    16-bit grey keeps its upper byte, alpha is dropped.

    Raises:
        ValueError: see `check_pixels`.
        OSError: the file is cut short or broken.
    """
    check_pixels(*image.size)
    image.load()
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        image = Image.fromarray((values >> (8 if values.max(initial=0) > 255 else 0)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def array_to_image(array) -> Image.Image:
    """A picture in memory: `(height, width)`, `(height, width, 1, 3 or 4)` or `(1 or 3, height, width)`.

    Whole numbers are 0 .. 255, floating point numbers 0 .. 1 (or 0 .. 255, if they are whole).

    Raises:
        ValueError: another shape, dtype or range of values.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "uif":
        raise ValueError(f"{array.dtype} is not a picture's dtype; give uint8 (0 .. 255) or floats (0 .. 1)")
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and shape[0] in (1, 3) and shape[-1] != 4:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"an array of shape {shape} is not a picture; give (height, width, 3) or (height, width)")
    check_pixels(array.shape[1], array.shape[0])
    low, high = array.min(), array.max()
    whole = array.dtype.kind != "f" or np.array_equal(array, np.floor(array))
    scale = 255 if array.dtype.kind == "f" and high <= 1 else 1
    if not (0 <= low <= high * scale <= 255) or (scale == 1 and not whole):
        raise ValueError(f"values from {low} to {high} are not a picture's; give uint8 (0 .. 255) or floats (0 .. 1)")
    array = np.rint(array * scale).astype(np.uint8) if array.dtype != np.uint8 else array
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[-1] == 1 else array[..., :3]))


def is_stored_picture(value) -> bool:
    """Whether it is a picture as `datasets` stores it: {"bytes": a file's content or None, "path": its name}."""
    return isinstance(value, dict) and "bytes" in value and set(value) <= {"bytes", "path"}


def read_picture(picture) -> Image.Image:
    """A PIL image, an array, the path of a file, a file's content or an open file -> 8-bit RGB, upright.

    {"bytes": content, "path": path} is a picture too, by its content or else by its path.

    Raises:
        ValueError: see `check_pixels` and `array_to_image`; a file of more than `MAX_FILE_BYTES`.
        OSError: a file that is absent, cut short or broken.
    """
    if is_stored_picture(picture):
        picture = picture["bytes"] if picture["bytes"] is not None else picture.get("path")
    if isinstance(picture, (str, Path)):
        check_bytes(os.path.getsize(picture))
        with Image.open(picture) as image:
            return to_rgb(image)
    if isinstance(picture, io.IOBase):
        picture.seek(0)
        picture = picture.read(MAX_FILE_BYTES + 1)
    if isinstance(picture, (bytes, bytearray, memoryview)):
        check_bytes(len(picture))
        with Image.open(io.BytesIO(picture)) as image:
            return to_rgb(image)
    return to_rgb(picture if isinstance(picture, Image.Image) else array_to_image(picture))


def check_bytes(size: int) -> None:
    """Called before a picture's file is read.

    Raises:
        ValueError: more than `MAX_FILE_BYTES`.
    """
    if size > MAX_FILE_BYTES:
        raise ValueError(f"a file of {size:,} bytes; a picture's may have {MAX_FILE_BYTES:,}")


# Texts

IMAGE_TOKEN = "<image>"
FAKE_IMAGE_TOKEN = "<fake_token_around_image>"
GLOBAL_IMAGE_TOKEN = "<global-img>"
END_OF_TURN = "<end_of_utterance>"
START_TOKEN = "<|im_start|>"
SPECIAL_TOKENS = (START_TOKEN, IMAGE_TOKEN, FAKE_IMAGE_TOKEN, GLOBAL_IMAGE_TOKEN, END_OF_TURN)
"""SmolVLM's tokens that the prompt is made of; a tokenizer must know each as one token."""

_RESERVED = re.compile(
    "|".join(map(re.escape, SPECIAL_TOKENS))
    + r"|<\|(?:im_end|endoftext)\|>|<row_\d+_col_\d+>|<(?:repo_name|reponame|file_sep|filename|gh_stars)>"
    r"|<(?:issue_(?:start|comment|closed)|jupyter_(?:start|text|code|output|script)|empty_output)>"
)  # all special tokens of SmolVLM's tokenizer

EMPTY = "is empty or not a string"
_HALF = re.compile("[\ud800-\udfff]")  # of a pair of surrogates, as a cut "\\ud83d\\ude97" of JSON leaves it

MAX_CHARACTERS = 100_000
"""Of one text or prompt: several times what fits in SmolVLM2's context of 8,192 tokens."""


def check_text(text, what: str, more_tokens: Iterable[str] = ()) -> str:
    """A question, an answer or a scene description without blanks around it.

    It may not hold a special token: in a prompt such a text could stand for a picture, or end its turn and forge
    another speaker's.

    Args:
        text (`str`): the text.
        what (`str`): its name in the message.
        more_tokens: special tokens of a tokenizer at hand; SmolVLM's are known without one.

    Raises:
        ValueError: not a string, empty, longer than `MAX_CHARACTERS`, or with a special token, which is named.
    """
    if isinstance(text, str):
        check_length(text, what)
    fault = fault_of_text(text, more_tokens)
    if fault == EMPTY:
        raise ValueError(f"the {what} {fault}: {text!r}")
    if fault:
        raise ValueError(f"the {what} {fault}: {shortened(text)!r}; remove it from the text")
    return text.strip()


def fault_of_text(text, more_tokens: Iterable[str] = ()) -> str | None:
    """Why a text may not stand in a prompt, see `check_text`; None where it may.

    Returns:
        "holds the special token <image>", for example.
    """
    if not isinstance(text, str) or not text.strip():
        return EMPTY
    if len(text) > MAX_CHARACTERS:
        return f"has more than {MAX_CHARACTERS:,} characters"
    if half := _HALF.search(text):
        return f"holds {half[0]!r}, which is no character"
    found = _RESERVED.search(text)
    token = found[0] if found else next((token for token in more_tokens if token in text), None)
    return token and f"holds the special token {token}"


def check_length(text: str, what: str) -> None:
    """Called before a text is tokenized.

    Raises:
        ValueError: longer than `MAX_CHARACTERS`, or with a character that no tokenizer can read.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the {what} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    if half := _HALF.search(text):
        raise ValueError(f"the {what} holds {half[0]!r}, which is no character: {shortened(text)!r}; remove it")


def shortened(text: str) -> str:
    """A text's beginning, for a message of one line."""
    return text if len(text) <= 200 else text[:200] + " ..."
