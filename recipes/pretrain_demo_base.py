"""The demo's stand-ins for downloads: a tokenizer, a tiny SmolVLM with random weights, and a tiny pretrained ViT.

python recipes/pretrain_demo_base.py --world outputs/demo/world --scenes outputs/demo/scenes \
    --output-dir outputs/demo/base

The ViT plays the part of a tower pretrained on ImageNet, which a user of the real sizes downloads. It gets a minute of
dense supervision from the world's own boxes: which classes, and whether moving, stopped or parked, show in each patch.
So the demo's SmolDriver has seen box labels of the training scenes, and the demo says nothing about learning to see
from questions alone.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data_scripts.schema import CAMERAS, load_scenes
from modeling_smoldriver.processing_smoldriver import to_rgb
from recipes.tiny_base import IMAGE_SIZE, PATCH_SIZE, scene_texts, tiny_tower, tiny_vlm, train_tokenizer

GRID = IMAGE_SIZE // PATCH_SIZE
SUBCELLS = 4  # labels are painted at 4 x 4 points a patch
STATUSES = ("moving", "stopped", "parked", "standing", "with_rider")
CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])


def rotation_matrices(quaternions: np.ndarray) -> np.ndarray:
    """Quaternions w-x-y-z `(n, 4)` -> rotations `(n, 3, 3)`."""
    w, x, y, z = quaternions.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


class BoxLabels:
    """What shows in each patch of a key frame's six views, from the nuScenes tables of a world.

    Boxes are painted far to near as rectangles, so that a near one hides what is behind it.
    """

    def __init__(self, world: Path):
        (folder,) = [path for path in world.glob("v1.0-*") if path.is_dir()]
        tables = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
        by_token = {name: {row["token"]: row for row in rows} for name, rows in tables.items()}
        channels = {row["token"]: row["channel"] for row in tables["sensor"]}
        self.cameras = {
            channels[row["sensor_token"]]: (
                rotation_matrices(np.array([row["rotation"]]))[0],
                np.array(row["translation"]),
                np.array(row["camera_intrinsic"]),
            )
            for row in tables["calibrated_sensor"]
            if channels[row["sensor_token"]] in CAMERAS
        }
        self.size = {(row["width"], row["height"]) for row in tables["sample_data"] if row["width"]}.pop()
        self.poses = {}
        for row in tables["sample_data"]:
            if row["is_key_frame"]:
                self.poses[row["sample_token"]] = by_token["ego_pose"][row["ego_pose_token"]]
        self.classes = sorted(row["name"] for row in tables["category"])
        self.channels = [*self.classes, *STATUSES]
        self.boxes = defaultdict(list)
        for row in tables["sample_annotation"]:
            category = by_token["category"][by_token["instance"][row["instance_token"]]["category_token"]]["name"]
            attributes = [by_token["attribute"][token]["name"].split(".")[1] for token in row["attribute_tokens"]]
            marks = [self.channels.index(name) for name in [category, *attributes] if name in self.channels]
            self.boxes[row["sample_token"]].append((row["translation"], row["size"], row["rotation"], marks))

    def __call__(self, sample_token: str) -> np.ndarray:
        """Bool `(cameras, GRID, GRID, channels)` of a key frame.

        Raises:
            ValueError: if the world has no such frame.
        """
        if sample_token not in self.poses:
            raise ValueError(f"the world has no key frame {sample_token}: the scenes were prepared from another world")
        labels = np.zeros((len(CAMERAS), GRID, GRID, len(self.channels)), dtype=bool)
        boxes = self.boxes[sample_token]
        if not boxes:
            return labels
        centres, sizes, turns, marks = zip(*boxes, strict=True)
        corners = CORNERS * np.array(sizes)[:, None, [1, 0, 2]]  # nuScenes sizes are width, length, height
        corners = np.einsum("nij,nkj->nki", rotation_matrices(np.array(turns)), corners) + np.array(centres)[:, None]
        pose = self.poses[sample_token]
        corners = (corners - pose["translation"]) @ rotation_matrices(np.array([pose["rotation"]]))[0]
        width, height = self.size
        points = (np.arange(GRID * SUBCELLS) + 0.5) / (GRID * SUBCELLS)
        for number, camera in enumerate(CAMERAS):
            rotation, translation, intrinsic = self.cameras[camera]
            local = (corners - translation) @ rotation
            seen = (local[..., 2] > 0.3).sum(1) >= 4
            depth = np.maximum(local[..., 2:], 0.3)
            pixels = (local @ intrinsic.T)[..., :2] / depth / [width, height]
            low, high = pixels.min(1), pixels.max(1)
            painted = np.full((len(points), len(points)), -1)
            for index in np.argsort(-local[..., 2].mean(1)):
                if seen[index]:
                    across = (points >= low[index, 0]) & (points <= high[index, 0])
                    down = (points >= low[index, 1]) & (points <= high[index, 1])
                    painted[np.ix_(down, across)] = index
            rows, columns = np.nonzero(painted >= 0)
            for row, column, index in zip(rows, columns, painted[rows, columns], strict=True):
                labels[number, row // SUBCELLS, column // SUBCELLS, marks[index]] = True
        return labels


def frame_pixels(row: dict) -> np.ndarray:
    """uint8 `(cameras, IMAGE_SIZE, IMAGE_SIZE, 3)`."""
    return np.stack([np.asarray(to_rgb(row[camera]).resize((IMAGE_SIZE, IMAGE_SIZE))) for camera in CAMERAS])


def pretrain(tower, scenes, labels: BoxLabels, frames: int, steps: int, batch_size: int, seed: int) -> float:
    """Dense supervision of the tower's patch features; returns the mean loss of the last tenth of the steps."""
    chosen = scenes.select([index * len(scenes) // frames for index in range(min(frames, len(scenes)))])
    pixels, targets = [], []
    for row in tqdm(chosen, desc="reading frames", unit="frame"):
        pixels.append(frame_pixels(row))
        targets.append(labels(row["frame_token"]))
    pixels = torch.from_numpy(np.concatenate(pixels)).permute(0, 3, 1, 2)
    targets = torch.from_numpy(np.concatenate(targets)).flatten(1, 2)  # (view, patch, channel)

    torch.manual_seed(seed)
    head = nn.Linear(tower.config.hidden_size, targets.shape[-1])
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    positive_weight = torch.tensor(4.0)
    last = []
    progress = tqdm(range(steps), desc="pretraining the tower", unit="step")
    for step in progress:
        batch = torch.randint(len(pixels), (batch_size,), generator=generator)
        pictures = pixels[batch].float() / 127.5 - 1
        wanted = targets[batch].float()
        with torch.autocast("cpu", torch.bfloat16):
            features = tower(pictures).last_hidden_state[:, 1:]
            logits = head(features)
        loss = F.binary_cross_entropy_with_logits(logits.float(), wanted, pos_weight=positive_weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step >= steps - max(1, steps // 10):
            last.append(loss.item())
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
    return sum(last) / len(last)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True, type=Path, help="folder of data_scripts/synthesize_world.py")
    parser.add_argument("--scenes", required=True, help="the same world as prepared scene rows")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--frames", type=int, default=2500, help="training frames to pretrain on")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=96, help="views a step")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.perf_counter()
    scenes = load_scenes(arguments.scenes, "train")
    texts = scenes.select_columns(["scene_description", "qa"]).select(range(min(1000, len(scenes))))
    tokenizer = train_tokenizer(scene_texts(texts))
    vlm = tiny_vlm(tokenizer, arguments.seed)
    vlm.save_pretrained(arguments.output_dir / "vlm")
    tokenizer.save_pretrained(arguments.output_dir / "vlm")
    tower = tiny_tower(arguments.seed)
    labels = BoxLabels(arguments.world)
    loss = pretrain(tower, scenes, labels, arguments.frames, arguments.steps, arguments.batch_size, arguments.seed)
    tower.save_pretrained(arguments.output_dir / "tower")
    print(
        f"demo base in {arguments.output_dir}: {len(tokenizer)} tokens, SmolVLM of {vlm.num_parameters():,} random"
        f" weights, ViT of {tower.num_parameters():,} pretrained on boxes (loss {loss:.4f}) in"
        f" {time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
