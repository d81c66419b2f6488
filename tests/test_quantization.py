"""A user's own quantisation config: pictures are still seen, and adapters of the vision model still train."""

import json
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit
from fakes import QUESTIONS, prompt_of, save_smolvlm, scene_row, tiny_model, write_scenes
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, SmolVLMForConditionalGeneration

from modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverModel
from modeling_smoldriver.baseline_smoldriver import SmolVLMForScenes, SmolVLMSceneProcessor
from recipes import ask, evaluate_drivelm
from recipes.evaluation.predictions import read_metrics
from recipes.training.loading import load_model

PLAIN = {"load_in_4bit": True}
EVERYTHING = {"load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]}  # vision and connector too


def cosine(one, other):
    return F.cosine_similarity(one.float().flatten(), other.float().flatten(), dim=0).item()


def quantized(cls, folder, **options):
    """In training mode: in the other one bitsandbytes re-orders weights on a CPU, for which these are too small."""
    return cls.from_pretrained(folder, quantization_config=BitsAndBytesConfig(**options)).train()


@pytest.fixture
def saved(config, tmp_path):
    model = tiny_model(config)
    with torch.no_grad():  # small weights in the layers: 4 bits must not change the answer of the language model much
        for parameter in model.model.text_model.layers.parameters():
            parameter.mul_(0.4)
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.fixture
def smolvlm(saved, tokenizer, tmp_path):
    """With connector, language model and head of the SmolDriver, as in a comparison of the two."""
    folder = tmp_path / "smolvlm"
    folder.mkdir()
    model = SmolVLMForConditionalGeneration.from_pretrained(save_smolvlm(folder, tokenizer))
    shared = {name: tensor for name, tensor in saved[0].state_dict().items() if ".vision_model." not in name}
    assert not model.load_state_dict(shared, strict=False).unexpected_keys
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def stock(smolvlm, images):
    """Logits of transformers' own SmolVLM in full precision and in 4 bits, and its inputs."""
    inputs = dict(prompt_of(SmolVLMSceneProcessor.from_pretrained(smolvlm), images, QUESTIONS[0]))
    own = {name: value for name, value in inputs.items() if name != "camera_ids"}
    full = SmolVLMForConditionalGeneration.from_pretrained(smolvlm).eval()
    with torch.no_grad():
        return full(**own).logits, quantized(SmolVLMForConditionalGeneration, smolvlm, **PLAIN)(**own).logits, inputs


@torch.no_grad()
def test_a_plain_config_leaves_what_reads_the_pictures_as_it_is(saved, inputs, stock):
    model, folder = saved
    plain = quantized(SmolDriverForConditionalGeneration, folder, **PLAIN)
    in_4bit = {name for name, module in plain.named_modules() if isinstance(module, Linear4bit)}
    assert in_4bit and all(name.startswith("model.text_model.") for name in in_4bit)
    pictures = {name: inputs[name] for name in ("pixel_values", "camera_ids")}
    features = [one.get_image_features(**pictures).pooler_output for one in (plain, model)]
    assert cosine(*features) > 0.9999
    assert cosine(plain(**inputs).logits, model(**inputs).logits) >= cosine(*stock[:2]) > 0.9
    base = quantized(SmolDriverModel, folder, **PLAIN)
    names = {name for name, module in base.named_modules() if isinstance(module, Linear4bit)}
    assert names == {name.removeprefix("model.") for name in in_4bit}
    as_dict = SmolDriverForConditionalGeneration.from_pretrained(folder, quantization_config=PLAIN).train()
    assert torch.equal(as_dict(**inputs).logits, plain(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [EVERYTHING, {"load_in_8bit": True, "llm_int8_skip_modules": ["lm_head"]}], ids=str
)
def test_pictures_are_seen_also_where_their_layers_are_quantised(saved, inputs, options):
    """Activations are never cast to the dtype that a weight is stored in."""
    model, folder = saved
    everything = quantized(SmolDriverForConditionalGeneration, folder, **options)
    assert not everything.model.connector.modality_projection.proj.weight.is_floating_point()
    pictures = {name: inputs[name] for name in ("pixel_values", "camera_ids")}
    features = [one.get_image_features(**pictures).pooler_output for one in (everything, model)]
    assert cosine(*features) > 0.9


@torch.no_grad()
@pytest.mark.parametrize("options", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_the_baseline_is_no_further_from_full_precision_than_stock_smolvlm(smolvlm, stock, options):
    full, in_4bit, inputs = stock
    own = quantized(SmolVLMForScenes, smolvlm, **options)(**inputs).logits
    limit = cosine(in_4bit, full)
    assert cosine(own, full) >= limit - (0 if options is PLAIN else 1e-3)


@torch.no_grad()
def test_8_bit_layers_also_answer_outside_training(saved, processor, images):
    model = SmolDriverForConditionalGeneration.from_pretrained(
        saved[1], quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    ).eval()
    pictures = {"pixel_values": torch.randn(1, 6, 3, 48, 48), "camera_ids": torch.arange(6)[None]}
    features = [one.get_image_features(**pictures).pooler_output for one in (model, saved[0])]
    assert cosine(*features) > 0.9
    answered_by_both_ways(model, processor, images)


def answered_by_both_ways(model, processor, images):
    scene = model.encode_scene(**processor.encode_scene(images))
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    inputs = prompt_of(processor, images, QUESTIONS[0])
    expected = model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()
    assert model.answer_tokens(scene, processor, QUESTIONS[:1], **options) == expected


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_torchs_dynamic_int8_answers(saved, processor, images):
    """Its layers have a method where others have a weight."""
    model = torch.ao.quantization.quantize_dynamic(saved[0], {torch.nn.Linear}, dtype=torch.qint8)
    assert callable(model.model.connector.modality_projection.proj.weight)
    pictures = {"pixel_values": torch.randn(1, 6, 3, 48, 48), "camera_ids": torch.arange(6)[None]}
    exact = SmolDriverForConditionalGeneration.from_pretrained(saved[1])
    features = [one.get_image_features(**pictures).pooler_output for one in (model, exact)]
    assert cosine(*features) > 0.9
    model.answer(model.encode_scene(**processor.encode_scene(images)), processor, QUESTIONS[:1])


def test_every_adapter_of_a_plain_qlora_trains(saved, inputs):
    model = quantized(SmolDriverForConditionalGeneration, saved[1], **EVERYTHING)
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    still = [
        name
        for name, parameter in model.named_parameters()
        if ".lora_B." in name and (parameter.grad is None or not parameter.grad.any())
    ]
    assert any(".vision_model." in name for name, _ in model.named_parameters() if ".lora_B." in name)
    assert not still


# int8 on the CPU


def test_a_model_loaded_in_int8_is_close_to_the_exact_one_and_answers(model_folder, images):
    """Activations share one scale per call, so that what is asked together changes an answer a little."""
    model, processor = load_model(model_folder, int8=True)
    layers = {type(module).__module__ for module in model.modules() if "Linear" in type(module).__name__}
    assert any("quantized.dynamic" in module for module in layers) and "torch.nn.modules.linear" not in layers
    scene = model.encode_scene(**processor.encode_scene(images))
    assert len(model.answer(scene, processor, QUESTIONS)) == len(QUESTIONS)
    exact, _ = load_model(model_folder)
    inputs = prompt_of(processor, images, QUESTIONS[0])
    with torch.no_grad():
        logits, expected = model(**inputs).logits, exact(**inputs).logits
    assert cosine(logits, expected) > 0.99 and not torch.equal(logits, expected)


def test_a_scene_is_refused_after_an_int8_weight_was_replaced(model_folder, images):
    model, processor = load_model(model_folder, int8=True)
    scene = model.encode_scene(**processor.encode_scene(images))
    model.answer(scene, processor, QUESTIONS[:1])
    head = model.lm_head
    head.set_weight_bias(head.weight(), head.bias())
    with pytest.raises(ValueError, match="the model was changed or moved after the scene was encoded"):
        model.answer(scene, processor, QUESTIONS[:1])


@pytest.mark.parametrize(
    "files, message",
    [
        ({"adapter_config.json": {}}, "holds adapters: merge them first"),
        ({"config.json": {"quantization_config": {"quant_method": "bitsandbytes"}}}, r"quantised already \(bitsandb"),
    ],
)
def test_adapters_and_quantised_weights_are_not_quantised_again(files, message, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    for name, added in files.items():
        path = tmp_path / "model" / name
        kept = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(kept | added))
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path / "model", int8=True)


def test_int8_beside_another_dtype_is_refused(model_folder):
    with pytest.raises(ValueError, match="computes the rest in float32, not in torch.bfloat16"):
        load_model(model_folder, torch.bfloat16, int8=True)


@torch.no_grad()
def test_the_baseline_answers_in_int8(smolvlm, stock):
    model, _ = load_model(smolvlm, int8=True)
    full, _, inputs = stock
    assert cosine(model(**inputs).logits, full) > 0.99


def test_ask_and_evaluate_take_int8(model_folder, monkeypatch, capsys, tmp_path):
    scenes = write_scenes(tmp_path / "scenes", [scene_row(0, 1)], (scene_row(2, 2),))
    options = ["--model", str(model_folder), "--scenes", str(scenes), "--int8"]
    monkeypatch.setattr(sys, "argv", ["ask.py", *options])
    ask.main()
    assert "answer " in capsys.readouterr().out
    output = tmp_path / "evaluation"
    more = ["--output-dir", str(output), "--controls", "--bertscore-model", "none", "--max-new-tokens", "4"]
    monkeypatch.setattr(sys, "argv", ["evaluate_drivelm.py", *options, *more])
    evaluate_drivelm.main()
    assert read_metrics(output).settings.int8
    assert "linear layers in int8" in (output / "report.html").read_text(encoding="utf-8")
