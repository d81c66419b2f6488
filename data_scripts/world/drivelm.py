"""A synthetic scene in DriveLM's nesting (see `data_scripts/sources/drivelm_json.py`)."""

from data_scripts.world.agents import THINGS
from data_scripts.world.cameras import CAMERAS
from data_scripts.world.nuscenes import image_file, token
from data_scripts.world.sight import Frame, Seen
from data_scripts.world.simulation import Scene

QUESTION_DEFAULTS = {"C": None, "con_up": None, "con_down": None, "cluster": None, "layer": None}


def drivelm_scene(scene: Scene, frames: list[Frame], questions: list[dict]) -> dict:
    """{scene token: scene}, with the questions of each frame by task."""
    key_frames = {}
    for frame, asked in zip(frames, questions, strict=True):
        key_frames[token("sample", scene.seed, scene.index, frame.t)] = {
            "key_object_infos": {o.tag: object_info(o) for o in frame.seen if o.tag},
            "QA": {
                task: [{"Q": question, "A": answer, **QUESTION_DEFAULTS} for question, answer in pairs]
                for task, pairs in asked.items()
            },
            "image_paths": {
                camera: f"../nuscenes/{image_file(scene.seed, scene.index, frame.t, camera)}" for camera in CAMERAS
            },
        }
    content = {"scene_description": scene.description, "key_frames": key_frames}
    return {token("scene", scene.seed, scene.index): content}


def object_info(o: Seen) -> dict:
    category = {"traffic light": "Traffic element", "pedestrian": "Pedestrian"}.get(o.kind, "Vehicle")
    if o.kind in THINGS:
        category = "Traffic element"
    status = None if not o.status else "Moving" if o.status == "moving" else "Stationary"
    return {
        "Category": category,
        "Status": status,
        "Visual_description": f"{o.named.capitalize()}.",
        "2d_bbox": list(o.box),
    }
