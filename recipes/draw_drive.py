"""Draw a drive of recipes/drive.py as an animated picture, or one frame of it.

python recipes/draw_drive.py --drives outputs/drive --policy guided --smoldriver outputs/demo/model \
    --output outputs/drive/guided.gif

Each frame shows what the policy saw and planned: the six views, and from above the road, everyone on it, the plan and
the expert's own way from there. The plans are those of the record. They are driven again, and a record that no longer
gives the same drive is refused. The GIF plays in real time, with a frame per plan. A cross marks where something
happened, and a border round the map the half second in which it did.

Without --scene it is the scene with the most events; among those with equally many, the one in which the ego braked
most. --frame 12.5 draws the frame at 12.5 s alone, as PNG.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from recipes.driving.drawing import Answered, draw, write_gif, write_png
from recipes.driving.replay import Drive, Replay, busiest, read_drives
from recipes.planning.guard import FRONT, OBJECT_QUESTIONS, SIGNAL_QUESTION, SmolDriverAnswers
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number

BEHAVIOUR_QUESTION = "Predict the behavior of the ego vehicle."
GIF_BYTES, PNG_BYTES = 4_000_000, 200_000


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--drives", required=True, type=Path, help="output folder of recipes/drive.py")
    add("--policy", required=True, help="whose drive, as its folder is named")
    add("--scene", type=whole_number(0), help="number of the scene; default: the one with the most going on")
    add("--smoldriver", help="model folder or Hub id that answers two questions about each frame")
    add("--frame", type=float, help="seconds: draw this moment alone")
    add("--output", required=True, type=Path, help=".gif, or .png with --frame")
    return parser.parse_args()


def chosen_drive(drives: Path, policy: str, scene: int | None) -> Drive:
    """Raises FileNotFoundError, ValueError: no such policy or scene."""
    found = read_drives(drives, policy)
    if scene is None:
        return busiest(found)
    for drive in found:
        if drive.index == scene:
            return drive
    raise ValueError(f"--scene {scene}: {drives / policy} has {', '.join(str(drive.index) for drive in found)}")


def check_output(output: Path, drive: Drive, frame: float | None) -> None:
    """Raises ValueError: the file's name does not say what is drawn, or there is no such frame."""
    kind = ".gif" if frame is None else ".png"
    if output.suffix.lower() != kind:
        raise ValueError(f"--output {output}: {'a drive' if frame is None else 'one frame'} is written as *{kind}")
    times = [moment["time"] for moment in drive.trace]
    if frame is not None and frame not in times:
        raise ValueError(
            f"--frame {frame}: scene {drive.index} has a frame at {times[0]}, {times[0] + 0.5} .. {times[-1]}"
        )


def smoldriver_answers(source: str) -> Callable[[Replay, dict], list[Answered]]:
    """Asks what the ego will do; and about the light where it drives towards one, else about what is ahead."""
    from transformers.utils import logging

    from recipes.training.loading import load_model

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = SmolDriverAnswers(*load_model(source))

    def answers(replay: Replay, pictures: dict) -> list[Answered]:
        ahead = SIGNAL_QUESTION if replay.has_light_ahead() else OBJECT_QUESTIONS[FRONT]
        questions = [BEHAVIOUR_QUESTION, ahead]
        return [Answered(*pair) for pair in zip(questions, model(pictures, questions), strict=True)]

    return answers


def draw_drive(drive: Drive, smoldriver: str | None, frame: float | None) -> list:
    """The pictures of all frames or of one; the whole drive is checked either way."""
    answers = smoldriver_answers(smoldriver) if smoldriver else lambda replay, pictures: []
    pictures = []
    for replay in tqdm(Replay(drive), total=len(drive.trace), unit=" frames", desc=drive.policy, disable=None):
        if frame in (None, replay.world.time):
            moment = replay.moment()
            pictures.append(draw(drive, moment, answers(replay, moment.pictures)))
    return pictures


def main():
    arguments = parse_arguments()
    with stopped_in_one_line("draw_drive"), errors_in_one_line("draw_drive"):
        drive = chosen_drive(arguments.drives, arguments.policy, arguments.scene)
        check_output(arguments.output, drive, arguments.frame)
        pictures = draw_drive(drive, arguments.smoldriver, arguments.frame)
        if arguments.frame is None:
            size = write_gif(pictures, arguments.output, GIF_BYTES)
        else:
            size = write_png(pictures[0], arguments.output, PNG_BYTES)
        print(f"{arguments.output}: scene {drive.index} of {drive.policy}, {len(pictures)} frames, {size:,} bytes")


if __name__ == "__main__":
    main()
