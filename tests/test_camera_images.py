"""One camera image: what is stored of it, and what is refused."""

import io

import numpy as np
import pytest
from drivelm_source import encode, noise, png_of_claimed_size
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_scripts.sources.camera_images import MAX_PIXELS, UnusableImage, usable_image


def test_eight_bits_in_a_16_bit_png_are_not_made_black():
    picture = Image.fromarray(np.full((36, 64), 200, dtype=np.uint16))
    stored = Image.open(io.BytesIO(usable_image(encode(picture, "PNG"))))
    assert np.abs(np.asarray(stored, dtype=float) - 200).max() < 5


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_any_colour_mode_is_stored_as_rgb(mode):
    if mode == "I;16":
        picture = Image.fromarray(np.linspace(0, 65535, 64 * 36, dtype=np.uint16).reshape(36, 64))
        expected = np.linspace(0, 255, 64 * 36).reshape(36, 64, 1).repeat(3, axis=2)
    else:
        picture = noise(5).quantize() if mode == "P" else noise(5).convert(mode)
        expected = np.asarray(picture.convert("RGB"), dtype=float)
    stored = Image.open(io.BytesIO(usable_image(encode(picture, "JPEG" if mode == "CMYK" else "PNG"))))
    assert stored.mode == "RGB" and stored.size == (64, 36)
    assert np.abs(np.asarray(stored, dtype=float) - expected).mean() < 12


def test_rgb_png_is_stored_as_it_is():
    data = encode(noise(2), "PNG")
    assert usable_image(data) is data


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(20_000, 20_000), (MAX_PIXELS, 1), (7_100, 7_100), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb_is_recognized_by_its_header(size):
    width, height = size
    picture = png_of_claimed_size(width, height + (width == MAX_PIXELS))
    with pytest.raises(UnusableImage, match="more than 50,000,000 pixels"):
        usable_image(picture)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 20_000), progressive=st.booleans())
def test_image_that_passes_at_an_eighth_decodes_in_full(cut, progressive):
    whole = encode(noise(7, 320, 180), progressive=progressive)
    data = whole[: cut % (len(whole) + 1)]
    try:
        usable_image(data)
    except UnusableImage:
        assert len(data) < len(whole)
    else:
        Image.open(io.BytesIO(data)).load()
        assert len(data) > 0.95 * len(whole)


@settings(max_examples=80, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=20),
    kind=st.sampled_from(["JPEG", "PNG"]),
)
def test_broken_bytes_give_an_rgb_image_or_a_reason(flips, kind):
    data = bytearray(encode(noise(8), kind))
    for position, value in flips:
        data[position % len(data)] = value
    try:
        stored = usable_image(bytes(data), 20)
    except UnusableImage as reason:
        assert str(reason)
    else:
        assert Image.open(io.BytesIO(stored)).mode == "RGB"
