"""A model and a processor that do not belong together are refused, and so are weights that are not numbers."""

import json
import re
import shutil
import sys

import pytest
import torch
from fakes import command_line, save_smolvlm, scene_row, tiny_model, write_scenes
from safetensors.torch import load_file, save_file
from trl import ModelConfig, TrlParser

from modeling_smoldriver import CAMERAS, SmolDriverProcessor
from modeling_smoldriver.fitting_smoldriver import check_fit, processor_digest, record_processor
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig
from recipes import merge_checkpoint, sft_qlora, teacher_features
from recipes.training.loading import load_model


@pytest.fixture(scope="module")
def folder(config, processor, tmp_path_factory):
    """A model folder that knows its processor."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model(config)
    record_processor(model, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), [scene_row(0, 2), scene_row(1, 2)])


def train(folder, scenes, output, **more):
    options = {
        "model_name_or_path": folder,
        "scenes": scenes,
        "output_dir": output,
        "dtype": "float32",
        "max_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "no",
        **more,
    }
    parser = TrlParser((sft_qlora.DataArguments, SmolDriverSFTConfig, ModelConfig))
    sft_qlora.main(*parser.parse_args_and_config(args=command_line(options)))


def changed_processor(folder, tmp_path, change):
    """A copy of the folder whose saved processor is edited by `change`, a function of the loaded processor."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    processor = SmolDriverProcessor.from_pretrained(copy)
    change(processor)
    processor.save_pretrained(copy)
    return copy


def other_cameras(processor):
    processor.cameras = [*CAMERAS[1:], CAMERAS[0]]


def other_mean(processor):
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]


def other_size(processor):
    processor.image_processor.size = {"height": 32, "width": 32}


def other_filter(processor):
    processor.image_processor.resample = 0


def other_template(processor):
    processor.chat_template = processor.chat_template.replace("Question:", "Query:")
    assert "Query:" in processor.chat_template


def larger_tokenizer(processor):
    processor.tokenizer.add_tokens(["<more>"])


CHANGES = {
    other_cameras: "cameras ['CAM_FRONT', ",
    other_mean: "other settings of pictures than the model was saved with",
    other_size: "picture size 32, not 48",
    other_filter: "other settings of pictures than the model was saved with",
    other_template: "other settings of chat template than the model was saved with",
    larger_tokenizer: "a tokenizer with the id ",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_processor_that_is_not_the_models_is_refused(change, folder, tmp_path):
    copy = changed_processor(folder, tmp_path, change)
    with pytest.raises(ValueError, match=re.escape(CHANGES[change])) as refused:
        load_model(copy)
    assert str(copy) in str(refused.value) and "Put the processor's files back" in str(refused.value)


@pytest.mark.parametrize("grid_size", [4, 8])
def test_another_grid_is_refused_either_way(grid_size, config, image_processor, tokenizer):
    processor = SmolDriverProcessor.from_config(config, image_processor, tokenizer)
    processor.grid_size = grid_size
    with pytest.raises(ValueError, match=f"grid_size {grid_size}, not 6"):
        check_fit(tiny_model(config), processor)


def test_training_with_another_processor_is_one_line(folder, scenes, tmp_path):
    copy = changed_processor(folder, tmp_path, other_cameras)
    with pytest.raises(SystemExit, match="sft_qlora: the processor beside .* is not the model's: it has cameras"):
        train(copy, scenes, tmp_path / "run")


@pytest.mark.contract
def test_what_a_recipe_saves_knows_its_processor(folder, scenes, tmp_path, monkeypatch):
    train(folder, scenes, tmp_path / "trained")
    lora = {"use_peft": True, "lora_r": 4, "lora_dropout": 0.0}
    train(folder, scenes, tmp_path / "adapters", **lora)
    words = {"adapters": tmp_path / "adapters", "output-dir": tmp_path / "merged", "dtype": "float32"}
    monkeypatch.setattr(sys, "argv", ["merge_checkpoint.py", *command_line(words)])
    merge_checkpoint.main()
    for name in ("trained", "merged"):
        saved = json.loads((tmp_path / name / "config.json").read_text())["processor_digest"]
        processor = load_model(tmp_path / name)[1]
        assert saved == processor_digest(processor) and saved.keys() == {
            "pictures",
            "cameras",
            "chat template",
            "tokenizer",
        }


def test_a_baseline_fits_its_processor(tokenizer, tmp_path):
    model, processor = load_model(save_smolvlm(tmp_path, tokenizer))
    check_fit(model, processor)
    processor.scale_factor = 4
    with pytest.raises(ValueError, match="scale_factor 4, not 2"):
        check_fit(model, processor)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(value, folder, scenes, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights["model.connector.modality_projection.proj.weight"][0, 0] = value
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    message = "model.connector.modality_projection.proj.weight holds NaN or infinity: train or download"
    with pytest.raises(ValueError, match=message):
        load_model(copy)
    with pytest.raises(SystemExit, match=f"sft_qlora: .*copy: {message}"):
        train(copy, scenes, tmp_path / "run")


def test_a_teacher_that_is_not_numbers_is_refused_by_name(tokenizer, scenes, tmp_path, monkeypatch):
    teacher = save_smolvlm(tmp_path, tokenizer)
    weights = load_file(teacher / "model.safetensors")
    name = next(name for name in weights if name.endswith("vision_model.post_layernorm.weight"))
    weights[name].fill_(torch.nan)
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    words = {"teacher": teacher, "scenes": scenes, "output-dir": tmp_path / "features", "splits": "train"}
    monkeypatch.setattr(sys, "argv", ["teacher_features.py", *command_line(words)])
    with pytest.raises(SystemExit, match="teacher_features: .*post_layernorm.weight holds NaN or infinity"):
        teacher_features.main()
