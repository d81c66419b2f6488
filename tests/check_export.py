# ruff: noqa: T201 - a script, not a test: what it prints is its report
"""Exported folders against torch: python tests/check_export.py outputs/export outputs/demo/model outputs/demo/scenes

For `make export-check`. Each folder is loaded here for the first time in this process. Prints what it checked.
"""

import sys
from pathlib import Path

import numpy as np

from data_scripts.schema import load_scenes
from recipes.serving.exported import ExportedModel
from recipes.training.loading import load_model

CLOSE = {"float32": 1e-3, "int8": 0.5}  # largest difference of the scene's keys and values, as a share of the largest
SAME = {"float32": 0.99, "int8": 0.7}  # of the answers


def check(folder: Path, model, processor, rows) -> None:
    answering = ExportedModel(folder, threads=1)
    same, asked, furthest = 0, 0, 0.0
    for row in rows:
        images = {camera: row[camera] for camera in processor.cameras}
        questions = [qa["question"] for qa in row["qa"]]
        inputs = processor.encode_scene(images)
        mine, own = answering.encode_scene(**inputs), model.encode_scene(**inputs)
        expected = [states.numpy() for layer in own.layers for states in layer]
        for states, wanted in zip(mine.states, expected, strict=True):
            furthest = max(furthest, float(np.abs(states - wanted).max() / np.abs(wanted).max()))
        answers = answering.answer(mine, processor, questions)
        same += sum(one == other for one, other in zip(answers, model.answer(own, processor, questions), strict=True))
        asked += len(questions)
    precision = answering.settings.precision
    assert furthest <= CLOSE[precision], f"{folder}: keys and values differ by {furthest:.1e} of the largest"
    assert same >= SAME[precision] * asked, f"{folder}: {same} of {asked} answers are the same"
    alone = {"CAM_BACK": rows[0]["CAM_BACK"]}  # another number of views than the graph was traced with
    scene = answering.encode_scene(**processor.encode_scene(alone))
    first = [qa["question"] for qa in rows[0]["qa"]][:1]
    kept = answering.answer(scene, processor, first)
    assert kept == answering.answer(scene, processor, first), f"{folder}: a kept scene answers otherwise"
    print(f"{folder}: {same} of {asked} answers are torch's; keys and values differ by at most {furthest:.1e}")


def main(exports: Path, source: str, scenes: str):
    model, processor = load_model(source)
    rows = load_scenes(scenes, "test")
    rows = [rows[number * len(rows) // 3] for number in range(3)]
    folders = sorted(path.parent for path in exports.glob("*/exported.json"))
    assert folders, f"no export in {exports}"
    for folder in folders:
        check(folder, model, processor, rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
