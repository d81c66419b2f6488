"""Which checkpoint a training run resumes from: the last whole one, judged by what its files hold."""

import json
import os
import zipfile
import zlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
WEIGHTS_INDEX = "model.safetensors.index.json"
RNG_STATES = "rng_state*.pth"
SHARDED_STATES = ("global_step*", "pytorch_model_fsdp*")  # DeepSpeed's and FSDP's own, beside or instead of the above


def newest_first(folder: str | os.PathLike) -> list[Path]:
    """The `checkpoint-<step>` folders of a run, whole or not."""
    checkpoints = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[1].isdecimal()]
    return sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def last_whole_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest checkpoint of a run, without those whose saving was cut short or that lost a file since."""
    return next((str(path) for path in newest_first(folder) if fault_of_checkpoint(path) is None), None)


def fault_of_checkpoint(folder: str | os.PathLike) -> str | None:
    """Why a run cannot resume from a checkpoint as if it had never stopped; None where it can.

    A checkpoint is whole if its weights, its trainer state and the states of optimizer, schedule and random numbers
    are all there and readable. Nothing is unpickled: JSON is parsed, safetensors are checked by their headers, and
    torch's files, which are zip archives, by their checksums. The sharded files of FSDP and DeepSpeed are only looked
    for.

    Returns:
        "lacks optimizer.pt", for example.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "is not a folder"
    sharded = [path for pattern in SHARDED_STATES for path in folder.glob(pattern)]
    needed = [TRAINER_STATE_NAME] if sharded else [TRAINER_STATE_NAME, OPTIMIZER_NAME, SCHEDULER_NAME]
    weights = _weight_files(folder)
    if not weights and not sharded:
        needed.append(WEIGHTS[0])
    missing = [name for name in [*needed, *weights] if not (folder / name).is_file()]
    missing += _missing_rng_states(folder)
    if missing:
        return f"lacks {', '.join(missing)}"
    files = [*folder.glob("*.json"), *(folder / name for name in weights), *folder.glob(RNG_STATES)]
    files += [folder / name for name in (OPTIMIZER_NAME, SCHEDULER_NAME, SCALER_NAME) if (folder / name).is_file()]
    damaged = [path.name for path in files if not _is_readable(path)]
    return f"has a damaged {', '.join(damaged)}" if damaged else None


def holds_a_model_only(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint was saved with `save_only_model`: whole, but without any state to resume from."""
    folder = Path(folder)
    states = [folder / OPTIMIZER_NAME, folder / SCHEDULER_NAME, *folder.glob(RNG_STATES)]
    states += [path for pattern in SHARDED_STATES for path in folder.glob(pattern)]
    return _is_readable(folder / TRAINER_STATE_NAME) and not any(path.exists() for path in states)


def _weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a checkpoint's weights, those that an index names included."""
    try:
        named = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    except FileNotFoundError:
        return [name for name in WEIGHTS if (folder / name).is_file()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []  # as if there were none
    return sorted(set(map(str, named)))


def _missing_rng_states(folder: Path) -> list[str]:
    """Of one process there is one file, of several one for each process, numbered from 0."""
    found = {path.name for path in folder.glob(RNG_STATES)}
    if "rng_state.pth" in found:
        return []
    expected = [f"rng_state_{number}.pth" for number in range(len(found))] or ["rng_state.pth"]
    return [name for name in expected if name not in found]


def _is_readable(path: Path) -> bool:
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8")) is not None
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return True
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError):
        return False
