"""Which precision is fast on this machine."""

import time
from functools import cache

import torch


@cache
def bfloat16_is_fast(on_gpu: bool) -> bool:
    """Whether matrix products are faster in bfloat16 than in float32: GPUs since Ampere, CPUs with its instructions.

    Other CPUs emulate them, up to fifty times slower, so a CPU is timed.
    """
    if on_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        times = []
        for _ in range(4):  # the first warms up
            started = time.perf_counter()
            torch.matmul(matrix, matrix)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times[1:])
    return seconds[torch.bfloat16] < seconds[torch.float32]
