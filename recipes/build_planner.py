"""Put a planner on the vision model of a SmolDriver: its vision model and connector, a fresh head, no language model.

python recipes/build_planner.py --model outputs/demo/model --output-dir outputs/planner

The planner is untrained: its plans mean nothing yet. The same command makes the same planner again.
"""

import argparse
import shutil
import time
from pathlib import Path

import torch
from transformers import AutoConfig

from modeling_smoldriver import (
    SmolDriverConfig,
    SmolDriverForTrajectoryPrediction,
    SmolDriverModel,
    SmolDriverPlannerProcessor,
    SmolDriverProcessor,
)
from modeling_smoldriver.planning_smoldriver import EGO_INPUTS
from recipes.planning.building import fresh_planner
from recipes.training.manifest import TrainingManifest, check_output
from recipes.training.weights import count_weights
from smoldriver_common.command_line import errors_in_one_line, whole_number
from smoldriver_common.whole_files import folder_written_whole


def check_folders(model: Path, output: Path, arguments: dict) -> None:
    """Refuse what is not a SmolDriver's folder, and an output folder whose files would be lost.

    Raises:
        FileNotFoundError, ValueError: names the folder.
    """
    if not (model / "config.json").is_file():
        adapters = (model / "adapter_config.json").is_file()
        what = "adapters: merge them with recipes/merge_checkpoint.py first" if adapters else "no model"
        raise FileNotFoundError(f"--model {model} holds {what}")
    model_type = AutoConfig.from_pretrained(model).model_type
    if model_type != SmolDriverConfig.model_type:
        raise ValueError(f"--model {model} holds a {model_type!r}: give a SmolDriver's folder")
    check_output(output, str(model))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        built = TrainingManifest.from_folder(output)
        if built is None or built.arguments != arguments:
            raise ValueError(f"{output} holds something else already: remove it or give another --output-dir")


def make_planner(model: Path, options: dict) -> tuple[SmolDriverForTrajectoryPrediction, SmolDriverPlannerProcessor]:
    """The planner, in the dtype of its SmolDriver, and its processor.

    Raises:
        ValueError: a budget that the SmolDriver lacks, or weights that do not fit its configuration.
    """
    planner = fresh_planner(
        SmolDriverConfig.from_pretrained(model), SmolDriverProcessor.from_pretrained(model), options
    )
    # The whole model: transformers renames a tower's weights when it loads them, so files are not read by name.
    source = SmolDriverModel.from_pretrained(model, dtype="auto")
    planner.to(source.dtype)
    planner.model.vision_model.load_state_dict(source.vision_model.state_dict())
    planner.model.connector.load_state_dict(source.connector.state_dict())
    return planner.eval(), planner.processor


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, type=Path, help="folder of a SmolDriver")
    add("--output-dir", required=True, type=Path)
    add("--visual-tokens", type=whole_number(), default=9, help="tokens per camera, one of the SmolDriver's budgets")
    add("--hidden-size", type=whole_number(), default=384, help="width of the ego state")
    add("--num-decoder-layers", type=whole_number(0), default=0, help="layers in which proposals attend to all tokens")
    add("--num-attention-heads", type=whole_number(), default=6, help="heads of these layers")
    add("--num-proposals", type=whole_number(), default=1, help="plans that are scored; the best is taken")
    add(
        "--ego-inputs",
        nargs="*",
        choices=EGO_INPUTS,
        default=["speed"],
        help="what it reads of the ego; history only as a control",
    )
    add("--seed", type=whole_number(0), default=0, help="of the head's fresh weights")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    started, output = time.perf_counter(), arguments.output_dir
    record = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    options = {name: value for name, value in record.items() if name not in ("model", "output_dir", "seed")}
    torch.manual_seed(arguments.seed)
    with errors_in_one_line("build_planner"):
        check_folders(arguments.model, output, record)
        planner, processor = make_planner(arguments.model, options)
        with folder_written_whole(output) as aside:
            planner.save_pretrained(aside)
            processor.save_pretrained(aside)
            dtype, seconds = str(planner.dtype).removeprefix("torch."), round(time.perf_counter() - started)
            manifest = TrainingManifest(base=str(arguments.model), dtype=dtype, seconds=seconds, arguments=record)
            manifest.write(aside)
            shutil.rmtree(output, ignore_errors=True)  # empty, or the same planner: see check_folders
    vision, connector, whole = map(count_weights, (planner.model.vision_model, planner.model.connector, planner))
    print(
        f"untrained planner in {output}: {processor.visual_tokens} tokens for each of {len(processor.cameras)} cameras"
    )
    for name, count in (("vision", vision), ("connector", connector), ("head", whole - vision - connector)):
        print(f"  {name:12s} {count:>15,}")


if __name__ == "__main__":
    main()
