"""What of a model folder is published: what loading it needs, this version's own code, and no path of this machine."""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import modeling_smoldriver
from recipes.evaluation.provenance import LOADING_FILES
from smoldriver_common.weight_files import check_weight_files

# What a user needs to load the model. Everything else in the folder belongs to its training and stays at home.
MODEL_FILES = ("*.safetensors", *LOADING_FILES)
CONFIGURATIONS = ("*config.json", "special_tokens_map.json")
CODE_FOLDER = Path(modeling_smoldriver.__file__).parent
LARGEST_FILE = 200_000_000  # bytes of a file that holds no weights; a tokenizer.json has some 10 MB
PATH_FIELDS = ("_name_or_path", "name_or_path", "special_tokens_map_file", "tokenizer_file")


def model_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """-> ({name in the repository: path}, names that stay at home).

    Raises:
        FileNotFoundError: no such folder, or a file is missing that loading the model needs.
        ValueError: a folder of adapters, a config that names no code, damaged weights, or what [`check_file`] refuses.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no model folder {folder}")
    if (folder / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds adapters: merge them first, with recipes/merge_checkpoint.py")
    files = {
        path.name: path for path in sorted(folder.iterdir()) if path.is_file() and matches(path.name, MODEL_FILES)
    }
    for path in files.values():
        check_file(path, folder)
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    needed = ["config.json", "processor_config.json", "*.safetensors"]
    if not is_planner(config):
        needed.insert(2, "tokenizer_config.json")
    if config:
        auto_map = config.get("auto_map", {})
        if not auto_map:
            raise ValueError(
                f"{folder}/config.json names no code (auto_map): save the model with save_pretrained again"
            )
        needed += sorted({f"{target.split('.')[0]}.py" for target in _texts(auto_map)})
        needed += sorted({f"{name}.py" for path in files.values() for name in _siblings(path)})
    missing = [name for name in dict.fromkeys(needed) if not any(fnmatch(found, name) for found in files)]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: it is not a whole model folder")
    check_weight_files(folder)
    return files, sorted(path.name for path in folder.iterdir() if path.name not in files)


def is_planner(config: dict) -> bool:
    """Whether the `config.json` is a planner's: it has neither language model nor tokenizer."""
    return config.get("model_type") == "smoldriver_planner"


def check_file(path: Path, folder: Path) -> None:
    """Refuse a file that must not be published under its name.

    Raises:
        ValueError: a link that leaves the folder, a file too large to be what its name says, or code that is not this
            version's own.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path} is a link to {path.resolve()}, outside of the folder: copy that file here, or remove it"
        )
    size = path.stat().st_size
    if path.suffix != ".safetensors" and size > LARGEST_FILE:
        raise ValueError(
            f"{path} has {size:,} bytes, at most {LARGEST_FILE:,} are published: is it what its name says?"
        )
    if path.suffix == ".py":
        own = CODE_FOLDER / path.name
        if not own.is_file() or own.read_bytes() != path.read_bytes():
            raise ValueError(
                f"{path} is not this version's own code: load the model and save it again with save_pretrained, or"
                " remove the file"
            )


def read_object(path: Path) -> dict:
    """The object that a JSON file holds.

    Raises:
        ValueError: names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold an object, not {type(value).__name__}")
    return value


def without_paths(value):
    """JSON without the fields that say where files were loaded from, at any depth; empty ones stay."""
    if isinstance(value, dict):
        kept = {name: entry for name, entry in value.items() if name not in PATH_FIELDS or not entry}
        return {name: without_paths(entry) for name, entry in kept.items()}
    return [without_paths(entry) for entry in value] if isinstance(value, list) else value


def published_settings(path: Path) -> Path | bytes:
    """A configuration as it is published.

    Raises:
        ValueError: it names code outside of the folder, or a path of this machine.
    """
    kept = read_object(path)
    foreign = [name for name in _texts(kept.get("auto_map", {})) if "--" in name]
    if foreign:
        raise ValueError(f"{path} names code of another repository (auto_map: {foreign[0]!r:.80}): remove it")
    slim = without_paths(kept)
    local = next((text for text in _texts(slim) if len(text) < 1000 and is_local_path(text)), None)
    if local is not None:
        raise ValueError(f"{path} names a path of this machine: {local!r}; remove it")
    return path if slim == kept else (json.dumps(slim, indent=2, ensure_ascii=False) + "\n").encode()


def is_local_path(text: str) -> bool:
    path = Path(text)
    return path.is_absolute() and len(path.parts) > 2 and path.parent.is_dir()


def _texts(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)


def _siblings(path: Path) -> list[str]:
    """The modules beside it that a shipped file imports."""
    return re.findall(r"^from \.(\w+) import", path.read_text(encoding="utf-8"), re.M) if path.suffix == ".py" else []


def matches(name: str, patterns) -> bool:
    """Whether it matches a pattern; `*` stays within a folder, which fnmatch's own does not."""
    return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in patterns)
