"""The model: batches, padding, attention, budgets, towers, and clear errors for inputs that do not fit."""

import copy

import pytest
import torch
import transformers
from fakes import QUESTIONS, assert_same, inputs_of, prompt_of, tiny_config, tiny_model, without
from torch import nn
from transformers import LlamaForCausalLM

from modeling_smoldriver import (
    SmolDriverConfig,
    SmolDriverForConditionalGeneration,
    SmolDriverProcessor,
    SmolDriverResampler,
    SmolDriverVisionConfig,
)
from modeling_smoldriver.modeling_smoldriver import SmolDriverHeadMixin

pytestmark = pytest.mark.contract

BUDGETS = (9, 4, 1)
since_transformers_5 = pytest.mark.skipif(
    transformers.__version__.startswith("4."), reason="transformers 4.57 offers it to no model with pictures"
)


# Batches of frames


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_batch_of_frames_with_missing_cameras_equals_each_frame_alone(model, processor, frames, side):
    batch = inputs_of(processor, frames, QUESTIONS[:3], padding=True, padding_side=side)
    assert batch["camera_ids"].tolist() == [[0, 1, 2, 3, 4, 5], [0, 2, 3, 4, -1, -1], [4, -1, -1, -1, -1, -1]]
    logits = model(**batch).logits
    for row, (frame, question) in enumerate(zip(frames, QUESTIONS, strict=False)):
        alone = model(**inputs_of(processor, [frame], [question])).logits[0]
        assert_same(logits[row][batch["attention_mask"][row].bool()], alone)


@torch.no_grad()
def test_left_padded_batch_generates_what_each_row_generates_alone(model, processor, frames):
    batch = inputs_of(processor, frames, QUESTIONS[:3], padding=True, padding_side="left")
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, (frame, question) in enumerate(zip(frames, QUESTIONS, strict=False)):
        alone = inputs_of(processor, [frame], [question])
        assert torch.equal(together[row], model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :])


@torch.no_grad()
def test_order_of_the_camera_dict_changes_nothing(model, processor, images, inputs):
    shuffled = inputs_of(processor, [dict(reversed(images.items()))], QUESTIONS[:1])
    assert torch.equal(model(**shuffled).logits, model(**inputs).logits)


@pytest.mark.parametrize("keys", ["content", "position"])
@torch.no_grad()
def test_swapping_the_pictures_of_two_cameras_changes_the_logits(make_model, image_processor, images, keys):
    model, processor = make_model(image_processor, resampler_keys=keys)
    swapped = {**images, "CAM_FRONT": images["CAM_BACK"], "CAM_BACK": images["CAM_FRONT"]}
    before = model(**inputs_of(processor, [images], QUESTIONS[:1])).logits[0, -1]
    after = model(**inputs_of(processor, [swapped], QUESTIONS[:1])).logits[0, -1]
    assert (before - after).abs().max() > 1e-2


@torch.no_grad()
def test_each_view_goes_through_the_resampler_of_its_own_camera(model, inputs):
    before = model.get_image_features(inputs["pixel_values"], inputs["camera_ids"]).pooler_output
    for parameter in model.model.vision_model.resampler.parameters():
        parameter[2].add_(0.5)
    after = model.get_image_features(inputs["pixel_values"], inputs["camera_ids"]).pooler_output
    changed = [(one - other).abs().max().item() > 1e-3 for one, other in zip(before, after, strict=True)]
    assert changed == [False, False, True, False, False, False]


# Attention, cache, checkpointing


@pytest.mark.parametrize("keys", ["content", "position"])
@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip"])
@torch.no_grad()
def test_eager_attention_equals_sdpa(make_model, image_processor, frames, tower, keys):
    model, processor = make_model(image_processor, tower, resampler_keys=keys)
    batch = inputs_of(processor, frames, QUESTIONS[:3], padding=True, padding_side="right")
    real = batch["attention_mask"].bool()
    vision = model.model.vision_model
    parts = (model.model.text_model, vision, vision.resampler, vision.tower)
    assert {part.config._attn_implementation for part in parts} == {"sdpa"}
    expected = model(**batch).logits[real]
    model.set_attn_implementation("eager")
    assert {part.config._attn_implementation for part in parts} == {"eager"}
    assert_same(model(**batch).logits[real], expected)


@pytest.mark.slow
@torch.no_grad()
def test_flex_attention_equals_sdpa(model, processor, frames):
    batch = inputs_of(processor, frames, QUESTIONS[:3], padding=True, padding_side="right")
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits[real]
    model.set_attn_implementation("flex_attention")
    assert_same(model(**batch).logits[real], expected)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_cached_generation_equals_uncached(model, inputs, beams):
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams}
    cached = model.generate(**inputs, **options, use_cache=True)
    assert torch.equal(cached, model.generate(**inputs, **options, use_cache=False))


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
        inputs = inputs_of(processor, [images], QUESTIONS[:1], visual_tokens=tokens)
        assert (inputs["input_ids"] == model.config.image_token_id).sum() == 6 * tokens
        outputs = model(**inputs)
        assert outputs.image_hidden_states.shape == (6, tokens, 48)
        assert outputs.logits.shape == (*inputs["input_ids"].shape, model.config.text_config.vocab_size)
        assert outputs.logits.isfinite().all()
        last[tokens] = outputs.logits[0, -1]
    assert (last[9] - last[4]).abs().max() > 1e-3 and (last[4] - last[1]).abs().max() > 1e-3


@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip"])
@torch.no_grad()
def test_a_budget_may_bring_its_own_picture_size(make_model, image_processor, tokenizer, images, tower):
    model, _ = make_model(image_processor, tower)
    processor = SmolDriverProcessor.from_config(
        model.config, image_processor, tokenizer, budget_image_sizes={4: 32, 1: 16}
    )
    for tokens, side in ((9, 48), (4, 32), (1, 16)):
        inputs = inputs_of(processor, [images], QUESTIONS[:1], visual_tokens=tokens)
        assert inputs["pixel_values"].shape == (1, 6, 3, side, side)
        outputs = model(**inputs)
        assert outputs.image_hidden_states.shape == (6, tokens, 48) and outputs.logits.isfinite().all()


@torch.no_grad()
def test_a_smaller_budget_is_a_coarser_picture_and_not_its_upper_part(model):
    """A mark in each quarter of the picture reaches the tokens of that quarter, at every grid."""
    resampler = SmolDriverResampler(model.config.vision_config).eval()
    model._init_weights(resampler)
    for module in resampler.children():
        model._init_weights(module)
    resampler.camera_output.weight.zero_()  # leaves the aligned residual
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


def test_pictures_that_do_not_tile_into_patches_are_refused(model):
    with pytest.raises(ValueError, match=r"\(50, 50\) pixels do not tile into square patches of 8"):
        model.get_image_features(torch.zeros(1, 1, 3, 50, 50), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(48, 40\)"):
        model.get_image_features(torch.zeros(1, 1, 3, 48, 40), torch.zeros(1, 1, dtype=torch.long))


# Padding and shared pictures


@torch.no_grad()
def test_padded_views_do_not_enter_the_vision_model(model, processor, frames):
    batch = inputs_of(processor, frames, QUESTIONS[:3], padding=True, padding_side="right")
    real = batch["camera_ids"] >= 0
    assert not real.all()
    entered = []
    model.model.vision_model.register_forward_pre_hook(lambda module, arguments: entered.append(arguments[0]))
    model(**batch)
    assert [len(pixels) for pixels in entered] == [int(real.sum())]
    assert torch.equal(entered[0], batch["pixel_values"][real])


@torch.no_grad()
def test_rows_of_one_frame_share_its_pictures(model, processor, frames):
    batch = inputs_of(processor, frames[:2] + frames[:1], QUESTIONS[:3], padding=True, padding_side="right")
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits[real]
    views = []
    model.model.vision_model.tower.register_forward_pre_hook(lambda module, arguments: views.append(len(arguments[0])))
    batch["pixel_values"], batch["camera_ids"] = batch["pixel_values"][:2], batch["camera_ids"][:2]
    assert_same(model(**batch, frame_index=torch.tensor([0, 1, 0])).logits[real], expected)
    assert views == [int((batch["camera_ids"] >= 0).sum())]
    with pytest.raises(ValueError, match="image tokens and pictures do not match"):
        model(**batch, frame_index=torch.tensor([0, 1, 1]))


@torch.no_grad()
def test_a_cut_prompt_does_not_pass_as_one_of_a_smaller_budget(model, processor, images):
    """Six pictures of nine tokens each, cut after 24: as many as six pictures of four."""
    inputs = prompt_of(processor, images, QUESTIONS[0])
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    assert len(places) == 6 * 9
    end = int(places[23]) + 1
    inputs = {**inputs, "input_ids": inputs["input_ids"][:, :end], "attention_mask": inputs["attention_mask"][:, :end]}
    with pytest.raises(ValueError, match="the rows hold .24. <image> tokens for .6. pictures"):
        model(**inputs)


@torch.no_grad()
def test_logits_of_a_mask_are_those_positions_of_each_row(model, processor, frames):
    batch = inputs_of(processor, frames, QUESTIONS[:3], padding=True, padding_side="right")
    mask = torch.rand(batch["input_ids"].shape) < 0.3
    expected = model(**batch).logits[mask]
    assert_same(model(**batch, logits_to_keep=mask).logits[0], expected)


# Other ways to call the model


@pytest.fixture
def batch(processor, frames):
    """Three frames with different cameras missing, padded on the left."""
    return inputs_of(processor, frames, QUESTIONS[:3], padding=True, padding_side="left")


@torch.no_grad()
def test_embeddings_with_places_for_pictures_give_the_logits_of_the_ids(model, batch):
    ids = batch.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds, **batch).logits, model(input_ids=ids, **batch).logits)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(input_ids=ids, **batch, **options)[:, ids.shape[1] :]
    assert torch.equal(model.generate(inputs_embeds=embeds, **batch, **options), expected)
    embeds[0, (ids[0] == model.config.image_token_id).nonzero()[0]] += 1
    with pytest.raises(ValueError, match=r"hold \[53, 36, 9\] <image> tokens for \[6, 4, 1\] pictures"):
        model(inputs_embeds=embeds, **batch)


@torch.no_grad()
def test_a_tuple_holds_what_the_output_object_does(model, inputs):
    vision = {"pixel_values": inputs["pixel_values"][0], "camera_ids": inputs["camera_ids"][0]}
    pictures = {name: inputs[name] for name in ("pixel_values", "camera_ids")}
    calls = [(model, inputs), (model.model, inputs), (model.model.vision_model, vision)]
    for call, arguments in [*calls, (model.get_image_features, pictures)]:
        given, expected = call(**arguments, return_dict=False), call(**arguments).to_tuple()
        assert isinstance(given, tuple) and len(given) == len(expected)
        for one, other in zip(given, expected, strict=True):
            assert not torch.is_tensor(one) or torch.equal(one, other)


@torch.no_grad()
def test_hidden_states_and_attentions_of_the_tower_come_out(model, inputs):
    model.set_attn_implementation("eager")
    pictures = {name: inputs[name] for name in ("pixel_values", "camera_ids")}
    outputs = model.get_image_features(**pictures, output_hidden_states=True, output_attentions=True)
    expected = model.model.vision_model.tower(
        inputs["pixel_values"][0], interpolate_pos_encoding=True, output_hidden_states=True, output_attentions=True
    )
    for name, shape in (("hidden_states", (6, 37, 32)), ("attentions", (6, 2, 37, 37))):
        assert [tuple(state.shape) for state in outputs[name]] == [shape] * len(expected[name])
        assert all(map(torch.equal, outputs[name], expected[name]))
    assert outputs.hidden_states[0].std() > 0 and len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
    assert model.get_image_features(**pictures).hidden_states is None


@torch.no_grad()
def test_pictures_encoded_before_give_the_same_logits(model, batch):
    expected = model(**batch).logits
    pictures = {name: batch.pop(name) for name in ("pixel_values", "camera_ids")}
    encoded = {"image": model.get_image_features(**pictures)}
    assert torch.equal(model(**batch, mm_encoder_outputs=encoded).logits, expected)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 2}
    assert torch.equal(
        model.generate(**batch, mm_encoder_outputs=encoded, **options), model.generate(**batch, **pictures, **options)
    )
    encoded["image"].pooler_output = encoded["image"].pooler_output[:-1]
    with pytest.raises(ValueError, match="rows hold 99 <image> tokens, the encoded pictures give 90"):
        model(**batch, mm_encoder_outputs=encoded)


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 4}, {"num_return_sequences": 3, "do_sample": True}],
    ids=str,
)
@torch.no_grad()
def test_beams_and_samples_encode_each_picture_once(model, batch, monkeypatch, options):
    image = [model.config.image_token_id]  # may be sampled, and would be a place without a picture
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "suppress_tokens": image, **options}
    views = []
    model.model.vision_model.tower.register_forward_pre_hook(lambda module, arguments: views.append(len(arguments[0])))

    def generate(**inputs):
        torch.manual_seed(0)
        views.clear()
        return model.generate(**inputs, **options), sum(views)

    tokens, encoded = generate(**batch)
    assert encoded == int((batch["camera_ids"] >= 0).sum()) == 11
    assert generate(**batch, use_cache=False)[1] == 11  # nor once more per step
    shared = dict(batch, frame_index=torch.arange(3))
    assert torch.equal(generate(**shared)[0], tokens)
    monkeypatch.setattr(
        SmolDriverHeadMixin,
        "_expand_inputs_for_generation",
        lambda self, **kwargs: super(SmolDriverHeadMixin, self)._expand_inputs_for_generation(**kwargs),
    )
    repeated, encoded = generate(**batch)
    assert torch.equal(tokens, repeated)
    assert encoded == 11 * max(options.get("num_beams", 1), options.get("num_return_sequences", 1))


@since_transformers_5
@torch.no_grad()
def test_prefill_in_chunks_equals_one_prefill(model, batch):
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = model.generate(**batch, **options)
    assert torch.equal(model.generate(**batch, **options, prefill_chunk_size=16), expected)


@pytest.mark.parametrize("draft", ["itself", "smaller", pytest.param("text alone", marks=since_transformers_5)])
@torch.no_grad()
def test_a_draft_model_changes_no_token(model, tokenizer, inputs, draft):
    model.generation_config.eos_token_id = None  # 4.57 offers no min_new_tokens beside a draft model
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = model.generate(**inputs, **options)
    assert expected.shape[1] == inputs["input_ids"].shape[1] + 12
    if draft == "itself":
        assistant = copy.deepcopy(model)
    elif draft == "smaller":
        config = tiny_config(tokenizer)
        config.text_config.hidden_size = 24  # visual tokens of the one do not fit the other
        assistant = tiny_model(config, seed=1)
    else:
        assistant = LlamaForCausalLM(model.config.text_config).eval()
    steps = []
    model.model.text_model.register_forward_hook(lambda *_: steps.append(1))
    assert torch.equal(model.generate(**inputs, **options, assistant_model=assistant), expected)
    assert draft != "itself" or len(steps) < 12  # the draft saw the pictures: its tokens were taken


@torch.no_grad()
def test_weights_on_disk_answer_as_weights_in_memory(model, processor, inputs, images, tmp_path):
    """accelerate leaves such weights on the meta device between calls."""
    model.save_pretrained(tmp_path)
    where = {"model.vision_model": "cpu", "model.connector": "disk", "lm_head": "disk", "model.text_model": "disk"}
    for device_map in (
        where,
        {"model.vision_model": "disk", "model.connector": "cpu", "model.text_model": "cpu", "lm_head": "cpu"},
    ):
        loaded = SmolDriverForConditionalGeneration.from_pretrained(
            tmp_path, device_map=device_map, offload_folder=tmp_path / "offload"
        ).eval()
        assert any(weight.is_meta for weight in loaded.parameters())
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "repetition_penalty": 1.3}
        assert torch.equal(loaded.generate(**inputs, **options), model.generate(**inputs, **options))
        scenes = [one.encode_scene(**processor.encode_scene(images)) for one in (loaded, model)]
        answers = [
            one.answer_tokens(scene, processor, QUESTIONS, **options)
            for one, scene in zip((loaded, model), scenes, strict=True)
        ]
        assert answers[0] == answers[1]


# Compiled and exported graphs


@torch.no_grad()
def test_vision_model_and_image_features_compile_as_one_graph(model):
    pixels = torch.randn(2, 6, 3, 48, 48)
    camera_ids = torch.tensor([[0, 5, 2, -1, 3, 1], [-1, 4, 4, -1, -1, 0]])
    real = camera_ids >= 0
    features = torch.compile(model.get_image_features, fullgraph=True, backend="eager")
    for tokens in (9, 4):
        compiled = features(pixels, camera_ids, tokens).pooler_output
        assert len(compiled) == 12  # padding last, and not read
        assert_same(compiled[: int(real.sum())], model.get_image_features(pixels, camera_ids, tokens).pooler_output)


@torch.no_grad()
def test_exported_vision_model_takes_other_cameras_and_frames(model):
    views = torch.export.Dim("views", min=2, max=64)
    pixels = torch.randn(7, 3, 48, 48)
    example = {"pixel_values": pixels[:4], "camera_ids": torch.tensor([3, 0, 0, 5])}
    shapes = {"pixel_values": {0: views}, "camera_ids": {0: views}}
    exported = torch.export.export(model.model.vision_model, (), example, dynamic_shapes=shapes).module()
    camera_ids = torch.tensor([1, 1, 2, 3, 4, 5, 0])
    expected = model.model.vision_model(pixels, camera_ids).last_hidden_state
    assert_same(exported(pixel_values=pixels, camera_ids=camera_ids).last_hidden_state, expected)


@pytest.mark.slow
@pytest.mark.parametrize("frame_index", [None, torch.tensor([1, 0, 1])], ids=["own frames", "shared frames"])
@torch.no_grad()
def test_a_whole_forward_compiles_as_one_graph(model, processor, frames, frame_index):
    chosen = frames if frame_index is None else [frames[1], frames[0], frames[1]]
    batch = dict(inputs_of(processor, chosen, QUESTIONS[:3], padding=True, padding_side="right", visual_tokens=4))
    expected = model(**batch).logits
    if frame_index is not None:
        batch |= {"pixel_values": batch["pixel_values"][:2].flip(0), "camera_ids": batch["camera_ids"][:2].flip(0)}
        batch["frame_index"] = frame_index
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    real = batch["attention_mask"].bool()
    assert_same(compiled(**batch, visual_tokens=4, use_cache=False).logits[real], expected[real])
    with pytest.raises(RuntimeError, match="image tokens and pictures do not match"):
        compiled(**batch, use_cache=False)  # the largest budget, which is not the prompt's


@pytest.mark.slow
@since_transformers_5
@torch.no_grad()
def test_transformers_own_exporter_takes_the_vision_model_and_the_whole(model, inputs):
    dynamo = pytest.importorskip("transformers.exporters.exporter_dynamo")
    vision = {"pixel_values": inputs["pixel_values"][0], "camera_ids": inputs["camera_ids"][0]}
    exporter = dynamo.DynamoExporter()
    for part, arguments, name in (
        (model.model.vision_model, vision, "last_hidden_state"),
        (model, dict(inputs), "logits"),
    ):
        exported = exporter.export(part, arguments, dynamo.DynamoConfig())
        assert_same(exported(**arguments)[name], part(**arguments)[name])
    stages = exporter.export_for_generation(model, dict(inputs), dynamo.DynamoConfig(dynamic=True))
    assert {"language_model", "lm_head", "decode"} <= stages.components.keys()


# Bad input


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


@pytest.mark.parametrize("scale_factor", [0, 4, -3])
def test_grid_that_cannot_serve_the_connector_is_refused(scale_factor):
    with pytest.raises(ValueError, match=rf"27x27.*scale_factor={scale_factor}"):
        SmolDriverConfig(scale_factor=scale_factor)


def test_pictures_and_image_tokens_must_match(model, processor, images, frames, inputs):
    five = inputs_of(processor, [without(images, "CAM_BACK")], QUESTIONS[:1])
    with pytest.raises(ValueError, match=r"hold \[54\] <image> tokens for \[5\] pictures.*\[9, 4, 1\]"):
        model(input_ids=inputs["input_ids"], pixel_values=five["pixel_values"], camera_ids=five["camera_ids"])
    bare = {name: inputs[name].clone() for name in inputs}
    bare["input_ids"][bare["input_ids"] == model.config.image_token_id] = 10
    with pytest.raises(ValueError, match=r"hold \[0\] <image> tokens for \[6\] pictures"):
        model(**bare)
    with pytest.raises(ValueError, match="54 <image> tokens.*no pixel_values"):
        model(input_ids=inputs["input_ids"])
    batch = inputs_of(processor, frames, QUESTIONS[:3], padding=True)
    batch["camera_ids"] = batch["camera_ids"].flip(0)
    with pytest.raises(ValueError, match=r"hold \[54, 36, 9\] <image> tokens for \[1, 4, 6\] pictures"):
        model(**batch)


@pytest.mark.parametrize("tokens", [2, 16, 8])
def test_image_tokens_that_are_not_a_budget_are_refused(model, inputs, tokens):
    ids = torch.tensor([([model.config.image_token_id] * tokens + [10]) * 6 + [11]])
    with pytest.raises(ValueError, match=rf"{tokens} image tokens per view is not a budget.*\[9, 4, 1\]"):
        model(input_ids=ids, pixel_values=inputs["pixel_values"], camera_ids=inputs["camera_ids"])


@pytest.mark.parametrize("camera", [6, -2])
def test_unknown_camera_ids_are_refused(model, inputs, camera):
    inputs["camera_ids"][0, 3] = camera
    with pytest.raises(ValueError, match=rf"camera_ids must be -1 .*0 \.\. 5.*{camera}"):
        model.get_image_features(inputs["pixel_values"], inputs["camera_ids"])


def test_shapes_that_disagree_are_refused(model, inputs):
    with pytest.raises(ValueError, match=r"got \(6, 3, 48, 48\) and \(1, 6\)"):
        model.get_image_features(inputs["pixel_values"][0], inputs["camera_ids"])
    with pytest.raises(ValueError, match="need camera_ids"):  # those of all cameras go by the configuration's order
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:, :5])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model(pixel_values=inputs["pixel_values"], camera_ids=inputs["camera_ids"])
