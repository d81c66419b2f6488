"""Attention over packs: a shared prefix followed by branches, one per question, that do not see each other.

Three ways to the same numbers: `block_mask` for transformers' own sdpa and eager attention, `flex_block_mask` for its
flex_attention, and an attention of our own that computes the allowed blocks alone. With 170 prefix tokens and 16
branches of 40 tokens those are a fifth of all scores.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .scene_smoldriver import shared_attention

PREFIX, PADDING = 0, -1  # segment ids; branches are 1, 2, ...
PACKED_ATTENTION = "smoldriver_packed"
GROUP_SIZE = 4  # branches that are padded to a common length


def block_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Who may attend to whom in packs.

    Example: three prefix tokens, branches of two tokens each, one token of padding. A row is the token that attends.

        segment   0 0 0 1 1 2 2 -1
            0     x . . . . . .  .
            0     x x . . . . .  .
            0     x x x . . . .  .
            1     x x x x . . .  .
            1     x x x x x . .  .
            2     x x x . . x .  .    branch 2 sees the prefix and itself, not branch 1
            2     x x x . . x x  .
           -1     x x x . . . .  x    so that no row is empty; its output is dropped

    Args:
        segment_ids (`torch.LongTensor` of shape `(batch, length)`): 0 the prefix, 1, 2, ... the branches, -1 padding.

    Returns:
        Bool `(batch, 1, length, length)`, `length**2` bytes per pack.
    """
    length = segment_ids.shape[1]
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    position = torch.arange(length, device=segment_ids.device)
    causal = position[:, None] >= position[None, :]
    allowed = causal & ((key == PREFIX) | (key == query)) & (key != PADDING)
    return (allowed | torch.eye(length, dtype=torch.bool, device=segment_ids.device)).unsqueeze(1)


def flex_block_mask(segment_ids: torch.Tensor) -> BlockMask:
    """`block_mask` for flex_attention, which skips tiles of 128 x 128 positions that nobody may attend to.

    It keeps 16 bytes per tile, about `length**2 / 1000` bytes per pack. Making it takes `length**2` bytes.
    """

    def mask_mod(batch, head, query, key):
        own, other = segment_ids[batch, query], segment_ids[batch, key]
        return ((query >= key) & ((other == PREFIX) | (other == own)) & (other != PADDING)) | (query == key)

    batch, length = segment_ids.shape
    return create_block_mask(mask_mod, batch, None, length, length, device=segment_ids.device)


def packed_mask(segment_ids: torch.Tensor, attention: str) -> torch.Tensor | BlockMask:
    """The mask of packs that a model with this `attn_implementation` takes."""
    return flex_block_mask(segment_ids) if attention == "flex_attention" else block_mask(segment_ids)


@dataclass
class BranchGroup:
    """Branches of about equal length, `branches` of each pack, padded to the longest."""

    branches: int
    branch: int  # tokens
    index: torch.Tensor  # (batch * branches * branch,) row of each branch token among batch * length tokens
    own_bias: torch.Tensor  # (branch, branch) causal


@dataclass
class PackedLayout:
    """Where prefix and branches lie in packs."""

    prefix: int  # tokens of the longest prefix
    groups: list[BranchGroup]
    place: torch.Tensor  # (batch * length,) row of each token among [prefixes, groups of branches]
    shared_bias: torch.Tensor | None  # (batch, 1, 1, 1, 1, prefix) -inf beyond a shorter prefix; None without one

    @classmethod
    def from_segments(cls, segment_ids: torch.Tensor, dtype: torch.dtype) -> "PackedLayout":
        """Layout of `segment_ids` (see `block_mask`); a pack is prefix, branches 1, 2, ... in order, padding."""
        batch, length = segment_ids.shape
        device = segment_ids.device
        segments = torch.arange(int(segment_ids.max()) + 1, device=device)
        counts = (segment_ids[:, :, None] == segments).sum(1)  # (batch, 1 + branches)
        starts = counts.cumsum(1) - counts
        row = torch.arange(batch, device=device)[:, None]
        position = torch.arange(length, device=device) - starts.gather(1, segment_ids.clamp(min=0))

        prefix = int(counts[:, 0].max())
        place = row * prefix + position
        rows = batch * prefix
        # The longest branches go together, so that little is computed for padding.
        by_length = counts[:, 1:].argsort(dim=1, descending=True, stable=True) + 1
        groups = []
        for chosen in by_length.split(GROUP_SIZE, dim=1):  # (batch, branches) segment ids
            counted = counts.gather(1, chosen)
            branches, branch = chosen.shape[1], int(counted.max())
            offset = torch.arange(branch, device=device)
            # Short branches are padded with their last token. Only other padding sees it, and its output is dropped.
            inside = torch.minimum(offset, (counted[:, :, None] - 1).clamp(min=0))  # (batch, branches, branch)
            # A branch that a pack does not have may begin behind the pack's last token.
            in_row = (starts.gather(1, chosen)[:, :, None] + inside).clamp(max=length - 1)
            own_bias = torch.zeros(branch, branch, dtype=dtype, device=device)
            own_bias.masked_fill_(offset[:, None] < offset, float("-inf"))
            groups.append(BranchGroup(branches, branch, (row[:, :, None] * length + in_row).flatten(), own_bias))

            found = segment_ids[:, :, None] == chosen[:, None]  # (batch, length, branches)
            in_group = (row * branches + found.int().argmax(-1)) * branch + position
            place = torch.where(found.any(-1), rows + in_group, place)
            rows += batch * branches * branch
        place = torch.where(segment_ids == PADDING, 0, place).flatten()

        beyond = torch.arange(prefix, device=device) >= counts[:, :1]
        shared_bias = None
        if beyond.any():
            shared_bias = torch.zeros(batch, prefix, dtype=dtype, device=device).masked_fill(beyond, float("-inf"))
            shared_bias = shared_bias[:, None, None, None, None, :]
        return cls(prefix, groups, place, shared_bias)


def prefix_attention(query, key, value, scaling: float) -> torch.Tensor:
    """Causal attention over `(batch, heads, prefix, head_dim)`, keys and values with as many heads or fewer."""
    heads, kv_heads, length = query.shape[1], key.shape[1], query.shape[2]
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=kv_heads != heads
        )
    # On CPUs the kernel's backward pass in bfloat16 takes many times as long as plain products.
    scores = torch.matmul((query * scaling).unflatten(1, (kv_heads, -1)), key[:, :, None].transpose(-1, -2))
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(dim=-1).to(value.dtype)
    return torch.matmul(weights, value[:, :, None]).flatten(1, 2)


def packed_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, packing=None, **kwargs):
    """Attention of packs, block by block; sdpa where the batch is not packed.

    Shapes as in transformers: `query` `(batch, heads, length, head_dim)` to `(batch, length, heads, head_dim)`.
    """
    if packing is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    batch, heads, length, head_dim = query.shape
    kv_heads = key.shape[1]
    # Under autocast, rotary positions leave queries and keys in float32. Round them once, not in every product.
    query, key = query.to(value.dtype), key.to(value.dtype)
    head = slice(0, packing.prefix)
    prefix_output = prefix_attention(query[:, :, head], key[:, :, head], value[:, :, head], scaling)
    outputs = [prefix_output.transpose(1, 2).reshape(-1, heads * head_dim)]

    tokens = [states.transpose(1, 2).reshape(batch * length, -1) for states in (query * scaling, key, value)]
    for group in packing.groups:
        shape = (batch, group.branches, group.branch, kv_heads, -1, head_dim)
        branch_query, branch_key, branch_value = (
            states.index_select(0, group.index).view(shape).permute(0, 3, 1, 4, 2, 5) for states in tokens
        )  # (batch, key/value heads, branches, heads per key, branch, head_dim)
        output = shared_attention(
            branch_query,
            key[:, :, head],
            value[:, :, head],
            branch_key[:, :, :, 0],
            branch_value[:, :, :, 0],
            own_bias=group.own_bias,
            shared_bias=packing.shared_bias,
        )
        outputs.append(output.permute(0, 2, 4, 1, 3, 5).reshape(-1, heads * head_dim))
    return torch.cat(outputs).index_select(0, packing.place).view(batch, length, heads, head_dim), None


def forward_at_answers(
    model, text_config, inputs: dict, answers: torch.Tensor, packed_attention: str, dtype: torch.dtype
):
    """A model's output for a batch of the collator, logits `(1, answer tokens, vocabulary)`.

    Args:
        text_config: that its text model reads; with packed_attention="blocks" its attention is `PACKED_ATTENTION`.
        inputs: what the model takes, with `segment_ids` for packed sequences.
        answers (bool of shape `(sequences, length - 1)`): the positions that predict an answer token.
        packed_attention: as in `SmolDriverSFTConfig`.
        dtype: that the model computes in.
    """
    inputs = dict(inputs)
    if "segment_ids" in inputs:
        segment_ids = inputs.pop("segment_ids")
        if packed_attention == "blocks":
            inputs["packing"] = PackedLayout.from_segments(segment_ids, dtype)
            # Unused, but without a 4-D mask transformers would make one.
            inputs["attention_mask"] = segment_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
        else:
            inputs["attention_mask"] = packed_mask(segment_ids, text_config._attn_implementation)
    return model(**inputs, use_cache=False, logits_to_keep=F.pad(answers, (0, 1)))


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, sdpa_mask)
