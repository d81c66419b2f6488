"""SmolDriver's resampler: elastic queries that read any patch grid, with one set of weights per camera.

The cross-attention from learned queries is that of the Matryoshka Query Transformer (arXiv:2405.19315). Its smaller
budgets are a prefix of the queries, which in raster order would drop the lower part of the picture. Here a smaller
budget is the same query grid at a coarser resolution.
"""

import re

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_smoldriver import SmolDriverVisionConfig
from .scene_smoldriver import weights_fingerprint

FORMER_NAMES = {
    "q_proj": "camera_query",
    "k_proj": "camera_key",
    "v_proj": "camera_value",
    "out_proj": "camera_output",
}
"""Names that the grouped layers had in older checkpoints. Adapters look for `q_proj` by name and take plain linear
layers only, so the resampler keeps those names free."""

FORMER_KEYS = {rf"\bresampler\.{former}\.": f"resampler.{name}." for former, name in FORMER_NAMES.items()}
"""Pattern of a weight's former name -> what replaces it; the form of `from_pretrained`'s `key_mapping`."""


def present_name(key: str) -> str:
    """The name that a weight of an older checkpoint has today."""
    for pattern, replacement in FORMER_KEYS.items():
        key = re.sub(pattern, replacement, key)
    return key


def resize_grid(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Resample square maps of shape `(n, h, w, c)` to `(n, side, side, c)`: area means, or bilinear to grow."""
    if grid.shape[1] == side:
        return grid
    channels_first = grid.permute(0, 3, 1, 2)
    if side < grid.shape[1]:
        resized = F.adaptive_avg_pool2d(channels_first, side)
    else:
        resized = F.interpolate(channels_first, size=(side, side), mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)


def grid_positions(side: int, reference_side: int, channels: int, like: torch.Tensor) -> torch.Tensor:
    """Sine-cosine positions `(side * side, channels)` of the cell centres of a square grid.

    Coordinates are always those of the reference grid: equal places in the picture get equal positions at every budget
    and on every patch grid.
    """
    centres = (torch.arange(side, device=like.device, dtype=torch.float32) + 0.5) * (reference_side / side)
    frequencies = torch.arange(channels // 4, device=like.device, dtype=torch.float32) / (channels // 4)
    angles = centres[:, None] / 10000**frequencies  # (side, channels / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (side, channels / 2)
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=-1).reshape(side * side, channels).to(like.dtype)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention over `(batch, heads, length, head_dim)`; returns `(batch, length, heads, head_dim)`, weights."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class CameraLinear(nn.Module):
    """One linear layer per camera, applied to views grouped by camera in a single batched product."""

    def __init__(self, cameras: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cameras, width, width))
        self.bias = nn.Parameter(torch.empty(cameras, width))

    def forward(self, hidden: torch.Tensor, cameras: torch.Tensor | None) -> torch.Tensor:
        """`hidden` `(present cameras, tokens, width)`; `cameras` are the ids of those present, None for all."""
        weight, bias = (self.weight, self.bias) if cameras is None else (self.weight[cameras], self.bias[cameras])
        return torch.baddbmm(bias[:, None], hidden, weight.transpose(1, 2))


class CameraLayerNorm(nn.Module):
    """Layer normalisation with its own scale and shift per camera."""

    def __init__(self, cameras: int, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(cameras, width))
        self.bias = nn.Parameter(torch.empty(cameras, width))

    def forward(self, hidden: torch.Tensor, cameras: torch.Tensor | None) -> torch.Tensor:
        weight, bias = (self.weight, self.bias) if cameras is None else (self.weight[cameras], self.bias[cameras])
        return F.layer_norm(hidden, hidden.shape[-1:], eps=self.eps) * weight[:, None] + bias[:, None]


class SmolDriverResampler(nn.Module):
    """Reads a view's patch features into `side * side` visual tokens with the queries of that view's camera."""

    def __init__(self, config: SmolDriverVisionConfig):
        super().__init__()
        self.config = config
        cameras, width = len(config.cameras), config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = width // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.query = nn.Parameter(torch.empty(cameras, config.grid_size, config.grid_size, width))
        self.query_norm = CameraLayerNorm(cameras, width, config.layer_norm_eps)
        self.feature_norm = CameraLayerNorm(cameras, width, config.layer_norm_eps)
        self.camera_query = CameraLinear(cameras, width)
        self.camera_key = CameraLinear(cameras, width)
        self.camera_value = CameraLinear(cameras, width)
        self.camera_output = CameraLinear(cameras, width)
        self.output_norm = CameraLayerNorm(cameras, width, config.layer_norm_eps)
        self._reused: tuple[int, dict] | None = None  # (fingerprint of the weights, attention by grid and dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Reads older checkpoints too: whoever calls `load_state_dict` (PEFT, trainers) knows no `key_mapping`."""
        for former, name in FORMER_NAMES.items():
            for kind in ("weight", "bias"):
                if (key := f"{prefix}{former}.{kind}") in state_dict:
                    state_dict[f"{prefix}{name}.{kind}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, features: torch.Tensor, camera_ids: torch.Tensor, side: int) -> torch.Tensor:
        """
        Args:
            features (`torch.Tensor` of shape `(views, height, width, channels)`): patch features, a square grid.
            camera_ids (`torch.LongTensor` of shape `(views,)`): each view's camera.
            side (`int`): side of the output grid; the full budget is `config.grid_size`.

        Returns:
            `torch.Tensor` of shape `(views, side * side, channels)`, in raster order, dtype of `features`.
        """
        # (camera, views per camera, height, width, channels)
        groups, slots, cameras = self._group(features, camera_ids)
        count, per_camera, patch_side = groups.shape[:3]
        patches, channels = patch_side * patch_side, groups.shape[-1]

        normed = self.feature_norm(groups.reshape(count, -1, channels), cameras)
        value = self.camera_value(normed, cameras)
        value = value.view(count, per_camera, patches, self.num_heads, self.head_dim).transpose(2, 3)
        if self.config.resampler_keys == "content":
            query = self._queries(side, cameras, features)
            key = normed.view(count, per_camera, patches, channels)
            key = key + grid_positions(patch_side, self.config.grid_size, channels, features)
            key = self.camera_key(key.view(count, -1, channels), cameras)
            output = self._attend(query, key, value)
        else:
            output = torch.matmul(self._fixed_attention(side, patch_side, cameras, features)[:, None], value)
            output = output.transpose(2, 3)
        output = output.reshape(count, -1, channels)  # (camera, views per camera * queries, channels)
        output = self.camera_output(output, cameras)
        if self.config.resampler_residual:
            aligned = resize_grid(groups.reshape(count * per_camera, patch_side, patch_side, channels), side)
            output = output + aligned.reshape(output.shape)
        output = self.output_norm(output, cameras)
        return output.view(count * per_camera, side * side, channels)[slots]

    def _group(self, features: torch.Tensor, camera_ids: torch.Tensor):
        """Views by camera, padded to the largest group: `(groups, each view's row in them, ids of the cameras)`.

        A compiled or exported graph cannot have shapes that depend on `camera_ids`: there each view is its own group.
        """
        if torch.compiler.is_compiling():
            return features.unsqueeze(1), torch.arange(camera_ids.shape[0], device=camera_ids.device), camera_ids
        counts = torch.bincount(camera_ids, minlength=len(self.config.cameras))
        present = counts.nonzero().flatten()
        per_camera = int(counts.max())
        rank = torch.arange(len(camera_ids), device=camera_ids.device)
        order = camera_ids.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        rank = rank.new_empty(len(camera_ids)).scatter_(0, order, rank - starts[camera_ids[order]])
        group_of = torch.full_like(counts, -1).scatter_(0, present, torch.arange(len(present), device=counts.device))
        slots = group_of[camera_ids] * per_camera + rank
        groups = features.new_zeros(len(present) * per_camera, *features.shape[1:]).index_copy(0, slots, features)
        cameras = None if len(present) == len(self.config.cameras) else present
        return groups.view(len(present), per_camera, *features.shape[1:]), slots, cameras

    def _queries(self, side: int, cameras: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """`(camera, side * side, channels)`."""
        query = self.query if cameras is None else self.query[cameras]
        query = resize_grid(query, side).flatten(1, 2)
        query = self.query_norm(query, cameras) + grid_positions(side, self.config.grid_size, query.shape[-1], like)
        return self.camera_query(query, cameras)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Cross-attention of each view's queries to its patches.

        `query` `(camera, queries, channels)`, `key` `(camera, views per camera * patches, channels)`, `value`
        `(camera, views per camera, heads, patches, head_dim)` -> `(camera * views per camera, queries, heads,
        head_dim)`.
        """
        count, per_camera, _, patches, _ = value.shape
        key = key.view(count, per_camera, patches, self.num_heads, self.head_dim).transpose(2, 3)
        query = query.view(count, 1, -1, self.num_heads, self.head_dim).transpose(2, 3)
        query = query.expand(-1, per_camera, -1, -1, -1)
        attention = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attention = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        output, _ = attention(
            self, query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), None, scaling=self.scaling
        )
        return output

    def _fixed_attention(
        self, side: int, patch_side: int, cameras: torch.Tensor | None, like: torch.Tensor
    ) -> torch.Tensor:
        """Attention of position keys, `(camera, heads, queries, patches)`: the same for every picture.

        At inference it is computed once per budget and patch grid, for all cameras, and kept until a weight changes.
        In bfloat16 that takes 100 MB at the full budget of SmolVLM2-2.2B's dimensions.
        """
        if torch.compiler.is_compiling():
            return self._position_attention(side, patch_side, cameras, like)
        if self.training or torch.is_grad_enabled():
            self._reused = None
            return self._position_attention(side, patch_side, cameras, like)
        weights, reused = weights_fingerprint(self), self._reused  # another thread may replace it
        if reused is None or reused[0] != weights:
            reused = self._reused = (weights, {})
        kept, which = reused[1], (side, patch_side, like.dtype)
        if which not in kept:
            kept[which] = self._position_attention(side, patch_side, None, like)
        return kept[which] if cameras is None else kept[which][cameras]

    def _position_attention(
        self, side: int, patch_side: int, cameras: torch.Tensor | None, like: torch.Tensor
    ) -> torch.Tensor:
        query = self._queries(side, cameras, like)
        key = grid_positions(patch_side, self.config.grid_size, query.shape[-1], like)
        key = self.camera_key(self.feature_norm(key.expand(len(query), -1, -1), cameras), cameras)
        query, key = (
            states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for states in (query * self.scaling, key)
        )
        weights = torch.matmul(query, key.transpose(2, 3))
        return F.softmax(weights, dim=-1, dtype=torch.float32).to(like.dtype)
