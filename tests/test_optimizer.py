"""Muon takes torch's steps, AdamW moves all else, and the trainer gives each its weights."""

import copy

import pytest
import torch
from fakes import tiny_model
from torch import nn

from modeling_smoldriver.optimizer_smoldriver import MuonAdamW, hidden_matrices, orthogonalized
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig

SHAPES = [(8, 8), (8, 8), (4, 24), (24, 4), (8, 8)]


def parameters(shapes) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(*lists, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for alike in zip(*lists, strict=True):
        gradient = torch.randn(alike[0].shape, generator=generator)
        for parameter in alike:
            parameter.grad = gradient.clone()


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_singular_values_become_about_one_and_vectors_stay(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices += 3 * torch.eye(*shape[1:], dtype=torch.float64)  # none near zero, which five iterations do not lift
    even = orthogonalized(matrices)
    values = torch.linalg.svdvals(even)
    assert values.min() > 0.6 and values.max() < 1.3, values
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.mT @ even @ right.mT
    assert torch.allclose(inner, torch.diag_embed(inner.diagonal(dim1=1, dim2=2)), atol=1e-9)


def test_steps_are_those_of_torch():
    """In bfloat16, as torch.optim.Muon always computes."""
    ours, theirs, rest, torchs_rest = (parameters(SHAPES) for _ in range(4))
    together = MuonAdamW(
        [{"params": ours, "muon": True, "lr": 0.02}, {"params": rest}],
        dtype=torch.bfloat16,
        lr=0.01,
        weight_decay=0.1,
    )
    muon = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(torchs_rest, lr=0.01, weight_decay=0.1)
    for step in range(4):
        give_gradients(ours, theirs, rest, torchs_rest, step=step)
        for optimizer in (together, muon, adamw):
            optimizer.step()
    for one, other, start in zip(ours, theirs, parameters(SHAPES), strict=True):
        assert (one - other).abs().max() < 0.05 * (other - start).abs().max()
    assert all(torch.equal(one, other) for one, other in zip(rest, torchs_rest, strict=True))


def test_a_reloaded_state_takes_the_same_steps():
    def optimizer_of(weights):
        return MuonAdamW([{"params": weights[:3], "muon": True}, {"params": weights[3:]}], lr=0.01)

    whole = parameters(SHAPES)
    first = optimizer_of(whole)
    give_gradients(whole, step=0)
    first.step()
    again = [nn.Parameter(weight.detach().clone()) for weight in whole]
    second = optimizer_of(again)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    give_gradients(whole, again, step=1)
    first.step()
    second.step()
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))


def test_muon_takes_matrices_alone():
    with pytest.raises(ValueError, match=r"not a parameter of shape \(8,\)"):
        MuonAdamW([{"params": parameters([(8, 8), (8,)]), "muon": True}], lr=0.01)


def test_hidden_matrices_are_the_trainable_linear_weights_but_the_heads(config):
    model = tiny_model(config)
    model.model.vision_model.requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters(remove_duplicate=False)}
    chosen = {names[id(weight)] for weight in hidden_matrices(model)}
    layers = config.text_config.num_hidden_layers
    assert sum("text_model.layers" in name for name in chosen) == 7 * layers
    assert any(name.startswith("model.connector.") for name in chosen)
    assert not [name for name in chosen if "vision_model" in name or "embed" in name or "lm_head" in name]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"muon_learning_rate": -0.1}, "muon_learning_rate=-0.1 must be at least 0"),
        ({"tower_learning_rate": float("inf")}, "tower_learning_rate=inf must be at least 0 and finite"),
        ({"muon_learning_rate": 0.01, "optim": "sgd"}, "goes with optim='adamw_torch', not 'sgd'"),
    ],
)
def test_bad_values_are_refused(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SmolDriverSFTConfig(output_dir=tmp_path, use_cpu=True, bf16=False, **changed)  # accelerate keeps bf16
