"""Scene rows -> what a planner trains on: frames as tensors while its vision model is frozen, else the rows."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import ConcatDataset
from transformers import set_seed

from data_scripts.schema import load_scenes
from modeling_smoldriver import SmolDriverForTrajectoryPrediction
from modeling_smoldriver.collator_smoldriver import SmolDriverCollator, group_questions
from modeling_smoldriver.fitting_smoldriver import weights_sha256
from modeling_smoldriver.guidance_smoldriver import (
    EGO_COLUMNS,
    EncodedFrames,
    GuidanceSizes,
    GuidedPlanner,
    PictureCollator,
    PlannerReading,
    PlannerTrainingConfig,
    SmolDriverTeacher,
    check_ego_motion,
    ego_tensors,
    joined,
    stack_frames,
)
from recipes.training.frame_cache import cached_tensors, in_batches
from recipes.training.loading import DTYPES, load_config, load_model
from recipes.training.manifest import scenes_identity

BATCH = 16  # frames that are encoded at a time


@dataclass
class PlanningSource:
    """Rows of one prepared folder.

    Example: PlanningSource("outputs/planning", "train", <6,400 rows>)
    """

    folder: str
    split: str
    rows: Dataset

    @classmethod
    def read(cls, folder: str, split: str, planner: SmolDriverForTrajectoryPrediction) -> "PlanningSource":
        """Raises FileNotFoundError, ValueError: see `load_scenes` and `check_ego_motion`."""
        rows = load_scenes(folder, split)
        check_ego_motion(rows, planner, folder)
        return cls(folder, split, rows)

    def identity(self) -> dict:
        return {"rows": scenes_identity(self.folder), "split": self.split}


@dataclass
class LeftOut:
    """How many frames teach no way, and why. Example: LeftOut(without_poses=12, of_scenario=140)"""

    without_poses: int = 0
    of_scenario: int = 0

    def __str__(self) -> str:
        return f"{self.without_poses} frames without poses and {self.of_scenario} of that scenario teach no way"


@dataclass
class PlanningData:
    """What [`SmolDriverPlannerTrainer`] takes."""

    model: GuidedPlanner
    train: EncodedFrames | Dataset | ConcatDataset
    evaluation: EncodedFrames | Dataset | None
    collator: Callable[[list[dict]], dict]
    left_out: LeftOut


def load_planner(path: str) -> SmolDriverForTrajectoryPrediction:
    """Raises ValueError: it is not a planner, or has no processor beside it."""
    model_type = load_config(path).model_type
    if model_type != "smoldriver_planner":
        raise ValueError(f"{path} is a {model_type!r}: make a planner of it first with recipes/build_planner.py")
    planner = SmolDriverForTrajectoryPrediction.from_pretrained(path)
    planner.check_processor()
    return planner


def check_scenario(sources: list[PlanningSource], name: str | None) -> None:
    """Refuse to leave out what no row has: nothing would be left out.

    Raises:
        ValueError: no row is of that scenario; names those that there are.
    """
    if name is None:
        return
    found = {scenario for source in sources for scenario in source.rows["scenario"] if scenario is not None}
    if name not in found:
        raise ValueError(f"leave_out_scenario={name}: no row is of it; there are {', '.join(sorted(found)) or 'none'}")


def prepare(
    planner: SmolDriverForTrajectoryPrediction,
    sources: list[PlanningSource],
    evaluation: PlanningSource | None,
    args: PlannerTrainingConfig,
    cache: Path,
    leave_out: str | None,
) -> PlanningData:
    """Everything that the trainer needs.

    Args:
        cache: folder of what is computed once.
        leave_out: scenario whose frames teach no waypoints.

    Raises:
        ValueError: nothing would train; rows or a teacher that do not fit.
    """
    check_scenario(sources, leave_out)
    if args.train_vision:
        return _with_pictures(planner, sources, evaluation, args, leave_out)
    return _encoded(planner, sources, evaluation, args, cache, leave_out)


def _with_pictures(planner, sources, evaluation, args, leave_out) -> PlanningData:
    """The vision model trains, perhaps beside the SmolDriver that shares it."""
    smoldriver, questions = None, None
    if args.joint:
        smoldriver = load_model(args.teacher_model, torch.float32)
        check_cameras(planner, smoldriver[1])
        questions = SmolDriverCollator(
            smoldriver[1],
            scene_packing=True,
            max_pack_length=args.max_pack_length,
            context_length=smoldriver[0].config.text_config.max_position_embeddings,
            visual_tokens=args.train_visual_tokens,
            seed=args.seed,
        )
    kept, left_out, any_asked = [], LeftOut(), False
    for source in sources:
        ego_tensors(source.rows.select_columns(list(EGO_COLUMNS)), planner)  # refuses bad rows before the training
        taught = _taught(source.rows, leave_out, left_out)
        rows = source.rows.remove_columns(["agents", "timestamp"])
        if not args.joint:
            kept.append(rows.select(taught))
            continue
        asked = [number for number, qa in enumerate(rows["qa"]) if qa]
        any_asked = any_asked or bool(asked)
        if asked:
            kept.append(group_questions(rows, args.questions_per_scene, args.seed))
        if unasked := sorted(set(taught) - set(asked)):
            kept.append(rows.select(unasked))
    if args.joint and not any_asked:
        raise ValueError("no frame has a question: prepare the rows with DriveLM's JSON, or leave joint_weight out")
    collator = PictureCollator(PlannerReading(planner.config, planner.processor), questions, leave_out)
    held_out = evaluation and evaluation.rows.select(_taught(evaluation.rows)).remove_columns(["qa"])
    set_seed(args.seed)
    model = GuidedPlanner(planner, smoldriver=smoldriver)
    return PlanningData(model, joined(kept), held_out, collator, left_out)


def _encoded(planner, sources, evaluation, args, cache, leave_out) -> PlanningData:
    """The vision model is frozen: its tokens, and what a teacher knows of each frame, are computed once."""
    planner.to(args.device).eval()
    left_out, tables = LeftOut(), []
    for source in sources:
        taught = _taught(source.rows, leave_out, left_out)
        tables.append((source, view_tokens(planner, source, cache), taught))
    sizes = GuidanceSizes()
    targets = [{} for _ in sources]
    if args.distils:
        teacher = _teacher(planner, sources, args)
        targets = [_targets(teacher, source, args, cache) for source in sources]
        sizes = GuidanceSizes(
            targets[0]["hidden_states"].shape[1] if args.hidden_states_weight else 0,
            [len(answers) for answers in teacher.candidates] if args.answers_weight else [],
        )
        _standardise(targets)
    train = []
    for (source, shards, taught), columns in zip(tables, targets, strict=True):
        if taught:
            ego = ego_tensors(source.rows.select_columns(list(EGO_COLUMNS)), planner)
            train.append(EncodedFrames(shards, ego | columns, source.rows["frame_token"], taught))
    if not train:
        raise ValueError(f"no frame is left to learn from: {left_out}")
    held_out = None
    if evaluation is not None:
        ego = ego_tensors(evaluation.rows.select_columns(list(EGO_COLUMNS)), planner)
        taught = _taught(evaluation.rows)
        shards = view_tokens(planner, evaluation, cache)
        held_out = EncodedFrames(shards, ego, evaluation.rows["frame_token"], taught)
    set_seed(args.seed)
    return PlanningData(GuidedPlanner(planner, sizes), joined(train), held_out, stack_frames, left_out)


def _taught(rows: Dataset, leave_out: str | None = None, left_out: LeftOut | None = None) -> list[int]:
    """Places of the rows that teach a way; the others are counted in `left_out`."""
    left_out = LeftOut() if left_out is None else left_out
    taught = []
    for number, (mask, scenario) in enumerate(zip(rows["ego_future_mask"], rows["scenario"], strict=True)):
        if not any(mask):
            left_out.without_poses += 1
        elif leave_out is not None and scenario == leave_out:
            left_out.of_scenario += 1
        else:
            taught.append(number)
    return taught


def view_tokens(planner: SmolDriverForTrajectoryPrediction, source: PlanningSource, cache: Path) -> list[dict]:
    """The visual tokens of all rows, in shards as [`EncodedFrames`] takes them. `cache` keeps them for all planners on
    one vision model."""

    @torch.no_grad()
    def encode(rows: list[dict]) -> dict[str, torch.Tensor]:
        images = [{camera: row[camera] for camera in planner.processor.cameras} for row in rows]
        encoded = planner.processor.encode_moments(images, [None] * len(rows), [None] * len(rows))
        camera_ids = encoded["camera_ids"].to(planner.device)
        tokens = planner.model.encode_views(encoded["pixel_values"].to(planner.device), camera_ids)
        places = len(planner.processor.cameras)  # a batch whose frames all lack a camera has fewer views
        missing = places - camera_ids.shape[1]
        return {
            "view_tokens": torch.nn.functional.pad(tokens, (0, 0, 0, 0, 0, missing)).bfloat16().cpu(),
            "camera_ids": torch.nn.functional.pad(camera_ids, (0, missing), value=-1).cpu(),
        }

    pictures = planner.processor.image_processor
    made_from = {
        "vision": weights_sha256(planner.model.vision_model, planner.model.connector),
        "visual_tokens": planner.config.visual_tokens,
        "cameras": planner.processor.cameras,
        "pictures": [pictures.size, list(pictures.image_mean), list(pictures.image_std), int(pictures.resample)],
        **source.identity(),
    }
    made_from["pictures"][0] = dict(pictures.size)
    return cached_tensors(cache, made_from, source.rows, in_batches(encode, BATCH), f"visual tokens ({source.split})")


def _teacher(planner, sources: list[PlanningSource], args: PlannerTrainingConfig) -> SmolDriverTeacher:
    model, processor = load_model(args.teacher_model, args.activation_dtype)
    check_cameras(planner, processor)
    candidates = [["Yes."]] * 3  # never read: the states are those before an answer
    if args.answers_weight:
        candidates = SmolDriverTeacher.common_answers(sources[0].rows)
    return SmolDriverTeacher(model, processor, candidates)


def _targets(teacher: SmolDriverTeacher, source: PlanningSource, args, cache: Path) -> dict[str, torch.Tensor]:
    made_from = {
        "teacher": weights_sha256(teacher.model),
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == teacher.model.dtype),
        "candidates": teacher.candidates,
        **source.identity(),
    }
    shards = cached_tensors(cache, made_from, source.rows, teacher.targets, f"the teacher's answers ({source.split})")
    wanted = {"hidden_states": args.hidden_states_weight, "answers": args.answers_weight}
    return {
        name: torch.cat([shard[name] for shard in shards]).float() for name, weight in wanted.items() if weight > 0
    }


def _standardise(targets: list[dict[str, torch.Tensor]]) -> None:
    """Hidden states of all sources to mean 0 and deviation 1 of each channel."""
    if "hidden_states" not in targets[0]:
        return
    together = torch.cat([one["hidden_states"] for one in targets])
    mean, deviation = together.mean(0), together.std(0).clamp_min(1e-6)
    for one in targets:
        one["hidden_states"] = (one["hidden_states"] - mean) / deviation


def check_cameras(planner: SmolDriverForTrajectoryPrediction, processor) -> None:
    """Raises ValueError: the teacher was built for other cameras; names them."""
    if processor.cameras != planner.processor.cameras:
        raise ValueError(
            f"the teacher reads the cameras {', '.join(processor.cameras)}, the planner"
            f" {', '.join(planner.processor.cameras)}: build the planner from that SmolDriver"
        )
