"""Does a SmolDriver's guidance help its planner? The same frames, steps and head behind four vision models.

python recipes/tiny/guidance.py --demo outputs/demo --output-dir outputs/guidance

    pretrained   the demo's pretrained tower with fresh resamplers, before any training of its own
    transfer     after knowledge transfer from a pretrained SmolVLM tower, on pictures alone
    questions    after question tuning: the demo's SmolDriver
    joint        that SmolDriver, trained on questions and waypoints at once; frozen then, like the others

Each gets three fresh heads (seeds 0, 1, 2), the same for all, and imitates the expert. The table shows the distance to
the expert in metres, over the seeds, and the difference from `pretrained` by scene with its 95% interval.

It needs a finished demo (recipes/tiny/demo.py), on whose training scenes it trains. Every step is a script of its own,
with its output in `<output-dir>/logs`; after an interruption the same command resumes the run.
"""

import argparse
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from data_scripts.world.folder import WORLD_FILE, read_json
from recipes.planning.paired_planners import compare_planners, comparison_table
from recipes.planning.plan_files import read_plans
from recipes.planning.plan_scoring import in_order_of
from recipes.planning.scored_frames import load_frames
from recipes.tiny.pipeline import SETTINGS, Step, aside, check_settings, run_steps, side_by_side, training_step
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import write_json

FULL = {"scenes": 400, "every": 2, "frames": 3000, "tower_steps": 700, "vision_steps": 400, "steps": 1000, "seeds": 3}
SHORT = {"scenes": 40, "every": 8, "frames": 100, "tower_steps": 20, "vision_steps": 4, "steps": 8, "seeds": 2}
CONFIGS = "recipes/configs/tiny"
TRAIN = "recipes/train_planner.py"
REFERENCE = "pretrained"
RESULT = "guidance.json"


def encoders(out: Path, demo: Path) -> dict[str, Path]:
    """SmolDriver folders whose vision models are compared."""
    return {
        "pretrained": demo / "built",
        "transfer": out / "transfer",
        "questions": demo / "model",
        "joint": out / "joint" / "smoldriver",
    }


def steps_of(out: Path, demo: Path, size: dict) -> list[Step]:
    encoder_heads = (head_steps(out, name, folder, size) for name, folder in encoders(out, demo).items())
    return [*row_steps(out, demo, size), *vision_steps(out, demo, size), *chain.from_iterable(encoder_heads)]


def row_steps(out: Path, demo: Path, size: dict) -> list[Step]:
    """The demo's scenes with more key frames, as rows with ego motion."""
    world, seed = out / "world", read_json(demo / "world" / WORLD_FILE)["options"]["seed"]
    make = ["data_scripts/synthesize_world.py", "--output-dir", world, "--scenes", size["scenes"], "--seed", seed]
    make += ["--frames-every", size["every"], "--workers", 2]
    prepare = ["data_scripts/prepare_planning.py", "--nuscenes", world, "--json", world / "drivelm.json"]
    prepare += ["--output-dir", out / "scenes", "--object-tags", "drop", "--workers", 2]
    return [Step("world", make, seconds=120, done=world / WORLD_FILE), Step("scenes", prepare, seconds=40)]


def vision_steps(out: Path, demo: Path, size: dict) -> list[Step]:
    """The vision models that the demo does not have."""
    base, scenes, first = out / "base", demo / "scenes", out / "joint-built"
    towers = ["recipes/tiny/pretrain_towers.py", "--world", demo / "world", "--scenes", scenes, "--both-towers"]
    towers += [
        "--seed",
        read_json(demo / SETTINGS)["seed"],
        "--frames",
        size["frames"],
        "--steps",
        size["tower_steps"],
    ]
    transfer = ("--scenes", scenes, "--teacher", base / "vlm", "--max_steps", size["vision_steps"])
    joint = ("--scenes", out / "scenes", "--teacher_model", demo / "model", "--max_steps", size["vision_steps"])
    distill, config = "recipes/distill_vision.py", f"{CONFIGS}/compare_distill.yaml"
    return [
        Step("base", [*towers, "--output-dir", aside(base)], seconds=200, result=base),
        training_step("transfer", distill, config, demo / "built", out / "transfer", 120, *transfer),
        build_step(first, demo / "model", 0),
        training_step("joint", TRAIN, f"{CONFIGS}/planner_joint.yaml", first, out / "joint", 240, *joint),
    ]


def build_step(planner: Path, smoldriver: Path, seed: int) -> Step:
    command = ["recipes/build_planner.py", "--model", smoldriver, "--seed", seed, "--output-dir", aside(planner)]
    return Step(planner.name, command, seconds=10, result=planner)


def head_steps(out: Path, name: str, smoldriver: Path, size: dict) -> list[Step]:
    """Build, train and plan with a head of each seed. The first computes the visual tokens, the others read them."""
    lanes = []
    for seed, plans in enumerate(plan_folders(out, name, size)):
        built, trained = out / f"{name}-{seed}-built", out / f"{name}-{seed}"
        options = ("--scenes", out / "scenes", "--feature_cache", out / "frames", "--max_steps", size["steps"])
        config = f"{CONFIGS}/planner_imitation.yaml"
        plan = ["recipes/evaluate_planner.py", "--planner", trained, "--name", name, "--scenes", out / "scenes"]
        lanes.append(
            [
                build_step(built, smoldriver, seed),
                training_step(trained.name, TRAIN, config, built, trained, 60, *options, "--seed", seed),
                Step(plans.name, [*plan, "--controls", "--output-dir", plans], 30, done=plans / "metrics.json"),
            ]
        )
    first, *others = lanes
    return [*first, *side_by_side(*(list(chain.from_iterable(others[lane::2])) for lane in range(2)))]


def plan_folders(out: Path, name: str, size: dict) -> list[Path]:
    return [out / f"{name}-{seed}-plans" for seed in range(size["seeds"])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("outputs/demo"), help="folder of a finished demo")
    parser.add_argument("--output-dir", type=Path, default=Path("outputs/guidance"))
    parser.add_argument("--short", action="store_true", help="a small run, to check that all steps work")
    arguments = parser.parse_args()
    out, demo, size = arguments.output_dir, arguments.demo, SHORT if arguments.short else FULL
    with errors_in_one_line("guidance"):
        if not (demo / "model" / "config.json").is_file():
            raise FileNotFoundError(f"--demo {demo} holds no finished demo: python recipes/tiny/demo.py makes one")
        check_settings(out, {"size": size, "demo": str(demo), "demo's settings": read_json(demo / SETTINGS)})
        steps = steps_of(out, demo, size)
    run_steps(out, steps, estimate=not arguments.short)
    with errors_in_one_line("guidance"):
        frames = load_frames(str(out / "scenes"), "test").frames
        folders = {name: plan_folders(out, name, size) for name in encoders(out, demo)}
        plans = {
            name: [in_order_of(frames, read_plans(folder), name)[name] for folder in of_seeds]
            for name, of_seeds in folders.items()
        }
        results = compare_planners(plans, frames, REFERENCE)
        write_json(out / RESULT, [asdict(one) for one in results])
        print(comparison_table(results, REFERENCE))


if __name__ == "__main__":
    with stopped_in_one_line("guidance"):
        main()
