"""The resampler: equal to a plain loop over views, and its position attention is computed once."""

import math

import pytest
import torch
import torch.nn.functional as F
from fakes import assert_same, tiny_config
from torch import nn

from modeling_smoldriver import (
    SmolDriverResampler,
)

pytestmark = pytest.mark.contract

PIXELS, EVERY_CAMERA = torch.rand(6, 3, 48, 48), torch.arange(6)


# The resampler against a plain loop over views


def naive_pool(grid, side):
    """Area means when shrinking, bilinear when growing; `grid` (height, width, channels)."""
    size = grid.shape[0]
    rows = []
    for row in range(side):
        for column in range(side):
            if side <= size:
                top, bottom = row * size // side, math.ceil((row + 1) * size / side)
                left, right = column * size // side, math.ceil((column + 1) * size / side)
                rows.append(grid[top:bottom, left:right].mean((0, 1)))
            else:
                y = min(max((row + 0.5) * size / side - 0.5, 0), size - 1)
                x = min(max((column + 0.5) * size / side - 0.5, 0), size - 1)
                y0, x0 = int(y), int(x)
                y1, x1 = min(y0 + 1, size - 1), min(x0 + 1, size - 1)
                upper = grid[y0, x0] * (1 - (x - x0)) + grid[y0, x1] * (x - x0)
                lower = grid[y1, x0] * (1 - (x - x0)) + grid[y1, x1] * (x - x0)
                rows.append(upper * (1 - (y - y0)) + lower * (y - y0))
    return torch.stack(rows)


def naive_positions(side, reference, channels):
    rows = []
    for row in range(side):
        for column in range(side):
            values = []
            for index in (row, column):
                place = (index + 0.5) * reference / side
                angles = [place / 10000 ** (i / (channels // 4)) for i in range(channels // 4)]
                values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            rows.append(values)
    return torch.tensor(rows)


def naive_resampler(resampler, features, camera_ids, side):
    """Multi-head cross-attention written out for one view at a time."""
    config, outputs = resampler.config, []
    heads, width = config.num_attention_heads, config.hidden_size
    for view, camera in zip(features, camera_ids.tolist(), strict=True):

        def norm(layer, x, camera=camera):
            return F.layer_norm(x, (width,), layer.weight[camera], layer.bias[camera], config.layer_norm_eps)

        def linear(layer, x, camera=camera):
            return F.linear(x, layer.weight[camera], layer.bias[camera])

        def split(x):
            return x.view(1, -1, heads, width // heads).transpose(1, 2)

        patches = view.flatten(0, 1)
        positions = naive_positions(view.shape[0], config.grid_size, width)
        if config.resampler_keys == "content":
            keys = norm(resampler.feature_norm, patches) + positions
        else:
            keys = norm(resampler.feature_norm, positions)
        queries = norm(resampler.query_norm, naive_pool(resampler.query[camera], side))
        queries = queries + naive_positions(side, config.grid_size, width)
        attended = F.scaled_dot_product_attention(
            split(linear(resampler.camera_query, queries)),
            split(linear(resampler.camera_key, keys)),
            split(linear(resampler.camera_value, norm(resampler.feature_norm, patches))),
        )
        output = linear(resampler.camera_output, attended.transpose(1, 2).reshape(side * side, width))
        if config.resampler_residual:
            output = output + naive_pool(view, side)
        outputs.append(norm(resampler.output_norm, output))
    return torch.stack(outputs)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("keys", ["content", "position"])
@pytest.mark.parametrize("patches", [6, 4, 9])
@torch.no_grad()
def test_resampler_equals_a_plain_loop_over_views(tokenizer, keys, residual, patches):
    config = tiny_config(tokenizer, resampler_keys=keys, resampler_residual=residual).vision_config
    torch.manual_seed(0)
    resampler = SmolDriverResampler(config)
    for parameter in resampler.parameters():
        nn.init.normal_(parameter, std=0.3)
    config._attn_implementation = "sdpa"
    features = torch.randn(7, patches, patches, 32)
    for camera_ids in ([4, 0, 4, 2, 4, 0, 5], [0, 1, 2, 3, 4, 5, 1], [3] * 7):
        ids = torch.tensor(camera_ids)
        for side in (6, 4, 2):
            expected = naive_resampler(resampler, features, ids, side)
            assert_same(resampler(features, ids, side), expected)


@pytest.mark.parametrize("keys", ["content", "position"])
@torch.no_grad()
def test_only_content_keys_let_the_picture_steer_attention(tokenizer, keys):
    """Position keys pool fixed places, as the paper's do: there the output is linear in what the values read."""
    config = tiny_config(tokenizer, resampler_keys=keys, resampler_residual=False).vision_config
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    resampler = SmolDriverResampler(config)
    for parameter in resampler.parameters():
        nn.init.normal_(parameter, std=0.5)
    resampler.feature_norm = PassThrough()
    resampler.output_norm = PassThrough()
    one, other = torch.randn(2, 1, 6, 6, 32)
    first, second, between = (resampler(x, torch.tensor([0]), 4) for x in (one, other, (one + other) / 2))
    linear = ((first + second) / 2 - between).abs().max() < 1e-4
    assert linear == (keys == "position")


class PassThrough(nn.Module):
    def forward(self, hidden, cameras):
        return hidden


# Compiled and exported graphs: shapes may not depend on values


@pytest.mark.parametrize("keys", ["content", "position"])
@torch.no_grad()
def test_a_group_per_view_equals_grouping_by_camera(make_model, image_processor, monkeypatch, keys):
    model, _ = make_model(image_processor, resampler_keys=keys)
    resampler = model.model.vision_model.resampler
    features = torch.randn(7, 6, 6, 32)
    for camera_ids in ([4, 0, 4, 2, 4, 0, 5], [0, 1, 2, 3, 4, 5, 1], [3] * 7):
        ids = torch.tensor(camera_ids)
        for side in (6, 2):
            expected = resampler(features, ids, side)
            with monkeypatch.context() as compiling:
                compiling.setattr(torch.compiler, "is_compiling", lambda: True)
                assert_same(resampler(features, ids, side), expected)


# Position keys: attention that does not look at the picture is computed once


@pytest.fixture
def counted(make_model, image_processor):
    """A vision model with position keys, and a list with one entry per computation of its keys."""
    model, _ = make_model(image_processor, resampler_keys="position")
    vision, calls = model.model.vision_model.eval(), []
    vision.resampler.camera_key.register_forward_hook(lambda *_: calls.append(1))
    return vision, calls


@torch.no_grad()
def test_position_attention_is_computed_once_per_budget_and_patch_grid(counted):
    vision, calls = counted
    for pixels, cameras, side, computed in (
        (PIXELS, EVERY_CAMERA, 6, 1),
        (PIXELS.flip(0), EVERY_CAMERA, 6, 1),
        (PIXELS[:2], torch.tensor([4, 1]), 6, 1),  # other cameras
        (PIXELS, EVERY_CAMERA, 2, 2),  # another budget
        (PIXELS[:, :, :32, :32], EVERY_CAMERA, 2, 3),  # another patch grid
        (PIXELS, EVERY_CAMERA, 6, 3),
    ):
        reused = vision(pixels, cameras, side).last_hidden_state
        assert len(calls) == computed
        kept, vision.resampler._reused = vision.resampler._reused, None
        fresh = vision(pixels, cameras, side).last_hidden_state
        vision.resampler._reused = kept
        calls.pop()
        assert torch.equal(reused, fresh)


@pytest.mark.parametrize(
    "name", ["query", "camera_key.weight", "feature_norm.bias", "camera_query.bias", "query_norm.weight"]
)
@torch.no_grad()
def test_position_attention_is_computed_again_after_a_weight_changed(counted, name):
    vision, calls = counted
    before = vision(PIXELS, EVERY_CAMERA).last_hidden_state
    vision.resampler.get_parameter(name).mul_(1.5).add_(0.3)
    after = vision(PIXELS, EVERY_CAMERA).last_hidden_state
    assert len(calls) == 2 and not torch.equal(after, before)
    vision.load_state_dict(vision.state_dict())
    vision(PIXELS, EVERY_CAMERA)
    assert len(calls) == 3


def test_position_attention_is_never_kept_in_training(counted):
    vision, calls = counted
    with torch.no_grad():
        vision(PIXELS, EVERY_CAMERA)
    vision.train()
    for number in (2, 3):
        vision.zero_grad()
        vision(PIXELS, EVERY_CAMERA).last_hidden_state.sum().backward()
        assert len(calls) == number and vision.resampler.query.grad.abs().sum() > 0
        assert vision.resampler._reused is None
    with torch.no_grad():
        vision(PIXELS, EVERY_CAMERA)  # in training mode: dropout may be on, so nothing is kept
        assert len(calls) == 4 and vision.resampler._reused is None


# One call for all views, in the model's dtype


@pytest.mark.parametrize("keys", ["content", "position"])
@torch.no_grad()
def test_every_layer_runs_once_for_all_cameras_and_in_bfloat16(make_model, image_processor, keys):
    model, _ = make_model(image_processor, resampler_keys=keys)
    vision = model.to(torch.bfloat16).model.vision_model
    calls, dtypes = {}, set()

    def watch(name):
        def hook(module, arguments, output):
            calls[name] = calls.get(name, 0) + 1
            dtypes.update(value.dtype for value in (*arguments, output) if torch.is_tensor(value))

        return hook

    for name, module in vision.named_modules():
        module.register_forward_hook(watch(name))
    output = vision(PIXELS.repeat(2, 1, 1, 1), EVERY_CAMERA.repeat(2)).last_hidden_state
    assert output.dtype == torch.bfloat16
    calls = {name: count for name, count in calls.items() if "dropout" not in name}
    twice = {"resampler.feature_norm"} if keys == "position" else set()  # of pictures and of positions
    assert {name for name, count in calls.items() if count > 1} == twice
    assert "tower" in calls and "resampler.camera_key" in calls
    assert dtypes <= {torch.bfloat16, torch.int64, torch.float32}
