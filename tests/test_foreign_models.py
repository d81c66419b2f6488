"""A model that names code of its own is refused or loaded with the installed classes. Its code never runs."""

import json
import shutil
import sys

import pytest
from fakes import scene_row, tiny_model, write_scenes

from recipes import ask, build_checkpoint, evaluate_drivelm, merge_checkpoint, model_report
from recipes.training.loading import load_model
from recipes.training.manifest import write_training_manifest

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()
from transformers import PretrainedConfig, PreTrainedTokenizerFast, ProcessorMixin, BaseImageProcessor
class Config(PretrainedConfig):
    model_type = "foreign"
Tokenizer, Processor, ImageProcessor = PreTrainedTokenizerFast, ProcessorMixin, BaseImageProcessor
"""


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    """Whether to run a model's code."""
    asked = []

    def note(prompt: str) -> str:  # transformers would take an error here for a no
        asked.append(prompt)
        return "n"

    monkeypatch.setattr("builtins.input", note)
    yield
    assert asked == []


@pytest.fixture(scope="module")
def own_folder(config, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    tiny_model(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), [scene_row(number, 1) for number in range(4)])


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "ran"


@pytest.fixture
def foreign(marker, tmp_path):
    """A folder of an unknown type, with code."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    content = {"model_type": "foreign", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}})
    )
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    return folder


def adapters_on(base):
    folder = base.with_name("adapters")
    write_training_manifest(folder, {"base": str(base), "dtype": "float32", "quantization": None})
    (folder / "adapter_config.json").write_text("{}")
    return folder


COMMANDS = {
    "evaluate": (evaluate_drivelm, "--model {foreign} --scenes {scenes} --split train --output-dir {out}"),
    "evaluate adapters": (evaluate_drivelm, "--model {adapters} --scenes {scenes} --split train --output-dir {out}"),
    "ask": (ask, "--model {foreign} --scenes {scenes} --split train"),
    "merge": (merge_checkpoint, "--adapters {adapters} --output-dir {out}"),
    "report": (model_report, "--model {foreign}"),
    "build on a base": (build_checkpoint, "--base {foreign} --tower {own} --output-dir {out}"),
    "build on a language model": (build_checkpoint, "--language-model {foreign} --tower {own} --output-dir {out}"),
    "build with a tower": (build_checkpoint, "--base {own} --tower {foreign} --output-dir {out}"),
}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_model_of_unknown_type_is_one_line(command, foreign, marker, own_folder, scenes, monkeypatch, tmp_path):
    module, words = COMMANDS[command]
    folders = {"foreign": foreign, "adapters": adapters_on(foreign), "scenes": scenes, "own": own_folder}
    arguments = words.format(**folders, out=tmp_path / "out").split()
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert isinstance(stopped.value.code, str) and "\n" not in stopped.value.code
    assert not marker.exists() and not (tmp_path / "out").exists()


FILES = {
    "config.json": {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Config"},
    "processor_config.json": {"AutoProcessor": "evil.Processor"},
    "tokenizer_config.json": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
    "preprocessor_config.json": {"AutoImageProcessor": "evil.ImageProcessor"},
}


@pytest.mark.parametrize("name", list(FILES))
def test_own_models_are_loaded_with_the_installed_classes_whatever_code_they_name(
    name, own_folder, marker, scenes, monkeypatch, tmp_path, capsys
):
    folder = shutil.copytree(own_folder, tmp_path / "model")
    path = folder / name
    if not path.is_file():
        path.write_text(json.dumps(json.loads((folder / "processor_config.json").read_text())["image_processor"]))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": FILES[name]}))
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    monkeypatch.setattr(sys, "argv", ["ask", "--model", str(folder), "--scenes", str(scenes), "--split", "train"])
    ask.main()
    assert capsys.readouterr().out.startswith("Q Are there barriers") and not marker.exists()
    assert type(load_model(folder)[1]) is type(load_model(own_folder)[1]) and not marker.exists()
