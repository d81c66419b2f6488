"""Multiply-adds, bytes and the machine's limits, to compare a measured time with.

A `Phase` is a stretch of work bound by one of two limits, matrix products or memory traffic. Multiply-adds are those
of matrix products, convolutions and attention, which is counted densely (queries times keys), as torch's own counter
does. Bytes are what cannot be avoided: the weights, once per pass, and the key/value cache.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import psutil
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Limits:
    """What a machine reaches at best."""

    matmul_flops: float  # floating-point operations per second, two per multiply-add
    memory_bytes_per_second: float
    matmul_shape: tuple[int, int, int] = (0, 0, 0)  # of the fastest product
    probes: int = 0


@dataclass(frozen=True)
class Phase:
    macs: int = 0
    bytes: int = 0

    def limit(self, limits: Limits) -> tuple[float, str]:
        """Least seconds on this machine, and what binds."""
        products = 2 * self.macs / limits.matmul_flops
        memory = self.bytes / limits.memory_bytes_per_second
        return (products, "matmul") if products >= memory else (memory, "memory")


def limit_of(phases: list[Phase], limits: Limits) -> tuple[float, str]:
    """Least seconds for phases one after another, and what binds the larger part of them."""
    seconds = {"matmul": 0.0, "memory": 0.0}
    for phase in phases:
        least, bound = phase.limit(limits)
        seconds[bound] += least
    return sum(seconds.values()), max(seconds, key=seconds.get)


class WorkCounts:
    """Multiply-adds and bytes of one SmolDriver configuration and of the SmolVLM that it replaces.

    Args:
        smoldriver, smolvlm: the configurations.
        item (`int`): bytes per weight.
    """

    def __init__(self, smoldriver, smolvlm, item: int):
        self.vision, self.siglip, self.text = smoldriver.vision_config, smolvlm.vision_config, smoldriver.text_config
        self.scale_factor = smoldriver.scale_factor
        self.views = len(self.vision.cameras)
        self.item = item
        text = self.text
        head_dim = text.hidden_size // text.num_attention_heads
        self.attention_width = text.num_attention_heads * head_dim
        self.kv_width = text.num_key_value_heads * head_dim
        layer = text.hidden_size * (2 * self.attention_width + 2 * self.kv_width + 3 * text.intermediate_size)
        self.text_weights = text.num_hidden_layers * layer
        self.head_weights = text.hidden_size * text.vocab_size

    # Multiply-adds

    def tower_macs(self, config, image_size: int, prefix_tokens: int) -> int:
        """One picture in a ViT (one prefix token) or SigLIP (none)."""
        width, patches = config.hidden_size, (image_size // config.patch_size) ** 2
        tokens = patches + prefix_tokens
        layer = tokens * (4 * width**2 + 2 * width * config.intermediate_size) + 2 * tokens**2 * width
        return patches * 3 * config.patch_size**2 * width + config.num_hidden_layers * layer

    def vision_macs(self, image_size: int, budget: int, frames: int = 1, training: bool = False) -> int:
        """SmolDriver's vision model without the connector, six views per frame."""
        config, width = self.vision, self.vision.hidden_size
        patches = (image_size // config.tower_config.patch_size) ** 2
        queries = budget * self.scale_factor**2
        # Position keys attend alike to every picture; at inference their attention is kept from an earlier call.
        content = config.resampler_keys == "content"
        of_keys, of_queries = (frames, 1) if content else (training, training)
        keys = patches * width**2 + queries * patches * width
        values = (patches + queries) * width**2 + queries * patches * width
        projection = patches * config.tower_config.hidden_size * width
        tower = self.tower_macs(config.tower_config, image_size, prefix_tokens=1)
        return self.views * (frames * (tower + projection + values) + of_keys * keys + of_queries * queries * width**2)

    def connector_macs(self, budget: int, frames: int = 1) -> int:
        width = self.vision.hidden_size * self.scale_factor**2
        return frames * self.views * budget * width * self.text.hidden_size

    def siglip_macs(self) -> int:
        return self.views * self.tower_macs(self.siglip, self.siglip.image_size, prefix_tokens=0)

    def text_macs(self, tokens: int, pairs: int, heads: int) -> int:
        """`pairs` of queries and keys; `heads` positions that go through lm_head."""
        attention = 2 * pairs * self.attention_width * self.text.num_hidden_layers
        return tokens * self.text_weights + attention + heads * self.head_weights

    # Bytes

    def vision_bytes(self) -> int:
        tower, width = self.vision.tower_config, self.vision.hidden_size
        layer = 4 * tower.hidden_size**2 + 2 * tower.hidden_size * tower.intermediate_size
        resamplers = self.views * 4 * width**2
        return self.item * (tower.num_hidden_layers * layer + tower.hidden_size * width + resamplers)

    def siglip_bytes(self) -> int:
        layer = 4 * self.siglip.hidden_size**2 + 2 * self.siglip.hidden_size * self.siglip.intermediate_size
        return self.item * self.siglip.num_hidden_layers * layer

    def text_bytes(self, positions: int) -> int:
        """Weights, lm_head included, and a key/value cache of `positions` read once."""
        cache = 2 * positions * self.kv_width * self.text.num_hidden_layers
        return self.item * (self.text_weights + self.head_weights + cache)

    # Phases

    def vision_phase(self, image_size: int, budget: int) -> Phase:
        """Vision model and connector of one frame."""
        return Phase(self.vision_macs(image_size, budget) + self.connector_macs(budget), self.vision_bytes())

    def siglip_phase(self, budget: int) -> Phase:
        return Phase(self.siglip_macs() + self.connector_macs(budget), self.siglip_bytes())

    def prefill_phase(self, length: int, heads: int = 1) -> Phase:
        return Phase(self.text_macs(length, length**2, heads), self.text_bytes(0))

    def continuation_phases(self, prefix: int, question: int, rows: int, new_tokens: int) -> list[Phase]:
        """Rows of `question` tokens behind a shared prefix, then the answer, one token per step."""
        phases = []
        if question:
            pairs = rows * question * (prefix + question)
            phases.append(Phase(self.text_macs(rows * question, pairs, rows), self.text_bytes(prefix)))
        for step in range(1, new_tokens):  # the prefill gives the first
            own = question + step
            macs = self.text_macs(rows, rows * (prefix + own), rows)
            phases.append(Phase(macs, self.text_bytes(prefix + rows * own)))
        return phases

    def training_phases(self, image_size, budget, frames, tokens, pairs, heads, trained_weights: int) -> list[Phase]:
        """Forward and backward (twice the forward), then AdamW on float32 weights: 28 bytes per weight."""
        forward = self.vision_macs(image_size, budget, frames, training=True) + self.connector_macs(budget, frames)
        forward += self.text_macs(tokens, pairs, heads)
        return [Phase(macs=3 * forward), Phase(bytes=28 * trained_weights)]


def counted_macs(run: Callable[[], object]) -> int:
    """Multiply-adds of one call as torch counts them; it knows attention as the products of the math backend."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops() // 2


# The machine's limits


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def free_bytes(device: str) -> int:
    if device == "cpu":
        return psutil.virtual_memory().available
    torch.cuda.empty_cache()  # what torch keeps for later counts as taken
    return torch.cuda.mem_get_info()[0]


def gigabytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


def seconds_of(run, device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call by `clock`, the device's queue included."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


class LimitProbe:
    """Times products of three shapes and a large copy, once in every round beside the contestants."""

    def __init__(
        self, device: str, dtype: torch.dtype, width: int, mlp: int, clock: Callable[[], float] = time.perf_counter
    ):
        self.device, self.clock = device, clock
        scale = 4 if device == "cuda" else 1
        square, rows = 2048 * scale, 4096 * scale
        self.shapes = [(square, square, square), (rows, width, mlp), (rows, mlp, width)]
        self.operands = [
            (torch.randn(m, k, device=device, dtype=dtype), torch.randn(n, k, device=device, dtype=dtype))
            for m, k, n in self.shapes
        ]
        self.source = torch.ones(2**25 * scale, device=device)  # 128 MiB on a CPU, far beyond its caches
        self.target = torch.empty_like(self.source)
        self.products: list[list[float]] = [[] for _ in self.shapes]
        self.copies: list[float] = []
        self.probe()
        self.products, self.copies = [[] for _ in self.shapes], []  # the first was a warm-up

    def probe(self):
        for (left, right), seconds in zip(self.operands, self.products, strict=True):
            seconds.append(self.time(lambda left=left, right=right: F.linear(left, right)))
        self.copies.append(self.time(lambda: self.target.copy_(self.source)))

    def time(self, run: Callable[[], object]) -> float:
        """Seconds of one call on this device, by this clock."""
        return seconds_of(run, self.device, self.clock)

    def result(self) -> Limits:
        """Medians over the rounds; products of the fastest shape."""
        measured = zip(self.shapes, self.products, strict=True)
        rates = [2 * m * k * n / median(seconds) for (m, k, n), seconds in measured]
        best = rates.index(max(rates))
        bandwidth = 2 * self.source.nbytes / median(self.copies)
        return Limits(rates[best], bandwidth, self.shapes[best], len(self.copies))
