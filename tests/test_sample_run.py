"""The main job, by its own commands: real DriveLM frames -> scene rows -> training -> answers in a clean process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from processes import HIDE_PROJECT

ROOT = Path(__file__).parents[1]
FASTER = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}  # as the Makefile sets them

# Runs where our package cannot be imported: python -c CLEAN_PROCESS <model folder> <shard> <answers.json>
CLEAN_PROCESS = (
    HIDE_PROJECT
    + """
import io, json, sys

import pyarrow.parquet as pq
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, shard, path = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
answers = {}
for row in pq.read_table(shard).to_pylist():
    images = {camera: Image.open(io.BytesIO(row[camera]["bytes"])) for camera in processor.cameras}
    scene = model.encode_scene(**processor.encode_scene(images))
    questions = [qa["question"] for qa in row["qa"]]
    for number, answer in enumerate(model.answer(scene, processor, questions, max_new_tokens=256)):
        answers[f"{row['frame_token']}_{number}"] = answer
json.dump(answers, open(path, "w"))
"""
)


def run(*command, cwd=ROOT, **environment) -> str:
    """The command's standard output."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command[0]}: {done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def sample(drivelm_sample, tmp_path_factory):
    """What `make sample` leaves, in a folder of its own; and what the evaluation printed."""
    out = tmp_path_factory.mktemp("sample")
    scenes = json.loads((drivelm_sample / "train_sample.json").read_text())
    first = next(iter(scenes))  # the sample as downloaded has a second one
    (out / "first_scene.json").write_text(json.dumps({first: scenes[first]}))
    run(
        *("data_scripts/prepare_drivelm.py", "--json", out / "first_scene.json"),
        *("--image-root", drivelm_sample / "nuscenes", "--split", "train", "--object-tags", "drop"),
        *("--image-height", 225, "--output-dir", out / "scenes"),
    )
    run("recipes/tiny/tiny_base.py", "--scenes", out / "scenes", "--output-dir", out / "base")
    base = out / "base"
    build = ("recipes/build_checkpoint.py", "--base", base / "vlm", "--tower", base / "tower")
    run(*build, "--output-dir", out / "model")
    config = ("--config", "recipes/configs/tiny/drivelm_sample.yaml", "--disable_tqdm", "true")
    folders = ("--model_name_or_path", out / "model", "--scenes", out / "scenes", "--output_dir", out / "trained")
    run("recipes/sft_qlora.py", *config, *folders, **FASTER)
    evaluate = ("recipes/evaluate_drivelm.py", "--model", out / "trained", "--scenes", out / "scenes")
    return out, run(*evaluate, "--split", "train", "--output-dir", out / "eval")


def test_sample_is_memorised(sample):
    """At least 90% of the closed questions; who does not look at the pictures gets 86% at most."""
    out, printed = sample
    results = json.loads((out / "eval" / "metrics.json").read_text())["results"]
    assert results["smoldriver"]["overall"]["accuracy"] >= 0.9, printed
    assert results["smoldriver"]["overall"]["accuracy_count"] == 84
    assert results["majority"]["overall"]["accuracy"] < 0.87
    assert "closed accuracy" in printed and "left out: other_scene_images" in printed


def test_trained_folder_answers_where_the_package_is_not_installed(sample, tmp_path):
    out, _ = sample
    shard, answers = out / "scenes" / "train" / "shard-00000.parquet", tmp_path / "answers.json"
    modules = str(tmp_path / "modules")
    run("-c", CLEAN_PROCESS, out / "trained", shard, answers, cwd=tmp_path, HF_MODULES_CACHE=modules, PYTHONPATH="")
    predictions = pq.read_table(out / "eval" / "predictions.parquet").to_pylist()
    expected = {row["id"]: row["prediction"] for row in predictions if row["model"] == "smoldriver"}
    assert json.loads(answers.read_text()) == expected and len(expected) == 131


def test_run_leaves_its_samples_and_manifest(sample):
    trained = sample[0] / "trained"
    assert json.loads((trained / "samples.json").read_text())
    manifest = json.loads((trained / "training_manifest.json").read_text())
    assert manifest["scene_tokens"] and manifest["steps"] == manifest["arguments"]["max_steps"]
    for part in ("vlm", "tower"):
        record = json.loads((sample[0] / "base" / part / "training_manifest.json").read_text())
        assert record["base"] is None and record["scene_tokens"] == [] and record["steps"] == 0
