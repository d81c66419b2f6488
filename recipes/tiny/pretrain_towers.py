"""The demo's stand-ins for downloads: a tokenizer, a tiny SmolVLM, and a tiny pretrained ViT.

python recipes/tiny/pretrain_towers.py --world outputs/demo/world --scenes outputs/demo/scenes \
    --output-dir outputs/demo/base

The ViT plays the part of a tower pretrained on ImageNet, which a user of the real sizes downloads. It gets minutes of
dense supervision from the world's own labels: which classes, and whether moving, stopped or parked, show in each
patch; and of the view as a whole all that its caption names, traffic lights and the arrows on the lane among it.
So the demo's SmolDriver has seen labels of the training scenes, and the demo says nothing about learning to see
from questions alone. The SmolVLM has random weights; with `--both-towers` its vision tower gets the same supervision,
apart from the ViT's, before recipes/sft_qlora.py pretrains the whole on captions (`--captions`: the tokenizer
knows their words too).
"""

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data_scripts.prepare_captions import named
from data_scripts.schema import CAMERAS, load_scenes
from data_scripts.world.folder import read_json, read_world
from data_scripts.world.nuscenes import TABLES, UNSEEN, VERSION
from data_scripts.world.questions import DIRECTIONS
from modeling_smoldriver.inputs_smoldriver import to_rgb
from modeling_smoldriver.optimizer_smoldriver import MuonAdamW, hidden_matrices
from recipes.tiny.tiny_base import (
    IMAGE_SIZE,
    PATCH_SIZE,
    save_with_record,
    scene_texts,
    tiny_tower,
    tiny_vlm,
)
from recipes.tiny.tokenizer import train_tokenizer
from recipes.training.manifest import TrainingManifest
from smoldriver_common.command_line import errors_in_one_line, stopped_in_one_line, whole_number
from smoldriver_common.precision import bfloat16_is_fast

GRID = IMAGE_SIZE // PATCH_SIZE
# Words that always come together get one token: a question is read in half the time.
PHRASES = (
    *("\nQuestion:", "\nAssistant:", " What are objects", " What is the status of the", " Are there", " How many"),
    *(" that is", " that are", " are there", " There is", " There are", " The ego vehicle is"),
    " In this scenario, what are safe actions to take for the ego vehicle",
    " In this scenario, what are dangerous actions to take for the ego vehicle",
    " What is the target action of the ego vehicle",
    " What is the traffic signal that the ego vehicle should pay attention to",
    " Please describe the current scene",
    " Predict the behavior of the ego vehicle",
    *(f" to the {direction} of the ego car" for direction in DIRECTIONS.values()),
)
LEARNING_RATE = 2e-3
MUON_LEARNING_RATE = 5e-3
FRONT_SHARE = 0.4  # of a batch: traffic lights and arrows show in the front view alone
LEAST_STEPS = 20
POSITIVE_WEIGHT = 4.0  # of what shows: most patches and views show none of a kind
RARE_WEIGHT = 25.0  # at most, of what few captions name, as an arrow of one direction
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
        read_world(world)
        tables = {name: json.loads((world / VERSION / f"{name}.json").read_text()) for name in TABLES}
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
            if row["visibility_token"] == UNSEEN:
                continue
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


class CaptionLabels:
    """What a world's captions name in each view: every noun, and every noun with its attribute."""

    def __init__(self, world: Path):
        captions = read_json(world / "captions.json")
        self.named = {
            token: {camera: named(items) for camera, items in views.items()} for token, views in captions.items()
        }
        self.names = sorted(set().union(*(names for views in self.named.values() for names in views.values())))

    def __call__(self, sample_token: str) -> np.ndarray:
        """float32 `(cameras, names)`, NaN for a view without a caption."""
        labels = np.full((len(CAMERAS), len(self.names)), np.nan, dtype=np.float32)
        for camera, names in self.named[sample_token].items():
            labels[CAMERAS.index(camera)] = [name in names for name in self.names]
        return labels


def frame_pixels(row: dict) -> np.ndarray:
    """uint8 `(cameras, IMAGE_SIZE, IMAGE_SIZE, 3)`.

    Raises:
        ValueError: a camera without an image.
    """
    missing = [camera for camera in CAMERAS if row[camera] is None]
    if missing:
        raise ValueError(f"frame {row['frame_token']} has no image of {', '.join(missing)}: prepare the world again")
    return np.stack([np.asarray(to_rgb(row[camera]).resize((IMAGE_SIZE, IMAGE_SIZE))) for camera in CAMERAS])


@dataclass
class Views:
    """What the towers are supervised with."""

    pixels: torch.Tensor  # (views, 3, S, S) uint8
    patches: torch.Tensor  # (views, patches, channels) bool
    names: torch.Tensor  # (views, names) float32, NaN where nobody knows

    @classmethod
    def read(cls, world: Path, scenes, frames: int) -> "Views":
        """The views of evenly spread frames."""
        box_labels, caption_labels = BoxLabels(world), CaptionLabels(world)
        count = min(frames, len(scenes))
        pixels, patches, names = [], [], []
        for row in tqdm(
            scenes.select([index * len(scenes) // count for index in range(count)]), desc="reading frames"
        ):
            pixels.append(frame_pixels(row))
            patches.append(box_labels(row["frame_token"]))
            names.append(caption_labels(row["frame_token"]))
        pixels, patches, names = (torch.from_numpy(np.concatenate(part)) for part in (pixels, patches, names))
        return cls(pixels.permute(0, 3, 1, 2), patches.flatten(1, 2), names)


def name_weights(names: torch.Tensor) -> torch.Tensor:
    """Weight of each name where it shows: as much in all as where it does not, within limits."""
    known = names[~names[:, 0].isnan()]
    named = known.sum(0)
    return ((len(known) - named) / named).clamp(POSITIVE_WEIGHT, RARE_WEIGHT)


def supervision_loss(
    logits: torch.Tensor, patches: torch.Tensor, names: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """`logits` `(views, patches, channels + names)`; what a caption names is where its largest patch logits are."""
    of_patches, of_names = logits.float().split([patches.shape[-1], names.shape[-1]], dim=-1)
    weight = torch.tensor(POSITIVE_WEIGHT)
    loss = F.binary_cross_entropy_with_logits(of_patches, patches.float(), pos_weight=weight)
    known = ~names[:, 0].isnan()
    if not known.any():
        return loss
    of_view = of_names.logsumexp(1) - math.log(of_names.shape[1])
    return loss + F.binary_cross_entropy_with_logits(of_view[known], names[known], pos_weight=weights)


def pretrain(tower, views: Views, steps: int, batch_size: int, seed: int) -> float:
    """Dense supervision of the tower's patch features; returns the mean loss of the last tenth of the steps."""
    torch.manual_seed(seed)
    fast_bfloat16 = bfloat16_is_fast(on_gpu=False)
    if fast_bfloat16:
        # Through sdpa and back takes half of a step here: 26 ms a layer in bfloat16, where eager takes 5.
        tower.set_attn_implementation("eager")
    patches, weights = views.patches.shape[1], name_weights(views.names)
    head = nn.Linear(tower.config.hidden_size, views.patches.shape[-1] + views.names.shape[-1])
    parameters = [*tower.parameters(), *head.parameters()]
    matrices = hidden_matrices(tower)
    hidden = {id(weight) for weight in matrices}
    optimizer = MuonAdamW(
        [{"params": matrices, "muon": True}, {"params": [p for p in parameters if id(p) not in hidden]}],
        dtype=torch.bfloat16 if fast_bfloat16 else torch.float32,
        betas=(0.9, 0.98),
        weight_decay=0.05,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [MUON_LEARNING_RATE, LEARNING_RATE], total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    front = torch.arange(CAMERAS.index("CAM_FRONT"), len(views.pixels), len(CAMERAS))
    generator = torch.Generator().manual_seed(seed)
    last = []
    progress = tqdm(range(steps), desc="pretraining the tower", unit="step")
    for step in progress:
        batch = torch.randint(len(views.pixels), (batch_size,), generator=generator)
        of_front = torch.randint(len(front), (round(FRONT_SHARE * batch_size),), generator=generator)
        batch[: len(of_front)] = front[of_front]
        pictures = views.pixels[batch].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16):
            features = tower(pixel_values=pictures).last_hidden_state[:, -patches:]  # without a ViT's CLS
            logits = head(features)
        loss = supervision_loss(logits, views.patches[batch], views.names[batch], weights)
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


@dataclass(frozen=True)
class PretrainingOptions:
    """Options of the command line."""

    world: Path
    scenes: str
    captions: str | None
    both_towers: bool
    output_dir: Path
    frames: int
    steps: int
    batch_size: int
    seed: int


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", required=True, type=Path, help="folder of data_scripts/synthesize_world.py")
    parser.add_argument("--scenes", required=True, help="the same world as prepared scene rows")
    parser.add_argument("--captions", help="folder of data_scripts/prepare_captions.py, for the tokenizer")
    parser.add_argument("--both-towers", action="store_true", help="pretrain SmolVLM's tower too, not only the ViT")
    parser.add_argument("--output-dir", required=True, type=Path)
    parser.add_argument("--frames", type=whole_number(), default=2500, help="training frames to pretrain on")
    parser.add_argument("--steps", type=whole_number(LEAST_STEPS), default=500, help="a tenth of them are the warm-up")
    parser.add_argument("--batch-size", type=whole_number(), default=96, help="views per step")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    options = PretrainingOptions(**vars(parser.parse_args()))
    with errors_in_one_line("pretrain_towers"):
        make_base(options)


def make_base(options: PretrainingOptions) -> None:
    """Tokenizer, SmolVLM and ViT, pretrained as the options say, with their manifests."""
    started = time.perf_counter()
    scenes = load_scenes(options.scenes, "train")
    tokenizer = make_tokenizer(scenes, options.captions)
    vlm, tower = tiny_vlm(tokenizer, options.seed), tiny_tower(options.seed)
    views = Views.read(options.world, scenes, options.frames)
    towers = {"ViT": tower} | ({"SmolVLM's tower": vlm.model.vision_model} if options.both_towers else {})
    for number, (name, model) in enumerate(towers.items()):
        loss = pretrain(model, views, options.steps, options.batch_size, options.seed + number)
        print(f"{name}: {model.num_parameters():,} weights pretrained, loss {loss:.4f}")
    untrained = TrainingManifest(base=None, scenes=options.scenes, arguments=asdict(options))
    trained = replace(
        untrained,
        scene_tokens=sorted(set(scenes["scene_token"])),
        steps=options.steps,
        seconds=round(time.perf_counter() - started),
    )
    save_with_record(tower, options.output_dir / "tower", trained)
    save_with_record(vlm, options.output_dir / "vlm", trained if options.both_towers else untrained)
    tokenizer.save_pretrained(options.output_dir / "vlm")
    print(
        f"demo base in {options.output_dir}: {len(tokenizer)} tokens, SmolVLM of {vlm.num_parameters():,} weights,"
        f" in {time.perf_counter() - started:.0f} s"
    )


def make_tokenizer(scenes, captions: str | None):
    """A tokenizer of the words of some training frames, and of all captions where there are any."""
    rows = [scenes.select(range(min(1000, len(scenes))))]
    if captions:
        rows.append(load_scenes(captions, "train"))
    texts = (text for part in rows for text in scene_texts(part.select_columns(["scene_description", "qa"])))
    return train_tokenizer(texts, whole=[*CAMERAS, *PHRASES])


if __name__ == "__main__":
    with stopped_in_one_line("pretrain_towers"):
        main()
