"""Every YAML is read by its recipe, and says what is true."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from trl import ModelConfig, TrlParser

from modeling_smoldriver import SmolDriverConfig
from modeling_smoldriver.grpo_smoldriver import SmolDriverGRPOConfig
from modeling_smoldriver.guidance_smoldriver import PlannerTrainingConfig
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig
from recipes import grpo, model_report, sft_qlora, train_planner
from recipes.training import memory
from recipes.training.loading import CLASSES

ROOT = Path(__file__).parents[1]
PAPER = {
    **{"learning_rate": 2e-5, "max_steps": 11_000, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1},
    **{"scene_packing": False, "lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.05, "use_peft": True},
    **{"load_in_4bit": True, "use_bnb_nested_quant": True, "bnb_4bit_quant_type": "nf4", "train_vision": True},
}
"""One question per step; what the paper names."""


def test_every_config_is_read_by_the_recipe():
    paths = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
    others = ("distill", "planner", "grpo")  # of other recipes
    paths = [path for path in paths if not any(name in path.name for name in others)]
    assert len(paths) >= 5
    for path in paths:
        parser = TrlParser((sft_qlora.DataArguments, SmolDriverSFTConfig, ModelConfig))  # keeps the last file's values
        values = yaml.safe_load(path.read_text())
        on_cpu = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false"]  # these depend on the machine
        data, training, model = parser.parse_args_and_config(args=["--config", str(path), *on_cpu])
        assert data.scenes == values["scenes"] and training.max_steps == values["max_steps"]
        assert model.use_peft == values.get("use_peft", False)


def test_every_planners_config_is_read_by_the_recipe():
    paths = sorted((ROOT / "recipes" / "configs").rglob("planner_*.yaml"))
    assert len(paths) >= 4
    for path in paths:
        parser = TrlParser((train_planner.DataArguments, PlannerTrainingConfig, ModelConfig))
        values = yaml.safe_load(path.read_text())
        data, training, model = parser.parse_args_and_config(args=["--config", str(path), "--use_cpu", "true"])
        assert data.scenes == values["scenes"] and training.max_steps == values["max_steps"]
        assert training.joint == ("joint_weight" in values) == training.train_vision


def test_every_grpo_config_is_read_by_the_recipe():
    paths = sorted((ROOT / "recipes" / "configs").rglob("*grpo*.yaml"))
    assert len(paths) >= 2
    for path in paths:
        parser = TrlParser((grpo.DataArguments, SmolDriverGRPOConfig, ModelConfig))
        values = yaml.safe_load(path.read_text())
        on_cpu = ["--use_cpu", "true", "--bf16", "false", "--fp16", "false"]
        data, training, model = parser.parse_args_and_config(args=["--config", str(path), *on_cpu])
        assert data.scenes == values["scenes"] and training.max_steps == values["max_steps"]
        assert data.question_types == ["yes_no", "listing"] and not data.shuffle_rewards
        assert model.use_peft and training.num_generations == 8


def test_both_contestants_train_with_the_papers_values_and_the_same_ones():
    """By the commands in the head of the paper's file, one for each contestant."""
    path = ROOT / "recipes" / "configs" / "paper" / "sft_qlora_2b.yaml"
    commands = re.findall(r"accelerate launch(?:.*\\\n)*.*", path.read_text())
    parsed = []
    for command in commands:
        words = command.replace("\\\n#", "").split()
        words = words[words.index("recipes/sft_qlora.py") + 1 :]
        assert words[:2] == ["--config", str(path.relative_to(ROOT))]
        words[1] = str(path)
        parser = TrlParser((sft_qlora.DataArguments, SmolDriverSFTConfig, ModelConfig))
        given = parser.parse_args_and_config(args=[*words, "--use_cpu", "true", "--fp16", "false"])
        parsed.append({name: value for part in given for name, value in vars(part).items()})
    smoldriver, smolvlm = parsed
    assert {name: smoldriver[name] for name in PAPER} == PAPER
    assert smoldriver["lora_target_modules"] is None  # all linear layers of the language model
    compared = {name for name in smoldriver if smoldriver[name] != smolvlm[name]} - {
        "logging_dir",
        "accelerator_config",
    }
    assert {name for name in compared if isinstance(smoldriver[name], (str, int, float, list, bool, type(None)))} == {
        "model_name_or_path",
        "output_dir",
    }


@pytest.mark.parametrize(
    "name, smolvlm, mode, tokens",
    [
        ("sft_qlora_2b", False, "QLoRA and vision", 640),
        ("sft_qlora_2b", True, "QLoRA and vision", 640),
        ("sft_vision_2b", False, "vision, language model frozen", 1024),
        ("sft_full_2b", False, "full", 1024),
    ],
)
def test_head_of_a_paper_config_states_the_memory_that_the_report_computes(name, smolvlm, mode, tokens):
    text = (ROOT / "recipes" / "configs" / "paper" / f"{name}.yaml").read_text()
    config = model_report.smolvlm_config() if smolvlm else SmolDriverConfig()
    with torch.device("meta"):
        model = CLASSES[config.model_type][0](config)
    size = sum(memory.training_memory(model, tokens)[mode].values())
    whose, options = (" of the baseline", "--smolvlm ") if smolvlm else ("", "")
    options += "--tokens 640" if tokens == 640 else ""  # 1024 is the report's default
    command = re.escape(f"model_report.py {options}".strip())
    assert re.search(rf"# Memory{whose}, computed: {size / 1e9:.1f} GB[^.]*{command}( prints|\))", text)


@pytest.mark.parametrize("name", ["single", "ddp", "fsdp2", "zero3"])
def test_accelerate_reads_its_config(name):
    config = load_config_from_file(str(ROOT / "recipes" / "accelerate_configs" / f"{name}.yaml"))
    kinds = {"single": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[name]
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    if name == "zero3":
        assert config.deepspeed_config["zero_stage"] == 3
