"""SmolVLM in our harness is transformers' own SmolVLM: same logits, answers, folders; packed training is exact too."""

import json
import shutil

import pytest
import torch
from fakes import (
    CASES,
    PREPROCESSING,
    QA,
    QUESTIONS,
    assert_same,
    assert_same_training,
    dataset,
    frame,
    loss_and_gradients,
    one_by_one,
    picture,
    prompt_of,
    save_smolvlm,
)
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlamaConfig, SmolVLMForConditionalGeneration

from modeling_smoldriver import CAMERAS
from modeling_smoldriver.collator_smoldriver import SmolDriverCollator
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer
from recipes.training.loading import load_model, load_processor


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    return save_smolvlm(tmp_path_factory.mktemp("smolvlm"), tokenizer)


@pytest.fixture
def baseline(base):
    return load_model(base)


@pytest.fixture
def plain(base):
    return SmolVLMForConditionalGeneration.from_pretrained(base).eval()


@pytest.fixture
def make_trainer(base, tmp_path):
    def make(**options):
        options = {"output_dir": str(tmp_path / "run"), "report_to": "none", "use_cpu": True, "bf16": False, **options}
        model, processor = load_model(base)
        args = SmolDriverSFTConfig(gradient_checkpointing=options.pop("gradient_checkpointing", False), **options)
        return SmolDriverSFTTrainer(model, args, train_dataset=dataset([frame(0)]), processing_class=processor)

    return make


# Prompt and pictures


def test_prompt_is_smoldrivers_and_pictures_are_the_bases(baseline, processor, images):
    own = baseline[1]
    prompts = [prompt_of(one, images, QUESTIONS[0]) for one in (own, processor)]
    assert torch.equal(prompts[0]["input_ids"], prompts[1]["input_ids"])  # both take 9 tokens per camera
    pixels = prompts[0]["pixel_values"]
    assert pixels.shape == (1, 6, 3, 48, 48)
    assert pixels.max() == pytest.approx(1.0, abs=0.01) and pixels.min() == pytest.approx(-0.4 / 0.6, abs=0.01)
    assert own.visual_token_budgets == [9]
    with pytest.raises(ValueError, match="visual_tokens=4 is not a budget; choose one of \\[9\\]"):
        own.encode_scene(images, visual_tokens=4)


@pytest.mark.contract
def test_preprocessing_that_transformers_5_saved_is_read_too(base, images, tmp_path):
    """It is nested in the processor's own file, in place of one of its own."""
    folder = shutil.copytree(base, tmp_path / "nested")
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": PREPROCESSING}))
    nested, plain = (load_processor(one).encode_scene(images)["pixel_values"] for one in (folder, base))
    assert torch.equal(nested, plain)


def test_other_input_sizes_give_their_own_number_of_tokens(tokenizer, tmp_path, images):
    model, processor = load_model(save_smolvlm(tmp_path, tokenizer, image_size=64))
    scene = processor.encode_scene(images)
    assert (scene["input_ids"] == processor.image_token_id).sum() == 6 * (64 // 8 // 2) ** 2
    assert scene["pixel_values"].shape[-1] == 64 and model.encode_scene(**scene).length == len(scene["input_ids"][0])


# The model


@pytest.mark.parametrize("missing", [(), ("CAM_FRONT", "CAM_BACK_RIGHT")])
def test_logits_are_transformers_own(baseline, plain, images, missing):
    model, processor = baseline
    inputs = prompt_of(processor, {name: image for name, image in images.items() if name not in missing}, QUESTIONS[0])
    own = model(**inputs).logits
    assert torch.equal(model(**{**inputs, "camera_ids": None}).logits, own)
    assert torch.equal(plain(**{name: value for name, value in inputs.items() if name != "camera_ids"}).logits, own)
    inputs["pixel_values"] = inputs["pixel_values"].flip(1)
    assert not torch.allclose(model(**inputs).logits, own)


def test_padding_is_known_by_its_camera_id_not_by_zeros(baseline, plain, images):
    """Where a picture happens to be zero everywhere, transformers' SmolVLM drops it."""
    model, processor = baseline
    inputs = prompt_of(processor, images, QUESTIONS[0])
    inputs["pixel_values"][0, 2] = 0
    without_ids = {name: value for name, value in inputs.items() if name != "camera_ids"}
    with pytest.raises(ValueError, match="do not match"):
        plain(**without_ids)
    almost = inputs["pixel_values"].clone()
    almost[0, 2] = 1e-9
    assert_same(model(**inputs).logits, plain(**{**without_ids, "pixel_values": almost}).logits)


def test_pictures_that_do_not_match_the_prompt_are_refused(baseline, images):
    model, processor = baseline
    inputs = prompt_of(processor, images, QUESTIONS[0])
    inputs["camera_ids"] = torch.tensor([[0, 1, 2, 3, 4, -1]])
    with pytest.raises(ValueError, match="the rows hold 54 <image> tokens, their pictures give 45, 9 each"):
        model(**inputs)


def test_answers_equal_transformers_own_generate_on_each_question_alone(baseline, plain, images):
    model, processor = baseline
    greedy = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    few = {camera: images[camera] for camera in CAMERAS[1:4]}
    for seen in (images, few):
        scene = model.encode_scene(**processor.encode_scene(seen))
        answers = model.answer(scene, processor, QUESTIONS, **greedy)
        alone = []
        for question in QUESTIONS:
            inputs = prompt_of(processor, seen, question)
            del inputs["camera_ids"]
            ids = plain.generate(**inputs, **greedy, pad_token_id=processor.tokenizer.pad_token_id)
            alone.append(processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
        assert answers == alone
    assert len({*answers}) > 1
    inputs = prompt_of(processor, few, QUESTIONS[-1])  # our class's own `generate`, pictures in the first step only
    ids = model.generate(**inputs, **greedy)
    assert processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip() == alone[-1]


def test_control_without_pictures_is_answered(baseline):
    model, processor = baseline
    assert len(model.answer(model.encode_scene(**processor.encode_scene(None)), processor, QUESTIONS)) == 4


# Training


@pytest.mark.parametrize("attention, packed", [("sdpa", "blocks"), ("sdpa", "mask"), ("eager", "mask")])
@pytest.mark.parametrize("case", CASES)
def test_packed_loss_and_gradients_equal_one_by_one(make_trainer, case, attention, packed):
    trainer = make_trainer(scene_packing=True, packed_attention=packed)
    if attention == "eager":
        trainer.model.set_attn_implementation("eager")
    processor, rows = trainer.processing_class, CASES[case]
    batch = SmolDriverCollator(processor, scene_packing=True)(rows)
    alone = [SmolDriverCollator(processor)([row]) for row in one_by_one(rows)]
    assert_same_training(loss_and_gradients(trainer, [batch]), loss_and_gradients(make_trainer(), alone))


def test_frame_in_several_packs_equals_one_by_one_with_its_pictures_once(make_trainer):
    trainer = make_trainer(scene_packing=True, gradient_checkpointing=True)
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    processor = trainer.processing_class
    rows = [frame(0), frame(1, missing=("CAM_BACK",))]
    batch = SmolDriverCollator(processor, scene_packing=True, max_pack_length=250)(rows)
    assert len(batch["input_ids"]) > len(batch["pixel_values"]) == 2
    alone = [SmolDriverCollator(processor)([row]) for row in one_by_one(rows)]
    assert_same_training(loss_and_gradients(trainer, [batch]), loss_and_gradients(make_trainer(), alone))


def test_one_by_one_loss_is_transformers_own(make_trainer, plain):
    trainer = make_trainer()
    batch = SmolDriverCollator(trainer.processing_class)([frame(0, QA[1:2])])
    names = ("input_ids", "attention_mask", "labels", "pixel_values")
    expected = plain(**{name: batch[name] for name in names}).loss
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected, rtol=1e-5, atol=0)


# The folder


def test_saved_folder_is_a_plain_smolvlm_with_its_own_files(baseline, base, images, tmp_path):
    model, processor = baseline
    with torch.no_grad():
        model.lm_head.weight += 1
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert type(loaded) is SmolVLMForConditionalGeneration
    inputs = prompt_of(processor, images, QUESTIONS[0])
    own = model(**inputs).logits
    del inputs["camera_ids"]
    assert torch.equal(loaded.eval()(**inputs).logits, own)
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {path.name for path in base.iterdir()}
    for name in ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (base / name).read_bytes()
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["SmolVLMForConditionalGeneration"] and "auto_map" not in config
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "saved"))
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"lm_head.weight"}
    assert after.keys() == before.keys()


def test_folder_that_lost_a_tensor_is_refused(base, tmp_path):
    from safetensors.torch import save_file

    folder = shutil.copytree(base, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    lost = "model.connector.modality_projection.proj.weight"
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=lost):
        load_model(folder)


def test_model_of_another_kind_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'llama'; the recipes know smoldriver, smolvlm"):
        load_model(tmp_path)


def test_budgets_that_smolvlm_does_not_have_are_refused_before_training(make_trainer):
    with pytest.raises(ValueError, match="visual_tokens=4 is not a budget; choose one of \\[9\\]"):
        make_trainer(train_visual_tokens=[9, 4])


def test_uniform_grey_pictures_are_pictures(baseline, images):
    """The control with blank pictures must not lose them."""
    model, processor = baseline
    grey = {camera: picture(0).point(lambda value: 128) for camera in images}
    black = {camera: picture(0).point(lambda value: 0) for camera in images}
    lengths = [model.encode_scene(**processor.encode_scene(seen)).length for seen in (images, grey, black)]
    assert len(set(lengths)) == 1
