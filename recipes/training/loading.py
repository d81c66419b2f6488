"""How a base model or a trained one is loaded, adapters and quantisation included."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import PartialState
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch.ao.quantization import quantize_dynamic
from transformers import AutoConfig, BitsAndBytesConfig, TrainingArguments
from trl import ModelConfig, get_peft_config

from modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverProcessor
from modeling_smoldriver.baseline_smoldriver import SmolVLMForScenes, SmolVLMSceneProcessor, end_answers_with_turns
from modeling_smoldriver.fitting_smoldriver import check_finite, check_fit
from modeling_smoldriver.resampler_smoldriver import present_name
from recipes.training.manifest import TRAINING_MANIFEST, TrainingManifest, check_source
from smoldriver_common.weight_files import check_weight_files

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CLASSES = {
    "smoldriver": (SmolDriverForConditionalGeneration, SmolDriverProcessor),
    "smolvlm": (SmolVLMForScenes, SmolVLMSceneProcessor),
}
"""Model and processor of each `model_type` that the recipes train and evaluate."""
LANGUAGE_MODEL_LINEARS = r".*\.text_model\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""What adapters are put on: all linear layers of the language model."""


def load_config(source: str | os.PathLike):
    """The configuration of a folder or Hub id, read by an installed class.

    A model of another type is refused. transformers would offer on the terminal to run the code that its config names.

    Raises:
        ValueError: the type is unknown.
    """
    return AutoConfig.from_pretrained(source, trust_remote_code=False)


def classes_of(source: str | os.PathLike) -> tuple[type, type]:
    """Model and processor class of a folder or Hub id.

    Raises:
        ValueError: if it is neither a SmolDriver nor a SmolVLM.
    """
    model_type = load_config(source).model_type
    if model_type not in CLASSES:
        raise ValueError(f"{source} is a {model_type!r}; the recipes know {', '.join(CLASSES)}")
    return CLASSES[model_type]


def load_processor(source: str | os.PathLike):
    """The processor of a SmolDriver or SmolVLM folder or Hub id."""
    return classes_of(source)[1].from_pretrained(source, trust_remote_code=False)


def load_base(source: str | os.PathLike, dtype, quantization: BitsAndBytesConfig | None = None, **arguments):
    """SmolDriver or SmolVLM from a folder or Hub id; if quantised, on this process's device.

    Raises:
        ValueError: if weights are missing, damaged, pickled, of a wrong shape or not finite.
    """
    if quantization is not None:
        arguments["device_map"] = {"": PartialState().device}
    model_class = classes_of(source)[0]
    if Path(source).is_dir():
        check_weight_files(source)
    arguments |= {"use_safetensors": True, "trust_remote_code": False}
    model, info = model_class.from_pretrained(
        source, dtype=dtype, quantization_config=quantization, output_loading_info=True, **arguments
    )
    if info["missing_keys"] or info["mismatched_keys"]:  # SmolDriver refuses these by itself
        raise ValueError(f"{source} lacks {sorted(info['missing_keys'])} or holds {sorted(info['mismatched_keys'])}")
    check_finite(model, source)
    if isinstance(model, SmolVLMForScenes):
        end_answers_with_turns(model, load_processor(source))
    for layer in layers_in_4bit(model):
        # On CPUs bitsandbytes 0.50 re-orders the weights for good at the first forward pass in eval mode. After
        # that no gradient passes the layer: a sample table in the middle of a run would end the training.
        layer.support_avx512bf16_for_cpu = False
    return model


def load_to_train(model_args: ModelConfig, training_args: TrainingArguments):
    """-> model, processor, the configuration of its adapters; None without `use_peft`

    Args:
        training_args: with an `activation_dtype`.

    Raises:
        ValueError: see [`load_base`].
    """
    source = model_args.model_name_or_path
    quantization, attention = quantization_of(model_args), model_args.attn_implementation
    model = load_base(source, base_dtype(model_args), quantization, attn_implementation=attention)
    if training_args.bf16 or training_args.fp16:
        multiply_4bit_in(model, training_args.activation_dtype)
    peft_config = get_peft_config(model_args)
    if peft_config is not None:
        peft_config.target_modules = model_args.lora_target_modules or LANGUAGE_MODEL_LINEARS
    return model, load_processor(source), peft_config


def load_model(path: str | os.PathLike, dtype: torch.dtype | None = None, int8: bool = False):
    """A SmolDriver or SmolVLM and its processor, from a model folder, a Hub id or a folder of adapters.

    Adapters are put on the base that they were trained on, quantised as it was then, by default in the same dtype.
    With `int8` the model is on the CPU and [`quantize_on_cpu`] is applied.
    -> (model in eval mode, processor)

    Raises:
        FileNotFoundError: no such folder, or adapters that do not say what their base is.
        ValueError: weights are missing, unknown, of a wrong shape or not finite, or the processor beside them is not
            the model's; int8 of another dtype than float32, of adapters or of weights that are quantised already.
    """
    check_source(str(path))
    if int8:
        check_unquantized(path)
        if dtype not in (None, torch.float32):
            raise ValueError(f"int8 computes the rest in float32, not in {dtype}: leave the dtype out")
        dtype = torch.float32
    if is_adapters(path):
        base, quantization, trained_in = base_of_adapters(path)
        model = load_base(base, dtype or trained_in, quantization)
        model = put_adapters(model, path, dtype or torch.float32).get_base_model()
        check_finite(model, path)
    else:
        base, model = path, load_base(path, dtype or "auto")
    processor = load_processor(base)
    check_fit(model, processor)
    if int8:
        return quantize_on_cpu(model.eval()), processor
    return model.to(PartialState().device).eval(), processor


def check_unquantized(path: str | os.PathLike) -> None:
    """Refuse a source that cannot be quantised or exported.

    Raises:
        ValueError: adapters, or weights that are quantised already.
    """
    if is_adapters(path):
        raise ValueError(f"{path} holds adapters: merge them first (recipes/merge_checkpoint.py)")
    quantized = getattr(load_config(path), "quantization_config", None)
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized.quant_method
        raise ValueError(f"the weights of {path} are quantised already ({method}): give the model in full precision")


def quantize_on_cpu(model: torch.nn.Module) -> torch.nn.Module:
    """Quantise the linear layers to int8 in place: weights now, activations at each call, the rest in float32.

    For CPUs alone. The weights cannot train or be saved any more.
    """
    with warnings.catch_warnings():  # torch recommends torchao, whose int8 was no faster than float32 on a CPU
        warnings.simplefilter("ignore")
        return quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)


def is_adapters(path: str | os.PathLike) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def base_of_adapters(path: str | os.PathLike) -> tuple[str, BitsAndBytesConfig | None, torch.dtype]:
    """Folder or Hub id of what adapters were trained on, how it was quantised, and its dtype.

    Raises:
        FileNotFoundError: the folder does not say, or its base does not exist.
        ValueError: its manifest names no such dtype or quantisation.
    """
    manifest = TrainingManifest.from_folder(path)
    if manifest is None:
        raise FileNotFoundError(f"{path} holds adapters without {TRAINING_MANIFEST}: which base they fit is unknown")
    named = Path(path) / TRAINING_MANIFEST
    if manifest.base is None or manifest.dtype not in DTYPES:
        raise ValueError(f"{named} must name the base of the adapters and its dtype: {', '.join(DTYPES)}")
    check_source(manifest.base)
    try:
        quantization = manifest.quantization and BitsAndBytesConfig(**manifest.quantization)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{named}: quantization is not that of bitsandbytes: {error}") from None
    return manifest.base, quantization, DTYPES[manifest.dtype]


def put_adapters(base, path: str | os.PathLike, dtype: torch.dtype) -> PeftModel:
    """`base` with the adapters of a folder, and with what was trained in full beside them, in `dtype`.

    Raises:
        ValueError: adapters that are damaged or pickled, with a tensor missing, or one that this base does not know.
    """
    check_weight_files(path)
    peft_config = PeftConfig.from_pretrained(path)
    peft_config.inference_mode = False  # so that requires_grad tells what was trained
    model = get_peft_model(base, peft_config)
    for parameter in model.parameters():
        if parameter.requires_grad:  # what was trained in float32 stays so beside a narrower base
            parameter.data = parameter.data.to(dtype)
    loaded, expected = load_peft_weights(str(path), device="cpu"), get_peft_model_state_dict(model)
    weights = {present_name(key): weight for key, weight in loaded.items()}
    if weights.keys() != expected.keys():
        missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        raise ValueError(f"the adapters in {path} do not fit their base: missing {missing}, unexpected {unexpected}")
    set_peft_model_state_dict(model, weights)
    return model


def nf4(compute_dtype: torch.dtype, double: bool, kind: str = "nf4") -> BitsAndBytesConfig:
    """4-bit weights for the language model's layers only: vision, connector and lm_head keep their precision."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=["model.vision_model", "model.connector", "lm_head"],
    )


def layers_in_4bit(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The layers that bitsandbytes has quantised. A model without any needs no bitsandbytes."""
    if getattr(model, "is_loaded_in_4bit", False):
        from bitsandbytes.nn import Linear4bit

        yield from (module for module in model.modules() if isinstance(module, Linear4bit))


def multiply_4bit_in(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Autocast does not reach 4-bit layers, which multiply in the dtype of [`nf4`]. Set theirs to match."""
    for layer in layers_in_4bit(model):
        layer.compute_dtype = dtype


def base_dtype(model_args: ModelConfig) -> torch.dtype:
    """The dtype of what does not train; float32 where none or `auto` is given.

    Raises:
        ValueError: a name that is not in `DTYPES`; nothing else checks the one in a YAML.
    """
    name = model_args.dtype or "auto"
    if name != "auto" and name not in DTYPES:
        raise ValueError(f"dtype={name!r} is unknown; use one of auto, {', '.join(DTYPES)}")
    return DTYPES.get(name, torch.float32)


def quantization_of(model_args: ModelConfig) -> BitsAndBytesConfig | None:
    """How the recipe's options ask for the base to be quantised; None: not at all."""
    if not model_args.load_in_4bit:
        return None
    return nf4(base_dtype(model_args), model_args.use_bnb_nested_quant, model_args.bnb_4bit_quant_type)
