"""Knowledge transfer: SmolDriver's vision model learns the features of the base VLM's own vision tower.

The language model is loaded but never run, so that each checkpoint is a whole SmolDriver.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText

from smoldriver_common.whole_files import write_json, written_whole

from .collator_smoldriver import check_row_cameras, draw_budget, pictures_of
from .fitting_smoldriver import weights_sha256
from .inputs_smoldriver import to_rgb
from .modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverPreTrainedModel, compute_dtype
from .processing_smoldriver import SmolDriverProcessor
from .resampler_smoldriver import resize_grid
from .training_smoldriver import (
    SmolDriverTrainer,
    SmolDriverTrainingConfig,
    check_model,
    check_one_dataset,
    check_range,
    train_parts,
)

STATISTICS = "teacher_statistics.safetensors"
EXPLAINED_VARIANCE = "explained_variance.json"
DEFINITION = (
    "1 - sum |student - target|^2 / sum |target - mean|^2 over held-out views, positions and channels; target: the"
    " teacher's features pooled to the budget's grid; mean: of each channel over the training views. Predicting that"
    " mean is 0 by definition."
)


@dataclass
class VisionDistillationConfig(SmolDriverTrainingConfig):
    """SmolDriverTrainingConfig plus the terms of the loss; connector and language model stay as they are.

    Raises:
        ValueError: a value out of range.
    """

    frozen_tower_steps: int = field(
        default=0, metadata={"help": "Steps at the beginning in which projection and resamplers learn alone."}
    )
    cosine_weight: float = field(default=1.0, metadata={"help": "Weight of 1 - cosine of standardised features."})
    connector_weight: float = field(
        default=0.5, metadata={"help": "Weight of the squared error after the connector, over its target's variance."}
    )
    statistics_frames: int = field(
        default=128, metadata={"help": "Training frames from which the features' mean and deviation are estimated."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, least in (("frozen_tower_steps", 0), ("statistics_frames", 1)):
            check_range(name, getattr(self, name), least)
        for name in ("cosine_weight", "connector_weight"):
            check_range(name, getattr(self, name), least=0)


@dataclass
class TeacherPictures:
    """Pictures as a teacher's tower takes them, without the tower: a loader's worker gets a copy."""

    image_processor: object

    def __call__(self, pictures: list) -> torch.Tensor:
        """PIL pictures -> `(views, 3, image_size, image_size)` float32."""
        return self.image_processor([to_rgb(picture) for picture in pictures], return_tensors="pt")["pixel_values"]


class VisionTeacher(nn.Module):
    """A base VLM's vision tower, frozen, at its own picture size and normalisation.

    Args:
        tower: the VLM's `vision_model`; `forward` gives one feature per patch.
        image_processor: its size is set here to squares of the tower's size.
        name (`str`): folder or Hub id, for manifests.
    """

    def __init__(self, tower: nn.Module, image_processor, name: str):
        super().__init__()
        self.tower = tower.eval().requires_grad_(False)
        self.name = name
        self.image_size, self.width = tower.config.image_size, tower.config.hidden_size
        self.grid_size = tower.config.image_size // tower.config.patch_size
        image_processor.size = {"height": self.image_size, "width": self.image_size}
        self.pictures = TeacherPictures(image_processor)
        self.fingerprint = weights_sha256(self.tower)  # whatever the dtype that it is moved to

    @classmethod
    def from_pretrained(cls, base: str, image_processor) -> "VisionTeacher":
        """The vision tower of a SmolVLM folder or Hub id, in its stored dtype.

        Raises:
            ValueError: if the model has no vision tower of SmolVLM's kind.
        """
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        if not hasattr(config, "vision_config"):
            raise ValueError(f"the teacher {base} is a {config.model_type}: give a SmolVLM, which has a vision tower")
        arguments = {"dtype": "auto", "output_loading_info": True, "trust_remote_code": False}
        if transformers.__version__.startswith("4."):  # its key_mapping does not reach into a part of a checkpoint
            vlm, info = AutoModelForImageTextToText.from_pretrained(base, **arguments)
            tower = vlm.model.vision_model
            missing = [name for name in info["missing_keys"] if ".vision_model." in name]
        else:
            names = {r"^model\.vision_model\.": ""}
            tower, info = AutoModel.from_pretrained(base, config=config.vision_config, key_mapping=names, **arguments)
            missing = info["missing_keys"]
        if missing:
            raise ValueError(f"the teacher {base} lacks {', '.join(sorted(missing))}")
        return cls(tower, image_processor, str(base))

    def description(self) -> dict:
        """What the features depend on: a cache is of this teacher if and only if these are equal."""
        processor = self.pictures.image_processor
        preprocessing = {
            "image_mean": list(processor.image_mean),
            "image_std": list(processor.image_std),
            "resample": int(processor.resample),
        }
        sizes = {"image_size": self.image_size, "grid_size": self.grid_size, "width": self.width}
        return {"weights_sha256": self.fingerprint, **sizes, "preprocessing": preprocessing}

    def pixels(self, pictures: list) -> torch.Tensor:
        """PIL pictures -> `(views, 3, image_size, image_size)` float32."""
        return self.pictures(pictures)

    @torch.no_grad()
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(views, 3, S, S)` -> features `(views, grid, grid, width)` in bfloat16, as a cache keeps them."""
        with torch.autocast(pixel_values.device.type, enabled=False):  # the same features in training and in a cache
            features = self.tower(pixel_values.to(self.tower.dtype)).last_hidden_state
        return features.unflatten(1, (self.grid_size, self.grid_size)).bfloat16()


@dataclass
class VisionDistillationCollator:
    """Batches scene rows for knowledge transfer.

    Args:
        processor ([`SmolDriverProcessor`]): the student's.
        teacher_pictures ([`TeacherPictures`]): prepares the teacher's.
        budgets (`list[int]`): tokens per camera; one is drawn per batch, by `seed` and the batch's frames alone. A
            budget named twice is drawn twice as often.
        seed (`int`): for the draws.
        cached_features: `(frame_token, camera names) -> (views, grid * grid, width)`; replaces the teacher's pictures.
        all_budgets (`bool`): every budget in every batch, to evaluate.
    """

    processor: SmolDriverProcessor
    teacher_pictures: TeacherPictures
    budgets: list[int]
    seed: int = 0
    cached_features: Callable[[str, list[str]], torch.Tensor] | None = None
    all_budgets: bool = False

    def __call__(self, rows: list[dict]) -> dict:
        """
        Returns:
            `camera_ids` `(frames, views)`, -1 for padding; `pixel_values` {side in pixels: `(frames, views, 3, S, S)`}
            for the student; `budgets` {tokens per camera: side in pixels}; for the teacher, of present views in order,
            `teacher_pixels` `(n, 3, T, T)` or `teacher_features` `(n, grid * grid, width)`; `frame_tokens`.
        """
        views = [self.processor.scene_views(pictures_of(row, self.processor.cameras)) for row in rows]
        tokens = [row["frame_token"] for row in rows]
        batch = {"frame_tokens": tokens, "budgets": {}, "pixel_values": {}}
        default_size = self.processor.image_processor.size["height"]
        for budget in sorted(set(self.budgets), reverse=True) if self.all_budgets else [self._draw(tokens)]:
            size = self.processor.budget_image_sizes.get(str(budget), default_size)
            batch["budgets"][budget] = size
            if size not in batch["pixel_values"]:
                encoded = self.processor.encode_images(views, budget)
                batch["pixel_values"][size], batch["camera_ids"] = encoded["pixel_values"], encoded["camera_ids"]
        if self.cached_features is None:
            batch["teacher_pixels"] = self.teacher_pictures([picture for scene in views for _, picture in scene])
        else:
            features = [
                self.cached_features(token, [camera for camera, _ in scene])
                for token, scene in zip(tokens, views, strict=True)
            ]
            batch["teacher_features"] = torch.cat(features)
        return batch

    def _draw(self, frame_tokens: list[str]) -> int:
        return draw_budget(self.budgets, self.seed, "|".join(frame_tokens))


class RunningMoments:
    """Mean and variance per channel over all rows seen, in float64."""

    def __init__(self):
        self.count, self.total, self.squares = 0, 0.0, 0.0

    def add(self, values: torch.Tensor):
        """`values` `(..., channels)`"""
        values = values.flatten(0, -2).double().cpu()
        self.count += len(values)
        self.total = self.total + values.sum(0)
        self.squares = self.squares + values.square().sum(0)

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.count

    @property
    def variance(self) -> torch.Tensor:
        return (self.squares / self.count - self.mean.square()).clamp_min(1e-12)


class VisionStudent(SmolDriverPreTrainedModel):
    """A SmolDriver whose forward pass is that of its vision model alone.

    Under several processes only a call of the whole model synchronises gradients, so the vision model is called
    through one. It holds the SmolDriver's own parts under the same names, and is saved as that SmolDriver.
    """

    def __init__(self, smoldriver: SmolDriverForConditionalGeneration):
        super().__init__(smoldriver.config)
        self.model, self.lm_head = smoldriver.model, smoldriver.lm_head
        self.generation_config = smoldriver.generation_config
        self._save_smoldriver = smoldriver.save_pretrained  # a method: as a module its weights would count twice

    @classmethod
    def from_pretrained(cls, source, *args, output_loading_info: bool = False, **kwargs):
        smoldriver, info = SmolDriverForConditionalGeneration.from_pretrained(
            source, *args, output_loading_info=True, **kwargs
        )
        return (cls(smoldriver), info) if output_loading_info else cls(smoldriver)

    def save_pretrained(self, save_directory, *args, **kwargs):
        self._save_smoldriver(save_directory, *args, **kwargs)

    def forward(self, pixel_values, camera_ids, budgets, frozen_tower: bool = False) -> dict[int, torch.Tensor]:
        """The vision model at several budgets; arguments as of [`VisionDistillationCollator`].

        Args:
            frozen_tower (`bool`): give the tower no gradient. It stays among the optimizer's parameters, which skips
                those without a gradient: no weight decay, no moments before its phase.

        Returns:
            {tokens per camera: `(present views, (s k)^2, C)`}
        """
        vision, real = self.model.vision_model, camera_ids >= 0
        features = {}
        for size, pixels in pixel_values.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen_tower):
                patches = vision.tower_features(pixels[real])
            features[size] = vision.projection(patches)
        sides = {tokens: self.config.scale_factor * math.isqrt(tokens) for tokens in budgets}
        return {
            tokens: vision.resampler(features[size], camera_ids[real], sides[tokens])
            for tokens, size in budgets.items()
        }


class VisionDistillationTrainer(SmolDriverTrainer):
    """Trains a SmolDriver's vision model towards a teacher's features.

    What it adds to [`SmolDriverTrainer`], and why: rows are frames without their questions; the model is called as a
    [`VisionStudent`]; the loss is an error of features; `evaluate` measures explained variance.

    Args:
        model ([`SmolDriverForConditionalGeneration`]): loaded.
        teacher ([`VisionTeacher`]): its grid and width must be those of the student.
        cached_features: see [`VisionDistillationCollator`].

    Raises:
        ValueError: see [`check_model`]; a teacher that does not fit the student.
    """

    def __init__(
        self,
        model,
        args: VisionDistillationConfig,
        teacher: VisionTeacher,
        train_dataset,
        eval_dataset=None,
        processing_class=None,
        cached_features=None,
        **kwargs,
    ):
        check_model(model, args, processing_class)
        vision = model.config.vision_config
        if (teacher.grid_size, teacher.width) != (vision.grid_size, vision.hidden_size):
            raise ValueError(
                f"the teacher {teacher.name} gives {teacher.grid_size}x{teacher.grid_size} features of width"
                f" {teacher.width}, the student {vision.grid_size}x{vision.grid_size} of {vision.hidden_size}:"
                " take the VLM that the student was built from"
            )
        budgets = args.train_visual_tokens or processing_class.visual_token_budgets[:1]
        train_parts(model, vision=True, connector=False, language_model=False)
        columns = ["frame_token", *processing_class.cameras]
        check_row_cameras(train_dataset, processing_class.cameras)
        if eval_dataset is not None:
            check_one_dataset(eval_dataset)
            check_row_cameras(eval_dataset, processing_class.cameras)
        super().__init__(
            VisionStudent(model),
            args=args,
            data_collator=VisionDistillationCollator(
                processing_class, teacher.pictures, budgets, args.seed, cached_features
            ),
            train_dataset=train_dataset.select_columns(columns),
            eval_dataset=None if eval_dataset is None else eval_dataset.select_columns(columns),
            processing_class=processing_class,
            **kwargs,
        )
        self.teacher = teacher.to(self.args.device, self.args.activation_dtype)
        with self.accelerator.main_process_first():  # the others read what it wrote
            self.statistics = self._statistics()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        target = self._target(inputs)
        frozen = self.state.global_step < self.args.frozen_tower_steps
        outputs = model(inputs["pixel_values"], inputs["camera_ids"], inputs["budgets"], frozen_tower=frozen)
        ((tokens, student),) = outputs.items()
        parts = self._errors(student, target, tokens)  # each (views,)
        losses = (
            parts["mse"]
            + self.args.cosine_weight * parts["cosine"]
            + self.args.connector_weight * parts["connector_error"]
        )
        loss = self._mean_loss(losses.sum(), len(losses), num_items_in_batch, inputs["frame_tokens"])
        for name, values in parts.items():
            self._metrics["train"][name].append(self.accelerator.gather(values.detach().mean()).mean().item())
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Explained variance of each trained budget and camera on held-out frames, see `DEFINITION`.

        Writes `<output_dir>/explained_variance.json`: {"explained_variance": {tokens: {camera or "all": value}},
        "views": {camera: count}, ...}; cameras that the split lacks are left out.
        """
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        collator = replace(self.data_collator, all_budgets=True)
        workers = {"num_workers": self.args.dataloader_num_workers}
        loader = DataLoader(rows, self.args.per_device_eval_batch_size, collate_fn=collator, **workers)
        cameras, budgets = self.processing_class.cameras, sorted(set(collator.budgets), reverse=True)
        sums = torch.zeros(
            len(cameras), 1 + 2 * len(budgets), dtype=torch.float64
        )  # views; error and variance per budget
        training = self.model.training
        self.model.eval()
        for batch in self.accelerator.prepare(loader):
            batch = self._prepare_inputs(batch)
            with torch.no_grad():
                frames = self._frame_sums(batch)
            sums += self.accelerator.gather_for_metrics(frames).double().cpu().sum(0)
        values = explained_variance(sums, cameras, budgets)
        metrics = {f"{metric_key_prefix}_explained_variance_{tokens}": row["all"] for tokens, row in values.items()}
        self.log(metrics)
        self.model.train(training)
        if self.is_world_process_zero():
            result = {
                "definition": DEFINITION,
                "teacher": self.teacher.name,
                "step": self.state.global_step,
                "resampler_keys": self.model.config.vision_config.resampler_keys,
                "resampler_residual": self.model.config.vision_config.resampler_residual,
                "views": {camera: int(count) for camera, count in zip(cameras, sums[:, 0], strict=True) if count},
                "explained_variance": values,
            }
            write_json(Path(self.args.output_dir) / EXPLAINED_VARIANCE, result)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _frame_sums(self, batch: dict) -> torch.Tensor:
        """`(frames, cameras, 1 + 2 * budgets)`: present views, then squared error and variance of each budget."""
        target, camera_ids = self._target(batch), batch["camera_ids"]
        outputs = self.model_wrapped(batch["pixel_values"], camera_ids, batch["budgets"])
        columns = [target.new_ones(len(target))]
        for tokens, student in outputs.items():
            wanted = self._pooled(target, tokens)
            columns.append((student.float() - wanted).square().sum((1, 2)))
            columns.append((wanted - self.statistics["mean"]).square().sum((1, 2)))
        frame, _ = (camera_ids >= 0).nonzero(as_tuple=True)
        sums = target.new_zeros(len(camera_ids), len(self.processing_class.cameras), len(columns))
        sums[frame, camera_ids[camera_ids >= 0]] = torch.stack(columns, dim=1)
        return sums

    def _target(self, inputs: dict) -> torch.Tensor:
        """The teacher's features of the batch's views, `(views, grid, grid, width)` float32."""
        if "teacher_features" in inputs:
            return inputs["teacher_features"].float().unflatten(1, (self.teacher.grid_size, -1))
        return self.teacher(inputs["teacher_pixels"]).float()

    def _pooled(self, target: torch.Tensor, tokens: int) -> torch.Tensor:
        """Features at a budget: `(views, grid, grid, width)` -> `(views, (s k)^2, width)`."""
        return resize_grid(target, self.model.config.scale_factor * math.isqrt(tokens)).flatten(1, 2)

    def _errors(self, student: torch.Tensor, target: torch.Tensor, tokens: int) -> dict[str, torch.Tensor]:
        """Terms of the loss, `(views,)` each; predicting the mean feature gets 1."""
        mean, deviation = self.statistics["mean"], self.statistics[f"deviation.{tokens}"]
        wanted = (self._pooled(target, tokens) - mean) / deviation
        given = (student.float() - mean) / deviation
        # The connector is linear: the error after it is the connector of the error.
        after = self._connector((given - wanted) * deviation)
        return {
            "mse": (given - wanted).square().mean((1, 2)),
            "cosine": 1 - F.cosine_similarity(given, wanted, dim=-1).mean(1),
            "connector_error": after.square().mean((1, 2)) / self.statistics[f"connector_variance.{tokens}"],
        }

    def _connector(self, visual: torch.Tensor) -> torch.Tensor:
        connector = self.accelerator.unwrap_model(self.model).model.connector
        return connector(visual.to(compute_dtype(connector.modality_projection.proj, visual.dtype))).float()

    def _connector_digest(self) -> str:
        weight = self.accelerator.unwrap_model(self.model).model.connector.modality_projection.proj.weight
        return hashlib.sha256(weight.detach().float().cpu().numpy()).hexdigest()

    @torch.no_grad()
    def _statistics(self) -> dict[str, torch.Tensor]:
        """Statistics of the teacher's features over some training frames; kept in the run's folder and read again.

        `mean` `(width,)`, and for each budget `deviation.<tokens>` `(width,)` and `connector_variance.<tokens>` `()`.
        """
        path = Path(self.args.output_dir) / STATISTICS
        rows, count = self.train_dataset, min(self.args.statistics_frames, len(self.train_dataset))
        chosen = [index * len(rows) // count for index in range(count)]
        tokens = rows.select_columns(["frame_token"])
        made_from = {
            "teacher": self.teacher.description(),
            "frames": [tokens[index]["frame_token"] for index in chosen],
            "connector_sha256": self._connector_digest(),
        }
        kept = {"made_from": json.dumps(made_from)}  # one entry: safetensors writes several in an order by chance
        budgets = sorted(set(self.data_collator.budgets))
        if path.is_file():
            with safe_open(path, "pt") as file:
                if file.metadata() == kept and all(f"deviation.{tokens}" in file.keys() for tokens in budgets):
                    return {name: file.get_tensor(name).to(self.args.device) for name in file.keys()}
        whole = RunningMoments()
        features = {tokens: RunningMoments() for tokens in budgets}
        connected = {tokens: RunningMoments() for tokens in budgets}
        for index in chosen:
            target = self._target(self._prepare_inputs(self.data_collator([rows[index]])))
            whole.add(target)
            for tokens in budgets:
                pooled = self._pooled(target, tokens)
                features[tokens].add(pooled)
                connected[tokens].add(self._connector(pooled))
        statistics = {"mean": whole.mean}
        for tokens in budgets:
            statistics[f"deviation.{tokens}"] = features[tokens].variance.sqrt()
            statistics[f"connector_variance.{tokens}"] = connected[tokens].variance.mean()
        statistics = {name: tensor.float() for name, tensor in statistics.items()}
        with written_whole(path) as aside:
            save_file(statistics, aside, metadata=kept)
        return {name: tensor.to(self.args.device) for name, tensor in statistics.items()}

    def _items(self, batch: dict) -> torch.Tensor:
        return (batch["camera_ids"] >= 0).sum()


def explained_variance(sums: torch.Tensor, cameras: list[str], budgets: list[int]) -> dict[str, dict[str, float]]:
    """`sums` `(cameras, 1 + 2 * budgets)`: views, then error and variance per budget.

    -> {tokens: {camera or "all": value}}
    """
    values = {}
    for number, tokens in enumerate(budgets):
        error, variance = sums[:, 1 + 2 * number], sums[:, 2 + 2 * number]
        row = {
            camera: 1 - (error[index] / variance[index]).item()
            for index, camera in enumerate(cameras)
            if sums[index, 0] > 0
        }
        row["all"] = 1 - (error.sum() / variance.sum()).item()
        values[str(tokens)] = row
    return values
