"""The evaluation asks the model and each control what it says, resumes where it stopped, and writes its results."""

import collections
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from fakes import command_line, evaluate, generated, scene_row, small_files, tiny_model, write_scenes, written
from PIL import Image
from transformers import GenerationConfig

from data_scripts.schema import load_scenes
from data_scripts.sources.drivelm_json import read_drivelm
from modeling_smoldriver import CAMERAS
from recipes import ask, evaluate_drivelm, model_report
from recipes.evaluation import asking, provenance, report
from recipes.evaluation.comparison import read_evaluation
from recipes.evaluation.contestants import ModelAnswers
from recipes.evaluation.predictions import Contestant, Settings, read_metrics
from recipes.evaluation.provenance import check_leakage
from recipes.training.manifest import write_training_manifest
from smoldriver_common.whole_files import LOCK, sole_writer

ROOT = Path(__file__).parents[1]
CONTROLS = ["majority", "other_scene_images", "text_only", "blank_images", "permuted_cameras"]
NEW_TOKENS = 6
SETTINGS = Settings(model="m", name="m", scenes="s", split="train", max_new_tokens=NEW_TOKENS)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two scenes of two frames each."""
    frames = [scene_row(number, questions) for number, questions in enumerate((3, 4, 1, 2))]
    return write_scenes(tmp_path_factory.mktemp("scenes"), frames)


@pytest.fixture
def arguments(model_folder, scenes, tmp_path):
    return {
        "model": model_folder,
        "scenes": scenes,
        "split": "train",
        "output-dir": tmp_path / "eval",
        "max-new-tokens": NEW_TOKENS,
        "bertscore-model": "none",
    }


def test_model_and_controls_answer_what_they_are_shown(arguments, scenes, config, processor, monkeypatch):
    metrics, predictions = evaluate(monkeypatch, arguments, "--controls", *CONTROLS)
    by_model = collections.defaultdict(dict)
    for row in predictions:
        by_model[row["model"]][row["id"]] = row["prediction"]
    assert list(by_model) == ["smoldriver", *CONTROLS]

    model, frames = tiny_model(config), list(load_scenes(scenes, "train"))
    counts = collections.Counter((qa["question"], qa["answer"]) for frame in frames for qa in frame["qa"])
    for number, frame in enumerate(frames):
        images = {camera: frame[camera] for camera in CAMERAS}
        shifted = dict(zip(CAMERAS, [*list(images.values())[1:], images[CAMERAS[0]]], strict=True))
        other = frames[(number + 2) % 4]  # of the other scene
        shown = {
            "smoldriver": images,
            "other_scene_images": {camera: other[camera] for camera in CAMERAS},
            "text_only": None,
            "blank_images": dict.fromkeys(CAMERAS, Image.new("RGB", (64, 36), (128, 128, 128))),
            "permuted_cameras": shifted,
        }
        ids = [f"{frame['frame_token']}_{index}" for index in range(len(frame["qa"]))]
        questions = [qa["question"] for qa in frame["qa"]]
        for name, pictures in shown.items():
            scene = model.encode_scene(**processor.encode_scene(pictures))
            expected = model.answer(scene, processor, questions, max_new_tokens=NEW_TOKENS)
            assert [by_model[name][question] for question in ids] == expected, name
        for question, key in zip(questions, ids, strict=True):
            answer = by_model["majority"][key]
            assert counts[question, answer] == max(counts[question, qa["answer"]] for f in frames for qa in f["qa"])
    assert len({tuple(answers.values()) for answers in by_model.values()}) == 6


class Shown:
    """A processor and model that note which pictures and description they are given."""

    cameras, generation_config = CAMERAS, GenerationConfig()

    def encode_scene(self, images=None, description=None, visual_tokens=None) -> dict:
        if images is not None:  # as a processor; as a model it is given nothing
            self.images, self.description = images, description
        return {}

    def answer_tokens(self, scene, processor, questions, **options) -> list[list[int]]:
        return [[1]] * len(questions)

    def batch_decode(self, tokens, skip_special_tokens) -> list[str]:
        return ["Yes."] * len(tokens)


def test_pictures_of_another_scene_stand_behind_the_frames_own_description(tmp_path):
    frames = [scene_row(number, 1) | {"scene_description": f"drive {number}"} for number in range(4)]
    rows, shown = load_scenes(write_scenes(tmp_path / "scenes", frames), "train"), Shown()
    settings = replace(SETTINGS, use_scene_description=True)
    answer = ModelAnswers(Contestant("m", "other_scene_images"), shown, shown, rows, settings)
    for number in range(4):
        answer(number, ["Are there cars to the front of the ego car?"])
        assert shown.description == f"drive {number}"
        assert shown.images["CAM_FRONT"].tobytes() == rows[(number + 2) % 4]["CAM_FRONT"].tobytes()


def test_answers_that_were_cut_are_counted(scenes, config, processor):
    """Those with as many tokens as allowed and without an end token."""
    model, rows = tiny_model(config), load_scenes(scenes, "train")
    images = {camera: rows[1][camera] for camera in CAMERAS}
    questions = [qa["question"] for qa in rows[1]["qa"]]
    plain = [generated(model, processor, images, question, max_new_tokens=NEW_TOKENS) for question in questions]
    ends = {plain[0][-1], plain[1][1]}
    model.generation_config.eos_token_id = list(ends)
    uncut = [bool(ends & set(tokens)) for tokens in plain]
    assert uncut[:2] == [True, True] and not all(uncut)
    answer = ModelAnswers(Contestant("m"), model, processor, rows, SETTINGS)
    assert answer(1, questions)[1].cut == uncut.count(False)


def test_an_answer_with_object_tags_is_not_cut_unless_asked_for(drivelm_sample, monkeypatch):
    """By a count of digits, words and signs, which SmolLM2's tokens are about."""
    frames, _ = read_drivelm([drivelm_sample / "train_sample.json"], drop_object_tags=False, keep_unlabelled=True)
    lengths = [len(re.findall(r"\d|[^\W\d_]+|[^\w\s]|_", qa["answer"])) for frame in frames for qa in frame["qa"]]
    words = command_line({"model": "m", "scenes": "s", "output-dir": "o"})
    monkeypatch.setattr(sys, "argv", ["evaluate_drivelm.py", *words])
    assert 128 < max(lengths) < evaluate_drivelm.parse_arguments().max_new_tokens


def test_results_have_the_agreed_names(arguments, monkeypatch, capsys):
    metrics, predictions = evaluate(monkeypatch, arguments, "--controls", *CONTROLS)
    assert list(metrics["results"]) == ["smoldriver", *CONTROLS]
    for result in metrics["results"].values():
        assert result["overall"]["count"] == 10 and 0 <= result["overall"]["accuracy"] <= 1
        assert {"yes_no", "listing", "status", "behavior"} <= set(result)
        assert sum(result[kind]["count"] for kind in ("yes_no", "listing", "status", "behavior")) == 10
        assert "bleu" in result["overall"] and "listing_f1" in result["listing"]
    assert metrics["info"]["left_out_controls"] == {}
    cut = metrics["info"]["cut_answers"]
    assert list(cut) == list(metrics["results"]) and cut["smoldriver"] > cut["majority"] == 0
    assert list(predictions[0]) == [
        *("model", "id", "scene_token", "frame_token", "task", "type", "tag", "question", "reference", "prediction")
    ]
    assert len(predictions) == 6 * 10
    printed = capsys.readouterr().out
    assert "closed accuracy" in printed and all(f"{name} " in printed for name in ["smoldriver", *CONTROLS])
    assert "4 frames, 10 questions" in printed
    assert f"{cut['smoldriver']} answers of smoldriver were cut at --max-new-tokens {NEW_TOKENS}" in printed


def test_metrics_are_read_as_they_were_measured(arguments, monkeypatch):
    """With the settings' types, not as text."""
    arguments |= {"max-frames": 2, "visual-tokens": 4}
    written_metrics, _ = evaluate(monkeypatch, arguments, "--controls", "majority", "--budgets", "9", "4")
    metrics = read_metrics(arguments["output-dir"])
    assert metrics.as_json() == written_metrics
    assert metrics.settings == Settings(
        model=str(arguments["model"]),
        name="smoldriver",
        scenes=str(arguments["scenes"]),
        split="train",
        max_frames=2,
        visual_tokens=4,
        max_new_tokens=NEW_TOKENS,
    )
    assert list(metrics.budgets) == [9, 4] and metrics.leakage.kind == "unknown"


def test_frames_and_questions_can_be_drawn(arguments, monkeypatch):
    arguments |= {"max-frames": 2, "questions-per-frame": 2, "visual-tokens": 4}
    metrics, predictions = evaluate(monkeypatch, arguments, "--controls")
    assert [row["frame_token"] for row in predictions] == ["frame0", "frame0", "frame2"]
    assert list(metrics["results"]) == ["smoldriver"]


def stop_at_frame(monkeypatch, number: int) -> list[int]:
    """Interrupt the evaluation at the n-th frame that is asked about; the frames asked so far."""
    asked, answer = [], ModelAnswers.__call__

    def stopping(self, index, questions):
        if len(asked) == number:
            raise KeyboardInterrupt
        asked.append(index)
        return answer(self, index, questions)

    monkeypatch.setattr(ModelAnswers, "__call__", stopping)
    return asked


def test_stopped_evaluation_resumes_and_ends_the_same(arguments, monkeypatch, tmp_path):
    controls = ("--controls", "text_only")
    metrics, predictions = evaluate(monkeypatch, {**arguments, "output-dir": tmp_path / "whole"}, *controls)
    monkeypatch.setattr(asking, "CHUNK", 1)
    with monkeypatch.context() as patch:
        asked = stop_at_frame(patch, 6)  # all of the model's, half of the control's
        with pytest.raises(KeyboardInterrupt):
            evaluate(patch, arguments, *controls)
        assert asked == [0, 1, 2, 3, 0, 1] and not (arguments["output-dir"] / "metrics.json").exists()
    with monkeypatch.context() as patch:
        asked = stop_at_frame(patch, 100)
        again, same = evaluate(patch, arguments, *controls)
    assert asked == [2, 3] and same == predictions
    assert again["results"] == metrics["results"]
    left = sorted(path.name for path in arguments["output-dir"].iterdir() if path.name != LOCK)
    assert left == ["figures", "metrics.json", "predictions.parquet", "report.html"]


def test_other_weights_or_settings_do_not_resume_from_old_answers(arguments, config, processor, monkeypatch, tmp_path):
    monkeypatch.setattr(asking, "CHUNK", 1)
    arguments["model"] = tmp_path / "model"
    processor.save_pretrained(arguments["model"])
    for seed in (0, 1):  # the model is trained on between the two
        tiny_model(config, seed).save_pretrained(arguments["model"])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            asked = stop_at_frame(patch, 3)
            evaluate(patch, arguments, "--controls")
        assert asked == [0, 1, 2]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        asked = stop_at_frame(patch, 3)
        evaluate(patch, {**arguments, "visual-tokens": 1}, "--controls")
    assert asked == [0, 1, 2]


def test_two_evaluations_do_not_write_into_one_folder(arguments, monkeypatch, tmp_path):
    message = f"^evaluate_drivelm: another process is writing {arguments['output-dir']}: wait for it, stop it or give"
    with sole_writer(arguments["output-dir"]), pytest.raises(SystemExit, match=message):
        evaluate(monkeypatch, arguments, "--controls")
    assert {path.name for path in arguments["output-dir"].iterdir()} <= {LOCK}
    evaluate(monkeypatch, arguments, "--controls")
    with sole_writer(tmp_path / "both"), pytest.raises(SystemExit, match="another process is writing"):
        compared = ["--compare", str(arguments["output-dir"]), "--output-dir", str(tmp_path / "both")]
        monkeypatch.setattr(sys, "argv", ["evaluate_drivelm.py", *compared])
        evaluate_drivelm.main()


def stopped_at_the_first_frame(monkeypatch, arguments: dict) -> bool:
    """Whether an evaluation that is stopped after one frame began with the first frame."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        asked = stop_at_frame(patch, 1)
        evaluate(patch, arguments, "--controls")
    return asked == [0]


def test_scenes_prepared_anew_do_not_resume_from_old_answers(arguments, monkeypatch, tmp_path):
    """Into the same folder, with other options."""
    monkeypatch.setattr(asking, "CHUNK", 1)
    frames = [scene_row(number, 2) for number in range(4)]
    arguments["scenes"] = write_scenes(tmp_path / "scenes", frames, object_tags="keep")
    assert stopped_at_the_first_frame(monkeypatch, arguments)
    assert not stopped_at_the_first_frame(monkeypatch, arguments)
    write_scenes(tmp_path / "scenes", frames, object_tags="drop")
    assert stopped_at_the_first_frame(monkeypatch, arguments)


def test_adapters_on_another_base_do_not_resume_from_old_answers(tmp_path):
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    base.mkdir()
    write_training_manifest(adapters, {"base": str(base), "dtype": "float32", "quantization": None})
    (adapters / "adapter_config.json").write_text("{}")
    settings = replace(SETTINGS, model=str(adapters), scenes=str(tmp_path))
    folders = set()
    for content in (b"one", b"other"):
        (base / "model.safetensors").write_bytes(content)
        folders.add(asking.unfinished_folder(tmp_path, settings))
    assert len(folders) == 2


def test_old_scores_never_stand_beside_new_answers(arguments, monkeypatch):
    """An evaluation into a finished folder, stopped when its answers are written and its scores are not."""

    def stop(*_):
        raise KeyboardInterrupt

    evaluate(monkeypatch, arguments, "--controls")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(report, "write_report", stop)
        evaluate(patch, {**arguments, "visual-tokens": 1}, "--controls")
    with pytest.raises(FileNotFoundError, match="is not a finished evaluation: it has no metrics.json"):
        read_evaluation(arguments["output-dir"])


def test_questions_without_true_answers_are_refused_before_the_model_is_loaded(arguments, monkeypatch, tmp_path):
    frames = [scene_row(number, 2) for number in range(2)]
    frames[1]["qa"][1]["answer"] = ""
    arguments |= {"scenes": write_scenes(tmp_path / "scenes", frames), "model": tmp_path / "nowhere" / "model"}
    with pytest.raises(SystemExit) as stopped:
        evaluate(monkeypatch, arguments)
    message = (
        f"evaluate_drivelm: split 'train' of {arguments['scenes']}: frame 'frame1': question 1 has no answer to score"
        " against: 'What are objects to the back left of the ego car?' (1 of 4 questions have none)"
    )
    assert str(stopped.value).startswith(message)
    with pytest.raises(SystemExit, match="there is no model folder"):  # the frame with the blank is not asked about
        evaluate(monkeypatch, arguments, "--max-frames", "1")


@pytest.mark.parametrize(
    "part, text, message",
    [
        (
            "question",
            "cars " * 15_000,
            "1 of 8 questions are too long, the first is question 1 of frame 'frame2': 'cars",
        ),
        ("answer", "cars " * 5_000, "1 of 8 questions are too long, the first is question 1 of frame 'frame2': 'What"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named_before_the_weights_are_loaded(
    part, text, message, model_folder, arguments, monkeypatch, tmp_path
):
    """One of 15,000 words would take gigabytes to answer, or to score."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    frames = [scene_row(number, 2) for number in range(4)]
    arguments |= {"scenes": write_scenes(tmp_path / "whole", frames), "model": folder}
    with pytest.raises(SystemExit, match="evaluate_drivelm: .* has no weights"):  # the others can be asked
        evaluate(monkeypatch, arguments)
    frames[2]["qa"][1][part] = text
    arguments |= {"scenes": write_scenes(tmp_path / "scenes", frames)}
    with pytest.raises(SystemExit) as stopped:
        evaluate(monkeypatch, arguments)
    assert str(stopped.value).startswith(f"evaluate_drivelm: {message}") and "\n" not in str(stopped.value)
    assert ("the model's context has 1024 tokens" in str(stopped.value)) == ("too long" in message)


def edit_json(path: Path, **changed) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "chat_template.jinja").write_text((folder / "chat_template.jinja").read_text() + " "),
        lambda folder: edit_json(folder / "processor_config.json", note=1),
        lambda folder: edit_json(folder / "config.json", note=1),
        lambda folder: edit_json(folder / "generation_config.json", repetition_penalty=1.5),
        lambda folder: edit_json(folder / "tokenizer_config.json", note=1),
    ],
    ids=["chat template", "processor", "config", "generation", "tokenizer"],
)
def test_other_files_beside_the_weights_do_not_resume_from_old_answers(
    change, model_folder, arguments, monkeypatch, tmp_path
):
    monkeypatch.setattr(asking, "CHUNK", 1)
    arguments["model"] = shutil.copytree(model_folder, tmp_path / "model")
    assert stopped_at_the_first_frame(monkeypatch, arguments)
    assert not stopped_at_the_first_frame(monkeypatch, arguments)
    change(arguments["model"])
    assert stopped_at_the_first_frame(monkeypatch, arguments)


def test_other_code_does_not_resume_from_old_answers(monkeypatch, tmp_path):
    """An update of the project, between the two runs of a stopped evaluation."""
    package = shutil.copytree(ROOT / "modeling_smoldriver", tmp_path / "modeling_smoldriver")
    monkeypatch.setattr(provenance, "find_spec", lambda name: SimpleNamespace(origin=str(package / "__init__.py")))
    before = asking.unfinished_folder(tmp_path, SETTINGS)
    assert asking.unfinished_folder(tmp_path, SETTINGS) == before
    (package / "scene_smoldriver.py").write_text("# another version")
    assert asking.unfinished_folder(tmp_path, SETTINGS) != before


@pytest.mark.parametrize("output", ["model", "scenes"])
def test_an_evaluation_is_not_written_into_what_it_reads(output, arguments, monkeypatch):
    before = {path.name for path in Path(arguments[output]).iterdir()}
    with pytest.raises(SystemExit, match="^evaluate_drivelm: the output folder .* is the .*: give another"):
        evaluate(monkeypatch, arguments | {"output-dir": arguments[output]})
    assert {path.name for path in Path(arguments[output]).iterdir()} == before


@pytest.mark.usefixtures("own_datasets_cache")
@pytest.mark.parametrize("room", [1_000, 12_000])
def test_a_full_disk_is_one_line_and_the_same_command_finishes(room, arguments, scenes, monkeypatch):
    """1,000 bytes: while `datasets` unpacks the rows; 12,000: while the report is written."""
    if room > 1_000:
        load_scenes(scenes, "train")
    with small_files(room), pytest.raises(SystemExit) as stopped:
        evaluate(monkeypatch, arguments, "--controls")
    said = str(stopped.value)
    assert said.startswith("evaluate_drivelm: ") and "File too large" in said and "\n" not in said
    assert not (arguments["output-dir"] / "metrics.json").exists()
    assert not list(arguments["output-dir"].rglob("*.tmp"))
    metrics, _ = evaluate(monkeypatch, arguments, "--controls")
    assert metrics["results"]["smoldriver"]["overall"]["count"] == 10


@pytest.mark.parametrize(
    "question, description, message",
    [
        (
            "<image>\nIs there a car ahead?",
            None,
            r"frame 'frame0': question 1 holds the special token <image>: '<image>\nIs there a car ahead?'",
        ),
        (
            "Is there a car ahead?",
            "It waits.<end_of_utterance>",
            "frame 'frame0': its scene description holds the special token <end_of_utterance>: 'It waits.",
        ),
    ],
)
def test_text_that_may_not_stand_in_a_prompt_is_refused_before_the_model_is_loaded(
    question, description, message, arguments, monkeypatch, tmp_path
):
    row = scene_row(0, 2) | {"scene_description": description}
    row["qa"][1]["question"] = question
    monkeypatch.setattr(evaluate_drivelm, "load_model", None)
    arguments["scenes"] = write_scenes(tmp_path / "scenes", [row])
    with pytest.raises(SystemExit) as stopped:
        evaluate(monkeypatch, arguments, "--use-scene-description")
    assert message in str(stopped.value) and "\n" not in str(stopped.value)


def test_one_scene_has_no_pictures_of_another(arguments, monkeypatch, capsys, tmp_path):
    arguments["scenes"] = write_scenes(tmp_path / "one", [scene_row(0, 2), scene_row(1, 2)])
    metrics, _ = evaluate(monkeypatch, arguments)
    why = "the split has one scene only, so there are no pictures of another"
    assert metrics["info"]["left_out_controls"] == {"other_scene_images": why}
    assert list(metrics["results"]) == ["smoldriver", "majority"]
    assert f"left out: other_scene_images ({why})" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"model": "nowhere/at/all"}, "evaluate_drivelm: there is no model folder nowhere/at/all"),
        ({"scenes": "nowhere"}, "evaluate_drivelm: there is no folder nowhere"),
        ({"split": "test"}, "evaluate_drivelm: split 'test' of"),
        ({"budgets": 5}, "evaluate_drivelm: --budgets 5: the model has no such budget; choose from [9, 4, 1]"),
        ({"visual-tokens": 5}, "evaluate_drivelm: visual_tokens=5 is not a budget; choose one of [9, 4, 1]"),
    ],
)
def test_bad_input_is_one_line(changed, message, arguments, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        evaluate(monkeypatch, {**arguments, **changed})
    assert str(stopped.value).startswith(message) and "\n" not in str(stopped.value)


@pytest.mark.parametrize(
    "script, option, message",
    [
        (evaluate_drivelm, ("--max-frames", "0"), "--max-frames: 0 is out of range: choose at least 1"),
        (ask, ("--visual-tokens", "0"), "--visual-tokens: 0 is out of range: choose at least 1"),
        (model_report, ("--tokens", "-1"), "--tokens: -1 is out of range: choose at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused_as_they_are_read(script, option, message, monkeypatch, capsys):
    needed = () if script is model_report else ("--model", "m", "--scenes", "s")
    needed += ("--output-dir", "o") if script is evaluate_drivelm else ()
    monkeypatch.setattr(sys, "argv", ["script", *needed, *option])
    with pytest.raises(SystemExit):
        script.main()
    assert message in capsys.readouterr().err


def test_one_checkpoint_one_curve(arguments, config, processor, scenes, monkeypatch, capsys):
    """Scores and latency at each budget; answers at a budget are those of the model asked at that budget alone."""
    small, _ = evaluate(monkeypatch, {**arguments, "visual-tokens": 4}, "--controls")
    arguments["output-dir"] = arguments["output-dir"].with_name("curve")
    metrics, predictions = evaluate(monkeypatch, arguments, "--controls", "majority", "--budgets", "9", "4", "1")
    budgets = metrics["budgets"]
    assert list(budgets) == ["9", "4", "1"]
    for name, results in (("9", metrics["results"]), ("4", small["results"])):
        scores = results["smoldriver"]
        assert budgets[name]["closed_accuracy"] == scores["overall"]["accuracy"]
        assert budgets[name]["closed_accuracy_ci"] == scores["overall"]["accuracy_ci"]
        assert budgets[name]["yes_no"] == scores["yes_no"]["accuracy"]
        assert budgets[name]["status"] == scores["status"]["accuracy"]
        assert budgets[name]["listing_f1"] == scores["listing"]["listing_f1"]
        assert budgets[name]["bleu"] == scores["overall"]["bleu"]
    for entry in budgets.values():
        assert entry["encode_seconds_per_frame"] > 0 and entry["answer_seconds_per_question"] > 0
        assert (entry["frames"], entry["questions"]) == (4, 10)
    assert {row["model"] for row in predictions} == {"smoldriver", "majority"}  # the curve is the plain model's alone
    assert "visual tokens per camera" in capsys.readouterr().out
    assert (arguments["output-dir"] / "figures" / "elastic.png").is_file()


def test_pictures_of_the_training_split_are_not_copied(arguments, monkeypatch, tmp_path):
    """Of which the majority answer needs the questions and answers alone."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    frames = [scene_row(number, 4) for number in range(4)]
    arguments |= {"scenes": write_scenes(tmp_path / "scenes", frames[:2], tuple(frames[2:])), "split": "test"}
    metrics, _ = evaluate(monkeypatch, arguments, "--controls", "majority")
    assert list(metrics["results"]) == ["smoldriver", "majority"]
    copies = {path.name for path in (tmp_path / "cache").rglob("*.arrow")}
    assert copies == {"parquet-test.arrow"}


def test_a_model_has_the_name_that_it_is_given(arguments, monkeypatch, capsys):
    metrics, predictions = evaluate(monkeypatch, {**arguments, "name": "SmolVLM-FT"}, "--controls", "majority")
    assert list(metrics["results"]) == ["SmolVLM-FT", "majority"] and predictions[0]["model"] == "SmolVLM-FT"
    for name in ("text_only", "a/b", "a@4"):
        with pytest.raises(SystemExit):
            evaluate(monkeypatch, {**arguments, "name": name})
        assert "no control's name" in capsys.readouterr().err


@pytest.fixture
def trained(config, processor, tmp_path):
    """A model folder, its manifest, and that of the stage that it went on from."""
    stages = {}
    for name in ("first", "second"):
        stages[name] = tmp_path / name
        tiny_model(config).save_pretrained(stages[name])
        processor.save_pretrained(stages[name])

    def write(first: list[str], second: list[str]) -> Path:
        write_training_manifest(stages["first"], {"base": None, "scene_tokens": first})
        write_training_manifest(stages["second"], {"base": str(stages["first"]), "scene_tokens": second})
        return stages["second"]

    return write


@pytest.mark.parametrize("first, second", [(["a"], ["b", "scene1"]), (["scene1", "a"], ["b"])])
def test_scene_of_the_training_fails_the_run(first, second, trained, arguments, monkeypatch, tmp_path):
    """Whichever stage it was trained in."""
    frames = [scene_row(number, 2) for number in range(4)]
    arguments |= {"model": trained(first, second), "scenes": write_scenes(tmp_path / "s", frames[:2], frames[2:])}
    with pytest.raises(SystemExit) as stopped:
        evaluate(monkeypatch, {**arguments, "split": "test"})
    message = f"evaluate_drivelm: 1 of the 1 scenes of split 'test' are training scenes of {arguments['model']}"
    assert str(stopped.value).startswith(message) and "scene1" in str(stopped.value)
    assert not (arguments["output-dir"] / "metrics.json").exists()


def test_training_frames_are_called_so_and_others_cleared(trained, arguments, monkeypatch, capsys, tmp_path):
    frames = [scene_row(number, 2) for number in range(4)]
    scenes = write_scenes(tmp_path / "s", frames[:2], frames[2:])
    arguments |= {"model": trained(["scene0"], ["b"]), "scenes": scenes}
    metrics, _ = evaluate(monkeypatch, arguments, "--controls")
    assert metrics["info"]["leakage"]["kind"] == "training_frames"
    assert metrics["info"]["leakage"]["line"].startswith("TRAINING FRAMES: 1 of the 1 scenes")
    assert "TRAINING FRAMES" in capsys.readouterr().out
    metrics, _ = evaluate(monkeypatch, {**arguments, "split": "test"}, "--controls")
    line = "none: the 1 scenes are not among the 2 training scenes (2 stages)"
    assert metrics["info"]["leakage"]["kind"] == "none" and metrics["info"]["leakage"]["line"].startswith(line)


def test_unknown_training_is_called_unknown(arguments, monkeypatch, capsys):
    metrics, _ = evaluate(monkeypatch, arguments, "--controls")
    assert metrics["info"]["leakage"]["kind"] == "unknown" and "unknown: " in capsys.readouterr().out
    assert metrics["info"]["leakage"]["line"].startswith("unknown: ")


@pytest.mark.parametrize("gone", ["folder", "manifest"])
def test_a_stage_without_a_record_makes_the_training_unknown(gone, trained, tmp_path):
    model = trained(["a"], ["b"])
    found = check_leakage(model, ["c"], "test")
    assert str(found) == "none: the 1 scenes are not among the 2 training scenes (2 stages)"
    assert found.kind == "none"
    (tmp_path / "first" / "training_manifest.json").unlink()
    if gone == "folder":
        shutil.rmtree(tmp_path / "first")
    found = check_leakage(model, ["c"], "test")
    assert found.kind == "unknown"
    assert str(found) == (
        "unknown: it learned from first, gone or without training_manifest.json; of the recorded, the 1 scenes are not"
        " among the 1 training scenes (1 stages)"
    )
    with pytest.raises(ValueError, match=r"1 of the 1 scenes of split 'test' .* \(the first: b\)"):
        check_leakage(model, ["b"], "test")


@pytest.mark.parametrize("learned_from", ["arguments teacher", "arguments teacher_model", "tower"])
def test_scenes_of_a_teacher_or_tower_are_training_scenes(learned_from, trained, tmp_path):
    """As distill_vision.py, sft_qlora.py and build_checkpoint.py name them."""
    model = trained(["a"], ["b"])
    write_training_manifest(tmp_path / "teacher", {"base": None, "scene_tokens": ["c"]})
    *within, key = learned_from.split()
    named = {key: str(tmp_path / "teacher")}
    manifest = {"base": str(tmp_path / "first"), "scene_tokens": ["b"]}
    write_training_manifest(model, manifest | ({"arguments": named} if within else named))
    with pytest.raises(ValueError, match="or of what it learned from \\(the first: c\\)"):
        check_leakage(model, ["c"], "test")
    assert str(check_leakage(model, ["d"], "test")).startswith(
        "none: the 1 scenes are not among the 3 training scenes (3 stages)"
    )
    shutil.rmtree(tmp_path / "teacher")
    assert str(check_leakage(model, ["c"], "test")).startswith("unknown: it learned from teacher, gone or without")


@pytest.mark.slow
def test_two_processes_give_the_predictions_of_one(arguments, monkeypatch, tmp_path, scenes):
    frames = [scene_row(number, 2) for number in range(40)]  # three chunks
    arguments["scenes"] = write_scenes(tmp_path / "scenes", frames)
    controls = ("--controls", "majority", "other_scene_images")
    metrics, predictions = evaluate(monkeypatch, arguments, *controls)
    arguments["output-dir"] = tmp_path / "two"
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2")
    done = subprocess.run(
        [*launcher, "recipes/evaluate_drivelm.py", *command_line(arguments, *controls)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two_metrics, two_predictions = written(tmp_path / "two")
    assert two_predictions == predictions and two_metrics["results"] == metrics["results"]
    assert (tmp_path / "two" / "report.html").is_file()
    assert done.stdout.count("closed accuracy") == 1
