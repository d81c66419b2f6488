"""The model: batching, padding, budgets, attention, training, saving, and its match with independent originals."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from fakes import QUESTIONS, assert_same, picture, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from modeling_smoldriver import (
    CAMERAS,
    SmolDriverConfig,
    SmolDriverForConditionalGeneration,
    SmolDriverModel,
    SmolDriverProcessor,
    SmolDriverResampler,
    SmolDriverVisionConfig,
)

BUDGETS = (9, 4, 1)


def encode(processor, scenes, questions, **kwargs):
    """Model inputs of one question each about scenes given as {camera: picture}."""
    prompts = [
        processor.apply_chat_template(processor.scene_messages(scene, question), add_generation_prompt=True)
        for scene, question in zip(scenes, questions, strict=True)
    ]
    return processor(images=scenes, text=prompts, return_tensors="pt", **kwargs)


def without(images, *cameras):
    return {camera: image for camera, image in images.items() if camera not in cameras}


@pytest.fixture
def inputs(processor, images):
    return encode(processor, [images], QUESTIONS[:1])


@pytest.fixture
def frames():
    """Three frames with different cameras missing."""
    scenes = [{camera: picture(10 * frame + seed) for seed, camera in enumerate(CAMERAS)} for frame in range(3)]
    return [scenes[0], without(scenes[1], "CAM_FRONT", "CAM_BACK_RIGHT"), {"CAM_BACK": scenes[2]["CAM_BACK"]}]


@pytest.fixture
def make_model(tokenizer):
    """A tiny model, and its processor, by tower and vision options."""

    def make(image_processor, tower="vit", **vision):
        config = tiny_config(tokenizer, tower, **vision)
        return tiny_model(config), SmolDriverProcessor.from_config(config, image_processor, tokenizer)

    return make


# Batches of scenes


@pytest.mark.contract
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_batch_of_frames_with_missing_cameras_equals_each_frame_alone(model, processor, frames, side):
    batch = encode(processor, frames, QUESTIONS[:3], padding=True, padding_side=side)
    assert batch["camera_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 2, 3, 4, -1, -1], [4, -1, -1, -1, -1, -1]]
    logits = model(**batch).logits
    for row, (frame, question) in enumerate(zip(frames, QUESTIONS, strict=False)):
        alone = model(**encode(processor, [frame], [question])).logits[0]
        assert_same(logits[row][batch["attention_mask"][row].bool()], alone)


@pytest.mark.contract
@torch.no_grad()
def test_left_padded_batch_generates_what_each_row_generates_alone(model, processor, frames):
    batch = encode(processor, frames, QUESTIONS[:3], padding=True, padding_side="left")
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, (frame, question) in enumerate(zip(frames, QUESTIONS, strict=False)):
        alone = encode(processor, [frame], [question])
        assert torch.equal(together[row], model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :])


@pytest.mark.contract
@torch.no_grad()
def test_order_of_the_camera_dict_changes_nothing(model, processor, images, inputs):
    shuffled = encode(processor, [dict(reversed(images.items()))], QUESTIONS[:1])
    assert torch.equal(model(**shuffled).logits, model(**inputs).logits)


@pytest.mark.contract
@pytest.mark.parametrize("keys", ["content", "position"])
@torch.no_grad()
def test_swapping_the_pictures_of_two_cameras_changes_the_logits(make_model, image_processor, images, keys):
    model, processor = make_model(image_processor, resampler_keys=keys)
    swapped = {**images, "CAM_FRONT": images["CAM_BACK"], "CAM_BACK": images["CAM_FRONT"]}
    before = model(**encode(processor, [images], QUESTIONS[:1])).logits[0, -1]
    after = model(**encode(processor, [swapped], QUESTIONS[:1])).logits[0, -1]
    assert (before - after).abs().max() > 1e-2


@pytest.mark.contract
@torch.no_grad()
def test_each_view_goes_through_the_resampler_of_its_own_camera(model, inputs):
    before = model.get_image_features(inputs["pixel_values"], inputs["camera_ids"]).pooler_output
    for parameter in model.model.vision_model.resampler.parameters():
        parameter[2].add_(0.5)
    after = model.get_image_features(inputs["pixel_values"], inputs["camera_ids"]).pooler_output
    changed = [(one - other).abs().max().item() > 1e-3 for one, other in zip(before, after, strict=True)]
    assert changed == [False, False, True, False, False, False]


# Attention, cache, checkpointing


@pytest.mark.contract
@pytest.mark.parametrize("keys", ["content", "position"])
@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip"])
@torch.no_grad()
def test_eager_attention_equals_sdpa(make_model, image_processor, frames, tower, keys):
    model, processor = make_model(image_processor, tower, resampler_keys=keys)
    batch = encode(processor, frames, QUESTIONS[:3], padding=True, padding_side="right")
    real = batch["attention_mask"].bool()
    vision = model.model.vision_model
    parts = (model.model.text_model, vision, vision.resampler, vision.tower)
    assert {part.config._attn_implementation for part in parts} == {"sdpa"}
    expected = model(**batch).logits[real]
    model.set_attn_implementation("eager")
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    assert_same(model(**batch).logits[real], expected)


@pytest.mark.slow
@pytest.mark.contract
@torch.no_grad()
def test_flex_attention_equals_sdpa(model, processor, frames):
    batch = encode(processor, frames, QUESTIONS[:3], padding=True, padding_side="right")
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits[real]
    model.set_attn_implementation("flex_attention")
    assert_same(model(**batch).logits[real], expected)


@pytest.mark.contract
@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_cached_generation_equals_uncached(model, inputs, beams):
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams}
    cached = model.generate(**inputs, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))


@pytest.mark.contract
@torch.no_grad()
def test_generation_looks_at_the_pictures_once(model, inputs):
    calls = []
    model.model.vision_model.tower.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert len(calls) == 1


def gradients(model, inputs):
    model.zero_grad()
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    loss = model(**inputs, labels=labels).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.contract
def test_gradient_checkpointing_changes_no_gradient(model, inputs):
    model.train()
    loss, plain = gradients(model, inputs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    forwards = {"text": 0, "tower": 0}

    def count(part):
        return lambda *_: forwards.update({part: forwards[part] + 1})

    model.model.text_model.layers[0].mlp.register_forward_pre_hook(count("text"))
    tower = model.model.vision_model.tower
    layer = next(module for name, module in tower.named_modules() if name.endswith(("layers.0", "layer.0")))
    next(module for module in layer.modules() if isinstance(module, nn.Linear)).register_forward_pre_hook(
        count("tower")
    )
    again, checkpointed = gradients(model, inputs)
    assert forwards == {"text": 2, "tower": 2}  # once more in the backward pass: checkpointing is really on
    assert_same(again, loss)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert_same(checkpointed[name], gradient, name)


# Budgets


@pytest.mark.contract
@pytest.mark.parametrize("keys", ["content", "position"])
@torch.no_grad()
def test_every_budget_gives_its_image_tokens_and_finite_logits(make_model, image_processor, images, keys):
    model, processor = make_model(image_processor, resampler_keys=keys)
    assert tuple(model.config.visual_token_budgets) == BUDGETS
    assert model.get_image_features(torch.randn(1, 6, 3, 48, 48), torch.arange(6)[None]).last_hidden_state.shape == (
        6,
        36,
        32,
    )
    last = {}
    for tokens in BUDGETS:
        inputs = encode(processor, [images], QUESTIONS[:1], visual_tokens=tokens)
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == 6 * tokens
        outputs = model(**inputs)
        assert outputs.image_hidden_states.shape == (6, tokens, 48)
        assert outputs.logits.shape == (*inputs["input_ids"].shape, model.config.text_config.vocab_size)
        assert outputs.logits.isfinite().all()
        last[tokens] = outputs.logits[0, -1]
    assert (last[9] - last[4]).abs().max() > 1e-3 and (last[4] - last[1]).abs().max() > 1e-3


@pytest.mark.contract
@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip"])
@torch.no_grad()
def test_a_budget_may_bring_its_own_picture_size(make_model, image_processor, tokenizer, images, tower):
    model, _ = make_model(image_processor, tower)
    processor = SmolDriverProcessor.from_config(
        model.config, image_processor, tokenizer, budget_image_sizes={4: 32, 1: 16}
    )
    for tokens, side in ((9, 48), (4, 32), (1, 16)):
        inputs = encode(processor, [images], QUESTIONS[:1], visual_tokens=tokens)
        assert inputs["pixel_values"].shape == (1, 6, 3, side, side)
        outputs = model(**inputs)
        assert outputs.image_hidden_states.shape == (6, tokens, 48) and outputs.logits.isfinite().all()


@pytest.mark.contract
@torch.no_grad()
def test_a_smaller_budget_is_a_coarser_picture_and_not_its_upper_part(model):
    """A mark in each quarter of the picture reaches the tokens of that quarter, at every grid."""
    resampler = SmolDriverResampler(model.config.vision_config).eval()
    model._init_weights(resampler)
    for module in resampler.children():
        model._init_weights(module)
    resampler.out_proj.weight.zero_()  # leaves the aligned residual
    features = torch.randn(1, 8, 8, 32)
    for side in (6, 4, 2):
        plain = resampler(features, torch.tensor([0]), side).view(side, side, 32)
        for row in (0, 1):
            for column in (0, 1):
                marked = features.clone()
                marked[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4, 0] += 5
                moved = (resampler(marked, torch.tensor([0]), side).view(side, side, 32) - plain).abs().amax(-1) > 1e-6
                half = side // 2
                quarter = torch.zeros(side, side, dtype=torch.bool)
                quarter[row * half : row * half + half, column * half : column * half + half] = True
                assert torch.equal(moved, quarter)


# Towers


@pytest.mark.contract
@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip", "dinov2_with_registers"])
@torch.no_grad()
def test_patch_tokens_of_any_tower_are_read_in_raster_order(make_model, image_processor, tower):
    model, _ = make_model(image_processor, tower)
    vision = model.model.vision_model
    pixels = torch.randn(2, 3, 48, 32 + 16)
    features = vision.tower_features(pixels)
    assert features.shape == (2, 6, 6, 32)
    # A patch's own token moves most when that patch alone changes.
    changed = pixels.clone()
    changed[:, :, 8 * 4 : 8 * 5, 8 * 1 : 8 * 2] += 3.0
    moved = (vision.tower_features(changed) - features).norm(dim=-1)[0]
    assert moved.flatten().argmax() == 4 * 6 + 1


@pytest.mark.contract
def test_pictures_that_do_not_tile_into_patches_are_refused(model):
    with pytest.raises(ValueError, match=r"\(50, 50\) pixels do not tile into square patches of 8"):
        model.get_image_features(torch.zeros(1, 1, 3, 50, 50), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(48, 40\)"):
        model.get_image_features(torch.zeros(1, 1, 3, 48, 40), torch.zeros(1, 1, dtype=torch.long))


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
            split(linear(resampler.q_proj, queries)),
            split(linear(resampler.k_proj, keys)),
            split(linear(resampler.v_proj, norm(resampler.feature_norm, patches))),
        )
        output = linear(resampler.out_proj, attended.transpose(1, 2).reshape(side * side, width))
        if config.resampler_residual:
            output = output + naive_pool(view, side)
        outputs.append(norm(resampler.output_norm, output))
    return torch.stack(outputs)


@pytest.mark.contract
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


@pytest.mark.contract
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


# Position keys: attention that does not look at the picture is computed once


@pytest.fixture
def counted(make_model, image_processor):
    """A vision model with position keys, and how often it has computed keys."""
    model, _ = make_model(image_processor, resampler_keys="position")
    vision, calls = model.model.vision_model.eval(), []
    vision.resampler.k_proj.register_forward_hook(lambda *_: calls.append(1))
    return vision, calls


PIXELS, EVERY_CAMERA = torch.rand(6, 3, 48, 48), torch.arange(6)


@pytest.mark.contract
@torch.no_grad()
def test_position_attention_is_computed_once_a_budget_and_patch_grid(counted):
    vision, calls = counted
    for pixels, cameras, side, computed in (
        (PIXELS, EVERY_CAMERA, 6, 1),
        (PIXELS.flip(0), EVERY_CAMERA, 6, 1),
        (PIXELS[:2], torch.tensor([4, 1]), 6, 1),  # other cameras
        (PIXELS, EVERY_CAMERA, 2, 2),  # another budget
        (PIXELS[:, :, :32, :32], EVERY_CAMERA, 2, 3),  # another patch grid
        (PIXELS, EVERY_CAMERA, 6, 3),
    ):
        reused = vision(pixels, cameras, side)
        assert len(calls) == computed
        kept, vision.resampler._reused = vision.resampler._reused, None
        fresh = vision(pixels, cameras, side)
        vision.resampler._reused = kept
        calls.pop()
        assert torch.equal(reused, fresh)


@pytest.mark.contract
@pytest.mark.parametrize("name", ["query", "k_proj.weight", "feature_norm.bias", "q_proj.bias", "query_norm.weight"])
@torch.no_grad()
def test_position_attention_is_computed_again_after_a_weight_changed(counted, name):
    vision, calls = counted
    before = vision(PIXELS, EVERY_CAMERA)
    vision.resampler.get_parameter(name).mul_(1.5).add_(0.3)
    after = vision(PIXELS, EVERY_CAMERA)
    assert len(calls) == 2 and not torch.equal(after, before)
    vision.load_state_dict(vision.state_dict())
    vision(PIXELS, EVERY_CAMERA)
    assert len(calls) == 3


@pytest.mark.contract
def test_position_attention_is_never_kept_in_training(counted):
    vision, calls = counted
    with torch.no_grad():
        vision(PIXELS, EVERY_CAMERA)
    vision.train()
    for number in (2, 3):
        vision.zero_grad()
        vision(PIXELS, EVERY_CAMERA).sum().backward()
        assert len(calls) == number and vision.resampler.query.grad.abs().sum() > 0
        assert vision.resampler._reused is None
    with torch.no_grad():
        vision(PIXELS, EVERY_CAMERA)  # dropout may be on: nothing is kept
        assert len(calls) == 4 and vision.resampler._reused is None


# Cheap: one call for all views, none for padding, in the model's dtype


@pytest.mark.contract
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
    output = vision(PIXELS.repeat(2, 1, 1, 1), EVERY_CAMERA.repeat(2))
    assert output.dtype == torch.bfloat16
    calls = {name: count for name, count in calls.items() if "dropout" not in name}
    twice = {"resampler.feature_norm"} if keys == "position" else set()  # of pictures and of positions
    assert {name for name, count in calls.items() if count > 1} == twice
    assert "tower" in calls and "resampler.k_proj" in calls
    assert dtypes <= {torch.bfloat16, torch.int64, torch.float32}


@pytest.mark.contract
@torch.no_grad()
def test_padded_views_do_not_enter_the_vision_model(model, processor, frames):
    batch = encode(processor, frames, QUESTIONS[:3], padding=True, padding_side="right")
    real = batch["camera_ids"] >= 0
    assert not real.all()
    entered = []
    model.model.vision_model.register_forward_pre_hook(lambda module, arguments: entered.append(arguments[0]))
    model(**batch)
    assert [len(pixels) for pixels in entered] == [int(real.sum())]
    assert torch.equal(entered[0], batch["pixel_values"][real])


# Rows that share their pictures


@pytest.mark.contract
@torch.no_grad()
def test_rows_of_one_frame_share_its_pictures(model, processor, frames):
    batch = encode(processor, frames[:2] + frames[:1], QUESTIONS[:3], padding=True, padding_side="right")
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits[real]
    views = []
    model.model.vision_model.tower.register_forward_pre_hook(lambda module, arguments: views.append(len(arguments[0])))
    batch["pixel_values"], batch["camera_ids"] = batch["pixel_values"][:2], batch["camera_ids"][:2]
    assert_same(model(**batch, frame_index=torch.tensor([0, 1, 0])).logits[real], expected)
    assert views == [int((batch["camera_ids"] >= 0).sum())]
    with pytest.raises(ValueError, match="image tokens and pictures do not match"):
        model(**batch, frame_index=torch.tensor([0, 1, 1]))


@pytest.mark.contract
@torch.no_grad()
def test_logits_of_a_mask_are_those_positions_of_each_row(model, processor, frames):
    batch = encode(processor, frames, QUESTIONS[:3], padding=True, padding_side="right")
    mask = torch.rand(batch["input_ids"].shape) < 0.3
    expected = model(**batch).logits[mask]
    assert_same(model(**batch, logits_to_keep=mask).logits[0], expected)


class PassThrough(nn.Module):
    def forward(self, hidden, cameras):
        return hidden


# Training


@pytest.mark.contract
@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip"])
@pytest.mark.parametrize("keys", ["content", "position"])
def test_no_tensor_is_hidden_from_saving_and_training(make_model, image_processor, inputs, tower, keys):
    """The original's fault 1: `nn.Parameter(...).to(dtype)` is a plain tensor, neither trained nor saved."""
    model, _ = make_model(image_processor, tower, resampler_keys=keys)
    model(**inputs, labels=inputs["input_ids"])
    assert not hidden_tensors(model)
    model.model.vision_model.resampler.forgotten = [torch.zeros(3)]
    assert hidden_tensors(model) == ["model.vision_model.resampler.forgotten"]


def hidden_tensors(model):
    known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def tensors(value):
        if isinstance(value, torch.Tensor):
            return [value]
        if isinstance(value, dict):
            value = list(value.values())
        return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []

    return [
        f"{name}.{key}"
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key not in ("_parameters", "_buffers", "_modules") and any(id(t) not in known for t in tensors(value))
    ]


@pytest.mark.contract
@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip", "dinov2_with_registers"])
@pytest.mark.parametrize("keys", ["content", "position"])
def test_one_step_moves_every_parameter_that_should_train_and_no_other(
    make_model, image_processor, images, tower, keys
):
    model, processor = make_model(image_processor, tower, resampler_keys=keys)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if name.endswith("mask_token")}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.train()
    inputs = encode(processor, [images], QUESTIONS[:1])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == frozen


@pytest.mark.contract
def test_frozen_language_model_stays_and_vision_moves(model, inputs):
    model.model.text_model.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == name.startswith(("model.vision_model", "model.connector")), name


@pytest.mark.contract
def test_loss_is_the_mean_next_token_cross_entropy(model, inputs):
    labels = inputs["input_ids"].clone()
    labels[:, : labels.shape[1] // 2] = -100
    outputs = model(**inputs, labels=labels)
    expected = F.cross_entropy(outputs.logits[0, :-1], labels[0, 1:])
    assert_same(outputs.loss, expected)


@pytest.mark.contract
@torch.no_grad()
def test_logits_to_keep_are_those_positions_of_all_logits(model, inputs):
    logits = model(**inputs).logits
    assert_same(model(**inputs, logits_to_keep=3).logits, logits[:, -3:])
    kept = torch.tensor([5, 9])
    assert_same(model(**inputs, logits_to_keep=kept).logits, logits[:, kept])


@pytest.mark.contract
@pytest.mark.parametrize("keys", ["content", "position"])
@torch.no_grad()
def test_bfloat16_forward_is_finite_and_near_float32(make_model, image_processor, images, keys):
    model, processor = make_model(image_processor, resampler_keys=keys)
    inputs = encode(processor, [images], QUESTIONS[:1])
    expected = model(**inputs).logits
    model.to(torch.bfloat16)
    for attention in ("sdpa", "eager"):
        if attention == "eager":
            model.set_attn_implementation("eager")
        logits = model(**inputs).logits
        assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
        assert F.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.99


# Saving and loading


@pytest.mark.contract
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "60KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip"])
@torch.no_grad()
def test_save_load_save_is_bit_exact(make_model, image_processor, images, tmp_path, tower, options):
    model, processor = make_model(image_processor, tower, resampler_keys="position", resampler_residual=False)
    inputs = encode(processor, [images], QUESTIONS[:1])
    model.save_pretrained(tmp_path / "first", **options)
    loaded = SmolDriverForConditionalGeneration.from_pretrained(tmp_path / "first").eval()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    loaded.save_pretrained(tmp_path / "second", **options)
    first, second = saved_tensors(tmp_path / "first"), saved_tensors(tmp_path / "second")
    assert first.keys() == second.keys() and len(first) == len(dict(model.named_parameters()))
    assert all(first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]) for name in first)
    loaded = SmolDriverForConditionalGeneration.from_pretrained(tmp_path / "second")
    loaded.save_pretrained(tmp_path / "third", **options)
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("second", "third")]
    assert configs[0] == configs[1]


def saved_tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.contract
@torch.no_grad()
def test_tied_embeddings_are_saved_once_and_stay_tied(tokenizer, inputs, tmp_path):
    model = tiny_model(SmolDriverConfig(**{**tiny_config(tokenizer).to_dict(), "tie_word_embeddings": True}))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in saved_tensors(tmp_path)
    loaded = SmolDriverForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.contract
@torch.no_grad()
def test_base_model_and_vision_model_load_from_the_full_checkpoint(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    base = SmolDriverModel.from_pretrained(tmp_path)
    assert torch.equal(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)
    base.save_pretrained(tmp_path / "base")
    again = SmolDriverModel.from_pretrained(tmp_path / "base")
    assert torch.equal(again(**inputs).last_hidden_state, base(**inputs).last_hidden_state)


@pytest.mark.contract
def test_config_survives_saving(config, tmp_path):
    config.save_pretrained(tmp_path)
    loaded = SmolDriverConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.vision_config.tower_config.patch_size == 8 and loaded.text_config.num_key_value_heads == 2


TENSOR = "model.vision_model.resampler.query"


def damaged_checkpoint(model, folder, damage):
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    if damage == "missing":
        del tensors[TENSOR]
    elif damage == "unexpected":
        tensors["model.vision_model.resampler.extra"] = torch.zeros(2)
    else:
        tensors[TENSOR] = tensors[TENSOR][:, :3].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.contract
@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen"])
@pytest.mark.parametrize("cls", [SmolDriverForConditionalGeneration, SmolDriverModel])
def test_checkpoint_that_does_not_fit_is_refused_by_name(model, tmp_path, cls, damage):
    damaged_checkpoint(model, tmp_path, damage)
    name = "resampler.extra" if damage == "unexpected" else "resampler.query"
    what = {"misshapen": r"wrongly shaped: \S*", "missing": r"missing: \S*", "unexpected": r"unexpected: \S*"}[damage]
    with pytest.raises(ValueError, match=what + name.replace(".", r"\.")):
        cls.from_pretrained(tmp_path)


# SmolVLM, the independent original of connector, text model and head


def smolvlm_config(vision: dict, text: dict, scale_factor: int) -> SmolVLMConfig:
    return SmolVLMConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text).to_dict(),
        scale_factor=scale_factor,
        image_token_id=5,
        tie_word_embeddings=False,
    )


@pytest.mark.contract
@torch.no_grad()
def test_connector_text_model_and_head_are_smolvlms(tokenizer):
    config = tiny_config(tokenizer)
    torch.manual_seed(1)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = config.text_config.to_dict()
    smolvlm = SmolVLMForConditionalGeneration(
        smolvlm_config({**vision, "image_size": 48, "patch_size": 8}, text, config.scale_factor)
    ).eval()
    for parameter in smolvlm.parameters():
        nn.init.normal_(parameter, std=0.2)
    model = tiny_model(config)
    graft = {name: tensor for name, tensor in smolvlm.state_dict().items() if "vision_model" not in name}
    problems = model.load_state_dict(graft, strict=False)
    assert not problems.unexpected_keys
    assert all(name.startswith("model.vision_model.") for name in problems.missing_keys)

    for side in (6, 4, 2):
        features = torch.randn(5, side * side, 32)
        assert_same(model.model.connector(features), smolvlm.model.connector(features))
    ids = torch.randint(10, config.text_config.vocab_size, (2, 9))
    assert_same(model(input_ids=ids).logits, smolvlm(input_ids=ids).logits)


PUBLISHED = {
    "256M": (
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        {"image_size": 512, "patch_size": 16},
        {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49280},
        {"hidden_size": 768, "grid_size": 32, "num_attention_heads": 12},
        4,
    ),
    "2.2B": (
        {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
        {"image_size": 384, "patch_size": 14},
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24},
        {"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 49280},
        {"hidden_size": 1152, "grid_size": 27, "num_attention_heads": 16},
        3,
    ),
}


@pytest.mark.contract
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_graft_without_a_rename_table(size):
    tower, pixels, text, heads, vision, scale_factor = PUBLISHED[size]
    text = {**text, **heads}
    with torch.device("meta"):
        smolvlm = SmolVLMForConditionalGeneration(smolvlm_config({**tower, **pixels}, text, scale_factor))
        model = SmolDriverForConditionalGeneration(
            SmolDriverConfig(
                vision_config=vision, text_config={"model_type": "llama", **text}, scale_factor=scale_factor
            )
        )
    ours = {name: tuple(t.shape) for name, t in model.state_dict().items() if ".vision_model." not in name}
    theirs = {name: tuple(t.shape) for name, t in smolvlm.state_dict().items() if ".vision_model." not in name}
    assert ours == theirs


@pytest.mark.contract
def test_default_configuration_is_that_of_the_paper():
    config = SmolDriverConfig()
    assert config.visual_token_budgets == [81, 64, 49, 36, 25, 16, 9, 4, 1]
    assert config.vision_config.tower_image_size == 432
    assert (config.vision_config.tower_image_size // config.vision_config.tower_config.patch_size) == 27
    with torch.device("meta"):
        text = AutoModel.from_config(config.text_config)
    assert sum(p.numel() for p in text.parameters()) == 1_711_376_384 + 128 * 2048  # SmolLM2-1.7B and SmolVLM's rows


# Bad input


@pytest.mark.contract
@pytest.mark.parametrize(
    "values, message",
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30 must be divisible by num_attention_heads=4"),
        ({"hidden_size": 18, "num_attention_heads": 3}, "and by 4"),
        ({"resampler_keys": "both"}, "resampler_keys='both' is unknown; use one of"),
        ({"cameras": ["CAM_FRONT", "CAM_FRONT"]}, "cameras must be distinct names"),
        ({"cameras": []}, "cameras must be distinct names"),
        ({"tower_image_size": 50}, "tower_image_size=50 is not a multiple of the tower's patch_size=16"),
        ({"tower_image_size": 0}, "tower_image_size=0 must be at least 1"),
        ({"tower_image_size": 8}, "tower_image_size=8 is not a multiple"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"grid_size": 0}, "grid_size=0"),
        ({"tower_config": {"hidden_size": 32}}, "needs a `model_type`"),
        ({"tower_config": {"model_type": "resnet"}}, "backbone with square patches"),
        ({"tower_config": {"model_type": "vit", "patch_size": [16, 8]}}, r"patch_size=\[16, 8\]"),
    ],
)
def test_vision_config_refuses_what_cannot_work(values, message):
    with pytest.raises(ValueError, match=message):
        SmolDriverVisionConfig(**values)


@pytest.mark.contract
@pytest.mark.parametrize("scale_factor", [0, 4, -3])
def test_grid_that_cannot_serve_the_connector_is_refused(scale_factor):
    with pytest.raises(ValueError, match=rf"27x27.*scale_factor={scale_factor}"):
        SmolDriverConfig(scale_factor=scale_factor)


@pytest.mark.contract
def test_pictures_and_image_tokens_must_match(model, processor, images, frames, inputs):
    five = encode(processor, [without(images, "CAM_BACK")], QUESTIONS[:1])
    with pytest.raises(ValueError, match=r"hold \[54\] <image> tokens for \[5\] pictures.*\[9, 4, 1\]"):
        model(input_ids=inputs["input_ids"], pixel_values=five["pixel_values"], camera_ids=five["camera_ids"])
    bare = {name: inputs[name].clone() for name in inputs}
    bare["input_ids"][bare["input_ids"] == model.config.image_token_id] = 10
    with pytest.raises(ValueError, match=r"hold \[0\] <image> tokens for \[6\] pictures"):
        model(**bare)
    with pytest.raises(ValueError, match="54 <image> tokens.*no pixel_values"):
        model(input_ids=inputs["input_ids"])
    batch = encode(processor, frames, QUESTIONS[:3], padding=True)
    batch["camera_ids"] = batch["camera_ids"].flip(0)
    with pytest.raises(ValueError, match=r"hold \[54, 36, 9\] <image> tokens for \[1, 4, 6\] pictures"):
        model(**batch)


@pytest.mark.contract
@pytest.mark.parametrize("tokens", [2, 16, 8])
def test_image_tokens_that_are_no_budget_are_refused(model, inputs, tokens):
    ids = torch.cat([torch.full((1, 6 * tokens), model.config.image_token_id), torch.tensor([[10, 11]])], dim=1)
    with pytest.raises(ValueError, match=rf"{tokens} image tokens a view is not a budget.*\[9, 4, 1\]"):
        model(input_ids=ids, pixel_values=inputs["pixel_values"], camera_ids=inputs["camera_ids"])


@pytest.mark.contract
@pytest.mark.parametrize("camera", [6, -2])
def test_unknown_camera_ids_are_refused(model, inputs, camera):
    inputs["camera_ids"][0, 3] = camera
    with pytest.raises(ValueError, match=rf"camera_ids must be -1 .*0 \.\. 5.*{camera}"):
        model.get_image_features(inputs["pixel_values"], inputs["camera_ids"])


@pytest.mark.contract
def test_shapes_that_disagree_are_refused(model, inputs):
    with pytest.raises(ValueError, match=r"got \(6, 3, 48, 48\) and \(1, 6\)"):
        model.get_image_features(inputs["pixel_values"][0], inputs["camera_ids"])
    with pytest.raises(ValueError, match="camera_ids"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(pixel_values=inputs["pixel_values"], camera_ids=inputs["camera_ids"])
