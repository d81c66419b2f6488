"""Plan for every frame of a split and score the plans, beside controls that know less.

python recipes/evaluate_planner.py --planner outputs/planner-trained --scenes outputs/planning --split test \
    --output-dir outputs/planner-eval

Writes `plans.parquet` (see recipes/planning/plan_files.py), `metrics.json` (metrics: recipes/metrics/planning),
`tables.md`, `report.html` and `figures/`, and prints the tables: the expert's own way as the floor, subsets of the
frames, every protocol, and the planner's difference from each control with its interval over scenes. The same command
resumes a stopped evaluation. Scenes that the planner learned from are refused, unless the split is `train`.

The blind controls are trained here, on the training split of `--scenes`. `recipes/score_plans.py` scores the plans
again without any model, and compares several planners.
"""

import argparse
import re
import shutil
from dataclasses import fields
from pathlib import Path

from data_scripts.schema import load_scenes
from recipes.evaluation.asking import unfinished_folder
from recipes.evaluation.predictions import METRICS_FILE
from recipes.evaluation.provenance import check_leakage, loading_digests, weights_digest
from recipes.planning.plan_files import CONTROLS, EXPERT, Plans, PlanSettings, PlansRecord, write_plans
from recipes.planning.plan_making import Made, load_planner, make_plans
from recipes.planning.plan_report import printed
from recipes.planning.plan_scoring import score_folder
from recipes.planning.scored_frames import ScoredFrames, load_frames
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.whole_files import check_apart, sole_writer


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--planner", required=True, dest="model", help="planner folder or Hub id")
    add("--name", type=planner_name, default="planner", help="of the planner in tables and files")
    add("--scenes", required=True, help="folder of rows that data_scripts/prepare_planning.py prepared")
    add("--split", default="test", choices=("train", "eval", "test"))
    add("--output-dir", required=True, type=Path)
    add("--controls", nargs="*", default=list(CONTROLS), choices=list(CONTROLS))
    add("--max-frames", type=whole_number(), help="frames to plan for, evenly spread; default: all")
    add("--seed", type=whole_number(0), default=0, help="of the blind controls' weights")
    return parser.parse_args()


def planner_name(text: str) -> str:
    if not re.fullmatch(r"[\w.+ -]+", text) or text in (*CONTROLS, EXPERT):
        raise argparse.ArgumentTypeError(f"{text!r}: letters, digits, blanks and . + - _, and no control's name")
    return text


def evaluate(settings: PlanSettings, controls: list[str], output: Path) -> None:
    """Plan, score, write, print."""
    check_apart(output, {"the planner": settings.model, "the folder of scenes": settings.scenes})
    frames = load_frames(settings.scenes, settings.split, settings.max_frames)
    leakage = check_leakage(settings.model, frames.scene_tokens, settings.split)
    print(f"training scenes among those planned for: {leakage}")
    planner = load_planner(settings.model)
    with sole_writer(output):
        (output / METRICS_FILE).unlink(missing_ok=True)  # an earlier evaluation's: its scores are not of these plans
        parts = unfinished_folder(output, settings)
        rows = load_scenes(settings.scenes, settings.split)
        made = make_plans(planner, list(dict.fromkeys(controls)), rows, frames, settings, parts)
        record = PlansRecord(
            settings=settings,
            leakage=leakage,
            ego_inputs=planner.config.ego_inputs,
            blind_training=made.blind_training,
            left_out_controls=made.left_out,
            counted=frames.counted,
            command_sources=frames.command_sources,
            ego=frames.ego,
            weights_sha256=weights_digest(settings.model),
            files_sha256=loading_digests(settings.model),
        )
        write_plans(output, plans_of(record, frames, made))
        scored = score_folder(output)
        for unfinished in output.glob(".parts-*"):
            shutil.rmtree(unfinished)
    print(printed(scored))
    print(f"{len(frames.frames)} frames, {len(made.plans)} planners and controls; wrote {output}")


def plans_of(record: PlansRecord, frames: ScoredFrames, made: Made) -> Plans:
    return Plans(record, [frame.token for frame in frames.frames], frames.scene_tokens, made.plans)


def main():
    arguments = parse_arguments()
    with errors_in_one_line("evaluate_planner"):
        settings = PlanSettings(**{field.name: getattr(arguments, field.name) for field in fields(PlanSettings)})
        evaluate(settings, arguments.controls, arguments.output_dir)


if __name__ == "__main__":
    with stopped_in_one_line("evaluate_planner"):
        main()
