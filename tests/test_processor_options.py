"""Options of the processor's call reach the part that takes them, or are refused by name; nothing vanishes."""

import pytest
import torch
from fakes import assert_same_inputs, text_of

pytestmark = pytest.mark.contract


@pytest.fixture
def call(processor, images):
    prompt = text_of(processor, images)
    return lambda **options: processor(images=images, text=prompt, **options)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize(
    "option, value, change",
    [
        ("do_normalize", False, lambda pixels, mean, std: pixels * std + mean),
        ("do_rescale", False, lambda pixels, mean, std: ((pixels * std + mean) * 255 - mean) / std),
        ("image_mean", [0.0, 0.0, 0.0], lambda pixels, mean, std: pixels + mean / std),
    ],
)
def test_options_of_pictures_change_the_pixels(processor, call, within, option, value, change):
    options = {"images_kwargs": {option: value}} if within else {option: value}
    mean, std = (
        torch.tensor(getattr(processor.image_processor, name))[:, None, None] for name in ("image_mean", "image_std")
    )
    plain, changed = call(return_tensors="pt"), call(return_tensors="pt", **options)
    assert not torch.allclose(plain["pixel_values"], changed["pixel_values"])
    torch.testing.assert_close(changed["pixel_values"], change(plain["pixel_values"], mean, std), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("within", [False, True])
def test_the_pictures_size_can_be_given(call, within):
    options = {"size": {"height": 24, "width": 24}}
    encoded = call(return_tensors="pt", **({"images_kwargs": options} if within else options))
    assert encoded["pixel_values"].shape == (1, 6, 3, 24, 24)


def test_options_of_texts_may_stand_within_text_kwargs_or_common_kwargs(call):
    expected = call(return_tensors="pt")
    for options in (
        {"text_kwargs": {"return_tensors": "pt"}},
        {"common_kwargs": {"return_tensors": "pt"}},
        {"text_kwargs": {"padding": True}, "return_tensors": "pt"},
        {"images_kwargs": {"do_normalize": True}, "text_kwargs": {"return_tensors": "pt"}, "padding": True},
    ):
        encoded = call(**options)
        assert all(isinstance(value, torch.Tensor) for value in encoded.values())
        assert_same_inputs(encoded, expected)
    # transformers 4.57 drops an option by name beside `text_kwargs`
    without = call(text_kwargs={"padding": True}, return_attention_mask=False)
    assert "attention_mask" not in without


def test_an_option_that_is_none_is_not_given(call):
    options = {"return_tensors": None, "padding_side": None, "max_length": None}
    assert call(text_kwargs={"return_tensors": "pt"}, **options)["input_ids"].shape[0] == 1


def test_a_tokenizer_that_was_loaded_with_a_padding_keeps_it(processor, images, tmp_path):
    processor.save_pretrained(tmp_path)
    padding = type(processor.tokenizer).from_pretrained(tmp_path, padding="max_length", max_length=300)
    processor = type(processor).from_pretrained(tmp_path, tokenizer=padding)
    inputs = {"images": images, "text": text_of(processor, images), "return_tensors": "pt"}
    assert processor(**inputs)["input_ids"].shape == (1, 300)
    assert processor(**inputs, padding=False)["input_ids"].shape[1] < 300


def test_saving_leaves_no_mark_of_the_file_on_the_processor(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert not hasattr(processor, "auto_map")
    assert type(processor).from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_a_dict_of_options_is_not_changed(call):
    options = {"padding": True, "return_tensors": "pt"}
    call(text_kwargs=options)
    assert options == {"padding": True, "return_tensors": "pt"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"do_normalise": False}, "the processor has no option 'do_normalise'; of pictures: do_resize, size"),
        ({"crop_size": 3}, "the processor has no option 'crop_size'"),
        ({"images_kwargs": {"do_center_crop": True}}, "images_kwargs has no option 'do_center_crop'"),
        ({"text_kwargs": {"do_normalize": False}}, "text_kwargs has no option 'do_normalize'"),
        ({"common_kwargs": {"colour": 1}}, "the processor has no option 'colour'"),
        ({"padding": True, "text_kwargs": {"padding": True}}, "padding is given twice"),
        ({"visual_tokens": 9, "images_kwargs": {"visual_tokens": 4}}, "images_kwargs has no option 'visual_tokens'"),
    ],
)
def test_an_option_that_nobody_takes_is_refused_by_name(call, options, message):
    with pytest.raises(ValueError, match=message):
        call(**options)


@pytest.mark.parametrize("visual_tokens", [9, 4, 1])
def test_as_many_tokens_are_marked_as_counted_for_engines(processor, call, visual_tokens):
    encoded = call(return_tensors="pt", visual_tokens=visual_tokens, return_mm_token_type_ids=True)
    marked = encoded["mm_token_type_ids"] == 1
    assert marked.shape == encoded["input_ids"].shape
    counted = processor._get_num_multimodal_tokens(image_sizes=[(36, 64)] * 6, visual_tokens=visual_tokens)
    assert counted["num_image_tokens"] == [visual_tokens + 3] * 6 and int(marked.sum()) == 6 * (visual_tokens + 3)
    assert torch.equal(marked, torch.isin(encoded["input_ids"], torch.tensor(processor.image_token_ids)))
    assert bool(marked[encoded["input_ids"] == processor.image_token_id].all())


def test_replaced_placeholders_are_described_as_transformers_does(processor, images):
    prompt = text_of(processor, images)
    spans = processor(images=images, text=prompt, return_text_replacement_offsets=True)["text_replacement_offsets"]
    assert len(spans) == 1 and len(spans[0]) == 6
    for span in spans[0]:
        assert set(span) == {"type", "span", "new_span", "text", "replacement"} and span["type"] == "image"
        assert prompt[slice(*span["span"])] == span["text"]
        assert span["new_span"][1] - span["new_span"][0] == len(span["replacement"])


def test_an_engine_that_drops_the_names_is_refused_and_never_served_by_place(processor, images):
    pictures = list(images.values())
    for count in (1, 3, 6):
        bare = {"images": pictures[:count], "text": processor.image_token * count}
        assert processor(**bare, return_tensors="pt")["camera_ids"].shape == (1, count)  # by place
        with pytest.raises(ValueError, match=f"{count} of {count} <image> placeholders have no camera name"):
            processor(**bare, return_text_replacement_offsets=True)


def test_placeholder_cameras_reads_the_names_of_a_rendered_prompt(processor, images):
    assert processor.placeholder_cameras(text_of(processor, images)) == processor.cameras
    assert processor.placeholder_cameras("Assistant: Yes.") == []
    refused = {"CAM_TOP:<image>": "unknown camera 'CAM_TOP'", "CAM_BACK:<image>CAM_BACK:<image>": "a camera twice"}
    for prompt, said in {**refused, "User:<image>": "1 of 1 <image> placeholders"}.items():
        with pytest.raises(ValueError, match=said):
            processor.placeholder_cameras(prompt)


def test_a_too_long_prompt_is_refused_as_such_and_never_read_as_a_smaller_budget(call):
    length = len(call()["input_ids"][0])
    for options in ({"max_length": 40}, {"text_kwargs": {"max_length": 40, "truncation": True}}):
        with pytest.raises(ValueError, match=f"the prompt takes {length} tokens, max_length is 40"):
            call(**options)
