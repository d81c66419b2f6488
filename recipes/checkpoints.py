"""What a training run leaves beside its weights, and how a trained model is loaded again, adapters included."""

import json
import os
import resource
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import torch
from accelerate import PartialState
from bitsandbytes.nn import Linear4bit
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from transformers import AutoConfig, BitsAndBytesConfig, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from trl import ModelConfig, SFTConfig

from data_scripts.schema import read_manifest
from data_scripts.whole_files import sole_writer, write_json
from modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverProcessor
from modeling_smoldriver.baseline_smoldriver import SmolVLMForScenes, SmolVLMSceneProcessor, end_answers_with_turns
from modeling_smoldriver.collator_smoldriver import RowsDoNotFit

TRAINING_MANIFEST = "training_manifest.json"
TRAINING_SECONDS = "training_seconds.json"
RUN_SETTINGS = "run_settings.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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
CLASSES = {
    "smoldriver": (SmolDriverForConditionalGeneration, SmolDriverProcessor),
    "smolvlm": (SmolVLMForScenes, SmolVLMSceneProcessor),
}
"""Model and processor of each `model_type` that the recipes train and evaluate."""


@contextmanager
def errors_in_one_line(program: str):
    """Bad input ends the program with one line and no traceback: wrap what reads what the user named."""
    try:
        yield
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: {' '.join(str(error).split())}")


def check_source(name: str) -> None:
    """Refuse what is neither a folder nor of the form of a Hub id, before anything is looked up on the Hub.

    Raises:
        FileNotFoundError: names the folder.
    """
    folder = Path(name)
    if not folder.is_dir() and (len(folder.parts) != 2 or folder.is_absolute() or folder.parent.is_dir()):
        raise FileNotFoundError(f"there is no model folder {name}")


def check_output(folder: str | os.PathLike, *sources: str) -> None:
    """Refuse to write a model over one that it is made from: its manifest would name itself as what came before.

    Raises:
        ValueError: names the folder.
    """
    if Path(folder).resolve() in [Path(source).resolve() for source in sources]:
        raise ValueError(f"the output folder {folder} is the model to start from: give another")


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


def write_training_manifest(folder: str | os.PathLike, manifest: dict) -> None:
    """Write `<folder>/training_manifest.json`, whole or not at all.

    Args:
        manifest: `base` (folder or Hub id that the run started from), its `dtype` and `quantization` or None, `scenes`
            (data folder), `scene_tokens` (of the training split), `arguments`, `steps`, `seconds`; of a model that was
            built and not trained, no scenes, 0 steps and its `tower`. `machine` is added where it does not say.
    """
    manifest = {"machine": machine(), **manifest}
    write_json(Path(folder) / TRAINING_MANIFEST, manifest, ensure_ascii=False, default=str)


def machine() -> str:
    """What this process and those beside it compute on, for the model card."""
    if torch.cuda.is_available():
        return f"{PartialState().num_processes} x {torch.cuda.get_device_name()}"
    return f"CPU, {os.cpu_count()} cores"


def read_training_manifest(folder: str | os.PathLike) -> dict | None:
    path = Path(folder) / TRAINING_MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def scenes_identity(scenes: str | os.PathLike) -> dict:
    """What the rows of a prepared folder depend on."""
    manifest = read_manifest(scenes) or {}
    return {name: manifest.get(name) for name in ("source", "options")}


def base_dtype(model_args: ModelConfig) -> torch.dtype:
    """Of what does not train; float32 where none or `auto` is asked for.

    Raises:
        ValueError: a name that is none of `DTYPES`; in a YAML nothing else would check it.
    """
    name = model_args.dtype or "auto"
    if name != "auto" and name not in DTYPES:
        raise ValueError(f"dtype={name!r} is unknown; use one of auto, {', '.join(DTYPES)}")
    return DTYPES.get(name, torch.float32)


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


def nf4(compute_dtype: torch.dtype, double: bool, kind: str = "nf4") -> BitsAndBytesConfig:
    """4-bit weights for the language model's layers only: vision, connector and lm_head keep their precision."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=["model.vision_model", "model.connector", "lm_head"],
    )


def multiply_4bit_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Under autocast 4-bit layers, alone of all, multiply in the dtype of `nf4`: let them follow it, in `dtype`."""
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = dtype


def classes_of(source: str | os.PathLike) -> tuple[type, type]:
    """Model and processor class of a folder or Hub id.

    Raises:
        ValueError: if it is neither a SmolDriver nor a SmolVLM.
    """
    model_type = AutoConfig.from_pretrained(source).model_type
    if model_type not in CLASSES:
        raise ValueError(f"{source} is a {model_type!r}; the recipes know {', '.join(CLASSES)}")
    return CLASSES[model_type]


def load_processor(source: str | os.PathLike):
    """The processor of a SmolDriver or SmolVLM folder or Hub id."""
    return classes_of(source)[1].from_pretrained(source)


def load_base(source: str | os.PathLike, dtype, quantization: BitsAndBytesConfig | None = None, **arguments):
    """SmolDriver or SmolVLM from a folder or Hub id; if quantised, on this process's device.

    Raises:
        ValueError: if weights are missing or of a wrong shape.
    """
    if quantization is not None:
        arguments["device_map"] = {"": PartialState().device}
    model, info = classes_of(source)[0].from_pretrained(
        source, dtype=dtype, quantization_config=quantization, output_loading_info=True, **arguments
    )
    if info["missing_keys"] or info["mismatched_keys"]:  # SmolDriver refuses these by itself
        raise ValueError(f"{source} lacks {sorted(info['missing_keys'])} or holds {sorted(info['mismatched_keys'])}")
    if isinstance(model, SmolVLMForScenes):
        end_answers_with_turns(model, load_processor(source))
    for module in model.modules():
        if isinstance(module, Linear4bit):
            # On CPUs bitsandbytes 0.50 re-orders the weights at the first forward pass in eval mode, for good, and
            # then no gradient passes the layer: a sample table in the middle of a run would end the training.
            module.support_avx512bf16_for_cpu = False
    return model


def keep_loaded_weights(trainer, frozen_dtype: torch.dtype) -> None:
    """Let a trainer go on with a model that was loaded from its checkpoint; what does not train gets its dtype back.

    The weights are there already, and strictly: the trainer would read the file without the renames of
    `from_pretrained`, and so leave a ViT's layers as they were before training.
    """
    trainer._load_from_checkpoint = lambda *arguments: None
    for parameter in trainer.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(frozen_dtype)


def load_model(path: str | os.PathLike, dtype: torch.dtype | None = None):
    """A SmolDriver or SmolVLM and its processor, from a model folder, a Hub id or a folder of adapters.

    Adapters are put on the base they were trained on, quantised as it was then; `dtype` is by default as it was too.
    -> (model in eval mode, processor)

    Raises:
        FileNotFoundError: no such folder, or adapters that do not say what their base is.
        ValueError: weights are missing, or there are some too many or of a wrong shape.
    """
    check_source(str(path))
    if is_adapters(path):
        base, quantization, trained_in = base_of_adapters(path)
        model = load_base(base, dtype or trained_in, quantization)
        model = put_adapters(model, path, dtype or torch.float32).get_base_model()
    else:
        base, model = path, load_base(path, dtype or "auto")
    return model.to(PartialState().device).eval(), load_processor(base)


def is_adapters(path: str | os.PathLike) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def base_of_adapters(path: str | os.PathLike) -> tuple[str, BitsAndBytesConfig | None, torch.dtype]:
    """Folder or Hub id of what adapters were trained on, how it was quantised, and its dtype.

    Raises:
        FileNotFoundError: the folder does not say.
    """
    manifest = read_training_manifest(path)
    if manifest is None:
        raise FileNotFoundError(f"{path} holds adapters without {TRAINING_MANIFEST}: which base they fit is unknown")
    check_source(manifest["base"])
    quantization = manifest["quantization"] and BitsAndBytesConfig(**manifest["quantization"])
    return manifest["base"], quantization, getattr(torch, manifest["dtype"])


def put_adapters(base, path: str | os.PathLike, dtype: torch.dtype) -> PeftModel:
    """`base` with the adapters of a folder, and with what was trained in full beside them, in `dtype`.

    Raises:
        ValueError: adapters that lack a tensor or have one too many for this base.
    """
    peft_config = PeftConfig.from_pretrained(path)
    peft_config.inference_mode = False  # so that what was trained can be told by requires_grad
    model = get_peft_model(base, peft_config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # what was trained in float32 stays so beside a narrower base
            parameter.data = parameter.data.to(dtype)
    weights, expected = load_peft_weights(str(path), device="cpu"), get_peft_model_state_dict(model)
    if weights.keys() != expected.keys():
        missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        raise ValueError(f"the adapters in {path} do not fit their base: missing {missing}, unexpected {unexpected}")
    set_peft_model_state_dict(model, weights)
    return model


def peak_resident_bytes() -> int:
    """Largest resident memory of this process; on Linux without that of its parent, which getrusage may report."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
