"""Which camera a picture is of: one rule for messages, the template that engines render, processor and pipelines."""

import base64
import io
import re

import pytest
import torch
from fakes import QUESTIONS, assert_same_inputs, picture, text_of, tiny_config
from transformers import pipeline
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from modeling_smoldriver import CAMERAS, SmolDriverProcessor

pytestmark = pytest.mark.contract

QUESTION = {"type": "text", "text": QUESTIONS[0]}
REVERSED = list(reversed(CAMERAS))
AHEAD = ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"]
LIST = "; the cameras are CAM_FRONT_LEFT, CAM_FRONT, CAM_FRONT_RIGHT, CAM_BACK_LEFT, CAM_BACK, CAM_BACK_RIGHT"


def data_uri(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


STYLES = {  # the parts of one picture, as users and servers write them
    "camera key": lambda camera, image: [{"type": "image", "camera": camera, "image": image}],
    "label": lambda camera, image: [{"type": "text", "text": camera}, {"type": "image", "image": image}],
    "label with colon": lambda camera, image: [
        {"type": "text", "text": f" {camera}: "},
        {"type": "image", "image": image},
    ],
    "key and label": lambda camera, image: [
        {"type": "text", "text": camera},
        {"type": "image", "camera": camera, "image": image},
    ],
    "OpenAI's part": lambda camera, image: [
        {"type": "text", "text": f"{camera}:"},
        {"type": "image_url", "image_url": {"url": data_uri(image)}},
    ],
    "OpenAI's part with a key": lambda camera, image: [
        {"type": "image_url", "image_url": {"url": data_uri(image)}, "camera": camera}
    ],
}


def user(*parts) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def by_engine(processor, messages) -> str:
    """What a serving engine makes of the messages: the template alone, without the processor."""
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=processor.chat_template, add_generation_prompt=True
    )
    return rendered[0]


def tokenized(processor, messages):
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@pytest.mark.parametrize("question_first", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_named_pictures_in_any_order_are_of_their_cameras_on_every_route(processor, images, style, question_first):
    parts = [part for camera in REVERSED for part in STYLES[style](camera, images[camera])]
    messages = user(QUESTION, *parts) if question_first else user(*parts, QUESTION)
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    names = "".join(f"{camera}:<image>" for camera in REVERSED)
    assert prompt == f"<|im_start|>User:{names}\nQuestion: {QUESTIONS[0]}<end_of_utterance>\nAssistant:"
    assert by_engine(processor, messages) == prompt
    expected = processor(images=images, text=prompt, return_tensors="pt")
    assert expected["camera_ids"].tolist() == [[5, 4, 3, 2, 1, 0]]
    assert_same_inputs(tokenized(processor, messages), expected)


@pytest.mark.parametrize("cameras", [list(CAMERAS), AHEAD, ["CAM_FRONT"]])
def test_pictures_without_names_are_taken_by_their_place_on_every_route(processor, images, cameras):
    named = {camera: images[camera] for camera in cameras}
    expected = processor(images=named, text=text_of(processor, named), return_tensors="pt")
    listed = list(named.values())
    messages = user(*({"type": "image", "image": image} for image in listed), QUESTION)
    assert by_engine(processor, messages) == text_of(processor, named)
    assert_same_inputs(tokenized(processor, messages), expected)
    bare = f"<|im_start|>User:{'<image>' * len(listed)}\nQuestion: {QUESTIONS[0]}<end_of_utterance>\nAssistant:"
    assert_same_inputs(processor(images=listed, text=bare, return_tensors="pt"), expected)
    assert_same_inputs(processor.encode_scene(listed), processor.encode_scene(named))
    assert_same_inputs(tokenized(processor, processor.scene_messages(listed, QUESTIONS[0])), expected)


def test_the_pipeline_reads_labels(processor, model, images):
    if not hasattr(processor.tokenizer, "backend_tokenizer"):
        pytest.skip("the pipeline wants a fast tokenizer")
    pipe = pipeline("image-text-to-text", model=model, processor=processor, device="cpu")
    options = {"generate_kwargs": {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}}
    cameras = REVERSED[:2]
    labelled = user(*(part for camera in cameras for part in STYLES["label"](camera, images[camera])), QUESTION)
    keyed = user(*(part for camera in cameras for part in STYLES["camera key"](camera, images[camera])), QUESTION)
    wrong = user(*(part for camera in AHEAD[:2] for part in STYLES["label"](camera, images[camera])), QUESTION)
    said = [
        pipe(text=messages, return_full_text=False, **options)[0]["generated_text"]
        for messages in (labelled, keyed, wrong)
    ]
    assert said[0] == said[1] and said[0] != said[2]


IMAGE = {"type": "image", "image": picture(0)}


def label(text) -> dict:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    "parts, message",
    [
        ([IMAGE] * 2, "2 pictures, 0 of them with a camera name: name each"),
        ([IMAGE] * 5, "5 pictures, 0 of them with a camera name"),
        ([label("CAM_BACK"), IMAGE, IMAGE], "2 pictures, 1 of them with a camera name"),
        ([IMAGE, label("CAM_BACK"), IMAGE], "2 pictures, 1 of them with a camera name"),
        ([label("CAM_TOP:"), IMAGE], "unknown camera 'CAM_TOP'"),
        ([label("CAM_TOP"), IMAGE], "unknown camera 'CAM_TOP'"),
        ([label("Back camera:"), IMAGE], "unknown camera 'Back camera'"),
        ([label("CAM_BACK"), IMAGE, label("the front"), IMAGE], "unknown camera 'the front'"),
        ([label("cam_back:"), IMAGE], "unknown camera 'cam_back'"),
        ([{**IMAGE, "camera": "CAM_TOP"}], "unknown camera 'CAM_TOP'"),
        ([label("CAM_BACK"), IMAGE, label("CAM_BACK:"), IMAGE], "the message names a camera twice: 'CAM_BACK'"),
        (
            [label("CAM_BACK"), {**IMAGE, "camera": "CAM_BACK"}, {**IMAGE, "camera": "CAM_BACK"}],
            "names a camera twice",
        ),
        ([label("CAM_FRONT"), {**IMAGE, "camera": "CAM_BACK"}], "picture of 'CAM_BACK' stands behind the text 'CAM_F"),
        ([IMAGE, label("CAM_BACK:")], "the camera's name 'CAM_BACK:' stands before no picture"),
    ],
)
def test_what_names_no_camera_is_refused_with_the_names(processor, parts, message):
    messages = user(*parts, QUESTION)
    for tokenize in (False, True):
        with pytest.raises(ValueError, match=re.escape(message)) as refused:
            processor.apply_chat_template(messages, tokenize=tokenize, return_dict=tokenize)
        assert str(refused.value).endswith(LIST) and "\n" not in str(refused.value)
    with pytest.raises(Exception, match=re.escape(message)) as refused:
        by_engine(processor, messages)
    assert str(refused.value).endswith(LIST)


def test_a_camera_named_in_two_turns_is_refused_where_pictures_are_read(processor, images):
    turn = user(*STYLES["label"]("CAM_BACK", images["CAM_BACK"]), QUESTION)
    with pytest.raises(ValueError, match="the prompt names a camera twice: CAM_BACK"):
        tokenized(processor, [*turn, {"role": "assistant", "content": "Yes."}, *turn])


def test_texts_that_are_no_labels_stay_questions(processor, images):
    messages = user(label("Is it CAM_BACK?"), IMAGE, label("CAM_BACK: what is there?"), label("And then?"))
    prompt = processor.apply_chat_template(messages, tokenize=False)
    assert prompt.endswith(
        "User:CAM_FRONT:<image>\nQuestion: Is it CAM_BACK?\nQuestion: CAM_BACK: what is there?\nQuestion: And then?"
        "<end_of_utterance>\n"
    )
    messages = [*user(IMAGE, QUESTION), {"role": "assistant", "content": [label("CAM_BACK")]}]
    assert "Assistant: CAM_BACK<end" in processor.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    "cameras, count, expected",
    [
        (["LEFT", "AHEAD", "RIGHT"], 3, ["LEFT", "AHEAD", "RIGHT"]),
        (["AHEAD"], 1, ["AHEAD"]),
        (["LEFT", "AHEAD"], 1, None),
        (["LEFT", "CAM_FRONT"], 1, ["CAM_FRONT"]),
        (REVERSED, 6, REVERSED),
        (REVERSED, 3, AHEAD),
        ([*CAMERAS, "CAM_ROOF"], 6, None),
        ([*CAMERAS, "CAM_ROOF"], 7, [*CAMERAS, "CAM_ROOF"]),
    ],
)
def test_other_sets_of_cameras_have_their_own_names_and_places(
    image_processor, tokenizer, tmp_path, cameras, count, expected
):
    config = tiny_config(tokenizer, cameras=cameras)
    SmolDriverProcessor.from_config(config, image_processor, tokenizer).save_pretrained(tmp_path)
    processor = SmolDriverProcessor.from_pretrained(tmp_path)
    pictures = [picture(number) for number in range(count)]
    messages = user(*({"type": "image", "image": image} for image in pictures), QUESTION)
    if expected is None:
        for call in (lambda: tokenized(processor, messages), lambda: processor.encode_scene(pictures)):
            with pytest.raises(ValueError, match=f"{count} pictures.*{', '.join(cameras)}"):
                call()
        return
    encoded = tokenized(processor, messages)
    assert encoded["camera_ids"].tolist() == [[cameras.index(camera) for camera in expected]]
    by_name = processor.scene_messages(dict(zip(expected, pictures, strict=True)), QUESTIONS[0])
    by_place = processor.scene_messages(pictures, QUESTIONS[0])
    assert_same_inputs(tokenized(processor, by_name), tokenized(processor, by_place))
    with pytest.raises(ValueError, match="unknown camera 'CAM_TOP'"):
        tokenized(processor, user(label("CAM_TOP:"), IMAGE, QUESTION))


def test_engines_see_that_the_template_takes_parts(processor):
    """vLLM passes parts, and not one text with pictures in it, where a loop runs over `message['content']` itself."""
    jinja2 = pytest.importorskip("jinja2")
    tree = _compile_jinja_template(processor.chat_template).environment.parse(processor.chat_template)
    loops = [loop for loop in tree.find_all(jinja2.nodes.For) if isinstance(loop.iter, jinja2.nodes.Getitem)]
    over_content = [loop for loop in loops if loop.iter.arg.value == "content" and loop.iter.node.name == "message"]
    assert over_content and all(loop.target.name == "part" for loop in over_content)


# Forms of pictures


@pytest.mark.parametrize("form", ["bytes", "open file", "file in memory", "stored by datasets", "path of datasets"])
def test_a_pictures_file_is_read_in_every_form(processor, images, tmp_path, form):
    def formed(camera):
        path = tmp_path / f"{camera}.png"
        images[camera].save(path)
        content = path.read_bytes()
        return {
            "bytes": lambda: content,
            "open file": lambda: path.open("rb"),
            "file in memory": lambda: io.BytesIO(content),
            "stored by datasets": lambda: {"bytes": content, "path": None},
            "path of datasets": lambda: {"bytes": None, "path": str(path)},
        }[form]()

    prompt = text_of(processor, images)
    expected = processor(images=images, text=prompt, return_tensors="pt")
    by_name = {camera: formed(camera) for camera in CAMERAS}
    for given in (by_name, list(by_name.values()), [by_name], [list(by_name.values())]):
        assert_same_inputs(processor(images=given, text=prompt, return_tensors="pt"), expected)
    one = text_of(processor, {"CAM_FRONT": images["CAM_FRONT"]})
    alone = processor(images=by_name["CAM_FRONT"], text=one, return_tensors="pt")
    assert torch.equal(alone["pixel_values"][0, 0], expected["pixel_values"][0, 1])
    assert_same_inputs(processor.encode_scene(list(by_name.values())), processor.encode_scene(images))


@pytest.mark.parametrize("broken", [b"", b"no picture", {"bytes": b"no picture"}, io.BytesIO(b""), {"bytes": None}])
def test_a_broken_file_is_refused_with_its_camera(processor, broken):
    with pytest.raises(ValueError, match="CAM_BACK: the picture cannot be read"):
        processor.encode_scene({"CAM_BACK": broken})
