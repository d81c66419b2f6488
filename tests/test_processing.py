"""The processor: pictures by camera in every form, prompts, image tokens, and clear errors for what cannot be read."""

import http.server
import io
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from fakes import QUESTIONS, picture, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from modeling_smoldriver import CAMERAS, SmolDriverProcessor

DESCRIPTION = "The ego vehicle waits at a crossing."
BUDGETS = (9, 4, 1)
relaxed = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
cameras_in_any_order = st.permutations(CAMERAS).flatmap(
    lambda cameras: st.integers(1, len(cameras)).map(lambda count: cameras[:count])
)


def prompt_of(processor, images, question=QUESTIONS[0], **kwargs):
    return processor.apply_chat_template(
        processor.scene_messages(images, question), add_generation_prompt=True, tokenize=False, **kwargs
    )


def processor_kwargs(**kwargs):
    """Arguments of the processor's call as `apply_chat_template` takes them."""
    return {"processor_kwargs": kwargs} if int(transformers.__version__.split(".")[0]) >= 5 else kwargs


def assert_same_inputs(one, other):
    assert set(one) == set(other)
    for name in one:
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name


@pytest.fixture
def expected(processor, images):
    return processor(images=images, text=prompt_of(processor, images), return_tensors="pt")


# Forms of pictures


@pytest.mark.contract
def test_prompt_is_smolvlms_turn_with_camera_names(processor, images):
    images = {camera: images[camera] for camera in ("CAM_BACK", "CAM_FRONT")}
    assert prompt_of(processor, images, "Why?", scene_description=DESCRIPTION) == (
        "<|im_start|>User:CAM_FRONT:<image>CAM_BACK:<image>\nScene description: The ego vehicle waits at a crossing."
        "\nQuestion: Why?<end_of_utterance>\nAssistant:"
    )
    messages = processor.scene_messages(images, "Why?", "Because.")
    assert processor.apply_chat_template(messages, tokenize=False).endswith(
        "\nQuestion: Why?<end_of_utterance>\nAssistant: Because.<end_of_utterance>\n"
    )
    encoded = processor(images=images, text=prompt_of(processor, images, "Why?"), visual_tokens=4)
    text = processor.tokenizer.decode(encoded["input_ids"][0])
    view = f"<fake_token_around_image><global-img>{'<image>' * 4}<fake_token_around_image>"
    assert text == (f"<|im_start|>User:CAM_FRONT:{view}CAM_BACK:{view}\nQuestion: Why?<end_of_utterance>\nAssistant:")


def as_array(image):
    return np.asarray(image)


def as_floats(image):
    return np.asarray(image).astype(np.float32) / 255


def as_channels_first(image):
    return np.asarray(image).transpose(2, 0, 1)


def as_rgba(image):
    return Image.merge("RGBA", [*image.split(), Image.new("L", image.size, 7)])


def as_rgba_array(image):
    return np.asarray(as_rgba(image))


def as_tensor(image):
    return torch.from_numpy(np.array(image))


@pytest.mark.contract
@pytest.mark.parametrize(
    "form", [as_array, as_floats, as_channels_first, as_rgba, as_rgba_array, as_tensor], ids=lambda form: form.__name__
)
def test_pictures_in_memory_may_have_any_form(processor, images, expected, form):
    converted = {camera: form(image) for camera, image in images.items()}
    assert_same_inputs(processor(images=converted, text=prompt_of(processor, images), return_tensors="pt"), expected)


@pytest.mark.contract
def test_pictures_may_be_paths(processor, images, expected, tmp_path):
    for camera, image in images.items():
        image.save(tmp_path / f"{camera}.png")
    for kind in (str, lambda path: path):
        paths = {camera: kind(tmp_path / f"{camera}.png") for camera in images}
        assert_same_inputs(processor(images=paths, text=prompt_of(processor, images), return_tensors="pt"), expected)


@pytest.fixture
def web(monkeypatch):
    """A loopback server of `files` {path: bytes}; anything else is not found."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = files.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.contract
def test_pictures_may_be_urls(processor, images, expected, web):
    address, files = web
    files.update({f"/{camera}.png": png(image) for camera, image in images.items()})
    urls = {camera: f"{address}/{camera}.png" for camera in images}
    assert_same_inputs(processor(images=urls, text=prompt_of(processor, images), return_tensors="pt"), expected)
    urls["CAM_BACK"] = f"{address}/absent.png"
    with pytest.raises(ValueError, match="CAM_BACK: the picture cannot be read"):
        processor(images=urls, text=prompt_of(processor, images))
    urls["CAM_BACK"] = "http://127.0.0.1:9/refused.png"
    with pytest.raises(ValueError, match="CAM_BACK: the picture cannot be read"):
        processor(images=urls, text=prompt_of(processor, images))


@pytest.mark.contract
@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "I;16", "I", "CMYK"])
def test_pictures_of_any_mode_become_rgb(processor, images, tmp_path, mode):
    grey = images["CAM_FRONT"].convert("L")
    if mode in ("I;16", "I"):
        values = np.asarray(grey).astype(np.uint16) * 257
        odd = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.int32))
    else:
        odd = grey.convert(mode) if mode != "P" else images["CAM_FRONT"].quantize(256)
    assert odd.mode == mode
    plain = {"1": odd.convert("L"), "P": odd.convert("RGB")}.get(mode, grey).convert("RGB")
    prompt = prompt_of(processor, {"CAM_FRONT": plain})
    pixels = processor(images={"CAM_FRONT": odd}, text=prompt, return_tensors="pt")["pixel_values"]
    reference = processor(images={"CAM_FRONT": plain}, text=prompt, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, reference, atol=2 / 255, rtol=0)
    assert pixels.std() > 0.1


@pytest.mark.contract
def test_grey_arrays_are_read(processor, images):
    grey = images["CAM_FRONT"].convert("L")
    prompt = prompt_of(processor, {"CAM_FRONT": grey})
    reference = processor(images={"CAM_FRONT": grey}, text=prompt, return_tensors="pt")
    for array in (np.asarray(grey), np.asarray(grey) / 255):
        assert_same_inputs(processor(images={"CAM_FRONT": array}, text=prompt, return_tensors="pt"), reference)


@pytest.mark.contract
def test_list_of_six_is_in_the_order_of_the_cameras(processor, images, expected):
    listed = [images[camera] for camera in CAMERAS]
    for given_images in (listed, tuple(listed), [listed]):
        assert_same_inputs(
            processor(images=given_images, text=prompt_of(processor, images), return_tensors="pt"), expected
        )
    del images["CAM_FRONT"]
    listed[1] = None
    prompt = prompt_of(processor, images)
    assert_same_inputs(
        processor(images=listed, text=prompt, return_tensors="pt"),
        processor(images=images, text=prompt, return_tensors="pt"),
    )


@pytest.mark.contract
def test_named_placeholders_take_a_list_in_the_order_of_the_prompt(processor, images):
    """Six pictures in the order of six names are not those of the standard order."""
    order = list(reversed(CAMERAS))
    messages = [
        {
            "role": "user",
            "content": [
                *({"type": "image", "camera": camera, "image": images[camera]} for camera in order),
                {"type": "text", "text": "Why?"},
            ],
        }
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    by_name = processor(images=images, text=prompt, return_tensors="pt")
    assert by_name["camera_ids"].tolist() == [[5, 4, 3, 2, 1, 0]]
    assert_same_inputs(
        processor(images=[images[camera] for camera in order], text=prompt, return_tensors="pt"), by_name
    )
    assert_same_inputs(
        processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ),
        by_name,
    )


@pytest.mark.contract
def test_bare_placeholders_get_camera_names(processor, images, expected):
    bare = prompt_of(processor, images)
    for camera in CAMERAS:
        bare = bare.replace(f"{camera}:<image>", "<image>")
    assert "CAM" not in bare
    assert_same_inputs(processor(images=images, text=bare, return_tensors="pt"), expected)
    assert_same_inputs(processor(images=list(images.values()), text=bare, return_tensors="pt"), expected)


@pytest.mark.contract
def test_batch_pads_missing_views_with_zeros_and_minus_one(processor, images):
    scenes = [images, {"CAM_BACK": images["CAM_BACK"], "CAM_FRONT": images["CAM_FRONT"]}]
    prompts = [prompt_of(processor, scene) for scene in scenes]
    batch = processor(images=scenes, text=prompts, padding=True, return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 6, 3, 48, 48) and batch["pixel_values"].dtype == torch.float32
    assert batch["camera_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [1, 4, -1, -1, -1, -1]]
    assert batch["camera_ids"].dtype == torch.int64
    assert not batch["pixel_values"][1, 2:].any()
    assert torch.equal(batch["pixel_values"][1, :2], batch["pixel_values"][0, [1, 4]])


@pytest.mark.contract
def test_one_flat_list_serves_several_prompts(processor, images):
    scenes = [{"CAM_FRONT": images["CAM_FRONT"], "CAM_BACK": images["CAM_BACK"]}, {"CAM_BACK": images["CAM_FRONT"]}]
    prompts = [prompt_of(processor, scene) for scene in scenes]
    flat = [images["CAM_FRONT"], images["CAM_BACK"], images["CAM_FRONT"]]
    assert_same_inputs(
        processor(images=flat, text=prompts, padding=True, return_tensors="pt"),
        processor(images=scenes, text=prompts, padding=True, return_tensors="pt"),
    )


# Chat templates


@pytest.mark.contract
@pytest.mark.parametrize("visual_tokens", [None, 4])
def test_tokenizing_chat_template_equals_the_processor(processor, images, visual_tokens):
    options = {} if visual_tokens is None else {"visual_tokens": visual_tokens}
    tokenized = processor.apply_chat_template(
        processor.scene_messages(images, QUESTIONS[0]),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **processor_kwargs(**options),
    )
    assert_same_inputs(
        tokenized, processor(images=images, text=prompt_of(processor, images), return_tensors="pt", **options)
    )


@pytest.mark.contract
def test_tokenizing_a_batch_of_conversations_with_missing_cameras(processor, images):
    scenes = [images, {"CAM_BACK": images["CAM_BACK"]}]
    tokenized = processor.apply_chat_template(
        [processor.scene_messages(scene, question) for scene, question in zip(scenes, QUESTIONS, strict=False)],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **processor_kwargs(padding=True),
    )
    prompts = [prompt_of(processor, scene, question) for scene, question in zip(scenes, QUESTIONS, strict=False)]
    assert_same_inputs(tokenized, processor(images=scenes, text=prompts, padding=True, return_tensors="pt"))


def test_assistant_mask_marks_the_answer_behind_expanded_pictures(processor, images):
    if not hasattr(processor, "_adjust_assistant_masks_indices"):
        pytest.skip("transformers below 5.18 does not follow expanded placeholders")
    answers = ["Yes.", "The ego vehicle is going straight."]
    scenes = [images, {"CAM_BACK": images["CAM_BACK"]}]
    batch = processor.apply_chat_template(
        [processor.scene_messages(scene, "Why?", answer) for scene, answer in zip(scenes, answers, strict=True)],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    for ids, mask, answer in zip(batch["input_ids"], batch["assistant_masks"], answers, strict=True):
        assert processor.tokenizer.decode(ids[mask.bool()]) == f" {answer}<end_of_utterance>"


@pytest.mark.contract
@pytest.mark.parametrize("description", [None, DESCRIPTION])
@pytest.mark.parametrize("visual_tokens", BUDGETS)
def test_scene_and_question_prompts_join_to_the_whole_prompt(processor, images, description, visual_tokens):
    del images["CAM_BACK_LEFT"]
    scene = processor.encode_scene(images, description, visual_tokens)
    for question in [*QUESTIONS, "  padded?  ", "12 objects, <c1,CAM_FRONT,1.0,2.5>?", "Ünïcode 車?"]:
        whole = processor(
            images=images,
            text=prompt_of(processor, images, question, scene_description=description),
            visual_tokens=visual_tokens,
            return_tensors="pt",
        )
        tail = processor.tokenizer(processor.question_prompt(question), add_special_tokens=False)["input_ids"]
        assert torch.equal(torch.cat([scene["input_ids"], torch.tensor([tail])], dim=1), whole["input_ids"])
        assert torch.equal(scene["pixel_values"], whole["pixel_values"])
        assert torch.equal(scene["camera_ids"], whole["camera_ids"])


@pytest.mark.contract
def test_question_and_answer_prompts_join_to_the_training_conversation(processor, images):
    messages = processor.scene_messages(images, QUESTIONS[0], "Yes.")
    whole = processor(images=images, text=processor.apply_chat_template(messages, tokenize=False))["input_ids"][0]
    parts = [
        processor.scene_prompt(list(images)),
        processor.question_prompt(QUESTIONS[0]),
        processor.answer_text("Yes."),
    ]
    joined = [token for part in parts for token in processor.tokenizer(part, add_special_tokens=False)["input_ids"]]
    assert whole[: len(joined)] == joined and len(whole) - len(joined) == 1  # and a newline after the turn


@relaxed
@given(
    cameras=cameras_in_any_order,
    visual_tokens=st.sampled_from(BUDGETS),
    description=st.sampled_from([None, DESCRIPTION]),
    question=st.text(min_size=1).filter(lambda text: text.strip()),
    as_list=st.booleans(),
)
@pytest.mark.contract
def test_any_cameras_budget_and_question_give_a_sound_prompt(
    processor, cameras, visual_tokens, description, question, as_list
):
    images = {camera: picture(CAMERAS.index(camera)) for camera in cameras}
    scene = [images.get(camera) for camera in CAMERAS] if as_list else images
    prompt = prompt_of(processor, scene, question, scene_description=description)
    encoded = processor(images=scene, text=prompt, visual_tokens=visual_tokens, return_tensors="pt")
    present = [index for index, camera in enumerate(CAMERAS) if camera in cameras]
    assert encoded["camera_ids"].tolist() == [present]
    assert encoded["pixel_values"].shape == (1, len(present), 3, 48, 48)
    assert (encoded["input_ids"] == processor.image_token_id).sum() == len(present) * visual_tokens
    for row, index in enumerate(present):
        alone = processor.encode_images([[(CAMERAS[index], picture(index))]])["pixel_values"]
        assert torch.equal(encoded["pixel_values"][0, row], alone[0, 0])


@relaxed
@given(sets=st.lists(cameras_in_any_order, min_size=1, max_size=4), side=st.sampled_from(["left", "right"]))
@pytest.mark.contract
def test_any_batch_equals_its_scenes_one_by_one(processor, sets, side):
    scenes = [
        {camera: picture(10 * row + CAMERAS.index(camera)) for camera in cameras} for row, cameras in enumerate(sets)
    ]
    prompts = [prompt_of(processor, scene) for scene in scenes]
    batch = processor(images=scenes, text=prompts, padding=True, padding_side=side, return_tensors="pt")
    for row, (scene, prompt) in enumerate(zip(scenes, prompts, strict=True)):
        alone = processor(images=scene, text=prompt, return_tensors="pt")
        assert torch.equal(batch["input_ids"][row][batch["attention_mask"][row].bool()], alone["input_ids"][0])
        real = batch["camera_ids"][row] >= 0
        assert torch.equal(batch["camera_ids"][row][real], alone["camera_ids"][0])
        assert torch.equal(batch["pixel_values"][row][real], alone["pixel_values"][0])


# Budgets, saving, serving


@pytest.mark.contract
def test_processor_survives_saving(config, image_processor, tokenizer, images, tmp_path):
    config.vision_config.cameras, cameras = list(reversed(CAMERAS)), config.vision_config.cameras
    try:
        processor = SmolDriverProcessor.from_config(
            config, image_processor, tokenizer, budget_image_sizes={4: 32, 1: 16}
        )
    finally:
        config.vision_config.cameras = cameras
    processor.save_pretrained(tmp_path)
    loaded = SmolDriverProcessor.from_pretrained(tmp_path)
    assert loaded.cameras == list(reversed(CAMERAS)) and loaded.visual_token_budgets == [9, 4, 1]
    assert loaded.chat_template == processor.chat_template
    for tokens, side in ((9, 48), (4, 32), (1, 16)):
        arguments = {"images": images, "text": prompt_of(processor, images), "visual_tokens": tokens}
        encoded = loaded(**arguments, return_tensors="pt")
        assert encoded["pixel_values"].shape[-2:] == (side, side)
        assert_same_inputs(encoded, processor(**arguments, return_tensors="pt"))


@pytest.mark.contract
def test_placeholder_counts_for_serving_are_those_of_the_prompt(processor, images):
    scene = {"CAM_FRONT": images["CAM_FRONT"]}
    blank = prompt_of(processor, scene).replace("<image>", "")
    for tokens in BUDGETS:
        counts = processor._get_num_multimodal_tokens(image_sizes=[(36, 64)] * 2, visual_tokens=tokens)
        ids = processor(images=scene, text=prompt_of(processor, scene), visual_tokens=tokens)["input_ids"][0]
        added = len(ids) - len(processor.tokenizer(blank)["input_ids"])
        assert counts["num_image_tokens"] == [added, added] and counts["num_image_patches"] == [1, 1]


@pytest.mark.contract
def test_model_input_names_are_what_the_model_takes(processor, expected):
    assert set(expected) == set(processor.model_input_names) - {"token_type_ids"}


@pytest.mark.contract
def test_text_alone_needs_no_picture(processor):
    messages = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert set(processor(text=prompt)) == {"input_ids", "attention_mask"}


@pytest.mark.contract
def test_threads_do_not_take_over_each_others_padding(processor):
    """A fast tokenizer keeps it as a state: unguarded, a few of a thousand calls failed or got another's padding."""

    def frames():
        return processor.encode_scenes([None, None], [DESCRIPTION, None])["input_ids"].tolist()

    def prompts():
        return processor(text=["Why?", QUESTIONS[0]])["input_ids"]

    def questions():
        return processor.encode_questions(QUESTIONS)

    def repeated(call, expected):
        return sum(call() == expected for _ in range(300))

    calls = [frames, prompts, questions, frames]
    expected = [call() for call in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        assert list(pool.map(repeated, calls, expected)) == [300] * 4


# Bad input


def refused(processor, message, images, text=None, **kwargs):
    with pytest.raises(ValueError, match=message):
        processor(images=images, text=text, **kwargs)


@pytest.mark.contract
def test_unknown_camera_is_refused_with_the_names(processor, images):
    prompt = prompt_of(processor, images)
    wrong = {("CAM_TOP" if camera == "CAM_BACK" else camera): image for camera, image in images.items()}
    refused(processor, "unknown camera 'CAM_TOP'; the cameras are CAM_FRONT_LEFT, CAM_FRONT, ", wrong, prompt)
    refused(processor, "unknown camera 'CAM_TOP'", images, prompt.replace("CAM_BACK:", "CAM_TOP:"))
    for call in (processor.scene_views, processor.encode_scene):
        with pytest.raises(ValueError, match="unknown camera 'CAM_TOP'"):
            call(wrong)
    with pytest.raises(ValueError, match="unknown camera 'CAM_TOP'"):
        processor.scene_prompt(["CAM_TOP"])


@pytest.mark.contract
def test_duplicated_camera_is_refused_by_name(processor, images):
    prompt = prompt_of(processor, images).replace("CAM_BACK:", "CAM_FRONT:")
    refused(processor, "names a camera twice: CAM_FRONT$", images, prompt)
    refused(processor, "names a camera twice: CAM_FRONT$", list(images.values()), prompt)


@pytest.mark.contract
def test_prompt_and_dict_of_other_cameras_are_refused(processor, images):
    prompt = prompt_of(processor, {"CAM_FRONT": images["CAM_FRONT"]})
    refused(processor, "names CAM_FRONT, but the pictures are of CAM_BACK$", {"CAM_BACK": images["CAM_BACK"]}, prompt)


@pytest.mark.contract
def test_scene_without_a_picture_is_refused(processor):
    for empty in ({}, dict.fromkeys(CAMERAS), [None] * 6):
        for call in (processor.encode_scene, lambda scene: processor.scene_messages(scene, "Why?")):
            with pytest.raises(ValueError, match="no picture at all; give at least one of CAM_FRONT_LEFT"):
                call(empty)


@pytest.mark.contract
def test_list_of_another_length_is_refused(processor, images):
    with pytest.raises(ValueError, match="5 pictures without camera names; give a dict.*a list of 6"):
        processor.encode_scene(list(images.values())[:5])
    bare = "<|im_start|>User:" + "<image>" * 5 + "\nQuestion: Why?<end_of_utterance>\nAssistant:"
    refused(processor, "5 pictures without camera names", list(images.values())[:5], bare)


@pytest.mark.contract
def test_pictures_and_placeholders_must_match(processor, images):
    prompt = prompt_of(processor, images)
    five = {camera: image for camera, image in images.items() if camera != "CAM_BACK"}
    refused(processor, "5 pictures for 6 <image> placeholders", five, prompt)
    refused(processor, "6 pictures for 5 <image> placeholders", images, prompt_of(processor, five))
    refused(processor, "6 pictures for 0 <image> placeholders", images, prompt.replace("<image>", ""))
    refused(processor, "0 pictures for 6 <image> placeholders", None, prompt)
    refused(processor, "5 pictures for 6 <image> placeholders", [*five.values(), None], prompt)
    refused(processor, "either all <image> placeholders carry", images, prompt.replace("CAM_BACK:", ""))
    refused(processor, "1 frames of pictures for 2 prompts", [images], [prompt, prompt])
    refused(processor, "text is required", images)


@pytest.mark.contract
@pytest.mark.parametrize("visual_tokens", [0, 2, 16, -1, 4.5, "4"])
def test_unknown_budget_is_refused_with_the_valid_ones(processor, images, visual_tokens):
    message = rf"visual_tokens={visual_tokens} is not a budget; choose one of \[9, 4, 1\]"
    refused(processor, message, images, prompt_of(processor, images), visual_tokens=visual_tokens)
    with pytest.raises(ValueError, match=message):
        processor.encode_scene(images, visual_tokens=visual_tokens)


@pytest.mark.contract
def test_picture_size_for_an_unknown_budget_is_refused(config, image_processor, tokenizer):
    with pytest.raises(ValueError, match="visual_tokens=2 is not a budget"):
        SmolDriverProcessor.from_config(config, image_processor, tokenizer, budget_image_sizes={2: 32})


@pytest.mark.contract
@pytest.mark.parametrize("empty", ["", "  \n", None, 3])
def test_empty_question_or_answer_is_refused(processor, empty):
    with pytest.raises(ValueError, match="the question is empty or not a string"):
        processor.question_prompt(empty)
    with pytest.raises(ValueError, match="the answer is empty or not a string"):
        processor.answer_text(empty)


@pytest.mark.contract
@pytest.mark.parametrize("token", ["<image>", "<end_of_utterance>", "<|im_start|>", "<|endoftext|>"])
def test_special_tokens_in_the_users_text_are_refused(processor, images, token):
    with pytest.raises(ValueError, match="the question holds the special token"):
        processor.question_prompt(f"What {token} is this?")
    with pytest.raises(ValueError, match="the answer holds the special token"):
        processor.answer_text(f"A car{token}.")
    with pytest.raises(ValueError, match="the scene description holds the special token"):
        processor.encode_scene(images, f"A street. {token}")


@pytest.mark.contract
def test_special_tokens_must_be_known_to_the_tokenizer(config, image_processor):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    poor = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ValueError, match="the tokenizer lacks SmolVLM's tokens.*<image>"):
        SmolDriverProcessor.from_config(config, image_processor, poor)


def jpeg():
    buffer = io.BytesIO()
    picture(3, (160, 90)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def huge_png():
    """A small file that declares 20,000 x 20,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


BAD_FILES = {
    "truncated": lambda: jpeg()[: len(jpeg()) // 2],
    "empty": lambda: b"",
    "no picture": lambda: b"not a picture at all",
    "huge": huge_png,
    "broken png": lambda: png(picture(3))[:60],
}


@pytest.mark.contract
@pytest.mark.parametrize("kind", BAD_FILES)
def test_picture_that_cannot_be_read_is_refused_by_camera(processor, images, tmp_path, kind):
    prompt = prompt_of(processor, images)
    path = tmp_path / "picture"
    path.write_bytes(BAD_FILES[kind]())
    refused(processor, "^CAM_BACK: the picture cannot be read: ", {**images, "CAM_BACK": str(path)}, prompt)
    with pytest.raises(ValueError, match="^CAM_BACK: the picture cannot be read: "):
        processor.encode_scene({**images, "CAM_BACK": path})


@pytest.mark.contract
def test_opened_but_truncated_picture_is_refused_by_camera(processor, images):
    """PIL opens lazily: only decoding finds the missing half."""
    images["CAM_BACK"] = Image.open(io.BytesIO(jpeg()[: len(jpeg()) // 2]))
    with pytest.raises(ValueError, match="^CAM_BACK: the picture cannot be read: "):
        processor.encode_scene(images)


@pytest.mark.contract
@pytest.mark.parametrize(
    "broken",
    [
        "absent.jpg",
        7,
        object(),
        np.zeros((2, 3, 4, 5)),
        np.zeros((4, 5, 7), np.uint8),
        np.full((4, 5, 3), np.nan),
        b"x",
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_a_picture_is_refused_by_camera(processor, images, broken):
    refused(
        processor,
        "^CAM_BACK: the picture cannot be read: ",
        {**images, "CAM_BACK": broken},
        prompt_of(processor, images),
    )


@settings(relaxed, max_examples=60)
@given(data=st.data(), format=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF"]))
@pytest.mark.contract
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused_by_camera(processor, tmp_path_factory, data, format):
    buffer = io.BytesIO()
    picture(5).save(buffer, format)
    content = bytearray(buffer.getvalue()[: data.draw(st.integers(0, len(buffer.getvalue())))])
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "picture"
    path.write_bytes(content)
    try:
        pixels = processor.encode_scene({"CAM_BACK": path})["pixel_values"]
    except ValueError as error:
        assert str(error).startswith("CAM_BACK: the picture cannot be read: ")
    else:
        assert pixels.shape == (1, 1, 3, 48, 48) and pixels.isfinite().all()


@pytest.mark.contract
@pytest.mark.parametrize("modality", ["videos", "audio"])
def test_other_modalities_are_refused(processor, modality):
    with pytest.raises(ValueError, match=f"takes pictures and text; got {modality}"):
        processor(text="Why?", **{modality: [1]})


# TRL's own way


def chat_rows(images, count=4):
    """Rows as TRL's vision-language examples hold them: pictures apart from the messages."""
    return [
        {
            "images": list(images.values()),
            "messages": [
                {"role": "user", "content": QUESTIONS[index % len(QUESTIONS)]},
                {"role": "assistant", "content": "The ego vehicle is going straight."},
            ],
        }
        for index in range(count)
    ]


def test_trls_collator_batches_scenes(processor, model, images):
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    batch = DataCollatorForVisionLanguageModeling(processor)(chat_rows(images, 2))
    assert batch["camera_ids"].tolist() == [list(range(6))] * 2
    assert (batch["input_ids"] == processor.image_token_id).sum(-1).tolist() == [54, 54]
    assert model(**batch).loss.isfinite()


@pytest.mark.parametrize("assistant_only_loss", [False, True])
def test_stock_sft_trainer_trains_the_model(processor, config, images, tmp_path, assistant_only_loss):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = tiny_model(config)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        max_length=None,
        assistant_only_loss=assistant_only_loss,
        gradient_checkpointing=False,
        bf16=False,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = SFTTrainer(
        model, args=args, train_dataset=Dataset.from_list(chat_rows(images)), processing_class=processor
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
