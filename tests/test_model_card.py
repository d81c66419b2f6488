"""The card says what was measured, beside what a model without the pictures gets, and what the model is not for."""

import ast
import copy
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from recipes.evaluation.model_card import REQUIRED_CONTROLS, write_card
from recipes.evaluation.predictions import CONTROLS, Leakage, Metrics, Settings

CONFIG = {
    "vision_config": {"cameras": ["CAM_FRONT", "CAM_BACK"], "tower_config": {"model_type": "vit"}, "grid_size": 6},
    "text_config": {"num_hidden_layers": 2, "hidden_size": 48},
    "scale_factor": 2,
}
BASE, TOWER = "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "google/vit-base-patch16-224-in21k"
STAGES = [
    {"base": BASE, "tower": TOWER, "scene_tokens": [], "steps": 0},
    {"base": "/runs/outputs/vision", "scene_tokens": ["a"], "steps": 11000, "seconds": 7260, "machine": "1 x T4"},
]


def result(accuracy: float, f1: float, bertscore: float | None) -> dict:
    overall = {"count": 90, "scenes": 9, "accuracy": accuracy, "accuracy_ci": [accuracy - 0.05, accuracy + 0.05]}
    overall |= {"bleu": accuracy / 2, "bleu_ci": [accuracy / 2 - 0.05, accuracy / 2 + 0.05]}
    if bertscore is not None:
        overall |= {"bertscore_f1": bertscore, "bertscore_f1_ci": [bertscore - 0.01, bertscore + 0.01]}
    listing = {"count": 20, "scenes": 7, "listing_f1": f1, "listing_f1_ci": [f1 - 0.1, f1 + 0.1]}
    yes_no = {"scenes": 8, "accuracy": accuracy, "accuracy_ci": [0, 1]}
    return {"overall": overall, "yes_no": yes_no, "listing": listing}


@pytest.fixture
def metrics() -> Metrics:
    """Far above its controls, except in its listings, which the text-only control reaches."""
    results = {"smoldriver": result(0.80, 0.60, 0.97)}
    results |= {name: result(0.50, 0.40, 0.93) for name in REQUIRED_CONTROLS}
    results["text_only"]["listing"]["listing_f1"] = 0.55
    budget = {"closed_accuracy": 0.79, "yes_no": 0.78, "listing_f1": 0.5, "questions": 90}
    budget |= {"encode_seconds_per_frame": 0.0105, "answer_seconds_per_question": 0.002}
    return Metrics(
        settings=Settings(
            model="/runs/outputs/model",
            name="smoldriver",
            scenes="/runs/scenes",
            split="test",
            use_scene_description=True,
            visual_tokens=4,
        ),
        leakage=Leakage(evaluated=9, shared=0, trained=1, stages=2),
        results=results,
        interval="95% t over scenes",
        bertscore_encoder="all-MiniLM-L6-v2, layer 6",
        budgets={9: budget},
    )


def card(metrics: Metrics, stages=STAGES, data: str = "drivelm") -> str:
    return write_card("user/smoldriver", metrics, stages, CONFIG, ["figures/scores.png"], data)


def test_front_matter_is_what_the_hub_reads(metrics):
    front = yaml.safe_load(card(metrics).split("---")[1])
    assert front["pipeline_tag"] == "image-text-to-text" and front["library_name"] == "transformers"
    assert front["license"] == "cc-by-nc-sa-4.0" and "custom_code" in front["tags"]
    assert front["base_model"] == [BASE, TOWER]
    assert len(front["widget"]) == 3 and all(example["text"].endswith(("?", ".")) for example in front["widget"])
    index = front["model-index"][0]
    assert index["name"] == "smoldriver" and index["results"][0]["task"]["type"] == "image-text-to-text"
    assert index["results"][0]["dataset"]["split"] == "test"


def test_model_index_gives_each_headline_its_interval_and_controls(metrics):
    entries = {entry.metric_name: entry for entry in ModelCard(card(metrics)).data.eval_results}
    assert list(entries) == ["closed accuracy", "yes/no accuracy", "listing F1", "BLEU", "BERTScore F1"]
    assert entries["listing F1"].metric_value == 0.6 and entries["listing F1"].metric_type == "f1"
    assert entries["listing F1"].metric_args == {
        "interval_95": [0.5, 0.7],
        "controls": {"majority": 0.4, "other_scene_images": 0.4, "text_only": 0.55},
    }


def test_table_shows_each_control_under_the_model(metrics):
    text = card(metrics)
    rows = re.findall(r"^\| (?:\*\*|`)(\w+)(?:\*\*|`) \| (.+) \|$", text, re.MULTILINE)
    assert [name for name, _ in rows] == ["smoldriver", *REQUIRED_CONTROLS]
    assert rows[0][1].split(" | ") == [
        "80.0 (75.0 to 85.0)",
        "80.0 (0.0 to 100.0)",
        "60.0 (50.0 to 70.0)",
        "40.0 (35.0 to 45.0)",
        "97.0 (96.0 to 98.0)",
    ]
    for name in REQUIRED_CONTROLS:
        assert f"- `{name}`: {CONTROLS[name]}" in text
    assert "BERTScore encoder: all-MiniLM-L6-v2, layer 6" in text and "95% t over scenes" in text
    assert "| 9 | 79.0 | 78.0 | - | 50.0 | 10.5 | 2.0 |" in text
    assert "![figures/scores.png](figures/scores.png)" in text and "{{" not in text and "{%" not in text


def test_card_says_how_the_model_was_asked(metrics):
    assert (
        "Asked with 4 visual tokens per camera, with the scene description in the prompt, all questions of all frames,"
        " answers of at most 256 tokens."
    ) in card(metrics)


def test_training_that_is_not_wholly_known_is_shown_in_bold(metrics):
    line = "Scenes shared with the training: "
    assert f"{line}none: the 9 scenes" in card(metrics)
    metrics.leakage = replace(metrics.leakage, gone=["vision"])
    unknown = "unknown: it learned from vision, gone or without training_manifest.json; of the recorded, the 9 scenes"
    assert f"{line}**{unknown} are not among the 1 training scenes (2 stages)**." in card(metrics)


def test_a_number_that_a_control_reaches_is_called_so(metrics):
    """An interval of 0 to 100 percent says nothing either."""
    text = card(metrics)
    line = re.search(
        r"\*\*Not clearly better than its best control\*\* .*? there is no interval\): (.*)\.$", text, re.MULTILINE
    )[1]
    assert line.split("; ") == ["yes/no accuracy (majority: 50.0)", "listing F1 (text_only: 55.0)"]
    for name in REQUIRED_CONTROLS:
        for group in ("yes_no", "listing"):
            metrics.results[name][group] = {"accuracy": -0.1, "listing_f1": 0.1}
    assert "Not clearly better" not in card(metrics)


def test_headline_without_an_interval_is_refused(metrics):
    """As an evaluation of fewer than three scenes leaves it."""
    for group, metric, name in (("listing", "listing_f1", "listing F1"), ("overall", "bleu", "BLEU")):
        without = copy.deepcopy(metrics)
        without.results["smoldriver"][group][f"{metric}_ci"] = None
        with pytest.raises(ValueError, match=f"'{name}' lacks its interval: it is of .* scenes, evaluate at least 3"):
            card(without)
    metrics.results["smoldriver"]["overall"] |= {"scenes": 1, "accuracy_ci": None}
    with pytest.raises(ValueError, match="'closed accuracy' lacks its interval"):
        card(metrics)


def test_question_type_in_one_scene_is_shown_without_an_interval_and_as_unclear(metrics):
    metrics.results["smoldriver"]["listing"] |= {"scenes": 1, "listing_f1": 0.99, "listing_f1_ci": None}
    text = card(metrics)
    assert "| 99.0 (no interval: 1 scenes) |" in text
    assert "listing F1 (no interval: fewer than 3 scenes)." in text
    entries = {entry.metric_name: entry for entry in ModelCard(text).data.eval_results}
    assert set(entries["listing F1"].metric_args) == {"controls"}


@pytest.mark.parametrize("control", REQUIRED_CONTROLS)
def test_headline_without_a_control_is_refused_by_name(control, metrics):
    missing = copy.deepcopy(metrics)
    del missing.results[control]
    missing.left_out_controls = {control: "the split has one scene only"}
    message = f"'closed accuracy' lacks its control '{control}' \\(left out: the split has one scene only\\): evaluate"
    with pytest.raises(ValueError, match=message):
        card(missing)
    del metrics.results[control]["listing"]
    with pytest.raises(ValueError, match=f"'listing F1' lacks its control '{control}': evaluate with --controls"):
        card(metrics)


def test_evaluation_without_a_headline_or_on_training_frames_is_refused(metrics):
    for entry in metrics.results.values():
        del entry["yes_no"], entry["listing"]
        entry["overall"] = {"count": 90, "scenes": 9, "rouge_l": 0.5}
    with pytest.raises(ValueError, match="has none of the headline numbers closed accuracy, yes/no"):
        card(metrics)
    metrics.settings = replace(metrics.settings, split="train")
    with pytest.raises(ValueError, match="training frames \\(split 'train'\\): a card needs a held-out split"):
        card(metrics)


def test_card_says_what_the_model_is_not_for_and_under_which_terms(metrics):
    text = card(metrics)
    assert "**Out of scope: it must not drive a car.**" in text and "identify or watch people" in text
    licences = text.partition("## Licences")[2]
    assert "DriveLM" in licences and "nuScenes" in licences and "no commercial use" in licences
    synthetic = card(metrics, data="synthetic")
    front = yaml.safe_load(synthetic.split("---")[1])
    assert front["license"] == "apache-2.0" and "datasets" not in front
    assert "no road was recorded" in synthetic.partition("## Licences")[2]


def test_loading_takes_at_most_ten_lines(metrics):
    code = re.search(r"```python\n(.*?)```", card(metrics), re.DOTALL)[1]
    assert len(code.strip().splitlines()) <= 10
    assert 'name = "user/smoldriver"' in code and "trust_remote_code=True" in code
    ast.parse(code)


def test_training_is_shown_with_its_time_and_hardware_and_without_paths(metrics):
    text = card(metrics)
    assert f"| 1 | {BASE} and {TOWER} | 0 | 0 | not recorded | not recorded |" in text
    assert "| 2 | vision | 1 | 11000 | 121 min (7,260 s) | 1 x T4 |" in text
    assert "/runs" not in text
    assert "There is no record of its training." in card(metrics, stages=[])
    from_nothing = {"base": None, "scene_tokens": ["a", "b"], "steps": 700, "seconds": 120, "machine": "CPU, 2 cores"}
    text = card(metrics, stages=[from_nothing])
    assert "| 1 | random weights | 2 | 700 | 2 min (120 s) | CPU, 2 cores |" in text and "base_model" not in text


def test_the_card_links_the_space_where_there_is_one(metrics):
    arguments = ("user/smoldriver", metrics, STAGES, CONFIG, [], "drivelm")
    assert "https://huggingface.co/spaces/user/page" in write_card(*arguments, space="user/page")
    assert "huggingface.co/spaces" not in write_card(*arguments)
