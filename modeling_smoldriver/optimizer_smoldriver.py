"""Muon for the matrices of hidden layers beside AdamW for all other weights, as one optimizer."""

from collections import defaultdict

import torch
from torch import nn

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of X <- aX + b(XX')X + c(XX')^2 X
NEWTON_SCHULZ_STEPS = 5


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable weights of a model's linear layers, LoRA's included, `lm_head`'s excluded.

    Muon is for these; AdamW takes embeddings, queries, convolutions, norms and biases.
    """
    return [
        layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad and name.rpartition(".")[2] != "lm_head"
    ]


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """Float matrices `(n, rows, columns)` -> the same singular vectors, all singular values near 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = a * x + torch.baddbmm(square, square, square, beta=b, alpha=c) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.AdamW):
    """AdamW, except for parameter groups with `muon: True`, which hold matrices alone and take Muon's steps.

    A step of Muon is the momentum with its singular values evened out, times `0.2 sqrt(max(rows, columns))`, so that
    an entry changes about as much as by AdamW. `torch.optim.Muon` takes the same steps, always in bfloat16. A CPU
    that emulates bfloat16 takes 10 times as long (measured), so here the dtype is chosen, and equal shapes are
    stacked.

    Source: K. Jordan et al., "Muon" (2024), kellerjordan.github.io/posts/muon; scale and weight decay: J. Liu et al.,
    "Muon is Scalable for LLM Training" (2025), arXiv 2502.16982.

    Args:
        params: parameters or groups, as `torch.optim.AdamW` takes them.
        dtype (`torch.dtype`): in which Muon evens out singular values.
        kwargs: `torch.optim.AdamW`'s.

    Raises:
        ValueError: a group with `muon: True` has a parameter that is not a matrix.
    """

    def __init__(self, params, dtype: torch.dtype = torch.float32, **kwargs):
        super().__init__(params, **kwargs)
        self.dtype = dtype
        for group in self.param_groups:
            shapes = [tuple(p.shape) for p in group["params"] if group.get("muon") and p.ndim != 2]
            if shapes:
                raise ValueError(f"Muon takes matrices, not a parameter of shape {shapes[0]}")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group.get("muon"):
                self._muon_step(group)
        super().step()
        return loss

    def _muon_step(self, group: dict) -> None:
        """Move the group's matrices and drop their gradients, so that AdamW skips them."""
        alike = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[parameter.shape, parameter.device].append(parameter)
        for (shape, _), parameters in alike.items():
            steps = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())  # AdamW expects it for every parameter when a state is loaded
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] += 1
                state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
                steps.append(parameter.grad.lerp(state["momentum_buffer"], MOMENTUM))
            scale = group["lr"] * 0.2 * max(shape) ** 0.5
            for parameter, step in zip(parameters, orthogonalized(torch.stack(steps).to(self.dtype)), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(step.to(parameter.dtype), alpha=scale)
                parameter.grad = None
