"""Graft a SmolDriver from a base VLM and a vision tower: the base's connector and language model, fresh resamplers.

python recipes/build_checkpoint.py --base HuggingFaceTB/SmolVLM2-2.2B-Instruct \
    --tower google/vit-base-patch16-224-in21k --output-dir outputs/smoldriver-2b

`--cameras FRONT SIDE_LEFT ...` names other cameras than nuScenes' six, as the scene rows name them, in their order.

Or from a language model alone (SmolLM2, a GGUF file included), with a fresh connector:

python recipes/build_checkpoint.py --language-model HuggingFaceTB/SmolLM2-135M-Instruct \
    --tower google/vit-base-patch16-224-in21k --output-dir outputs/smoldriver-135m
"""

import argparse
import time
from pathlib import Path

from PIL import Image
from transformers import logging

from recipes.training.grafting import BuildOptions, graft
from recipes.training.manifest import TrainingManifest, check_output, check_source
from recipes.training.weights import parameter_table
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.processes import peak_resident_bytes
from smoldriver_common.whole_files import folder_written_whole

FRESH = {
    "vision-width": (768, "width of visual tokens"),
    "vision-heads": (4, "heads of the resamplers"),
    "grid-size": (32, "side of the query grid"),
    "scale-factor": (4, "pixel shuffle"),
}
"""Options that a base VLM answers by itself: default and meaning."""


def check_folders(options: BuildOptions) -> None:
    """Refuse sources that do not exist, and an output folder whose model would be lost.

    The same command may be given again.

    Raises:
        FileNotFoundError, ValueError: names the folder.
    """
    sources = (options.base or options.language_model, options.tower)
    for source in sources:
        check_source(source)
    check_output(options.output_dir, *sources)
    if (options.output_dir / "config.json").is_file():
        built = TrainingManifest.from_folder(options.output_dir)
        if built is None or built.arguments != options.record():
            raise ValueError(
                f"{options.output_dir} holds another model already: remove it or give another --output-dir"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--base", help="SmolVLM2: Hub id or folder")
    source.add_argument("--language-model", help="SmolLM2 alone: Hub id or folder")
    parser.add_argument("--gguf-file", help="name of the GGUF file in --language-model")
    parser.add_argument("--tower", required=True, help="vision backbone with patch tokens: Hub id or folder")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--tower-image-size", type=int, help="pixels; default 16 per grid cell")
    parser.add_argument("--cameras", nargs="+", help="names, as in the scene rows; default: nuScenes' six")
    parser.add_argument("--resampler-keys", default="content", choices=("content", "position"))
    parser.add_argument("--resampler-residual", default=True, action=argparse.BooleanOptionalAction)
    for name, (default, what) in FRESH.items():
        parser.add_argument(f"--{name}", type=int, help=f"with --language-model: {what}; default {default}")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if bool(arguments.gguf_file) and not arguments.language_model:
        parser.error("--gguf-file goes with --language-model")
    for name, (default, _) in FRESH.items():
        field = name.replace("-", "_")
        if arguments.base and getattr(arguments, field) is not None:
            parser.error(f"--{name} goes with --language-model: a --base brings its own")
        if arguments.language_model and getattr(arguments, field) is None:
            setattr(arguments, field, default)
    options = BuildOptions(**vars(arguments))
    started = time.perf_counter()
    logging.set_verbosity_error()  # that a checkpoint has more than the tower is no news
    with errors_in_one_line(parser.prog):
        check_folders(options)
        model, processor = graft(options)
        with folder_written_whole(options.output_dir) as aside:
            model.save_pretrained(aside)
            processor.save_pretrained(aside)
            seconds = time.perf_counter() - started
            manifest = TrainingManifest(
                base=options.base or options.language_model,
                tower=options.tower,
                dtype=options.dtype,
                seconds=round(seconds),
                arguments=options.record(),
            )
            manifest.write(aside)
    print(f"SmolDriver in {options.output_dir}, budgets {processor.visual_token_budgets} tokens per camera")
    pictures = processor.image_processor
    how = Image.Resampling(pictures.resample).name.lower()
    print(f"pictures: {how} resize, mean {list(pictures.image_mean)}, deviation {list(pictures.image_std)}")
    print(parameter_table(model))
    print(f"built in {seconds:.0f} s, peak memory {peak_resident_bytes() / 1e9:.1f} GB")


if __name__ == "__main__":
    with stopped_in_one_line("build_checkpoint"):
        main()
