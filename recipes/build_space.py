"""Write the folder of a Space, a page that asks a model about six pictures, with frames to try it on.

python recipes/build_space.py --model outputs/demo/model --scenes outputs/demo/scenes --output-dir outputs/space

`make app` does this and starts the page; recipes/push_to_hub.py --space publishes the same files beside the model.
"""

import argparse
import shutil
from pathlib import Path

from recipes.serving.space_files import space_files
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line
from smoldriver_common.whole_files import written_whole


def build(model: str, scenes: Path | None, split: str, output: Path) -> None:
    """Write the Space; files of an earlier one are replaced, others stay."""
    if Path(model).is_dir():
        model = str(Path(model).resolve())  # the page runs in another folder
    files = space_files(model, scenes, split)
    shutil.rmtree(output / "examples", ignore_errors=True)
    for name, content in files.items():
        with written_whole(output / name) as aside:
            Path(aside).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    print(f"wrote {len(files)} files to {output}, for the model {model}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub id or model folder that the page loads")
    parser.add_argument("--scenes", type=Path, help="prepared scene rows for the examples; default: no examples")
    parser.add_argument("--split", default="test", help="of the scenes")
    parser.add_argument("--output-dir", required=True, type=Path)
    arguments = parser.parse_args()
    with errors_in_one_line("build_space"):
        build(arguments.model, arguments.scenes, arguments.split, arguments.output_dir)


if __name__ == "__main__":
    with stopped_in_one_line("build_space"):
        main()
