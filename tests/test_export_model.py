"""The export without its packages: the graphs in torch, the class that asks them, the table, bad input.

`make export-check` exports for real, in an environment of its own.
"""

import json
import shutil
import sys
from dataclasses import asdict

import pytest
import torch
from fakes import QUESTIONS, save_smolvlm, scene_row, tiny_model, without, write_scenes
from safetensors.torch import save_file

from data_scripts.schema import load_scenes
from recipes import export_model
from recipes.evaluation.asking import choose_questions
from recipes.evaluation.predictions import Prediction, Settings
from recipes.serving import exported
from recipes.serving.export_table import OWN, Runtime, ask_side_by_side, common_beginning, table
from recipes.serving.exported import ExportedModel
from recipes.serving.exporting import LanguageGraph, VisionGraph
from recipes.training.loading import load_model


@pytest.fixture
def folder(model, processor, tmp_path, monkeypatch):
    """A folder of an export whose graphs are those that an exporter is given: torch's."""
    graphs = {"vision": VisionGraph(model, 9), "language": LanguageGraph(model)}

    def graph(folder, name, threads):
        @torch.no_grad()
        def run(inputs):
            inputs = {key: torch.from_numpy(value) for key, value in inputs.items()}
            for states in ("scene", "past"):
                keys = [key for key in inputs if key.startswith(f"{states}.")]
                if keys:
                    inputs[states] = [inputs.pop(f"{states}.{number}") for number in range(len(keys))]
            outputs = graphs[name](**inputs)
            present = {f"present.{number}": states for number, states in enumerate(outputs.pop("present", []))}
            return {key: value.numpy() for key, value in (outputs | present).items()}

        return run

    monkeypatch.setitem(exported.GRAPHS, "onnx", graph)
    processor.save_pretrained(tmp_path / "export")
    save_file({"weight": model.get_input_embeddings().weight.detach()}, tmp_path / "export" / exported.EMBEDDINGS)
    settings = export_model.settings_of(model, "onnx", "float32", None, tmp_path)
    (tmp_path / "export" / exported.SETTINGS).write_text(json.dumps(asdict(settings)))
    return tmp_path / "export"


@pytest.mark.parametrize("missing", [(), ("CAM_FRONT", "CAM_BACK")])
def test_an_exported_model_answers_as_the_model_does(folder, model, processor, images, missing):
    images = without(images, *missing)
    answering = ExportedModel(folder)
    scene = answering.encode_scene(**answering.processor.encode_scene(images))
    own = model.encode_scene(**processor.encode_scene(images))
    assert scene.length == own.length
    answers = answering.answer_tokens(scene, answering.processor, QUESTIONS, batch_size=3, max_new_tokens=6)
    assert answers == model.answer_tokens(own, processor, QUESTIONS, max_new_tokens=6)
    assert len({tuple(answer) for answer in answers}) > 1
    texts = answering.answer(scene, processor, QUESTIONS, max_new_tokens=6)
    assert texts == model.answer(own, processor, QUESTIONS, max_new_tokens=6)


def test_an_exported_model_refuses_what_it_cannot_answer(folder, images):
    answering = ExportedModel(folder)
    processor = answering.processor
    with pytest.raises(ValueError, match="this export has visual_tokens=9"):
        answering.encode_scene(**processor.encode_scene(images, visual_tokens=4))
    with pytest.raises(ValueError, match="takes one frame"):
        answering.encode_scene(**processor.encode_scenes([images, images]))
    scene = answering.encode_scene(**processor.encode_scene(images))
    for questions in ([], "Are there cars?"):
        with pytest.raises(ValueError, match="questions must be a list"):
            answering.answer(scene, processor, questions)
    with pytest.raises(ValueError, match="than the model's context"):
        answering.answer(scene, processor, ["Are there cars? " * 2000])


def test_the_table_shows_agreement_accuracy_and_time(folder, model_folder, model, tmp_path):
    scenes = write_scenes(tmp_path / "scenes", [scene_row(0, 1)], (scene_row(2, 2), scene_row(4, 2)))
    settings = Settings(str(model_folder), "torch", str(scenes), "test", max_new_tokens=6)
    asked = choose_questions(load_scenes(scenes, "test"), settings)
    loaded, processor = load_model(model_folder)
    other = tiny_model(loaded.config, seed=5).eval()
    runtimes = [Runtime("torch", loaded), Runtime("onnx", ExportedModel(folder), 1.5), Runtime("another model", other)]
    ask_side_by_side(runtimes, processor, asked, settings)
    names, same, words, *accuracies, scene, question, size = columns_of(table(runtimes))
    assert names == ["runtime", "torch", "onnx", "another model"]
    for column in (same, words):
        assert column[1:3] == ["100.0", "100.0"] and float(column[3]) < 100
    assert len(accuracies) == 3 and all(column[1] == column[2] for column in accuracies)
    assert all(float(cell) > 0 for column in (scene, question) for cell in column[1:])
    assert size == ["MB", "-", "1.5", "-"]

    alone = Runtime("torch", loaded)
    ask_side_by_side([alone], processor, asked, settings, OWN)
    assert [column[0] for column in columns_of(table([alone]))[2:5]] == ["same words %", "accuracy %", "ms/scene"]
    assert alone.answers[None] == runtimes[0].answers[None]


def columns_of(markdown: str) -> list[list[str]]:
    """The cells of each column, its head first."""
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines()]
    return [list(column) for column in zip(head, *rows, strict=True)]


def test_words_agree_up_to_the_first_that_differs():
    def answers(*texts):
        return [Prediction("m", "", "", "", "", "", [], "", "", text) for text in texts]

    first = answers("One car is parked.", "Yes.", "No.")
    assert common_beginning(first, first) == 1
    assert common_beginning(answers("One car was parked.", "Yes. No.", ""), first) == 3 / 6


# Bad input


def refusal(monkeypatch, capsys, model, output, *more) -> str:
    monkeypatch.setattr(sys, "argv", ["export_model.py", "--model", str(model), "--output-dir", str(output), *more])
    with pytest.raises(SystemExit) as caught:
        export_model.main()
    said = caught.value.code
    return said if isinstance(said, str) else capsys.readouterr().err


def test_bad_input_is_reported_in_one_line(monkeypatch, capsys, model_folder, tokenizer, tmp_path):
    def said(model, *more, output=tmp_path / "out"):
        line = refusal(monkeypatch, capsys, model, output, *more)
        assert not output.exists() or output == model_folder
        return line

    monkeypatch.setattr(export_model, "find_spec", lambda name: None)
    assert "onnx, onnxscript, onnxruntime, openvino, nncf" in said(model_folder)
    assert 'pip install "smoldriver[eval,export]"' in said(model_folder)
    monkeypatch.setattr(export_model, "find_spec", lambda name: name)
    assert "invalid choice: 'gguf'" in said(model_folder, "--formats", "gguf")
    assert said(tmp_path / "none") == f"export_model: there is no model folder {tmp_path}/none"
    assert "is the model: give another" in said(model_folder, output=model_folder)
    assert "the model has no such budget; choose from [9, 4, 1]" in said(model_folder, "--visual-tokens", "5")
    (tmp_path / "smolvlm").mkdir()
    assert "only a SmolDriver is exported" in said(save_smolvlm(tmp_path / "smolvlm", tokenizer))
    for name, added, expected in (
        ("config.json", {"model_type": "smoldriver_planner"}, "'smoldriver_planner'; the recipes know smoldriver"),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised already (bitsandbytes)"),
        ("adapter_config.json", {}, "holds adapters: merge them first"),
    ):
        changed = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(model_folder, changed)
        kept = json.loads((changed / name).read_text()) if (changed / name).exists() else {}
        (changed / name).write_text(json.dumps(kept | added))
        assert expected in said(changed)


def test_a_folder_of_something_else_is_not_written_over(folder, model, tmp_path):
    settings = export_model.settings_of(model, "onnx", "float32", None, tmp_path)
    assert exported.is_written(folder, settings) and not exported.is_written(tmp_path / "none", settings)
    fewer = export_model.settings_of(model, "onnx", "float32", 4, tmp_path)
    with pytest.raises(FileExistsError, match="an export with other visual_tokens: give another --output-dir"):
        exported.is_written(folder, fewer)
    for content, message in (
        ("{", "is damaged"),
        (json.dumps(asdict(settings) | {"format": "gguf"}), "'gguf' is unk"),
    ):
        (folder / exported.SETTINGS).write_text(content)
        with pytest.raises(ValueError, match=message):
            ExportedModel(folder)
        with pytest.raises(FileExistsError, match="exists and is not an export"):
            exported.is_written(folder, settings)
    with pytest.raises(FileNotFoundError, match="is not an exported model: it has no exported.json"):
        ExportedModel(tmp_path)
