"""What must hold on a GPU; tests/cuda/check.py runs it, on the CPU too where there is no GPU.

The models are tiny, so that float32 answers and gradients can be compared closely. It needs torch and transformers
alone; the test of NF4 is skipped where bitsandbytes, PEFT, TRL or datasets is missing.
"""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from modeling_smoldriver.packing_smoldriver import PACKED_ATTENTION, PADDING, PREFIX, forward_at_answers
from recipes.benchmarking.inputs import drivelm_style_questions, pictures
from recipes.benchmarking.models import SIZES, make_processor, make_smoldriver

pytestmark = pytest.mark.cuda
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PAIRS = drivelm_style_questions(9)


@pytest.fixture(scope="module")
def made():
    """The tiny size's processor and configuration."""
    processor, config, _ = make_processor(SIZES["tiny"])
    return processor, config


def tiny_model(config, dtype: torch.dtype = torch.float32):
    """Weights wide enough that other questions get other answers."""
    model = make_smoldriver(copy.deepcopy(config), DEVICE, torch.float32)
    for name, parameter in model.named_parameters():
        if name.startswith(("lm_head", "model.text_model", "model.connector")) and parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.to(dtype)


def packs(processor) -> tuple[dict, torch.Tensor]:
    """Two frames, one with six questions behind its pictures, one with three and so with padding: inputs, labels."""
    scene = processor.encode_scene(pictures())
    prefix = scene["input_ids"][0].tolist()
    columns = {"input_ids": [], "position_ids": [], "segment_ids": [], "labels": []}
    for pairs in (PAIRS[:6], PAIRS[6:]):
        ids, positions = list(prefix), list(range(len(prefix)))
        segments, labels = [PREFIX] * len(prefix), [-100] * len(prefix)
        for number, (question, answer) in enumerate(pairs, start=1):
            texts = [processor.question_prompt(question), processor.answer_text(answer)]
            asked, answered = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
            length = len(asked) + len(answered)
            ids += asked + answered
            positions += range(len(prefix), len(prefix) + length)
            segments += [number] * length
            labels += [-100] * len(asked) + answered
        for name, values in zip(columns, (ids, positions, segments, labels), strict=True):
            columns[name].append(torch.tensor(values))
    padding = {"input_ids": processor.tokenizer.pad_token_id, "segment_ids": PADDING, "labels": -100}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding.get(name, 0)).to(DEVICE)
        for name, values in columns.items()
    }
    views = {name: scene[name].to(DEVICE) for name in ("pixel_values", "camera_ids")}
    batch["pixel_values"] = torch.cat([views["pixel_values"], views["pixel_values"].flip(-1)])
    batch["camera_ids"] = views["camera_ids"].repeat(2, 1)
    labels = batch.pop("labels")
    return batch, labels


def packed_loss(model, batch: dict, labels: torch.Tensor, form: str) -> torch.Tensor:
    """`form`: "blocks", or the `attn_implementation` that takes a mask."""
    text_config = model.model.text_model.config
    if form == "blocks":
        text_config._attn_implementation = PACKED_ATTENTION
    else:
        model.set_attn_implementation({"text_config": form})
    answers = labels[:, 1:] != -100
    packed = "blocks" if form == "blocks" else "mask"
    logits = forward_at_answers(model, text_config, batch, answers, packed, model.dtype).logits[0]
    return F.cross_entropy(logits.float(), labels[:, 1:][answers])


def loss_and_gradients(model, batch, labels, form="blocks") -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = packed_loss(model, batch, labels, form)
    loss.backward()
    return loss.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(one: dict, other: dict):
    for name, gradient in other.items():
        # A bias of keys cancels in the softmax, its gradient is rounding noise: measured against its weight's.
        of_keys = name.endswith(("k_proj.bias", "key.bias"))
        scale = other[name.replace("bias", "weight") if of_keys else name].norm().item()
        difference = (one[name] - gradient).norm().item()
        assert 0 < scale and difference <= 1e-3 * scale, f"{name}: {difference} of {scale}"


@pytest.mark.parametrize("form", ["sdpa", "eager", "flex_attention"])
def test_packed_attention_in_blocks_equals_the_mask_in(form, made, monkeypatch):
    processor, config = made
    batch, labels = packs(processor)
    blocks, masked = tiny_model(config), tiny_model(config)
    if form == "flex_attention" and DEVICE == "cpu":  # where it has no backward pass, and takes a minute to compile
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        with torch.no_grad():
            losses = [packed_loss(blocks, batch, labels, "blocks"), packed_loss(masked, batch, labels, form)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
        return
    expected, gradients = loss_and_gradients(blocks, batch, labels)
    loss, masked_gradients = loss_and_gradients(masked, batch, labels, form)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    assert_same_gradients(masked_gradients, gradients)


@torch.no_grad()
def test_scene_cache_answers_as_generate(made):
    processor, config = made
    model = tiny_model(config)
    questions = [question for question, _ in PAIRS]
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    inputs = processor.encode_scene(pictures()).to(DEVICE)
    answers = model.answer_tokens(model.encode_scene(**inputs), processor, questions, **options)
    alone = []
    for tokens in processor.encode_questions(questions):
        prompt = torch.cat([inputs["input_ids"], torch.tensor([tokens], device=DEVICE)], dim=1)
        views = {name: inputs[name] for name in ("pixel_values", "camera_ids")}
        generated = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **views, **options)
        alone.append(generated[0, prompt.shape[1] :].tolist())
    assert answers == alone
    assert len({tuple(answer) for answer in answers}) > 1  # it does read the question


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_forward_pass_in_half_precision_is_near_float32(dtype, made):
    processor, config = made
    batch, labels = packs(processor)
    model = tiny_model(config)
    exact = packed_loss(model, batch, labels, "blocks")
    inputs = processor.encode_scene(pictures()).to(DEVICE)
    logits = model(**inputs).logits.float()
    narrow = model.to(dtype)
    torch.testing.assert_close(packed_loss(narrow, batch, labels, "blocks"), exact, rtol=0.03, atol=0)
    rounded = narrow(**inputs).logits.float()
    assert F.cosine_similarity(rounded.flatten(), logits.flatten(), dim=0) > 0.99


def test_gradient_checkpointing_gives_the_same_gradients_for_less_memory(made):
    processor, config = made
    batch, labels = packs(processor)
    model, peaks, results = tiny_model(config).train(), [], []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        before = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        results.append(loss_and_gradients(model, batch, labels))
        peaks.append(torch.cuda.max_memory_allocated() - before if DEVICE == "cuda" else 0)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=0)
    assert_same_gradients(results[1][1], results[0][1])
    assert DEVICE == "cpu" or peaks[1] < peaks[0]


def test_nf4_trains_and_is_reloaded(made, tmp_path):
    for package in ("bitsandbytes", "peft", "trl", "datasets"):
        pytest.importorskip(package, reason=f"the package {package} is missing")
    from bitsandbytes.nn import Linear4bit
    from peft import LoraConfig, get_peft_model

    from recipes.training.loading import LANGUAGE_MODEL_LINEARS, load_base, load_model, nf4
    from recipes.training.manifest import TrainingManifest

    processor, config = made
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    tiny_model(config, torch.bfloat16).save_pretrained(base)
    processor.save_pretrained(base)
    quantization = nf4(torch.bfloat16, double=True)
    model = get_peft_model(
        load_base(base, torch.bfloat16, quantization), LoraConfig(r=8, target_modules=LANGUAGE_MODEL_LINEARS)
    )
    assert (
        sum(isinstance(module, Linear4bit) for module in model.modules()) == 7 * config.text_config.num_hidden_layers
    )
    inputs = processor.encode_scene(pictures()).to(DEVICE)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == config.image_token_id, -100)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(5):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    with torch.no_grad():
        trained = model(**inputs).logits.float()
    model.save_pretrained(adapters)
    manifest = TrainingManifest(base=str(base), dtype="bfloat16", quantization=quantization.to_diff_dict())
    manifest.write(adapters)
    reloaded, _ = load_model(adapters)
    with torch.no_grad():
        again = reloaded.train()(**inputs).logits.float()  # as above: bitsandbytes' other kernel rounds otherwise
    assert F.cosine_similarity(again.flatten(), trained.flatten(), dim=0) > 0.999
