"""The shipped rules on pictures and texts, as data scripts use them: without a model library."""

import re
import subprocess
import sys

import numpy as np
import pytest
from datasets import Image as DatasetsImage
from fakes import ROOT, turned
from PIL import Image

from data_scripts.sources.camera_images import usable_image
from smoldriver_common.shipped import check_text


def red_left(image):
    pixels = np.asarray(image.convert("RGB")).astype(int)
    half = pixels.shape[1] // 2
    left, right = pixels[:, :half].mean((0, 1)), pixels[:, half:].mean((0, 1))
    return left[0] > right[0] + 50


@pytest.fixture
def upright():
    """64 pixels wide, 40 high, its left half red."""
    image = Image.new("RGB", (64, 40), (20, 60, 90))
    image.paste((220, 20, 20), (0, 0, 32, 40))
    return image


@pytest.mark.parametrize("max_height", [None, 40, 20])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_stored_picture_is_decoded_upright_at_the_height_asked_for(upright, orientation, max_height):
    data = turned(upright, orientation, "JPEG")
    stored = usable_image(data, max_height)
    assert (stored == data) == (max_height != 20)  # a picture that fits is stored as it came, with its EXIF
    seen = DatasetsImage().decode_example({"bytes": stored, "path": None})
    assert seen.size == ((32, 20) if max_height == 20 else (64, 40)) and red_left(seen)


def test_a_grey_picture_is_stored_upright(upright):
    stored = usable_image(turned(upright.convert("L"), 6, "JPEG"))
    assert DatasetsImage().decode_example({"bytes": stored, "path": None}).size == (64, 40)


@pytest.mark.parametrize("text", ["<image>\nIs it red?", "Yes.<end_of_utterance>", "<row_1_col_2>", "a <|im_end|> b"])
def test_what_preparation_may_admit_is_what_the_processor_takes(processor, text):
    token = re.search("<.*?>", text)[0]
    with pytest.raises(ValueError, match=f"the question holds the special token {re.escape(token)}: .*; remove it"):
        check_text(text, "question")
    with pytest.raises(ValueError, match=f"the question holds the special token {re.escape(token)}"):
        processor.question_prompt(text)
    assert check_text(" Is <c1,CAM_FRONT,1.0,2.5> left of x < y > z? ", "question").startswith("Is <c1")


def test_the_rules_are_read_without_a_model_library():
    code = "import sys, smoldriver_common.shipped; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
