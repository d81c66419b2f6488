"""Runs of several scripts: each step once, failures reported, settings kept; and captions for a base's pretraining."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from data_scripts.prepare_captions import (
    IS_IT_THERE,
    WHAT_IS_THERE,
    asks_for,
    caption,
    general_questions,
    main,
    names_of,
    things_shown,
)
from data_scripts.schema import CAMERAS, load_scenes, split_of
from data_scripts.synthesize_world import synthesize
from data_scripts.world.folder import WORLD_VERSION
from recipes.tiny import ablation, compare, dagger, demo, drive_demo, grpo_demo, guidance, pretrain_towers
from recipes.tiny.pipeline import SETTINGS, Step, aside, check_settings, read_log, run_steps, side_by_side
from smoldriver_common.whole_files import sole_writer, write_json

WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(); print('made', sys.argv[1])"


# Steps


@pytest.fixture
def out(tmp_path):
    check_settings(tmp_path / "run", {"size": {"scenes": 3}, "seed": 0})
    return tmp_path / "run"


def test_a_finished_step_is_not_repeated(out, capsys):
    def steps():
        folder = out / "model"
        return [
            Step("model", ["-c", WRITE, aside(folder)], 60, result=folder),
            Step("check", ["-c", f"assert __import__('pathlib').Path({str(folder)!r}).is_dir()"], 60),
        ]

    run_steps(out, steps(), estimate=True)
    assert (out / "model").is_dir() and not aside(out / "model").exists()
    assert "made" in (out / "logs" / "model.log").read_text()
    printed = capsys.readouterr().out
    assert "[ 1/2] model" in printed and "about 2 min remain" in printed and "done already" not in printed
    run_steps(out, steps(), estimate=True)
    assert capsys.readouterr().out.count("done already") == 2


def test_what_a_stopped_step_left_is_removed(out):
    folder = out / "model"
    aside(folder).mkdir()
    (aside(folder) / "half").touch()
    run_steps(out, [Step("model", ["-c", WRITE, aside(folder)], 1, result=folder)], estimate=False)
    assert list(folder.iterdir()) == []


def test_a_failure_ends_with_the_last_lines_of_its_log(out):
    step = Step("broken", ["-c", "import sys; print('first'); sys.exit('no such scene')"], 1)
    with pytest.raises(SystemExit, match=r"(?s)step 'broken' failed \(see .*broken.log\):.*no such scene"):
        run_steps(out, [step], estimate=False)
    assert not (out / "logs" / "broken.done").exists()


MEET = """
import os, pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.write_text(os.environ.get("OMP_NUM_THREADS", "all"))
for _ in range(300):
    if other.exists():
        sys.exit(0)
    time.sleep(0.1)
sys.exit("alone")
"""


def test_lanes_run_at_the_same_time_each_in_its_order(out, capsys):
    def meet(mine: str, other: str) -> Step:
        return Step(f"{mine} meets {other}", ["-c", MEET, out / mine, out / other], 80)

    lanes = [meet("a", "b"), meet("c", "b")], [meet("b", "c"), meet("d", "a")]
    run_steps(out, [Step("alone", ["-c", "0"], 60), *side_by_side(*lanes), meet("e", "d")], estimate=True)
    cores = os.cpu_count() or 1
    assert {name: (out / name).read_text() for name in "abcd"} == dict.fromkeys("abcd", str(max(1, cores // 2)))
    printed = capsys.readouterr().out
    assert "[ 2/6] a meets b, [ 4/6] b meets c ... (about 5 min remain)" in printed  # of 4 * 80 * 0.65 + 80 s


def test_what_follows_steps_side_by_side_waits_for_all_of_them(out):
    late = "import pathlib, sys, time; time.sleep(1); pathlib.Path(sys.argv[1]).touch()"
    needs = "import pathlib, sys; pathlib.Path(sys.argv[1]).stat()"
    first = side_by_side([Step("quick", ["-c", "0"], 1)], [Step("late", ["-c", late, out / "made"], 1)])
    then = side_by_side([Step("one", ["-c", needs, out / "made"], 1)], [Step("other", ["-c", "0"], 1)])
    run_steps(out, [*first, *then], estimate=False)


def test_a_failure_in_one_lane_ends_the_other(out):
    log = out / "logs" / "long.log"
    long = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    fail = f"import pathlib, time\nwhile not pathlib.Path({str(log)!r}).read_text(): time.sleep(0.1)\n1 / 0"
    with pytest.raises(SystemExit, match="(?s)step 'broken' failed.*ZeroDivisionError"):
        run_steps(
            out, side_by_side([Step("long", ["-c", long], 1)], [Step("broken", ["-c", fail], 1)]), estimate=False
        )
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    assert not list((out / "logs").glob("*.done"))


def test_a_folder_of_other_settings_is_refused(out):
    check_settings(out, {"size": {"scenes": 3}, "seed": 0})
    with pytest.raises(ValueError, match="seed was 0, now 1.*another --output-dir"):
        check_settings(out, {"size": {"scenes": 3}, "seed": 1})


def test_a_seed_out_of_range_leaves_no_run_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output-dir", str(tmp_path / "run"), "--seed", "12345"])
    with pytest.raises(SystemExit):
        demo.main()
    assert "12345 is out of range: choose 0 to 9999" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("run", [demo, drive_demo, dagger, guidance, grpo_demo, ablation, compare])
def test_a_run_s_size_is_recognised_when_it_is_resumed(run, out):
    for size in (run.FULL, run.SHORT):
        (out / SETTINGS).unlink(missing_ok=True)
        check_settings(out, {"size": size})
        check_settings(out, {"size": size})


@pytest.mark.parametrize("run", [drive_demo, dagger, guidance, grpo_demo])
def test_what_comes_after_the_demo_says_so_where_there_is_none(run, monkeypatch, tmp_path):
    nowhere = "--demo", str(tmp_path / "nowhere"), "--output-dir", str(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["run.py", *nowhere])
    with pytest.raises(SystemExit, match="nowhere holds no finished demo: run `make demo` first"):
        run.main()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("visions", "wanted"),
    [
        (["guided"], "'guided' is not NAME=FOLDER"),
        (["gui ded=outputs/guided"], "'gui ded=outputs/guided' is not NAME=FOLDER"),
        (["guided="], "'guided=' is not NAME=FOLDER"),
        (["guided=nowhere"], "nowhere holds no model"),
        (["guided=one", "guided=other"], "a name is given twice"),
    ],
)
def test_a_vision_model_that_is_not_there_is_named(visions, wanted, model_folder, monkeypatch, tmp_path, capsys):
    demo, out = tmp_path / "demo", tmp_path / "run"
    shutil.copytree(model_folder, demo / "model")
    write_json(demo / SETTINGS, {"seed": 0})
    monkeypatch.setattr(
        sys, "argv", ["dagger.py", "--demo", str(demo), "--output-dir", str(out), "--vision", *visions]
    )
    with pytest.raises(SystemExit) as ended:
        dagger.main()
    assert wanted in capsys.readouterr().err + str(ended.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("run", "last", "worlds"),
    [(drive_demo, ["pairs-scores", "picture"], 3), (dagger, ["drives"], 6), (guidance, ["questions-plans"], 3)],
)
def test_steps_after_the_demo_are_scripts_with_these_options_in_worlds_of_their_own(
    run, last, worlds, tmp_path, pytestconfig
):
    demo = tmp_path / "demo"
    begin = {name: demo / folder for name, folder in dagger.VISIONS.items()} if run is dagger else demo
    steps = run.steps_of(tmp_path / "run", begin, 7, run.FULL)
    names = [step.name for step in steps]
    assert names[:2] == ["world", "scenes"] and names[-len(last) :] == last
    assert len(set(names)) == len(names)
    printed = dagger.tables(begin, run.FULL) if run is dagger else getattr(run, "TABLES", ())
    assert set(printed) < set(names)
    seeds, shared = [], (pytestconfig.rootpath / "data_scripts" / "prepare_drivelm.py").read_text(encoding="utf-8")
    for step in steps:
        script, *options = map(str, step.command)
        text = shared + (pytestconfig.rootpath / script).read_text(encoding="utf-8")
        if script not in ("recipes/train_planner.py", "recipes/distill_vision.py"):
            assert not [option for option in options if option.startswith("--") and f'"{option}"' not in text], script
            seeds += [int(seed) for name, seed in zip(options, options[1:], strict=False) if name == "--seed"]
    assert len(set(seeds) - {0, 1, 2, 7}) == worlds


def test_a_run_in_progress_is_not_started_twice(out):
    with sole_writer(out), pytest.raises(SystemExit, match="another process is writing"):
        run_steps(out, [Step("model", ["-c", "0"], 1)], estimate=False)


RUN = """
import sys
from pathlib import Path
from recipes.tiny.pipeline import Step, run_steps
out = Path(sys.argv[1])
code = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
run_steps(out, [Step("long", ["-c", code], 1)], estimate=False)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a step outlives a killed run")
def test_a_step_ends_with_the_run_that_is_killed(out, pytestconfig):
    log = out / "logs" / "long.log"
    with subprocess.Popen([sys.executable, "-c", RUN, str(out)], cwd=pytestconfig.rootpath) as run:
        while not (log.exists() and log.read_text().endswith("\n")):
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGKILL)
    step, deadline = Path("/proc") / log.read_text().strip() / "stat", time.monotonic() + 10
    while step.exists() and step.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the step lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("program", [demo, compare, ablation])
def test_every_script_and_config_of_a_run_exists(program, monkeypatch, tmp_path, pytestconfig):
    monkeypatch.setattr(sys, "argv", ["run", "--output-dir", str(tmp_path)])
    planned = []
    monkeypatch.setattr(program, "run_steps", lambda out, steps, estimate: planned.extend(steps))
    with pytest.raises(SystemExit, match="is not a finished|No such file"):  # nothing has run: no result to show
        program.main()
    files = {str(word) for step in planned for word in step.command if str(word).endswith((".py", ".yaml"))}
    assert len(files) > 5 and all((pytestconfig.rootpath / name).is_file() for name in files)
    assert len({step.name for step in planned}) == len(planned)


# Captions

ITEMS = [["two", "moving", "cars"], ["one", "", "barrier"], ["one", "red", "light"]]


def test_captions_are_sentences():
    assert caption(ITEMS) == "Two moving cars, one barrier, one red light."
    assert caption([]) == "Nothing."


def test_yes_and_no_are_equally_many_and_true_in_every_wording():
    shown = {("", "car"), ("moving", "car"), ("", "barrier"), ("", "light"), ("red", "light")}
    usual = Counter(dict.fromkeys(shown, 3) | {("", "bus"): 2, ("moving", "bus"): 1, ("green", "light"): 1})
    things = {asks_for(wording, "the picture", *thing): (wording, thing) for wording in IS_IT_THERE for thing in usual}
    answers, wordings = [], set()
    for seed in range(60):
        for qa in general_questions(ITEMS, random.Random(seed), usual):
            if qa["question"] in things:
                wording, thing = things[qa["question"]]
                assert qa["answer"] == ("Yes." if thing in shown else "No."), qa
                answers.append(qa["answer"])
                wordings.add((wording, qa["answer"]))
    assert answers.count("Yes.") == answers.count("No.") == 120
    assert len(wordings) == 2 * len(IS_IT_THERE)
    assert [qa["answer"] for qa in general_questions([], random.Random(0), usual)] == ["Nothing."]


def test_the_words_of_a_question_hardly_tell_whether_a_thing_is_there(tmp_path):
    world, answers = tmp_path / "world", Counter()
    synthesize(world, scenes=30, seed=1, size=(96, 54), every=8, workers=1)
    seen = json.loads((world / "captions.json").read_text())
    usual = things_shown(seen)
    for seed, (camera, items) in enumerate(view for views in seen.values() for view in views.items()):
        for qa in general_questions(items, random.Random(seed), usual[camera]):
            if qa["answer"] in ("Yes.", "No."):
                thing = next(
                    thing
                    for thing in usual[camera]
                    for wording in IS_IT_THERE
                    if qa["question"] == asks_for(wording, "the picture", *thing)
                )
                answers[thing, qa["answer"]] += 1
    things = {thing for thing, _ in answers}
    known = sum(max(answers[thing, "Yes."], answers[thing, "No."]) for thing in things)
    assert len(things) > 20 and known / answers.total() < 0.6


@pytest.mark.parametrize(
    ("attribute", "noun", "asked"),
    [
        ("empty", "bicycle", ["an empty bicycle", "an empty bicycle", "empty bicycles", "empty bicycles"]),
        ("", "bus", ["a bus", "a bus", "buses", "buses"]),
        ("red", "light", ["a red light", "a red light", "red lights", "red lights"]),
    ],
)
def test_a_thing_is_asked_for_in_singular_and_plural(attribute, noun, asked):
    for wording, thing in zip(IS_IT_THERE, asked, strict=True):
        assert f" {thing} " in asks_for(wording, "CAM_BACK", attribute, noun).replace("?", " ")


def test_rows_hold_one_view_or_name_each_and_keep_the_splits_of_their_scenes(tmp_path, capsys):
    world, folder = tmp_path / "world", tmp_path / "captions"
    synthesize(world, scenes=12, seed=1, size=(96, 54), every=8, workers=1)
    main(["--world", str(world), "--output-dir", str(folder), "--most-views", "3"])
    assert "train" in capsys.readouterr().out
    seen = json.loads((world / "captions.json").read_text())
    counts, names = [], Counter()
    for split in ("train", "eval", "test"):
        if not (folder / split).is_dir():
            continue
        for row in load_scenes(folder, split):
            shown = [camera for camera in CAMERAS if row[camera] is not None]
            frame, cameras = row["frame_token"].split("/")
            assert sorted(shown) == cameras.split(",") and split_of(row["scene_token"]) == split
            assert all(row[camera].size == (96, 54) for camera in shown)
            answers = {qa["question"]: qa["answer"] for qa in row["qa"]}
            for camera in shown:
                captions = {
                    name: answers[wording.format(view=name)]
                    for name in names_of(camera, len(shown))
                    for wording in WHAT_IS_THERE
                    if wording.format(view=name) in answers
                }
                assert list(captions.values()) == [caption(seen[frame][camera])]
                named = list(captions)
                names[named[0].split(" of ")[-1] if len(shown) > 1 else "one"] += 1
            repeated = [
                (q.removeprefix("Repeat this: "), a) for q, a in answers.items() if q.startswith("Repeat this: ")
            ]
            assert repeated and all(question == answer for question, answer in repeated)
            counts.append(len(shown))
    assert names["one"] and names["the ego car"] > 20 and names["CAM_FRONT"] > 2
    assert set(counts) == {1, 2, 3} and counts.count(1) > len(counts) // 3


def test_a_folder_without_a_world_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="not a finished world"):
        main(["--world", str(tmp_path), "--output-dir", str(tmp_path / "captions")])


def test_a_world_that_cannot_be_read_is_refused_by_name(tmp_path):
    world, folder = tmp_path / "world", tmp_path / "captions"
    synthesize(world, scenes=1, seed=1, size=(96, 54), every=8, workers=1)

    def refusal() -> str:
        with pytest.raises(SystemExit) as caught:
            main(["--world", str(world), "--output-dir", str(folder), "--workers", "1"])
        return caught.value.code

    whole = {picture: picture.read_bytes() for picture in (world / "samples").glob("*/*.jpg")}
    for picture, data in whole.items():
        picture.write_bytes(data[: len(data) // 2])
    assert re.match(rf"prepare_captions: {world}/samples/CAM_\w+/\S+\.jpg: cut short or broken", refusal())
    for picture, data in whole.items():
        picture.write_bytes(data)

    captions = (world / "captions.json").read_text()
    (world / "captions.json").write_text(captions[: len(captions) // 2])
    assert f"{world}/captions.json cannot be read" in refusal()
    (world / "captions.json").write_text("{}")
    assert f"{world}/captions.json lacks the frame" in refusal()
    (world / "captions.json").write_text(captions)

    record = json.loads((world / "world.json").read_text())
    record["options"]["version"] = 3
    (world / "world.json").write_text(json.dumps(record))
    assert f"{world} is a world of version 3, not {WORLD_VERSION}" in refusal()


@pytest.mark.parametrize(
    "options, message",
    [
        (("--steps", "19"), "19 is out of range: choose at least 20"),
        (("--frames", "0"), "0 is out of range: choose at least 1"),
        ((), "there is no folder"),
    ],
)
def test_the_demo_s_base_names_what_is_wrong(options, message, monkeypatch, tmp_path, capsys):
    folders = ("--world", tmp_path / "world", "--scenes", tmp_path / "scenes", "--output-dir", tmp_path / "base")
    monkeypatch.setattr(sys, "argv", ["pretrain_towers.py", *map(str, folders), *options])
    with pytest.raises(SystemExit) as caught:
        pretrain_towers.main()
    assert message in f"{caught.value.code} {capsys.readouterr().err}"


def test_a_frame_without_a_camera_s_image_is_named():
    row = dict.fromkeys(CAMERAS) | {"frame_token": "4a07"}
    with pytest.raises(ValueError, match="frame 4a07 has no image of CAM_FRONT_LEFT, CAM_FRONT, "):
        pretrain_towers.frame_pixels(row)


def test_log_reads_as_a_terminal_leaves_it(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\r 0%| 0/2\r50%| 1/2\r100%| 2/2\n\nmodel saved\r\n")
    assert read_log(log) == ["100%| 2/2", "model saved"]
