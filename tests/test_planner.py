"""The planner: built from a SmolDriver, loaded without our package or the language model, and what it refuses."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import picture, tiny_model
from processes import HIDE_PROJECT
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoProcessor

from modeling_smoldriver import (
    CAMERAS,
    COMMANDS,
    SmolDriverConfig,
    SmolDriverForTrajectoryPrediction,
    SmolDriverPlannerConfig,
    SmolDriverPlannerProcessor,
    SmolDriverProcessor,
)
from modeling_smoldriver.planning_smoldriver import imitation_loss
from recipes import build_planner
from recipes.evaluation.provenance import training_stages
from recipes.training.manifest import TrainingManifest
from smoldriver_common.shipped import COMMANDS as COMMANDS_OF_DATA

SIZES = {"token_size": 48, "visual_tokens": 4, "token_width": 8, "hidden_size": 32, "num_attention_heads": 4}
OPTIONS = ("--visual-tokens", 4, "--hidden-size", 32, "--num-attention-heads", 4)

# Runs on its own: `python -c CLEAN_PROCESS job.json`.
CLEAN_PROCESS = (
    HIDE_PROJECT
    + """
import json, sys

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

torch.set_num_threads(1)
job = json.load(open(sys.argv[1]))
remote = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(job["folder"], **remote)
processor = AutoProcessor.from_pretrained(job["folder"], **remote)
planner = AutoModel.from_pretrained(job["folder"], **remote)
result = {
    "classes": {type(one).__name__: type(one).__module__ for one in (config, processor, planner, planner.processor)},
    "language model": [name for name, _ in planner.named_parameters() if "text_model" in name or "lm_head" in name],
    "plan": planner.plan(job["images"], "turn left", 4.5).tolist(),
    "by hand": planner(**processor(job["images"], "turn left", 4.5)).waypoints[0].tolist(),
}
try:
    AutoModel.from_pretrained(job["damaged"], **remote)
except ValueError as error:
    result["damaged"] = str(error)
planner.save_pretrained(job["saved"])
processor.save_pretrained(job["saved"])
json.dump(result, open(job["result"], "w"))
"""
)


def build(monkeypatch, model: Path, output: Path, *options) -> Path:
    arguments = ["build_planner.py", "--model", model, "--output-dir", output, *(options or OPTIONS)]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    build_planner.main()
    return output


def refusal(monkeypatch, model: Path, output: Path, *options) -> str:
    with pytest.raises(SystemExit) as caught:
        build(monkeypatch, model, output, *options)
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code


def make_planner(config: SmolDriverConfig, seed: int = 0, **options) -> SmolDriverForTrajectoryPrediction:
    torch.manual_seed(seed)
    vision = config.vision_config.to_dict()
    return SmolDriverForTrajectoryPrediction(
        SmolDriverPlannerConfig(vision_config=vision, scale_factor=config.scale_factor, **{**SIZES, **options})
    ).eval()


@pytest.fixture(scope="module")
def smoldriver(config, processor, tmp_path_factory):
    """The folder of a tiny SmolDriver."""
    folder = tmp_path_factory.mktemp("smoldriver")
    tiny_model(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def built(smoldriver, tmp_path_factory):
    """The folder of a planner that was built from it."""
    with pytest.MonkeyPatch.context() as patch:
        return build(patch, smoldriver, tmp_path_factory.mktemp("planner") / "planner")


@pytest.fixture
def planner(built):
    return SmolDriverForTrajectoryPrediction.from_pretrained(built)


def moments(planner, count: int = 3, **options) -> dict:
    """Model inputs of several moments with other cameras missing in each."""
    generator = torch.Generator().manual_seed(count)
    camera_ids = torch.tensor([[0, 1, 4], [5, -1, -1], [2, 3, -1]])[:count]
    return {
        "pixel_values": torch.randn(count, 3, 3, 48, 48, generator=generator),
        "camera_ids": camera_ids,
        "command": torch.arange(count),
        "speed": torch.arange(count) + 1.0,
        **options,
    }


# Building


@pytest.mark.contract
def test_vision_model_and_connector_arrive_tensor_by_tensor_and_nothing_of_the_language_model(smoldriver, built):
    source, weights = load_file(smoldriver / "model.safetensors"), load_file(built / "model.safetensors")
    shared = {name for name in source if name.startswith(("model.vision_model.", "model.connector."))}
    assert len(shared) > 20 and shared < weights.keys()
    assert all(torch.equal(source[name], weights[name]) for name in shared)
    assert not [name for name in weights if "text_model" in name or "lm_head" in name]
    head = weights.keys() - shared
    assert {name.split(".")[0] for name in head} == {"model", "norm", "narrow", "read", "way"}
    assert [name for name in head if name.startswith("model.")] == ["model.missing"]
    assert not {path.name for path in built.iterdir() if path.name.startswith(("tokenizer", "generation", "chat_"))}


@pytest.mark.contract
def test_folder_holds_the_code_it_needs_and_a_smoldrivers_folder_none_of_the_planners(smoldriver, built):
    roles = ("configuration", "inputs", "resampler", "scene", "modeling", "processing")
    ours, theirs = ({path.name for path in folder.glob("*.py")} for folder in (built, smoldriver))
    assert theirs == {f"{role}_smoldriver.py" for role in roles}
    assert ours == theirs | {"planning_smoldriver.py", "planning_processing_smoldriver.py"}
    assert json.loads((built / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "planning_smoldriver.SmolDriverPlannerConfig",
        "AutoModel": "planning_smoldriver.SmolDriverForTrajectoryPrediction",
        "AutoProcessor": "planning_processing_smoldriver.SmolDriverPlannerProcessor",
    }


def test_entry_files_name_every_sibling_that_they_need(built):
    """transformers 4.57 copies from a folder only what the file of an Auto class names itself."""

    def named(module: str) -> set[str]:
        return set(re.findall(r"^from \.(\w+) import", (built / f"{module}.py").read_text(), re.MULTILINE))

    auto_map = json.loads((built / "config.json").read_text())["auto_map"]
    for entry in {target.split(".")[0] for target in auto_map.values()}:
        needed = named(entry)
        while more := set().union(*map(named, needed)) - needed:
            needed |= more
        assert needed == named(entry), entry


def test_the_build_prints_what_it_made_and_records_where_it_is_from(smoldriver, built, monkeypatch, tmp_path, capsys):
    planner = SmolDriverForTrajectoryPrediction.from_pretrained(build(monkeypatch, smoldriver, tmp_path / "planner"))
    printed = capsys.readouterr().out
    shared = [planner.model.vision_model, planner.model.connector]
    vision, connector = (sum(one.numel() for one in part.parameters()) for part in shared)
    for name, count in (("vision", vision), ("connector", connector)):
        assert f"{name:12s} {count:>15,}" in printed
    assert f"{'head':12s} {planner.num_parameters() - vision - connector:>15,}" in printed
    manifest = TrainingManifest.from_folder(built)
    assert (manifest.base, manifest.dtype, manifest.steps) == (str(smoldriver), "float32", 0)
    assert manifest.arguments["visual_tokens"] == 4 and manifest.arguments["ego_inputs"] == ["speed"]
    assert [stage["base"] for stage in training_stages(built, local_files_only=True)] == [str(smoldriver)]


def test_same_seed_builds_the_same_and_the_same_command_may_be_given_again(smoldriver, monkeypatch, tmp_path):
    for name, seed in (("one", 3), ("one", 3), ("two", 3), ("three", 4)):
        build(monkeypatch, smoldriver, tmp_path / name, *OPTIONS, "--seed", seed)
    one, two, three = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two", "three"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["narrow.weight"], three["narrow.weight"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]


def test_a_build_that_fails_leaves_nothing(smoldriver, monkeypatch, tmp_path):
    def fail(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(TrainingManifest, "write", fail)
    assert refusal(monkeypatch, smoldriver, tmp_path / "out") == "build_planner: the disk is full"
    assert not list(tmp_path.iterdir())


def test_sharded_bfloat16_weights_are_found(smoldriver, config, processor, monkeypatch, tmp_path):
    tiny_model(config).to(torch.bfloat16).save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    processor.save_pretrained(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    built = load_file(build(monkeypatch, tmp_path / "sharded", tmp_path / "out") / "model.safetensors")
    source = {name: tensor.bfloat16() for name, tensor in load_file(smoldriver / "model.safetensors").items()}
    assert all(torch.equal(built[name], source[name]) for name in built if name in source)
    assert {tensor.dtype for tensor in built.values()} == {torch.bfloat16}
    planner = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    assert planner.plan({"CAM_FRONT": picture(1)}, "go straight", 3.0).dtype == torch.float32


def test_bad_input_of_the_build_is_one_line(smoldriver, built, monkeypatch, tmp_path):
    out = tmp_path / "out"
    assert "visual_tokens=16 is not a budget; choose one of [9, 4, 1]" in refusal(
        monkeypatch, smoldriver, out, "--visual-tokens", 16
    )
    assert "holds a 'smoldriver_planner': give a SmolDriver's folder" in refusal(monkeypatch, built, out)
    (tmp_path / "empty").mkdir()
    assert f"--model {tmp_path / 'empty'} holds no model" in refusal(monkeypatch, tmp_path / "empty", out)
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    assert "merge_checkpoint.py" in refusal(monkeypatch, tmp_path / "empty", out)
    assert "is the model to start from" in refusal(monkeypatch, smoldriver, smoldriver)
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert f"{out} holds something else already" in refusal(monkeypatch, smoldriver, out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert "hidden_size=32 must be divisible by num_attention_heads=6" in refusal(
        monkeypatch,
        smoldriver,
        tmp_path / "new",
        *("--visual-tokens", 4, "--hidden-size", 32, "--num-decoder-layers", 1),
    )


# Loading


@pytest.mark.contract
def test_planner_loads_and_plans_the_same_where_the_package_is_not_installed(built, planner, tmp_path):
    images = {camera: picture(seed) for seed, camera in enumerate(CAMERAS[:4])}
    for camera, image in images.items():
        image.save(tmp_path / f"{camera}.png")
    damaged = copied(built, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    del weights["narrow.bias"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    job = {
        "folder": str(built),
        "images": {camera: str(tmp_path / f"{camera}.png") for camera in images},
        "damaged": str(damaged),
        "saved": str(tmp_path / "again"),
        "result": str(tmp_path / "result.json"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", CLEAN_PROCESS, str(tmp_path / "job.json")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert {name.removeprefix("SmolDriver") for name in result["classes"]} == {
        "PlannerConfig",
        "PlannerProcessor",
        "ForTrajectoryPrediction",
    }
    assert all(module.startswith("transformers_modules.") for module in result["classes"].values())
    assert result["language model"] == []
    assert result["plan"] == result["by hand"] == planner.plan(images, "turn left", 4.5).tolist()
    assert "missing: narrow.bias" in result["damaged"]
    for path in built.iterdir():  # a user who has the folder alone saves its code too
        if path.suffix in (".py", ".safetensors"):
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def copied(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.contract
def test_auto_classes_load_the_folder_and_saving_is_bit_exact(built, tmp_path):
    assert isinstance(AutoConfig.from_pretrained(built), SmolDriverPlannerConfig)
    planner, processor = AutoModel.from_pretrained(built), AutoProcessor.from_pretrained(built)
    assert type(planner) is SmolDriverForTrajectoryPrediction and type(processor) is SmolDriverPlannerProcessor
    folders = [built]
    for name in ("once", "twice"):
        planner.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
        planner, processor = AutoModel.from_pretrained(folders[-1]), AutoProcessor.from_pretrained(folders[-1])
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1
    once, twice = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders[1:])
    assert once == twice


@pytest.mark.parametrize("options", [{}, {"num_proposals": 3}, {"num_decoder_layers": 1, "num_proposals": 2}])
def test_every_kind_of_head_comes_back_bit_by_bit(options, config, tmp_path):
    planner = make_planner(config, **options)
    planner.save_pretrained(tmp_path)
    again = SmolDriverForTrajectoryPrediction.from_pretrained(tmp_path)
    assert again.processor is None  # weights alone load, but do not plan from pictures
    with pytest.raises(ValueError, match="has no processor"):
        again.plan(None, None)
    for one, other in zip(planner.state_dict().items(), again.state_dict().items(), strict=True):
        assert one[0] == other[0] and torch.equal(one[1], other[1])
    with torch.no_grad():
        assert torch.equal(planner(**moments(planner)).proposals, again(**moments(again)).proposals)


@pytest.mark.contract
@pytest.mark.parametrize("name", ["model.missing", "way.weight", "model.vision_model.resampler.query"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(name, built, tmp_path):
    folder = copied(built, tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"missing: {name}"):
        AutoModel.from_pretrained(folder)


def test_a_fresh_head_is_initialised_layer_by_layer(config):
    planner = make_planner(config, num_decoder_layers=1, num_proposals=2)
    spread = {name: parameter.std(correction=0).item() for name, parameter in planner.named_parameters()}
    assert spread["model.missing"] == pytest.approx(0.02, rel=0.2)
    for name, inputs in (("read.0", planner.read[0].in_features), ("way", 32), ("decoder.widen", 48), ("narrow", 48)):
        assert spread[f"{name}.weight"] == pytest.approx(inputs**-0.5, rel=0.2)
        assert spread[f"{name}.bias"] == 0
    assert spread["decoder.query"] > 0.5 and spread["decoder.place"] == pytest.approx(0.02, rel=0.2)


# Planning


@pytest.mark.contract
def test_plans_change_with_pictures_command_and_speed(planner, images):
    plan = planner.plan(images, "go straight", 5.0)
    assert plan.shape == (6, 2) and plan.isfinite().all()
    for other in (
        planner.plan(images | {"CAM_BACK": picture(99)}, "go straight", 5.0),
        planner.plan({camera: images[camera] for camera in CAMERAS[:2]}, "go straight", 5.0),
        planner.plan(images, "turn left", 5.0),
        planner.plan(images, None, 5.0),
        planner.plan(images, "go straight", 0.0),
        planner.plan(images, "go straight"),
        planner.plan(None, "go straight", 5.0),
    ):
        assert other.isfinite().all() and not torch.equal(other, plan)
    assert torch.equal(planner.plan(dict(reversed(images.items())), "go straight", 5.0), plan)
    no_picture = planner.plan(None, "go straight", 5.0)
    assert torch.equal(planner.plan({}, "go straight", 5.0), no_picture)
    assert torch.equal(planner.plan({"CAM_FRONT": None}, "go straight", 5.0), no_picture)


def test_pictures_of_a_camera_are_read_by_its_own_weights(planner):
    image = picture(1)
    plans = [planner.plan({camera: image}, "go straight", 5.0) for camera in CAMERAS]
    assert all(not torch.equal(one, other) for n, one in enumerate(plans) for other in plans[:n])


def test_moments_of_a_batch_are_planned_as_if_alone(planner, images):
    frames = [images, None, {"CAM_BACK": images["CAM_BACK"]}]
    commands, speeds = ["turn left", None, "change lane right"], [3.0, None, 0.0]
    inputs = planner.processor.encode_moments(frames, commands, speeds)
    assert inputs["pixel_values"].shape == (3, 6, 3, 48, 48) and inputs["command"].tolist() == [0, -1, 3]
    with torch.no_grad():
        together = planner(**inputs).waypoints
    for number, moment in enumerate(zip(frames, commands, speeds, strict=True)):
        torch.testing.assert_close(together[number], planner.plan(*moment), rtol=1e-5, atol=1e-5)


def test_vision_tokens_are_those_that_the_language_model_reads(config, processor, smoldriver, planner, images):
    """The planner's tokens of each camera are SmolDriver's visual tokens at the same budget."""
    model = tiny_model(config)
    inputs = processor.encode_images([processor.scene_views(images)], 4)
    with torch.no_grad():
        expected = model.get_image_features(**inputs, visual_tokens=4).pooler_output
        tokens = planner.model(**{name: planner.processor(images, None)[name] for name in inputs})
    assert torch.equal(tokens[0], expected)


def test_unknown_values_are_refused_by_name(planner, images):
    plan = planner.plan
    with pytest.raises(ValueError, match="unknown command 'fly'; the commands are turn left, turn right"):
        plan(images, "fly", 3.0)
    for speed in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"speed={speed} must be a finite number of m/s"):
            plan(images, "turn left", speed)
    with pytest.raises(ValueError, match="unknown camera 'CAM_TOP'; the cameras are CAM_FRONT_LEFT"):
        plan({"CAM_TOP": picture(1)}, "turn left", 3.0)
    with pytest.raises(ValueError, match="unknown camera 'CAM_TOP'"):
        plan({"CAM_TOP": None}, "turn left", 3.0)
    with pytest.raises(ValueError, match="CAM_BACK: the picture cannot be read"):
        plan({"CAM_BACK": "nowhere.jpg"}, "turn left", 3.0)
    with pytest.raises(ValueError, match="this planner reads speed: no history"):
        plan(images, "turn left", 3.0, history=[None] * 4)
    with pytest.raises(ValueError, match=r"speeds \(and histories\) of \[2, 1, 2\] moments"):
        planner.processor.encode_moments([images, images], ["turn left"], [1.0, 2.0])
    with pytest.raises(TypeError, match="command"):
        plan(images)


def test_the_model_refuses_inputs_that_it_was_not_built_for(planner):
    for change, message in (
        ({"camera_ids": torch.tensor([[0, 1, 6]] * 3)}, "camera_ids must be -1 .* or 0 .. 5 .*got .*6"),
        ({"command": None}, "command is required"),
        ({"command": torch.tensor([0, 5, 1])}, r"command must be -1 .* got \[0, 5, 1\]"),
        ({"speed": torch.tensor([1.0, -2.0, 1.0])}, r"speed must be 0 m/s or more.* -2.0"),
        ({"speed": torch.tensor([1.0, math.inf, 1.0])}, "speed must be 0 m/s or more.*inf"),
        ({"pixel_values": None}, "there are no pixel_values"),
        ({"pixel_values": torch.zeros(3, 2, 3, 48, 48)}, "pixel_values must be .* got"),
        ({"ego_future": torch.zeros(3, 6, 3)}, r"ego_future must be \(batch, waypoints, 2\).* got \(3, 6, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            planner(**moments(planner, **change))


def test_a_processor_of_another_planner_is_refused(planner, image_processor, images):
    sizes = {"grid_size": 6, "scale_factor": 2, "visual_tokens": 4}
    for name, value in (("cameras", ["CAM_FRONT", "CAM_REAR"]), ("commands", ["go"]), ("visual_tokens", 9)):
        planner.processor = SmolDriverPlannerProcessor(image_processor, **{**sizes, name: value})
        with pytest.raises(ValueError, match=f"the processor is for another planner: its {name} are"):
            planner.plan(images, "go", 3.0)


def test_a_broken_plan_is_not_returned(planner, images):
    with torch.no_grad():
        planner.way.bias[0] = math.nan
    with pytest.raises(ValueError, match="the plan is not finite: .*nan"):
        planner.plan(images, "turn left", 3.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"visual_tokens": 5}, r"visual_tokens=5 is not a budget; choose one of \[9, 4, 1\]"),
        ({"ego_inputs": ["speed", "yaw"]}, "names yaw; use speed, history"),
        ({"status_dropout": 1.5}, "status_dropout=1.5 must be between 0 and 1"),
        ({"num_proposals": 0}, "num_proposals=0 must be at least 1"),
        ({"num_decoder_layers": -1}, "num_decoder_layers=-1 must not be negative"),
        ({"commands": ["go", "go"]}, "commands must be distinct names"),
        ({"scale_factor": 4}, "scale_factor=4 must divide the vision model's grid_size=6"),
    ],
)
def test_bad_configurations_are_refused(options, message, config):
    with pytest.raises(ValueError, match=message):
        SmolDriverPlannerConfig(
            vision_config=config.vision_config.to_dict(), **{"scale_factor": config.scale_factor, **SIZES, **options}
        )


def test_data_scripts_and_planners_know_the_same_commands(image_processor):
    assert SmolDriverPlannerConfig().commands == list(COMMANDS) == list(COMMANDS_OF_DATA)
    assert SmolDriverPlannerProcessor(image_processor).commands == list(COMMANDS)


# Ego inputs


def test_speed_is_withheld_in_training_only_and_as_often_as_asked(config):
    planner = make_planner(config, status_dropout=0.5, dropout=0.0)
    many = {"command": torch.zeros(400, dtype=torch.long), "speed": torch.full((400,), 7.0)}
    one = planner(**{name: values[:1] for name, values in many.items()}).waypoints[0]
    unknown = planner(command=many["command"][:1]).waypoints[0]
    assert not torch.allclose(one, unknown)
    assert torch.allclose(planner(**many).waypoints, one.expand(400, 6, 2), atol=1e-5)
    planner.train()
    torch.manual_seed(0)
    plans = planner(**many).waypoints
    withheld = (plans - unknown).abs().amax((1, 2)) < 1e-4
    given = (plans - one).abs().amax((1, 2)) < 1e-4
    assert (withheld ^ given).all() and 150 < withheld.sum() < 250


def test_history_is_read_only_by_a_planner_that_asks_for_it(config):
    history = torch.randn(3, 4, 3)
    for ego_inputs, changes in ((["speed"], False), (["speed", "history"], True), (["history"], True)):
        planner = make_planner(config, ego_inputs=ego_inputs)
        with torch.no_grad():
            without, given = (planner(**moments(planner, ego_history=one)).waypoints for one in (None, history))
            masked = planner(**moments(planner, ego_history=history, ego_history_mask=torch.zeros(3, 4))).waypoints
        assert torch.equal(without, given) != changes
        assert torch.equal(without, masked)


def test_plan_takes_a_history_with_unknown_moments(config, image_processor):
    planner = make_planner(config, ego_inputs=["speed", "history"])
    planner.processor = SmolDriverPlannerProcessor(image_processor, grid_size=6, scale_factor=2, visual_tokens=4)
    planner.processor.image_processor.size = {"height": 48, "width": 48}
    images, history = {"CAM_FRONT": picture(0)}, [None, (-3.0, 0.1, 0.0), (-2.0, 0.0, 0.0), (-1.0, 0.0, 0.0)]
    plan = planner.plan(images, "turn left", 2.0, history)
    assert not torch.equal(plan, planner.plan(images, "turn left", 2.0))
    assert torch.equal(planner.plan(images, "turn left", 2.0, [None] * 4), planner.plan(images, "turn left", 2.0))
    with pytest.raises(ValueError, match="the history must be finite"):
        planner.plan(images, "turn left", 2.0, [None, None, None, (math.nan, 0.0, 0.0)])


# Loss and gradients


def test_loss_equals_one_written_by_hand():
    """Two rows, two proposals, two waypoints; the second waypoint of the first row is masked."""
    proposals = torch.tensor([[[[1.0, 0.0], [9.0, 9.0]], [[3.0, 0.0], [2.0, 0.0]]], [[[0.0, 0.0], [0.0, 0.0]]] * 2])
    proposals[1, 1] = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    scores = torch.tensor([[0.2, -0.3], [1.0, 2.0]])
    future = torch.tensor([[[1.5, 0.5], [2.0, 0.0]], [[1.0, 1.5], [2.5, 2.0]]])
    mask = torch.tensor([[True, False], [True, True]])
    # row 1: proposal 0 is nearest, |1 - 1.5| + |0 - 0.5| = 1; row 2: proposal 1, 0.5 + 0.5 = 1; three waypoints count
    distance = (1.0 + 1.0) / 3
    picked = -(0.2 - math.log(math.exp(0.2) + math.exp(-0.3))), -(2.0 - math.log(math.exp(1.0) + math.exp(2.0)))
    loss = imitation_loss(proposals, scores, future, mask)
    assert loss.item() == pytest.approx(distance + sum(picked) / 2, rel=1e-6)
    one = imitation_loss(proposals[:, :1], scores[:, :1], future, mask)
    assert one.item() == pytest.approx((1.0 + (1.0 + 1.5) + (2.5 + 2.0)) / 3, rel=1e-6)
    sideways = imitation_loss(proposals[:, :1], scores[:, :1], future, mask, lateral_weight=3.0)
    assert sideways.item() == pytest.approx((0.5 + 3 * 0.5 + 1.0 + 3 * 1.5 + 2.5 + 3 * 2.0) / 3, rel=1e-6)
    nothing = imitation_loss(proposals, scores, future, torch.zeros(2, 2))
    assert nothing.item() == 0
    half = imitation_loss(proposals, scores, future, torch.tensor([[False, False], [True, True]]))
    assert half.item() == pytest.approx(1.0 / 2 + picked[1], rel=1e-6)
    whole = imitation_loss(proposals[:, :1], scores[:, :1], future, None)
    assert whole.item() == pytest.approx((1.0 + (7.0 + 9.0) + 2.5 + 4.5) / 4, rel=1e-6)


def test_masked_waypoints_leave_no_gradient(config):
    planner = make_planner(config)
    future, mask = torch.randn(3, 6, 2), torch.ones(3, 6, dtype=torch.bool)
    mask[:, 4:] = False
    losses = []
    for far in (0.0, 1e6):
        planner.zero_grad()
        future[:, 4:] = far
        loss = planner(**moments(planner, ego_future=future, ego_future_mask=mask)).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == losses[1]
    assert not planner.way.bias.grad.view(6, 2)[4:].any() and planner.way.bias.grad.view(6, 2)[:4].any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_proposals": 3},
        {"num_decoder_layers": 2},
        {"num_decoder_layers": 1, "num_proposals": 3, "ego_inputs": ["speed", "history"]},
    ],
)
def test_gradient_reaches_every_parameter(options, config):
    planner = make_planner(config, status_dropout=0.0, **options).train()
    inputs = moments(planner, ego_history=torch.randn(3, 4, 3), ego_future=5 * torch.randn(3, 6, 2))
    output = planner(**inputs)
    proposals = options.get("num_proposals", 1)
    assert output.proposals.shape == (3, proposals, 6, 2) and output.scores.shape == (3, proposals)
    best = output.scores.argmax(-1)
    assert all(torch.equal(output.waypoints[row], output.proposals[row, best[row]]) for row in range(3))
    output.loss.backward()
    without = [name for name, one in planner.named_parameters() if one.grad is None or not one.grad.any()]
    assert without == []


def test_a_planner_learns_the_way_that_a_picture_shows(config):
    """Frames that differ in their pictures alone: only a head that reads them gets below the mean's error."""
    planner = make_planner(config, dropout=0.0).train()
    inputs = moments(planner, command=torch.zeros(3, dtype=torch.long), speed=torch.ones(3))
    future = torch.stack([torch.full((6, 2), value) for value in (-2.0, 0.0, 2.0)])
    optimizer = torch.optim.Adam(planner.parameters(), lr=3e-3)
    for _ in range(60):
        loss = planner(**inputs, ego_future=future).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    planner.eval()
    assert planner(**inputs, ego_future=future).loss < 0.5  # 2.67 for the best constant


def test_processor_of_the_folder_prepares_pictures_as_the_smoldrivers(smoldriver, built, images):
    ours, theirs = SmolDriverPlannerProcessor.from_pretrained(built), SmolDriverProcessor.from_pretrained(smoldriver)
    expected = theirs.encode_images([theirs.scene_views(images)], 4)
    inputs = ours(images, "turn left", 1.0)
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    assert torch.equal(inputs["camera_ids"], expected["camera_ids"])
    assert (ours.visual_tokens, ours.cameras, ours.allow_urls) == (4, theirs.cameras, True)
