"""A saved folder works without our package, on transformers 4.57 and 5.x, also when the other version saved it."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from fakes import QUESTIONS, assert_same, picture, tiny_model
from processes import HIDE_PROJECT
from safetensors.torch import load_file, save_file

import modeling_smoldriver
from modeling_smoldriver import CAMERAS, AutoModelForVision2Seq, SmolDriverForConditionalGeneration

pytestmark = pytest.mark.contract

QUERY = "model.vision_model.resampler.query"
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}

# Runs on its own: `python -c CLEAN_PROCESS job.json`; the keys of a job are those that `run_clean` writes.
CLEAN_PROCESS = (
    HIDE_PROJECT
    + """
import json, sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline

torch.set_num_threads(1)
job = json.load(open(sys.argv[1]))
remote = {"trust_remote_code": True}
inputs = load_file(job["inputs"])
result = {"version": transformers.__version__}

config = AutoConfig.from_pretrained(job["folder"], **remote)
processor = AutoProcessor.from_pretrained(job["folder"], **remote)
classes = [AutoModelForImageTextToText]
if hasattr(transformers, "AutoModelForVision2Seq"):
    classes.append(transformers.AutoModelForVision2Seq)
logits = {}
for cls in classes:
    model = cls.from_pretrained(job["folder"], **remote).eval()
    with torch.no_grad():
        logits[cls.__name__] = model(**inputs).logits
base = AutoModel.from_pretrained(job["folder"], **remote).eval()
with torch.no_grad():
    logits["AutoModel"] = base(**inputs).last_hidden_state
save_file(logits, job["logits"])
result["classes"] = {
    type(thing).__name__: type(thing).__module__ for thing in (config, processor, model, base)
}
result["budgets"] = [config.visual_token_budgets, processor.visual_token_budgets]

images = job["images"]
scene = model.encode_scene(**processor.encode_scene(images))
result["answers"] = model.answer(scene, processor, job["questions"], **job["greedy"])

pipe = pipeline("image-text-to-text", model=job["folder"], **remote)
text = {"type": "text", "text": job["questions"][0]}
inside = [{"type": "image", "camera": camera, "image": path} for camera, path in images.items()]
messages = [{"role": "user", "content": [*inside, text]}]
output = pipe(text=messages, generate_kwargs=dict(job["greedy"]), return_full_text=False)
result["pipeline"] = output[0]["generated_text"]
prompt = processor.apply_chat_template(
    processor.scene_messages(images, job["questions"][0]), add_generation_prompt=True, tokenize=False
)
output = pipe(text=prompt, images=list(images.values()), generate_kwargs=dict(job["greedy"]), return_full_text=False)
result["pipeline, pictures apart"] = output[0]["generated_text"]

result["damaged"] = {}
for name, folder in job["damaged"].items():
    try:
        AutoModelForImageTextToText.from_pretrained(folder, **remote)
    except Exception as error:
        result["damaged"][name] = f"{type(error).__name__}: {error}"
if job["saved"]:
    model.save_pretrained(job["saved"])
    processor.save_pretrained(job["saved"])
json.dump(result, open(job["result"], "w"))
"""
)


def run_clean(python, folder, work, damaged=None, saved=None):
    """Load `folder` in a process without our package; its results and logits."""
    folder, work = Path(folder), Path(work)
    job = {
        "folder": str(folder),
        "inputs": str(folder.parent / "inputs.safetensors"),
        "images": json.loads((folder.parent / "images.json").read_text()),
        "questions": QUESTIONS,
        "greedy": GREEDY,
        "logits": str(work / "logits.safetensors"),
        "result": str(work / "result.json"),
        "damaged": damaged or {},
        "saved": saved and str(saved),
    }
    elsewhere = work / "elsewhere"
    elsewhere.mkdir(parents=True)
    (work / "job.json").write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment.update({"HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""})
    done = subprocess.run(
        [str(python), "-c", CLEAN_PROCESS, str(work / "job.json")],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((work / "result.json").read_text()), load_file(work / "logits.safetensors")


@pytest.fixture(scope="module")
def saved(config, processor, tmp_path_factory):
    """A saved folder, the model it was saved from, and inputs with their logits before saving."""
    root = tmp_path_factory.mktemp("saved")
    model = tiny_model(config)
    images = {camera: picture(seed) for seed, camera in enumerate(CAMERAS)}
    for camera, image in images.items():
        image.save(root / f"{camera}.png")
    (root / "images.json").write_text(json.dumps({camera: str(root / f"{camera}.png") for camera in images}))
    prompt = processor.apply_chat_template(
        processor.scene_messages(images, QUESTIONS[0]), add_generation_prompt=True, tokenize=False
    )
    inputs = processor(images=images, text=prompt, return_tensors="pt")
    save_file({name: tensor.contiguous() for name, tensor in inputs.items()}, root / "inputs.safetensors")
    with torch.no_grad():
        outputs = model.model(**inputs)
        logits = model(**inputs).logits
        tokens = model.generate(**inputs, **GREEDY)
    answers = model.answer(model.encode_scene(**processor.encode_scene(images)), processor, QUESTIONS, **GREEDY)
    model.save_pretrained(root / "model")
    processor.save_pretrained(root / "model")
    return {
        "root": root,
        "folder": root / "model",
        "inputs": inputs,
        "logits": logits,
        "hidden": outputs.last_hidden_state,
        "text": processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True),
        "answers": answers,
    }


@pytest.fixture(scope="module")
def damaged(saved):
    folders = {}
    for kind in ("missing", "unexpected", "misshapen"):
        folders[kind] = saved["root"] / kind
        shutil.copytree(saved["folder"], folders[kind])
        path = folders[kind] / "model.safetensors"
        tensors = load_file(path)
        if kind == "missing":
            del tensors[QUERY]
        elif kind == "unexpected":
            tensors["model.vision_model.resampler.extra"] = torch.zeros(2)
        else:
            tensors[QUERY] = tensors[QUERY][:, :3].contiguous()
        save_file(tensors, path, metadata={"format": "pt"})
    return {kind: str(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def clean(saved, damaged, tmp_path_factory):
    """What a process without our package got from the folder."""
    work = tmp_path_factory.mktemp("clean")
    return run_clean(sys.executable, saved["folder"], work, damaged, saved=saved["root"] / "again")


def test_auto_classes_give_the_logits_from_before_saving_bit_by_bit(clean, saved):
    result, logits = clean
    assert result["version"] == transformers.__version__
    heads = {"AutoModelForImageTextToText"}
    if hasattr(transformers, "AutoModelForVision2Seq"):
        heads.add("AutoModelForVision2Seq")
    assert set(logits) == heads | {"AutoModel"}
    assert all(torch.equal(logits[name], saved["logits"]) for name in heads)
    assert torch.equal(logits["AutoModel"], saved["hidden"])


def test_classes_come_from_the_folder_and_not_from_the_package(clean):
    classes = clean[0]["classes"]
    assert set(classes) == {
        "SmolDriverConfig",
        "SmolDriverProcessor",
        "SmolDriverForConditionalGeneration",
        "SmolDriverModel",
    }
    assert all(module.startswith("transformers_modules.") for module in classes.values())
    assert clean[0]["budgets"] == [[9, 4, 1], [9, 4, 1]]


def test_scene_answers_work_from_the_folder(clean, saved):
    assert clean[0]["answers"] == saved["answers"]
    assert len(set(saved["answers"])) == len(QUESTIONS) and all(saved["answers"])


def test_pipeline_answers_about_six_pictures(clean, saved):
    assert saved["text"]
    assert clean[0]["pipeline"] == saved["text"]
    assert clean[0]["pipeline, pictures apart"] == saved["text"]


@pytest.mark.parametrize(
    "damage, name",
    [
        ("missing", f"missing: {QUERY}"),
        ("unexpected", "unexpected: model.vision_model.resampler.extra"),
        ("misshapen", f"wrongly shaped: {QUERY}"),
    ],
)
def test_damaged_checkpoint_is_refused_by_name_through_the_auto_class(clean, damage, name):
    assert name in clean[0]["damaged"][damage]
    assert clean[0]["damaged"][damage].startswith("ValueError")


def test_folder_holds_code_template_and_weights_and_nothing_pickled(saved):
    files = {path.name for path in saved["folder"].iterdir()}
    shipped = {
        f"{role}_smoldriver.py" for role in ("configuration", "inputs", "resampler", "scene", "modeling", "processing")
    }
    assert shipped | {"chat_template.jinja", "model.safetensors", "config.json"} <= files
    assert not {name for name in files if name.endswith((".bin", ".pt", ".pkl"))}
    assert not files & {"collator_smoldriver.py", "trainer_smoldriver.py", "__init__.py"}
    auto_map = json.loads((saved["folder"] / "config.json").read_text())["auto_map"]
    head = "modeling_smoldriver.SmolDriverForConditionalGeneration"
    assert auto_map == {
        "AutoConfig": "configuration_smoldriver.SmolDriverConfig",
        "AutoModel": "modeling_smoldriver.SmolDriverModel",
        "AutoModelForImageTextToText": head,
        "AutoModelForVision2Seq": head,
    }


def test_shipped_code_imports_siblings_and_common_packages_only(saved):
    allowed = {"torch", "transformers", "huggingface_hub", "PIL", "numpy", *sys.stdlib_module_names}
    for path in saved["folder"].glob("*.py"):
        source, siblings = path.read_text(encoding="utf-8"), 0
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level:
                siblings += 1
                assert node.level == 1 and (saved["folder"] / f"{node.module}.py").is_file(), (
                    f"{path.name}: {node.module}"
                )
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert {name.split(".")[0] for name in names} <= allowed, f"{path.name}: {names}"
        # transformers finds imports by pattern, in docstrings too
        assert len(re.findall(r"^\s*(?:from|import)\s+\.", source, re.MULTILINE)) == siblings, path.name


def test_folder_saved_by_remote_code_loads_again(clean, saved):
    """A user who has the folder alone trains on and saves: the code goes with it."""
    assert clean[0]
    for path in saved["folder"].iterdir():
        if path.suffix in (".py", ".jinja", ".safetensors"):
            assert (saved["root"] / "again" / path.name).read_bytes() == path.read_bytes(), path.name
    again = SmolDriverForConditionalGeneration.from_pretrained(saved["root"] / "again").eval()
    with torch.no_grad():
        assert torch.equal(again(**saved["inputs"]).logits, saved["logits"])


def test_old_auto_class_has_a_drop_in(saved):
    """transformers 5 has no AutoModelForVision2Seq; ours takes its place there."""
    assert ("AutoModelForVision2Seq" in dir(transformers)) == (transformers.__version__ < "5")
    assert "AutoModelForVision2Seq" in modeling_smoldriver.__all__
    model = AutoModelForVision2Seq.from_pretrained(saved["folder"])
    assert type(model) is SmolDriverForConditionalGeneration
    with torch.no_grad():
        assert torch.equal(model(**saved["inputs"]).logits, saved["logits"])


def test_folder_goes_between_transformers_4_and_5_and_back(saved, pytestconfig, tmp_path):
    newer = transformers.__version__ >= "5"
    environment = pytestconfig.rootpath / (".venv-legacy" if newer else ".venv")
    if not (environment / ".ready").is_file():
        pytest.skip(f"no second environment at {environment.name}: make test-legacy sets it up")
    other = environment / "bin" / "python"
    result, logits = run_clean(other, saved["folder"], tmp_path / "there", saved=saved["root"] / "from_other")
    assert (result["version"] < "5") == newer
    assert_same(logits["AutoModelForImageTextToText"], saved["logits"])
    assert result["answers"] == saved["answers"] and result["pipeline"] == saved["text"]

    result, logits = run_clean(sys.executable, saved["root"] / "from_other", tmp_path / "back")
    assert result["version"] == transformers.__version__
    assert_same(logits["AutoModelForImageTextToText"], saved["logits"])
    assert result["answers"] == saved["answers"] and result["pipeline"] == saved["text"]
