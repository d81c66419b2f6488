"""Packed frames: loss and gradients are those of one question at a time, and nothing is lost, doubled or copied."""

import io
import itertools

import pytest
import torch
from fakes import (
    CASES,
    QA,
    assert_same,
    assert_same_training,
    dataset,
    frame,
    loss_and_gradients,
    one_by_one,
    tiny_config,
    tiny_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from PIL import Image
from torch.nn.attention.flex_attention import create_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention as sdpa

from data_scripts.schema import SCENE_FEATURES
from modeling_smoldriver import CAMERAS, SmolDriverForConditionalGeneration
from modeling_smoldriver.collator_smoldriver import SmolDriverCollator, camera_asked, group_questions
from modeling_smoldriver.packing_smoldriver import block_mask, flex_block_mask, prefix_attention
from modeling_smoldriver.trainer_smoldriver import SmolDriverSFTConfig, SmolDriverSFTTrainer
from recipes.sft_qlora import LANGUAGE_MODEL_LINEARS
from recipes.training.loading import load_base, nf4


@pytest.fixture
def make_trainer(config, processor, tmp_path):
    def make(model=None, rows=(), **options):
        options = {
            "output_dir": str(tmp_path / "run"),
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "lr_scheduler_type": "constant",
            **options,
        }
        return SmolDriverSFTTrainer(
            model or tiny_model(config),
            SmolDriverSFTConfig(**options),
            train_dataset=dataset(rows or [frame(0)]),
            processing_class=processor,
        )

    return make


@pytest.mark.parametrize("attention, packed", [("sdpa", "blocks"), ("sdpa", "mask"), ("eager", "mask")])
@pytest.mark.parametrize("case", CASES)
def test_packed_loss_and_gradients_equal_one_by_one(make_trainer, config, processor, case, attention, packed):
    model = tiny_model(config)
    if attention == "eager":
        model.set_attn_implementation("eager")
    trainer = make_trainer(model, scene_packing=True, packed_attention=packed, use_scene_description=True)
    reference = make_trainer(tiny_model(config))
    rows = CASES[case]
    batch = SmolDriverCollator(processor, scene_packing=True, use_scene_description=True)(rows)
    assert len(batch["input_ids"]) == len(rows)
    single = SmolDriverCollator(processor, use_scene_description=True)
    alone = [single([row]) for row in one_by_one(rows)]
    assert all("segment_ids" not in batch and len(batch["input_ids"]) == 1 for batch in alone)
    assert_same_training(loss_and_gradients(trainer, [batch]), loss_and_gradients(reference, alone))


@pytest.mark.parametrize("packed_attention", ["blocks", "mask"])
@pytest.mark.parametrize("max_pack_length", [230, 260])
def test_frame_split_into_packs_equals_one_by_one(make_trainer, processor, max_pack_length, packed_attention):
    trainer = make_trainer(scene_packing=True, packed_attention=packed_attention)
    rows = [frame(0), frame(1, missing=("CAM_BACK",))]
    packed = SmolDriverCollator(processor, scene_packing=True, max_pack_length=max_pack_length)(rows)
    assert len(packed["input_ids"]) > len(rows)  # several packs of a frame
    assert packed["input_ids"].shape[1] <= max_pack_length
    assert len(packed["pixel_values"]) == len(packed["camera_ids"]) == len(rows)  # but its pictures once
    single = SmolDriverCollator(processor)
    alone = [single([row]) for row in one_by_one(rows)]
    assert_same_training(loss_and_gradients(trainer, [packed]), loss_and_gradients(trainer, alone))


@pytest.mark.parametrize("packed_attention", ["blocks", "mask"])
@pytest.mark.parametrize("visual_tokens", [9, 4, 1])
def test_packing_equals_one_by_one_at_every_budget(make_trainer, processor, visual_tokens, packed_attention):
    trainer = make_trainer(scene_packing=True, packed_attention=packed_attention)
    packed = SmolDriverCollator(processor, scene_packing=True, visual_tokens=[visual_tokens])([frame(0)])
    single = SmolDriverCollator(processor, visual_tokens=[visual_tokens])
    alone = [single([row]) for row in one_by_one([frame(0)])]
    assert_same_training(loss_and_gradients(trainer, [packed]), loss_and_gradients(trainer, alone))


def test_packing_equals_one_by_one_with_gradient_checkpointing(make_trainer, processor):
    trainer = make_trainer(scene_packing=True)
    single = SmolDriverCollator(processor)
    expected = loss_and_gradients(trainer, [single([row]) for row in one_by_one([frame(0)])])
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    packed = SmolDriverCollator(processor, scene_packing=True)([frame(0)])
    assert_same_training(loss_and_gradients(trainer, [packed]), expected)


def test_packing_in_bfloat16_is_near_one_by_one(make_trainer, processor):
    """Autocast rounds to 8 bits: losses agree to 1%, gradients to 6% of their norm."""
    trainer = make_trainer(scene_packing=True, bf16=True)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    packed = SmolDriverCollator(processor, scene_packing=True, max_pack_length=260)([frame(0)])
    assert "frame_index" in packed
    single = SmolDriverCollator(processor)
    alone = [single([row]) for row in one_by_one([frame(0)])]
    exact, exact_gradients = loss_and_gradients(trainer, alone)  # called by hand: without autocast
    with torch.autocast("cpu", torch.bfloat16):
        loss, gradients = loss_and_gradients(trainer, [packed])
    torch.testing.assert_close(loss, exact, rtol=1e-2, atol=0)
    together, difference = (
        torch.cat([value.flatten() for value in values])
        for values in (exact_gradients.values(), [gradients[name] - exact_gradients[name] for name in gradients])
    )
    assert 0 < difference.norm() < 0.06 * together.norm()


def test_packing_equals_one_by_one_under_qlora(config, processor, tmp_path):
    """An NF4 language model with adapters, vision in full: the rounding of the weights is the same either way."""
    folder = tmp_path / "base"
    tiny_model(config).save_pretrained(folder)
    model = load_base(folder, torch.float32, nf4(torch.float32, double=True))
    options = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "report_to": "none"}
    adapters = LoraConfig(
        r=4,
        lora_alpha=4,
        lora_dropout=0.0,
        target_modules=LANGUAGE_MODEL_LINEARS,
        modules_to_save=["vision_model"],
        init_lora_weights=False,
    )
    trainer = SmolDriverSFTTrainer(
        model,
        SmolDriverSFTConfig(scene_packing=True, **options),
        train_dataset=dataset([frame(0)]),
        processing_class=processor,
        peft_config=adapters,
    )
    packed = SmolDriverCollator(processor, scene_packing=True, max_pack_length=260)([frame(0)])
    single = SmolDriverCollator(processor)
    alone = [single([row]) for row in one_by_one([frame(0)])]
    one, other = (trained_loss_and_gradients(trainer, batches) for batches in ([packed], alone))
    assert any("lora_B" in name for name in one[1]) and any("resampler.query" in name for name in one[1])
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=0)
    for name, gradient in one[1].items():
        if not name.endswith(("k_proj.bias", "key.bias")):  # rounding noise alone, see assert_same_training
            assert (gradient - other[1][name]).norm() <= 1e-4 * other[1][name].norm(), name


def trained_loss_and_gradients(trainer, batches):
    trainer.model.train()
    trainer.model.zero_grad()
    losses = [trainer.compute_loss(trainer.model, batch) / len(batches) for batch in batches]
    sum(losses).backward()
    parameters = trainer.model.named_parameters()
    return sum(losses).detach(), {name: value.grad.clone() for name, value in parameters if value.grad is not None}


def test_one_by_one_loss_is_the_models_own(make_trainer, processor):
    """The reference of the tests above is itself the plain loss over answer tokens."""
    trainer = make_trainer()
    batch = SmolDriverCollator(processor)(one_by_one([frame(0)])[1:2])
    names = ("input_ids", "attention_mask", "labels", "pixel_values", "camera_ids")
    answer = batch["labels"][batch["labels"] != -100]
    assert processor.decode(answer) == f" {QA[1][1]}<end_of_utterance>"
    loss = trainer.model(**{name: batch[name] for name in names}).loss
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), loss, rtol=1e-5, atol=0)


def test_token_mode_is_the_mean_over_answer_tokens(make_trainer, processor):
    trainer = make_trainer(scene_packing=True, loss_mode="token")
    rows = [frame(0, QA[:2]), frame(1, QA[2:])]
    packed = SmolDriverCollator(processor, scene_packing=True)(rows)
    single = SmolDriverCollator(processor)
    alone = [single([row]) for row in one_by_one(rows)]
    tokens = torch.tensor(sum((batch["labels"] != -100).sum() for batch in alone))
    together = loss_and_gradients(trainer, [packed])
    assert_same_training(together, loss_and_gradients(trainer, alone, num_items_in_batch=tokens))
    by_question = make_trainer(scene_packing=True).compute_loss(trainer.model, packed)
    assert abs(by_question - together[0]) > 1e-2  # the modes do differ on ragged answers


@pytest.mark.parametrize("loss_mode", ["question", "token"])
def test_accumulated_batches_weigh_as_one_large_batch(make_trainer, processor, loss_mode):
    """Batches of unlike numbers of questions: accumulation must not weigh the small one more."""
    trainer = make_trainer(scene_packing=True, loss_mode=loss_mode)
    collator = SmolDriverCollator(processor, scene_packing=True)
    rows = [frame(0), frame(1, QA[1:2])]
    parts = [collator([row]) for row in rows]
    items = trainer._get_num_items_in_batch(parts, torch.device("cpu"))
    accumulated = loss_and_gradients(trainer, parts, num_items_in_batch=items)
    assert_same_training(accumulated, loss_and_gradients(trainer, [collator(rows)]))


def test_trainer_takes_the_same_step_packed_and_one_by_one(make_trainer, config):
    """Through `train()`: sampler, collator, loss, accumulation, and SGD, whose step is linear in the gradient."""
    rows = [frame(0, QA[:4]), frame(1, QA[1:], missing=("CAM_FRONT",))]
    options = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1, "max_grad_norm": 0.0}
    weights = []
    for how in (
        {"scene_packing": True, "per_device_train_batch_size": 2, "questions_per_scene": 4},
        {"scene_packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
        {"per_device_train_batch_size": 8},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    ):
        model = tiny_model(config)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        trainer = make_trainer(model, rows, **options, **how)
        trainer.train()
        assert trainer.state.global_step == 1 and trainer._questions_seen == 8
        weights.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    for other in weights[1:]:
        for name, step in weights[0].items():
            assert (step - other[name]).norm() <= 1e-4 * step.norm() + 1e-6, name  # weights are rounded, not gradients


def test_logged_counts_are_those_of_the_questions(make_trainer, processor):
    rows = [frame(0), frame(1, QA[:2], missing=("CAM_FRONT",))]
    logs = []
    for how in ({"scene_packing": True, "per_device_train_batch_size": 2}, {"per_device_train_batch_size": 7}):
        trainer = make_trainer(None, rows, max_steps=1, learning_rate=0.0, **how)
        trainer.train()
        logs.append(next(entry for entry in trainer.state.log_history if "loss" in entry))
    packed, single = logs
    assert packed["num_questions"] == single["num_questions"] == 7
    assert packed["mean_token_accuracy"] == pytest.approx(single["mean_token_accuracy"])
    assert packed["loss"] == pytest.approx(single["loss"], rel=1e-4)
    lengths = [token_counts(processor, row) for row in rows]
    assert packed["num_tokens"] == sum(prefix + sum(branches) for prefix, branches in lengths)
    assert single["num_tokens"] == sum(prefix * len(branches) + sum(branches) for prefix, branches in lengths)


def token_counts(processor, row):
    """(tokens of the prefix, tokens of each branch)."""
    present = [camera for camera in CAMERAS if row[camera] is not None]
    prefix = processor.tokenizer(processor.scene_prompt(present), add_special_tokens=False)["input_ids"]
    branches = [processor.question_prompt(qa["question"]) + processor.answer_text(qa["answer"]) for qa in row["qa"]]
    return len(prefix), [
        len(processor.tokenizer(branch, add_special_tokens=False)["input_ids"]) for branch in branches
    ]


# What a pack holds


def test_packing_copies_no_prefix_and_runs_the_tower_once(make_trainer, processor):
    trainer = make_trainer(scene_packing=True)
    rows = [frame(0), frame(1)]
    packed = SmolDriverCollator(processor, scene_packing=True)(rows)
    counts = [token_counts(processor, row) for row in rows]
    assert (packed["segment_ids"] >= 0).sum(-1).tolist() == [prefix + sum(branches) for prefix, branches in counts]
    assert packed["pixel_values"].shape[:2] == (2, 6)
    views, tokens = [], []
    vision = trainer.model.model.vision_model
    vision.tower.register_forward_hook(
        lambda module, arguments, keywords, output: views.append(len([*arguments, *keywords.values()][0])),
        with_kwargs=True,
    )
    trainer.model.model.text_model.layers[0].input_layernorm.register_forward_hook(
        lambda module, arguments, output: tokens.append(output.shape[:2])
    )
    trainer.compute_loss(trainer.model, packed)
    assert views == [12] and tokens == [packed["input_ids"].shape]


def test_frame_in_several_packs_goes_through_the_tower_once(make_trainer, processor):
    trainer = make_trainer(scene_packing=True)
    rows = [frame(0), frame(1, QA[:1], missing=("CAM_BACK",)), frame(2, missing=CAMERAS[2:])]
    packed = SmolDriverCollator(processor, scene_packing=True, max_pack_length=230)(rows)
    packs = [packed["frame_tokens"].count(row["frame_token"]) for row in rows]
    assert packs[0] > 1 and packs[1] == 1
    assert packed["frame_index"].tolist() == [number for number, count in enumerate(packs) for _ in range(count)]
    assert packed["pixel_values"].shape[:2] == packed["camera_ids"].shape == (3, 6)
    views = []
    trainer.model.model.vision_model.tower.register_forward_pre_hook(
        lambda module, arguments: views.append(len(arguments[0]))
    )
    trainer.compute_loss(trainer.model, packed)
    assert views == [6 + 5 + 2]


def test_batch_says_which_frame_a_sequence_shows_only_where_frames_have_several(processor):
    rows = [frame(0), frame(1)]
    assert "frame_index" not in SmolDriverCollator(processor, scene_packing=True)(rows)
    assert "frame_index" not in SmolDriverCollator(processor)([{**row, "qa": row["qa"][:1]} for row in rows])
    assert SmolDriverCollator(processor)([frame(0)])["frame_index"].tolist() == [0] * len(QA)


def test_a_pack_keeps_no_copy_of_the_prefix_for_a_question(make_trainer, processor):
    """Activations kept for the backward pass, in numbers: a question more costs its own tokens, not a prefix."""
    trainer = make_trainer(scene_packing=True)
    prefix, branches = token_counts(processor, frame(0, QA[:1] * 16))

    def kept(questions):
        numbers = {}

        def pack(tensor):
            numbers[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
            return tensor

        batch = SmolDriverCollator(processor, scene_packing=True)([frame(0, QA[:1] * questions)])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return sum(numbers.values())

    config = trainer.model.config.text_config
    widths = 20 * config.hidden_size + 8 * config.intermediate_size
    scores = 3 * config.num_attention_heads * (prefix + branches[0])
    a_token = config.num_hidden_layers * (widths + scores) + 4 * config.vocab_size
    assert kept(16) - kept(4) <= 12 * branches[0] * a_token
    assert 12 * branches[0] * a_token < 12 * prefix * config.num_hidden_layers * widths  # what copies would take


def test_branches_see_the_prefix_and_themselves(processor):
    batch = SmolDriverCollator(processor, scene_packing=True)([frame(0), frame(1, QA[:2])])
    mask = block_mask(batch["segment_ids"])
    assert mask.dtype == torch.bool and mask.shape == (2, 1, *[batch["input_ids"].shape[1]] * 2)
    for row, segments in enumerate(batch["segment_ids"].tolist()):
        for query, key in itertools.product(range(0, len(segments), 3), range(len(segments))):
            sees = (
                key <= query
                and segments[key] != -1
                and segments[key] in (0, segments[query])
                or (key == query and segments[query] == -1)
            )
            assert mask[row, 0, query, key].item() == sees, (segments[query], segments[key])
    prefix = (batch["segment_ids"] == 0).sum(-1)
    for row, segments in enumerate(batch["segment_ids"]):
        for branch in range(1, int(segments.max()) + 1):
            positions = batch["position_ids"][row][segments == branch]
            assert torch.equal(positions, torch.arange(len(positions)) + prefix[row])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_prefix_attention_in_bfloat16_equals_float32(kv_heads):
    """On a CPU the one has code of its own, values and gradients alike."""
    torch.manual_seed(0)
    exact = [torch.randn(2, heads, 13, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads)]
    rounded = [states.detach().bfloat16().requires_grad_() for states in exact]
    outputs = [prefix_attention(*states, scaling=0.4) for states in (exact, rounded)]
    weights = torch.randn(outputs[0].shape)
    for output in outputs:
        (output.float() * weights).sum().backward()
    pairs = [outputs, *((one.grad, other.grad) for one, other in zip(exact, rounded, strict=True))]
    for one, other in pairs:
        assert (one - other.float()).norm() < 0.02 * one.norm()


@torch.no_grad()  # on a CPU flex_attention has no backward pass
def test_flex_attention_has_the_same_mask_and_output(processor):
    batch = SmolDriverCollator(processor, scene_packing=True)([frame(0), frame(1, QA[:2])])
    segments = batch["segment_ids"]
    count, length = segments.shape
    boolean, tiles = block_mask(segments), flex_block_mask(segments)
    assert tiles.shape == (count, 1, length, length)
    assert torch.equal(create_mask(tiles.mask_mod, count, None, length, length, device="cpu"), boolean)
    assert sum(tensor.nbytes for tensor in tiles.as_tuple() if torch.is_tensor(tensor)) < boolean.nbytes / 50
    states = torch.randn(3, count, 2, length, 8)
    assert_same(flex_attention(*states, block_mask=tiles), sdpa(*states, attn_mask=boolean))


@pytest.mark.slow
@torch.no_grad()
def test_packed_loss_through_flex_attention_equals_sdpa(make_trainer, config, processor):
    """Compiled, as transformers calls it."""
    batch = SmolDriverCollator(processor, scene_packing=True)([frame(0), frame(1, QA[:2])])
    losses = []
    for attention in ("sdpa", "flex_attention"):
        model = tiny_model(config)
        model.set_attn_implementation({"text_config": attention})
        trainer = make_trainer(model, scene_packing=True, packed_attention="mask")
        trainer.model.eval()
        losses.append(trainer.compute_loss(trainer.model, batch))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)


def test_every_question_and_answer_is_in_the_batch_word_for_word(processor):
    rows = [frame(0), frame(1, QA[:2], missing=("CAM_BACK",))]
    batch = SmolDriverCollator(processor, scene_packing=True)(rows)
    assert batch["frame_tokens"] == ["frame0", "frame1"]
    for row, source in enumerate(rows):
        for number, qa in enumerate(source["qa"], start=1):
            branch = batch["segment_ids"][row] == number
            text = processor.question_prompt(qa["question"]) + processor.answer_text(qa["answer"])
            assert processor.decode(batch["input_ids"][row][branch]) == text
            answer = batch["labels"][row][branch]
            assert processor.decode(answer[answer != -100]) == processor.answer_text(qa["answer"])
            assert batch["loss_weights"][row][branch].sum().item() == pytest.approx(1.0)
    assert not (batch["loss_weights"][batch["labels"] == -100]).any()


def test_packed_rows_may_hold_undecoded_pictures(processor):
    rows = [frame(0, missing=("CAM_FRONT",))]
    collator = SmolDriverCollator(processor, scene_packing=True)
    stored = dataset(rows)
    for camera in CAMERAS:
        stored = stored.cast_column(camera, SCENE_FEATURES[camera].__class__(decode=False))
    expected, batch = collator(rows), collator([stored[0]])
    assert all(torch.equal(batch[name], expected[name]) for name in expected if name != "frame_tokens")


# Lengths


def lengths_of(processor, row):
    prefix, branches = token_counts(processor, row)
    return prefix, branches, max(branches)


def test_question_longer_than_a_pack_is_dropped_and_counted(processor, caplog):
    prefix, branches, longest = lengths_of(processor, frame(0))
    assert sum(length == longest for length in branches) == 1
    kept = [qa for qa, length in zip(QA, branches, strict=True) if length < longest]
    for packing in (True, False):
        collator = SmolDriverCollator(processor, scene_packing=packing, max_pack_length=prefix + longest - 1)
        batch = collator([frame(0)])
        assert collator.too_long == 1 and "longer than max_pack_length" in caplog.text
        assert batch["loss_weights"].sum().item() == pytest.approx(len(kept))
        text = " ".join(processor.batch_decode(batch["input_ids"]))
        assert all(f"Question: {question}" in text for question, _ in kept)
        assert f"Question: {QA[branches.index(longest)][0]}" not in text
    whole = SmolDriverCollator(processor, scene_packing=True, max_pack_length=prefix + longest)
    whole([frame(0)])
    assert whole.too_long == 0


def test_batch_without_a_fitting_question_is_refused(processor):
    prefix, branches, _ = lengths_of(processor, frame(0))
    collator = SmolDriverCollator(processor, scene_packing=True, max_pack_length=prefix + min(branches) - 1)
    with pytest.raises(ValueError, match=rf"no question of the frames \['frame0'\].*={prefix + min(branches) - 1}"):
        collator([frame(0)])


@pytest.mark.parametrize("packing", [True, False])
def test_prefix_longer_than_a_pack_is_refused_with_both_lengths(processor, packing):
    prefix, _, _ = lengths_of(processor, frame(0))
    for limit in (prefix, 50):
        collator = SmolDriverCollator(processor, scene_packing=packing, max_pack_length=limit)
        with pytest.raises(ValueError, match=rf"frame0: the prefix takes {prefix} tokens, max_pack_length is {limit}"):
            collator([frame(0)])


@pytest.mark.parametrize("packing", [True, False])
def test_prefix_longer_than_the_context_is_refused_with_both_lengths(make_trainer, tokenizer, packing):
    config = tiny_config(tokenizer)
    config.text_config.max_position_embeddings = 120
    trainer = make_trainer(tiny_model(config), [frame(0)], scene_packing=packing, max_steps=1)
    prefix, _ = token_counts(trainer.processing_class, frame(0))
    with pytest.raises(
        ValueError, match=rf"frame0: the prefix takes {prefix} tokens, the model's context is 120: choose"
    ):
        trainer.train()


def test_question_that_ends_beyond_the_context_is_dropped_but_a_pack_may_be_longer(processor):
    """Positions of every branch continue from the prefix: a pack needs no more of them than its longest question."""
    prefix, branches, longest = lengths_of(processor, frame(0))
    collator = SmolDriverCollator(processor, scene_packing=True, context_length=prefix + longest)
    batch = collator([frame(0)])
    assert collator.too_long == 0 and batch["input_ids"].shape == (1, prefix + sum(branches))
    assert batch["position_ids"].max() == prefix + longest - 1
    collator = SmolDriverCollator(processor, scene_packing=True, context_length=prefix + longest - 1)
    assert collator([frame(0)])["loss_weights"].sum().item() == pytest.approx(len(QA) - 1)
    assert collator.too_long == 1


def test_frames_without_questions_are_left_out_and_refused_where_none_is_left(processor):
    collator = SmolDriverCollator(processor, scene_packing=True)
    batch = collator([frame(0, []), frame(1)])
    assert batch["frame_tokens"] == ["frame1"] and len(batch["pixel_values"]) == 1
    with pytest.raises(ValueError, match=r"no question of the frames \['frame0'\] is left: they have none"):
        collator([frame(0, [])])


def test_a_long_frame_is_split_where_that_saves_padding(processor):
    rows = [frame(0, QA * 6), frame(1, QA[:1])]
    batch = SmolDriverCollator(processor, scene_packing=True)(rows)
    counts = [token_counts(processor, row) for row in rows]
    together = len(rows) * max(prefix + sum(branches) for prefix, branches in counts)
    assert batch["input_ids"].numel() < 0.85 * together
    assert batch["frame_tokens"].count("frame0") > 1 and batch["frame_tokens"].count("frame1") == 1
    assert batch["loss_weights"].sum().item() == pytest.approx(31)
    alone = SmolDriverCollator(processor, scene_packing=True)(rows[:1])
    assert len(alone["input_ids"]) == 1  # there is nothing to save


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    frames=st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(1, 30), min_size=1, max_size=9)), min_size=1, max_size=4
    ),
    limit=st.one_of(st.none(), st.integers(70, 140)),
)
def test_packs_of_a_batch_are_whole_within_the_limit_and_never_more_padded_than_unsplit(frames, limit):
    from modeling_smoldriver.collator_smoldriver import _balance, _packs

    frames = [(prefix, [([n] * (size - 1), [n]) for n, size in enumerate(sizes)]) for prefix, sizes in frames]
    packs = _packs(frames, limit)
    for (_, branches), of_frame in zip(frames, packs, strict=True):
        assert sorted(branch[1][0] for pack in of_frame for branch in pack) == list(range(len(branches)))

    def padded(packs):
        lengths = [
            prefix + sum(len(question) + len(answer) for question, answer in pack)
            for (prefix, _), of_frame in zip(frames, packs, strict=True)
            for pack in of_frame
        ]
        assert limit is None or max(lengths) <= limit
        return len(lengths) * max(lengths)

    fewest = [_balance(branches, (limit or 10**6) - prefix) for prefix, branches in frames]
    assert padded(packs) <= padded(fewest)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), room=st.integers(30, 80))
def test_packs_hold_every_branch_once_and_none_overflows(lengths, room):
    from modeling_smoldriver.collator_smoldriver import _balance

    branches = [([number] * (length - 1), [number]) for number, length in enumerate(lengths)]
    packs = _balance(branches, room)
    assert sorted(branch[1][0] for pack in packs for branch in pack) == list(range(len(lengths)))
    filled = [sum(len(question) + len(answer) for question, answer in pack) for pack in packs]
    assert max(filled) <= room
    assert max(filled) - min(filled) <= max(lengths)  # balanced


@pytest.mark.parametrize("answer", ["", "  ", None])
def test_empty_answer_is_refused(processor, answer):
    with pytest.raises(ValueError, match="the answer is empty or not a string"):
        SmolDriverCollator(processor, scene_packing=True)([frame(0, [("Why?", answer)])])


def test_frame_without_a_picture_is_refused(processor):
    with pytest.raises(ValueError, match="the scene has no picture at all"):
        SmolDriverCollator(processor)([frame(0, missing=CAMERAS)])


# Budgets


def test_budgets_are_drawn_from_those_given_and_again_the_same(processor):
    rows = [frame(number, QA[:1], missing=CAMERAS[1:]) for number in range(30)]

    def draw(seed):
        collator = SmolDriverCollator(processor, visual_tokens=[9, 4, 1], seed=seed)
        return [int((collator([row])["input_ids"] == processor.image_token_id).sum()) for row in rows]

    assert draw(0) == draw(0) != draw(1)
    assert set(draw(0)) == {9, 4, 1}
    collator = SmolDriverCollator(processor, scene_packing=True, visual_tokens=[9, 4, 1])
    batch = collator(rows[:4])  # one budget a batch
    assert len(set((batch["input_ids"] == processor.image_token_id).sum(-1).tolist())) == 1


def test_unknown_training_budget_is_refused(processor):
    with pytest.raises(ValueError, match=r"visual_tokens=2 is not a budget; choose one of \[9, 4, 1\]"):
        SmolDriverCollator(processor, visual_tokens=[2])([frame(0)])


# Groups of questions


def asked(rows):
    return [(row["frame_token"], qa["question"]) for row in rows for qa in row["qa"]]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_groups_ask_every_question_once_and_again_the_same(size):
    rows = [frame(0), frame(1, QA[:1]), frame(2, []), frame(3, QA * 3)]
    for number, qa in enumerate(rows[3]["qa"]):
        qa["question"] = f"{number}: {qa['question']}"
    scenes = dataset(rows)
    groups = list(group_questions(scenes, size, seed=0))
    assert sorted(asked(groups)) == sorted(asked(rows))
    assert all(0 < len(group["qa"]) <= size for group in groups)
    assert asked(groups) == asked(group_questions(scenes, size, seed=0))
    assert asked(groups) == asked(group_questions(scenes.to_iterable_dataset(), size, seed=0))
    by_frame = {row["frame_token"]: row for row in scenes}
    for group in groups:
        assert all(group[camera].tobytes() == by_frame[group["frame_token"]][camera].tobytes() for camera in CAMERAS)
        assert group["scene_description"] == by_frame[group["frame_token"]]["scene_description"]


def test_groups_are_drawn_by_seed_and_frame_alone():
    rows = [frame(0), frame(1)]
    groups = {seed: asked(group_questions(dataset(rows), 2, seed)) for seed in range(4)}
    assert len({tuple(group) for group in groups.values()}) > 1
    alone = asked(group_questions(dataset(rows[1:]), 2, seed=0))
    assert alone == [item for item in groups[0] if item[0] == "frame1"]  # whatever the other frames are


def test_frames_with_as_many_questions_are_grouped_unlike():
    pairs = [(str(number), "Yes.") for number in range(20)]
    groups = asked(group_questions(dataset([frame(0, pairs), frame(1, pairs)]), 4, seed=0))
    assert [question for _, question in groups[:20]] != [question for _, question in groups[20:]]


def test_questions_of_a_group_belong_together_with_their_answers():
    pairs = [(f"question {number}", f"answer {number}") for number in range(20)]
    for group in group_questions(dataset([frame(0, pairs)]), 7, seed=3):
        assert all(qa["question"].split()[1] == qa["answer"].split()[1] for qa in group["qa"])


DIRECTED = (
    ("Are there cars to the front left of the ego car?", "Yes."),
    ("How many buses are there to the back of the ego car?", "There is one bus to the back of the ego car."),
    ("What are objects to the front left of the ego car?", "There is one car to the front left of the ego car."),
    ("Please describe the current scene.", "There are no objects in front of or behind the ego car."),
    ("Are there cars to the front of the ego car and to the back of the ego car?", "No."),
)


@pytest.mark.parametrize(
    "question, camera",
    [
        (DIRECTED[0][0], "CAM_FRONT_LEFT"),
        (DIRECTED[1][0], "CAM_BACK"),
        ("What is the traffic signal that the ego vehicle should pay attention to?", "CAM_FRONT"),
        ("Is there any traffic element in the front view?", "CAM_FRONT"),
        ("In this scenario, what are safe actions to take for the ego vehicle?", "CAM_FRONT"),
        ("In this scenario, what are dangerous actions to take for the ego vehicle?", None),
        (DIRECTED[3][0], None),
        (DIRECTED[4][0], None),
    ],
)
def test_camera_asked(question, camera):
    assert camera_asked(question) == camera


@pytest.mark.parametrize("streaming", [False, True])
def test_single_views_ask_about_one_direction_behind_that_picture_alone(streaming):
    scenes = dataset([frame(0, DIRECTED), frame(1, DIRECTED[3:]), frame(2, DIRECTED[:2], missing=["CAM_BACK"])])
    source = scenes.to_iterable_dataset() if streaming else scenes
    rows = list(group_questions(source, 8, seed=0, most_views=1))
    shown = [[camera for camera in CAMERAS if row[camera] is not None] for row in rows]
    kept = [[qa["question"] for qa in row["qa"]] for row in rows]
    questions = [question for question, _ in DIRECTED]
    assert [row["frame_token"] for row in rows] == ["frame0", "frame0", "frame2", "frame2"]
    assert shown[:3] == [["CAM_BACK"], ["CAM_FRONT_LEFT"], [camera for camera in CAMERAS if camera != "CAM_BACK"]]
    assert shown[3] == ["CAM_FRONT_LEFT"]
    assert kept == [questions[1:2], [questions[0], questions[2]], questions[1:2], questions[:1]]
    shown = Image.open(io.BytesIO(rows[1]["CAM_FRONT_LEFT"]["bytes"]))
    assert shown.tobytes() == scenes[0]["CAM_FRONT_LEFT"].tobytes()


def test_few_views_are_one_to_three_with_the_one_that_is_asked_about():
    questions = [(f"Are there cars to the {where} of the ego car?", "No.") for where in ("front", "back left")]
    rows = list(group_questions(dataset([frame(number, questions) for number in range(20)]), 8, seed=0, most_views=3))
    shown = [frozenset(camera for camera in CAMERAS if row[camera] is not None) for row in rows]
    assert len(rows) == 40 and {len(cameras) for cameras in shown} == {1, 2, 3}
    assert all(camera_asked(row["qa"][0]["question"]) in cameras for row, cameras in zip(rows, shown, strict=True))
    assert frozenset.union(*shown) == set(CAMERAS)
    again = group_questions(dataset([frame(number, questions) for number in range(20)]), 8, seed=0, most_views=3)
    assert [frozenset(camera for camera in CAMERAS if row[camera] is not None) for row in again] == shown


# What trains


@pytest.mark.parametrize("vision, connector, language", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)])
def test_one_step_moves_what_the_config_trains_and_nothing_else(make_trainer, tokenizer, vision, connector, language):
    model = tiny_model(tiny_config(tokenizer, "dinov2"))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(
        model,
        scene_packing=True,
        train_vision=bool(vision),
        train_connector=bool(connector),
        train_language_model=bool(language),
        max_steps=1,
        learning_rate=1e-2,
    )
    trainer.train()
    trains = {
        "model.vision_model": vision,
        "model.connector": connector,
        "model.text_model": language,
        "lm_head": language,
    }
    for name, parameter in model.named_parameters():
        part = next(part for part in trains if name.startswith(part))
        moved = not torch.equal(parameter, before[name])
        assert moved == (bool(trains[part]) and not name.endswith("mask_token")), name


def test_streamed_scenes_train(make_trainer, config, processor, tmp_path):
    scenes = dataset([frame(0), frame(1)]).to_iterable_dataset()
    args = SmolDriverSFTConfig(
        output_dir=str(tmp_path),
        scene_packing=True,
        max_steps=2,
        per_device_train_batch_size=1,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = SmolDriverSFTTrainer(tiny_model(config), args, train_dataset=scenes, processing_class=processor)
    trainer.train()
    assert trainer._questions_seen == 10


def test_packed_model_saves_and_answers_as_any_other(make_trainer, processor, tmp_path):
    """The attention of packed frames is the trainer's affair: it must not go out with the model."""
    row = frame(0)
    images = {camera: row[camera] for camera in CAMERAS}
    trainer = make_trainer(None, [row], scene_packing=True, max_steps=1)
    trainer.train()
    model = trainer.model.eval()
    trainer.save_model(str(tmp_path / "saved"))
    assert "smoldriver_packed" not in (tmp_path / "saved" / "config.json").read_text()
    loaded = SmolDriverForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    inputs = processor.encode_scene(images)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    questions = [question for question, _ in QA]
    answers = [one.answer(one.encode_scene(**inputs), processor, questions) for one in (model, loaded)]
    assert answers[0] == answers[1]


def test_training_on_one_frame_lowers_the_loss(make_trainer):
    trainer = make_trainer(None, [frame(0)], scene_packing=True, max_steps=15, learning_rate=1e-2)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_loss_that_is_not_finite_stops_the_run_and_names_the_frames(make_trainer, processor):
    trainer = make_trainer(scene_packing=True)
    with torch.no_grad():
        trainer.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="nan at step 0 for the frames frame0, frame1"):
        trainer.compute_loss(trainer.model, SmolDriverCollator(processor, scene_packing=True)([frame(0), frame(1)]))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"loss_mode": "both"}, "loss_mode='both' is unknown; use one of"),
        ({"packed_attention": "dense"}, "packed_attention='dense' is unknown; use one of"),
        ({"questions_per_scene": 0}, "questions_per_scene=0 must be at least 1"),
    ],
)
def test_bad_training_values_are_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        SmolDriverSFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **values)
