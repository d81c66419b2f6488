"""Two tiny planners on the demo's models: they plan, answer to counterfactual pairs, and drive in the synthetic world.

python recipes/tiny/drive_demo.py --demo outputs/demo --output-dir outputs/drive

    unguided   on the demo's pretrained tower with fresh resamplers
    guided     on the vision model of the demo's SmolDriver, which was tuned on questions

Both get the same frames, head and steps, and imitate the expert. Then both are measured in open loop beside controls,
on pairs of frames that differ in one thing, and in closed loop beside the expert and drivers that see nothing. The
guided planner also drives under a guard that asks the demo's SmolDriver; one of its drives is drawn, `drive.gif`.

It needs a finished demo (recipes/tiny/demo.py), and trains and drives in worlds that the demo's SmolDriver has not
seen. Every step is a script of its own, with its output in `<output-dir>/logs`; after an interruption the same command
resumes the run.
"""

from collections.abc import Iterable
from pathlib import Path

from recipes.planning.plan_files import CONTROLS, OF_THE_PLANNER
from recipes.tiny.pipeline import (
    Step,
    driven_planners,
    open_run_after_demo,
    pair_scores_step,
    pairs_step,
    planner_build_step,
    planner_training_step,
    planning_world_steps,
    plans_step,
    print_logs,
    run_steps,
    side_by_side,
)
from smoldriver_common.command_line import stopped_in_one_line

FULL = {"scenes": 240, "every": 2, "steps": 700, "plan_frames": 400, "pair_scenes": 50, "drives": 100}
SHORT = {"scenes": 40, "every": 8, "steps": 8, "plan_frames": 8, "pair_scenes": 3, "drives": 2}
GUIDED, UNGUIDED = "guided", "unguided"
TABLES = (f"{UNGUIDED}-plans", f"{GUIDED}-plans", "pairs-scores", "drives")


def steps_of(out: Path, demo: Path, demo_seed: int, size: dict) -> list[Step]:
    training, pairs, drives = demo_seed + 1, demo_seed + 2, demo_seed + 3  # seeds of worlds: each is unseen until then
    return [
        *planning_world_steps(out, size, training),
        *side_by_side(
            [
                pairs_step(out / "pairs", size["pair_scenes"], pairs),
                *planner_steps(out, UNGUIDED, demo / "built", size, 30, OF_THE_PLANNER),
            ],
            planner_steps(out, GUIDED, demo / "model", size, 45, CONTROLS),
        ),
        drives_step(out, demo, size, drives),
        *side_by_side([pair_scores_step(out, [GUIDED, UNGUIDED], seconds=25)], [picture_step(out, demo)]),
    ]


def planner_steps(
    out: Path, name: str, smoldriver: Path, size: dict, seconds: int, controls: Iterable[str]
) -> list[Step]:
    """Build a planner, train it, measure it in open loop beside controls; `seconds`: of the last."""
    built, trained = out / f"{name}-built", out / name
    options = "--max-frames", size["plan_frames"], "--controls", *controls
    return [
        planner_build_step(built, smoldriver, seed=0),
        planner_training_step(built, trained, out, size, seed=0, seconds=40),
        plans_step(name, trained, out / "scenes", out / f"{name}-plans", seconds, *options),
    ]


def drives_step(out: Path, demo: Path, size: dict, seed: int) -> Step:
    """Everyone drives the same unseen scenes."""
    command = [
        "recipes/drive.py",
        *driven_planners(out, (UNGUIDED, GUIDED)),
        "--guard",
        demo / "model",
        "--guarded",
        GUIDED,
    ]
    command += ["--guard-rate", 1, "--blind-rows", out / "scenes"]  # asking costs more than planning
    command += ["--world", out / "world", "--seed", seed, "--scenes", size["drives"], "--workers", 2]
    return Step("drives", [*command, "--output-dir", out / "drives"], seconds=410, done=out / "drives" / "scores.json")


def picture_step(out: Path, demo: Path) -> Step:
    """The drive with the most going on, as an animated picture."""
    command = ["recipes/draw_drive.py", "--drives", out / "drives", "--policy", f"{GUIDED} + guard"]
    picture = out / "drive.gif"
    return Step("picture", [*command, "--smoldriver", demo / "model", "--output", picture], seconds=20, done=picture)


def main():
    run = open_run_after_demo("drive", __doc__, FULL, SHORT)
    run_steps(run.out, steps_of(run.out, run.demo, run.demo_seed, run.size), estimate=not run.short)
    print_logs(run.out, TABLES)


if __name__ == "__main__":
    with stopped_in_one_line("drive"):
        main()
