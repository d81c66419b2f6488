# ruff: noqa: T201 - a script, not a test: what it prints is its report
"""Checks a synthetic world against the official nuscenes-devkit, which needs numpy < 2 and so its own environment.

    pip install -r tests/devkit-requirements.txt
    PYTHONPATH=. python tests/check_devkit.py outputs/demo/world

The devkit loads the tables, lists scenes and samples, draws them, and projects the annotated boxes into the pictures
with its own functions. It evaluates the ground truth as if it were a result: detection and tracking must score 1.0.
Its poses and boxes are compared with the motion in a planner's rows. Beside it the same frames are rendered again,
with the buffer that names the object of each pixel: the picture must equal the file, and the pixels of each object
must lie in, and fill, the box that the devkit projects.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.utils import quaternion_yaw
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.eval.tracking.evaluate import TrackingEval
from nuscenes.eval.tracking.utils import category_to_tracking_name
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import BoxVisibility, points_in_box, view_points
from PIL import Image
from pyquaternion import Quaternion

from data_scripts.sources.nuscenes_tables import STEP, NuScenesTables
from data_scripts.world.cameras import CAMERAS, FULL_HEIGHT, FULL_WIDTH
from data_scripts.world.ground import GroundMap
from data_scripts.world.lidar import LIDAR
from data_scripts.world.nuscenes import SPLIT, VERSION, token
from data_scripts.world.render import Renderer
from data_scripts.world.simulation import SAMPLE_SECONDS, SAMPLES_PER_SCENE, simulate_scene

MARGIN = 6.0  # pixels of 1600: more than one of the id buffer
MIN_PIXELS = 2000.0  # of 1600x900


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", type=Path)
    parser.add_argument("--scenes", type=int, default=12, help="how many scenes to render again")
    args = parser.parse_args()
    if not (args.world / "world.json").is_file():
        sys.exit(f"check_devkit: {args.world} is not a finished world")
    options = json.loads((args.world / "world.json").read_text())["options"]

    matplotlib.use("Agg")  # draw to files, without a display
    nusc = NuScenes(version=VERSION, dataroot=str(args.world), verbose=False)
    print(f"loaded: {len(nusc.scene)} scenes, {len(nusc.sample)} samples, {len(nusc.sample_annotation)} annotations")
    check_listings(nusc)
    check_chains(nusc)
    check_velocities(nusc, options)
    check_points(nusc)
    check_drawing(nusc)
    check_evaluation(nusc, args.world)
    check_ego_motion(nusc, args.world)
    check_boxes(nusc, options, min(args.scenes, options["scenes"]))
    print("the devkit reads the world: all checks passed")


def check_listings(nusc: NuScenes) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        nusc.list_scenes()
        nusc.list_sample(nusc.sample[0]["token"])
        nusc.list_categories()
        nusc.list_attributes()
    text = out.getvalue()
    assert nusc.scene[0]["name"] in text and "CAM_FRONT" in text and "vehicle.car" in text, "a listing is incomplete"
    print("listings work")


@contextlib.contextmanager
def quiet():
    """Drops what the devkit prints, its progress bars among it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def check_chains(nusc: NuScenes) -> None:
    """prev and next agree, scenes and instances hold as many records as they say, each sample has six pictures and
    the lidar's points, with the pose of its own moment."""
    for table, chain in (("sample", nusc.sample), ("sample_data", nusc.sample_data), ("ann", nusc.sample_annotation)):
        name = {"ann": "sample_annotation"}.get(table, table)
        for record in chain:
            if record["next"]:
                assert nusc.get(name, record["next"])["prev"] == record["token"], f"broken chain in {name}"
    for scene in nusc.scene:
        count, sample = 1, nusc.get("sample", scene["first_sample_token"])
        while sample["next"]:
            later = nusc.get("sample", sample["next"])
            assert later["timestamp"] > sample["timestamp"], "time runs backwards"
            count, sample = count + 1, later
        assert (count, sample["token"]) == (scene["nbr_samples"], scene["last_sample_token"]), scene["name"]
    for instance in nusc.instance:
        count, annotation = 1, nusc.get("sample_annotation", instance["first_annotation_token"])
        while annotation["next"]:
            count, annotation = count + 1, nusc.get("sample_annotation", annotation["next"])
        assert (count, annotation["token"]) == (instance["nbr_annotations"], instance["last_annotation_token"])
    for sample in nusc.sample:
        assert sorted(sample["data"]) == sorted((*CAMERAS, LIDAR)), "a sample lacks a sensor"
        pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"][LIDAR])["ego_pose_token"])
        assert pose["timestamp"] == sample["timestamp"], "the lidar's pose is of another moment"
    print("all chains of prev and next are whole")


def check_velocities(nusc: NuScenes, options: dict) -> None:
    """The devkit knows the velocity of every box, where key frames are dense enough for it. It is 0 for what is
    parked, and points forward for most of what moves."""
    forward, unknown = [], 0
    for annotation in nusc.sample_annotation:
        velocity = nusc.box_velocity(annotation["token"])
        if np.isnan(velocity).any():
            unknown += 1
            continue
        names = {nusc.get("attribute", attribute)["name"] for attribute in annotation["attribute_tokens"]}
        if "vehicle.parked" in names:
            assert np.linalg.norm(velocity) < 1e-6, f"a parked vehicle moves: {velocity}"
        elif "vehicle.moving" in names and np.linalg.norm(velocity) > 1.0:
            heading = nusc.get_box(annotation["token"]).orientation.rotate(np.array([1.0, 0.0, 0.0]))
            forward.append(float(heading @ velocity / np.linalg.norm(velocity)))
    if options["frames_every"] * SAMPLE_SECONDS <= 1.5:
        assert unknown == 0, f"{unknown} of {len(nusc.sample_annotation)} velocities are NaN"
        assert np.mean(np.array(forward) > 0.7) > 0.97, "moving vehicles do not head where they drive"
    print(
        f"velocities: {unknown} of {len(nusc.sample_annotation)} are NaN; they agree with headings and attributes "
        f"({len(forward)} moving vehicles)"
    )


def check_points(nusc: NuScenes) -> None:
    """The devkit finds the counted points in each box. It counts points on the ground below a box too."""
    counted = found = 0
    samples = nusc.sample[:: max(1, len(nusc.sample) // 40)]
    for sample in samples:
        path, boxes, _ = nusc.get_sample_data(sample["data"][LIDAR])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            row = nusc.get("sample_annotation", box.token)
            inside = int(points_in_box(box, points, wlh_factor=1.05).sum())
            assert inside >= row["num_lidar_pts"], (
                f"{box.name} counts {row['num_lidar_pts']} points, {inside} are there"
            )
            counted, found = counted + row["num_lidar_pts"], found + inside
    assert counted > 0, "no box holds a lidar point"
    print(f"{counted} lidar points counted in the boxes of {len(samples)} samples; the devkit finds {found} there")


def check_drawing(nusc: NuScenes) -> None:
    """The devkit's own pictures of a sample, its data, its points, and the way of an instance."""
    sample = nusc.sample[len(nusc.sample) // 2]
    seen = next(row for row in sample["anns"] if nusc.get("sample_annotation", row)["visibility_token"] == "4")
    instance = nusc.get("sample_annotation", seen)["instance_token"]
    drawings = {
        "sample": lambda path: nusc.render_sample(sample["token"], out_path=path, verbose=False),
        "camera": lambda path: nusc.render_sample_data(sample["data"]["CAM_FRONT"], out_path=path, verbose=False),
        "lidar": lambda path: nusc.render_sample_data(sample["data"][LIDAR], out_path=path, verbose=False),
        "points": lambda path: nusc.render_pointcloud_in_image(sample["token"], out_path=path, verbose=False),
        "annotation": lambda path: nusc.render_annotation(seen, out_path=path),
        "instance": lambda path: nusc.render_instance(instance, out_path=path),
        "ego poses": lambda path: nusc.render_egoposes_on_map(nusc.log[0]["location"], out_path=path),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, draw in drawings.items():
            path = Path(folder) / f"{name}.png"
            with quiet():
                draw(str(path))
            matplotlib.pyplot.close("all")
            assert path.stat().st_size > 0, f"the devkit drew nothing for {name}"
    print(f"the devkit draws {', '.join(drawings)}")


def check_evaluation(nusc: NuScenes, world: Path) -> None:
    """The ground truth with points, given as a result, scores 1.0."""
    meta = {"use_camera": True, "use_lidar": True, "use_radar": False, "use_map": False, "use_external": False}
    with tempfile.TemporaryDirectory() as folder, quiet():
        path, out = Path(folder) / "result.json", f"{folder}/out"
        path.write_text(json.dumps({"meta": meta, "results": detections(nusc)}))
        config = config_factory("detection_cvpr_2019")
        detection = DetectionEval(nusc, config, str(path), SPLIT, out, verbose=False).main(render_curves=False)
        path.write_text(json.dumps({"meta": meta, "results": tracks(nusc)}))
        config = config_factory("tracking_nips_2019")
        tracking = TrackingEval(config, str(path), SPLIT, out, VERSION, str(world), verbose=False)
        tracking = tracking.main(render_curves=False)
    scored = [name for name, value in tracking["label_metrics"]["amota"].items() if not np.isnan(value)]
    print(
        f"ground truth as a result: mAP {detection['mean_ap']:.4f}, NDS {detection['nd_score']:.4f}, "
        f"AMOTA {tracking['amota']:.4f} ({len(scored)} of 7 classes have tracks)"
    )
    for name, value in (("mAP", detection["mean_ap"]), ("NDS", detection["nd_score"]), ("AMOTA", tracking["amota"])):
        assert abs(value - 1.0) < 1e-6, f"{name} of the ground truth is {value}"


def detections(nusc: NuScenes) -> dict[str, list[dict]]:
    """The boxes with lidar points as a detector's result."""
    return {
        sample["token"]: [
            box_of(nusc, row)
            | {
                "detection_name": category_to_detection_name(row["category_name"]),
                "detection_score": 1.0,
                "attribute_name": "".join(nusc.get("attribute", name)["name"] for name in row["attribute_tokens"]),
            }
            for row in boxes_with_points(nusc, sample)
        ]
        for sample in nusc.sample
    }


def tracks(nusc: NuScenes) -> dict[str, list[dict]]:
    """The boxes with lidar points as a tracker's result."""
    return {
        sample["token"]: [
            box_of(nusc, row)
            | {
                "tracking_id": row["instance_token"],
                "tracking_name": category_to_tracking_name(row["category_name"]),
                "tracking_score": 1.0,
            }
            for row in boxes_with_points(nusc, sample)
            if category_to_tracking_name(row["category_name"]) is not None
        ]
        for sample in nusc.sample
    }


def boxes_with_points(nusc: NuScenes, sample: dict) -> list[dict]:
    rows = [nusc.get("sample_annotation", name) for name in sample["anns"]]
    return [row for row in rows if row["num_lidar_pts"] > 0]


def box_of(nusc: NuScenes, row: dict) -> dict:
    fields = {name: row[name] for name in ("sample_token", "translation", "size", "rotation")}
    return fields | {"velocity": nusc.box_velocity(row["token"])[:2].tolist()}


def check_ego_motion(nusc: NuScenes, world: Path) -> None:
    """The planning columns of every key frame are the devkit's own poses to 1 mm and end with the scene."""
    tables, worst, compared = NuScenesTables(world), 0.0, 0
    gap = (nusc.sample[1]["timestamp"] - nusc.sample[0]["timestamp"]) / 1e6
    every = round(gap / STEP)  # moments from one key frame to the next

    def pose_of(sample: dict) -> dict:
        return nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["CAM_FRONT"])["ego_pose_token"])

    def difference(now: dict, there: dict, pose: tuple) -> float:
        turn = Quaternion(now["rotation"]).inverse
        x, y, _ = turn.rotate(np.array(there["translation"]) - np.array(now["translation"]))
        yaw = quaternion_yaw(turn * Quaternion(there["rotation"])) - pose[2]
        return max(abs(x - pose[0]), abs(y - pose[1]), abs(np.arctan2(np.sin(yaw), np.cos(yaw))))

    for sample in nusc.sample:
        motion, now = tables.motion(sample["token"]), pose_of(sample)
        for link, columns, mask in (
            ("next", motion.future, motion.future_mask),
            ("prev", motion.history[::-1], motion.history_mask[::-1]),
        ):
            other, step = sample, 0
            while other[link] and (step := step + every) <= len(columns):
                other = nusc.get("sample", other[link])
                assert mask[step - 1], f"sample {sample['token']} lacks moment {step} ({link})"
                worst, compared = max(worst, difference(now, pose_of(other), columns[step - 1])), compared + 1
            assert every > 1 or not any(mask[step:]), f"{sample['token']} runs beyond its scene ({link})"
        boxes = [nusc.get("sample_annotation", token) for token in sample["anns"]]
        for box, agent in zip(boxes, motion.agents, strict=True):
            assert box["category_name"] == agent.category, f"an agent of {sample['token']} has another category"
            worst = max(worst, difference(now, box, agent.poses[0]))
            assert list(agent.size) == box["size"], f"an agent of {sample['token']} has another size"
    print(f"ego motion and agents are the devkit's: {compared} moments, largest difference {worst:.1e} m or rad")
    assert compared and worst <= 1e-3, "the planning columns are not the devkit's poses"


def check_boxes(nusc: NuScenes, options: dict, scenes: int) -> None:
    width, height = options["image_size"]
    renderer = Renderer(width, height)
    scale = np.array([FULL_WIDTH / width, FULL_HEIGHT / height])
    overlaps, inside, difference, too_near = [], [], 0.0, 0
    for index in range(scenes):
        scene = simulate_scene(options["seed"], index)
        ground = GroundMap(scene)
        for t in range(0, SAMPLES_PER_SCENE, options["frames_every"]):
            images, look = renderer.render(scene, ground, t)
            sample = nusc.get("sample", token("sample", options["seed"], index, t))
            for camera, name in enumerate(CAMERAS):
                path, boxes, intrinsic = nusc.get_sample_data(sample["data"][name], box_vis_level=BoxVisibility.ANY)
                with Image.open(path) as file:
                    stored, drawn = np.asarray(file, dtype=float), np.asarray(images[camera], dtype=float)
                difference = max(difference, float(np.abs(stored - drawn).mean()))
                boxes = {box.token: box for box in boxes}
                for n, (what, agent) in enumerate(look.sources):
                    if what != "agent" or look.pixels[camera, n] < MIN_PIXELS:
                        continue
                    rows, columns = np.nonzero(look.ids[camera] == n + 1)
                    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * 5.0
                    box = boxes.get(token("sample_annotation", options["seed"], index, t, agent))
                    if box is None:  # so near that all corners are outside of the picture, or some behind the camera
                        too_near += 1
                        continue
                    points = view_points(box.corners(), intrinsic, normalize=True)[:2].T * scale
                    low, high = points.min(axis=0).clip(0), points.max(axis=0).clip(0, (FULL_WIDTH, FULL_HEIGHT))
                    inside.append((seen[:2] >= low - MARGIN).all() and (seen[2:] <= high + MARGIN).all())
                    shared = np.prod(np.minimum(seen[2:], high) - np.maximum(seen[:2], low))
                    union = np.prod(seen[2:] - seen[:2]) + np.prod(high - low) - shared
                    if nusc.get("sample_annotation", box.token)["visibility_token"] == "4":
                        overlaps.append(shared / union)
    print(
        f"{len(inside)} views of objects ({too_near} more are too near for the devkit) in {scenes} scenes: "
        f"{np.mean(inside):.1%} inside the devkit's projected box; "
        f"{len(overlaps)} in full view fill it with a mean overlap (IoU) of {np.mean(overlaps):.2f}, "
        f"{np.mean(np.array(overlaps) > 0.5):.1%} above 0.5; pictures differ from the files by {difference:.1f} of 255"
    )
    assert difference < 6.0, "the stored pictures are not those of this world"
    assert np.mean(inside) > 0.99, "rendered objects lie outside the annotated boxes"
    assert np.mean(overlaps) > 0.7, "rendered objects do not fill the annotated boxes"


if __name__ == "__main__":
    main()
