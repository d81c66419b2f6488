"""The frame of a training run: what it was asked for, the checkpoint it resumes from, its folder, its manifest."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from trl import ModelConfig, SFTConfig

from modeling_smoldriver.collator_smoldriver import RowsDoNotFit
from recipes.training.checkpoints import fault_of_checkpoint, holds_a_model_only, last_whole_checkpoint, newest_first
from recipes.training.loading import base_dtype
from recipes.training.manifest import TrainingManifest, check_output, check_source, scenes_identity
from smoldriver_common.command_line import errors_in_one_line
from smoldriver_common.whole_files import check_apart, sole_writer, write_json

TRAINING_SECONDS = "training_seconds.json"
RUN_SETTINGS = "run_settings.json"
DEPENDS_ON = (
    *("scenes", "more_scenes", "leave_out_scenario", "streaming", "teacher", "question_types", "shuffle_rewards"),
    *("max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "warmup_ratio", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
    *("weight_decay", "max_grad_norm", "neftune_noise_alpha", "seed", "data_seed"),
)
"""Arguments beside a model's and the trainer's own that the weights of a run depend on."""
DEPENDS_NOT_ON = ("attn_implementation", "packed_attention", "sample_steps", "sample_questions")
"""Those of a model's and the trainer's own arguments that may differ when a run resumes."""
NOT_OFFERED = {
    "load_in_8bit": "use load_in_4bit",
    "model_revision": "download that revision and give its folder as model_name_or_path",
    "lora_modules_to_save": "train_vision and train_connector say what trains in full beside the adapters",
    "bnb_4bit_quant_storage": "leave it out",
}
"""Options of TRL's `ModelConfig` that the recipes would not honour, and what to do instead."""


@dataclass
class TrainingRun:
    """One call of a training recipe.

    Example:

        run = TrainingRun.begin("sft_qlora", data_args, training_args, model_args)
        trainer, train = load(...)
        with run.training(trainer):
            trainer.train(resume_from_checkpoint=run.checkpoint)
            trainer.save_model(training_args.output_dir)
        run.manifest(trainer, train).write(training_args.output_dir)

    Args:
        program: the recipe's name, which its error messages begin with.
        data_args: the recipe's `DataArguments`, whose `scenes` is read here.
        settings: what the weights depend on, by option, as JSON keeps it.
        checkpoint: folder to resume from; None: begin.
        seconds: of training so far, those before an interruption included.
    """

    program: str
    data_args: object
    training_args: TrainingArguments
    model_args: ModelConfig
    settings: dict[str, object]
    checkpoint: str | None
    seconds: int = 0

    @classmethod
    def begin(cls, program: str, data_args, training_args: TrainingArguments, model_args: ModelConfig):
        """Check what was asked for and find the checkpoint to resume from, before anything is loaded.

        Raises:
            FileNotFoundError, ValueError: see [`check_run`] and [`checkpoint_to_resume_from`]; the output folder is
                that of the scenes.
        """
        check_run(training_args, model_args)
        check_apart(training_args.output_dir, {"the folder of scenes": data_args.scenes})
        settings = run_settings(data_args, training_args, model_args)
        checkpoint = checkpoint_to_resume_from(training_args, settings)
        return cls(program, data_args, training_args, model_args, settings, checkpoint)

    @contextmanager
    def training(self, trainer: Trainer) -> Iterator[None]:
        """Hold the run's folder while the body trains and saves, and keep time and settings in each checkpoint.

        A loss or a weight that is not finite, rows that do not fit into a sequence, a full disk, or another process in
        that folder ends the program with one line.
        """
        clock = TrainingClock(self.checkpoint)
        trainer.add_callback(clock)
        trainer.add_callback(SettingsKeeper(self.settings))
        if self.checkpoint:
            trainer.accelerator.print(f"resuming from {self.checkpoint}")
        with ExitStack() as held:
            if trainer.is_world_process_zero():
                with errors_in_one_line(self.program):
                    held.enter_context(sole_writer(self.training_args.output_dir))
            try:
                yield
            except (FloatingPointError, RowsDoNotFit, OSError, SafetensorError, RuntimeError) as error:
                reason = _reason(error)
                if reason is None:
                    raise
                last = last_whole_checkpoint(self.training_args.output_dir)
                kept = f"the last good checkpoint is {last}" if last else "no checkpoint was saved"
                sys.exit(f"{self.program}: {reason}; {kept}")
        self.seconds = round(clock.seconds())

    def manifest(self, trainer: Trainer, train_rows, **facts) -> TrainingManifest:
        """What the finished run did; `facts` are further fields of [`TrainingManifest`]."""
        return TrainingManifest(
            base=self.model_args.model_name_or_path,
            dtype=str(base_dtype(self.model_args)).removeprefix("torch."),
            scenes=self.data_args.scenes,
            scene_tokens=sorted({row["scene_token"] for row in train_rows.select_columns(["scene_token"])}),
            steps=trainer.state.global_step,
            seconds=self.seconds,
            arguments={**asdict(self.data_args), **asdict(self.model_args), **self.training_args.to_dict()},
            **facts,
        )


def _reason(error: Exception) -> str | None:
    """What to print of an error that ended a training; None for a fault of the program."""
    lines = str(error).splitlines() or [type(error).__name__]
    if not isinstance(error, RuntimeError):
        return lines[-1]  # a worker of the data loader puts its traceback before it
    # torch.save raises no OSError
    torn = any(word in lines[0] for word in ("inline_container", "PytorchStreamWriter", "No space left"))
    return f"a file could not be written, perhaps for want of disk space ({lines[0]})" if torn else None


def check_run(training_args: TrainingArguments, model_args: ModelConfig) -> None:
    """Refuse, before anything is loaded, options that the run would not honour.

    Raises:
        ValueError: `push_to_hub` is set, which would publish without an evaluation, or one of `NOT_OFFERED`; a logger
            in `report_to` that is not installed; several GPUs in one process; see [`check_output`].
        FileNotFoundError: see [`check_source`].
    """
    for option in fields(model_args):
        value = getattr(model_args, option.name)
        if option.name in NOT_OFFERED and value != option.default:
            raise ValueError(f"{option.name}={value} is not offered: {NOT_OFFERED[option.name]}")
    if training_args.push_to_hub:
        raise ValueError("push_to_hub would publish weights without an evaluation: push with recipes/push_to_hub.py")
    checked = set(INTEGRATION_TO_CALLBACK) - {"flyte"}  # which transformers never lists as available
    absent = set(training_args.report_to) & checked - set(get_available_reporting_integrations())
    if absent:
        raise ValueError(f"report_to={min(absent)} is not installed: install it, or give report_to: none")
    if training_args.n_gpu > 1:  # the Trainer would use DataParallel, which cannot split packed frames
        raise ValueError(
            f"one process would train on {training_args.n_gpu} GPUs: set CUDA_VISIBLE_DEVICES=0, or start one process"
            " per GPU with accelerate launch --config_file recipes/accelerate_configs/ddp.yaml --num_processes"
            f" {training_args.n_gpu}"
        )
    check_source(model_args.model_name_or_path)
    check_output(training_args.output_dir, model_args.model_name_or_path)


def run_settings(data_args, training_args: TrainingArguments, model_args: ModelConfig) -> dict:
    """What the weights of a run depend on, as JSON keeps it.

    What is only printed or saved is left out, and so are precision and number of processes: they are the machine's.
    """
    arguments = {**asdict(data_args), **training_args.to_dict(), **asdict(model_args)}
    own = {one.name for one in fields(training_args)} - {one.name for one in fields(SFTConfig)}
    names = {*DEPENDS_ON, *own, *asdict(model_args)} - {*DEPENDS_NOT_ON}
    settings = {name: value for name, value in arguments.items() if name in names}
    batches_a_step = training_args.gradient_accumulation_steps * training_args.world_size
    settings["rows_a_step"] = training_args.train_batch_size * batches_a_step
    settings |= {f"scenes_{name}": value for name, value in scenes_identity(data_args.scenes).items()}
    return json.loads(json.dumps(settings, default=str))


def checkpoint_to_resume_from(training_args: TrainingArguments, settings: dict) -> str | None:
    """The checkpoint that `resume_from_checkpoint` names; where it is not given or `true`, the run's last whole one.

    What is passed over on the way to that one is printed.

    Raises:
        FileNotFoundError: it does not name the folder of a whole checkpoint.
        ValueError: the checkpoint is of a run with other settings, which are named, or holds a model only.
    """
    given, folder = training_args.resume_from_checkpoint, training_args.output_dir
    if given is None or str(given).lower() == "true":
        checkpoint = _last_to_resume_from(folder, tell=training_args.process_index == 0)
    elif fault := fault_of_checkpoint(str(given)):
        raise FileNotFoundError(
            f"resume_from_checkpoint={given} is not the folder of a whole checkpoint (it {fault}): leave it out to"
            f" resume from the last one in {folder}, or give another --output_dir to start again"
        )
    else:
        checkpoint = str(given)
    if checkpoint:
        _check_settings(Path(checkpoint), settings)
    return checkpoint


def _last_to_resume_from(folder: str, tell: bool) -> str | None:
    faults = []
    for checkpoint in newest_first(folder):
        fault = fault_of_checkpoint(checkpoint)
        if fault and holds_a_model_only(checkpoint):
            raise ValueError(
                f"a run cannot resume from {checkpoint}, which save_only_model left without its optimizer: give"
                f" another --output_dir or delete the checkpoints in {folder} to start again"
            )
        if fault is None:
            if faults and tell:
                print(f"{'; '.join(faults)}: falling back to {checkpoint}")
            return str(checkpoint)
        faults.append(f"{checkpoint} {fault}")
    if faults and tell:
        print(f"{'; '.join(faults)}: there is no whole checkpoint, the run starts again")
    return None


def _check_settings(checkpoint: Path, settings: dict) -> None:
    path = checkpoint / RUN_SETTINGS
    if not path.is_file():  # an earlier version kept none and let any run resume
        return
    old = json.loads(path.read_text(encoding="utf-8"))
    # an argument that only one of them has belongs to another version of the project or its libraries
    changed = [name for name, value in settings.items() if name in old and old[name] != value]
    if changed:
        named = "; ".join(f"{name} was {old[name]}, now {settings[name]}" for name in changed)
        raise ValueError(
            f"{checkpoint} is of a run with other settings ({named}): give the old ones to resume; to start again give"
            " another --output_dir, or delete that run's checkpoints"
        )


class TrainingClock(TrainerCallback):
    """Seconds of training, those before an interruption included: each checkpoint keeps how many led to it."""

    def __init__(self, checkpoint: str | None):
        kept = checkpoint and Path(checkpoint) / TRAINING_SECONDS
        self.before = json.loads(kept.read_text(encoding="utf-8")) if kept and kept.is_file() else 0.0
        self.started, self.ended = time.monotonic(), None

    def seconds(self) -> float:
        return self.before + (self.ended or time.monotonic()) - self.started

    def on_train_end(self, args, state, control, **kwargs):
        self.ended = time.monotonic()

    def on_save(self, args, state, control, **kwargs):
        write_in_checkpoint(TRAINING_SECONDS, self.seconds(), args, state)


class SettingsKeeper(TrainerCallback):
    """Each checkpoint keeps the settings of its run, see [`checkpoint_to_resume_from`]."""

    def __init__(self, settings: dict):
        self.settings = settings

    def on_save(self, args, state, control, **kwargs):
        write_in_checkpoint(RUN_SETTINGS, self.settings, args, state)


def write_in_checkpoint(name: str, value, args, state) -> None:
    """A JSON file in the checkpoint that a trainer has just saved, by the main process alone."""
    if state.is_world_process_zero:
        write_json(Path(args.output_dir) / f"checkpoint-{state.global_step}" / name, value)
