"""The weights: which of them train, how they are saved and loaded, and which of them are SmolVLM's."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from fakes import QUESTIONS, assert_same, inputs_of, tiny_config, tiny_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from modeling_smoldriver import (
    SmolDriverConfig,
    SmolDriverForConditionalGeneration,
    SmolDriverModel,
)
from modeling_smoldriver.resampler_smoldriver import FORMER_NAMES
from recipes.training.loading import put_adapters

pytestmark = pytest.mark.contract


# Training


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
    inputs = inputs_of(processor, [images], QUESTIONS[:1])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == frozen


def test_frozen_language_model_stays_and_vision_moves(model, inputs):
    model.model.text_model.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    for name, parameter in model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == name.startswith(("model.vision_model", "model.connector")), name


def test_loss_is_the_mean_next_token_cross_entropy(model, inputs):
    labels = inputs["input_ids"].clone()
    labels[:, : labels.shape[1] // 2] = -100
    outputs = model(**inputs, labels=labels)
    expected = F.cross_entropy(outputs.logits[0, :-1], labels[0, 1:])
    assert_same(outputs.loss, expected)


@torch.no_grad()
def test_logits_to_keep_are_those_positions_of_all_logits(model, inputs):
    logits = model(**inputs).logits
    assert_same(model(**inputs, logits_to_keep=3).logits, logits[:, -3:])
    kept = torch.tensor([5, 9])
    assert_same(model(**inputs, logits_to_keep=kept).logits, logits[:, kept])


@pytest.mark.parametrize("keys", ["content", "position"])
@torch.no_grad()
def test_bfloat16_forward_is_finite_and_near_float32(make_model, image_processor, images, keys):
    model, processor = make_model(image_processor, resampler_keys=keys)
    inputs = inputs_of(processor, [images], QUESTIONS[:1])
    expected = model(**inputs).logits
    model.to(torch.bfloat16)
    for attention in ("sdpa", "eager"):
        if attention == "eager":
            model.set_attn_implementation("eager")
        logits = model(**inputs).logits
        assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
        assert F.cosine_similarity(logits.float().flatten(), expected.flatten(), dim=0) > 0.99


# Saving and loading


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "60KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("tower", ["vit", "dinov2", "siglip"])
@torch.no_grad()
def test_save_load_save_is_bit_exact(make_model, image_processor, images, tmp_path, tower, options):
    model, processor = make_model(image_processor, tower, resampler_keys="position", resampler_residual=False)
    inputs = inputs_of(processor, [images], QUESTIONS[:1])
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


@torch.no_grad()
def test_tied_embeddings_are_saved_once_and_stay_tied(tokenizer, inputs, tmp_path):
    model = tiny_model(SmolDriverConfig(**{**tiny_config(tokenizer).to_dict(), "tie_word_embeddings": True}))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in saved_tensors(tmp_path)
    loaded = SmolDriverForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_base_model_and_vision_model_load_from_the_full_checkpoint(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    base = SmolDriverModel.from_pretrained(tmp_path)
    assert torch.equal(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)
    base.save_pretrained(tmp_path / "base")
    again = SmolDriverModel.from_pretrained(tmp_path / "base")
    assert torch.equal(again(**inputs).last_hidden_state, base(**inputs).last_hidden_state)


@torch.no_grad()
def test_base_model_leaves_the_head_for_others_to_load(model, tmp_path):
    """vLLM drops what a base model's class names there; it reads the head by itself."""
    assert not getattr(SmolDriverModel(model.config), "_keys_to_ignore_on_load_unexpected", None)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.head.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"unexpected: \S*head\.weight$"):
        SmolDriverModel.from_pretrained(tmp_path)


def with_former_names(tensors):
    """As checkpoints were saved before the resampler's layers got names of their own."""
    names = {present: former for former, present in FORMER_NAMES.items()}
    former = {}
    for key, tensor in tensors.items():
        *path, layer, kind = key.split(".")
        if path and path[-1] == "resampler":
            layer = names.get(layer, layer)
        former[".".join([*path, layer, kind])] = tensor
    return former


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "60KB"}], ids=["one file", "shards"])
def test_older_checkpoints_load_and_are_saved_under_present_names(model, inputs, tmp_path, options):
    model.save_pretrained(tmp_path / "saved", **options)
    present = saved_tensors(tmp_path / "saved").keys()
    for path in (tmp_path / "saved").glob("*.safetensors"):
        tensors = load_file(path)
        if any(".resampler.camera_" in key for key in tensors):
            save_file(with_former_names(tensors), path, metadata={"format": "pt"})
    index = tmp_path / "saved" / "model.safetensors.index.json"
    if index.is_file():
        written = json.loads(index.read_text())
        index.write_text(json.dumps({**written, "weight_map": with_former_names(written["weight_map"])}))
    loaded = SmolDriverForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    base = SmolDriverModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(base(**inputs).last_hidden_state, model.model(**inputs).last_hidden_state)
    assert len(saved_tensors(tmp_path / "saved").keys() - present) == 8
    loaded.save_pretrained(tmp_path / "again")
    assert saved_tensors(tmp_path / "again").keys() == present
    other = tiny_model(model.config, seed=5)
    assert not any(other.load_state_dict(with_former_names(model.state_dict())))
    assert torch.equal(other(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_adapters_with_an_older_vision_model_beside_them_load(model, inputs, tmp_path):
    base = copy.deepcopy(model)
    options = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["vision_model"])
    trained = get_peft_model(model, options)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(with_former_names(load_file(path)), path, metadata={"format": "pt"})
    expected = trained.eval()(**inputs).logits
    assert not torch.equal(expected, base(**inputs).logits)
    assert torch.equal(put_adapters(copy.deepcopy(base), tmp_path, torch.float32).eval()(**inputs).logits, expected)


def test_lora_by_the_usual_names_adapts_the_language_model(model, inputs):
    """`--lora_target_modules q_proj v_proj`, as TRL's command for SmolVLM has it: the grouped layers are not meant."""
    names = ["down_proj", "o_proj", "k_proj", "q_proj", "gate_proj", "up_proj", "v_proj"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM"))
    places = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if ".lora_A" in name}
    assert sum(".text_model.layers." in place for place in places) == 2 * 7  # others: a ViT's, in transformers 5
    assert all(".text_model.layers." in place or ".tower." in place for place in places)
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(p.grad.any() for name, p in adapted.named_parameters() if ".lora_B" in name)


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


def test_default_configuration_is_that_of_the_paper():
    config = SmolDriverConfig()
    assert config.visual_token_budgets == [81, 64, 49, 36, 25, 16, 9, 4, 1]
    assert config.vision_config.tower_image_size == 432
    assert (config.vision_config.tower_image_size // config.vision_config.tower_config.patch_size) == 27
    with torch.device("meta"):
        text = AutoModel.from_config(config.text_config)
    assert sum(p.numel() for p in text.parameters()) == 1_711_376_384 + 128 * 2048  # SmolLM2-1.7B and SmolVLM's rows
