"""A merged folder is the base, its adapters and what was trained beside them, as one whole model."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from fakes import (
    LORA,
    MODES,
    assert_same,
    command_line,
    logits_of,
    save_smolvlm,
    scene_row,
    tiny_config,
    tiny_model,
    write_scenes,
)
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, SmolVLMForConditionalGeneration
from trl import ModelConfig, TrlParser

from modeling_smoldriver import SmolDriverForConditionalGeneration
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig
from recipes import merge_checkpoint, sft_qlora
from recipes.evaluation.provenance import check_leakage
from recipes.evaluation.publishing import model_files
from recipes.training.loading import load_model
from recipes.training.manifest import read_training_manifest

LINEAR = "text_model.layers.1.mlp.down_proj"
FORMS = {  # of adapters: the base, how they train, the dtype that they train beside
    "LoRA": ("smoldriver", LORA, torch.float32),
    "QLoRA": ("smoldriver", MODES["QLoRA, vision and connector"][0], torch.bfloat16),
    "LoRA of SmolVLM": ("smolvlm", LORA, torch.float32),
    "LoRA of position keys": ("position", LORA, torch.float32),
}


@pytest.fixture(scope="module")
def bases(config, processor, tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    for name, one in ("smoldriver", config), ("position", tiny_config(tokenizer, resampler_keys="position")):
        tiny_model(one).save_pretrained(root / name)
        processor.save_pretrained(root / name)
    (root / "smolvlm").mkdir()
    save_smolvlm(root / "smolvlm", tokenizer)
    write_scenes(root / "scenes", [scene_row(number, 4) for number in range(4)])
    return root


@pytest.fixture(scope="module")
def adapters(bases):
    """Folders of adapters as the recipe leaves them, by form; each is trained once."""
    made = {}

    def make(form: str) -> Path:
        if form not in made:
            base, options, _ = FORMS[form]
            made[form] = bases / form.replace(" ", "-")
            options = {"dtype": "float32", **options, "model_name_or_path": bases / base, "output_dir": made[form]}
            options |= {
                "scenes": bases / "scenes",
                "max_steps": 3,
                "learning_rate": 2e-2,
                "lr_scheduler_type": "constant",
            }
            options |= {"scene_packing": True, "per_device_train_batch_size": 2, "bf16": False, "use_cpu": True}
            options |= {"gradient_checkpointing": False, "save_strategy": "no", "report_to": "none"}
            options |= {"dataloader_pin_memory": False, "disable_tqdm": True}
            parser = TrlParser((sft_qlora.DataArguments, SmolDriverSFTConfig, ModelConfig))
            sft_qlora.main(*parser.parse_args_and_config(args=command_line(options)))
        return made[form]

    return make


def merge(monkeypatch, adapters: Path, output_dir: Path, dtype: str = "float32") -> None:
    words = ["--adapters", str(adapters), "--output-dir", str(output_dir), "--dtype", dtype]
    monkeypatch.setattr(sys, "argv", ["merge_checkpoint.py", *words])
    merge_checkpoint.main()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.float() - other.float()).abs().max() / other.float().abs().max()).item()


@pytest.mark.parametrize(
    "form, dtype",
    [
        ("LoRA", "float32"),
        ("LoRA", "float16"),
        ("LoRA", "bfloat16"),
        ("QLoRA", "float32"),
        ("QLoRA", "bfloat16"),
        ("LoRA of SmolVLM", "float32"),
        ("LoRA of position keys", "float32"),
    ],
)
def test_merged_model_is_the_adapters_within_the_stated_tolerance(
    form, dtype, adapters, bases, monkeypatch, tmp_path, capsys
):
    folder = adapters(form)
    capsys.readouterr()
    merge(monkeypatch, folder, tmp_path / "merged", dtype)
    base, _, trained_in = FORMS[form]
    wanted = getattr(torch, dtype)
    tolerance = max(merge_checkpoint.TOLERANCE[wanted], merge_checkpoint.TOLERANCE[trained_in])
    printed = capsys.readouterr().out
    measured = float(re.search(r"differ by at most (\S+) of the largest", printed)[1])
    assert 0 < measured <= tolerance and f"tolerance {tolerance:.0e}" in printed

    unmerged, processor = load_model(folder)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", dtype="auto").eval()
    assert {parameter.dtype for parameter in merged.parameters()} == {wanted}
    if base == "smolvlm":  # transformers' own class takes no camera_ids
        assert type(merged) is SmolVLMForConditionalGeneration
        merged, _ = load_model(tmp_path / "merged")
    else:
        assert type(AutoProcessor.from_pretrained(tmp_path / "merged")) is type(processor)
    logits = logits_of(unmerged, processor)
    assert distance(logits_of(merged, processor), logits) <= tolerance  # behind other pictures too
    assert distance(logits_of(load_model(bases / base)[0], processor), logits) > 2 * tolerance


def test_difference_is_that_of_the_largest_logit():
    unmerged = torch.tensor([[1.0, -4.0], [3.0, 2.0]])
    merged = torch.tensor([[1.0, -4.0], [2.4, 2.5]])
    assert merge_checkpoint.difference(merged, unmerged) == (pytest.approx(0.15), 0.5)


@pytest.mark.parametrize("form", ["LoRA", "QLoRA"])
def test_each_weight_is_the_bases_plus_the_product_of_the_adapters(form, adapters, bases, monkeypatch, tmp_path):
    """Re-derived from the files; under QLoRA the base's weight is the one that 4 bits leave of it."""
    merge(monkeypatch, adapters(form), tmp_path / "merged")
    merged, base = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", bases / "smoldriver"))
    trained = load_file(adapters(form) / "adapter_model.safetensors")
    a, b = (trained[f"base_model.model.model.{LINEAR}.lora_{side}.weight"] for side in "AB")
    weight = base[f"model.{LINEAR}.weight"]
    if form == "QLoRA":
        quantized = quantize_4bit(weight.bfloat16(), quant_type="nf4", compress_statistics=True)
        weight = dequantize_4bit(*quantized).float()
        base = {name: tensor.bfloat16().float() for name, tensor in base.items()}
    assert b.abs().max() > 0
    assert_same(merged[f"model.{LINEAR}.weight"], weight + LORA["lora_alpha"] / LORA["lora_r"] * b @ a)
    query = "model.vision_model.resampler.query"
    assert torch.equal(merged[query], trained[f"base_model.model.{query}"]) and not torch.equal(
        merged[query], base[query]
    )
    assert torch.equal(merged["lm_head.weight"], base["lm_head.weight"]) and merged.keys() == base.keys()


def test_merged_folder_is_whole_and_knows_its_training(adapters, monkeypatch, tmp_path):
    merge(monkeypatch, adapters("LoRA"), tmp_path / "merged")
    files, left = model_files(tmp_path / "merged")
    assert left == ["training_manifest.json"] and "model.safetensors" in files and "chat_template.jinja" in files
    manifest = read_training_manifest(tmp_path / "merged")
    assert manifest["merged"]["dtype"] == "float32" and 0 < manifest["merged"]["logit_difference"] <= 1e-4
    assert manifest["steps"] == 3 and manifest["machine"]
    with pytest.raises(ValueError, match="are training scenes"):
        check_leakage(tmp_path / "merged", ["scene0"], "test")
    auto_map = json.loads((tmp_path / "merged" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForImageTextToText"] == "modeling_smoldriver.SmolDriverForConditionalGeneration"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged"]


def test_adapters_are_not_published_unmerged(adapters):
    with pytest.raises(ValueError, match="holds adapters: merge them first, with recipes/merge_checkpoint.py"):
        model_files(adapters("LoRA"))


@pytest.mark.parametrize("tolerance", [1e-12, math.nan])
def test_nothing_is_written_beyond_the_tolerance(tolerance, adapters, monkeypatch, tmp_path):
    monkeypatch.setitem(merge_checkpoint.TOLERANCE, torch.float32, tolerance)
    with pytest.raises(SystemExit, match="^merge_checkpoint: the merged model is not the adapters': logits differ by"):
        merge(monkeypatch, adapters("LoRA"), tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_merge_that_was_stopped_leaves_no_folder_and_can_be_given_again(adapters, monkeypatch, tmp_path):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(*_):
            raise KeyboardInterrupt

        patch.setattr(merge_checkpoint, "difference", stop)
        merge(patch, adapters("LoRA"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge(monkeypatch, adapters("LoRA"), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert isinstance(load_model(tmp_path / "merged")[0], SmolDriverForConditionalGeneration)


def test_a_merge_deletes_nothing_of_a_user(adapters, monkeypatch, tmp_path):
    (tmp_path / "merged.tmp").mkdir()
    (tmp_path / "merged.tmp" / "notes.txt").write_text("theirs")
    with pytest.raises(
        SystemExit, match="^merge_checkpoint: .*merged.tmp would be written and is not of an unfinished"
    ):
        merge(monkeypatch, adapters("LoRA"), tmp_path / "merged")
    assert (tmp_path / "merged.tmp" / "notes.txt").read_text() == "theirs"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"base": ["a"]}, "base must be text or null, not"),
        ({"base": None}, "must name the base of the adapters and its dtype"),
        ({"dtype": "load"}, "must name the base of the adapters and its dtype: float32"),
        ({"quantization": "nf4"}, "quantization must be an object or null, not 'nf4'"),
        ({"quantization": {"load_in_4bit": "yes"}}, "quantization is not that of bitsandbytes: load_in_4bit must be"),
        ({"quantization": {"bnb_4bit_compute_dtype": "float99"}}, "quantization is not that of bitsandbytes"),
        ({"arguments": None}, "arguments must be an object, not None"),
    ],
)
def test_a_manifest_of_odd_types_is_one_line(changed, message, adapters, monkeypatch, tmp_path):
    folder = shutil.copytree(adapters("LoRA"), tmp_path / "adapters")
    manifest = read_training_manifest(folder) | changed
    (folder / "training_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit, match=f"^merge_checkpoint: .*training_manifest.json.*{message}") as stopped:
        merge(monkeypatch, folder, tmp_path / "out")
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize("weights", ["cut", "pickled"])
def test_damaged_adapters_are_one_line(weights, adapters, monkeypatch, tmp_path):
    folder = shutil.copytree(adapters("LoRA"), tmp_path / "adapters")
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    if weights == "cut":
        path.write_bytes(content[:-10])
    else:
        path.rename(folder / "adapter_model.bin")
    with pytest.raises(SystemExit) as stopped:
        merge(monkeypatch, folder, tmp_path / "out")
    assert ("cut short" if weights == "cut" else "pickles can hold code") in str(stopped.value)
    assert "\n" not in str(stopped.value) and not (tmp_path / "out").exists()


def test_bad_input_is_one_line(adapters, bases, monkeypatch, tmp_path):
    (tmp_path / "there").mkdir()
    without_base = shutil.copytree(adapters("LoRA"), tmp_path / "without_base")
    manifest = read_training_manifest(without_base)
    (without_base / "training_manifest.json").write_text(json.dumps({**manifest, "base": "nowhere/at/all"}))
    for folder, output_dir, message in (
        ("nowhere", tmp_path / "out", "there is no folder of adapters nowhere"),
        (bases / "smoldriver", tmp_path / "out", "holds no adapters"),
        (adapters("LoRA"), tmp_path / "there", "exists: remove it or give another --output-dir"),
        (without_base, tmp_path / "out", "there is no model folder nowhere/at/all"),
    ):
        with pytest.raises(SystemExit, match=f"^merge_checkpoint: .*{message}") as stopped:
            merge(monkeypatch, folder, output_dir)
        assert "\n" not in str(stopped.value) and not (tmp_path / "out").exists()
