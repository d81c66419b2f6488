"""Does a SmolDriver's guidance help its planner? The same frames, steps and head behind four vision models.

python recipes/tiny/guidance.py --demo outputs/demo --output-dir outputs/guidance

    pretrained   the demo's pretrained tower with fresh resamplers, before any training of its own
    transfer     after knowledge transfer from a pretrained SmolVLM tower, on pictures alone
    questions    after question tuning: the demo's SmolDriver
    joint        that SmolDriver, trained on questions and waypoints at once; frozen then, like the others

Each gets three fresh heads (seeds 0, 1, 2), the same for all, and imitates the expert. More heads on `pretrained` and
`questions` learn without the frames in which a pedestrian crosses within 3 s, which some of the questions were about:
do they brake for pedestrians all the same? (Blocked lanes are in half as many scenes, and there the expert brakes or
changes lanes; for pedestrians it only brakes.)

The table has the distance to the expert, the response to counterfactual pairs and the closed loop, in worlds that
nobody has seen: the mean over the seeds, and the difference from `pretrained` by scene with its 95% interval.
`guidance.json` also has the subsets of the frames and the kinds of pairs, `guidance.png` shows the differences.

It needs a finished demo (recipes/tiny/demo.py), on whose training scenes it trains. Every step is a script of its own,
with its output in `<output-dir>/logs`; after an interruption the same command resumes the run.
"""

from dataclasses import asdict
from pathlib import Path

from data_scripts.world.scenarios import CROSSING_PEDESTRIAN
from recipes.planning.guidance_results import PEDESTRIANS, PlannerRuns, general_results, scenario_results
from recipes.planning.paired_figure import draw_comparisons
from recipes.planning.paired_planners import L2_UNIAD, comparison_table
from recipes.tiny.pipeline import (
    CONFIGS,
    Step,
    aside,
    driven_planners,
    open_run_after_demo,
    pairs_step,
    planner_build_step,
    planner_training_step,
    planning_world_steps,
    run_steps,
    side_by_side,
    training_step,
)
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import write_json

FULL = {"scenes": 400, "every": 2, "frames": 3000, "tower_steps": 700, "vision_steps": 400, "steps": 1000, "seeds": 3}
FULL |= {"unseen": {"scenes": 240, "every": 4}, "pair_scenes": 80, "drives": 50, "left_out_drives": 40}
SHORT = {"scenes": 56, "every": 8, "frames": 100, "tower_steps": 20, "vision_steps": 2, "steps": 8, "seeds": 1}
SHORT |= {"unseen": {"scenes": 16, "every": 8}, "pair_scenes": 3, "drives": 3, "left_out_drives": 3}
ENCODERS = ("pretrained", "transfer", "questions", "joint")
REFERENCE, NOT_TAUGHT = "pretrained", ("pretrained", "questions")
LEFT_OUT, UNSEEN = CROSSING_PEDESTRIAN, "unseen-scenes"
UNSHOWN = (L2_UNIAD, PEDESTRIANS)  # rare unless every scene has pedestrians who cross


def steps_of(out: Path, demo: Path, demo_seed: int, size: dict) -> list[Step]:
    unseen, pairs, drives = demo_seed + 1, demo_seed + 2, demo_seed + 3  # seeds of worlds: nobody trains in them
    transfer, joint = vision_steps(out, demo, demo_seed, size)
    heads = {"pretrained": demo / "built", "transfer": out / "transfer"}
    heads |= {"questions": demo / "model", "joint": out / "joint" / "smoldriver"}
    of_heads = {name: head_steps(out, name, folder, size, drives) for name, folder in heads.items()}
    return [
        *planning_world_steps(out, size, demo_seed, "--json", out / "world" / "drivelm.json", "--object-tags", "drop"),
        *planning_world_steps(out, size["unseen"], unseen, "--split", "test", prefix="unseen-"),
        pairs_step(out / "pairs", size["pair_scenes"], pairs),
        *side_by_side(
            [*transfer, *of_heads["transfer"], *of_heads["pretrained"]],
            [*joint, *of_heads["joint"], *of_heads["questions"]],
        ),
    ]


def vision_steps(out: Path, demo: Path, demo_seed: int, size: dict) -> tuple[list[Step], list[Step]]:
    """The vision models that the demo does not have: transfer, joint."""
    base, scenes, first = out / "base", demo / "scenes", out / "joint-built"
    towers = ["recipes/tiny/pretrain_towers.py", "--world", demo / "world", "--scenes", scenes, "--both-towers"]
    towers += ["--seed", demo_seed, "--frames", size["frames"], "--steps", size["tower_steps"]]
    transfer = ("--scenes", scenes, "--teacher", base / "vlm", "--max_steps", size["vision_steps"])
    joint = ("--scenes", out / "scenes", "--teacher_model", demo / "model", "--max_steps", size["vision_steps"])
    distill, train = "recipes/distill_vision.py", "recipes/train_planner.py"
    teaching, both = f"{CONFIGS}/compare_distill.yaml", f"{CONFIGS}/planner_joint.yaml"
    return [
        Step("base", [*towers, "--output-dir", aside(base)], seconds=200, result=base),
        training_step("transfer", distill, teaching, demo / "built", out / "transfer", 120, *transfer),
    ], [
        planner_build_step(first, demo / "model", 0),
        training_step("joint", train, both, first, out / "joint", 240, *joint),
    ]


def head_steps(out: Path, name: str, smoldriver: Path, size: dict, drives: int) -> list[Step]:
    """Heads of each seed on one vision model: trained, planning and driving. The first computes the visual tokens."""
    steps, heads = [], heads_of(name, size)
    for seed, head in enumerate(heads):
        built = out / f"{head}-built"
        steps += [planner_build_step(built, smoldriver, seed)]
        steps += [planner_training_step(built, out / head, out, size, seed, 35 if seed else 50)]
        if name in NOT_TAUGHT:
            trained, option = out / not_taught(head), ("--leave_out_scenario", LEFT_OUT)
            steps += [planner_training_step(built, trained, out, size, seed, 35, *option)]
    steps += [drives_step(out, f"drives/{name}", heads, size["drives"], drives)]
    if name in NOT_TAUGHT:
        others = [not_taught(head) for head in heads]
        count, option = size["left_out_drives"], ("--scenario", LEFT_OUT)
        steps += [drives_step(out, f"left-out-drives/{name}", others, count, drives, *option)]
        heads = heads + others
    plan = ["recipes/planning/plan_heads.py", "--planners", *(out / head for head in heads), "--scenes"]
    plan += [out / UNSEEN, out / "pairs", "--feature-cache", out / "frames", "--output-dir", out / "plans"]
    return [*steps, Step(f"{name}-plans", plan, seconds=40)]


def heads_of(name: str, size: dict) -> list[str]:
    return [f"{name}-{seed}" for seed in range(size["seeds"])]


def not_taught(head: str) -> str:
    return f"{head}-left-out"


def drives_step(out: Path, folder: str, heads: list[str], scenes: int, seed: int, *options: str) -> Step:
    """Heads drive the same unseen scenes; nobody beside them, who would drive the same each time."""
    drive = ["recipes/drive.py", *driven_planners(out, heads)]
    drive += ["--policies", "--no-plans", "--world", out / "world", "--seed", seed, "--scenes", scenes, *options]
    done, seconds = out / folder / "scores.json", round(1.1 * scenes * len(heads))
    return Step(folder.replace("/", "-"), [*drive, "--output-dir", out / folder], seconds, done=done)


def main():
    run = open_run_after_demo("guidance", __doc__, FULL, SHORT)
    out, size = run.out, run.size
    run_steps(out, steps_of(out, run.demo, run.demo_seed, size), estimate=not run.short)
    with errors_in_one_line("guidance"):
        everyone = PlannerRuns(out, {name: heads_of(name, size) for name in ENCODERS})
        taught = PlannerRuns(out, {name: everyone.heads[name] for name in NOT_TAUGHT})
        others = PlannerRuns(out, {name: list(map(not_taught, heads)) for name, heads in taught.heads.items()})
        results = general_results(everyone, out / UNSEEN, out / "pairs", out / "drives", REFERENCE)
        left_out = scenario_results(others, taught, out / UNSEEN, out / "left-out-drives", LEFT_OUT, REFERENCE)
        write_json(out / "guidance.json", [asdict(one) for one in results + left_out])
        shown = [one for one in results if one.subset == "all" and one.measure not in UNSHOWN] + left_out
        draw_comparisons(shown, REFERENCE, out / "guidance.png")
        print(comparison_table(shown, REFERENCE), f"taught: with the frames of {LEFT_OUT}", sep="\n")


if __name__ == "__main__":
    with stopped_in_one_line("guidance"):
        main()
