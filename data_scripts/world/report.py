"""What a synthetic world holds: how often each class is seen, how large, and how the answers are spread.

`balance` in `world.json` has one entry per template: {"count", "answers", "top_answer", "top_share"}. The top share is
what a constant answer to every question of the template would score. For templates answered yes or no it must lie near
one half.
"""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from PIL import Image, ImageDraw

from data_scripts.question_types import OBJECT_TAG, question_type
from data_scripts.world.cameras import FULL_WIDTH
from data_scripts.world.scenarios import SCENARIOS
from data_scripts.world.sight import Frame
from data_scripts.world.simulation import Scene
from data_scripts.world.words import CLASSES, DIRECTIONS, PLURALS

_NAMES = sorted([*CLASSES, *PLURALS.values()], key=len, reverse=True)
_DIRECTIONS = sorted(DIRECTIONS.values(), key=len, reverse=True)


def template_of(question: str) -> str:
    """The question with its class, direction and tags blanked out."""
    text = OBJECT_TAG.sub("<c>", question)
    text = re.sub(rf"(?<!ego )(?<!road )\b({'|'.join(_NAMES)})( that (is|are))?\b", "[class]", text)
    return re.sub(rf"to the ({'|'.join(_DIRECTIONS)}) of", "to the [direction] of", text)


def empty_statistics() -> dict:
    counters = ("seen", "frames_with", "heights", "scenes_with", "frames_in")
    return {"scenes": 0, "frames": 0, "answers": {}} | {name: Counter() for name in counters}


def statistics(scene: Scene, frames: list[Frame], questions: list[dict]) -> dict:
    """Counts of one scene, to be added up: `answers` is {task: {template: {answer: count}}}, `heights` are in pixels
    of 96."""
    found = empty_statistics()
    found["scenes"], found["frames"] = 1, len(frames)
    found["scenes_with"].update(scene.scenarios)
    found["frames_in"].update(name for name in (scene.scenario_at(frame.t) for frame in frames) if name)
    answers = defaultdict(lambda: defaultdict(Counter))
    for frame, asked in zip(frames, questions, strict=True):
        found["seen"].update(o.kind for o in frame.seen)
        found["frames_with"].update({o.kind for o in frame.seen})
        found["heights"].update(str(round((o.box[3] - o.box[1]) * 96 / 900)) for o in frame.seen)
        for task, pairs in asked.items():
            for question, answer in pairs:
                answers[task][template_of(question)][OBJECT_TAG.sub("<c>", answer)] += 1
    found["answers"] = answers
    return found


def add_statistics(total: dict, more: dict) -> None:
    for name in ("scenes", "frames"):
        total[name] += more[name]
    for name in ("seen", "frames_with", "heights", "scenes_with", "frames_in"):
        total[name].update(more[name])
    for task, templates in more["answers"].items():
        for template, answers in templates.items():
            total["answers"].setdefault(task, {}).setdefault(template, Counter()).update(answers)


def counts_of(total: dict) -> dict:
    heights = sorted(total["heights"].items(), key=lambda item: int(item[0]))
    middle, passed, median = sum(total["heights"].values()) / 2, 0, 0
    for height, count in heights:
        passed += count
        if passed >= middle:
            median = int(height)
            break
    questions = sum(sum(a.values()) for templates in total["answers"].values() for a in templates.values())
    frames = max(total["frames"], 1)
    return {
        "scenes": total["scenes"],
        "frames": total["frames"],
        "questions": questions,
        "questions_per_frame": round(questions / frames, 1),
        "objects_per_view": round(sum(total["seen"].values()) / frames / len(DIRECTIONS), 2),
        "median_height_of_96": median,
        "share_of_frames_with": {
            kind: round(total["frames_with"][kind] / frames, 2) for kind in (*CLASSES, "traffic light")
        },
        "share_of_scenes_in_scenario": {
            name: round(total["scenes_with"][name] / max(total["scenes"], 1), 3) for name in SCENARIOS
        },
        "share_of_frames_in_scenario": {name: round(total["frames_in"][name] / frames, 3) for name in SCENARIOS},
    }


def balance_of(total: dict) -> dict:
    """{type: {template: {"count", "top_answer", "top_share"}}}, types as in `question_types.py`."""
    balance = {}
    for task, templates in total["answers"].items():
        for template, answers in templates.items():
            answer, top = min(answers.items(), key=lambda item: (-item[1], item[0]))
            count = sum(answers.values())
            entry = {"count": count, "answers": len(answers), "top_answer": answer, "top_share": round(top / count, 3)}
            balance.setdefault(question_type(template, task), {})[template] = entry
    return {kind: dict(sorted(balance[kind].items())) for kind in sorted(balance)}


def print_report(world: dict) -> None:
    counts = world["counts"]
    print(
        f"{counts['scenes']} scenes, {counts['frames']} key frames, {counts['questions']} questions "
        f"({counts['questions_per_frame']} per frame), {counts['objects_per_view']} objects per view, "
        f"median height {counts['median_height_of_96']} of 96 pixels"
    )
    seen = ", ".join(f"{kind} {share:.0%}" for kind, share in counts["share_of_frames_with"].items())
    print(f"frames with: {seen}")
    for what in ("scenes", "frames"):
        shares = counts[f"share_of_{what}_in_scenario"].items()
        print(f"{what} with: {', '.join(f'{name} {share:.1%}' for name, share in shares)}")
    print(f"{'type':12} {'count':>7} {'answers':>7} {'top':>5}  template -> commonest answer")
    for kind, templates in world["balance"].items():
        for template, entry in templates.items():
            text = f"{template[:70]} -> {entry['top_answer'][:50]}"
            print(f"{kind:12} {entry['count']:7} {entry['answers']:7} {entry['top_share']:5.0%}  {text}")


def write_preview(folder: Path, path: Path, frames: int = 4, width: int = 480) -> None:
    """A PNG of frames from all over the world: six views in their places, the tagged objects boxed and named."""
    scenes = list(json.loads((folder / "drivelm.json").read_text(encoding="utf-8")).values())
    height = width * 9 // 16
    sheet = Image.new("RGB", (3 * width, 2 * frames * height))
    for row in range(frames):
        shots = list(scenes[row * len(scenes) // frames]["key_frames"].values())
        frame = shots[len(shots) // 2]
        for place, (camera, file) in enumerate(frame["image_paths"].items()):
            with Image.open(folder / file.removeprefix("../nuscenes/")) as image:
                view = image.resize((width, height), Image.Resampling.BICUBIC)
            draw = ImageDraw.Draw(view)
            for tag, info in frame["key_object_infos"].items():
                if camera in tag.split(","):
                    box = [value * width / FULL_WIDTH for value in info["2d_bbox"]]
                    draw.rectangle(box, outline=(255, 0, 255))
                    name = " ".join(filter(None, (info["Visual_description"], info["Status"])))
                    draw.text((box[0] + 3, max(box[1] - 12, 0)), name, fill=(255, 0, 255))
            sheet.paste(view, (place % 3 * width, (2 * row + place // 3) * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")
    print(f"wrote {path}")
