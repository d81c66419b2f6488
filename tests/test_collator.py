"""Batches hold every question and answer within the limits of length, and one budget each."""

import pytest
import torch
from fakes import QA, dataset, frame, tiny_config, tiny_model, token_counts
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.schema import SCENE_FEATURES
from modeling_smoldriver import CAMERAS
from modeling_smoldriver.collator_smoldriver import SmolDriverCollator


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
