"""What is pushed loads again from the Hub, is private and whole or not there at all, and is what was evaluated.

The Hub is `hub_server.py` on loopback; the client is huggingface_hub's own, over HTTP.
"""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from fakes import (
    QUESTIONS,
    command_line,
    evaluate,
    picture,
    prompt_of,
    scene_row,
    small_files,
    tiny_model,
    write_scenes,
)
from hub_server import TOKEN, Hub
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import _http
from PIL import Image
from processes import HIDE_PROJECT
from safetensors.torch import load_file, save_file

from modeling_smoldriver import CAMERAS
from recipes import push_to_hub
from recipes.evaluation.predictions import content_digest
from recipes.evaluation.provenance import check_leakage, loading_digests, training_stages
from recipes.evaluation.repository import slim_manifest
from recipes.training.loading import load_model
from recipes.training.manifest import write_training_manifest

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[1]
REPO = "user/smoldriver"
CONTROLS = ("majority", "other_scene_images", "text_only")

# Runs on its own, in a folder with one picture per camera: `python -c CLEAN_PROCESS`. The card's example loads.
CLEAN_PROCESS = (
    HIDE_PROJECT
    + """
import json, sys

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
scope = {}
exec(open("example.py").read(), scope)
model, processor = scope["model"], scope["processor"]
answers = model.answer(scope["scene"], processor, json.load(open("questions.json")), max_new_tokens=6)
with torch.no_grad():
    save_file({"logits": model(**load_file("inputs.safetensors")).logits}, "logits.safetensors")
result = {"answers": answers, "module": type(model).__module__, "from": model.config._name_or_path}
json.dump(result, open("result.json", "w"))
"""
)


@pytest.fixture(scope="module")
def trained(config, processor, tmp_path_factory):
    """A model folder with what training leaves in it, and its evaluation on scenes held out."""
    root = tmp_path_factory.mktemp("trained")
    frames = [scene_row(number, 4) for number in range(10)]
    scenes = write_scenes(root / "scenes", frames[:4], tuple(frames[4:]))
    tiny_model(config).save_pretrained(root / "base")
    processor.save_pretrained(root / "base")
    for part in load_model(root / "base"):  # as training saves them, who know where they were loaded from
        part.save_pretrained(root / "model")
    for left_over in ("training_args.bin", "samples.json", "README.md"):
        (root / "model" / left_over).write_text("{}")
    (root / "model" / "checkpoint-2").mkdir()
    manifest = {"base": "user/base", "scenes": str(scenes), "scene_tokens": ["scene0", "scene1"], "steps": 7}
    write_training_manifest(root / "model", {**manifest, "seconds": 90, "arguments": {"output_dir": str(root)}})
    arguments = {"model": root / "model", "scenes": scenes, "split": "test", "output-dir": root / "eval"}
    arguments |= {"max-new-tokens": 6, "bertscore-model": "none"}
    with pytest.MonkeyPatch.context() as patch:
        evaluate(patch, arguments, "--controls", *CONTROLS)
    return root


@pytest.fixture
def hub(monkeypatch):
    with Hub() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)  # read by clients before 1.0
        if hasattr(_http, "reset_sessions"):  # huggingface_hub 0.36 keeps a session that was made offline
            _http.reset_sessions()
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(push_to_hub, "HfApi", lambda: HfApi(hub.endpoint, token=TOKEN))
        yield hub


@pytest.fixture
def arguments(trained):
    return {"model": trained / "model", "evaluation": trained / "eval", "repo-id": REPO, "data": "synthetic"}


def push(monkeypatch, arguments: dict, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["push_to_hub.py", *command_line(arguments, *more)])
    push_to_hub.main()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """For a process of its own: the Hub on loopback, the token, and nothing of this project or of an older cache."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "HF_"))}
    own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return kept | own | {"OMP_NUM_THREADS": "1"}


def run(command: list, folder: Path, **options) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def published(trained, tmp_path_factory):
    """The command line pushed to a Hub; then a process without our packages loaded it by the card's own example."""
    home, work = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("work")
    pushed = {"model": trained / "model", "evaluation": trained / "eval", "repo-id": REPO, "data": "synthetic"}
    with Hub() as hub:
        command = ["recipes/push_to_hub.py", *command_line(pushed)]
        printed = run(command, ROOT, env=environment(hub, home) | {"PYTHONPATH": str(ROOT)})
        card = hub.files(REPO)["README.md"].decode()
        (work / "example.py").write_text(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1])
        (work / "questions.json").write_text(json.dumps(QUESTIONS))
        for number, camera in enumerate(CAMERAS):
            picture(number).save(work / f"{camera}.jpg")
        images = {camera: Image.open(work / f"{camera}.jpg") for camera in CAMERAS}
        model, processor = load_model(trained / "model")
        inputs = prompt_of(processor, images, QUESTIONS[0])
        save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, work / "inputs.safetensors")
        run(["-c", CLEAN_PROCESS], work, env=environment(hub, home))
    scene = model.encode_scene(**processor.encode_scene(images))
    with torch.no_grad():
        logits = model(**inputs).logits
    answers = model.answer(scene, processor, QUESTIONS, max_new_tokens=6)
    return {"hub": hub, "printed": printed, "card": card, "work": work, "logits": logits, "answers": answers}


# The round trip


def test_clean_process_gets_the_same_model_from_the_hub_by_the_cards_example(published):
    result = json.loads((published["work"] / "result.json").read_text())
    assert result["module"].startswith("transformers_modules.user.smoldriver.") and result["from"] == REPO
    assert result["answers"] == published["answers"] and len(set(result["answers"])) == len(QUESTIONS)
    assert torch.equal(load_file(published["work"] / "logits.safetensors")["logits"], published["logits"])


def test_push_is_one_commit_into_a_private_repository(published):
    repo = published["hub"].repos[REPO]
    assert repo["private"] and len(repo["commits"]) == 1
    assert f"private: {published['hub'].endpoint}/{REPO}/commit/" in published["printed"]


def test_what_is_published_is_what_loading_needs_and_what_shows_the_evaluation(published, trained):
    files = published["hub"].files(REPO)
    roles = ("configuration", "inputs", "resampler", "scene", "modeling", "processing")
    expected = {f"{role}_smoldriver.py" for role in roles}
    expected |= {"README.md", "model.safetensors", "config.json", "generation_config.json", "chat_template.jinja"}
    expected |= {"processor_config.json", "tokenizer.json", "tokenizer_config.json", "training_manifest.json"}
    expected |= {"report.html", "figures/scores.png", "figures/question_types.png", "handler.py", "requirements.txt"}
    expected |= {name for name in files if re.fullmatch(r"examples/[123](\.png|_CAM_[A-Z_]+\.(png|jpg))", name)}
    allowed = {"preprocessor_config.json", "special_tokens_map.json"}  # which transformers 4.57 saves
    assert expected <= files.keys() <= expected | allowed
    assert files["model.safetensors"] == (trained / "model" / "model.safetensors").read_bytes()
    for name, content in files.items():
        assert name.endswith((".safetensors", ".png")) or str(trained).encode() not in content, name
    assert files["handler.py"] == (ROOT / "recipes" / "serving" / "handler.py").read_bytes()
    for left in ("checkpoint-2", "samples.json", "training_args.bin"):
        assert left in published["printed"].partition("stays at home: ")[2]


def test_published_manifest_names_the_training_scenes_alone(published):
    manifest = json.loads(published["hub"].files(REPO)["training_manifest.json"])
    size = {"steps": 7, "seconds": 90}
    assert manifest == {"scene_tokens": ["scene0", "scene1"], **size, "unrecorded": ["user/base"]}


def test_published_manifest_tells_of_teachers_and_of_what_is_gone_without_paths(trained, tmp_path):
    teacher, model = tmp_path / "teacher", tmp_path / "model"
    write_training_manifest(teacher, {"base": None, "scene_tokens": ["scene7"], "steps": 1000})
    manifest = {"base": str(tmp_path / "vision"), "scene_tokens": ["scene0"], "steps": 7, "seconds": 90}
    write_training_manifest(model, manifest | {"arguments": {"teacher_model": str(teacher)}})
    slim = slim_manifest(model, training_stages(model, local_files_only=True))
    assert slim == {"scene_tokens": ["scene0", "scene7"], "steps": 7, "seconds": 90, "unrecorded": ["vision"]}
    write_training_manifest(tmp_path / "fetched", slim)
    assert str(check_leakage(tmp_path / "fetched", ["scene9"], "test")).startswith(
        "unknown: it learned from vision, gone"
    )


def test_card_holds_the_numbers_of_the_evaluation_with_intervals_and_controls(published, trained):
    results = json.loads((trained / "eval" / "metrics.json").read_text())["results"]
    found = {entry.metric_name: entry for entry in ModelCard(published["card"]).data.eval_results}
    assert list(found) == ["closed accuracy", "yes/no accuracy", "listing F1", "BLEU"]
    overall = found["BLEU"]
    assert overall.metric_value == round(results["smoldriver"]["overall"]["bleu"], 4)
    assert overall.metric_args["interval_95"] == [
        round(bound, 4) for bound in results["smoldriver"]["overall"]["bleu_ci"]
    ]
    assert overall.metric_args["controls"] == {name: round(results[name]["overall"]["bleu"], 4) for name in CONTROLS}
    for name in CONTROLS:
        assert re.search(rf"^\| `{name}` \|( [\d.]+ \([\d.]+ to [\d.]+\) \|)+", published["card"], re.MULTILINE)


@pytest.mark.skipif(
    huggingface_hub.__version__.startswith("0."), reason="the older client keeps the address it was imported with"
)
def test_published_model_names_its_training_scenes_to_who_evaluates_it(published, hub, monkeypatch, tmp_path):
    hub.repos = published["hub"].repos
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    address = constants.HUGGINGFACE_CO_URL_TEMPLATE  # made from the endpoint when the client was imported
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + address[address.index("/{") :])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert training_stages(REPO, local_files_only=True) == [] and hub.requests == []
    with pytest.raises(ValueError, match="1 of the 2 scenes of split 'test' are training scenes of user/smoldriver"):
        check_leakage(REPO, ["scene1", "scene7"], "test")
    assert training_stages(REPO, local_files_only=True)[0]["scene_tokens"] == ["scene0", "scene1"]


ASK_FOR_RECORDS = """
import json, sys, time
from recipes.evaluation.provenance import check_leakage
time.sleep = lambda seconds: None  # between the client's own tries
for model in sys.argv[1:]:
    print(check_leakage(model, ["scene9"], "test"))
"""


def test_a_repository_that_could_not_be_looked_at_leaves_the_training_unknown(tmp_path):
    """Offline, busy, hidden or gone; a repository without a record is another thing."""
    home, bases = tmp_path / "home", ("user/plain", "user/busy", "user/locked", "user/gone")
    for base in bases:
        write_training_manifest(tmp_path / base.split("/")[1], {"base": base, "scene_tokens": ["scene0"]})
    folders = [tmp_path / base.split("/")[1] for base in bases]
    with Hub() as hub:
        files = {"config.json": b"{}"}
        hub.repos["user/plain"] = {"private": False, "commits": [{"oid": "0" * 40, "summary": "", "files": files}]}
        hub.errors = {"user/busy": 503, "user/locked": 401}
        lines = run(["-c", ASK_FOR_RECORDS, *folders, "user/gone"], ROOT, env=environment(hub, home)).splitlines()
    found = "the 1 scenes are not among the 1 training scenes (1 stages)"
    assert lines[0] == f"none: {found}; not recorded: user/plain"
    for base, line in zip(bases[1:], lines[1:4], strict=True):
        assert line == f"unknown: could not read training_manifest.json of {base}; of the recorded, {found}"
    assert lines[4] == "unknown: could not read training_manifest.json of user/gone"
    assert str(check_leakage(folders[0], ["scene9"], "test")) == (  # offline, as the tests are
        f"unknown: could not read training_manifest.json of user/plain; of the recorded, {found}"
    )


def test_the_page_shows_frames_with_the_evaluations_own_answers(published, trained):
    files, data = published["hub"].files(REPO), ModelCard(published["card"]).data
    predictions = pq.read_table(trained / "eval" / "predictions.parquet").to_pylist()
    own = [row for row in predictions if row["model"] not in CONTROLS]
    answers = {(row["question"], row["reference"], row["prediction"]) for row in own}
    assert "conversational" in data.tags and 1 <= len(data.widget) <= 3
    for number, entry in enumerate(data.widget, start=1):
        name = entry["src"].removeprefix(f"https://huggingface.co/{REPO}/resolve/main/")
        assert name == f"examples/{number}.png"
        reference = re.search(r" \(truth: (.*)\)$", entry["example_title"])[1]
        assert (entry["text"], reference, entry["output"]["text"]) in answers
        views = [Image.open(io.BytesIO(files[view])) for view in files if view.startswith(f"examples/{number}_")]
        whole = Image.open(io.BytesIO(files[name]))
        assert len(views) == 6 and whole.size == (3 * views[0].width, 2 * views[0].height)


def test_scores_on_a_data_set_of_the_hub_go_with_interval_and_controls(trained, tmp_path, monkeypatch):
    files, _ = push_to_hub.repository_files(trained / "model", trained / "eval", REPO, "drivelm")
    assert not any(name.startswith("examples/") for name in files)  # nuScenes' pictures are not published again
    entries = yaml.safe_load(files[".eval_results/smoldriver.yaml"])
    found = {entry.metric_name: entry for entry in ModelCard(files["README.md"].decode()).data.eval_results}
    assert len(entries) == len(found)
    for entry, shown in zip(entries, found.values(), strict=True):
        assert entry["dataset"]["id"] == "OpenDriveLab/DriveLM" and entry["source"]["url"].endswith(REPO)
        assert entry["value"] == pytest.approx(100 * shown.metric_value, abs=0.01)
        assert all(f"{name} " in entry["notes"] for name in CONTROLS) and "; 95% " in entry["notes"]


def test_answers_that_are_not_of_the_scenes_are_refused(trained, tmp_path):
    shutil.copytree(trained / "eval", tmp_path / "eval")
    path = tmp_path / "eval" / "predictions.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"reference": "Perhaps."} for row in rows]), path)
    with pytest.raises(ValueError, match="the predictions of .* are not of its scenes: .*evaluate again"):
        push_to_hub.repository_files(trained / "model", tmp_path / "eval", REPO, "synthetic")


# What a push must not do


def test_dry_run_lists_the_files_and_contacts_nobody(arguments, hub, monkeypatch, capsys, published):
    """Not even for the manifest of the base, which is a Hub id."""

    def refuse(*_):
        raise AssertionError("something was contacted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    push(monkeypatch, arguments, "--dry-run")
    printed = capsys.readouterr().out
    assert re.findall(r"^ *[\d,]+  (\S+)$", printed, re.MULTILINE) == list(published["hub"].files(REPO))
    assert "dry run: nothing was sent to user/smoldriver (private)" in printed
    assert hub.requests == [] and hub.repos == {}


@pytest.mark.parametrize("where", ["PUT", "commit"])
def test_push_that_fails_publishes_nothing_and_can_be_repeated(where, arguments, hub, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the client's own tries
    hub.broken = where
    with pytest.raises(SystemExit) as stopped:
        push(monkeypatch, arguments)
    assert str(stopped.value).startswith("push_to_hub: the push to user/smoldriver failed: ")
    assert "\n" not in str(stopped.value)
    assert any(method == ("PUT" if where == "PUT" else "POST") for method, _ in hub.requests)
    assert hub.repos[REPO]["commits"] == [] and hub.repos[REPO]["private"]
    hub.broken = None
    push(monkeypatch, arguments)
    assert len(hub.repos[REPO]["commits"]) == 1


def test_a_space_is_published_beside_its_model(arguments, hub, monkeypatch, capsys):
    """In a repository of its own; the next push replaces its own files and leaves others."""
    push(monkeypatch, arguments, "--space")
    space = hub.repos[f"spaces/{REPO}"]
    assert space["private"] and len(space["commits"]) == 1 == len(hub.repos[REPO]["commits"])
    files = dict(hub.files(f"spaces/{REPO}"))
    assert json.loads(files["settings.json"]) == {"model": REPO} and f"- {REPO}\n" in files["README.md"].decode()
    assert f"[its Space](https://huggingface.co/spaces/{REPO})" in hub.files(REPO)["README.md"].decode()
    assert {"app.py", "answering.py", "showing.py", "requirements.txt", "examples/examples.json"} <= files.keys()
    assert sum(name.startswith("examples/0_CAM_") for name in files) == len(CAMERAS)
    printed = capsys.readouterr().out
    assert all(f"  {name}\n" in printed.partition("the Space:\n")[2] for name in files)
    assert f"private Space: {hub.endpoint}/spaces/{REPO}/commit/" in printed
    space["commits"][-1]["files"] |= {"examples/9_CAM_BACK.png": b"stale", "notes.md": b"a user's"}
    push(monkeypatch, arguments, "--space")
    assert hub.files(f"spaces/{REPO}") == files | {"notes.md": b"a user's"}


def test_a_space_of_drivelm_holds_no_pictures(arguments, hub, monkeypatch, capsys):
    push(monkeypatch, {**arguments, "data": "drivelm"}, "--space", "--dry-run")
    listed = capsys.readouterr().out.partition("the Space:\n")[2]
    assert "  app.py\n" in listed and "CAM_" not in listed and hub.repos == {}


def test_next_push_replaces_its_own_files_and_leaves_others(arguments, hub, monkeypatch):
    hub.repos[REPO] = {"private": True, "commits": []}
    old = {"figures/old.png": b"old", "model-00001-of-00002.safetensors": b"old"}
    theirs = {"onnx/model.safetensors": b"mine", "adapters/adapter_model.safetensors": b"mine"}
    theirs |= {"figures/talk/slide.png": b"mine", "notes.txt": b"mine"}
    old |= theirs
    hub.repos[REPO]["commits"].append({"oid": "0" * 40, "summary": "first", "files": old})
    push(monkeypatch, arguments)
    files = hub.files(REPO)
    assert len(hub.repos[REPO]["commits"]) == 2 and theirs.items() <= files.items()
    assert {name for name in files.keys() - theirs.keys() if name.startswith("figures/")} == {
        "figures/scores.png",
        "figures/question_types.png",
    }
    own = files.keys() - theirs.keys()
    assert {name for name in own if name.endswith(".safetensors")} == {"model.safetensors"}


@pytest.mark.parametrize(
    "private, more, message", [(False, (), "is public: give"), (True, ("--public",), "leave out")]
)
def test_repository_of_the_other_visibility_is_refused(private, more, message, arguments, hub, monkeypatch):
    hub.repos[REPO] = {"private": private, "commits": []}
    with pytest.raises(SystemExit, match=f"push_to_hub: user/smoldriver exists and .*{message}"):
        push(monkeypatch, arguments, *more)
    assert hub.repos[REPO]["commits"] == []


def test_public_must_be_asked_for(arguments, hub, monkeypatch, capsys):
    push(monkeypatch, arguments, "--public")
    assert not hub.repos[REPO]["private"] and "public: http" in capsys.readouterr().out


def test_wrong_token_ends_with_one_line(arguments, hub, monkeypatch):
    monkeypatch.setattr(push_to_hub, "HfApi", lambda: HfApi(hub.endpoint, token="hf_wrong"))
    with pytest.raises(SystemExit, match="^push_to_hub: the push to user/smoldriver failed: .*401") as stopped:
        push(monkeypatch, arguments)
    assert "\n" not in str(stopped.value) and hub.repos == {}


def other_weights(model: Path, evaluation: Path, config):
    tiny_model(config, seed=1).save_pretrained(model)
    return "is an evaluation of .* with other weights than those in .*evaluate_drivelm.py --model"


def adapters(model: Path, evaluation: Path, config):
    (model / "adapter_config.json").write_text("{}")
    return "holds adapters: merge them first, with recipes/merge_checkpoint.py"


def no_tokenizer(model: Path, evaluation: Path, config):
    (model / "tokenizer_config.json").unlink()
    (model / "scene_smoldriver.py").unlink()
    (model / "resampler_smoldriver.py").unlink()
    return "lacks tokenizer_config.json.*resampler_smoldriver.py.*scene_smoldriver.py"


def no_shard(model: Path, evaluation: Path, config):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return "lacks model-00002-of-00002.safetensors"


def unfinished(model: Path, evaluation: Path, config):
    (evaluation / "metrics.json").unlink()
    return "is not a finished evaluation: it has no metrics.json"


def change_metrics(evaluation: Path, change) -> None:
    """As an evaluation would have written them."""
    metrics = json.loads((evaluation / "metrics.json").read_text())
    change(metrics)
    (evaluation / "metrics.json").write_text(json.dumps(metrics | {"sha256": content_digest(metrics)}))


def evaluated_as_it_is(model: Path, evaluation: Path) -> None:
    files = loading_digests(model)
    change_metrics(evaluation, lambda metrics: metrics["info"].update(files_sha256=files))


def change_json(path: Path, **changed) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def older_format(model: Path, evaluation: Path, config):
    change_metrics(evaluation, lambda metrics: metrics.pop("format"))
    return r"metrics.json has format 1, this version reads format 2: evaluate again with recipes/evaluate_drivelm.py"


def no_control(model: Path, evaluation: Path, config):
    change_metrics(evaluation, lambda metrics: metrics["results"].pop("text_only"))
    return "the headline number 'closed accuracy' lacks its control 'text_only': evaluate with --controls majority"


def training_frames(model: Path, evaluation: Path, config):
    change_metrics(evaluation, lambda metrics: metrics["info"]["settings"].update(split="train"))
    return "asked about training frames"


def edited_config(model: Path, evaluation: Path, config):
    change_json(model / "config.json", scale_factor=3)
    return "config.json of .* changed after the evaluation .*: run recipes/evaluate_drivelm.py --model .* again"


def edited_processor(model: Path, evaluation: Path, config):
    change_json(model / "processor_config.json", note=1)
    (model / "chat_template.jinja").write_text("{{ messages }}")
    return "chat_template.jinja, processor_config.json of .* changed after the evaluation"


def added_file(model: Path, evaluation: Path, config):
    (model / "added_tokens.json").write_text("{}")
    return "added_tokens.json of .* changed after the evaluation"


def removed_file(model: Path, evaluation: Path, config):
    (model / "generation_config.json").unlink()
    return "generation_config.json of .* changed after the evaluation"


def edited_code(model: Path, evaluation: Path, config):
    with (model / "modeling_smoldriver.py").open("a") as file:
        file.write("\nimport os\n")
    evaluated_as_it_is(model, evaluation)
    return "modeling_smoldriver.py is not this version's own code: load the model and save it again"


def other_code(model: Path, evaluation: Path, config):
    (model / "secret_smoldriver.py").write_text("KEY = 'hf_abc'")
    evaluated_as_it_is(model, evaluation)
    return "secret_smoldriver.py is not this version's own code"


def code_of_another_repository(model: Path, evaluation: Path, config):
    change_json(model / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil/code--tokens.Evil", None]})
    evaluated_as_it_is(model, evaluation)
    return "tokenizer_config.json names code of another repository .*evil/code--tokens.Evil"


def edited_scores(model: Path, evaluation: Path, config):
    metrics = json.loads((evaluation / "metrics.json").read_text())
    metrics["results"]["smoldriver"]["overall"]["bleu"] = 0.99
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    return "metrics.json was edited after the evaluation: evaluate again"


def scores_of_odd_types(model: Path, evaluation: Path, config):
    change_metrics(evaluation, lambda metrics: metrics["info"].update(settings=[1]))
    return "metrics.json is damaged"


def link_outside(model: Path, evaluation: Path, config):
    (model.parent / "secret").write_text("hf_abc")
    (model / "vocab.txt").symlink_to(model.parent / "secret")
    evaluated_as_it_is(model, evaluation)
    return "vocab.txt is a link to .*secret, outside of the folder: copy that file here, or remove it"


def figure_outside(model: Path, evaluation: Path, config):
    (model.parent / "secret").write_text("hf_abc")
    (evaluation / "figures" / "a.png").symlink_to(model.parent / "secret")
    return "a.png is a link to .*secret, outside of the folder"


def figures_outside(model: Path, evaluation: Path, config):
    shutil.move(evaluation / "figures", model.parent / "elsewhere")
    (evaluation / "figures").symlink_to(model.parent / "elsewhere")
    return "png is a link to .*elsewhere/.*, outside of the folder"


def huge_file(model: Path, evaluation: Path, config):
    with (model / "tokenizer.model").open("wb") as file:
        file.truncate(6_000_000_000)  # sparse
    return "tokenizer.model has 6,000,000,000 bytes, at most 200,000,000 are published"


def local_path(model: Path, evaluation: Path, config):
    change_json(model / "generation_config.json", assistant=str(model.parent))
    evaluated_as_it_is(model, evaluation)
    return "generation_config.json names a path of this machine: '/"


DAMAGES = [other_weights, adapters, no_tokenizer, no_shard, unfinished, older_format, no_control, training_frames]
DAMAGES += [edited_config, edited_processor, added_file, removed_file, edited_code, other_code, edited_scores]
DAMAGES += [code_of_another_repository, scores_of_odd_types, link_outside, figure_outside, figures_outside]
DAMAGES += [huge_file, local_path]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_does_not_belong_together_is_refused_before_anybody_is_asked(
    damage, trained, arguments, hub, config, monkeypatch, tmp_path
):
    for name in ("model", "eval"):
        shutil.copytree(trained / name, tmp_path / name)
    arguments |= {"model": tmp_path / "model", "evaluation": tmp_path / "eval"}
    message = damage(tmp_path / "model", tmp_path / "eval", config)
    with pytest.raises(SystemExit, match=f"^push_to_hub: .*{message}") as stopped:
        push(monkeypatch, arguments)
    assert "\n" not in str(stopped.value) and hub.requests == []


def test_where_a_model_was_loaded_from_is_not_published(trained, arguments, hub, monkeypatch, tmp_path):
    """Neither its own folder nor its tower's."""
    for name in ("model", "eval"):
        shutil.copytree(trained / name, tmp_path / name)
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    content["_name_or_path"] = content["vision_config"]["tower_config"]["_name_or_path"] = str(tmp_path / "tower")
    (tmp_path / "model" / "config.json").write_text(json.dumps(content))
    change_json(tmp_path / "model" / "tokenizer_config.json", name_or_path=str(tmp_path / "base"))
    evaluated_as_it_is(tmp_path / "model", tmp_path / "eval")
    push(monkeypatch, arguments | {"model": tmp_path / "model", "evaluation": tmp_path / "eval"})
    published = json.loads(hub.files(REPO)["config.json"])
    del content["_name_or_path"], content["vision_config"]["tower_config"]["_name_or_path"]
    assert published == content
    assert not [name for name, data in hub.files(REPO).items() if str(tmp_path).encode() in data]


def test_links_within_the_folder_are_published(trained, arguments, hub, monkeypatch, tmp_path):
    shutil.copytree(trained / "model", tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.rename(tmp_path / "model" / "stored")
    weights.symlink_to("stored")
    push(monkeypatch, arguments | {"model": tmp_path / "model"})
    assert hub.files(REPO)["model.safetensors"] == (trained / "model" / "model.safetensors").read_bytes()


def test_a_push_needs_no_room_on_the_disk(arguments, hub, monkeypatch, capsys):
    with small_files(1_000):
        push(monkeypatch, arguments)
    assert len(hub.repos[REPO]["commits"]) == 1


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"repo-id": "smoldriver"}, "--repo-id 'smoldriver' names no owner: give user/name"),
        ({"repo-id": "a/b/c"}, "Repo id must be"),
        ({"model": "nowhere"}, "there is no model folder nowhere"),
    ],
)
def test_bad_arguments_are_refused_before_anybody_is_asked(changed, message, arguments, hub, monkeypatch):
    with pytest.raises(SystemExit, match=f"^push_to_hub: .*{message}"):
        push(monkeypatch, {**arguments, **changed})
    assert hub.requests == []
