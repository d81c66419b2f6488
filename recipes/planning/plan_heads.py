"""Plans of several planners for the test frames of several folders, from the visual tokens that their trainings share.

python recipes/planning/plan_heads.py --planners outputs/one outputs/two --scenes outputs/planning \
    --feature-cache outputs/frames --output-dir outputs/plans

Heads on one vision model read the same visual tokens, which are computed once. `<planner>/<folder>` in the output
folder then holds a `plans.parquet` (see recipes/planning/plan_files.py). Tokens are kept in bfloat16, as the heads
learned from them. The same command resumes a stopped run. `recipes/evaluate_planner.py` measures one planner from its
pictures, beside controls.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from modeling_smoldriver import SmolDriverForTrajectoryPrediction
from modeling_smoldriver.guidance_smoldriver import EGO_COLUMNS, EncodedFrames, ego_tensors, stack_frames
from recipes.evaluation.provenance import check_leakage, weights_digest
from recipes.planning.plan_files import PLANS_FILE, Plans, PlanSettings, PlansRecord, read_plans, write_plans
from recipes.planning.plan_making import load_planner
from recipes.planning.scored_frames import ScoredFrames, load_frames
from recipes.training.planning_data import PlanningSource, view_tokens
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import sole_writer

SPLIT = "test"
BATCH = 256


@torch.no_grad()
def plan_from_tokens(
    planner: SmolDriverForTrajectoryPrediction, folder: str, frames: ScoredFrames, cache: Path
) -> np.ndarray:
    """(frames, 6, 2): what the planner plans for the frames of `folder`.

    Raises:
        ValueError: a plan that is not finite; names the frame.
    """
    source = PlanningSource.read(folder, SPLIT, planner)
    shards, tokens = view_tokens(planner, source, cache), source.rows["frame_token"]
    ego = ego_tensors(source.rows.select_columns(list(EGO_COLUMNS)), planner)
    plans = []
    encoded = EncodedFrames(shards, ego, tokens, frames.places)
    for batch in DataLoader(encoded, batch_size=BATCH, collate_fn=stack_frames):
        inputs = {name: column.to(planner.device) for name, column in batch.items() if name != "frame_tokens"}
        plans.append(planner(**inputs).waypoints.double().cpu().numpy())
        for token, plan in zip(batch["frame_tokens"], plans[-1], strict=True):
            if not np.isfinite(plan).all():
                raise ValueError(f"frame {token}: the plan is not finite: {plan.tolist()}; are the weights broken?")
    return np.concatenate(plans)


def make_plans(planner_folder: Path, scenes: Path, cache: Path, output: Path) -> None:
    """Raises FileNotFoundError, ValueError: see `load_planner`, `load_frames` and `check_leakage`."""
    frames, digest, name = load_frames(scenes, SPLIT), weights_digest(planner_folder), planner_folder.name
    tokens = [frame.token for frame in frames.frames]
    if (output / PLANS_FILE).is_file():
        kept = read_plans(output)
        if (kept.record.weights_sha256, kept.frame_tokens) == (digest, tokens):
            return
    leakage = check_leakage(planner_folder, frames.scene_tokens, SPLIT)
    planner = load_planner(str(planner_folder))
    plans = plan_from_tokens(planner, str(scenes), frames, cache)
    settings = PlanSettings(model=str(planner_folder), name=name, scenes=str(scenes), split=SPLIT)
    record = PlansRecord(
        settings=settings,
        leakage=leakage,
        ego_inputs=planner.config.ego_inputs,
        counted=frames.counted,
        command_sources=frames.command_sources,
        ego=frames.ego,
        weights_sha256=digest,
    )
    write_plans(output, Plans(record, tokens, frames.scene_tokens, {name: plans}))
    print(f"{name}: {len(plans)} plans for {scenes}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--planners", type=Path, nargs="+", required=True, help="planners' folders")
    add("--scenes", type=Path, nargs="+", required=True, help="folders of prepared rows with a test split")
    add("--feature-cache", type=Path, required=True, help="folder of visual tokens")
    add("--output-dir", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    with errors_in_one_line("plan_heads"):
        for planner in arguments.planners:
            output = arguments.output_dir / planner.name
            with sole_writer(output):  # other planners' plans may be made at the same time
                for scenes in arguments.scenes:
                    make_plans(planner, scenes, arguments.feature_cache, output / scenes.name)


if __name__ == "__main__":
    with stopped_in_one_line("plan_heads"):
        main()
