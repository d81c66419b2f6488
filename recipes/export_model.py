"""Export a SmolDriver to ONNX and OpenVINO, in float32 and int8, and print what each costs and gains beside torch.

python recipes/export_model.py --model outputs/demo/model --scenes outputs/demo/scenes --output-dir outputs/export

Writes one folder per format and precision (`onnx-float32`, `onnx-int8`, `openvino-float32`, `openvino-int8`), each
with all that `recipes.serving.exported.ExportedModel` needs; a folder that is complete is kept. With `--scenes` all of
them and torch in float32, bfloat16 and int8 then answer the same questions: how many answers are the same,
accuracy with the right pictures, blank ones and another scene's, and time. One number of visual tokens per export.

Needs transformers 5.23 or later and `pip install "smoldriver[eval,export]"`, in an environment of its own
(recipes/serving/README.md).
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import PartialState
from transformers.utils import logging

from data_scripts.schema import load_scenes
from modeling_smoldriver import SmolDriverForConditionalGeneration
from recipes.evaluation.asking import choose_questions
from recipes.evaluation.predictions import Settings
from recipes.evaluation.provenance import weights_digest
from recipes.serving.export_table import CONTROLS, OWN, Runtime, ask_side_by_side, table
from recipes.serving.exported import FORMATS, PRECISIONS, ExportedModel, ExportSettings, is_written
from recipes.training.loading import check_unquantized, classes_of, load_model
from recipes.training.manifest import check_source
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.whole_files import check_apart

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino", "nncf")}


def check_exportable(model: str, formats: list[str]) -> None:
    """Refuse what cannot be exported, before anything is loaded.

    Raises:
        FileNotFoundError, ValueError: no SmolDriver, adapters, quantised weights, or packages that are not installed.
    """
    check_source(model)
    check_unquantized(model)
    if classes_of(model)[0] is not SmolDriverForConditionalGeneration:
        raise ValueError(f"{model} is a SmolVLM: only a SmolDriver is exported")
    missing = [name for format in formats for name in PACKAGES[format] if find_spec(name) is None]
    if find_spec("transformers.exporters") is None:
        missing.append("transformers>=5.23")
    if missing:
        raise ValueError(f'{", ".join(missing)} not installed: pip install "smoldriver[eval,export]"')


def settings_of(model, format: str, precision: str, visual_tokens: int | None, source: str) -> ExportSettings:
    """What the folder of one export will hold.

    Raises:
        ValueError: a budget that the model does not have.
    """
    budgets, text, end = model.config.visual_token_budgets, model.config.text_config, model.generation_config
    if visual_tokens not in (None, *budgets):
        raise ValueError(f"--visual-tokens {visual_tokens}: the model has no such budget; choose from {budgets}")
    return ExportSettings(
        format=format,
        precision=precision,
        visual_tokens=visual_tokens or budgets[0],
        image_token_id=model.config.image_token_id,
        end_tokens=torch.as_tensor(end.eos_token_id).flatten().tolist(),
        context=text.max_position_embeddings,
        cache=[2 * text.num_hidden_layers, text.num_key_value_heads, text.head_dim],
        weights_sha256=weights_digest(source),
    )


def export(model: str, output: Path, formats: list[str], precisions: list[str], visual_tokens: int | None):
    """-> the folders; those that are missing are written."""
    check_apart(output, {"the model": model})
    check_exportable(model, formats)
    from recipes.serving.exporting import write_export  # transformers 4.57 has no exporters

    loaded, processor = load_model(model, torch.float32)
    wanted = [settings_of(loaded, one, kind, visual_tokens, model) for one in formats for kind in precisions]
    folders = {output / f"{settings.format}-{settings.precision}": settings for settings in wanted}
    missing = [folder for folder, settings in folders.items() if not is_written(folder, settings)]
    for number, folder in enumerate(missing, start=1):
        print(f"exporting {folder} ({number} of {len(missing)})", flush=True)
        write_export(loaded, processor, folder, folders[folder])
    return list(folders)


def compare(model: str, folders: list[Path], settings: Settings, controls: bool) -> None:
    """Print the table of torch and all exports on the same questions."""
    asked = choose_questions(load_scenes(settings.scenes, settings.split), settings)
    loaded, processor = load_model(model, torch.float32)
    runtimes = [
        Runtime("torch float32", loaded),
        Runtime("torch bfloat16", load_model(model, torch.bfloat16)[0]),
        Runtime("torch int8", load_model(model, int8=True)[0]),
    ]
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        runtimes.append(Runtime(folder.name.replace("-", " "), ExportedModel(folder, torch.get_num_threads()), size))
    ask_side_by_side(runtimes, processor, asked, settings, CONTROLS if controls else OWN)
    questions = len(runtimes[0].answers[None])
    print(f"{len(asked.texts)} frames, {questions} questions, {torch.get_num_threads()} threads\n\n{table(runtimes)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a SmolDriver in full precision")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--visual-tokens", type=whole_number(), help="per camera; default: the largest budget")
    parser.add_argument("--scenes", help="folder of prepared scene rows: compare the runtimes on them")
    parser.add_argument("--split", default="test", choices=("train", "eval", "test"))
    parser.add_argument("--max-frames", type=whole_number(), default=96, help="to compare on, evenly spread")
    parser.add_argument("--questions-per-frame", type=whole_number(), help="default: all")
    parser.add_argument(
        "--controls",
        default=True,
        action=argparse.BooleanOptionalAction,
        help="also ask about blank pictures and those of another scene: three times as long",
    )
    given = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    PartialState(cpu=True)
    with errors_in_one_line("export_model"):
        folders = export(given.model, given.output_dir, given.formats, given.precisions, given.visual_tokens)
        if given.scenes:
            asking = ("model", "scenes", "split", "max_frames", "questions_per_frame", "visual_tokens")
            settings = Settings(name="torch", **{name: getattr(given, name) for name in asking})
            compare(given.model, folders, settings, given.controls)


if __name__ == "__main__":
    with stopped_in_one_line("export_model"):
        main()
