"""No command writes into a folder that it reads from."""

import sys

import pytest
from fakes import scene_row, write_scenes

from data_scripts import prepare_captions, prepare_drivelm
from recipes import teacher_features
from recipes.training.run import TrainingRun


def refusal(monkeypatch, module, words: str) -> str:
    monkeypatch.setattr(sys, "argv", [module.__name__, *words.split()])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    return str(stopped.value.code)


def test_preparation_and_features_keep_apart_from_their_sources(monkeypatch, tmp_path):
    folder = write_scenes(tmp_path / "scenes", [scene_row(0, 1)])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for module, words, what in (
        (
            prepare_drivelm,
            f"--from-paper-hub {folder} {tmp_path} --output-dir {folder}",
            "a folder of --from-paper-hub",
        ),
        (prepare_captions, f"--world {folder} --output-dir {folder}/../scenes", "the --world"),
        (teacher_features, f"--teacher a/b --scenes {folder} --output-dir {folder}", "the folder of scenes"),
        (teacher_features, f"--teacher {folder} --scenes s --output-dir {folder}", "the teacher"),
    ):
        assert refusal(monkeypatch, module, words).endswith(f" is {what}: give another")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_training_keeps_apart_from_its_scenes(tmp_path):
    from trl import ModelConfig

    from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig
    from recipes.sft_qlora import DataArguments

    training = SmolDriverSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(ValueError, match="the output folder .* is the folder of scenes: give another"):
        TrainingRun.begin("sft", DataArguments(scenes=str(tmp_path)), training, ModelConfig("user/model"))
