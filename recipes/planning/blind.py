"""A planner that sees nothing: command, speed and the way of the last two seconds -> six waypoints.

It is the control of AD-MLP (Zhai et al. 2023, arXiv 2305.10430): best in open loop, for the way driven tells most of
the way to come, and lost in closed loop.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from data_scripts.schema import MOMENTS, load_scenes
from smoldriver_common.shipped import COMMANDS
from smoldriver_common.whole_files import written_whole

HISTORY, FUTURE = MOMENTS["ego_history"], MOMENTS["ego_future"]
INPUTS = 4 * HISTORY + 1 + len(COMMANDS)
SCALE = 10.0  # metres and m/s
WIDTH, STEPS, BATCH, RATE = 256, 3000, 256, 2e-3
SECONDS = 0.5 * torch.arange(1, FUTURE + 1)
COLUMNS = ["ego_history", "ego_history_mask", "ego_future", "ego_future_mask", "speed", "command"]


class BlindPlanner(nn.Module):
    """What it adds to straight on at the speed of now is learned."""

    def __init__(self):
        super().__init__()
        layers = nn.Linear(INPUTS, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 2 * FUTURE)
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(rows, INPUTS) of `inputs_of` -> waypoints (rows, 6, 2) in metres."""
        change = self.layers(inputs).unflatten(-1, (FUTURE, 2)) * SCALE
        straight = inputs[:, 4 * HISTORY, None] * SCALE * SECONDS
        return change + torch.stack([straight, torch.zeros_like(straight)], dim=-1)

    @torch.no_grad()
    def plan(self, history: list, speed: float, command: str | None) -> np.ndarray:
        """(6, 2) waypoints in metres, ego frame.

        Args:
            history: four moments of x, y (m) and yaw (radians) in the ego frame, the oldest first; None: unknown.
            speed: m/s.
            command: of the route; None: withheld.
        """
        return self(inputs_of([history], [speed], [command]))[0].double().numpy()

    @classmethod
    def from_file(cls, path: Path) -> "BlindPlanner":
        planner = cls()
        planner.load_state_dict(load_file(path))
        return planner.eval()

    def save(self, path: Path, rows: Path) -> None:
        """Write the weights; the file also names the rows that they were trained on."""
        with written_whole(path) as aside:
            save_file(self.state_dict(), aside, metadata={"rows": str(rows)})


def rows_of(path: Path) -> str:
    """What a saved planner was trained on."""
    with safe_open(path, "pt") as file:
        return file.metadata()["rows"]


def inputs_of(histories: list, speeds: list, commands: list) -> torch.Tensor:
    """(rows, INPUTS): scaled history with masks, speed, command."""
    rows = []
    for history, speed, command in zip(histories, speeds, commands, strict=True):
        row = []
        for pose in history:
            x, y, yaw = pose or (0.0, 0.0, 0.0)
            row += [x / SCALE, y / SCALE, yaw, float(pose is not None)]
        rows.append([*row, speed / SCALE, *(float(command == name) for name in COMMANDS)])
    return torch.tensor(rows, dtype=torch.float32)


def train_blind_planner(folder: Path, seed: int = 0) -> BlindPlanner:
    """Imitate the experts of a prepared folder's train split: some seconds on a core, and the same for the same seed.

    Raises:
        ValueError: rows without ego motion, or none with a speed and a future.
    """
    rows = load_scenes(folder, "train")
    if "ego_future" not in rows.column_names:
        raise ValueError(f"{folder} has rows without ego motion: make it with data_scripts/prepare_planning.py")
    rows = [row for row in rows.select_columns(COLUMNS) if row["speed"] is not None and any(row["ego_future_mask"])]
    if not rows:
        raise ValueError(f"no row of {folder} has a speed and a future")
    histories = [
        [pose if known else None for pose, known in zip(row["ego_history"], row["ego_history_mask"], strict=True)]
        for row in rows
    ]
    inputs = inputs_of(histories, [row["speed"] for row in rows], [row["command"] for row in rows])
    future = torch.tensor([row["ego_future"] for row in rows], dtype=torch.float32)[..., :2]
    mask = torch.tensor([row["ego_future_mask"] for row in rows]).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fit(BlindPlanner(), inputs, future, mask).eval()


def fit(
    planner: BlindPlanner, inputs: torch.Tensor, future: torch.Tensor, mask: torch.Tensor, steps: int = STEPS
) -> BlindPlanner:
    """So many steps of AdamW on the mean of |dx| + |dy| over the waypoints that are known."""
    optimizer = torch.optim.AdamW(planner.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (BATCH,))
        errors = (planner(inputs[chosen]) - future[chosen]).abs().sum(-1) * mask[chosen]
        loss = errors.sum() / mask[chosen].sum().clamp_min(1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return planner
