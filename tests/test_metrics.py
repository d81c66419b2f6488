"""The DriveLM metric module: answers, the challenge, groups, intervals, bad input."""

import json
import math
import os
import re
from collections import Counter

import nltk
import numpy as np
import pytest
from fakes import SAMPLE, needs_sample
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_rows import (
    ROOT,
    ROWS,
    TOLERANCE,
    arguments,
    caption_dicts,
    close,
    freedom_of,
    java_tokens,
    plain_bleu,
    run_python,
    tokens_13a,
)
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from data_scripts import question_types as data_question_types
from recipes.metrics import check_intervals
from recipes.metrics.drivelm.answer_metrics import (
    OBJECT_TAG,
    closed_answer_match,
    closed_match,
    extract_answer,
    listed_objects,
    listing_f1,
    match_points,
    skipped_by_graph,
    statuses,
)
from recipes.metrics.drivelm.ptb_tokenizer import ptb_tokens
from recipes.metrics.drivelm.scene_intervals import SceneScore, t_p_value, t_quantile
from recipes.metrics.drivelm.scores import (
    COCO_BLEU,
    METRICS,
    QUESTION_TYPES,
    compare_predictions,
    compute_metrics,
)


@pytest.fixture(scope="module")
def scores():
    return compute_metrics(**arguments(ROWS))


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("yes", "Yes.", 1.0),
        (" YES, there is a car. ", "Yes.", 1.0),
        ("Yes.", "Yes, there are some traffic elements in the front view.", 1.0),
        ("No, yes.", "Yes.", 0.0),
        ("None.", "No.", 0.0),
        ("Nothing", "No.", 0.0),
        ("There is no car.", "No.", 0.0),
        ("one  truck is moving", "One truck is moving.", 1.0),
        ("Two trucks are moving.", "One truck is moving.", 0.0),
        ("B.", "B", 1.0),
        ("", "No.", 0.0),
    ],
)
def test_closed_answers(prediction, reference, right):
    assert closed_answer_match(prediction, reference) == right


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("One trailer is parked.", "The trailer to the front left of the ego car is parked.", 1.0),
        ("One car is parked and one car is moving.", "One of the cars is moving, and the other is parked.", 1.0),
        ("The cars are parked.", "One of the cars is parked, and one is moving.", 0.0),
        ("The car ahead of the ego car is moving.", "One car is moving.", 1.0),
        ("The car is not moving.", "One car is moving.", 0.0),
        ("It isn\u2019t moving.", "Stationary.", 1.0),
        ("It keeps going straight.", "Keep going straight.", 1.0),
        ("Turning left", "Turn left.", 1.0),
        ("Turning right", "Turn left.", 0.0),
        ("The car is going ahead.", "Moving.", 0.0),
        ("The bicycle is without a rider.", "One bicycle is with rider.", 0.0),
        ("A truck.", "One truck is parked.", 0.0),
        ("D.", "D", 1.0),
        ("", "Stopped.", 0.0),
    ],
)
def test_status_answers_are_compared_by_their_statuses(prediction, reference, right):
    assert closed_match(prediction, reference, "status") == right


@needs_sample
def test_every_real_status_reference_says_a_status():
    found = Counter()
    for scene in json.loads((SAMPLE / "train_sample.json").read_text()).values():
        for frame in scene["key_frames"].values():
            for task, items in frame["QA"].items():
                for item in items:
                    if data_question_types.question_type(item["Q"], task) == "status":
                        assert statuses(item["A"]), item["A"]
                        found.update(statuses(item["A"]))
    assert set(found) == {"moving", "parked", "stopped", "stationary", "ahead", "turn left"}


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("The correct answer is A", "A", 1.0),
        ("The correct answer is (B) Turn left.", "B", 1.0),
        ("**Answer:** C. Going ahead", "C", 1.0),
        ("D. Turn left.", "D", 1.0),
        ("Option B", "B", 1.0),
        (r"\boxed{B}", "B", 1.0),
        ("<answer>B</answer>", "B", 1.0),
        ("The correct answer is A", "B", 0.0),
        ("A car is turning left.", "A", 0.0),
        ("Answer the question.", "A", 0.0),
        ("The answer is: Yes, there is a car.", "Yes.", 1.0),
        ("Based on the pictures, the answer is no.", "No.", 1.0),
        ("No. The answer is yes.", "Yes.", 0.0),
        ("No. The answer is yes.", "No.", 1.0),
        ("The answer is Two.", "two", 1.0),
        ("Yes", "Yes.", 1.0),
        ("", "Yes.", 0.0),
    ],
)
def test_answers_are_extracted_from_sentences(prediction, reference, right):
    assert closed_answer_match(extract_answer(prediction, reference), reference) == right


def test_extraction_is_a_column_of_its_own():
    """Neither the accuracy nor the challenge's exact match and its sum see it."""
    inputs = arguments(ROWS)
    inputs["predictions"] = [f"The correct answer is: {text}" for text in inputs["references"]]
    scores = compute_metrics(**inputs)
    assert scores["yes_no"]["extracted_accuracy"] == 1.0 and scores["yes_no"]["accuracy"] == 0.0
    challenge = scores["challenge"]
    assert challenge["extracted_accuracy"] == 1.0 and challenge["exact_match"] == 0.0
    total = 0.2 * (challenge["language"] + challenge["match_f1"] + challenge["exact_match"])
    close(challenge["challenge_without_gpt"], total)


def test_object_tags_are_those_of_the_data_scripts():
    """The metric's folder must load alone, so it carries a copy."""
    assert OBJECT_TAG == data_question_types.OBJECT_TAG
    options = {"metrics": ["match_f1"]}
    for tag in ("<c1,CAM_FRONT,10.0,20.0>", "<c1, CAM_FRONT, 10.0, 20.0>", "<C1,cam_f0, 10.0,20.0 >"):
        assert compute_metrics([tag], [f"A car, {tag}."], **options)["overall"]["match_f1"] > 0.99
    assert compute_metrics(["10.0 20.0"], ["A car, 10.0, 20.0."], **options)["overall"] == {"count": 1}


@pytest.mark.parametrize(
    ("answer", "objects"),
    [
        (
            "There is one truck and one barrier to the front left of the ego car.",
            {("one", "truck"), ("one", "barrier")},
        ),
        (
            "There are two barriers, many trucks, two trailers, and one car to the back left of the ego car.",
            {("two", "barrier"), ("many", "truck"), ("two", "trailer"), ("one", "car")},
        ),
        ("There are many obstacles in front of the ego car.", {("many", "obstacle")}),
        (
            "There is one pedestrian, one bus, and two cars behind the ego car.",
            {("one", "pedestrian"), ("one", "bus"), ("two", "car")},
        ),
        (
            "two buses, 3 traffic cones and a construction vehicle",
            {("two", "bus"), ("three", "traffic cone"), ("one", "construction vehicle")},
        ),
        ("There are 15 motorcycles without riders ahead of the ego car", {("15", "motorcycle without rider")}),
        ("There are several people and trucks.", {("several", "person"), (None, "truck")}),
        ("There are no objects to the back of the ego car.", set()),
        ("There is nothing behind the ego car.", set()),
        ("None.", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_listing_answers_are_read(answer, objects):
    assert listed_objects(answer) == objects


def test_listing_f1():
    reference = "There are two cars, one truck, and many barriers to the front of the ego car."
    assert listing_f1("There are many barriers, one truck and two cars in front of the ego car.", reference) == 1.0
    assert listing_f1("There are two cars and three barriers in front of the ego car.", reference) == 2 * 1 / (2 + 3)
    assert listing_f1("No objects.", "There are no objects to the front of the ego car.") == 1.0
    for wordless in ("", " ", ".", " ..", ","):
        assert listing_f1(wordless, "There are no objects to the front of the ego car.") == 0.0
    assert listing_f1("No objects.", reference) == 0.0


@needs_sample
def test_real_listing_answers_name_only_classes_with_counts():
    seen = set()
    for scene in json.loads((SAMPLE / "train_sample.json").read_text()).values():
        for frame in scene["key_frames"].values():
            for item in frame["QA"]["perception"]:
                if item["Q"].startswith("What are objects to the"):
                    assert listing_f1(item["A"], item["A"]) == 1.0
                    assert listed_objects(item["A"])
                    seen |= listed_objects(item["A"])
    assert {count for count, _ in seen} <= {"one", "two", "three", "many"}
    assert {name for _, name in seen} == {
        "barrier", "bus", "car", "construction vehicle", "obstacle", "pedestrian", "traffic cone", "trailer", "truck",
    }  # fmt: skip


def plain_match_f1(prediction, reference):
    sides = []
    for text in (prediction, reference):
        numbers = [float(x) for x in re.findall(r"\d+\.\d+", text)]
        sides.append([complex(*numbers[i : i + 2]) for i in range(0, len(numbers) - 1, 2)])
    predicted, left = sides[0], list(sides[1])
    hits = 0
    for point in predicted:
        left.sort(key=lambda other: abs((point - other).real) + abs((point - other).imag))
        if left and abs((point - left[0]).real) + abs((point - left[0]).imag) < 16:
            hits += 1
            del left[0]
    return 2 * hits / (len(predicted) + len(sides[1])) if sides[1] else 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "f1"),
    [
        ("<c1,CAM_FRONT,10.0,20.0>", "<c1,CAM_FRONT,17.9,28.0>", 1.0),  # 7.9 + 8.0 < 16
        ("<c1,CAM_FRONT,10.0,20.0>", "<c1,CAM_FRONT,18.0,28.0>", 0.0),  # 16 is too far
        ("<c1,CAM_FRONT,10,20>", "<c1,CAM_FRONT,10.0,20.0>", 0.0),  # whole numbers do not count
        ("1.0 1.0 2.0 2.0", "<c1,CAM_FRONT,1.0,1.0>", 2 / 3),  # a point is found once
        ("5.5", "<c1,CAM_FRONT,1.0,1.0>", 0.0),  # half a point
        ("8.0 1.0 and 1.0 1.0", "<c1,CAM_FRONT,9.0,1.0>, <c2,CAM_FRONT,1.0,1.0>, <c3,CAM_FRONT,900.0,1.0>", 4 / 5),
        ("", "<c1,CAM_FRONT,1.0,1.0>", 0.0),
    ],
)
def test_points_are_matched_as_the_challenge_does(prediction, reference, f1):
    assert match_points(prediction, reference)[1] == pytest.approx(f1, abs=TOLERANCE)
    assert plain_match_f1(prediction, reference) == pytest.approx(f1, abs=TOLERANCE)


def test_match_f1_is_over_questions_that_name_objects(scores):
    named = [plain_match_f1(row[7], row[6]) for row in ROWS if "<c" in row[6]]
    assert scores["overall"]["match_f1_count"] == len(named) == 2
    close(scores["overall"]["match_f1"], np.mean(named))


# ---------------------------------------------------------------- the challenge


def plain_challenge(rows):
    """The challenge's sum without its GPT terms -> (score, skipped). Written after its description, row by row."""
    kept, graph, last_frame = [], set(), None
    for row in rows:
        numbers = re.findall(r"\d+\.\d+", row[5])
        asked = {(float(x), float(y)) for x, y in zip(numbers[::2], numbers[1::2], strict=True)}
        if (row[0], row[1]) != last_frame:
            last_frame, graph = (row[0], row[1]), set()
            for point in zip(*[iter(map(float, re.findall(r"\d+\.\d+", row[6])))] * 2, strict=True):
                if plain_match_f1(row[7], f"{point[0]} {point[1]}") > 0:
                    graph.add(point)
        elif not asked <= graph:
            continue
        kept.append(row)
    exact = np.mean([row[6] == row[7] for row in kept if 0 in row[4]])
    match = np.mean([plain_match_f1(row[7], row[6]) for row in kept if 3 in row[4]])
    language = [row for row in kept if 2 in row[4]]
    gts, res = (caption_dicts([ptb_tokens(row[side]) for row in language]) for side in (6, 7))
    words = sum(Bleu(4).compute_score(gts, res, verbose=0)[0]) / 4 / 3
    words += Rouge().compute_score(gts, res)[0] / 3 + Cider().compute_score(gts, res)[0] / 10 / 3
    return 0.2 * (words + match + exact), len(rows) - len(kept)


def test_challenge_score_is_re_derived(scores):
    expected, skipped = plain_challenge(ROWS)
    close(scores["challenge"]["challenge_without_gpt"], expected)
    assert scores["challenge"]["skipped"] == skipped == 1
    assert scores["challenge"]["count"] == len(ROWS) - 1


def test_challenge_scores_a_model_that_finds_nothing_on_fewer_questions():
    """The quirk: with a useless first answer the questions about objects vanish instead of scoring 0."""
    rows = [row for row in ROWS if row[0] == "s1"]
    columns = ([row[5] for row in rows], [row[7] for row in rows], [row[6] for row in rows], ["f1"] * len(rows))
    assert skipped_by_graph(*columns) == [False, False, True, False, False]
    blind = ["I see a road.", *columns[1][1:]]
    assert skipped_by_graph(columns[0], blind, *columns[2:]) == [False, True, True, False, False]


def test_challenge_without_a_term_has_no_sum():
    rows = [row for row in ROWS if 0 not in row[4]]
    challenge = compute_metrics(**arguments(rows))["challenge"]
    assert challenge["challenge_without_gpt"] is None
    assert "exact_match" not in challenge and challenge["match_f1"] > 0


# ---------------------------------------------------------------- groups and intervals


def test_every_type_and_task_has_its_group(scores):
    types = {row[3] for row in ROWS}
    tasks = {f"task_{row[2]}" for row in ROWS}
    assert set(scores) == {"overall", *types, *tasks, "challenge", "info"}
    assert scores["overall"]["count"] == len(ROWS) and scores["overall"]["scenes"] == 3
    assert scores["overall"]["accuracy_count"] == 5
    close(scores["overall"]["accuracy"], 2 / 5)  # one of two yes/no, the status; neither the count nor the behaviour
    close(scores["overall"]["exact_match"], 1 / len(ROWS))
    close(scores["listing"]["listing_f1"], 0.4)
    assert "accuracy" not in scores["planning"] and "listing_f1" not in scores["yes_no"]
    json.dumps(scores, allow_nan=False)


def test_question_types_are_those_of_the_data_scripts():
    assert QUESTION_TYPES == data_question_types.QUESTION_TYPES


def student_t(freedom):
    """The 97.5% quantile of Student's t, from a printed table."""
    return {2: 4.302653, 3: 3.182446, 4: 2.776445, 5: 2.570582, 8: 2.306004, 11: 2.200985, 23: 2.068658, 47: 2.011741}[
        freedom
    ]


def left_out(rows, name, **changed):
    """(score of all rows, {scene: score without the scene}) with the rows written out and scored again."""
    scenes = sorted({row[0] for row in rows})
    kept = [rows, *([row for row in rows if row[0] != scene] for scene in scenes)]
    values = [compute_metrics(**arguments(part), metrics=[name])["overall"].get(name) for part in kept]
    return values[0], dict(zip(scenes, values[1:], strict=True))


NINE_SCENES = [(f"scene{i % 9}", *row[1:]) for i, row in enumerate(ROWS)]


@pytest.mark.parametrize("name", ["bleu", "bleu_2", "rouge_l", "accuracy"])
def test_interval_is_that_of_scenes_left_out_one_by_one(name):
    """Every scene left out, its questions really gone and all scored again, gives the interval that the sums give."""
    scores = compute_metrics(**arguments(NINE_SCENES), metrics=[name])["overall"]
    value, without = left_out(NINE_SCENES, name)
    counting = [scene for scene in without if any(row[0] == scene for row in NINE_SCENES)]
    if name == "accuracy":  # scenes without a closed question do not count
        closed = ("yes_no", "status", "counting", "behavior")
        counting = [scene for scene in without if any(row[0] == scene and row[3] in closed for row in NINE_SCENES)]
        assert len(counting) == scores["accuracy_scenes"] == 5
    contributions = (len(counting) - 1) * (value - np.array([without[scene] for scene in counting]))
    error = contributions.std(ddof=1) / math.sqrt(len(counting))
    questions = Counter(row[0] for row in NINE_SCENES if name != "accuracy" or row[3] in closed)
    reach = t_quantile(freedom_of([questions[scene] for scene in counting])) * error / (value * (1 - value))
    odds = math.log(value / (1 - value))
    close(scores[name + "_ci"], [1 / (1 + math.exp(reach - odds)), 1 / (1 + math.exp(-reach - odds))])


def test_quantiles_and_p_values_are_those_of_student():
    for freedom in (2, 3, 4, 5, 8, 11, 23, 47):
        close(t_quantile(freedom), student_t(freedom))
        close(t_p_value(-student_t(freedom), freedom), 0.05)
    close(t_p_value(5.0, 2), 1 - 5 / math.sqrt(27))  # with 2 degrees of freedom p is 1 - t / sqrt(2 + t**2)
    close(t_p_value(1.96, 100_000), math.erfc(1.96 / math.sqrt(2)) + 2.77e-6)  # the normal p and its first correction
    assert t_p_value(0.0, 700) == 1.0


def test_unequal_scenes_leave_fewer_degrees_of_freedom():
    def freedom(*weights):
        return SceneScore(0.5, 0, np.array(weights, dtype=float), None).freedom

    close(freedom(4, 4, 0, 4, 4), 3)  # four equal scenes; the fifth has no question
    close(freedom(1, 1, 2), 3.25**2 / (1 + 2.25**2))  # by hand: the eigenvalues are 1 and 2.25
    assert 1 < freedom(1, 1, 1, 1000) < 1.3  # one scene decides


@pytest.mark.parametrize("scenes", [1, 2, 3])
def test_fewer_than_three_scenes_are_refused_with_the_reason(scenes):
    rows = [(f"scene{i % scenes}", *row[1:]) for i, row in enumerate(ROWS)]
    found = compute_metrics(**arguments(rows))
    assert found["info"]["scenes"] == found["overall"]["scenes"] == scenes
    inputs = arguments(rows)
    worse = ["?"] * len(rows)
    compared = compare_predictions(inputs.pop("predictions"), worse, **inputs)
    if scenes < 3:
        assert found["overall"]["rouge_l_ci"] is None
        assert (
            found["info"]["interval"]
            == ["", "none: 1 scene, at least 3 are needed", "none: 2 scenes, at least 3 are needed"][scenes]
        )
        assert compared["overall"]["rouge_l"]["ci"] is compared["overall"]["rouge_l"]["p_value"] is None
        assert compared["overall"]["rouge_l"]["difference"] < 0
    else:
        low, high = found["overall"]["rouge_l_ci"]
        assert 0 < low < found["overall"]["rouge_l"] < high < 1
        assert found["info"]["interval"].startswith("95% t interval over scenes")
        assert compared["overall"]["rouge_l"]["p_value"] > 0.02  # three scenes cannot be very sure


@pytest.mark.slow
@pytest.mark.parametrize("ease", [0.5, 3.0])
def test_intervals_cover_and_equal_models_are_rarely_told_apart(ease):
    """At every number of scenes: with a percentile bootstrap 20% of equal models differ at 4 scenes, 14% at 6."""
    found = check_intervals.table(trials=4000, ease=ease)
    assert [row[:2] for row in found] == [(name, n) for name in check_intervals.METRICS for n in (3, 6, 12, 24, 48)]
    for name, scenes, coverage, null_rate in found:
        assert coverage > 0.925, (name, scenes)
        assert null_rate < 0.06, (name, scenes)
        if scenes >= (12 if ease == 0.5 else 24):  # easy questions differ in few scenes
            assert null_rate > 0.03, (name, scenes)  # nor is the test timid


def test_few_equal_models_differ_with_few_scenes():
    """The slow check above in short: one metric, three and six scenes."""
    sums = check_intervals.population(80, ease=0.5, seed=0)["accuracy"]
    for scenes in (3, 6):
        coverage, null_rate = check_intervals.rates(sums, check_intervals.METRICS["accuracy"], scenes, 300, seed=0)
        assert coverage > 0.9 and null_rate < 0.09


def test_scenes_that_all_score_the_same_have_an_interval_of_some_width():
    """12 right answers of 3 scenes do not show that every scene is right."""
    options = {"question_types": ["yes_no"] * 12, "scene_tokens": [f"s{i % 3}" for i in range(12)]}
    options["metrics"] = ["accuracy"]
    found = compute_metrics(["Yes."] * 12, ["Yes."] * 12, **options)["overall"]
    close(found["accuracy_ci"], [0.025 ** (1 / 3), 1.0])
    none_right = compare_predictions(["Yes."] * 12, ["No."] * 12, ["Yes."] * 12, **options)["overall"]["accuracy"]
    assert none_right["difference"] == -1.0 and none_right["p_value"] == 0.25 and none_right["ci"][1] > 0


def test_one_scene_has_no_interval_and_says_so(scores):
    assert scores["listing"]["scenes"] == 1 and scores["listing"]["listing_f1_ci"] is None
    assert "fewer than 3 scenes" in scores["info"]["interval"]
    assert scores["overall"]["exact_match_ci"][0] <= 1 / 12 <= scores["overall"]["exact_match_ci"][1]
    without = arguments(ROWS) | {"scene_tokens": None}
    without = compute_metrics(**without)
    assert without["overall"]["exact_match_ci"] is None and "needs scene_tokens" in without["info"]["interval"]
    assert "needs tags" in without["info"]["left_out"]["challenge_without_gpt"]


def test_comparison_leaves_out_a_term_that_one_side_has_no_question_of():
    """The second model misses the object that every accuracy question of the frame names."""
    rows = ROWS[:2]
    inputs = arguments(rows)
    blind = ["I see a road.", "No."]
    challenge = compare_predictions(inputs.pop("predictions"), blind, **inputs)["challenge"]
    assert "exact_match" not in challenge and challenge["match_f1"]["difference"] < -0.4


def test_nothing_but_the_answers_decides_the_interval():
    """Not the order of the questions, and nothing is drawn."""
    inputs = {"metrics": ["rouge_l"]}
    first = compute_metrics(**arguments(NINE_SCENES), **inputs)["overall"]["rouge_l_ci"]
    close(compute_metrics(**arguments(NINE_SCENES[::-1]), **inputs)["overall"]["rouge_l_ci"], first)
    assert compute_metrics(**arguments(NINE_SCENES), **inputs)["overall"]["rouge_l_ci"] == first


def test_comparison_tells_a_better_model_from_the_same_model():
    references = [f"There are {i} cars." for i in range(40)]
    scenes = [f"scene{i // 2}" for i in range(40)]
    worse = [text if i % 4 == 0 else "There are many cars." for i, text in enumerate(references)]
    options = {"scene_tokens": scenes, "metrics": ["exact_match", "bleu"]}
    better = compare_predictions(worse, references, references, **options)["overall"]["exact_match"]
    close(better["difference"], 0.75)
    assert better["ci"][0] > 0.5 and better["p_value"] < 2 / 1001
    moves = [1.0 - (worse[i] == references[i]) / 2 - (worse[i + 1] == references[i + 1]) / 2 for i in range(0, 40, 2)]
    t = 0.75 / (np.std(moves, ddof=1) / math.sqrt(20))
    close(better["ci"], [0.75 - 2.093024 * 0.75 / t, 0.75 + 2.093024 * 0.75 / t])  # t of 19 degrees of freedom
    close(better["p_value"], t_p_value(t, 19))
    same = compare_predictions(worse, worse, references, **options)["overall"]["bleu"]
    assert same == {"difference": 0.0, "ci": [0.0, 0.0], "p_value": 1.0}


# ---------------------------------------------------------------- the evaluate module


def test_evaluate_loads_the_folder_and_gives_the_same_scores(tmp_path, scores):
    """In a process that cannot import this package, offline."""
    (tmp_path / "inputs.json").write_text(json.dumps(arguments(ROWS)))
    script = (
        "import evaluate, json, sys\n"
        "metric = evaluate.load(sys.argv[1])\n"
        "print(json.dumps(metric.compute(**json.load(open('inputs.json')))))\n"
    )
    module = ROOT / "recipes" / "metrics" / "drivelm"
    assert run_python(script, module, folder=tmp_path, NLTK_DATA=os.pathsep.join(nltk.data.path)) == scores


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": ["bleu", "blue"]}, r"unknown metric 'blue'; the known ones are exact_match,"),
        ({"tags": [[7]] + [[]] * 11}, r"tags\[0\] is \[7\]; a list of the known tags \(0 accuracy, 1 GPT"),
        ({"tags": [0] * 12}, r"tags\[0\] is 0"),
        ({"question_types": ["yesno"] * 12}, r"question_types\[0\] is 'yesno'; the known types are yes_no,"),
        ({"predictions": ["No."]}, r"one entry for each question, got lengths \{'predictions': 1, 'references': 12"),
        ({"predictions": [None] * 12}, r"predictions\[0\] is None: a string was expected"),
        ({"metrics": ["accuracy"], "question_types": None}, r"metric 'accuracy' needs question_types"),
        ({"metrics": ["challenge_without_gpt"], "tags": [[]] * 12}, r"'challenge_without_gpt' needs tags, questions"),
        ({"metrics": ["challenge_without_gpt"], "tags": None}, r"'challenge_without_gpt' needs tags, questions"),
        ({"metrics": ["bertscore_f1"]}, r"'bertscore_f1' needs bertscore_model"),
        ({"metrics": ["bertscore_f1"], "bertscore_model": "no-model"}, r"'no-model' is neither a model's folder"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_with_the_value_and_the_fix(change, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(**{**arguments(ROWS), **change})


def test_no_predictions_at_all_are_refused():
    with pytest.raises(ValueError, match="nothing to score"):
        compute_metrics([], [])


def test_no_metrics_asked_for_gives_the_counts():
    assert compute_metrics(**arguments(ROWS), metrics=[])["overall"] == {"count": 12, "scenes": 3}


def test_empty_predictions_score_nothing():
    inputs = arguments(ROWS) | {"predictions": [""] * len(ROWS)}
    scores = compute_metrics(**inputs)
    for name, value in scores["overall"].items():
        if name in METRICS:
            assert value == pytest.approx(0.0, abs=1e-5), name
    assert scores["challenge"]["skipped"] == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), min_size=1, max_size=4))
def test_any_text_gives_scores_in_their_range(pairs):
    predictions, references = zip(*pairs, strict=True)
    count = len(pairs)
    options = {"scene_tokens": [str(i) for i in range(count)]}
    scores = compute_metrics(list(predictions), list(references), question_types=["listing"] * count, **options)
    for name, value in scores["overall"].items():
        if name in METRICS and value is not None:
            assert 0 <= value <= (10 if name == "cider" else 1) + 1e-9, name
    json.dumps(scores, allow_nan=False)


# ---------------------------------------------------------------- the real answers


@needs_sample
def test_sample_output_agrees_with_independent_implementations():
    answers = {item["id"]: item["answer"] for item in json.loads((SAMPLE / "output.json").read_text())}
    rows = []
    for scene, content in json.loads((SAMPLE / "test_eval.json").read_text()).items():
        for frame, key_frame in content["key_frames"].items():
            tasks = ("perception", "prediction", "planning", "behavior")
            items = [(task, item) for task in tasks for item in key_frame["QA"][task]]
            for i, (task, item) in enumerate(items):
                kind = data_question_types.question_type(item["Q"], task)
                rows.append(
                    (scene, frame, task, kind, item["tag"], item["Q"], item["A"], answers[f"{scene}_{frame}_{i}"])
                )
    scores = compute_metrics(**arguments(rows))
    predictions, references = [row[7] for row in rows], [row[6] for row in rows]
    java = java_tokens([*predictions, *references])
    gts, res = caption_dicts(java[len(rows) :]), caption_dicts(java[: len(rows)])
    for name, value in zip(COCO_BLEU, Bleu(4).compute_score(gts, res, verbose=0)[0], strict=True):
        close(scores["overall"][name], value)
    close(scores["overall"]["rouge_l"], Rouge().compute_score(gts, res)[0])
    close(scores["overall"]["cider"], Cider().compute_score(gts, res)[0])
    close(
        scores["overall"]["bleu"],
        plain_bleu([tokens_13a(p) for p in predictions], [tokens_13a(r) for r in references]),
    )
    expected, skipped = plain_challenge(rows)
    close(scores["challenge"]["challenge_without_gpt"], expected)
    assert scores["challenge"]["skipped"] == skipped
    assert scores["overall"]["bleu_ci"] is None  # one scene
