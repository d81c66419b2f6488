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

from dataclasses import asdict
from itertools import chain
from pathlib import Path

from recipes.planning.paired_planners import compare_planners, comparison_table
from recipes.planning.plan_files import read_plans
from recipes.planning.plan_scoring import in_order_of
from recipes.planning.scored_frames import load_frames
from recipes.tiny.pipeline import (
    CONFIGS,
    Step,
    aside,
    open_run_after_demo,
    planner_build_step,
    planner_training_step,
    planning_world_steps,
    plans_step,
    run_steps,
    side_by_side,
    training_step,
)
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import write_json

FULL = {"scenes": 400, "every": 2, "frames": 3000, "tower_steps": 700, "vision_steps": 400, "steps": 1000, "seeds": 3}
SHORT = {"scenes": 40, "every": 8, "frames": 100, "tower_steps": 20, "vision_steps": 4, "steps": 8, "seeds": 2}
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


def steps_of(out: Path, demo: Path, demo_seed: int, size: dict) -> list[Step]:
    questions = ("--json", out / "world" / "drivelm.json", "--object-tags", "drop")
    encoder_heads = (head_steps(out, name, folder, size) for name, folder in encoders(out, demo).items())
    return [
        *planning_world_steps(out, size, demo_seed, *questions),
        *vision_steps(out, demo, demo_seed, size),
        *chain.from_iterable(encoder_heads),
    ]


def vision_steps(out: Path, demo: Path, demo_seed: int, size: dict) -> list[Step]:
    """The vision models that the demo does not have."""
    base, scenes, first = out / "base", demo / "scenes", out / "joint-built"
    towers = ["recipes/tiny/pretrain_towers.py", "--world", demo / "world", "--scenes", scenes, "--both-towers"]
    towers += ["--seed", demo_seed, "--frames", size["frames"], "--steps", size["tower_steps"]]
    transfer = ("--scenes", scenes, "--teacher", base / "vlm", "--max_steps", size["vision_steps"])
    joint = ("--scenes", out / "scenes", "--teacher_model", demo / "model", "--max_steps", size["vision_steps"])
    distill, config = "recipes/distill_vision.py", f"{CONFIGS}/compare_distill.yaml"
    return [
        Step("base", [*towers, "--output-dir", aside(base)], seconds=200, result=base),
        training_step("transfer", distill, config, demo / "built", out / "transfer", 120, *transfer),
        planner_build_step(first, demo / "model", 0),
        training_step("joint", TRAIN, f"{CONFIGS}/planner_joint.yaml", first, out / "joint", 240, *joint),
    ]


def head_steps(out: Path, name: str, smoldriver: Path, size: dict) -> list[Step]:
    """Build, train and plan with a head of each seed. The first computes the visual tokens, the others read them."""
    lanes = []
    for seed, plans in enumerate(plan_folders(out, name, size)):
        built, trained = out / f"{name}-{seed}-built", out / f"{name}-{seed}"
        lanes.append(
            [
                planner_build_step(built, smoldriver, seed),
                planner_training_step(built, trained, out, size, seed, 60),
                plans_step(name, trained, out / "scenes", plans, 30, "--controls"),
            ]
        )
    first, *others = lanes
    return [*first, *side_by_side(*(list(chain.from_iterable(others[lane::2])) for lane in range(2)))]


def plan_folders(out: Path, name: str, size: dict) -> list[Path]:
    return [out / f"{name}-{seed}-plans" for seed in range(size["seeds"])]


def main():
    run = open_run_after_demo("guidance", __doc__, FULL, SHORT)
    out, size = run.out, run.size
    with errors_in_one_line("guidance"):
        steps = steps_of(out, run.demo, run.demo_seed, size)
    run_steps(out, steps, estimate=not run.short)
    with errors_in_one_line("guidance"):
        frames = load_frames(str(out / "scenes"), "test").frames
        folders = {name: plan_folders(out, name, size) for name in encoders(out, run.demo)}
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
