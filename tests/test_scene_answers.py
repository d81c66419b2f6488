"""One frame, many questions: answers from the shared cache equal those of `generate` on each question alone."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from fakes import LENGTH, QUESTIONS, generated, picture, prompt_of, tiny_config, tiny_model, without
from peft import LoraConfig, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.two_tensor import TwoTensor
from transformers import GenerationConfig

from modeling_smoldriver import CAMERAS, SmolDriverForConditionalGeneration
from modeling_smoldriver.scene_smoldriver import weights_fingerprint

pytestmark = pytest.mark.contract

DESCRIPTION = "The ego vehicle waits at a crossing."
MANY = [
    *QUESTIONS,
    "Why?",
    "How many cars are to the left of the ego car, and are they moving or parked?",
    "Is it wet?",
]


def answered(model, scene, processor, questions, **kwargs):
    """Token ids of each answer up to its end."""
    return model.answer_tokens(scene, processor, questions, **{"max_new_tokens": LENGTH, **kwargs})


def encode(model, processor, images, *args, **kwargs):
    return model.encode_scene(**processor.encode_scene(images, *args, **kwargs))


@pytest.fixture
def scene(model, processor, images):
    return encode(model, processor, images)


@pytest.mark.parametrize("beams", [1, 3])
def test_answers_equal_generate_on_each_question_alone(model, processor, images, scene, beams):
    expected = [generated(model, processor, images, question, num_beams=beams) for question in MANY]
    assert len({tuple(tokens) for tokens in expected}) >= 4  # the questions matter
    assert answered(model, scene, processor, MANY, num_beams=beams) == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_long_answers_equal_generate_whatever_the_end_token(model, processor, images, scene, beams):
    options = {"num_beams": beams, "max_new_tokens": 24, "min_new_tokens": 24}
    expected = [generated(model, processor, images, question, **options) for question in MANY]
    assert all(len(tokens) == 24 for tokens in expected)
    assert answered(model, scene, processor, MANY, **options) == expected


@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
def test_answers_equal_generate_with_any_grouping_of_heads(tokenizer, processor, images, key_value_heads):
    config = tiny_config(tokenizer)
    config.text_config.num_key_value_heads = key_value_heads
    model = tiny_model(config, seed=3)
    scene = encode(model, processor, images)
    assert scene.layers[0][0].shape[0] == key_value_heads
    expected = [generated(model, processor, images, question, min_new_tokens=LENGTH) for question in MANY]
    assert answered(model, scene, processor, MANY, min_new_tokens=LENGTH) == expected


@pytest.mark.parametrize("visual_tokens", [9, 4, 1])
@pytest.mark.parametrize("description", [None, DESCRIPTION])
def test_answers_equal_generate_at_every_budget_and_with_cameras_missing(
    model, processor, images, visual_tokens, description
):
    images = {camera: images[camera] for camera in ("CAM_BACK", "CAM_FRONT")}
    scene = encode(model, processor, images, description, visual_tokens)
    expected = [
        generated(model, processor, images, question, description, visual_tokens, min_new_tokens=LENGTH)
        for question in MANY
    ]
    assert answered(model, scene, processor, MANY, min_new_tokens=LENGTH) == expected


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_answers_equal_generate_with_either_attention(model, processor, images, attention):
    if attention == "eager":
        model.set_attn_implementation("eager")
    scene = encode(model, processor, images)
    expected = [generated(model, processor, images, question, min_new_tokens=LENGTH) for question in MANY]
    assert answered(model, scene, processor, MANY, min_new_tokens=LENGTH) == expected


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batch_size_does_not_change_the_answers(model, processor, scene, batch_size):
    expected = answered(model, scene, processor, MANY, min_new_tokens=LENGTH)
    assert answered(model, scene, processor, MANY, min_new_tokens=LENGTH, batch_size=batch_size) == expected


def test_answers_are_texts_without_special_tokens_in_the_order_of_the_questions(model, processor, images, scene):
    texts = model.answer(scene, processor, MANY, max_new_tokens=LENGTH)
    expected = [
        processor.decode(generated(model, processor, images, question), skip_special_tokens=True).strip()
        for question in MANY
    ]
    assert texts == expected
    assert model.answer(scene, processor, MANY[1:3], max_new_tokens=LENGTH) == expected[1:3]


def test_scene_asked_again_later_answers_the_same(model, processor, images, scene):
    first = answered(model, scene, processor, MANY)
    before = [(keys.clone(), values.clone()) for keys, values in scene.layers]
    encode(model, processor, dict(zip(CAMERAS, map(picture, range(20, 26)), strict=True)))
    generated(model, processor, images, QUESTIONS[0])
    assert answered(model, scene, processor, list(reversed(MANY))) == first[::-1]
    for (keys, values), (old_keys, old_values) in zip(scene.layers, before, strict=True):
        assert torch.equal(keys, old_keys) and torch.equal(values, old_values)


def test_batch_of_scenes_answers_as_each_scene_alone(model, processor):
    frames = [{camera: picture(10 * frame + seed) for seed, camera in enumerate(CAMERAS)} for frame in range(3)]
    del frames[1]["CAM_FRONT"], frames[2]["CAM_BACK"], frames[2]["CAM_FRONT_LEFT"]
    questions = [MANY[:3], MANY[3:4], MANY[2:]]
    alone = [
        answered(model, encode(model, processor, frame), processor, asked, min_new_tokens=LENGTH)
        for frame, asked in zip(frames, questions, strict=True)
    ]
    batch = processor.encode_scenes(frames)
    scenes = model.encode_scenes(**batch)
    assert [scene.length for scene in scenes] == batch["attention_mask"].sum(-1).tolist()
    options = {"max_new_tokens": LENGTH, "min_new_tokens": LENGTH}
    pairs = list(zip(scenes, questions, strict=True))
    assert [answered(model, scene, processor, asked, **options) for scene, asked in pairs] == alone
    texts = model.answer_scenes(scenes, processor, questions, **options)
    assert texts == [model.answer(scene, processor, asked, **options) for scene, asked in pairs]
    with pytest.raises(ValueError, match="2 lists of questions for 3 scenes"):
        model.answer_scenes(scenes, processor, questions[:2])
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    with pytest.raises(ValueError, match="padded on the right"):
        model.encode_scenes(**batch)


def test_processor_takes_a_list_of_scenes(processor, images):
    some = {camera: images[camera] for camera in ("CAM_BACK", "CAM_FRONT")}
    scenes, descriptions = [images, some, list(images.values())], [None, DESCRIPTION, DESCRIPTION]
    batch = processor.encode_scenes(scenes, descriptions, visual_tokens=4)
    for row, (scene, description) in enumerate(zip(scenes, descriptions, strict=True)):
        alone = processor.encode_scene(scene, description, visual_tokens=4)
        length, views = alone["input_ids"].shape[1], alone["camera_ids"].shape[1]
        assert torch.equal(batch["input_ids"][row, :length], alone["input_ids"][0])
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (batch["input_ids"].shape[1] - length)
        assert torch.equal(batch["pixel_values"][row, :views], alone["pixel_values"][0])
        assert batch["camera_ids"][row].tolist() == alone["camera_ids"][0].tolist() + [-1] * (6 - views)
    for wrong in (DESCRIPTION, [DESCRIPTION]):
        with pytest.raises(ValueError, match="2 frames need a list of as many descriptions; got"):
            processor.encode_scenes(scenes[:2], wrong)


def test_scene_without_pictures_can_be_asked(model, processor):
    scene = encode(model, processor, None, DESCRIPTION)
    messages = [{"role": "user", "content": [{"type": "text", "text": MANY[0]}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, scene_description=DESCRIPTION)
    inputs = processor(text=prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False)
    assert answered(model, scene, processor, MANY[:1], min_new_tokens=LENGTH) == [
        ids[0, inputs["input_ids"].shape[1] :].tolist()
    ]


def test_scenes_without_pictures_are_a_batch(model, processor):
    batch = processor.encode_scenes([None, None], [DESCRIPTION, None])
    assert len(batch["input_ids"]) == 2 and "pixel_values" not in batch
    scenes = model.encode_scenes(**batch)
    for scene, description in zip(scenes, (DESCRIPTION, None), strict=True):
        alone = answered(model, encode(model, processor, None, description), processor, MANY[:2])
        assert answered(model, scene, processor, MANY[:2]) == alone
    with pytest.raises(ValueError, match="a list with at least one frame, got \\[\\]"):
        processor.encode_scenes([])


def test_one_frame_and_several_have_methods_of_their_own(model, processor, images, scene):
    """One shape in, one shape out: the wrong one names the right method."""
    both = [images, {"CAM_BACK": images["CAM_BACK"]}]
    with pytest.raises(ValueError, match="encode_scenes takes a list of them"):
        processor.encode_scene(both)
    with pytest.raises(ValueError, match="takes a list with at least one frame, got {'CAM_FRONT_LEFT'"):
        processor.encode_scenes(images)
    with pytest.raises(ValueError, match="got 2 rows; encode_scenes takes several and returns a list"):
        model.encode_scene(**processor.encode_scenes(both))
    with pytest.raises(ValueError, match="answer_scenes takes a list"):
        model.answer([scene], processor, MANY[:1])
    assert len(model.encode_scenes(**processor.encode_scene(images))) == 1


def test_answer_tokens_end_with_the_end_token_whichever_it_is(model, processor, images, scene):
    """A row that ends early is padded by `generate`; the padding is not part of the answer."""
    own = model.generation_config.eos_token_id
    end = generated(model, processor, images, MANY[0], min_new_tokens=LENGTH)[4]
    model.generation_config.eos_token_id = end
    expected = [generated(model, processor, images, question, max_new_tokens=24) for question in MANY]
    assert 24 > min(len(tokens) for tokens in expected) < max(len(tokens) for tokens in expected)
    assert answered(model, scene, processor, MANY, max_new_tokens=24) == expected
    model.generation_config.eos_token_id = own
    for ends in (end, [end]):
        assert answered(model, scene, processor, MANY, max_new_tokens=24, eos_token_id=ends) == expected
        settings = GenerationConfig(max_new_tokens=24, eos_token_id=ends)
        assert model.answer_tokens(scene, processor, MANY, generation_config=settings) == expected


def test_generation_config_is_not_overridden_by_the_defaults(model, processor, scene):
    settings = GenerationConfig(max_new_tokens=40, min_new_tokens=40, do_sample=True, temperature=2.0)
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn.append(model.answer_tokens(scene, processor, MANY[:1], generation_config=settings)[0])
    assert [len(tokens) for tokens in drawn] == [40, 40] and drawn[0] != drawn[1]


def test_sampling_repeats_with_a_seed_and_differs_without(model, processor, scene):
    def sample(seed):
        torch.manual_seed(seed)
        return answered(model, scene, processor, MANY, do_sample=True, temperature=2.0, min_new_tokens=LENGTH)

    assert sample(0) == sample(0) != sample(1)


def test_tower_runs_once_per_frame_and_tokens_are_prefix_plus_branches(model, processor, images):
    towers, tokens = [], []
    model.model.vision_model.tower.register_forward_hook(lambda *_: towers.append(1))
    model.model.text_model.layers[0].input_layernorm.register_forward_hook(
        lambda module, arguments, output: tokens.append(output.shape[0] * output.shape[1])
    )
    scene = encode(model, processor, images)
    assert sum(tokens) == scene.length
    tokens.clear()
    questions = [MANY[0]] * 5
    answered(model, scene, processor, questions, max_new_tokens=4, min_new_tokens=4)
    question = len(processor.tokenizer(processor.question_prompt(MANY[0]), add_special_tokens=False)["input_ids"])
    assert sum(tokens) == 5 * (question + 3)  # the last token is not fed back
    answered(model, scene, processor, MANY)
    assert len(towers) == 1


def test_scene_memory_is_keys_and_values_of_the_prefix_alone(model, processor, scene):
    config = model.config.text_config
    head_dim = config.hidden_size // config.num_attention_heads
    per_token = config.num_hidden_layers * 2 * config.num_key_value_heads * head_dim * 4
    assert scene.nbytes == per_token * scene.length
    answered(model, scene, processor, MANY)
    assert scene.nbytes == per_token * scene.length


def test_scenes_of_a_batch_have_memory_of_their_own(model, processor, images):
    """So that freeing one of them gives its memory back."""
    scenes = model.encode_scenes(**processor.encode_scenes([images, {"CAM_BACK": images["CAM_BACK"]}]))
    for scene in scenes:
        storages = {tensor.untyped_storage().data_ptr(): tensor for layer in scene.layers for tensor in layer}
        assert sum(tensor.untyped_storage().nbytes() for tensor in storages.values()) == scene.nbytes


def test_bfloat16_answers_agree_with_generate_but_for_near_ties(model, processor, images):
    """Rounding to 8 bits decides where two tokens are nearly as likely, and what follows differs then."""
    model.to(torch.bfloat16)
    scene = encode(model, processor, images)
    assert all(tensor.dtype == torch.bfloat16 for layer in scene.layers for tensor in layer)
    answers = answered(model, scene, processor, MANY, min_new_tokens=LENGTH)
    expected = [generated(model, processor, images, question, min_new_tokens=LENGTH) for question in MANY]
    assert [len(tokens) for tokens in answers] == [LENGTH] * 7
    same = sum(one == other for pair in zip(answers, expected, strict=True) for one, other in zip(*pair, strict=True))
    assert same >= 0.8 * 7 * LENGTH, same


@pytest.mark.parametrize("beams", [1, 3])
def test_repetition_penalty_counts_the_scenes_tokens_as_generate_does(model, processor, images, scene, beams):
    options = {"repetition_penalty": 1.7, "min_new_tokens": LENGTH, "num_beams": beams}
    expected = [generated(model, processor, images, question, **options) for question in MANY]
    assert answered(model, scene, processor, MANY, **options) == expected
    assert expected != [generated(model, processor, images, q, num_beams=beams, min_new_tokens=LENGTH) for q in MANY]
    model.generation_config.repetition_penalty = options.pop("repetition_penalty")  # a model's own default
    assert answered(model, scene, processor, MANY, **options) == expected


@pytest.mark.parametrize(
    "option", [{"no_repeat_ngram_size": 2}, {"num_return_sequences": 3, "do_sample": True}, {"guidance_scale": 2.0}]
)
def test_options_that_need_the_scenes_tokens_are_refused(model, processor, scene, option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=f"{name}={value} is not offered by answer; use generate"):
        model.answer(scene, processor, MANY[:1], **option)


def test_loaded_model_answers_as_the_saved_one(model, processor, images, scene, tmp_path):
    expected = answered(model, scene, processor, MANY)
    model.save_pretrained(tmp_path)
    loaded = SmolDriverForConditionalGeneration.from_pretrained(tmp_path)
    assert answered(loaded, encode(loaded, processor, images), processor, MANY) == expected


# Attention outside `answer` stays what it was


def stop(input_ids, scores):
    raise RuntimeError("stop here")


def attentions(model):
    return [model.config._attn_implementation, model.model.text_model.config._attn_implementation]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_restored_after_an_answer_and_after_an_error(model, processor, images, attention):
    if attention == "eager":
        model.set_attn_implementation("eager")
    scene, before = encode(model, processor, images), attentions(model)
    logits = model(**processor.encode_scene(images)).logits
    model.answer(scene, processor, MANY[:1], max_new_tokens=2)
    assert attentions(model) == before == [attention, attention]
    with pytest.raises(RuntimeError, match="stop here"):
        model.answer(scene, processor, MANY[:1], max_new_tokens=2, logits_processor=[stop])
    assert attentions(model) == before
    assert torch.equal(model(**processor.encode_scene(images)).logits, logits)


# Several threads on one model, as in a web demo


def in_threads(*calls, rounds=4):
    """Each call's results, of calls that run at the same time, `rounds` times each."""
    start = threading.Barrier(len(calls))

    def repeat(call):
        start.wait(timeout=60)
        return [call() for _ in range(rounds)]

    with ThreadPoolExecutor(len(calls)) as pool:
        return [job.result() for job in [pool.submit(repeat, call) for call in calls]]


@pytest.mark.parametrize("keys", ["content", "position"])
def test_threads_get_the_answers_of_one_thread(make_model, image_processor, images, keys):
    model, processor = make_model(image_processor, resampler_keys=keys)
    other = {camera: picture(20 + seed) for seed, camera in enumerate(CAMERAS)}
    prompts = [prompt_of(processor, other, MANY[0]), prompt_of(processor, images, MANY[3])]

    def ask(frame, questions):
        return lambda: answered(model, encode(model, processor, frame), processor, questions, min_new_tokens=LENGTH)

    def generate(inputs):
        return lambda: model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False).tolist()

    def batched():
        pair = [images, without(other, "CAM_BACK")]
        return [scene.layers[1][0].sum().item() for scene in model.encode_scenes(**processor.encode_scenes(pair))]

    calls = [ask(images, MANY[:4]), ask(other, MANY[2:]), generate(prompts[0]), generate(prompts[1]), batched]
    alone = [call() for call in calls]
    assert in_threads(*calls) == [[result] * 4 for result in alone]
    assert [call() for call in calls] == alone


def test_a_call_that_begins_within_an_answer_is_like_one_before_it(model, processor, images, scene):
    """Also where the answer ends first: the model is not left with its attention."""
    inputs = prompt_of(processor, images, MANY[0])
    options = {"max_new_tokens": LENGTH, "do_sample": False}
    expected, within = model.generate(**inputs, **options), []

    def interrupt(input_ids, scores):
        within.append((attentions(model), model.generate(**inputs, **options)))
        return scores

    answered(model, scene, processor, MANY[:1], max_new_tokens=2, logits_processor=[interrupt])
    assert within and all(torch.equal(tokens, expected) for _, tokens in within)
    assert {name for names, _ in within for name in names} == {"sdpa"}


def test_a_model_can_be_pickled_and_copied(model, processor, images, scene):
    expected = answered(model, scene, processor, MANY[:2])
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert answered(copied, encode(copied, processor, images), processor, MANY[:2]) == expected


# Adapters, sharded and quantised weights


@pytest.fixture
def adapted(model):
    """Two adapters that change what the language model reads, the first one active."""
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), "one")
    model.add_adapter("other", LoraConfig(r=2, target_modules=["v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model.eval()


def test_a_scene_is_read_only_with_the_adapters_that_it_was_encoded_with(adapted, processor, images):
    scene = encode(adapted, processor, images)
    expected = answered(adapted, scene, processor, MANY)
    with adapted.disable_adapter():
        refused(adapted, scene, processor, "other active adapters count as a change")
        plain = encode(adapted, processor, images)
        assert answered(adapted, plain, processor, MANY) != expected
    refused(adapted, plain, processor, "other active adapters")
    adapted.set_adapter("other")
    refused(adapted, scene, processor, "other active adapters")
    adapted.set_adapter("one")
    assert answered(adapted, scene, processor, MANY) == expected
    for module in adapted.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("one", 0.5)
    refused(adapted, scene, processor, "other active adapters")


@pytest.fixture
def one_process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_sharded_model_answers_as_a_whole_one(model, processor, images, scene, one_process_group):
    expected = answered(model, scene, processor, MANY)
    sharded = copy.deepcopy(model)
    for layer in sharded.model.text_model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    assert {type(weight).__name__ for weight in sharded.parameters()} == {"DTensor"}
    scene = encode(sharded, processor, images)
    assert answered(sharded, scene, processor, MANY) == expected
    with torch.no_grad():
        next(sharded.model.text_model.layers[0].parameters()).to_local().mul_(1.5)
    refused(sharded, scene, processor, "changed or moved after the scene was encoded")


def test_weights_in_a_tensor_of_tensors_have_a_fingerprint():
    """As torchao's: their own storage has no address, and they take few operations."""
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(TwoTensor(torch.ones(4, 4), torch.ones(4, 4)))
    before = weights_fingerprint(layer)
    assert weights_fingerprint(layer) == before
    with torch.no_grad():
        layer.weight.b[1, 1] = 5
    assert weights_fingerprint(layer) != before


def test_a_saved_module_has_a_fingerprint_of_its_own_adapter():
    layer = nn.Sequential(ModulesToSaveWrapper(nn.Linear(4, 4), "one"))
    layer[0].update("two")
    before = weights_fingerprint(layer)
    layer[0].set_adapter(["two"])
    after = weights_fingerprint(layer)
    layer[0].enable_adapters(False)
    assert len({before, after, weights_fingerprint(layer)}) == 3


def test_a_model_quantised_by_torchao_answers_as_generate(model, processor, images):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(model.model, quantization.Int8WeightOnlyConfig())
    scene = encode(model, processor, images)
    expected = [generated(model, processor, images, question, min_new_tokens=LENGTH) for question in MANY]
    assert answered(model, scene, processor, MANY, min_new_tokens=LENGTH) == expected


# Refusals


def refused(model, scene, processor, match):
    with pytest.raises(ValueError, match=match):
        model.answer(scene, processor, MANY[:1])


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_scene_is_refused_after_an_optimizer_step(model, processor, scene, options):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=1e-3, **options).step()
    refused(model, scene, processor, "changed or moved after the scene was encoded; encode the scene again")


@torch.no_grad()
def changed_dtype(model):
    model.to(torch.bfloat16)


@torch.no_grad()
def rounded(model):
    model.to(torch.bfloat16).to(torch.float32)


@torch.no_grad()
def loaded_weights(model):
    model.load_state_dict(tiny_model(model.config, seed=7).state_dict())


@torch.no_grad()
def edited_data(model):
    model.lm_head.weight.data.mul_(2)


@torch.no_grad()
def merged_adapter(model):
    model.model.text_model.layers[1].mlp.up_proj.weight.data += 0.01


def moved(model):
    """To memory elsewhere, bit by bit the same, as `model.to(device)` there and back does."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


CHANGES = [changed_dtype, rounded, loaded_weights, edited_data, merged_adapter, moved]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_scene_is_refused_after_the_weights_changed(model, processor, scene, change):
    change(model)
    refused(model, scene, processor, "changed or moved after the scene was encoded")


def test_scene_of_another_model_is_refused(model, config, processor, scene):
    refused(tiny_model(config), scene, processor, "changed or moved after the scene was encoded")


def test_training_mode_alone_does_not_spoil_a_scene(model, processor, scene):
    expected = answered(model, scene, processor, MANY)
    model.train()
    model.eval()
    assert answered(model, scene, processor, MANY) == expected


def test_freed_scene_is_refused_and_holds_no_memory(model, processor, scene):
    scene.free()
    assert scene.nbytes == 0
    refused(model, scene, processor, "the scene was freed; encode it again")


@pytest.mark.parametrize("questions", [[], None, "Why?"])
def test_questions_must_be_a_list_with_one_question(model, processor, scene, questions):
    with pytest.raises(ValueError, match="questions must be a list with at least one question"):
        model.answer(scene, processor, questions)


def test_empty_question_is_refused(model, processor, scene):
    with pytest.raises(ValueError, match="the question is empty"):
        model.answer(scene, processor, ["Why?", " "])


def test_a_question_longer_than_the_context_is_refused_with_all_lengths(model, processor, images, scene):
    long = "How many cars are there? " * 200
    length = len(processor.encode_questions([long])[0])
    message = rf"the scene takes {scene.length} tokens and the question 'How many .*' {length}, .* context is 1024"
    with pytest.raises(ValueError, match=message):
        model.answer(scene, processor, [MANY[0], long])
    inputs = prompt_of(processor, images, long)
    tokens = inputs["input_ids"].shape[1]
    with pytest.raises(ValueError, match=f"the prompt takes {tokens} tokens, the model's context is 1024"):
        model.generate(**inputs, max_new_tokens=2)


def test_prefix_longer_than_the_context_is_refused_with_both_lengths(tokenizer, processor, images):
    config = tiny_config(tokenizer)
    config.text_config.max_position_embeddings = 120
    model = tiny_model(config)
    length = processor.encode_scene(images)["input_ids"].shape[1]
    with pytest.raises(ValueError, match=rf"the scene takes {length} tokens, the model's context is 120"):
        encode(model, processor, images)
    assert encode(model, processor, images, visual_tokens=1).length < 120


def test_budget_that_the_model_lacks_is_refused(model, processor, images):
    with pytest.raises(ValueError, match=r"visual_tokens=16 is not a budget; choose one of \[9, 4, 1\]"):
        encode(model, processor, images, visual_tokens=16)
