"""Attention over packed frames: a shared prefix followed by branches, one a question, that do not see each other.

Two ways to the same numbers: `block_mask` for transformers' own attention (sdpa, eager, flex_attention), and an attention
of our own that computes the allowed blocks alone. With 170 prefix tokens and 16 branches of 40 tokens the mask lets
29% of the causal scores count; the other 71% are work thrown away.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .scene_smoldriver import shared_attention

PREFIX, PADDING = 0, -1  # segment ids; branches are 1, 2, ...
PACKED_ATTENTION = "smoldriver_packed"


def block_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Who may attend to whom in packed sequences.

    Args:
        segment_ids (`torch.LongTensor` of shape `(batch, length)`): 0 the prefix, 1, 2, ... the branches, -1 padding.

    Returns:
        Bool `(batch, 1, length, length)`: `length**2` bytes a sequence. Padding sees itself, so that no row is empty.
    """
    length = segment_ids.shape[1]
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    position = torch.arange(length, device=segment_ids.device)
    causal = position[:, None] >= position[None, :]
    allowed = causal & ((key == PREFIX) | (key == query)) & (key != PADDING)
    return (allowed | torch.eye(length, dtype=torch.bool, device=segment_ids.device)).unsqueeze(1)


@dataclass
class PackedLayout:
    """Where prefix and branches lie in packed sequences; the integers are the largest of the batch."""

    prefix: int  # prefix tokens
    branches: int  # branches a sequence
    branch: int  # tokens a branch
    branch_index: torch.Tensor  # (batch * branches * branch,) row of each branch token among batch * length tokens
    place: torch.Tensor  # (batch * length,) row of each token among [prefixes, branches]
    shared_bias: torch.Tensor  # (batch, 1, 1, 1, 1, prefix) 0, or -inf where a sequence's prefix is shorter
    own_bias: torch.Tensor  # (branch, branch) causal

    @classmethod
    def from_segments(cls, segment_ids: torch.Tensor, dtype: torch.dtype) -> "PackedLayout":
        """Layout of `segment_ids` (see `block_mask`); each sequence is prefix, branches 1, 2, ... in order, padding."""
        batch, length = segment_ids.shape
        device = segment_ids.device
        branches = int(segment_ids.max())
        segments = torch.arange(branches + 1, device=device)
        counts = (segment_ids[:, :, None] == segments).sum(1)  # (batch, 1 + branches)
        starts = counts.cumsum(1) - counts
        prefix, branch = int(counts[:, 0].max()), int(counts[:, 1:].max())
        offset = torch.arange(branch, device=device)
        row = torch.arange(batch, device=device)[:, None]
        # Beyond the end of a branch its last tokens are repeated: seen by later positions only, which nobody reads;
        inside = torch.minimum(offset, (counts[:, 1:, None] - 1).clamp(min=0))  # (batch, branches, branch)
        # and a branch that a sequence does not have may begin behind its last token.
        in_row = (starts[:, 1:, None] + inside).clamp(max=length - 1)
        branch_index = (row[:, :, None] * length + in_row).flatten()
        position = torch.arange(length, device=device) - starts.gather(1, segment_ids.clamp(min=0))
        in_branch = batch * prefix + (row * branches + segment_ids - 1) * branch + position
        place = torch.where(segment_ids > 0, in_branch, row * prefix + position)
        place = torch.where(segment_ids == PADDING, 0, place).flatten()
        beyond = torch.arange(prefix, device=device) >= counts[:, :1]
        shared_bias = torch.zeros(batch, prefix, dtype=dtype, device=device).masked_fill(beyond, float("-inf"))
        future = offset[:, None] < offset
        own_bias = torch.zeros(branch, branch, dtype=dtype, device=device).masked_fill(future, float("-inf"))
        return cls(prefix, branches, branch, branch_index, place, shared_bias[:, None, None, None, None, :], own_bias)


def packed_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, packing=None, **kwargs):
    """Attention of packed sequences, block by block; sdpa where the batch is not packed.

    Shapes as in transformers: `query` `(batch, heads, length, head_dim)` to `(batch, length, heads, head_dim)`.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    batch, heads, length, head_dim = query.shape
    groups = key.shape[1]

    head = slice(0, packing.prefix)
    prefix_output = F.scaled_dot_product_attention(
        query[:, :, head],
        key[:, :, head],
        value[:, :, head],
        is_causal=True,
        scale=scaling,
        enable_gqa=groups != heads,
    )

    def branches_of(states: torch.Tensor) -> torch.Tensor:  # (batch, branches, branch, heads, head_dim)
        rows = states.transpose(1, 2).reshape(batch * length, -1).index_select(0, packing.branch_index)
        return rows.view(batch, packing.branches, packing.branch, -1, head_dim)

    branch_query = branches_of(query * scaling).view(
        batch, packing.branches, packing.branch, groups, heads // groups, head_dim
    )
    branch_output = shared_attention(
        branch_query.permute(0, 3, 1, 4, 2, 5),
        key[:, :, head],
        value[:, :, head],
        branches_of(key).permute(0, 3, 1, 2, 4),
        branches_of(value).permute(0, 3, 1, 2, 4),
        own_bias=packing.own_bias,
        shared_bias=packing.shared_bias,
    )  # (batch, groups, branches, heads a group, branch, head_dim)
    rows = torch.cat(
        [
            prefix_output.transpose(1, 2).reshape(-1, heads * head_dim),
            branch_output.permute(0, 2, 4, 1, 3, 5).reshape(-1, heads * head_dim),
        ]
    )
    return rows.index_select(0, packing.place).view(batch, length, heads, head_dim), None


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, sdpa_mask)
