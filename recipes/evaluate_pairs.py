"""The response of planners to counterfactual pairs: does a plan change when what is in front of the ego does?

python recipes/evaluate_pairs.py --pairs outputs/counterfactuals --planners outputs/planner --output-dir outputs/pairs

`data_scripts/make_counterfactuals.py` makes the pairs, `recipes/metrics/counterfactual/README.md` defines the scores:
the expert has 1, whoever does not look exactly 0. Beside the planners the table has the expert, each planner without
pictures and baselines that see nothing; with --blind-rows (a prepared planning folder) also a network that knows the
ego's status. The output folder then holds

    plans/<planner>.parquet  frame_token, waypoints: predictions are made once and scored as often as you like
    scores.json              the table with intervals over scenes, per kind
    pairs.png                of each kind one pair: front views, plans and the expert's ways

A run that was stopped resumes: finished plans of the same weights and pairs are kept. Scenes that a planner learned
from are refused.
"""

import argparse
import hashlib
from pathlib import Path

import numpy as np
from transformers.utils import logging

from data_scripts.make_counterfactuals import PAIRS_FILE
from modeling_smoldriver import SmolDriverForTrajectoryPrediction
from modeling_smoldriver.collator_smoldriver import pictures_of
from recipes.evaluation.provenance import check_leakage, weights_digest
from recipes.metrics.counterfactual.pair_scores import compute_metrics
from recipes.planning.blind_planner import StatusPlanner, status_planner_file
from recipes.planning.ego_rules import BLIND_STATUS, constant_turn_rate, constant_velocity, stands_still
from recipes.planning.pair_figure import draw_pairs
from recipes.planning.pairs import MakePlan, PairedFrames, planned
from recipes.planning.scored_frames import ego_input
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import check_apart, sole_writer, write_json

EXPERT, UNSEEING = "expert", "without pictures"
BASELINES = {
    "constant turn rate": constant_turn_rate,
    "constant velocity": constant_velocity,
    "stands still": stands_still,
}
EGO_COLUMNS = ["command", "speed", "ego_history", "ego_history_mask"]


def planner_names(folders: list[Path]) -> dict[str, Path]:
    """{name in the table: folder}: the folder's own name.

    Raises:
        ValueError: two planners of one name, or one that a row of the table has already.
    """
    names = {}
    for folder in folders:
        name = folder.resolve().name
        if name in names or name in (EXPERT, BLIND_STATUS, *BASELINES):
            raise ValueError(f"--planners: the name {name!r} of {folder} is taken; rename one of the folders")
        names[name] = folder
    return names


def load_planner(folder: Path, scene_tokens: list[str]) -> SmolDriverForTrajectoryPrediction:
    """Raises ValueError: it learned from one of the scenes; FileNotFoundError: no folder."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"--planners: {folder} holds no planner")
    check_leakage(folder, scene_tokens, "test")
    return SmolDriverForTrajectoryPrediction.from_pretrained(folder).eval()


def plan_with(planner: SmolDriverForTrajectoryPrediction, pictures: bool) -> MakePlan:
    """How a planner plans for a row; without pictures it knows what is the same in both versions."""
    reads_history = "history" in planner.config.ego_inputs

    def make_plan(row: dict) -> np.ndarray:
        ego = ego_input(row)
        images = pictures_of(row, planner.processor.cameras) if pictures else None
        return planner.plan(images, ego.command, ego.speed, ego.history if reads_history else None).double().numpy()

    return make_plan


def all_plans(
    paired: PairedFrames, planners: dict[str, Path], blind_rows: Path | None, output: Path
) -> dict[str, np.ndarray]:
    """{name: (rows, 6, 2)} of the planners, each with and without pictures, and of the baselines."""
    pairs_digest = hashlib.sha256((paired.folder / PAIRS_FILE).read_bytes()).hexdigest()
    plans = {}
    for name, folder in planners.items():
        planner = load_planner(folder, paired.rows["scene_token"])
        for pictures in (True, False):
            label = name if pictures else f"{name}, {UNSEEING}"
            identity = {"weights": weights_digest(folder), "pairs": pairs_digest, "pictures": pictures}
            make_plan = plan_with(planner, pictures)
            plans[label] = planned(paired, label, make_plan, identity, output / "plans" / f"{label}.parquet")
    baselines = dict(BASELINES)
    if blind_rows is not None:
        baselines[BLIND_STATUS] = StatusPlanner(status_planner_file(blind_rows, output)).plan
    egos = [ego_input(row) for row in paired.rows.select_columns(EGO_COLUMNS)]
    return plans | {name: np.array([make_plan(ego) for ego in egos]) for name, make_plan in baselines.items()}


def print_table(scores: dict[str, dict]) -> None:
    """A row per planner, a column per kind; intervals over scenes."""
    kinds = [kind for kind in scores[EXPERT] if kind not in ("all", "info")]
    counts = [f"{kind} (n={scores[EXPERT][kind]['count']})" for kind in ("all", *kinds)]
    print(f"| response to | {' | '.join(counts)} | right direction |\n|{'---|' * (len(counts) + 2)}")
    for name, of_planner in scores.items():
        cells = [f"{of_planner[kind]['response']:.2f}{interval(of_planner[kind])}" for kind in ("all", *kinds)]
        print(f"| {name} | {' | '.join(cells)} | {of_planner['all']['right_direction']:.0%} |")
    print(f"1: as the expert; 0: as if nothing had changed. {scores[EXPERT]['info']['interval']}")


def interval(scores: dict) -> str:
    ends = scores["response_ci"]
    return "" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pairs", type=Path, required=True, help="folder of data_scripts/make_counterfactuals.py")
    add("--planners", type=Path, nargs="+", required=True, help="planners' folders; the first one is in the picture")
    add("--blind-rows", type=Path, help="prepared planning folder on which the blind ego status baseline is trained")
    add("--output-dir", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    output = arguments.output_dir
    logging.disable_progress_bar()  # of loading weights
    with errors_in_one_line("evaluate_pairs"), sole_writer(output):
        check_apart(output, {"the folder of pairs": arguments.pairs})
        paired, planners = PairedFrames.read(arguments.pairs), planner_names(arguments.planners)
        plans = all_plans(paired, planners, arguments.blind_rows, output)
        scores = {EXPERT: compute_metrics([pair.expert for pair in paired.pairs], paired.pairs)}
        scores |= {name: compute_metrics(paired.of_pairs(made), paired.pairs) for name, made in plans.items()}
        write_json(output / "scores.json", {"pairs": str(arguments.pairs), "scores": scores})
        shown = next(iter(planners))
        draw_pairs(paired, plans[shown], shown, output / "pairs.png")
    print_table(scores)


if __name__ == "__main__":
    with stopped_in_one_line("evaluate_pairs"):
        main()
