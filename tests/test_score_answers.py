"""Answers in the challenge's form against a DriveLM file: numbering, scores, bad input."""

import copy
import json
import sys
from pathlib import Path

import pytest

from recipes import score_answers
from recipes.evaluation.submissions import read_answers

SUBMISSION = Path(__file__).parents[2] / "shared" / "cases" / "submission_min.json"
FRAME = {
    "image_paths": {},
    "QA": {  # in the file planning stands first; the challenge numbers perception first
        "planning": [{"Q": "What is the target action of the ego vehicle?", "A": "Turn left.", "tag": [2]}],
        "perception": [
            {"Q": "Are there cars to the front of the ego car?", "A": "Yes.", "tag": [0]},
            {"Q": "Are there buses to the front of the ego car?", "A": "No.", "tag": [0]},
        ],
    },
}
ANSWERS = {"s_f_0": "Yes.", "s_f_1": "Yes.", "s_f_2": "Turn left."}


@pytest.fixture
def files(tmp_path):
    def write(answers: dict[str, str] | str, frame=FRAME):
        if isinstance(answers, dict):
            answers = json.dumps([{"id": name, "answer": answer} for name, answer in answers.items()])
        (tmp_path / "test.json").write_text(json.dumps({"s": {"key_frames": {"f": frame}}}))
        (tmp_path / "output.json").write_text(answers)
        return tmp_path

    return write


def score(folder, monkeypatch, *more: str) -> dict:
    command = ["score_answers.py", "--answers", folder / "output.json", "--json", folder / "test.json"]
    monkeypatch.setattr(sys, "argv", [*map(str, command), "--output", str(folder / "scores.json"), *more])
    score_answers.main()
    return json.loads((folder / "scores.json").read_text())


def test_answers_are_numbered_by_task_and_scored(files, monkeypatch, capsys):
    scores = score(files(ANSWERS), monkeypatch)
    assert scores["yes_no"]["accuracy"] == 0.5 and scores["planning"]["exact_match"] == 1.0
    assert scores["overall"]["count"] == 3 and scores["challenge"]["exact_match"] == 0.5
    printed = capsys.readouterr().out
    assert "task_perception" in printed and "empty" not in printed
    line = next(line.split() for line in printed.splitlines() if line.split()[:1] == ["accuracy"])
    assert "0.5000" in line


def test_the_challenges_submission_is_read(files, monkeypatch):
    """An object that names team and method, and holds the answers in `results`."""
    answers = [{"id": name, "question": "<image>\nWhy?", "answer": answer} for name, answer in ANSWERS.items()]
    submission = {"method": "m", "team": "t", "results": answers}
    scores = score(files(json.dumps(submission)), monkeypatch)
    assert scores == score(files(ANSWERS), monkeypatch)


@pytest.mark.skipif(not SUBMISSION.is_file(), reason="no sample submission beside the project")
def test_a_sample_submission_is_read():
    assert read_answers(SUBMISSION) == {"s0_f0_0": "Yes.", "s0_f0_1": "No."}


def test_true_answers_longer_than_the_metrics_take_are_refused(files, monkeypatch):
    long = copy.deepcopy(FRAME)
    long["QA"]["planning"][0]["A"] = "word " * 30_000
    with pytest.raises(
        SystemExit, match="frame 'f': the answer of question 2 has 150,000 characters, the metrics take"
    ):
        score(files(ANSWERS, long), monkeypatch)


def test_empty_answers_are_wrong_and_counted(files, monkeypatch, capsys):
    scores = score(files({**ANSWERS, "s_f_2": " "}), monkeypatch)
    assert scores["planning"]["exact_match"] == 0.0
    assert "1 empty answers count as wrong" in capsys.readouterr().out


def test_file_without_challenge_tags_is_scored(files, monkeypatch, capsys):
    untagged = copy.deepcopy(FRAME)
    for questions in untagged["QA"].values():
        for question in questions:
            del question["tag"]
    scores = score(files(ANSWERS, untagged), monkeypatch)
    assert scores["yes_no"]["accuracy"] == 0.5 and "challenge" not in scores
    printed = capsys.readouterr().out
    assert "left out: challenge_without_gpt: needs tags" in printed and "the challenge leaves out" not in printed


def test_unknown_encoder_is_refused_in_one_line(files, monkeypatch):
    with pytest.raises(SystemExit, match="^score_answers: bertscore_model 'bogus' is neither a model's folder"):
        score(files(ANSWERS), monkeypatch, "--bertscore-model", "bogus")


@pytest.mark.parametrize(
    "answers, message",
    [
        ({"s_f_0": "Yes."}, "2 of 3 questions have no answer, the first has the id 's_f_1'"),
        ({**ANSWERS, "s_f_3": "No."}, "1 of 4 answers are to unknown questions, the first has the id 's_f_3'"),
        ('[{"id": "s_f_0", "answer": "Yes."}, {"id": "s_f_0", "answer": "No."}]', "the id 's_f_0' is duplicated"),
        ('[{"id": "s_f_0", "answer": "Ye', "not JSON, perhaps cut short"),
        ('[{"id": "s_f_0"}]', 'entry 0 must be {"id": text, "answer": text}'),
        ('{"s_f_0": "Yes."}', "must be a list of answers, not dict"),
        ('{"results": {"s_f_0": "Yes."}}', "must be a list of answers, not dict"),
        ("[" * 100_000, "not JSON, perhaps cut short"),
        ({**ANSWERS, "s_f_2": "word " * 30_000}, "the answer of 's_f_2' has 150,000 characters, the metrics take at"),
    ],
)
def test_bad_answers_are_refused_in_one_line(files, monkeypatch, answers, message):
    with pytest.raises(SystemExit) as stopped:
        score(files(answers), monkeypatch)
    text = str(stopped.value)
    assert text.startswith("score_answers: ") and message in text and "\n" not in text


def test_questions_without_true_answers_are_refused(files, monkeypatch):
    unlabelled = {"image_paths": {}, "QA": {"behavior": [{"Q": "Predict the behavior of the ego vehicle.", "A": ""}]}}
    with pytest.raises(SystemExit, match="frame 'f': question 0 has no answer to score against: 'Predict"):
        score(files({"s_f_0": "Yes."}, unlabelled), monkeypatch)
