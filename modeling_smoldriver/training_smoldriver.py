"""What the trainers share: SFT on questions (`trainer_smoldriver.py`), knowledge transfer from a vision tower
(`distillation_smoldriver.py`), the planner's (`guidance_smoldriver.py`) and GRPO (`grpo_smoldriver.py`)."""

import math
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput
from trl import SFTConfig, SFTTrainer

from smoldriver_common.precision import bfloat16_is_fast
from smoldriver_common.whole_files import written_whole

from .fitting_smoldriver import check_fit, record_processor
from .optimizer_smoldriver import MuonAdamW, hidden_matrices

LEAST = {
    "max_steps": 1,  # or -1, which counts epochs
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_accumulation_steps": 1,
    "save_total_limit": 1,
    "dataloader_num_workers": 0,
    "dataloader_prefetch_factor": 1,
    "seed": 0,
    "data_seed": 0,
    "warmup_steps": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "eval_delay": 0,
}
ABOVE_ZERO = ("num_train_epochs", "adam_epsilon", "logging_steps", "save_steps", "eval_steps")
BELOW = {"adam_beta1": 1, "adam_beta2": 1, "seed": 2**32, "data_seed": 2**32}  # NumPy takes seeds of 32 bits
"""Numbers of `TrainingArguments` with which a run would crash, never end or train nothing."""


def check_range(name: str, value: float | None, least: float | None = None, below: float = math.inf) -> None:
    """Refuse a number out of range; None, which leaves the choice to a default, is allowed.

    Args:
        least: smallest value allowed; None: above 0.

    Raises:
        ValueError: names the option, its value and the range.
    """
    if value is None or (least is not None and value == least) or (least or 0) < value < below:
        return
    allowed = "above 0" if least is None else f"at least {least}"
    if not math.isfinite(value):
        allowed += " and finite"
    elif below < math.inf:
        allowed += f" and below {below}"
    raise ValueError(f"{name}={value} must be {allowed}")


@dataclass
class SmolDriverTrainingConfig(SFTConfig):
    """SFTConfig plus what all trainers read: the tower, learning rates by kind of weight, visual tokens.

    `bf16` is by default what is faster on the machine, see [`bfloat16_is_fast`].

    Raises:
        ValueError: a number out of range, or a learning rate by kind of weight beside an optimizer other than AdamW.
    """

    train_tower: bool = field(default=True, metadata={"help": "Where the vision model trains: its tower too."})
    tower_learning_rate: float = field(
        default=0.0,
        metadata={
            "help": "Learning rate of the tower, always with AdamW; 0: as the rest. A pretrained tower forgets at the"
            " rates that fresh weights learn at."
        },
    )
    muon_learning_rate: float = field(
        default=0.0,
        metadata={
            "help": "Train the matrices of hidden layers with Muon at this rate, all else with AdamW at learning_rate;"
            " 0: AdamW alone. Random weights learn faster with Muon."
        },
    )
    train_visual_tokens: list[int] | None = field(
        default=None, metadata={"help": "Budgets of tokens per camera, one drawn per batch; default: the full one."}
    )

    def __post_init__(self):
        self._check_numbers()
        # The collator reads the pictures, and truncation would cut image tokens.
        self.remove_unused_columns = False
        self.max_length = None
        self.dataset_kwargs = {**(self.dataset_kwargs or {}), "skip_prepare_dataset": True}
        if self.bf16 is None:
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            self.bf16 = not self.fp16 and bfloat16_is_fast(on_gpu)
        super().__post_init__()
        for name in ("tower_learning_rate", "muon_learning_rate"):
            rate = getattr(self, name)
            check_range(name, rate, least=0)
            if rate and not str(self.optim.value).startswith("adamw_torch"):
                raise ValueError(f"{name} goes with optim='adamw_torch', not {self.optim.value!r}")

    def _check_numbers(self) -> None:
        for name, least in LEAST.items():
            if name != "max_steps" or self.max_steps != -1:
                check_range(name, getattr(self, name), least, BELOW.get(name, math.inf))
        for name in ABOVE_ZERO:
            check_range(name, getattr(self, name))

    @property
    def activation_dtype(self) -> torch.dtype:
        """The dtype that the model computes in, and that a teacher is loaded in."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32


def check_model(model, args: SmolDriverTrainingConfig, processor) -> None:
    """Refuse what no trainer here can train.

    Raises:
        ValueError: a model that is not loaded, a processor that is not its own (see [`check_fit`]), or a budget that
            the processor does not have.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError("give a loaded model: SmolDriverForConditionalGeneration.from_pretrained(...)")
    check_fit(model, processor)
    for budget in args.train_visual_tokens or ():
        processor._check_budget(budget)


def check_rows(rows, args: TrainingArguments) -> None:
    """Refuse training rows that do not fill one batch; a stream's are not counted.

    Raises:
        ValueError: nothing would train.
    """
    if not hasattr(rows, "__len__"):
        return
    batch = args.train_batch_size * args.world_size
    if len(rows) == 0:
        raise ValueError("there are no training rows: nothing would train")
    if args.dataloader_drop_last and len(rows) < batch:
        raise ValueError(
            f"dataloader_drop_last leaves out all {len(rows)} training rows, fewer than the {batch} of a batch on all"
            " processes: leave it out or lower per_device_train_batch_size"
        )


def check_one_dataset(rows) -> None:
    """Refuse several evaluation sets by name, which transformers takes: each would need a table of its own here.

    Raises:
        ValueError: says what to do instead.
    """
    if isinstance(rows, dict):
        raise ValueError(
            f"eval_dataset is a dict of {len(rows)} ({', '.join(map(str, rows))}): give one dataset, and evaluate the"
            " others with trainer.evaluate(eval_dataset)"
        )


def train_parts(model: PreTrainedModel, vision: bool, connector: bool, language_model: bool) -> None:
    """Set which parts of a SmolDriver or SmolVLM train. DINOv2's mask token, which nobody reads, never does."""
    parts = {
        model.model.vision_model: vision,
        model.model.connector: connector,
        model.model.text_model: language_model,
        model.lm_head: language_model,
    }
    for part, trains in parts.items():
        for name, parameter in part.named_parameters():
            if parameter.is_floating_point() and not name.endswith("mask_token"):
                parameter.requires_grad_(trains)


def tower_of(model) -> torch.nn.Module:
    """What turns pictures into patch features: part of SmolDriver's vision model, all of SmolVLM's."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    vision = model.model.vision_model
    return getattr(vision, "tower", vision)


class NothingToTrain(Exception):
    """The checkpoint that a run resumes from is at its last step."""


class StopWhereTrained(TrainerCallback):
    """Ends `train` before its first step where no step is left; transformers would take one more.

    By then model, adapters and state are loaded, and the steps of a run by epochs are counted.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise NothingToTrain


DRAFT_CARD = """---
library_name: transformers
---

# {name}: a draft

These weights come from a training run and were not evaluated. **They must not drive a car.** Once the run has
finished, `training_manifest.json` names their base, the scenes and every setting. `recipes/push_to_hub.py` writes a
card with the scores of an evaluation, and publishes nothing without one.
"""


def write_draft_card(folder: str | os.PathLike) -> None:
    """A `README.md` for a trained folder. TRL and PEFT write cards whose examples do not run with these models."""
    with written_whole(Path(folder) / "README.md") as aside:
        aside.write_text(DRAFT_CARD.format(name=Path(folder).resolve().name), encoding="utf-8")


class CarefulTrainerMixin:
    """What every trainer here adds to transformers' Trainer; stands before it among the parents.

    What it changes, and why:
    - trainable weights are float32, since bfloat16 would round small updates away;
    - a folder that it saves has a short card of its own, see [`write_draft_card`];
    - a loss or weights that are not finite end the training, before they are saved over good ones;
    - a whole checkpoint is read through `from_pretrained`: transformers 5 saves ViT and DINOv2 under other names, and
      its own Trainer reads the file without renaming them back;
    - a run that has taken all its steps takes no more.

    Args:
        model: a loaded model whose `model.vision_model` turns pictures into tokens; `kwargs` as in Trainer.

    Raises:
        ValueError: see [`check_rows`].
    """

    def __init__(self, model, args: TrainingArguments, **kwargs):
        check_rows(kwargs["train_dataset"], args)
        super().__init__(model, args=args, **kwargs)
        self._freeze()
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self.add_callback(StopWhereTrained())

    def _freeze(self) -> None:
        """Freeze what does not train, before the trainable weights become float32."""

    def train(self, *args, **kwargs) -> TrainOutput:
        try:
            return super().train(*args, **kwargs)
        except NothingToTrain:  # what the end of `train` would have done
            self.is_in_train = False
            if self.args.load_best_model_at_end and self.state.best_model_checkpoint:
                self._load_best_model()
            return TrainOutput(self.state.global_step, 0.0, {})

    # Checkpoints

    def save_model(self, output_dir: str | None = None, *args, **kwargs):
        self._check_weights()
        super().save_model(output_dir, *args, **kwargs)
        if self.is_world_process_zero():
            write_draft_card(output_dir or self.args.output_dir)

    def create_model_card(self, *args, **kwargs):
        """As TRL asks for it at each checkpoint: that of [`write_draft_card`]."""
        if self.is_world_process_zero():
            write_draft_card(self.args.output_dir)

    def _check_weights(self) -> None:
        """Refuse to save broken weights, which may replace the last good ones.

        Raises:
            FloatingPointError: names a parameter that is not finite; in every process, whichever holds it.
        """
        broken = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and not _of_this_process(parameter).isfinite().all()
        ]
        broken = gather_object(broken)
        if broken:
            raise FloatingPointError(
                f"{broken[0]} is not finite at step {self.state.global_step}, so nothing was saved: lower the"
                " learning rate or look at the data"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        if self._saves_parts():
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_whole_model(resume_from_checkpoint)

    def _load_best_model(self):
        if self._saves_parts():
            super()._load_best_model()
        else:
            self._load_whole_model(self.state.best_model_checkpoint)

    def _saves_parts(self) -> bool:
        """Whether a checkpoint holds adapters or shards, which transformers and PEFT read as they were written."""
        return self._has_sharded_weights() or isinstance(self.model, PeftModel)

    def _load_whole_model(self, checkpoint: str) -> None:
        """Every tensor of a checkpoint into the model, in the model's own dtypes.

        Raises:
            ValueError: the checkpoint lacks a tensor or holds one in another shape.
        """
        # float32 holds every dtype that a checkpoint may keep
        saved, info = type(self.model).from_pretrained(checkpoint, dtype=torch.float32, output_loading_info=True)
        faults = [*info["missing_keys"], *info["mismatched_keys"]]
        if faults:
            raise ValueError(f"the checkpoint {checkpoint} does not fit the model: {', '.join(map(str, faults))}")
        self.model.load_state_dict(saved.state_dict())

    def _has_sharded_weights(self) -> bool:
        return self.is_fsdp_enabled or self.is_deepspeed_enabled


class PartsTrainerMixin(CarefulTrainerMixin):
    """What the trainers with a [`SmolDriverTrainingConfig`] add to [`CarefulTrainerMixin`].

    What it changes, and why:
    - the tower can stay as it is; tower and hidden matrices can have learning rates of their own;
    - a loss is divided by the items of the whole step, whatever kind a child counts.
    """

    def __init__(self, model, args: SmolDriverTrainingConfig, **kwargs):
        super().__init__(model, args=args, **kwargs)
        self.model_accepts_loss_kwargs = True  # a loss is divided by the items of all accumulated batches already

    def _freeze(self) -> None:
        if not self.args.train_tower:
            tower_of(self.model).requires_grad_(False)

    # Optimizer

    def create_optimizer(self, *args):
        given = self.args
        if self.optimizer is not None or not (given.tower_learning_rate or given.muon_learning_rate):
            return super().create_optimizer(*args)
        self._need_whole_weights("tower_learning_rate and muon_learning_rate")
        rates = {
            "tower": given.tower_learning_rate,
            "muon": given.muon_learning_rate,
            "rest": given.learning_rate,
        }
        kinds = dict.fromkeys(map(id, self.model.parameters()), "rest")
        if given.muon_learning_rate:
            kinds |= dict.fromkeys(map(id, hidden_matrices(self.model)), "muon")
        if given.tower_learning_rate:
            kinds |= dict.fromkeys(map(id, tower_of(self.model).parameters()), "tower")
        decaying = set(self.get_decay_parameter_names(self.model))
        groups = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[kinds[id(parameter)], name in decaying].append(parameter)
        self.optimizer = MuonAdamW(
            [
                {
                    "params": parameters,
                    "lr": rates[kind],
                    "weight_decay": given.weight_decay if decays else 0.0,
                    "muon": kind == "muon",
                }
                for (kind, decays), parameters in groups.items()
            ],
            dtype=given.activation_dtype,
            lr=given.learning_rate,
            betas=(given.adam_beta1, given.adam_beta2),
            eps=given.adam_epsilon,
        )
        return self.optimizer

    def _need_whole_weights(self, options: str) -> None:
        if self._has_sharded_weights():
            raise ValueError(f"{options} need whole weights on each device: leave them out with FSDP and DeepSpeed")

    # Loss

    def _items(self, batch: dict) -> torch.Tensor:
        """How many items a batch's loss is the mean over: answers, tokens or views; a scalar."""
        raise NotImplementedError

    def _get_num_items_in_batch(self, batch_samples, device):
        # transformers 4.57 passes no batch at the end of an epoch in which a run resumed
        items = sum((self._items(batch) for batch in batch_samples), torch.zeros(())).to(device)
        if self.args.average_tokens_across_devices:
            items = self.accelerator.gather(items.reshape(1)).sum()
        return items

    def _mean_loss(self, total: torch.Tensor, items, num_items_in_batch, frame_tokens: list[str]) -> torch.Tensor:
        """A batch's share of the step's loss.

        Args:
            total: sum of the losses of its items, a scalar.
            items: how many items it has.
            num_items_in_batch: those of the whole step, all processes and accumulated batches; None: the batch alone.
            frame_tokens: the batch's frames, for the error message.

        Raises:
            FloatingPointError: the loss is not finite; names the frames.
        """
        loss = total / (items if num_items_in_batch is None else num_items_in_batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step} for the frames {', '.join(frame_tokens)}:"
                " lower the learning rate or look at the data"
            )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # DDP averages over the processes, but the count above is already that of all of them.
            loss = loss * self.accelerator.num_processes
        return loss


class SmolDriverTrainer(PartsTrainerMixin, SFTTrainer):
    """SFTTrainer for language models that read frames; each child brings its own rows, batches and loss.

    What it changes besides [`PartsTrainerMixin`], and why: what is saved says which processor it was trained with.

    Args:
        model: a loaded model, see [`check_model`]; `kwargs` as in SFTTrainer.

    Raises:
        ValueError: see [`check_rows`].
    """

    def __init__(self, model, args: SmolDriverTrainingConfig, **kwargs):
        super().__init__(model, args=args, **kwargs)
        record_processor(model, self.processing_class)


def _of_this_process(parameter: torch.Tensor) -> torch.Tensor:
    """The part of a parameter that this process holds: all of it, unless FSDP has made it a `DTensor`."""
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter
