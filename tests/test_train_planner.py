"""The planner's training moves what it should and only that, resumes bit by bit, and refuses what it cannot learn."""

import io
import math
import shutil
from pathlib import Path

import pytest
import torch
from fakes import ON_A_CPU, command_line, scene_row, tiny_config, tiny_model
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import ModelConfig, TrlParser

from data_scripts.schema import PLANNING_ROW, load_scenes, open_shard, scene_table, shard_path, write_manifest
from modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverForTrajectoryPrediction
from modeling_smoldriver.guidance_smoldriver import (
    GUIDING_QUESTIONS,
    GuidanceSizes,
    GuidedPlanner,
    PlannerTrainingConfig,
    SmolDriverTeacher,
    ego_tensors,
)
from recipes import train_planner
from recipes.build_planner import make_planner
from recipes.training.loading import load_model
from recipes.training.manifest import TrainingManifest
from recipes.training.planning_data import LeftOut, PlanningSource, load_planner, prepare

VISION = ("model.vision_model.", "model.connector.")
ACTIONS = ("Go straight.", "Turn left.", "Brake.")


def planning_row(number: int, questions: int = 2, **changes) -> dict:
    """A frame whose expert drives at `number` + 1 m/s; the last two waypoints lie beyond the scene."""
    row = scene_row(number, questions)
    speed = 1.0 + number
    row["qa"] += [
        {"task": "planning", "question": question, "answer": ACTIONS[(number + place) % 3], "tag": []}
        for place, question in enumerate(GUIDING_QUESTIONS)
        if questions
    ]
    return row | {
        "timestamp": 500_000 * number,
        "ego_history": [[-0.5 * speed * step, 0.0, 0.0] for step in (4, 3, 2, 1)],
        "ego_history_mask": [True] * 4,
        "ego_future": [[0.5 * speed * step, 0.1 * step, 0.0] for step in range(1, 7)],
        "ego_future_mask": [True] * 4 + [False] * 2,
        "speed": speed,
        "command": "go straight",
        "command_source": "route",
        "scenario": None,
        "agents": [],
        **changes,
    }


def write_rows(folder: Path, rows: list[dict], held_out: list[dict] = ()) -> Path:
    counts = {}
    for split, some in (("train", rows), ("eval", list(held_out))):
        if some:
            with open_shard(shard_path(folder, split, 0), PLANNING_ROW) as writer:
                writer.write_table(scene_table(some, PLANNING_ROW))
            counts[split] = {"scenes": len(some), "frames": len(some), "shards": 1, "questions": 0}
    source = {"rows": [row["frame_token"] for row in rows]}
    write_manifest(folder, {"complete": True, "source": source, "options": {}, "splits": counts, "report": {}})
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Five frames, the last without questions, and one held out."""
    rows = [planning_row(number, questions) for number, questions in enumerate((2, 2, 3, 1, 0))]
    return write_rows(tmp_path_factory.mktemp("scenes"), rows, [planning_row(8)])


@pytest.fixture(scope="module")
def built(model_folder, tmp_path_factory):
    """A planner that was built from the tiny SmolDriver."""
    torch.manual_seed(0)
    options = {"visual_tokens": 4, "token_width": 8, "hidden_size": 32, "num_attention_heads": 4}
    planner, processor = make_planner(model_folder, options)
    folder = tmp_path_factory.mktemp("planner")
    planner.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def options(built, scenes, tmp_path):
    return {
        "model_name_or_path": built,
        "scenes": scenes,
        "output_dir": tmp_path / "run",
        "feature_cache": tmp_path / "frames",
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        **ON_A_CPU,
    }


def parsed(options: dict):
    parser = TrlParser((train_planner.DataArguments, PlannerTrainingConfig, ModelConfig))
    return parser.parse_args_and_config(args=command_line(options))


def train(options: dict) -> dict[str, torch.Tensor]:
    """Run the recipe; the planner's weights."""
    train_planner.main(*parsed(options))
    return load_file(Path(options["output_dir"]) / "model.safetensors")


def refusal(options: dict) -> str:
    with pytest.raises(SystemExit) as caught:
        train_planner.main(*parsed(options))
    assert isinstance(caught.value.code, str) and "\n" not in caught.value.code
    return caught.value.code


def moved(before: Path, after: dict[str, torch.Tensor]) -> set[str]:
    weights = load_file(before / "model.safetensors")
    assert weights.keys() == after.keys()
    return {name for name in weights if not torch.equal(weights[name], after[name])}


# What moves


@pytest.mark.contract
def test_imitation_trains_the_head_alone_and_leaves_a_planner_with_its_manifest(options, built, capsys):
    after = train({**options, "eval_split": "eval", "max_steps": 3})
    changed = moved(built, after)
    head = {name for name in after if not name.startswith(VISION)}
    assert head - changed == {"model.missing"}  # every camera is there
    assert not {name for name in changed if name.startswith(VISION)}
    planner = SmolDriverForTrajectoryPrediction.from_pretrained(options["output_dir"])
    assert planner.plan(None, "go straight", 3.0).isfinite().all()
    manifest = TrainingManifest.from_folder(options["output_dir"])
    assert (manifest.base, manifest.steps, manifest.scene_tokens) == (str(built), 3, ["scene0", "scene1", "scene2"])
    printed = capsys.readouterr().out
    assert "visual tokens (train) of 5 frames are computed once" in printed and "eval_l2_avg" in printed
    assert not (options["output_dir"] / "guidance.safetensors").exists()


def test_missing_cameras_are_learned_and_the_loss_falls(options, built, tmp_path):
    rows = [planning_row(number, CAM_BACK=None) for number in range(3)]
    scenes = write_rows(tmp_path / "rows", rows)
    after = train({**options, "scenes": scenes, "max_steps": 40, "status_dropout": 0.0, "head_dropout": 0.0})
    assert "model.missing" in moved(built, after)
    arguments = parsed({**options, "scenes": scenes})
    trainer, _ = train_planner.load(*arguments)
    untrained = trainer.compute_loss(trainer.model.eval(), trainer.data_collator([trainer.train_dataset[0]]))
    arguments = parsed({**options, "scenes": scenes, "model_name_or_path": options["output_dir"]})
    trainer, _ = train_planner.load(*arguments)
    trained = trainer.compute_loss(trainer.model.eval(), trainer.data_collator([trainer.train_dataset[0]]))
    assert trained < untrained / 2


def test_tokens_from_the_cache_train_as_pictures_do(options):
    """bfloat16 is how the cache keeps them."""
    losses = []
    for more in ({}, {"train_vision": True}):
        trainer, _ = train_planner.load(*parsed({**options, **more}))
        batch = trainer.data_collator([trainer.train_dataset[number] for number in (1, 3)])
        losses.append(trainer.compute_loss(trainer.model.eval(), batch).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_vision_trains_where_it_is_asked_for(options, built):
    changed = moved(built, train({**options, "train_vision": True}))
    assert {name for name in changed if name.startswith(VISION)} and any("tower" in name for name in changed)
    frozen_tower = {**options, "train_vision": True, "train_tower": False, "output_dir": options["output_dir"] / "2"}
    changed = moved(built, train(frozen_tower))
    assert {name for name in changed if name.startswith(VISION)} and not any("tower" in name for name in changed)


def test_cache_is_shared_by_runs_and_made_again_if_cut_short_or_of_other_weights(options, built, tmp_path, capsys):
    first = train(options)
    assert "are computed once" in capsys.readouterr().out
    again = train({**options, "output_dir": tmp_path / "again"})
    assert "are computed once" not in capsys.readouterr().out
    assert all(torch.equal(first[name], again[name]) for name in first)
    (shard,) = (tmp_path / "frames").rglob("shard-*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    train_planner.load(*parsed(options))
    assert "are computed once" in capsys.readouterr().out and shard.read_bytes() == whole
    other = shutil.copytree(built, tmp_path / "other")
    planner = SmolDriverForTrajectoryPrediction.from_pretrained(other)
    planner.model.connector.modality_projection.proj.weight.data *= 2
    planner.save_pretrained(other)
    train_planner.load(*parsed({**options, "model_name_or_path": other}))
    assert "are computed once" in capsys.readouterr().out


def test_waypoints_beyond_the_scene_carry_no_gradient(options, built):
    planner = SmolDriverForTrajectoryPrediction.from_pretrained(built)
    trainer, _ = train_planner.load(
        *parsed({**options, "head_dropout": 0.0, "status_dropout": 0.0, "lateral_weight": 2.0})
    )
    assert trainer.model.planner.config.lateral_weight == 2.0
    batch = trainer.data_collator([trainer.train_dataset[0]])
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradient = trainer.model.planner.way.bias.grad.view(planner.config.num_waypoints, 2)
    assert gradient[:4].abs().min() > 0 and not gradient[4:].any()
    batch["ego_future"][:, 4:] = 1000.0
    assert torch.equal(trainer.compute_loss(trainer.model, dict(batch)), loss)


# Guidance


@pytest.mark.contract
def test_joint_training_moves_both_and_saves_both(options, built, model_folder, scenes):
    joint = {"joint_weight": 0.5, "teacher_model": model_folder, "questions_per_scene": 2}
    changed = moved(built, train({**options, **joint, "max_steps": 3, "eval_split": "eval"}))
    assert {name.split(".")[0] for name in changed} >= {"model", "norm", "narrow", "read", "way"}
    folder = options["output_dir"] / "smoldriver"
    before, after = (load_file(one / "model.safetensors") for one in (model_folder, folder))
    for part in ("model.vision_model.tower", "model.connector", "model.text_model", "lm_head"):
        names = [name for name in before if name.startswith(part)]
        assert names and any(not torch.equal(before[name], after[name]) for name in names), part
    planner = load_file(options["output_dir"] / "model.safetensors")
    shared = [name for name in planner if name.startswith(VISION)]
    assert shared and all(torch.equal(planner[name], after[name]) for name in shared)
    SmolDriverForConditionalGeneration.from_pretrained(folder)
    assert TrainingManifest.from_folder(folder).base == str(model_folder)
    assert make_planner(folder, {"visual_tokens": 4, "hidden_size": 32})[0].config.visual_tokens == 4


def joint_trainer(options: dict, model_folder, **more):
    joint = {"joint_weight": 1.0, "teacher_model": model_folder, "questions_per_scene": 2, "head_dropout": 0.0}
    return train_planner.load(*parsed({**options, **joint, "status_dropout": 0.0, **more}))[0]


def test_joint_loss_is_the_sum_of_the_trainers_losses(options, model_folder, make_trainer, scenes):
    trainer = joint_trainer(options, model_folder, joint_weight=0.25)
    asked, unasked = trainer.train_dataset[0], trainer.train_dataset[len(trainer.train_dataset) - 1]
    assert asked["qa"] and not unasked["qa"]
    batch = trainer.data_collator([asked, unasked])
    whole = trainer.compute_loss(trainer.model, dict(batch)).item()
    imitation = trainer.model.planner(
        **{name: batch[name] for name in batch if name not in ("questions", "frame_tokens")}
    ).loss.item()
    sft = make_trainer(SmolDriverForConditionalGeneration.from_pretrained(model_folder), scene_packing=True)
    questions = sft.compute_loss(sft.model.train(), sft.data_collator([asked])).item()
    assert whole == pytest.approx(imitation + 0.25 * questions, rel=1e-5)
    batch.pop("questions")
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(imitation, rel=1e-6)


@pytest.mark.parametrize("weight", ["hidden_states_weight", "answers_weight"])
def test_each_target_changes_the_loss_and_trains_the_ego_state(weight, options, built, model_folder):
    guided = {weight: 0.5, "teacher_model": model_folder, "head_dropout": 0.0, "status_dropout": 0.0}
    trainer, _ = train_planner.load(*parsed({**options, **guided}))
    frames = [trainer.train_dataset[number] for number in range(3)]
    batch = trainer.data_collator(frames)
    terms = trainer.model(**{name: batch[name] for name in batch if name != "frame_tokens"})
    (name,) = terms.keys() - {"waypoints", "imitation"}
    assert name == weight.removesuffix("_weight")
    loss = trainer.compute_loss(trainer.model, dict(batch))
    assert loss.item() == pytest.approx((terms["imitation"] + 0.5 * terms[name]).item(), rel=1e-6)
    terms[name].backward()
    assert trainer.model.planner.read[0].weight.grad.abs().sum() > 0
    assert trainer.model.planner.way.weight.grad is None


def test_teachers_targets_are_those_of_each_question_alone(model_folder, scenes, built):
    """States and probabilities of the packs equal those of the plain chat route, one answer at a time."""
    model, processor = load_model(model_folder)
    row = planning_row(1, CAM_BACK=None)
    candidates = [["Brake.", "Turn left now."], ["Go straight."], ["Brake.", "Go straight.", "Yes."]]
    found = SmolDriverTeacher(model, processor, candidates).targets([row])
    plain, _ = load_model(model_folder)
    shown = [camera for camera in processor.cameras if row[camera]]
    images = {camera: Image.open(io.BytesIO(row[camera]["bytes"])) for camera in shown}
    states, probabilities = [], []
    for question, answers in zip(GUIDING_QUESTIONS, candidates, strict=True):
        scores = []
        for answer in answers:
            prompt = processor.scene_prompt(list(images)) + processor.question_prompt(question)
            pixels = processor.encode_images([processor.scene_views(images)])
            texts = [prompt, processor.answer_text(answer)]
            tokens = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([tokens[0] + tokens[1]])
            with torch.no_grad():
                outputs = plain(input_ids=ids, output_hidden_states=True, **pixels)
            at = slice(len(tokens[0]) - 1, -1)
            chosen = outputs.logits[0, at].log_softmax(-1).gather(-1, ids[0, len(tokens[0]) :, None])
            scores.append(chosen.sum())
        states.append(outputs.hidden_states[-1][0, len(tokens[0]) - 1])
        probabilities.append(torch.stack(scores).softmax(-1))
    torch.testing.assert_close(found["hidden_states"][0], torch.cat(states), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["answers"][0], torch.cat(probabilities), rtol=1e-4, atol=1e-5)


# Resuming


class Kill(TrainerCallback):
    """Ends the training after its third step, as a kill would: nothing more is saved."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "guidance", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("joint", "hidden_states"))]
)
def test_resumed_run_equals_one_that_was_never_stopped(guidance, options, model_folder, tmp_path, monkeypatch):
    guided = {} if guidance == "none" else {f"{guidance}_weight": 0.3, "teacher_model": model_folder}
    options = {**options, **guided, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = train({**options, "output_dir": tmp_path / "whole"})
    with monkeypatch.context() as patch:
        real = train_planner.load

        def load(*arguments):
            trainer, rows = real(*arguments)
            trainer.add_callback(Kill())
            return trainer, rows

        patch.setattr(train_planner, "load", load)
        with pytest.raises(KeyboardInterrupt):
            train(options)
    assert (options["output_dir"] / "checkpoint-2").is_dir()
    assert not (options["output_dir"] / "model.safetensors").exists()
    resumed = train(options)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    if guidance == "joint":
        folders = (tmp_path / "whole", options["output_dir"])
        one, other = (load_file(folder / "smoldriver" / "model.safetensors") for folder in folders)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert "max_steps was 4, now 5" in refusal({**options, "max_steps": 5})


def test_loss_that_is_not_a_number_stops_the_run(options):
    message = refusal({**options, "learning_rate": 1e30, "max_steps": 5, "lr_scheduler_type": "constant"})
    assert "not finite" in message or "the loss is" in message
    assert not (options["output_dir"] / "model.safetensors").exists()


# Refusals


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"command": "fly"}, "frame frame1: unknown command 'fly'; the commands are turn left"),
        ({"speed": math.nan}, "frame frame1: speed=nan must be a finite number of m/s"),
        ({"speed": -1.0}, "frame frame1: speed=-1.0 must be a finite number of m/s"),
    ],
)
def test_bad_rows_are_refused_by_frame(changes, message, built, scenes):
    planner = SmolDriverForTrajectoryPrediction.from_pretrained(built)
    with pytest.raises(ValueError, match=message):
        ego_tensors([planning_row(0), planning_row(1, **changes)], planner)


def test_frames_without_poses_teach_nothing_and_are_counted(options, tmp_path, capsys):
    unknown = {"ego_future_mask": [False] * 6}
    scenes = write_rows(tmp_path / "some", [planning_row(0, **unknown), planning_row(1), planning_row(2, speed=None)])
    trainer, _ = train_planner.load(*parsed({**options, "scenes": scenes}))
    assert (
        len(trainer.train_dataset) == 2
        and "1 frames without poses and 0 of that scenario teach no way" in capsys.readouterr().out
    )
    assert [trainer.train_dataset[number]["speed"].isnan().item() for number in range(2)] == [False, True]
    scenes = write_rows(tmp_path / "none", [planning_row(0, **unknown)])
    assert "no frame is left to learn from: 1 frames without poses" in refusal({**options, "scenes": scenes})


def with_scenarios(folder: Path, planner, scenarios: list[str | None]) -> PlanningSource:
    rows = load_scenes(folder, "train").remove_columns("scenario").add_column("scenario", scenarios)
    return PlanningSource(str(folder), "train", rows)


def test_a_scenario_left_out_teaches_no_way_but_its_questions_stay(options, built, model_folder, scenes, tmp_path):
    planner = load_planner(built)
    source = with_scenarios(scenes, planner, ["blocked_lane", None, "cut_in", "blocked_lane", None])
    _, plain, _ = parsed(options)
    data = prepare(planner, [source], None, plain, tmp_path / "cache", "blocked_lane")
    assert [frame["frame_token"] for frame in data.train] == ["frame1", "frame2", "frame4"]
    assert data.left_out == LeftOut(without_poses=0, of_scenario=2)
    _, joint, _ = parsed({**options, "joint_weight": 1.0, "teacher_model": model_folder, "questions_per_scene": 20})
    data = prepare(load_planner(built), [source], None, joint, tmp_path / "cache", "blocked_lane")
    batch = data.collator([data.train[number] for number in range(len(data.train))])
    assert batch["frame_tokens"] == ["frame0", "frame1", "frame2", "frame3", "frame4"]
    assert batch["ego_future_mask"].any(1).tolist() == [False, True, True, False, True]
    assert set(batch["questions"]["frame_tokens"]) == {"frame0", "frame1", "frame2", "frame3"}
    with pytest.raises(ValueError, match="no row is of it; there are blocked_lane, cut_in"):
        prepare(planner, [source], None, plain, tmp_path / "cache", "pull_out")


def test_rows_of_several_folders_train_one_planner(options, scenes, tmp_path):
    more = write_rows(tmp_path / "more", [planning_row(6), planning_row(7)])
    trainer, rows = train_planner.load(*parsed({**options, "more_scenes": [more]}))
    assert [frame["frame_token"] for frame in trainer.train_dataset][-3:] == ["frame4", "frame6", "frame7"]
    assert rows["scene_token"][-1] == "scene3" and len(rows) == 7


def test_what_cannot_be_trained_is_refused_in_one_line(options, model_folder, config, processor, tmp_path, scenes):
    questions_alone = tmp_path / "questions"
    with open_shard(shard_path(questions_alone, "train", 0)) as writer:
        writer.write_table(scene_table([scene_row(0, 1)]))
    splits = {"train": {"scenes": 1, "frames": 1, "shards": 1, "questions": 1}}
    write_manifest(questions_alone, {"complete": True, "source": {}, "options": {}, "splits": splits, "report": {}})
    assert "has no ego motion: prepare its rows" in refusal({**options, "scenes": questions_alone})
    assert "is a 'smoldriver': make a planner of it first" in refusal({**options, "model_name_or_path": model_folder})
    assert "no row is of it; there are none" in refusal({**options, "leave_out_scenario": "blocked_lane"})
    stranger = tiny_model(tiny_config(processor.tokenizer), seed=5)
    stranger.save_pretrained(tmp_path / "stranger")
    processor.save_pretrained(tmp_path / "stranger")
    joint = {**options, "joint_weight": 1.0, "teacher_model": tmp_path / "stranger"}
    assert "vision_model is not that of the teacher" in refusal(joint)
    unasked = write_rows(tmp_path / "unasked", [planning_row(0, 0)])
    joint = {**options, "scenes": unasked, "joint_weight": 1.0, "teacher_model": model_folder}
    assert "no frame has a question" in refusal(joint)
    assert "is the folder of scenes" in refusal({**options, "output_dir": scenes})


def test_planner_of_other_cameras_is_refused(options, model_folder, tmp_path, processor):
    planner, own = make_planner(model_folder, {"visual_tokens": 4, "hidden_size": 32})
    names = [*own.cameras[:5], "CAM_TOP"]
    planner.config.vision_config.cameras, own.cameras = names, names
    planner.save_pretrained(tmp_path / "other")
    own.save_pretrained(tmp_path / "other")
    message = refusal({**options, "model_name_or_path": tmp_path / "other"})
    assert "no pictures of CAM_TOP: the planner was built for other cameras" in message


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"joint_weight": 1.0}, "give a teacher and a weight above 0"),
        ({"teacher_model": "x"}, "give a teacher and a weight above 0"),
        ({"joint_weight": 1.0, "answers_weight": 1.0, "teacher_model": "x"}, "give one or the other"),
        ({"answers_weight": -1.0, "teacher_model": "x"}, "answers_weight=-1.0 must be at least 0"),
        ({"status_dropout": 1.5}, "status_dropout=1.5 must be between 0 and 1"),
        ({"lateral_weight": -1}, "lateral_weight=-1"),
        ({"train_visual_tokens": [4]}, "train_visual_tokens is for the questions"),
        ({"hidden_states_weight": 1.0, "teacher_model": "x", "train_vision": True}, "frozen vision model"),
    ],
)
def test_options_that_disagree_are_refused(changes, message, options):
    with pytest.raises((ValueError, SystemExit), match=message):
        parsed({**options, **changes})


def test_guided_planner_has_the_heads_that_its_targets_need(built):
    planner = SmolDriverForTrajectoryPrediction.from_pretrained(built)
    guided = GuidedPlanner(planner, GuidanceSizes(hidden_states=6, answers=[2, 3]))
    assert {name for name, _ in guided.heads.named_children()} == {"hidden_states", "answers"}
    assert guided.heads["answers"].out_features == 5
