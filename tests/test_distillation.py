"""Knowledge transfer: what moves and when, what explained variance means, resuming after a kill, feature caches."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import (
    ON_A_CPU,
    TOWERS,
    FillDisk,
    assert_same,
    command_line,
    picture,
    scene_row,
    small_files,
    tiny_config,
    tiny_model,
)
from processes import killed_recipe
from safetensors.torch import load_file
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, TrainerCallback
from trl import ModelConfig, TrlParser

from data_scripts.schema import open_shard, scene_table, shard_path, write_manifest
from modeling_smoldriver import CAMERAS, SmolDriverForConditionalGeneration
from modeling_smoldriver.distillation_smoldriver import (
    VisionDistillationCollator,
    VisionDistillationConfig,
    VisionTeacher,
    explained_variance,
)
from modeling_smoldriver.resampler_smoldriver import resize_grid
from recipes import distill_vision, teacher_features
from recipes.teacher_features import make_cache
from recipes.training.loading import load_model
from recipes.training.manifest import read_training_manifest
from recipes.training.teacher_cache import TeacherCache, load_teacher

ROOT = Path(__file__).parents[1]
TRAINS = "model.vision_model."
MISSING = ("frame1", "CAM_BACK")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Six frames of three scenes to train on, two of another one held out; a camera of a frame is missing."""
    folder = tmp_path_factory.mktemp("scenes")
    rows = [scene_row(number, questions=1) for number in range(8)]
    rows[1][MISSING[1]] = None
    for split, part in (("train", rows[:6]), ("eval", rows[6:])):
        with open_shard(shard_path(folder, split, 0)) as writer:
            writer.write_table(scene_table(part))
    counts = {
        split: {"scenes": frames // 2, "frames": frames, "questions": frames, "shards": 1}
        for split, frames in (("train", 6), ("eval", 2))
    }
    write_manifest(folder, {"complete": True, "source": {}, "options": {}, "splits": counts, "report": {}})
    return folder


def tiny_vlm(config, tokenizer, seed: int) -> SmolVLMForConditionalGeneration:
    """A SmolVLM with the student's connector and text model, its pictures of another size than the student's."""
    torch.manual_seed(seed)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 36, "patch_size": 6}
    return SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=vision,
            text_config=config.text_config.to_dict(),
            scale_factor=config.scale_factor,
            image_token_id=config.image_token_id,
        )
    )


@pytest.fixture(scope="module")
def folders(config, processor, tokenizer, tmp_path_factory):
    """A student, its teacher and another teacher."""
    folder = tmp_path_factory.mktemp("models")
    tiny_model(config).save_pretrained(folder / "student")
    processor.save_pretrained(folder / "student")
    tiny_vlm(config, tokenizer, seed=1).save_pretrained(folder / "teacher")
    tiny_vlm(config, tokenizer, seed=2).save_pretrained(folder / "other")
    return folder


@pytest.fixture
def options(folders, scenes, tmp_path):
    return options_of(folders, scenes, tmp_path / "run")


def options_of(folders, scenes, output_dir) -> dict:
    return {
        "model_name_or_path": folders / "student",
        "teacher": folders / "teacher",
        "dtype": "float32",
        "scenes": scenes,
        "frozen_tower_steps": 2,
        "train_visual_tokens": [9, 4],
        "output_dir": output_dir,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 5e-3,
        "weight_decay": 0.1,
        **ON_A_CPU,
    }


class Record(TrainerCallback):
    """Weights before each step."""

    def __init__(self):
        self.weights = []

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.weights.append({name: value.detach().clone() for name, value in model.named_parameters()})


def distil(monkeypatch, options: dict, callback: TrainerCallback | None = None):
    """Run the recipe in this process; returns its trainer."""
    seen = {}

    def load(*arguments):
        seen["trainer"], *rest = real(*arguments)
        if callback is not None:
            seen["trainer"].add_callback(callback)
        return seen["trainer"], *rest

    with monkeypatch.context() as patch:
        real = distill_vision.load
        patch.setattr(distill_vision, "load", load)
        parser = TrlParser((distill_vision.DataArguments, VisionDistillationConfig, ModelConfig))
        distill_vision.main(*parser.parse_args_and_config(args=command_line(options)))
    return seen["trainer"]


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.contract
def test_tower_moves_in_the_second_phase_only_and_the_language_side_never(options, monkeypatch):
    record = Record()
    trainer = distil(monkeypatch, options, record)
    after = {name: value.detach() for name, value in trainer.model.named_parameters()}
    steps = [*record.weights, after]
    assert len(steps) == 5
    for number, (before, now) in enumerate(zip(steps, steps[1:], strict=False)):
        moved = {name for name in now if not torch.equal(before[name], now[name])}
        frozen = ".tower." if number < 2 else "nothing"
        expected = {name for name in now if name.startswith(TRAINS) and frozen not in name}
        assert moved == expected, f"step {number}: stayed {sorted(expected - moved)}; moved {sorted(moved - expected)}"
    loaded, processor = load_model(options["output_dir"])
    assert processor.visual_token_budgets == [9, 4, 1]
    assert all(torch.equal(after[name], value) for name, value in loaded.named_parameters())


def test_loss_falls_and_held_out_variance_is_explained(options, monkeypatch, capsys):
    trainer = distil(monkeypatch, {**options, "max_steps": 60, "per_device_train_batch_size": 6})
    course = losses(trainer)
    assert sum(course[-5:]) < 0.7 * sum(course[:5])
    path = options["output_dir"] / "explained_variance.json"
    result = json.loads(path.read_text())
    assert set(result["explained_variance"]) == {"9", "4"}
    assert set(result["explained_variance"]["9"]) == {*CAMERAS, "all"} and result["views"] == dict.fromkeys(CAMERAS, 2)
    manifest = read_training_manifest(options["output_dir"])
    assert manifest["explained_variance"] == result["explained_variance"] and manifest["steps"] == 60
    assert manifest["scene_tokens"] == ["scene0", "scene1", "scene2"]
    assert manifest["teacher"]["image_size"] == 36
    printed = capsys.readouterr().out
    assert "front_left" in printed and f"{100 * result['explained_variance']['9']['all']:.1f}" in printed


def build_trainer(options, **changed):
    parser = TrlParser((distill_vision.DataArguments, VisionDistillationConfig, ModelConfig))
    return distill_vision.load(*parser.parse_args_and_config(args=command_line({**options, **changed})))[0]


@pytest.mark.parametrize("predicts, expected", [("target", 1.0), ("mean", 0.0)])
def test_a_perfect_student_explains_all_and_the_mean_nothing(predicts, expected, options):
    trainer = build_trainer(options)
    batches = []

    def given(pixel_values, camera_ids, budgets, frozen_tower=False):
        (target,) = (trainer._target(batch) for batch in batches[-1:])
        outputs = {}
        for tokens in budgets:
            side = 2 * int(tokens**0.5)
            pooled = resize_grid(target, side).flatten(1, 2)
            mean = trainer.statistics["mean"]
            outputs[tokens] = pooled if predicts == "target" else mean.expand_as(pooled)
        return outputs

    real = trainer._prepare_inputs
    trainer._prepare_inputs = lambda batch: batches.append(real(batch)) or batches[-1]
    trainer.model_wrapped = given
    metrics = trainer.evaluate()
    for tokens in (9, 4):
        assert metrics[f"eval_explained_variance_{tokens}"] == pytest.approx(expected, abs=1e-6)


def test_explained_variance_is_that_of_its_definition():
    """Two cameras, one of them absent; two budgets."""
    torch.manual_seed(0)
    target, student, mean = torch.randn(5, 4, 3), torch.randn(5, 4, 3), torch.randn(3)
    error, variance = (student - target).square().sum(), (target - mean).square().sum()
    sums = torch.tensor([[5, error, variance, 0, 2.0], [0, 0, 0, 0, 0]])
    values = explained_variance(sums, ["one", "absent"], [9, 4])
    assert values["9"] == pytest.approx({"one": 1 - (error / variance).item(), "all": 1 - (error / variance).item()})
    assert values["4"] == {"one": 1.0, "all": 1.0}


def test_every_view_weighs_the_same_in_the_statistics_and_missing_cameras_are_left_out(options, scenes):
    trainer = build_trainer(options, statistics_frames=6)
    teacher = trainer.teacher
    views = []
    for number in range(6):
        for index, camera in enumerate(CAMERAS):
            if (f"frame{number}", camera) != MISSING:
                views.append(picture(10 * number + index))
    features = teacher(teacher.pixels(views)).float()
    assert len(views) == 35
    assert_same(trainer.statistics["mean"], features.flatten(0, 2).mean(0))
    pooled = resize_grid(features, 4).flatten(0, 2)
    assert_same(trainer.statistics["deviation.4"], pooled.std(0, correction=0))


def test_statistics_of_another_connector_are_not_read_again(options, folders, processor, tmp_path):
    own = build_trainer(options).statistics
    again = build_trainer(options).statistics
    assert all(torch.equal(own[name], again[name]) for name in own)
    model = SmolDriverForConditionalGeneration.from_pretrained(folders / "student")
    model.model.connector.modality_projection.proj.weight.data.mul_(2)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    other = build_trainer(options, model_name_or_path=tmp_path / "other").statistics
    assert_same(other["connector_variance.9"], 4 * own["connector_variance.9"])


@pytest.mark.contract
def test_statistics_made_again_are_the_same_file(options):
    """Also after a full disk, which leaves none."""
    contents = set()
    for _ in range(4):
        build_trainer(options)
        path = Path(options["output_dir"]) / "teacher_statistics.safetensors"
        contents.add(path.read_bytes())
        path.unlink()
    assert len(contents) == 1


def test_teacher_is_the_vlms_own_tower(folders):
    teacher = load_teacher(str(folders / "teacher"))
    vlm = SmolVLMForConditionalGeneration.from_pretrained(folders / "teacher").eval()
    pixels = teacher.pixels([picture(0), picture(1)])
    assert pixels.shape == (2, 3, 36, 36) and not teacher.tower.training
    with torch.no_grad():
        expected = vlm.model.vision_model(pixels).last_hidden_state.view(2, 6, 6, 32)
    assert torch.equal(teacher(pixels), expected.bfloat16())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_accumulated_gradients_equal_those_of_a_larger_batch(options, monkeypatch):
    """Also where batches hold 11 and 12 views."""
    options |= {"optim": "sgd", "learning_rate": 0.1, "max_steps": 2, "max_grad_norm": 0.0, "weight_decay": 0.0}
    options |= {"train_visual_tokens": [9], "frozen_tower_steps": 1}
    whole = distil(monkeypatch, {**options, "per_device_train_batch_size": 6})
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
    parts = distil(monkeypatch, {**options, **parts, "output_dir": options["output_dir"] / "parts"})
    for (name, one), (_, other) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert_same(one, other, name)


KILLED = killed_recipe("distill_vision", "distillation_smoldriver.VisionDistillationConfig")


@pytest.mark.contract
@pytest.mark.parametrize("killed_at", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 3))])
def test_killed_run_that_resumes_equals_one_never_killed(killed_at, options, monkeypatch, tmp_path):
    """Six steps with a checkpoint every two, the tower frozen for three: the phases do not depend on the break."""
    options |= {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "frozen_tower_steps": 3}
    options |= {"lr_scheduler_type": "cosine"}
    never = distil(monkeypatch, {**options, "output_dir": tmp_path / "never"})
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(killed_at), *command_line(options)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    again = distil(monkeypatch, options)
    assert losses(again) == losses(never) and len(losses(never)) == 6
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (options["output_dir"], tmp_path / "never"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    ours, theirs = (folder / "explained_variance.json" for folder in (options["output_dir"], tmp_path / "never"))
    assert ours.read_text() == theirs.read_text()


@pytest.mark.parametrize("torn", ["checkpoint", "statistics"])
def test_full_disk_ends_the_transfer_with_one_line_and_the_same_command_resumes(torn, options, monkeypatch, tmp_path):
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    never = distil(monkeypatch, {**options, "output_dir": tmp_path / "never"})
    with small_files(100 if torn == "statistics" else None), pytest.raises(SystemExit) as stopped:
        distil(monkeypatch, options, FillDisk(50_000))
    said = str(stopped.value)
    assert said.startswith("distill_vision: ") and "File too large" in said and "\n" not in said
    again = distil(monkeypatch, options)
    assert losses(again) == losses(never) and len(losses(never)) == 2
    for name in ("model.safetensors", "teacher_statistics.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in (options["output_dir"], tmp_path / "never"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("kind", [name for name in TOWERS if name != "vit"])
def test_students_with_other_towers_learn_too(kind, options, tokenizer, processor, tmp_path, monkeypatch):
    tiny_model(tiny_config(tokenizer, kind, resampler_keys="position", resampler_residual=False)).save_pretrained(
        tmp_path / "student"
    )
    processor.save_pretrained(tmp_path / "student")
    options |= {"model_name_or_path": tmp_path / "student", "max_steps": 1, "frozen_tower_steps": 0}
    options |= {"gradient_checkpointing": True, "bf16": True}
    record = Record()
    trainer = distil(monkeypatch, options, record)
    for name, parameter in trainer.model.named_parameters():
        moves = name.startswith(TRAINS) and not name.endswith("mask_token")
        assert torch.equal(parameter, record.weights[0][name]) != moves, name
    result = json.loads((options["output_dir"] / "explained_variance.json").read_text())
    assert result["resampler_keys"] == "position" and result["resampler_residual"] is False
    SmolDriverForConditionalGeneration.from_pretrained(options["output_dir"])


def test_budgets_are_drawn_by_seed_and_frames(processor, folders):
    teacher = load_teacher(str(folders / "teacher"))
    draws = {}
    for seed in (0, 0, 1):
        collator = VisionDistillationCollator(processor, teacher.pictures, [9, 4, 1], seed)
        drawn = [collator._draw([f"frame{number}"]) for number in range(300)]
        assert draws.setdefault(seed, drawn) == drawn
    assert draws[0] != draws[1]
    assert all(70 < draws[0].count(tokens) < 130 for tokens in (9, 4, 1))
    row = {"frame_token": "f", **{camera: picture(seed) for seed, camera in enumerate(CAMERAS)}}
    batch = collator([row])
    assert len(batch["budgets"]) == 1
    every = VisionDistillationCollator(processor, teacher.pictures, [9, 4, 9], all_budgets=True)([row])
    assert every["budgets"] == {9: 48, 4: 48} and set(every["pixel_values"]) == {48}


def test_a_budget_with_a_picture_size_of_its_own_is_taught_with_it(options, config, image_processor, tokenizer):
    from modeling_smoldriver import SmolDriverProcessor

    small = SmolDriverProcessor.from_config(config, image_processor, tokenizer, budget_image_sizes={4: 32})
    trainer = build_trainer(options)
    trainer.data_collator.processor = small
    trainer.data_collator.all_budgets = True
    batch = trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]]))
    assert {side: pixels.shape[-1] for side, pixels in batch["pixel_values"].items()} == {48: 48, 32: 32}
    outputs = trainer.model(batch["pixel_values"], batch["camera_ids"], batch["budgets"])
    assert {tokens: output.shape for tokens, output in outputs.items()} == {9: (11, 36, 32), 4: (11, 16, 32)}


class Break(TrainerCallback):
    def on_train_begin(self, args, state, control, model, **kwargs):
        model.model.vision_model.projection.bias.data.fill_(float("nan"))


def test_nan_stops_the_run_and_names_the_frames(options, monkeypatch):
    message = "distill_vision: the loss is nan at step 0 for the frames frame.*; no checkpoint was saved"
    with pytest.raises(SystemExit, match=message):
        distil(monkeypatch, options, Break())


@pytest.fixture(scope="module")
def finished(folders, scenes, tmp_path_factory):
    """The options of a run that took both its steps and kept a checkpoint of each, and its trainer."""
    options = options_of(folders, scenes, tmp_path_factory.mktemp("finished") / "run")
    options |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    with pytest.MonkeyPatch.context() as patch:
        return options, distil(patch, options)


def test_a_finished_run_given_again_takes_no_step_more(finished, monkeypatch):
    options, trainer = finished
    folder = options["output_dir"]
    weights, explained = load_file(folder / "model.safetensors"), (folder / "explained_variance.json").read_text()
    again = distil(monkeypatch, options)
    assert losses(again) == losses(trainer) and read_training_manifest(folder)["steps"] == 2
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert (folder / "explained_variance.json").read_text() == explained


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"teacher": "other"}, "teacher was .*teacher, now .*other"),
        ({"frozen_tower_steps": 1}, "frozen_tower_steps was 2, now 1"),
        ({"train_visual_tokens": [9]}, r"train_visual_tokens was \[9, 4\], now \[9\]"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_their_names(changed, named, finished, folders, monkeypatch):
    changed = {name: folders / value if name == "teacher" else value for name, value in changed.items()}
    with pytest.raises(SystemExit, match=f"distill_vision: .*checkpoint-2 is of a run with other settings .*{named}"):
        distil(monkeypatch, {**finished[0], **changed})


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"train_visual_tokens": [9, 5]}, r"visual_tokens=5 is not a budget; choose one of \[9, 4, 1\]"),
        ({"use_peft": True}, "leave use_peft"),
        ({"push_to_hub": True}, "push_to_hub would publish weights without an evaluation"),
        ({"teacher": "nowhere/at/all"}, "there is no model folder nowhere/at/all"),
        ({"feature_cache": "no_such_cache"}, "there is no cache of features in no_such_cache"),
        ({"reference": "no_such_run"}, "no_such_run"),
        ({"eval_split": "test"}, "split 'test'"),
        ({"resume_from_checkpoint": "nowhere"}, "resume_from_checkpoint=nowhere is not the folder of a whole"),
    ],
)
def test_bad_options_end_with_one_line(changed, message, options, monkeypatch):
    with pytest.raises(SystemExit, match=f"distill_vision: .*{message}"):
        distil(monkeypatch, {**options, **changed})


def test_an_unknown_dtype_in_a_yaml_is_refused(options, monkeypatch, tmp_path):
    (tmp_path / "run.yaml").write_text("dtype: bf16\n")
    del options["dtype"]
    with pytest.raises(SystemExit, match="distill_vision: dtype='bf16' is unknown; use one of auto, float32"):
        distil(monkeypatch, {"config": tmp_path / "run.yaml", **options})


@pytest.mark.parametrize(
    "given",
    [
        {"train_connector": True},
        {"sample_steps": 5},
        {"most_views": 3},
        {"loss_mode": "token"},
        {"max_pack_length": 512},
        {"teacher_model": "vlm", "distillation_weight": 0.5},
    ],
)
def test_options_for_the_language_side_do_not_exist(given, options, tmp_path):
    parser = TrlParser((distill_vision.DataArguments, VisionDistillationConfig, ModelConfig))
    name, value = next(iter(given.items()))
    with pytest.raises(ValueError, match=f"not used by the HfArgumentParser: .*--{name}"):
        parser.parse_args_and_config(args=command_line({**options, **given}))
    (tmp_path / "run.yaml").write_text(f"{name}: {str(value).lower()}\n")
    with pytest.raises(ValueError, match=f"Unknown arguments from config file: .*--{name}"):
        parser.parse_args_and_config(args=command_line({"config": tmp_path / "run.yaml", **options}))


def test_weights_of_the_loss_below_zero_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cosine_weight=-1"):
        VisionDistillationConfig(output_dir=str(tmp_path), cosine_weight=-1, bf16=False)


def test_teacher_of_another_width_is_refused(options, config, tokenizer, tmp_path, monkeypatch):
    vlm = tiny_vlm(config, tokenizer, seed=1)
    vlm.config.vision_config.image_size = 30
    SmolVLMForConditionalGeneration(vlm.config).save_pretrained(tmp_path / "narrow")
    with pytest.raises(SystemExit, match="gives 5x5 features of width 32, the student 6x6 of 32"):
        distil(monkeypatch, {**options, "teacher": tmp_path / "narrow"})


# The cache of features


@pytest.fixture
def cache(folders, scenes, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(teacher_features, "SHARD_FRAMES", 2)
    folder = tmp_path / "cache"
    teacher = load_teacher(str(folders / "teacher"))
    assert make_cache(folder, teacher, str(scenes), ["train", "eval"], torch.device("cpu")) == 4
    return folder


def test_cached_features_train_the_same_as_those_made_on_the_fly(cache, options, monkeypatch):
    fly = distil(monkeypatch, options)
    read = distil(monkeypatch, {**options, "feature_cache": cache, "output_dir": options["output_dir"] / "read"})
    assert losses(read) == pytest.approx(losses(fly), rel=1e-3)
    results = [distill_vision.read_explained_variance(trainer.args.output_dir) for trainer in (fly, read)]
    for tokens in ("9", "4"):
        fly_values, read_values = (result[tokens] for result in results)
        assert read_values == pytest.approx(fly_values, abs=2e-3)


def test_cache_holds_each_view_under_its_frame_and_camera(cache, folders, scenes):
    teacher = load_teacher(str(folders / "teacher"))
    features = TeacherCache(cache, teacher, scenes)
    given = features("frame3", ["CAM_BACK", "CAM_FRONT"])
    assert given.shape == (2, 36, 32) and given.dtype == torch.bfloat16
    wanted = teacher(teacher.pixels([picture(30 + CAMERAS.index(name)) for name in ("CAM_BACK", "CAM_FRONT")]))
    assert_same(given.float(), wanted.flatten(1, 2).float())
    with pytest.raises(ValueError, match="lacks frame1/CAM_BACK"):
        features(*(MISSING[0], [MISSING[1]]))


def test_cache_of_another_teacher_or_other_scenes_is_refused(cache, folders, scenes, tmp_path, options, monkeypatch):
    other = load_teacher(str(folders / "other"))
    with pytest.raises(ValueError, match="is of another teacher than .*other: it has weights_sha256"):
        TeacherCache(cache, other, scenes)
    with pytest.raises(ValueError, match="is of another teacher"):
        make_cache(cache, other, str(scenes), ["train"], torch.device("cpu"))
    with pytest.raises(SystemExit, match="distill_vision: the cache .* is of another teacher"):
        distil(monkeypatch, {**options, "teacher": folders / "other", "feature_cache": cache})
    teacher = load_teacher(str(folders / "teacher"))
    teacher.pictures.image_processor.image_mean = [0.1, 0.1, 0.1]
    with pytest.raises(ValueError, match="another teacher .* it has preprocessing"):
        TeacherCache(cache, teacher, scenes)
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["scenes"]["options"] = {"image_height": 225}
    (cache / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="was made from other scenes"):
        TeacherCache(cache, load_teacher(str(folders / "teacher")), scenes)


@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_damaged_shard_is_named_and_replaced(damage, cache, folders, scenes):
    teacher = load_teacher(str(folders / "teacher"))
    shard = cache / "train" / "shard-00001.safetensors"
    whole = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="shard-00001.safetensors cannot be read .* replaces it"):
        TeacherCache(cache, teacher, scenes)
    others = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors") if path != shard}
    assert make_cache(cache, teacher, str(scenes), ["train", "eval"], torch.device("cpu")) == 1
    assert shard.read_bytes() == whole
    assert others == {path: path.stat().st_mtime_ns for path in others}


def test_cache_that_was_stopped_half_way_is_refused_and_resumes(cache, folders, scenes, monkeypatch):
    teacher = load_teacher(str(folders / "teacher"))
    for shard in (cache / "train").iterdir():
        shard.unlink()
    calls = []
    with monkeypatch.context() as patch:

        def stop_at_the_third(self, pixels):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return forward(self, pixels)

        forward = VisionTeacher.forward
        patch.setattr(VisionTeacher, "forward", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            make_cache(cache, teacher, str(scenes), ["train", "eval"], torch.device("cpu"))
    assert [path.name for path in (cache / "train").iterdir()] == ["shard-00000.safetensors"]
    with pytest.raises(ValueError, match="is unfinished: run the same command again"):
        TeacherCache(cache, teacher, scenes)
    assert make_cache(cache, teacher, str(scenes), ["train", "eval"], torch.device("cpu")) == 2
    assert len(TeacherCache(cache, teacher, scenes).shard_of) == 47


def test_a_split_that_was_stopped_leaves_the_others_known(cache, folders, scenes, monkeypatch):
    teacher = load_teacher(str(folders / "teacher"))

    def stop(self, pixels):
        raise KeyboardInterrupt

    (cache / "eval" / "shard-00000.safetensors").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VisionTeacher, "forward", stop)
        make_cache(cache, teacher, str(scenes), ["eval"], torch.device("cpu"))
    manifest = json.loads((cache / "manifest.json").read_text())
    assert (manifest["shards"], manifest["unfinished"]) == ({"train": 3}, ["eval"])
    with pytest.raises(ValueError, match=r"is unfinished: run the same command again.*\(--splits eval\)"):
        TeacherCache(cache, teacher, scenes)
    assert make_cache(cache, teacher, str(scenes), ["eval"], torch.device("cpu")) == 1
    assert len(TeacherCache(cache, teacher, scenes).shard_of) == 47


def test_a_cache_without_the_names_of_unfinished_splits_is_read(cache, folders, scenes):
    """As an earlier version left it."""
    teacher, path = load_teacher(str(folders / "teacher")), cache / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["unfinished"]
    path.write_text(json.dumps(manifest))
    assert len(TeacherCache(cache, teacher, scenes).shard_of) == 47
    path.write_text(json.dumps({**manifest, "shards": {}}))
    with pytest.raises(ValueError, match="is unfinished: run the same command again"):
        TeacherCache(cache, teacher, scenes)


def test_the_config_is_read_with_the_paths_of_make_compare():
    parser = TrlParser((distill_vision.DataArguments, VisionDistillationConfig, ModelConfig))
    path = ROOT / "recipes" / "configs" / "tiny" / "compare_distill.yaml"
    data, training, model = parser.parse_args_and_config(args=["--config", str(path), "--bf16", "false"])
    paths = [data.scenes, data.teacher, model.model_name_or_path, training.output_dir]
    assert paths == [f"outputs/compare/{name}" for name in ("scenes", "smolvlm", "built", "distilled")]


def test_full_disk_ends_a_cache_with_one_line_and_the_same_command_finishes(folders, scenes, tmp_path, monkeypatch):
    words = ["--teacher", folders / "teacher", "--scenes", scenes, "--output-dir", tmp_path / "cache"]
    monkeypatch.setattr(sys, "argv", ["teacher_features.py", *map(str, words)])
    with small_files(10_000), pytest.raises(SystemExit) as stopped:
        teacher_features.main()
    said = str(stopped.value)
    assert said.startswith("teacher_features: ") and "File too large" in said and "\n" not in said
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["manifest.json"]
    teacher_features.main()
    assert len(TeacherCache(tmp_path / "cache", load_teacher(str(folders / "teacher")), scenes).shard_of) == 47


def test_command_line_makes_a_cache(folders, scenes, tmp_path, monkeypatch, capsys):
    words = ["--teacher", folders / "teacher", "--scenes", scenes, "--output-dir", tmp_path / "cache"]
    monkeypatch.setattr(sys, "argv", ["teacher_features.py", *map(str, words)])
    teacher_features.main()
    assert "2 shards made" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["teacher_features.py", *map(str, words), "--dtype", "bfloat16"])
    teacher_features.main()
    assert "0 shards made" in capsys.readouterr().out
