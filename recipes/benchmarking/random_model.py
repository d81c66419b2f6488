"""A SmolDriver folder of real dimensions with random weights, to measure time and memory before one is trained.

    python recipes/benchmarking/random_model.py --size 256m --output-dir outputs/random-256m

Its answers mean nothing. Each id of the vocabulary has a text, so that what two servers wrote can be compared.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers.utils import logging

from recipes.benchmarking.models import SIZES, make_processor, make_smoldriver
from recipes.training.manifest import TrainingManifest
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import folder_written_whole, write_json


def write_random_model(size_name: str, output: Path) -> None:
    """Write the folder, whole or not at all; an earlier one is replaced."""
    size = SIZES[size_name]
    processor, config, _ = make_processor(size)
    model = make_smoldriver(config, "cpu", torch.float32)
    with folder_written_whole(output) as aside:
        model.save_pretrained(aside)
        processor.save_pretrained(aside)
        fill_vocabulary(aside / "tokenizer.json", size.vocabulary)
        TrainingManifest(base=None, dtype="float32", arguments={"size": size_name}).write(aside)
    print(f"{model.num_parameters():,} random weights in {output}")


def fill_vocabulary(tokenizer: Path, count: int) -> None:
    """Words that no text holds for the ids that the tokenizer leaves without one: random weights write them too."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words |= {f"Ġ{number}": number for number in range(len(words), count)}
    write_json(tokenizer, content, indent=None, ensure_ascii=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="256m", choices=tuple(SIZES))
    parser.add_argument("--output-dir", required=True, type=Path)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    with errors_in_one_line("random_model"):
        write_random_model(arguments.size, arguments.output_dir)


if __name__ == "__main__":
    with stopped_in_one_line("random_model"):
        main()
