"""SmolDriver in vLLM 0.32: its transformers backend, but each picture keeps its camera and its budget.

The backend hands the processor bare placeholders and caches a picture by its pixels alone: the camera would be lost.
Here the camera is read from the prompt, goes to the processor, and is part of the picture's key in every cache.

Of a request with V pictures, of which N are not cached yet:

    token ids --decode--> "...CAM_FRONT:<image>CAM_BACK:<image>..." --> V camera names, which the processor checks
    N names and pictures --processor--> per picture: pixel_values (3, S, S), camera_ids (), visual_tokens ()
    --get_image_features, once per budget--> per picture (budget, D)
"""

from dataclasses import replace

import torch
from vllm.model_executor.models.transformers.causal import CausalMixin
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalDummyInputsBuilder,
    MultiModalMixin,
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

NAMES = "camera_names"
"""How the names travel among a request's processor options; the processor itself reads them in its text."""


def named_placeholders(processor, cameras) -> str:
    return "".join(f"{camera}:{processor.image_token}" for camera in cameras)


class SmolDriverProcessingInfo(MultiModalProcessingInfo):
    def get_supported_mm_limits(self) -> dict[str, int]:
        """One picture per camera."""
        return {"image": len(self.get_hf_processor().cameras)}


class SmolDriverDummyInputs(MultiModalDummyInputsBuilder):
    def get_dummy_text(self, mm_counts) -> str:
        processor = self.info.get_hf_processor()
        return named_placeholders(processor, processor.cameras[: mm_counts.get("image", 0)])


class SmolDriverMultiModalProcessor(MultiModalProcessor):
    """Reads the cameras in the prompt and keeps them with the pictures."""

    def apply(self, inputs, timing_ctx):
        """
        Raises:
            ValueError: the prompt has a picture without a camera, of an unknown one or two of the same, another number
                of placeholders than of pictures, or an unknown budget; vLLM answers with status 400.
        """
        prompt = self.info.get_tokenizer().decode(inputs.prompt, skip_special_tokens=False)
        processor = self.info.get_hf_processor()
        cameras = processor.placeholder_cameras(prompt)
        processor._get_num_multimodal_tokens(visual_tokens=inputs.hf_processor_mm_kwargs.get("visual_tokens"))
        pictures = inputs.mm_data_items.get_all_counts().get("image", 0)
        if len(cameras) != pictures:
            raise ValueError(f"{pictures} pictures for {len(cameras)} placeholders in the prompt")
        options = {**inputs.hf_processor_mm_kwargs, NAMES: cameras}
        return super().apply(replace(inputs, hf_processor_mm_kwargs=options), timing_ctx)

    def _get_mm_hashes(self, inputs):
        """A picture's key in vLLM's caches, with its own camera but not those of its neighbours."""
        options = dict(inputs.hf_processor_mm_kwargs)
        cameras = options.pop(NAMES)
        hashes = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=options))
        if "image" in hashes:
            hashes["image"] = [f"{key}-{camera}" for key, camera in zip(hashes["image"], cameras, strict=True)]
        return hashes

    def _get_cache_missing_processor_kwargs(self, inputs, mm_is_cached):
        cameras = inputs.hf_processor_mm_kwargs[NAMES]
        kept = mm_is_cached.get("image", [])
        missing = [camera for camera, is_cached in zip(cameras, kept, strict=True) if not is_cached]
        return {**inputs.hf_processor_mm_kwargs, NAMES: missing}

    def _get_hf_mm_inputs(self, mm_items, hf_kwargs):
        """The processor's inputs, its text with the names of these pictures."""
        options = dict(hf_kwargs)
        cameras = options.pop(NAMES)
        inputs = super()._get_hf_mm_inputs(mm_items, options)
        if "text" in inputs.hf_data:
            inputs.hf_data["text"] = named_placeholders(self.info.get_hf_processor(), cameras)
        return inputs

    def _postprocess_hf_mm_data(self, mm_inputs, hf_processor_mm_kwargs, processed_data):
        """One entry per picture instead of one frame `(1, views, ...)`, with the budget beside it."""
        if "pixel_values" in processed_data:
            for name in ("pixel_values", "camera_ids"):
                processed_data[name] = processed_data[name][0]
            placeholders = processed_data["image_replacement_ids"] == self.info.get_hf_processor().image_token_id
            cameras = processed_data["camera_ids"]
            processed_data["visual_tokens"] = torch.full_like(cameras, int(placeholders.sum()) // len(cameras))
        return processed_data

    def _get_mm_fields_config(self, hf_inputs, hf_processor_mm_kwargs):
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))
        for name in ("pixel_values", "camera_ids", "visual_tokens"):
            fields[name] = MultiModalFieldConfig.batched("image", keep_on_cpu=name == "visual_tokens")
        return fields

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs, out_mm_kwargs):
        """As in vLLM, but without the camera's name at the beginning of a replacement: the prompt has it already."""
        processor = self.info.get_hf_processor()
        replacements = []
        for item in out_mm_kwargs.get("image", []):
            ids = item.pop("image_replacement_ids").data.tolist()
            begin = next(place for place, token in enumerate(ids) if token in processor.image_token_ids)
            replacements.append(PromptUpdateDetails.select_token_id(ids[begin:], processor.image_token_id))
        target = [processor.image_token_id]
        return [PromptReplacement(modality="image", target=target, replacement=replacements.__getitem__)]


@MULTIMODAL_REGISTRY.register_processor(
    SmolDriverMultiModalProcessor, info=SmolDriverProcessingInfo, dummy_inputs=SmolDriverDummyInputs
)
class SmolDriverForVLLM(MultiModalMixin, CausalMixin):
    """SmolDriver as vLLM's transformers backend builds it; pictures of several budgets may share a batch."""

    def recursive_replace(self):
        """vLLM knows attention layers by the source of their `forward`: `answer`, not called here, has its own."""
        for module in self.model.text_model.modules():
            _, parent, *others = type(module).__mro__
            if parent.__name__ == "SceneAttention":
                module.__class__ = others[0]
        super().recursive_replace()

    def embed_multimodal(self, pixel_values=None, camera_ids=None, visual_tokens=None, **kwargs):
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(pictures, 3, S, S)`, or a list of `(3, S, S)`): pictures of
                all requests of a step.
            camera_ids (`torch.LongTensor` of shape `(pictures,)`): the camera of each.
            visual_tokens (`torch.LongTensor` of shape `(pictures,)`): the budget of each.

        Returns:
            One tensor `(budget, D)` per picture.
        """
        if pixel_values is None:
            return []
        budgets, embeddings = visual_tokens.tolist(), [None] * len(pixel_values)
        for budget in dict.fromkeys(budgets):
            places = [place for place, other in enumerate(budgets) if other == budget]
            pixels = torch.stack([pixel_values[place] for place in places])
            features = self.model.get_image_features(pixels[None], camera_ids[places][None], budget, return_dict=True)
            for place, visual in zip(places, features.pooler_output, strict=True):
                embeddings[place] = visual
        return embeddings
