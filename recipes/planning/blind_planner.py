"""Planners that see nothing: a perceptron on the ego's own motion, trained on the training split. Controls.

The one that reads the ego's status is AD-MLP's (Zhai et al. 2023, arXiv 2305.10430): best in open loop, since the way
driven says most about the way to come, and lost in closed loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from modeling_smoldriver.planning_smoldriver import imitation_loss
from recipes.metrics.planning.planning_frames import WAYPOINTS
from recipes.planning.ego_rules import BLIND_STATUS, status_features
from recipes.planning.scored_frames import EgoInput, ScoredFrames, load_frames
from smoldriver_common.whole_files import written_whole


@dataclass(frozen=True)
class BlindTraining:
    """How a blind planner is trained; always on the CPU, where the same seed gives the same weights."""

    hidden_size: int = 256
    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    seed: int = 0


class BlindPlanner(nn.Module):
    """Features -> waypoints. `mean` and `deviation` of the training features are kept beside the weights."""

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor, hidden_size: int):
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.layers = nn.Sequential(
            nn.Linear(len(mean), hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, WAYPOINTS * 2),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(batch, features)` -> `(batch, 6, 2)` metres."""
        return self.layers((features - self.mean) / self.deviation).view(-1, WAYPOINTS, 2)

    def save(self, file: Path, rows: Path) -> None:
        """Write the weights; the file also names the folder of rows that they were trained on."""
        with written_whole(file) as aside:
            save_file(self.state_dict(), aside, metadata={"rows": str(rows)})

    @classmethod
    def from_file(cls, file: Path) -> "BlindPlanner":
        weights = load_file(file)
        planner = cls(weights["mean"], weights["deviation"], len(weights["layers.0.bias"]))
        planner.load_state_dict(weights)
        return planner.eval()


class StatusPlanner:
    """The blind planner that knows speed, acceleration, turn rate, 2 s of poses and the command, from its file."""

    def __init__(self, file: Path):
        self.planner = BlindPlanner.from_file(file)

    @torch.no_grad()
    def plan(self, ego: EgoInput) -> np.ndarray:
        """(6, 2) waypoints in metres, ego frame."""
        return self.planner(features_tensor(status_features, [ego]))[0].double().numpy()


def status_planner_file(rows: Path, folder: Path) -> Path:
    """The file of a [`StatusPlanner`] in `folder`, trained on the training split of `rows` where it is not there yet.

    Raises:
        FileNotFoundError, ValueError: see `load_frames`; or the file there was trained on other rows.
    """
    file = folder / "blind.safetensors"
    if not file.is_file():
        train = load_frames(rows, "train")
        train_blind_planner(BLIND_STATUS, status_features, train, BlindTraining()).save(file, rows)
    with safe_open(file, "pt") as opened:
        trained_on = opened.metadata()["rows"]
    if trained_on != str(rows):
        raise ValueError(f"{file} was trained on {trained_on}, not on {rows}: delete it")
    return file


def train_blind_planner(
    name: str, features_of: Callable[[EgoInput], list[float]], train: ScoredFrames, options: BlindTraining
) -> BlindPlanner:
    """A blind planner by the planner's own loss, L1 over the known waypoints.

    Args:
        name: for the progress bar.
        features_of: `speed_features` or `status_features` of ego_rules.py.

    Raises:
        ValueError: no training frame has a future.
    """
    mask = torch.tensor([frame.mask for frame in train.frames])
    useful = mask.any(1)
    if not useful.any():
        raise ValueError("no frame of the training split has a future to learn from")
    features = features_tensor(features_of, train.inputs)[useful]
    future = torch.tensor(np.array([np.asarray(frame.future)[:, :2] for frame in train.frames])).float()[useful]
    mask = mask[useful]
    deviation = features.std(0, correction=0)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(options.seed)
        planner = BlindPlanner(features.mean(0), deviation.where(deviation > 0, 1.0), options.hidden_size)
        optimizer = torch.optim.AdamW(
            planner.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        for _ in tqdm(range(options.steps), desc=f"training {name}", unit="step", leave=False):
            chosen = torch.randint(len(features), (options.batch_size,))
            plans = planner(features[chosen])
            loss = imitation_loss(plans.unsqueeze(1), torch.zeros(len(plans), 1), future[chosen], mask[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return planner.eval()


def features_tensor(features_of: Callable[[EgoInput], list[float]], inputs: list[EgoInput]) -> torch.Tensor:
    """`(frames, features)` float32."""
    return torch.tensor([features_of(ego) for ego in inputs])
