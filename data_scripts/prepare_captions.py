"""Views of a synthetic world + general questions about them -> Parquet shards of scene rows.

    python data_scripts/prepare_captions.py --world outputs/demo/world --output-dir outputs/compare/captions

A small base VLM is pretrained on them, where SmolVLM2 saw pictures and captions from the web: one picture or several,
and questions in other words than DriveLM's. Source: the world's `captions.json` (see `world/captions.py`), made by the
project itself. A frame with captions gives up to two rows (`schema.py`), one with a single picture:

    {"scene_token": "f0f1...", "frame_token": "4a07.../CAM_BACK", "CAM_BACK": {"bytes": b"<JPEG>", ...}, others None,
     "qa": [{"task": "general", "question": "What does the picture show?", "answer": "Two moving cars."},
            {"task": "general", "question": "Does the picture show a moving truck?", "answer": "No."}, ...]}

and, unless the number drawn is one, another row with up to `--most-views` pictures. Its questions name the picture
that they ask about, by its camera or in words: "What does CAM_BACK show?", "What does the picture to the back of the
ego car show?". Both rows ask to repeat two sentences of DriveLM's questions and answers, drawn at random. So the base
knows the words, and which camera looks where (SmolVLM2 knows that from the names), but none of DriveLM's questions
about a picture.

Scenes go to train, eval and test as in `prepare_drivelm.py`, so that a base never sees a scene that is tested on.
"""

import argparse
import os
import random
from collections import Counter
from pathlib import Path, PurePosixPath

from data_scripts.prepare_drivelm import plan_splits
from data_scripts.schema import CAMERAS, split_of
from data_scripts.shards import format_report, write_splits
from data_scripts.sources.camera_images import UnusableImage, read_image_file, usable_image
from data_scripts.sources.drivelm_json import read_drivelm
from data_scripts.world.captions import NUMBERS
from data_scripts.world.folder import read_json, read_world
from data_scripts.world.words import CLASSES, DIRECTIONS, PLURALS
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.whole_files import check_apart

FORMAT = 6  # raised when the same input would give other rows
SINGULARS = {plural: kind for kind, plural in PLURALS.items()}
# SmolVLM2 understands a question in any words. A tiny base that has read one wording knows only that one.
IS_IT_THERE = (
    "Does {view} show {one}?",
    "Is there {one} in {view}?",
    "Can {many} be seen in {view}?",
    "Are any {many} in {view}?",
)
WHAT_IS_THERE = ("What does {view} show?", "What can be seen in {view}?")
HOW_MANY = ("How many {many} does {view} show?", "How many {many} can be seen in {view}?")


def caption(items: list[list[str]]) -> str:
    """`[["two", "moving", "cars"], ["one", "red", "light"]]` -> "Two moving cars, one red light."."""
    text = ", ".join(" ".join(word for word in item if word) for item in items) or "nothing"
    return f"{text[0].upper()}{text[1:]}."


def named(items: list[list[str]]) -> set[tuple[str, str]]:
    """What a view's caption names, in the singular: ("", noun) and (attribute, noun)."""
    pairs = {(attribute, SINGULARS.get(noun, noun)) for _, attribute, noun in items}
    return pairs | {("", noun) for _, noun in pairs}


def asks_for(wording: str, view: str, attribute: str, noun: str) -> str:
    """One of IS_IT_THERE about a thing: ("Are any {many} in {view}?", "CAM_BACK", "moving", "bus") -> "Are any moving
    buses in CAM_BACK?"."""
    thing = f"{attribute} {noun}".strip()
    one = f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
    return wording.format(view=view, one=one, many=f"{attribute} {plural(noun)}".strip())


def plural(noun: str) -> str:
    """ "bus" -> "buses", "light" -> "lights"."""
    return PLURALS.get(noun, f"{noun}s")


def things_shown(seen: dict[str, dict[str, list[list[str]]]]) -> dict[str, Counter]:
    """How many captions of each camera name each thing: `captions.json` -> {"CAM_BACK": {("moving", "car"): 312}}."""
    shown = {camera: Counter() for camera in CAMERAS}
    for captions in seen.values():
        for camera, items in captions.items():
            shown[camera].update(named(items))
    return shown


def general_questions(
    items: list[list[str]], rng: random.Random, usual: Counter, view: str = "the picture"
) -> list[dict]:
    """Scene rows' `qa` about one view: its caption, what it does and does not show, how many, and what they do.

    As many questions are answered with yes as with no. A thing that is not there is drawn as often as the camera
    usually shows it (`usual`, see [`things_shown`]), so that the words of a question alone do not give away its
    answer.
    """
    shown = [(number, attribute, SINGULARS.get(noun, noun)) for number, attribute, noun in items]
    there = named(items)
    absent = {thing: usual[thing] for thing in sorted(usual) if thing not in there}
    asked = [(rng.choice(WHAT_IS_THERE).format(view=view), caption(items))]
    for thing in rng.sample(sorted(there), min(2, len(there), len(absent))):
        other = rng.choices(list(absent), absent.values())[0]
        del absent[other]
        for answer, (attribute, noun) in (("Yes.", thing), ("No.", other)):
            asked.append((asks_for(rng.choice(IS_IT_THERE), view, attribute, noun), answer))
    counts = Counter()
    for number, _, noun in shown:
        if noun in CLASSES:  # a view has one light or arrow at most
            counts[noun] += NUMBERS.index(number) + 1
    for noun in rng.sample(sorted(counts), min(1, len(counts))):
        number = NUMBERS[min(counts[noun], len(NUMBERS)) - 1]
        question = rng.choice(HOW_MANY).format(view=view, many=plural(noun))
        asked.append((question, f"{number.capitalize()}."))
        attributes = {attribute for _, attribute, other in shown if other == noun}
        if len(attributes) == 1 and attributes != {""}:
            asked.append((f"Which word describes the {noun} in {view}?", f"{attributes.pop().capitalize()}."))
    return [{"task": "general", "question": question, "answer": answer, "tag": []} for question, answer in asked]


def names_of(camera: str, views: int) -> list[str]:
    """What questions may call a camera's picture, among so many pictures."""
    return ["the picture"] if views == 1 else [camera, f"the picture to the {DIRECTIONS[camera]} of the ego car"]


def repetitions(sentences: list[str], rng: random.Random) -> list[dict]:
    """`qa` that asks to repeat two sentences."""
    return [
        {"task": "general", "question": f"Repeat this: {sentence}", "answer": sentence, "tag": []}
        for sentence in (rng.choice(sentences), rng.choice(sentences))
    ]


def rows_to_be(world: Path, most_views: int, seed: int) -> tuple[list[dict], dict]:
    """Planned rows, in the order of the world's frames, and the sha256 of their source files.

    Raises:
        FileNotFoundError, ValueError: the folder holds no finished world of this version.
    """
    read_world(world)
    seen = read_json(world / "captions.json")
    frames, digests = read_drivelm([world / "drivelm.json"], drop_object_tags=True, keep_unlabelled=False)
    rows, usual = [], things_shown(seen)
    sentences = {
        split: sorted({qa[part] for frame in of_split for qa in frame["qa"] for part in ("question", "answer")})
        for split, of_split in plan_splits(frames, "auto").items()
    }
    for frame in frames:
        rng = random.Random(f"{seed}-{frame['frame_token']}")
        if frame["frame_token"] not in seen:
            raise ValueError(f"{world}/captions.json lacks the frame {frame['frame_token']}: make the world again")
        captions = seen[frame["frame_token"]]
        if not captions:
            continue
        several = min(rng.randint(1, most_views), len(captions))
        for count in sorted({1, several}):
            cameras = sorted(rng.sample(sorted(captions), count))
            asked = []
            for camera in cameras:
                asked += general_questions(captions[camera], rng, usual[camera], rng.choice(names_of(camera, count)))
            rows.append(
                {
                    "scene_token": frame["scene_token"],
                    "frame_token": f"{frame['frame_token']}/{','.join(cameras)}",
                    "paths": {camera: frame["image_paths"][camera] for camera in cameras},
                    "qa": asked + repetitions(sentences[split_of(frame["scene_token"])], rng),
                }
            )
    return rows, digests


def prepare(*, world: Path, output_dir: Path, most_views: int, seed: int, workers: int) -> dict:
    """Do what the command line asks for, whose options these are; returns the manifest."""
    check_apart(output_dir, {"the --world": world})
    rows, digests = rows_to_be(world, most_views, seed)

    def picture(path: str) -> dict:
        try:
            return {"bytes": usable_image(read_image_file(world, path)), "path": PurePosixPath(path).name}
        except UnusableImage as error:
            raise ValueError(f"{world / path}: {error}") from None

    def make_row(row: dict) -> tuple[dict, dict]:
        pictures = {camera: picture(path) for camera, path in row["paths"].items()}
        made = {name: row[name] for name in ("scene_token", "frame_token", "qa")} | {"scene_description": None}
        return made | {camera: pictures.get(camera) for camera in CAMERAS}, {}

    return write_splits(
        output_dir,
        plan_splits(rows, "auto"),
        make_row,
        source={"json sha256": digests, "world": str(world)},
        options={"format": FORMAT, "most_views": most_views, "seed": seed},
        workers=workers,
        frames_per_shard=1024,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=Path, required=True, help="folder of data_scripts/synthesize_world.py")
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--most-views", type=int, choices=range(1, 7), default=6, help="pictures per row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=whole_number(), default=os.cpu_count() or 1, help="reading threads")
    arguments = parser.parse_args(argv)
    with errors_in_one_line("prepare_captions"):
        manifest = prepare(**vars(arguments))
    print(format_report(manifest))


if __name__ == "__main__":
    with stopped_in_one_line("prepare_captions"):
        main()
