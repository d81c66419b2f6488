"""The recipe trains what it should and nothing else, saves what it trained, resumes after a kill, and stops at NaN."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import pytest
import torch
from fakes import (
    ANSWERS,
    LORA,
    MODES,
    QUESTIONS,
    FillDisk,
    assert_same,
    command_line,
    logits_of,
    scene_row,
    sft_options,
    small_files,
    tiny_config,
    tiny_model,
    write_shards,
)
from peft import PeftModel
from processes import killed_recipe
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import ModelConfig, TrlParser

from data_scripts.schema import load_scenes, write_manifest
from modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverProcessor
from modeling_smoldriver.collator_smoldriver import group_questions
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer
from recipes import sft_qlora
from recipes.training import memory
from recipes.training.checkpoints import fault_of_checkpoint, last_whole_checkpoint
from recipes.training.loading import load_model
from recipes.training.manifest import read_training_manifest
from smoldriver_common.whole_files import sole_writer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Four frames of two scenes with 3, 5, 1 and 2 questions, in two shards."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = [scene_row(number, questions) for number, questions in enumerate((3, 5, 1, 2))]
    write_shards(folder, rows[:2], rows[2:])
    return folder


@pytest.fixture(scope="module")
def base(model_folder):
    return model_folder


@pytest.fixture
def options(base, scenes, tmp_path):
    return sft_options(base, scenes, tmp_path / "run")


def train(monkeypatch, options: dict, callback: TrainerCallback | None = None):
    """Run the recipe in this process: the trainer, and its parameters before the first step."""
    seen = {}

    def load(*arguments):
        trainer, *rest = real(*arguments)
        seen["trainer"] = trainer
        seen["before"] = {name: plain(value).clone() for name, value in trainer.model.named_parameters()}
        if callback is not None:
            trainer.add_callback(callback)
        return trainer, *rest

    with monkeypatch.context() as patch:
        real = sft_qlora.load
        patch.setattr(sft_qlora, "load", load)
        parser = TrlParser((sft_qlora.DataArguments, SmolDriverSFTConfig, ModelConfig))
        sft_qlora.main(*parser.parse_args_and_config(args=command_line(options)))
    return seen["trainer"], seen["before"]


def plain(parameter) -> torch.Tensor:
    """Also of a 4-bit weight, whose own class cannot be copied."""
    return parameter.data.as_subclass(torch.Tensor)


@pytest.mark.parametrize("mode", MODES)
def test_what_should_train_moves_and_nothing_else_and_reloads_bit_by_bit(mode, options, config, monkeypatch):
    changed, should_train = MODES[mode]
    # lora_A gets a gradient as soon as lora_B is no longer zero: in the second step
    steps = 2 if "use_peft" in changed else 1
    trainer, before = train(monkeypatch, {**options, **changed, "max_steps": steps})
    after = dict(trainer.model.named_parameters())

    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(plain(after[name]), before[name])}
    expected = {name for name in after if should_train(name)}
    assert moved == expected, f"stayed: {sorted(expected - moved)}; moved: {sorted(moved - expected)}"
    assert {name for name in after if after[name].requires_grad} == expected
    assert {after[name].dtype for name in expected} == {torch.float32}
    if "use_peft" in changed:
        linears = 7 * config.text_config.num_hidden_layers
        assert sum(name.endswith("lora_A.default.weight") for name in after) == linears
    if "load_in_4bit" in changed:
        assert sum(after[name].dtype == torch.uint8 for name in after) == linears

    assert isinstance(trainer.model, PeftModel) == ("use_peft" in changed)
    loaded, processor = load_model(options["output_dir"])
    assert not loaded.training
    expected_logits = logits_of(trainer.model, trainer.processing_class)
    assert torch.equal(logits_of(loaded, processor), expected_logits)
    assert not torch.equal(logits_of(load_model(options["model_name_or_path"])[0], processor), expected_logits)


@pytest.mark.parametrize("bf16, expected", [(True, torch.bfloat16), (False, torch.float32)])
def test_4_bit_layers_multiply_in_the_dtype_of_mixed_precision(bf16, expected, options, monkeypatch):
    """As all other layers do under autocast; without it, and when reloaded, in that of the base."""
    multiplied, product = set(), bitsandbytes.matmul_4bit

    def record(x, *rest, **by_name):
        multiplied.add(x.dtype)
        return product(x, *rest, **by_name)

    monkeypatch.setattr(bitsandbytes, "matmul_4bit", record)
    train(monkeypatch, {**options, **LORA, "load_in_4bit": True, "bf16": bf16})
    assert multiplied == {expected}
    multiplied.clear()
    logits_of(*load_model(options["output_dir"]))
    assert multiplied == {torch.float32}


@pytest.mark.parametrize("changed", [{}, LORA])
def test_each_kind_of_weight_has_its_rate(changed, options, monkeypatch):
    """Tower, matrices of hidden layers, all else; biases and norms do not decay."""
    rates = {"learning_rate": 1e-2, "tower_learning_rate": 1e-4, "muon_learning_rate": 2e-2, "weight_decay": 0.1}
    trainer, _ = train(monkeypatch, {**options, **changed, **rates})
    found = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            found[id(parameter)] = (group["lr"], group["muon"], group["weight_decay"])
    trainable = {name: found.pop(id(p)) for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert not found
    for name, (rate, muon, decay) in trainable.items():
        kept = name.endswith(("proj.weight", ".query", "fc1.weight")) or ".lora_" in name
        matrix = ".lora_" in name or (
            name.endswith(("proj.weight", "projection.weight")) and ".resampler." not in name
        )
        expected = 1e-4 if ".tower." in name else 2e-2 if matrix else 1e-2
        assert (rate, muon) == (expected, expected == 2e-2), name
        assert decay == 0.1 or not kept, name
        assert decay == 0.0 or not name.endswith("bias"), name
    assert len({rate for rate, _, _ in trainable.values()}) == 3


@pytest.mark.parametrize("sharded", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_rates_by_kind_are_refused_where_weights_are_sharded(sharded, options, monkeypatch):
    trainer, _ = train(monkeypatch, {**options, "muon_learning_rate": 1e-2})
    trainer.optimizer = None
    setattr(trainer, sharded, True)
    with pytest.raises(ValueError, match="need whole weights on each device: leave them out with FSDP and DeepSpeed"):
        trainer.create_optimizer()


@pytest.mark.parametrize("sharded", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sample_tables_are_refused_where_weights_are_sharded(sharded, options, monkeypatch):
    """The main process alone would wait for the others' shards."""
    create = SmolDriverSFTTrainer.create_accelerator_and_postprocess

    def shard(trainer):
        create(trainer)
        setattr(trainer, sharded, True)

    monkeypatch.setattr(SmolDriverSFTTrainer, "create_accelerator_and_postprocess", shard)
    with pytest.raises(SystemExit, match="sft_qlora: the tables of sample_steps need whole weights on each device"):
        train(monkeypatch, {**options, "sample_steps": 1})


def test_adapters_go_beside_a_siglip_tower_too(config, tokenizer, processor, options, tmp_path, monkeypatch):
    """Its module names hold `vision_model` twice in transformers 4.57."""

    tiny_model(tiny_config(tokenizer, "siglip")).save_pretrained(tmp_path / "siglip")
    processor.save_pretrained(tmp_path / "siglip")
    trainer, _ = train(monkeypatch, {**options, **LORA, "model_name_or_path": tmp_path / "siglip"})
    loaded, processor = load_model(options["output_dir"])
    assert torch.equal(logits_of(loaded, processor), logits_of(trainer.model, processor))


def test_the_report_knows_the_size_of_what_qlora_saves(options, monkeypatch):
    rank = {"lora_r": memory.LORA_RANK}
    train(monkeypatch, {**options, **LORA, **rank, "load_in_4bit": True, "train_connector": False})
    model, _ = load_model(options["model_name_or_path"])
    saved = load_file(options["output_dir"] / "adapter_model.safetensors").values()
    assert memory.qlora_checkpoint_bytes(model) == sum(value.nbytes for value in saved)


def test_a_folder_that_another_run_trains_in_is_refused(options, monkeypatch):
    options["output_dir"].mkdir()
    with sole_writer(options["output_dir"]), pytest.raises(SystemExit, match="sft_qlora: another process is writing"):
        train(monkeypatch, options)
    assert not list(options["output_dir"].glob("*.safetensors"))


def test_manifest_says_what_the_run_was(options, monkeypatch):
    train(monkeypatch, options)
    manifest = read_training_manifest(options["output_dir"])
    assert manifest["scene_tokens"] == ["scene0", "scene1"] and manifest["steps"] == 1
    assert manifest["base"] == str(options["model_name_or_path"]) and manifest["quantization"] is None
    assert manifest["arguments"]["learning_rate"] == 1e-2 and manifest["machine"].startswith("CPU, ")


def test_adapters_that_lost_a_tensor_are_refused_by_name(options, monkeypatch):
    from safetensors.torch import save_file

    train(monkeypatch, {**options, **LORA})
    path = options["output_dir"] / "adapter_model.safetensors"
    weights = load_file(path)
    lost = next(name for name in weights if "vision_model" in name and name.endswith("query"))
    del weights[lost]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing \\['{lost}'\\], unexpected \\[\\]"):
        load_model(options["output_dir"])
    (options["output_dir"] / "training_manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="which base they fit is unknown"):
        load_model(options["output_dir"])


def test_accumulated_gradients_equal_those_of_a_larger_batch(options, monkeypatch):
    """Sequences of 2, 2, 1, ... questions: each question weighs the same however they are batched."""
    options |= {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "max_grad_norm": 0.0}
    whole, _ = train(monkeypatch, {**options, "per_device_train_batch_size": 4})
    parts, _ = train(
        monkeypatch,
        {
            **options,
            "output_dir": options["output_dir"] / "parts",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
        },
    )
    for (name, one), (_, other) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert_same(one, other, name)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-4)  # the log keeps four digits


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


KILLED = killed_recipe("sft_qlora", "trainer_smoldriver.SmolDriverSFTConfig")


@pytest.mark.contract
@pytest.mark.parametrize("killed_at", [3, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 5))])
def test_killed_run_that_resumes_equals_one_never_killed(killed_at, options, monkeypatch, tmp_path):
    """Steps 1 to 6 with a checkpoint every two, LoRA with dropout, budgets drawn: nothing depends on the break."""
    options |= {
        **LORA,
        "lora_dropout": 0.2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 1,
        "lr_scheduler_type": "cosine",
        "train_visual_tokens": [9, 4],
    }
    never, _ = train(monkeypatch, {**options, "output_dir": tmp_path / "never"})
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(killed_at), *command_line(options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    last = last_whole_checkpoint(options["output_dir"])
    assert (last and Path(last).name) == (f"checkpoint-{killed_at // 2 * 2}" if killed_at >= 2 else None)
    again, _ = train(monkeypatch, options)
    assert losses(again) == losses(never) and len(losses(never)) == 6
    ours, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (options["output_dir"], tmp_path / "never")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()


def test_seconds_before_an_interruption_count(options, monkeypatch):
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    train(monkeypatch, options)
    kept = options["output_dir"] / "checkpoint-1" / "training_seconds.json"
    assert 0 < json.loads(kept.read_text()) < json.loads((kept.parents[1] / "checkpoint-2" / kept.name).read_text())
    kept.write_text("1000.0")
    train(monkeypatch, {**options, "resume_from_checkpoint": kept.parent})
    assert 1000 <= read_training_manifest(options["output_dir"])["seconds"] < 1100


def test_checkpoint_that_a_kill_cut_short_is_passed_over(options, monkeypatch, tmp_path):
    options |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    never, _ = train(monkeypatch, options)
    cut = options["output_dir"] / "checkpoint-4"
    state = (cut / "trainer_state.json").read_text()
    for rest in (None, state[: len(state) // 2]):
        (cut / "trainer_state.json").unlink()
        if rest is not None:
            (cut / "trainer_state.json").write_text(rest)
        assert last_whole_checkpoint(options["output_dir"]) == str(options["output_dir"] / "checkpoint-2")
        again, _ = train(monkeypatch, options)
        assert losses(again) == losses(never)
    assert last_whole_checkpoint(options["output_dir"]) == str(cut)
    assert last_whole_checkpoint(tmp_path / "nowhere") is None


class Stop(TrainerCallback):
    """Ends the training at a step, as a kill would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_float32_weights_beside_a_bfloat16_language_model_survive_saving_and_resuming(options, monkeypatch, tmp_path):
    options |= {"dtype": "bfloat16", "train_language_model": False, "max_steps": 4}
    never, _ = train(monkeypatch, {**options, "output_dir": tmp_path / "never"})
    options |= {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        train(monkeypatch, options, Stop(2))
    again, _ = train(monkeypatch, options)
    loaded, _ = load_model(options["output_dir"])
    dtypes = set()
    for (name, one), other, saved in zip(
        never.model.named_parameters(), again.model.parameters(), loaded.parameters(), strict=True
    ):
        assert one.dtype == other.dtype and torch.equal(one, other), name
        assert torch.equal(one.float(), saved), name
        dtypes.add(one.dtype)
    assert dtypes == {torch.float32, torch.bfloat16}


WAYS_TO_TRAIN = {
    "full": {},
    "full, part of an epoch": {"max_steps": -1, "num_train_epochs": 0.5},
    "LoRA and vision": {**LORA, "train_connector": False, "save_total_limit": 1},
    "QLoRA": {**LORA, "load_in_4bit": True, "dtype": "bfloat16"},
    "all with Muon": {"muon_learning_rate": 1e-2},
    "LoRA with the first step as the best": {
        **LORA,
        **{"learning_rate": 10.0, "eval_split": "train", "eval_strategy": "steps", "eval_steps": 1},
        "load_best_model_at_end": True,
    },
}


@pytest.mark.contract
@pytest.mark.parametrize("way", WAYS_TO_TRAIN)
def test_a_finished_run_given_again_takes_no_step_more(way, options, monkeypatch):
    """Also one that was killed between its last checkpoint and its manifest."""
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, **WAYS_TO_TRAIN[way]}
    trainer, _ = train(monkeypatch, options)
    folder = options["output_dir"]
    path = folder / ("adapter_model.safetensors" if "use_peft" in options else "model.safetensors")
    weights, manifest = load_file(path), read_training_manifest(folder)
    assert len(losses(trainer)) == manifest["steps"] == 2
    path.unlink()
    (folder / "training_manifest.json").unlink()
    again, _ = train(monkeypatch, options)
    assert losses(again) == losses(trainer) and read_training_manifest(folder)["steps"] == 2
    found = load_file(path)
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.fixture(scope="module")
def finished(base, scenes, tmp_path_factory):
    """The options of a run that took both its steps and kept a checkpoint of each."""
    options = sft_options(base, scenes, tmp_path_factory.mktemp("finished") / "run")
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        train(patch, options)
    return options


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed_inside(path: Path) -> None:
    """As a power cut leaves a file: one page of it, here a full one, never reached the disk."""
    content = bytearray(path.read_bytes())
    page = max(range(0, len(content), 512), key=lambda start: -content[start : start + 512].count(0))
    content[page : page + 512] = bytes(512)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_checkpoint_that_lost_or_broke_a_file_is_not_whole(name, finished, tmp_path):
    whole = finished["output_dir"] / "checkpoint-2"
    assert fault_of_checkpoint(whole) is None
    for number, damage in enumerate((Path.unlink, emptied, zeroed, cut)):
        folder = shutil.copytree(whole, tmp_path / str(number))
        damage(folder / name)
        fault = "lacks" if damage is Path.unlink else "has a damaged"
        assert fault_of_checkpoint(folder) == f"{fault} {name}"


def test_page_of_zeros_within_the_optimizer_is_found(finished, tmp_path):
    folder = shutil.copytree(finished["output_dir"] / "checkpoint-2", tmp_path / "checkpoint-2")
    zeroed_inside(folder / "optimizer.pt")
    assert fault_of_checkpoint(folder) == "has a damaged optimizer.pt"


def test_state_of_one_process_among_several_is_missed(finished, tmp_path):
    folder = shutil.copytree(finished["output_dir"] / "checkpoint-2", tmp_path / "checkpoint-2")
    for process in range(3):
        shutil.copy(folder / "rng_state.pth", folder / f"rng_state_{process}.pth")
    (folder / "rng_state.pth").unlink()
    assert fault_of_checkpoint(folder) is None
    (folder / "rng_state_1.pth").unlink()
    assert fault_of_checkpoint(folder) == "lacks rng_state_1.pth"


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_run_falls_back_to_the_last_whole_checkpoint_and_ends_the_same(
    damage, finished, monkeypatch, tmp_path, capsys
):
    again = {**finished, "output_dir": shutil.copytree(finished["output_dir"], tmp_path / "again")}
    last, before = (again["output_dir"] / f"checkpoint-{step}" for step in (2, 1))
    damage(last / "optimizer.pt")
    train(monkeypatch, again)
    fault = "lacks" if damage is Path.unlink else "has a damaged"
    assert f"{last} {fault} optimizer.pt: falling back to {before}\n" in capsys.readouterr().out
    ours, theirs = (load_file(options["output_dir"] / "model.safetensors") for options in (again, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_run_that_saved_its_model_only_does_not_resume_silently(options, monkeypatch):
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    with pytest.raises(KeyboardInterrupt):
        train(monkeypatch, options, Stop(1))
    message = (
        "sft_qlora: a run cannot resume from .*checkpoint-1, which save_only_model left without its optimizer: give"
        " another --output_dir or delete the checkpoints in .*run to start again"
    )
    for given in ({}, {"save_only_model": False}):
        with pytest.raises(SystemExit, match=message):
            train(monkeypatch, {**options, **given})


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"model_name_or_path": "other"}, "model_name_or_path was .*model[0-9]+, now .*other"),
        ({"scenes": "other"}, "scenes was .*scenes[0-9]+, now .*other"),
        ({"learning_rate": 2e-2}, r"learning_rate was 0.01, now 0.02"),
        ({"per_device_train_batch_size": 1, "seed": 3}, "seed was 42, now 3; rows_a_step was 2, now 1"),
        ({"max_steps": 4}, "max_steps was 2, now 4"),
        ({"scene_packing": False}, "scene_packing was True, now False"),
        ({"train_tower": False}, "train_tower was True, now False"),
        ({**LORA, "load_in_4bit": True}, "use_peft was False, now True; .*load_in_4bit was False, now True"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_their_names(changed, named, finished, monkeypatch, tmp_path):
    for name in {"model_name_or_path", "scenes"} & changed.keys():
        shutil.copytree(finished[name], tmp_path / "other")
        changed = {name: tmp_path / "other"}
    with pytest.raises(
        SystemExit, match=f"sft_qlora: .*checkpoint-2 is of a run with .*{named}.*another --output_dir"
    ):
        train(monkeypatch, {**finished, **changed})


def test_scenes_that_were_prepared_in_another_way_are_other_settings(options, scenes, monkeypatch, tmp_path):
    shutil.copytree(scenes, tmp_path / "scenes")
    options |= {"scenes": tmp_path / "scenes", "max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    train(monkeypatch, options)
    manifest = json.loads((tmp_path / "scenes" / "manifest.json").read_text())
    write_manifest(tmp_path / "scenes", {**manifest, "options": {"image_height": 225}})
    with pytest.raises(SystemExit, match="scenes_options was {}, now {'image_height': 225}"):
        train(monkeypatch, options)


def test_what_a_run_may_change_and_checkpoints_without_settings_do_not_stop_it(options, monkeypatch):
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        train(monkeypatch, options, Stop(1))
    kept = options["output_dir"] / "checkpoint-1" / "run_settings.json"
    assert json.loads(kept.read_text())["learning_rate"] == 1e-2
    changed = {"save_steps": 2, "logging_steps": 2, "sample_steps": 1, "dataloader_num_workers": 1}
    changed |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}  # as many rows per step
    trainer, _ = train(monkeypatch, {**options, **changed})
    assert trainer.state.global_step == 2
    assert not (options["output_dir"] / kept.name).exists()  # where it would go to the Hub with the model
    for path in options["output_dir"].glob("checkpoint-*/run_settings.json"):
        path.unlink()
    trainer, _ = train(monkeypatch, {**options, "learning_rate": 1e-3, "max_steps": 3})
    assert trainer.state.global_step == 3


@pytest.mark.parametrize("true", [True, "true"])
def test_resuming_without_a_name_takes_the_last_whole_checkpoint(true, options, monkeypatch, capsys):
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        train(monkeypatch, {**options, "resume_from_checkpoint": true}, Stop(1))  # begins where there is none
    trainer, _ = train(monkeypatch, {**options, "resume_from_checkpoint": true})
    assert trainer.state.global_step == 2
    assert f"resuming from {options['output_dir'] / 'checkpoint-1'}" in capsys.readouterr().out


def test_yaml_values_that_no_parser_checks_are_refused(options, monkeypatch, tmp_path):
    config = tmp_path / "run.yaml"
    for line, message in (
        ("dtype: bf16", "dtype='bf16' is unknown; use one of auto, float32, bfloat16, float16"),
        ("resume_from_checkpoint: nowhere", "resume_from_checkpoint=nowhere is not the folder of a whole checkpoint"),
        (f"resume_from_checkpoint: {tmp_path}", f"resume_from_checkpoint={tmp_path} is not the folder of a whole"),
        ("resume_from_checkpoint: false", "resume_from_checkpoint=False is not the folder of a whole checkpoint"),
    ):
        config.write_text(line + "\n")
        given = {name: value for name, value in options.items() if not line.startswith(name)}
        with pytest.raises(SystemExit) as stopped:
            train(monkeypatch, {"config": config, **given})
        assert str(stopped.value).startswith(f"sft_qlora: {message}")
    config.write_text("resume_from_checkpoint: true\n")
    trainer, _ = train(monkeypatch, {"config": config, **options})
    assert trainer.state.global_step == 1


def test_streamed_scenes_give_the_same_groups_and_train(options, scenes, monkeypatch):
    def groups(streaming):
        rows = group_questions(load_scenes(scenes, "train", streaming=streaming), 2, seed=0)
        return [(row["frame_token"], tuple(qa["question"] for qa in row["qa"])) for row in rows]

    assert sorted(groups(True)) == sorted(groups(False)) and len(groups(True)) == 2 + 3 + 1 + 1
    trainer, _ = train(monkeypatch, {**options, "streaming": True, "max_steps": 6})  # more than once through all
    assert len(losses(trainer)) == 6 and losses(trainer)[-1] < losses(trainer)[0]


def test_sample_tables_are_printed_and_kept(options, monkeypatch, capsys):
    train(monkeypatch, {**options, "max_steps": 2, "sample_steps": 1, "sample_questions": 2})
    tables = json.loads((options["output_dir"] / "samples.json").read_text())
    assert list(tables) == ["1", "2"]
    printed = capsys.readouterr().out
    for step, table in tables.items():
        assert f"samples at step {step}" in printed
        assert [line["question"] for line in table] == QUESTIONS[:2]
        assert [line["target"] for line in table] == ANSWERS[:2]
        assert all(f"prediction {line['prediction']}" in printed for line in table)


def test_loss_that_is_not_a_number_stops_with_the_frames_and_keeps_the_checkpoint(options, monkeypatch):
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                model.lm_head.weight.data.fill_(float("nan"))

    options |= {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(SystemExit) as stopped:
        train(monkeypatch, options, Break())
    message = str(stopped.value)
    assert "the loss is nan at step 2 for the frames frame" in message and "\n" not in message
    assert message.endswith(f"the last good checkpoint is {options['output_dir'] / 'checkpoint-2'}")
    assert not (options["output_dir"] / "model.safetensors").exists()
    checkpoint = SmolDriverForConditionalGeneration.from_pretrained(last_whole_checkpoint(options["output_dir"]))
    assert all(parameter.isfinite().all() for parameter in checkpoint.parameters())


@pytest.mark.contract
@pytest.mark.parametrize("workers", [0, 1])
def test_question_that_is_too_long_ends_the_run_with_one_line(workers, options, monkeypatch):
    """One a batch, the frame's pictures before it: nothing of the batch is left."""
    options |= {"scene_packing": False, "per_device_train_batch_size": 1, "max_pack_length": 170, "max_steps": 11}
    with pytest.raises(SystemExit) as stopped:
        train(monkeypatch, {**options, "dataloader_num_workers": workers})
    message = str(stopped.value)
    assert "no question of the frames ['frame" in message and "fits into max_pack_length=170" in message
    assert message.startswith("sft_qlora: ") and message.endswith("; no checkpoint was saved") and "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_text_of_an_older_preparation_that_may_not_stand_in_a_prompt_is_one_line(
    workers, options, monkeypatch, tmp_path
):
    row = scene_row(0, 1)
    row["qa"][0]["question"] = "<image>\nIs there a car ahead?"
    write_shards(tmp_path / "scenes", [row])
    with pytest.raises(SystemExit) as stopped:
        train(monkeypatch, {**options, "scenes": tmp_path / "scenes", "dataloader_num_workers": workers})
    message = str(stopped.value)
    assert r"frame frame0: the question holds the special token <image>: '<image>\nIs there a car ahead?'" in message
    assert message.startswith("sft_qlora: ") and "(prepare the scenes again)" in message and "\n" not in message


@pytest.mark.parametrize(
    "broken_at, options_of_saving, kept",
    [
        (
            4,
            {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1},
            "the last good checkpoint is {}/checkpoint-2",
        ),
        (2, {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}, "no checkpoint was saved"),
        (4, {"save_strategy": "no"}, "no checkpoint was saved"),
    ],
)
def test_weights_that_are_not_finite_are_not_saved(broken_at, options_of_saving, kept, options, monkeypatch):
    """Neither over the last good checkpoint nor as the model; the message names what is there."""

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == broken_at:
                model.model.connector.modality_projection.proj.weight.data[0, 0] = float("inf")

    options |= {"max_steps": 4, **options_of_saving}
    with pytest.raises(SystemExit) as stopped:
        train(monkeypatch, options, Break())
    message, folder = str(stopped.value), options["output_dir"]
    assert f"model.connector.modality_projection.proj.weight is not finite at step {broken_at}" in message
    assert message.endswith(kept.format(folder)) and "\n" not in message
    left = [path.name for path in folder.glob("checkpoint-*")]
    assert left == (["checkpoint-2"] if "checkpoint-2" in kept else [])
    assert not (folder / "model.safetensors").exists()


@pytest.mark.parametrize("torn", ["model.safetensors", "optimizer.pt"])
def test_full_disk_ends_training_with_one_line_and_the_same_command_resumes(torn, options, base, monkeypatch):
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    weights = (base / "model.safetensors").stat().st_size
    room = weights // 2 if torn == "model.safetensors" else weights * 3 // 2
    with small_files(), pytest.raises(SystemExit) as stopped:
        train(monkeypatch, options, FillDisk(room))
    message = str(stopped.value)
    assert message.startswith("sft_qlora: ") and message.endswith("; no checkpoint was saved") and "\n" not in message
    assert ("File too large" if torn == "model.safetensors" else "perhaps for want of disk space") in message
    trainer, _ = train(monkeypatch, options)
    assert trainer.state.global_step == 2


def test_sample_tables_change_nothing_under_qlora(options, monkeypatch, tmp_path):
    """bitsandbytes on a CPU swaps its kernel at the first pass in eval mode: one without gradients."""
    options |= {**MODES["QLoRA, vision and connector"][0], "max_steps": 4}
    without, _ = train(monkeypatch, options)
    tables, _ = train(monkeypatch, {**options, "output_dir": tmp_path / "tables", "sample_steps": 1})
    assert losses(tables) == losses(without)
    for (name, one), (_, other) in zip(tables.model.named_parameters(), without.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"model_name_or_path": "nowhere/at/all"}, "sft_qlora: there is no model folder nowhere/at/all"),
        ({"scenes": "nowhere"}, "sft_qlora: there is no folder nowhere: prepare the scenes first"),
        ({"eval_split": "test"}, "sft_qlora: split 'test' of"),
        ({"push_to_hub": True}, "sft_qlora: push_to_hub would publish weights without an evaluation"),
        (
            {"report_to": "tensorboard"},
            "sft_qlora: report_to=tensorboard is not installed: install it, or give report",
        ),
        ({"load_in_8bit": True}, "sft_qlora: load_in_8bit=True is not offered: use load_in_4bit"),
        ({"model_revision": "v2"}, "sft_qlora: model_revision=v2 is not offered: download that revision and give"),
        (
            {"lora_modules_to_save": ["lm_head"]},
            "sft_qlora: lora_modules_to_save=['lm_head'] is not offered: train_v",
        ),
        ({"bnb_4bit_quant_storage": "uint8"}, "sft_qlora: bnb_4bit_quant_storage=uint8 is not offered: leave it out"),
    ],
)
def test_bad_input_is_one_line(changed, message, options, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        train(monkeypatch, {**options, **changed})
    assert str(stopped.value).startswith(message) and "\n" not in str(stopped.value)


@pytest.mark.parametrize("lora", [False, True])
def test_a_trained_folder_has_a_short_draft_of_a_card(lora, options, monkeypatch):
    """And not TRL's or PEFT's, whose examples do not run with these models."""
    train(monkeypatch, {**options, "use_peft": lora, "save_strategy": "steps", "save_steps": 1})
    run = Path(options["output_dir"])
    for folder in (run, run / "checkpoint-1"):
        card = (folder / "README.md").read_text()
        assert card.startswith(f"---\nlibrary_name: transformers\n---\n\n# {folder.name}: a draft\n")
        assert "must not drive a car" in card and len(card) < 600
        assert "TRL" not in card and "More Information Needed" not in card


def test_several_gpus_in_one_process_are_refused(options, monkeypatch):
    monkeypatch.setattr(SmolDriverSFTConfig, "n_gpu", 4)
    with pytest.raises(SystemExit, match="sft_qlora: one process would train on 4 GPUs: set CUDA_VISIBLE_DEVICES=0"):
        train(monkeypatch, options)


@pytest.mark.parametrize("streaming", [False, True])
def test_most_views_without_a_question_about_one_direction_is_refused(streaming, options, monkeypatch, tmp_path):
    row = scene_row(0, 4)
    write_shards(tmp_path / "scenes", [row | {"qa": row["qa"][3:]}])  # "Predict the behavior of the ego vehicle."
    options |= {"scenes": tmp_path / "scenes", "streaming": streaming}
    with pytest.raises(SystemExit, match="sft_qlora: most_views=2 asks only questions about one direction .*none"):
        train(monkeypatch, {**options, "most_views": 2})


def test_run_that_would_write_over_its_base_is_refused(options, base, monkeypatch, tmp_path):
    (tmp_path / "same").symlink_to(base)
    with pytest.raises(SystemExit, match="sft_qlora: the output folder .*same is the model to start from: give anoth"):
        train(monkeypatch, {**options, "output_dir": tmp_path / "same"})
    options |= {"save_strategy": "steps", "save_steps": 1}
    train(monkeypatch, options)
    checkpoint = options["output_dir"] / "checkpoint-1"
    trainer, _ = train(monkeypatch, {**options, "resume_from_checkpoint": checkpoint})
    assert trainer.state.global_step == 1


def launch(options: dict, *launcher: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "recipes/sft_qlora.py", *command_line(options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


PAIR = ("torch.distributed.run", "--nproc_per_node", "2")  # `accelerate launch --cpu` starts one process


@pytest.mark.slow
def test_two_processes_train_as_one_at_the_same_global_batch(options, tmp_path):
    # Three steps: the fourth, the epoch's last, has one sequence, which two processes double to have one each.
    options |= {"max_steps": 3, "optim": "sgd", "save_strategy": "steps", "save_steps": 3}
    one, two = tmp_path / "one", tmp_path / "two"
    single = ("accelerate.commands.launch", "--config_file", "recipes/accelerate_configs/single.yaml", "--cpu")
    launch({**options, "output_dir": one}, *single)
    launch({**options, "per_device_train_batch_size": 1, "output_dir": two}, *PAIR)
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    for name in weights[0]:
        assert_same(weights[1][name], weights[0][name], name)
    states = [json.loads((folder / "checkpoint-3" / "trainer_state.json").read_text()) for folder in (one, two)]
    logged = [[entry["loss"] for entry in state["log_history"]] for state in states]
    assert logged[1] == pytest.approx(logged[0], abs=1e-5) and len(logged[0]) == 3


@pytest.mark.slow
def test_two_processes_evaluate_as_one(options, tmp_path):
    """Seven rows of questions, so that the last batch of two processes repeats some."""
    options |= {"learning_rate": 0.0, "eval_split": "train", "eval_strategy": "steps", "eval_steps": 1}
    options |= {"per_device_eval_batch_size": 2, "save_strategy": "steps", "save_steps": 1}
    found = []
    for name, launcher in ("one", ("torch.distributed.run", "--nproc_per_node", "1")), ("two", PAIR):
        launch({**options, "output_dir": tmp_path / name}, *launcher)
        checkpoint = tmp_path / name / "checkpoint-1"
        assert len(list(checkpoint.glob("rng_state*.pth"))) == (2 if name == "two" else 1)
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        found += [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(found) == 2 and found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.slow
def test_two_processes_share_a_stream(options):
    """Of two shards one holds 5 sequences and one 2: neither process waits for the other at its end."""
    options |= {"max_steps": 6, "streaming": True, "per_device_train_batch_size": 1}
    launch({**options, "save_strategy": "steps", "save_steps": 6}, *PAIR)
    state = json.loads((options["output_dir"] / "checkpoint-6" / "trainer_state.json").read_text())
    logged = [entry["loss"] for entry in state["log_history"]]
    assert len(logged) == 6 and logged[-1] < logged[0]


FRESH = """
import sys, torch
from safetensors.torch import save_file
sys.path.insert(0, "tests")
from fakes import logits_of
from recipes.training.loading import load_model
model, processor = load_model(sys.argv[1])
save_file({"logits": logits_of(model, processor)}, sys.argv[2])
"""


@pytest.mark.slow
def test_qlora_reloads_bit_by_bit_in_a_fresh_process(options, monkeypatch, tmp_path):
    trainer, _ = train(monkeypatch, {**options, **MODES["QLoRA, vision and connector"][0], "max_steps": 2})
    arguments = [sys.executable, "-c", FRESH, str(options["output_dir"]), str(tmp_path / "logits.safetensors")]
    subprocess.run(arguments, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    logits = load_file(tmp_path / "logits.safetensors")["logits"]
    assert torch.equal(logits, logits_of(trainer.model, SmolDriverProcessor.from_pretrained(options["output_dir"])))
