"""Weight files that are whole, checked by their headers before anything is loaded."""

import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def check_weight_files(folder: str | os.PathLike) -> None:
    """Refuse a model folder whose weights cannot be read, or are pickles, which can hold code.

    Reads headers and sizes alone, so that a folder of many GB takes no time.

    Raises:
        FileNotFoundError: the folder has no `*.safetensors`, or lacks one that its index names.
        ValueError: names the file that is cut short or damaged.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        also = f", only {', '.join(pickles)}: pickles can hold code and are not read" if pickles else ""
        raise FileNotFoundError(f"{folder} has no weights (*.safetensors){also}; save it with save_pretrained")
    for path in files:
        try:
            with safe_open(path, "numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is cut short or damaged ({error}): copy or save it again") from None
    if (folder / INDEX).is_file():
        missing = sorted(set(weight_map(folder).values()) - {path.name for path in files})
        if missing:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: it is not a whole model folder")


def weight_map(folder: Path) -> dict[str, str]:
    """File of each weight, of a folder with an index.

    Raises:
        ValueError: the index is damaged.
    """
    path = folder / INDEX
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        if not all(isinstance(name, str) for name in files.values()):
            raise TypeError("a file name is not text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an index of weights ({error!r}): save the model again") from None
    return files
