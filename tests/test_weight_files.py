"""Weights that are cut short, missing or pickled are one line in every command that loads or publishes them."""

import pickle
import re
import shutil
import sys

import pytest
import torch
from fakes import scene_row, write_scenes
from safetensors.torch import save_file

from recipes import ask, evaluate_drivelm, merge_checkpoint, push_to_hub
from recipes.training.manifest import write_training_manifest
from smoldriver_common.weight_files import check_weight_files


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), [scene_row(number, 1) for number in range(4)])


def cut(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return r"model\.safetensors is cut short or damaged \(.*\): copy or save it again"


def sparse(folder):
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(6_000_000_000)
    return r"model\.safetensors is cut short or damaged"


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    return "has no weights .*, only pytorch_model.bin: pickles can hold code and are not read"


def lacking(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    return "lacks model-00002-of-00002.safetensors: it is not a whole model folder"


def odd_index(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')
    return "model.safetensors.index.json is not an index of weights"


def as_base(folder):
    """Adapters on that model."""
    adapters = folder.with_name("adapters")
    write_training_manifest(adapters, {"base": str(folder), "dtype": "float32", "quantization": None})
    (adapters / "adapter_config.json").write_text("{}")
    return adapters


COMMANDS = {
    "evaluate": (
        evaluate_drivelm,
        lambda model, scenes, out: ["--model", model, "--scenes", scenes, "--split", "train"],
    ),
    "ask": (ask, lambda model, scenes, out: ["--model", model, "--scenes", scenes, "--split", "train"]),
    "push": (push_to_hub, lambda model, scenes, out: ["--model", model, "--evaluation", scenes, "--dry-run"]),
    "merge": (merge_checkpoint, lambda model, scenes, out: ["--adapters", as_base(model)]),
}
MORE = {"push": ["--repo-id", "a/b", "--data", "synthetic"], "ask": []}


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("damage", [cut, sparse, pickled, lacking, odd_index])
def test_damaged_weights_are_one_line(damage, command, model_folder, scenes, monkeypatch, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    message = damage(folder)
    module, words = COMMANDS[command]
    arguments = words(folder, scenes, tmp_path) + MORE.get(command, ["--output-dir", tmp_path / "out"])
    monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert "\n" not in str(stopped.value)
    if not (command == "push" and damage is pickled):  # which lists all that is missing
        assert re.search(message, str(stopped.value)), stopped.value


def test_whole_weights_pass(tmp_path):
    for name in "ab":
        save_file({name: torch.zeros(3)}, tmp_path / f"model-{name}.safetensors")
    index = '{"weight_map": {"a": "model-a.safetensors", "b": "model-b.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    check_weight_files(tmp_path)
