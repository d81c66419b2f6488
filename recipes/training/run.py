"""A training run: its settings, the checkpoint that it resumes from, and the frame of the training loop."""

import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path

from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from trl import ModelConfig, SFTConfig

from modeling_smoldriver.collator_smoldriver import RowsDoNotFit
from recipes.training.manifest import check_output, check_source, scenes_identity
from smoldriver_common.command_line import errors_in_one_line
from smoldriver_common.whole_files import sole_writer, write_json

TRAINING_SECONDS = "training_seconds.json"
RUN_SETTINGS = "run_settings.json"
DEPENDS_ON = (
    *("scenes", "streaming", "teacher"),
    *("max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "warmup_ratio", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("weight_decay", "max_grad_norm", "neftune_noise_alpha", "seed", "data_seed"),
)
"""Arguments beside a model's and the trainer's own that the weights of a run depend on."""
DEPENDS_NOT_ON = ("attn_implementation", "packed_attention", "sample_steps", "sample_questions")
"""Those of a model's and the trainer's own arguments that a run may change when it goes on."""
NOT_OFFERED = {
    "load_in_8bit": "use load_in_4bit",
    "model_revision": "download that revision and give its folder as model_name_or_path",
    "lora_modules_to_save": "train_vision and train_connector say what trains in full beside the adapters",
    "bnb_4bit_quant_storage": "leave it out",
}
"""Options of TRL's `ModelConfig` that the recipes would not honour, and what to do instead."""


def check_run(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """Refuse, before anything is loaded, a run that would not be the one that was asked for.

    Raises:
        ValueError: `push_to_hub` is set, which would publish without an evaluation, or one of `NOT_OFFERED`; several
            GPUs in one process; see [`check_output`].
        FileNotFoundError: see [`check_source`].
    """
    for option in fields(model_args):
        value = getattr(model_args, option.name)
        if option.name in NOT_OFFERED and value != option.default:
            raise ValueError(f"{option.name}={value} is not offered: {NOT_OFFERED[option.name]}")
    if training_args.push_to_hub:
        raise ValueError("push_to_hub would publish weights without an evaluation: push with recipes/push_to_hub.py")
    if training_args.n_gpu > 1:  # the Trainer would use DataParallel, which cannot split packed frames
        raise ValueError(
            f"one process would train on {training_args.n_gpu} GPUs: set CUDA_VISIBLE_DEVICES=0, or start a process a"
            " GPU with accelerate launch --config_file recipes/accelerate_configs/ddp.yaml --num_processes"
            f" {training_args.n_gpu}"
        )
    check_source(model_args.model_name_or_path)
    check_output(training_args.output_dir, model_args.model_name_or_path)


def run_settings(data_args, training_args: SFTConfig, model_args: ModelConfig) -> dict:
    """What the weights of a run depend on, as JSON keeps it.

    Not what is printed and saved, and neither precision nor number of processes: those are the machine's.
    """
    arguments = {**asdict(data_args), **training_args.to_dict(), **asdict(model_args)}
    own = {one.name for one in fields(training_args)} - {one.name for one in fields(SFTConfig)}
    names = {*DEPENDS_ON, *own, *asdict(model_args)} - {*DEPENDS_NOT_ON}
    settings = {name: value for name, value in arguments.items() if name in names}
    batches_a_step = training_args.gradient_accumulation_steps * training_args.world_size
    settings["rows_a_step"] = training_args.train_batch_size * batches_a_step
    settings |= {f"scenes_{name}": value for name, value in scenes_identity(data_args.scenes).items()}
    return json.loads(json.dumps(settings, default=str))


def checkpoint_to_go_on_from(training_args: TrainingArguments, settings: dict) -> str | None:
    """The checkpoint that `resume_from_checkpoint` names; where it is not given or `true`, the run's last whole one.

    Raises:
        FileNotFoundError: it names no folder of a checkpoint.
        ValueError: the checkpoint is of a run with other settings, which are named.
    """
    given, folder = training_args.resume_from_checkpoint, training_args.output_dir
    if given is None or str(given).lower() == "true":
        checkpoint = last_whole_checkpoint(folder)
    elif is_whole_checkpoint(str(given)):
        checkpoint = str(given)
    else:
        raise FileNotFoundError(
            f"resume_from_checkpoint={given} is no folder of a whole checkpoint: leave it out to go on from the last"
            f" one in {folder}, or give another --output_dir to begin anew"
        )
    if checkpoint:
        _check_settings(Path(checkpoint), settings)
    return checkpoint


def _check_settings(checkpoint: Path, settings: dict) -> None:
    path = checkpoint / RUN_SETTINGS
    if not path.is_file():  # of a version that kept none: it may go on, as it could then
        return
    old = json.loads(path.read_text(encoding="utf-8"))
    # what only one of both knows is an argument of another version of the project or its libraries
    changed = [name for name, value in settings.items() if name in old and old[name] != value]
    if changed:
        told = "; ".join(f"{name} was {old[name]}, now {settings[name]}" for name in changed)
        raise ValueError(
            f"{checkpoint} is of a run with other settings ({told}): give those again to go on; to begin anew give"
            " another --output_dir, or delete that run's checkpoints"
        )


def is_whole_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint was saved to its end.

    transformers writes a checkpoint in place, its trainer state last: where that can be read, the rest is there.
    """
    try:
        json.loads((Path(folder) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def last_whole_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest `checkpoint-<step>` of a run; one whose saving was cut short is passed over."""
    checkpoints = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    newest_first = sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next((str(path) for path in newest_first if is_whole_checkpoint(path)), None)


class TrainingClock(TrainerCallback):
    """Seconds of training, those before an interruption among them: each checkpoint keeps how many led to it."""

    def __init__(self, checkpoint: str | None):
        kept = checkpoint and Path(checkpoint) / TRAINING_SECONDS
        self.before = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.is_file() else 0.0
        self.started = time.monotonic()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def on_save(self, args, state, control, **kwargs):
        write_in_checkpoint(TRAINING_SECONDS, self.seconds(), args, state)


class SettingsKeeper(TrainerCallback):
    """Each checkpoint keeps the settings of its run, see [`checkpoint_to_go_on_from`]."""

    def __init__(self, settings: dict):
        self.settings = settings

    def on_save(self, args, state, control, **kwargs):
        write_in_checkpoint(RUN_SETTINGS, self.settings, args, state)


def write_in_checkpoint(name: str, value, args, state) -> None:
    """A JSON file in the checkpoint that a trainer has just saved, by the main process alone."""
    if state.is_world_process_zero:
        write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / name, value)


class NothingToTrain(Exception):
    """The checkpoint that a run goes on from is at its last step."""


class StopWhereTrained(TrainerCallback):
    """Ends `train` before its first step if there is none to take; by itself it would take one more.

    By then model, adapters and state are loaded, and of a run by epochs the steps are counted.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            raise NothingToTrain


def run_training(trainer: Trainer, checkpoint: str | None, program: str) -> int:
    """Train to the end, from a checkpoint if there is one, and save the model in the run's folder.

    A loss or a weight that is no number, rows that do not fit into a sequence, or another process in that folder, ends
    the program with one line.

    Returns:
        Seconds of training, those before an interruption among them.
    """
    clock = TrainingClock(checkpoint)
    trainer.add_callback(clock)
    trainer.add_callback(StopWhereTrained())
    if checkpoint:
        trainer.accelerator.print(f"going on from {checkpoint}")
    held = ExitStack()
    with errors_in_one_line(program):
        if trainer.is_world_process_zero():
            held.enter_context(sole_writer(trainer.args.output_dir))
    try:
        train_what_remains(trainer, checkpoint)
        seconds = round(clock.seconds())
        trainer.save_model(trainer.args.output_dir)
    except (FloatingPointError, RowsDoNotFit) as error:
        told = str(error).splitlines()[-1]  # a worker of the data loader puts its traceback before it
        last = last_whole_checkpoint(trainer.args.output_dir)
        kept = f"the last good checkpoint is {last}" if last else "no checkpoint was saved"
        sys.exit(f"{program}: {told}; {kept}")
    finally:
        held.close()
    return seconds


def train_what_remains(trainer: Trainer, checkpoint: str | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except NothingToTrain:  # what the end of `train` would have done
        trainer.is_in_train = False
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            trainer._load_best_model()
