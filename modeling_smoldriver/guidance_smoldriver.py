"""Training of the planner: imitation of the expert, and what a SmolDriver can add to it. It does not ship.

Guidance, each with a weight of its own in the loss (0: off):

    joint          questions and waypoints train one vision model; planner and SmolDriver are both saved
    hidden_states  the ego state is to hold what the language model knows where it begins its answers
    answers        the ego state is to tell how likely the SmolDriver finds each common answer

The SmolDriver's hidden states and answers are computed once, before the training (`SmolDriverTeacher`).
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import ConcatDataset, Dataset
from transformers import Trainer

from smoldriver_common.whole_files import written_whole

from .collator_smoldriver import SmolDriverCollator, pictures_of
from .packing_smoldriver import PACKED_ATTENTION, forward_at_answers
from .planning_processing_smoldriver import SmolDriverPlannerProcessor
from .planning_smoldriver import (
    SmolDriverForTrajectoryPrediction,
    SmolDriverPlannerConfig,
    SmolDriverPlannerPreTrainedModel,
)
from .training_smoldriver import PartsTrainerMixin, SmolDriverTrainingConfig, check_range, train_parts

SMOLDRIVER = "smoldriver"  # folder of the SmolDriver beside a planner that was trained jointly
GUIDANCE_HEADS = "guidance.safetensors"  # what only the training needs
EGO_COLUMNS = (
    *("frame_token", "command", "speed", "ego_history", "ego_history_mask", "ego_future", "ego_future_mask"),
)
GUIDING_QUESTIONS = (
    "What is the target action of the ego vehicle?",
    "In this scenario, what are safe actions to take for the ego vehicle?",
    "Predict the behavior of the ego vehicle.",
)
MOST_CANDIDATES = 8  # answers to each guiding question whose probabilities are learned


@dataclass
class PlannerTrainingConfig(SmolDriverTrainingConfig):
    """SmolDriverTrainingConfig plus what trains and how much each kind of guidance weighs.

    Raises:
        ValueError: a value out of range, guidance without a teacher, or a teacher without guidance.
    """

    gradient_checkpointing: bool = field(default=False, metadata={"help": "As in TrainingArguments."})
    # Head
    status_dropout: float | None = field(
        default=None,
        metadata={"help": "Share of the rows without speed and history; default: as the planner was built."},
    )
    head_dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the flattened tokens; default: as the planner was built."}
    )
    lateral_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of errors to the side in the loss; default: as the planner was built, 1."},
    )
    # What trains
    train_vision: bool = field(
        default=False,
        metadata={"help": "Train vision model and connector too; otherwise their tokens are computed once."},
    )
    # Guidance
    teacher_model: str | None = field(
        default=None, metadata={"help": "SmolDriver that guides: folder or Hub id; with joint_weight it trains too."}
    )
    joint_weight: float = field(
        default=0.0, metadata={"help": "Weight of the loss of the frames' questions; trains the vision model."}
    )
    hidden_states_weight: float = field(
        default=0.0, metadata={"help": "Weight of the error in the language model's hidden states."}
    )
    answers_weight: float = field(
        default=0.0, metadata={"help": "Weight of the cross-entropy to the SmolDriver's answers."}
    )
    # Sequences, with joint_weight
    questions_per_scene: int = field(default=8, metadata={"help": "Questions of a frame that share a pack."})
    max_pack_length: int | None = field(default=None, metadata={"help": "Most tokens of a pack."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("joint_weight", "hidden_states_weight", "answers_weight"):
            check_range(name, getattr(self, name), least=0)
        check_range("lateral_weight", self.lateral_weight, least=0)
        check_range("questions_per_scene", self.questions_per_scene, least=1)
        check_range("max_pack_length", self.max_pack_length, least=1)
        for name in ("status_dropout", "head_dropout"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if bool(self.teacher_model) != (self.joint or self.distils):
            raise ValueError(
                f"teacher_model={self.teacher_model!r} and joint_weight={self.joint_weight},"
                f" hidden_states_weight={self.hidden_states_weight}, answers_weight={self.answers_weight}: give a"
                " teacher and a weight above 0, or neither"
            )
        if self.joint and self.distils:
            raise ValueError(
                "joint_weight trains the SmolDriver whose states hidden_states_weight and answers_weight would have"
                " computed before: give one or the other"
            )
        self.train_vision = self.train_vision or self.joint
        if self.distils and self.train_vision:
            raise ValueError("hidden_states_weight and answers_weight go with a frozen vision model: no train_vision")
        if self.train_visual_tokens and not self.joint:
            raise ValueError("train_visual_tokens is for the questions of joint_weight; a planner has one budget")

    @property
    def joint(self) -> bool:
        return self.joint_weight > 0

    @property
    def distils(self) -> bool:
        return self.hidden_states_weight > 0 or self.answers_weight > 0


# Rows


def check_ego_motion(rows, planner: SmolDriverForTrajectoryPrediction, source: str) -> None:
    """Refuse rows that cannot teach this planner.

    Raises:
        ValueError: rows without ego motion or without a camera that the planner reads; names `source`.
    """
    if not set(EGO_COLUMNS) <= set(rows.column_names):
        raise ValueError(f"{source} has no ego motion: prepare its rows with data_scripts/prepare_planning.py")
    unknown = [camera for camera in planner.config.vision_config.cameras if camera not in rows.column_names]
    if unknown:
        raise ValueError(f"{source} has no pictures of {', '.join(unknown)}: the planner was built for other cameras")
    planner.check_processor()


@dataclass
class PlannerReading:
    """How a planner reads rows, without its weights: a loader's worker gets a copy."""

    config: SmolDriverPlannerConfig
    processor: SmolDriverPlannerProcessor


def ego_tensors(rows, planner: SmolDriverForTrajectoryPrediction | PlannerReading) -> dict[str, torch.Tensor]:
    """Everything but the pictures of scene rows: `command`, `speed`, `ego_future` `(frames, waypoints, 2)` metres and
    `ego_future_mask`; for a planner that reads it `ego_history` and its mask. As `forward` takes them.

    Args:
        rows: iterable of rows with the `EGO_COLUMNS`.

    Raises:
        ValueError: names the frame with an unknown command, a speed that is negative or not finite, or a future of
            another length or one that is not finite.
    """
    moments = {"command": [], "speed": [], "ego_future": [], "ego_future_mask": [], "history": []}
    for row in rows:
        frame = row["frame_token"]
        future, mask = row["ego_future"], row["ego_future_mask"]
        if len(future) != planner.config.num_waypoints or len(mask) != len(future):
            raise ValueError(
                f"frame {frame}: the planner has {planner.config.num_waypoints} waypoints, the row's future"
                f" {len(future)}"
            )
        if not all(math.isfinite(value) for pose, known in zip(future, mask, strict=True) if known for value in pose):
            raise ValueError(f"frame {frame}: the future is not finite: {future}")
        try:
            moments["command"].append(planner.processor.command_id(row["command"]))
        except ValueError as error:
            raise ValueError(f"frame {frame}: {error}") from None
        speed = row["speed"]
        if speed is not None and not (math.isfinite(speed) and speed >= 0):
            raise ValueError(f"frame {frame}: speed={speed} must be a finite number of m/s, 0 or more; None: unknown")
        moments["speed"].append(math.nan if speed is None else speed)
        moments["ego_future"].append(
            [pose[:2] if known else (0.0, 0.0) for pose, known in zip(future, mask, strict=True)]
        )
        moments["ego_future_mask"].append(mask)
        moments["history"].append((row["ego_history"], row["ego_history_mask"]))
    history = moments.pop("history")
    tensors = {name: torch.tensor(values) for name, values in moments.items()}
    if "history" in planner.config.ego_inputs:
        tensors["ego_history"] = torch.tensor([poses for poses, _ in history])
        tensors["ego_history_mask"] = torch.tensor([known for _, known in history])
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


class EncodedFrames(Dataset):
    """Frames as tensors: `[3]` -> `{"view_tokens": (views, places, width), "command": (), ..., "frame_token": "..."}`.

    Args:
        shards: tensors of consecutive frames, by name; every shard but the last has as many. They may be
            memory-mapped: a frame is read when it is taken.
        columns: tensors of all frames, by name.
        frame_tokens: of all frames; a list, or a column of a data set.
        kept: places of the frames to take, in order.
    """

    def __init__(self, shards: list[dict], columns: dict[str, torch.Tensor], frame_tokens: list[str], kept: list[int]):
        self.shards, self.columns, self.kept = shards, columns, kept
        self.frame_tokens = frame_tokens[:]  # a column of `datasets` looks each item up in all of its shards
        self.shard_size = len(next(iter(shards[0].values())))

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> dict:
        place = self.kept[index]
        shard, inside = divmod(place, self.shard_size)
        frame = {name: tensor[inside] for name, tensor in self.shards[shard].items()}
        frame |= {name: tensor[place] for name, tensor in self.columns.items()}
        return frame | {"frame_token": self.frame_tokens[place]}


def stack_frames(frames: list[dict]) -> dict:
    """A batch of [`EncodedFrames`]."""
    batch = {name: torch.stack([frame[name] for frame in frames]) for name in frames[0] if name != "frame_token"}
    return batch | {"frame_tokens": [frame["frame_token"] for frame in frames]}


@dataclass
class PictureCollator:
    """Batches scene rows for a planner whose vision model trains.

    Args:
        planner: reads rows with its processor.
        questions ([`SmolDriverCollator`], *optional*): makes the packs of joint training.
        leave_out: the scenario whose frames teach no waypoints.
    """

    planner: PlannerReading
    questions: SmolDriverCollator | None = None
    leave_out: str | None = None

    def __call__(self, rows: list[dict]) -> dict:
        """-> the planner's inputs, `frame_tokens`, and of rows with questions `questions`: a batch of the collator."""
        processor = self.planner.processor
        images = [pictures_of(row, processor.cameras) for row in rows]
        encoded = processor.encode_moments(images, [None] * len(rows), [None] * len(rows))
        batch = {name: encoded[name] for name in ("pixel_values", "camera_ids")} | ego_tensors(rows, self.planner)
        if self.leave_out is not None:
            taught = torch.tensor([row["scenario"] != self.leave_out for row in rows])
            batch["ego_future_mask"] = batch["ego_future_mask"] & taught.unsqueeze(1)
        batch["frame_tokens"] = [row["frame_token"] for row in rows]
        asked = [row for row in rows if row.get("qa")]  # an evaluation's rows have none
        if self.questions is not None and asked:
            batch["questions"] = self.questions(asked)
        return batch


# What the SmolDriver knows


@dataclass
class GuidanceSizes:
    """Of the heads that the training adds to a planner; empty ones are not made.

    Example, a tiny SmolDriver of width 192 and three questions with 5, 8 and 8 common answers:
        GuidanceSizes(hidden_states=576, answers=[5, 8, 8])
    """

    hidden_states: int = 0
    answers: list[int] = field(default_factory=list)


class SmolDriverTeacher:
    """A frozen SmolDriver that is asked the `GUIDING_QUESTIONS` about every frame.

    Args:
        model, processor: a SmolDriver in eval mode.
        candidates: the answers to each guiding question whose probabilities are wanted, at least one.
    """

    def __init__(self, model, processor, candidates: list[list[str]]):
        self.model, self.candidates = model.requires_grad_(False), candidates
        self.text_config = model.model.text_model.config
        self.text_config._attn_implementation = PACKED_ATTENTION
        self.collator = SmolDriverCollator(
            processor, scene_packing=True, context_length=self.text_config.max_position_embeddings
        )

    @staticmethod
    def common_answers(rows) -> list[list[str]]:
        """The answers that the rows give most often to each guiding question.

        Raises:
            ValueError: a question that no row asks.
        """
        found = {question: Counter() for question in GUIDING_QUESTIONS}
        for row in rows.select_columns(["qa"]):
            for qa in row["qa"]:
                if qa["question"] in found:
                    found[qa["question"]][qa["answer"]] += 1
        for question, answers in found.items():
            if not answers:
                raise ValueError(f"no training frame is asked {question!r}: leave answers_weight out")
        return [
            [answer for answer, _ in sorted(answers.items(), key=lambda item: (-item[1], item[0]))][:MOST_CANDIDATES]
            for answers in found.values()
        ]

    def targets(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """
        Returns:
            `hidden_states` `(frames, questions * width)`: the last layer's where each answer begins; `answers`
            `(frames, all candidates)`: probabilities, those of a question sum to 1. float32.
        """
        # One frame at a time: beside others, a pack of many answers might be split.
        parts = [self._of_frame(row) for row in rows]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def _of_frame(self, row: dict) -> dict[str, torch.Tensor]:
        asked = [
            {"question": question, "answer": answer}
            for question, answers in zip(GUIDING_QUESTIONS, self.candidates, strict=True)
            for answer in answers
        ]
        batch = self.collator([{**row, "qa": asked}])
        inputs = {name: value.to(self.model.device) for name, value in batch.items() if torch.is_tensor(value)}
        labels = inputs.pop("labels")
        for name in ("loss_weights", "row_index"):
            del inputs[name]
        answers = labels[:, 1:] != -100
        begins = answers & (labels[:, :-1] == -100)
        inputs["output_hidden_states"] = True
        outputs = forward_at_answers(self.model, self.text_config, inputs, answers, "blocks", self.model.dtype)
        scores = -F.cross_entropy(outputs.logits[0].float(), labels[:, 1:][answers], reduction="none")
        branch = begins[answers].cumsum(0) - 1
        scores = scores.new_zeros(len(asked)).index_add(0, branch, scores)
        states = outputs.hidden_states[-1][:, :-1][begins].float()  # (answer, width)
        sizes = [len(answers) for answers in self.candidates]
        firsts = [sum(sizes[:place]) for place in range(len(sizes))]  # of each question
        return {
            "hidden_states": states[firsts].flatten().unsqueeze(0).cpu(),
            "answers": torch.cat([one.softmax(-1) for one in scores.split(sizes)]).unsqueeze(0).cpu(),
        }


# Model


class GuidedPlanner(SmolDriverPlannerPreTrainedModel):
    """A planner with what only its training needs: heads of the guidance and, in joint training, the SmolDriver.

    Planner and SmolDriver share vision model and connector. It is saved as the planner, the SmolDriver in a folder
    beside it.

    Args:
        planner ([`SmolDriverForTrajectoryPrediction`]): with its processor.
        sizes ([`GuidanceSizes`]): of the heads.
        smoldriver (`tuple`, *optional*): SmolDriver and processor of joint training; takes the planner's vision model.

    Raises:
        ValueError: the SmolDriver's vision model is not the one that the planner was built from.
    """

    def __init__(
        self,
        planner: SmolDriverForTrajectoryPrediction,
        sizes: GuidanceSizes | None = None,
        smoldriver: tuple | None = None,
    ):
        super().__init__(planner.config)
        sizes = sizes or GuidanceSizes()
        self.planner, self.answer_sizes = planner, sizes.answers
        width = planner.config.hidden_size
        self.heads = nn.ModuleDict()
        if sizes.hidden_states:
            self.heads["hidden_states"] = nn.Linear(width, sizes.hidden_states)
        if sizes.answers:
            self.heads["answers"] = nn.Linear(width, sum(sizes.answers))
        self.smoldriver, self.smoldriver_processor = None, None
        if smoldriver is not None:
            check_same_vision(planner, smoldriver[0])
            self.smoldriver, self.smoldriver_processor = smoldriver
            self.smoldriver.model.vision_model = planner.model.vision_model
            self.smoldriver.model.connector = planner.model.connector
            self.smoldriver.model.text_model.config._attn_implementation = PACKED_ATTENTION

    @property
    def model(self):
        """Vision model and connector are found here, as in every model of the trainers."""
        return self.planner.model

    def forward(self, questions: dict | None = None, dtype=None, **inputs) -> dict[str, torch.Tensor]:
        """
        Args:
            questions: a batch of packs, see [`PictureCollator`].
            dtype: that the language model computes in.
            inputs: the planner's; `hidden_states` (standardised) and `answers` as of [`SmolDriverTeacher`].

        Returns:
            `waypoints` `(batch, waypoints, 2)`, and the terms of the loss: `imitation` and, where there is such a
            target, `hidden_states`, `answers` and `joint`.
        """
        targets = {name: inputs.pop(name) for name in ("hidden_states", "answers") if name in inputs}
        outputs = self.planner(**inputs)
        terms = {"waypoints": outputs.waypoints, "imitation": outputs.loss}
        for name, target in targets.items():
            terms[name] = self._guidance(name, outputs.ego_state.float(), target)
        if questions is not None and self.smoldriver is not None:
            terms["joint"] = question_loss(self.smoldriver, questions, dtype)
        return terms

    def _guidance(self, name: str, state: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        given = self.heads[name](state)
        if name == "hidden_states":
            return F.mse_loss(given, target) + 1 - F.cosine_similarity(given, target, dim=-1).mean()
        losses = [
            F.cross_entropy(*one)
            for one in zip(given.split(self.answer_sizes, -1), target.split(self.answer_sizes, -1), strict=True)
        ]
        return torch.stack(losses).mean()

    def save_pretrained(self, save_directory, *args, **kwargs):
        """The planner, last: where its weights are, the rest is too."""
        folder = Path(save_directory)
        if self.smoldriver is not None:
            self.smoldriver.save_pretrained(folder / SMOLDRIVER)
            self.smoldriver_processor.save_pretrained(folder / SMOLDRIVER)
        if len(self.heads):
            with written_whole(folder / GUIDANCE_HEADS) as aside:
                save_file(self.heads.state_dict(), aside)
        self.planner.processor.save_pretrained(folder)
        self.planner.save_pretrained(folder)

    def load(self, folder: str) -> None:
        """Take the weights of a checkpoint.

        Raises:
            ValueError: the checkpoint lacks a tensor or holds one in another shape.
        """
        parts = {folder: self.planner}
        if self.smoldriver is not None:
            parts[str(Path(folder) / SMOLDRIVER)] = self.smoldriver
        for source, part in parts.items():  # float32 holds every dtype that a checkpoint may keep
            part.load_state_dict(type(part).from_pretrained(source, dtype=torch.float32).state_dict())
        if len(self.heads):
            self.heads.load_state_dict(load_file(Path(folder) / GUIDANCE_HEADS))


def check_same_vision(planner: SmolDriverForTrajectoryPrediction, smoldriver) -> None:
    """Refuse to share what differs: the language model would read another vision model's tokens.

    Raises:
        ValueError: names the first part that differs.
    """
    for name in ("vision_model", "connector"):
        own, other = (getattr(one.model, name).state_dict() for one in (planner, smoldriver))
        same = own.keys() == other.keys() and all(
            torch.equal(own[key].cpu().float(), other[key].cpu().float()) for key in own
        )
        if not same:
            raise ValueError(
                f"the planner's {name} is not that of the teacher {smoldriver.config._name_or_path}: build the planner"
                " from that folder (recipes/build_planner.py)"
            )


def question_loss(smoldriver, batch: dict, dtype: torch.dtype) -> torch.Tensor:
    """Mean over questions of their mean token loss, as `SmolDriverSFTTrainer` has it; a batch of its collator."""
    inputs = {name: value for name, value in batch.items() if name not in ("frame_tokens", "row_index")}
    labels, weights = inputs.pop("labels"), inputs.pop("loss_weights")
    answers = labels[:, 1:] != -100
    outputs = forward_at_answers(smoldriver, smoldriver.model.text_model.config, inputs, answers, "blocks", dtype)
    losses = F.cross_entropy(outputs.logits[0].float(), labels[:, 1:][answers], reduction="none")
    weights = weights[:, 1:][answers]
    return (losses * weights).sum() / weights.sum()


# Training


class SmolDriverPlannerTrainer(PartsTrainerMixin, Trainer):
    """Trains a planner on frames with the expert's way.

    What it adds to [`PartsTrainerMixin`] and Trainer, and why: the loss is the sum of the terms of a
    [`GuidedPlanner`], each logged by its name; a frame counts once, however many of its waypoints are known; an
    evaluation measures metres beside the loss. The processor is the planner's own: transformers would look for its
    tokenizer.

    Args:
        model ([`GuidedPlanner`]): what it was built with says which terms there are.
        train_dataset: [`EncodedFrames`], or with `train_vision` rows for a [`PictureCollator`].
        eval_dataset ([`EncodedFrames`] or rows, *optional*): likewise.
    """

    def __init__(self, model: GuidedPlanner, args: PlannerTrainingConfig, data_collator: Callable, **kwargs):
        planner = model.planner
        chosen = ("status_dropout", args.status_dropout), ("dropout", args.head_dropout)
        for name, value in (*chosen, ("lateral_weight", args.lateral_weight)):
            if value is not None:
                setattr(planner.config, name, value)
        planner.dropout.p = planner.config.dropout
        planner.requires_grad_(True)
        if model.smoldriver is not None:
            train_parts(model.smoldriver, vision=True, connector=True, language_model=True)
        for part in (planner.model.vision_model, planner.model.connector):
            part.requires_grad_(args.train_vision)
        planner.freeze_unread()
        args.label_names = ["ego_future", "ego_future_mask"]
        super().__init__(model, args=args, data_collator=data_collator, compute_metrics=self._metres, **kwargs)
        self._need_whole_weights("planners")
        self._terms: dict[str, list[float]] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        frames = inputs.pop("frame_tokens")
        outputs = model(**inputs, dtype=self.args.activation_dtype)
        loss = outputs["imitation"]
        for name in ("joint", "hidden_states", "answers"):
            if name in outputs:
                loss = loss + getattr(self.args, f"{name}_weight") * outputs[name]
        loss = self._mean_loss(loss * len(frames), len(frames), num_items_in_batch, frames)
        if self.model.training:
            for name, value in outputs.items():
                if name != "waypoints":
                    self._terms.setdefault(name, []).append(value.item())
        return (loss, {"loss": loss, "waypoints": outputs["waypoints"]}) if return_outputs else loss

    def log(self, logs: dict, *args, **kwargs) -> None:
        if "loss" in logs and len(self._terms) > 1:
            logs |= {name: round(sum(values) / len(values), 4) for name, values in self._terms.items()}
        self._terms.clear()
        super().log(logs, *args, **kwargs)

    @staticmethod
    def _metres(prediction) -> dict[str, float]:
        """`l2_avg`: mean distance in metres at 1, 2 and 3 s, over the frames where each is known."""
        future, mask = prediction.label_ids
        distances = np.linalg.norm(prediction.predictions - future, axis=-1)[:, 1::2]
        known = mask[:, 1::2].astype(bool)
        seconds = [distances[:, step][known[:, step]].mean() for step in range(known.shape[1]) if known[:, step].any()]
        return {"l2_avg": float(np.mean(seconds)) if seconds else math.nan}

    def _items(self, batch: dict) -> torch.Tensor:
        return torch.tensor(len(batch["frame_tokens"]))

    def _load_whole_model(self, checkpoint: str) -> None:
        self.model.load(checkpoint)


def joined(datasets: list) -> Dataset:
    """Several sources of frames as one."""
    return datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)
