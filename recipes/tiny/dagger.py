"""Planners learn from their own mistakes in the synthetic world: DAgger (Ross, Gordon, Bagnell 2011), in two rounds.

python recipes/tiny/dagger.py --demo outputs/demo --output-dir outputs/dagger

    unguided   on the demo's pretrained tower with fresh resamplers
    guided     on the vision model of the demo's SmolDriver, which was tuned on questions

or on the vision models of the SmolDrivers that `--vision` names, as in `--vision transfer=outputs/guidance/transfer
guided=outputs/demo/model` (after guidance.py). They first imitate the expert (`guided-0`), on more frames than in
drive_demo.py and on counterfactual pairs: moments that differ in the one thing that the expert reacts to. Then each
drives scenes that it has not seen; at each state that it gets into, the expert shows the way back, and it learns
again, from these rows too. After two rounds (`guided-2`) all are measured as in drive_demo.py: in open loop, on other
pairs, in closed loop.

It needs a finished demo (recipes/tiny/demo.py). Every step is a script of its own, with its output in
`<output-dir>/logs`; after an interruption the same command resumes the run.
"""

from collections.abc import Iterable
from pathlib import Path

from recipes.planning.plan_files import CONTROLS
from recipes.tiny.drive_demo import GUIDED, UNGUIDED
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

FULL = {"scenes": 1600, "every": 2, "taught_pair_scenes": 300, "steps": 2000, "lateral_weight": 3}
FULL |= {"collected": [200, 300], "plan_frames": 400, "pair_scenes": 50, "drives": 100}
SHORT = {"scenes": 40, "every": 8, "taught_pair_scenes": 3, "steps": 8, "lateral_weight": 3}
SHORT |= {"collected": [2, 2], "plan_frames": 8, "pair_scenes": 3, "drives": 2}
TAUGHT = "taught-pairs"
VISIONS = {UNGUIDED: "built", GUIDED: "model"}


def measured(visions: Iterable[str], size: dict) -> list[str]:
    """Each planner before it drove and after its last round."""
    return [f"{name}-{number}" for number in (0, len(size["collected"])) for name in visions]


def tables(visions: Iterable[str], size: dict) -> list[str]:
    return [*(f"{planner}-plans" for planner in measured(visions, size)), "pairs-scores", "drives"]


def steps_of(out: Path, visions: dict[str, Path], demo_seed: int, size: dict) -> list[Step]:
    # seeds of worlds: nobody learns from those of `pairs` and `drives`
    training, pairs, drives, taught, *collected = (demo_seed + place for place in range(1, 5 + len(size["collected"])))
    planners = measured(visions, size)
    return [
        *planning_world_steps(out, size, training),
        *side_by_side(
            [pairs_step(out / "pairs", size["pair_scenes"], pairs)],
            [pairs_step(out / TAUGHT, size["taught_pair_scenes"], taught, "--split", "train")],
        ),
        *side_by_side(*(planner_steps(out, name, visions[name], size, collected) for name in visions)),
        pair_scores_step(out, planners, seconds=40),
        drives_step(out, planners, size, drives),
    ]


def planner_steps(out: Path, name: str, smoldriver: Path, size: dict, collected: list[int]) -> list[Step]:
    """Rounds of learning and driving; the first and the last planner are measured in open loop."""
    built, rows = out / f"{name}-built", [out / TAUGHT]
    steps = [planner_build_step(built, smoldriver, seed=0)]
    for number in range(len(collected) + 1):
        trained = out / f"{name}-{number}"
        options = "--lateral_weight", size["lateral_weight"], "--more_scenes", *rows
        seconds = 130 if number else 450  # the first computes the visual tokens
        steps.append(planner_training_step(built, trained, out, size, 0, seconds, *options))
        if trained.name in measured([name], size):
            controls = CONTROLS if number else ()
            frames = "--max-frames", size["plan_frames"], "--controls", *controls
            steps.append(plans_step(trained.name, trained, out / "scenes", out / f"{trained.name}-plans", 45, *frames))
        if number < len(collected):
            rows = [*rows, out / f"{trained.name}-recovery"]
            steps.append(recovery_step(out, trained, rows[-1], size["collected"][number], collected[number]))
    return steps


def recovery_step(out: Path, planner: Path, rows: Path, scenes: int, seed: int) -> Step:
    """The planner drives; rows of the expert's way on from where it got to."""
    command = ["recipes/drive.py", *driven_planners(out, [planner.name]), "--policies", "--no-plans"]
    command += ["--world", out / "world", "--seed", seed, "--scenes", scenes, "--collect", rows]
    return Step(rows.name, [*command, "--output-dir", out / f"{rows.name}-drives"], seconds=round(1.7 * scenes))


def drives_step(out: Path, planners: list[str], size: dict, seed: int) -> Step:
    """Everyone drives the same unseen scenes."""
    command = ["recipes/drive.py", *driven_planners(out, planners)]
    command += ["--blind-rows", out / "scenes", "--world", out / "world", "--seed", seed, "--scenes", size["drives"]]
    command += ["--no-plans", "--workers", 2, "--output-dir", out / "drives"]
    return Step("drives", command, seconds=5 * size["drives"], done=out / "drives" / "scores.json")


def main():
    run = open_run_after_demo("dagger", __doc__, FULL, SHORT, VISIONS)
    run_steps(run.out, steps_of(run.out, run.visions, run.demo_seed, run.size), estimate=not run.short)
    print_logs(run.out, tables(run.visions, run.size))


if __name__ == "__main__":
    with stopped_in_one_line("dagger"):
        main()
