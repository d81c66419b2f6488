"""The baseline: transformers' own SmolVLM behind the same scene rows, prompt, collator, trainer and evaluation.

It adds no weights to SmolVLM's, and transformers loads its folders without our code.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    SmolVLMForConditionalGeneration,
    SmolVLMModel,
)
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMBaseModelOutputWithPast
from transformers.utils import cached_file

from smoldriver_common.whole_files import write_json, written_whole

from .modeling_smoldriver import (
    SmolDriverHeadMixin,
    added_mask,
    compute_dtype,
    image_places,
    quantize_language_model_only,
    view_indices,
    visual_tokens_of,
)
from .processing_smoldriver import END_OF_TURN, SmolDriverProcessor
from .scene_smoldriver import attend_to_scenes

try:
    from transformers import ViTImageProcessorPil as ViTImageProcessor
except ImportError:  # its name in transformers 4.57
    from transformers import ViTImageProcessor

IMAGE_PROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # since transformers 5 it holds the image processor's settings too
PROCESSOR_FILES = (
    IMAGE_PROCESSOR_FILE,
    PROCESSOR_FILE,
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def file_of(source: str | os.PathLike, name: str) -> Path | None:
    """Path of a file of a folder, or of a repository on the Hub; None if it has no such file.

    Raises:
        OSError: the Hub cannot be reached, and the cache does not know.
    """
    if Path(source).is_dir():
        return path if (path := Path(source) / name).is_file() else None
    try:
        return Path(hf_hub_download(str(source), name))
    except LocalEntryNotFoundError:
        if try_to_load_from_cache(str(source), name) is not None:  # the Hub once said that there is none
            return None
        raise OSError(
            f"cannot find out whether {source} has a {name}: the cache does not know and the Hub is not reached;"
            " go online once, or give the folder of a whole download"
        ) from None
    except EntryNotFoundError:
        return None


def tower_image_processor(source: str | os.PathLike):
    """A square resize with the normalisation of a tower or VLM (folder or Hub id); 0.5 if it saved none.

    Raises:
        OSError: see [`file_of`].
    """
    if file_of(source, IMAGE_PROCESSOR_FILE) is None:
        path = file_of(source, PROCESSOR_FILE)
        if path is None or "image_processor" not in json.loads(path.read_text(encoding="utf-8")):
            return ViTImageProcessor()
    own = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    return ViTImageProcessor(image_mean=own.image_mean, image_std=own.image_std, resample=own.resample)


class SmolVLMSceneModel(SmolVLMModel):
    """SmolVLMModel that reads padding from `camera_ids`, and takes pictures that several rows share.

    SmolVLM itself drops a view whose pixels are all zero as padding; a uniform picture may have such pixels too.
    """

    def __init__(self, config):
        super().__init__(config)
        attend_to_scenes(self.text_model)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        camera_ids: torch.LongTensor | None = None,
        frame_index: torch.LongTensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> SmolVLMBaseModelOutputWithPast:
        """
        Args:
            camera_ids (`torch.LongTensor` of shape `(frames, views)`, *optional*): -1 for padding; other values make
                no difference. Without it the forward pass is SmolVLM's own.
            frame_index (`torch.LongTensor` of shape `(batch,)`, *optional*): the frame that each row shows; default:
                one frame per row.
            mm_encoder_outputs (`dict`, *optional*): `{"image": ...}` with a `pooler_output`, instead of
                `pixel_values`: the pictures' tokens in the order of the `<image>` tokens.

        The other arguments are SmolVLM's; `attention_mask` may be bool `(batch, 1, length, keys)` for packs.

        Raises:
            ValueError: if pictures and `<image>` tokens do not match.
        """
        if mm_encoder_outputs or (pixel_values is not None and camera_ids is not None):
            places = image_places(self, input_ids, inputs_embeds)
            if inputs_embeds is None:
                inputs_embeds = self.get_input_embeddings()(input_ids)
            if mm_encoder_outputs:
                visual = visual_tokens_of(mm_encoder_outputs["image"], places)
            else:
                visual, _ = self.placed_pictures(places, pixel_values, camera_ids, frame_index)
            inputs_embeds = inputs_embeds.masked_scatter(places.unsqueeze(-1), visual.to(inputs_embeds.dtype))
            input_ids = pixel_values = None
        packed = isinstance(attention_mask, torch.Tensor) and attention_mask.dtype == torch.bool
        if packed and self.text_model.config._attn_implementation == "eager":
            attention_mask = added_mask(attention_mask, self.text_model.dtype)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            **kwargs,
        )

    def placed_pictures(self, places, pixel_values, camera_ids, frame_index=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens `(pictures, tokens, width)` of the rows' pictures in order, and `(views, tokens, width)` of
        the frames': each picture goes through the tower once.

        Args:
            places (`torch.BoolTensor` of shape `(batch, length)`): of `image_places`; the others as in `forward`.

        Raises:
            ValueError: if pictures and `<image>` tokens do not match.
        """
        real = camera_ids >= 0
        hidden = self.vision_model(pixel_values=pixel_values[real].to(self.vision_model.dtype)).last_hidden_state
        # A trained vision model may have a wider dtype than a frozen connector.
        dtype = compute_dtype(self.connector.modality_projection.proj, self.get_input_embeddings().weight.dtype)
        visual = placed = self.connector(hidden.to(dtype))
        if frame_index is not None:
            views = view_indices(camera_ids)[frame_index]
            placed = visual[views[views >= 0]]
        tokens, given = int(places.sum()), placed.shape[:2].numel()
        if tokens != given:
            raise ValueError(
                f"image tokens and pictures do not match: the rows hold {tokens} <image> tokens, their pictures give"
                f" {given}, {self.image_seq_len} each"
            )
        return placed, visual


class SmolVLMForScenes(SmolDriverHeadMixin, SmolVLMForConditionalGeneration):
    """SmolVLM with `encode_scene` and `answer`, for packs too; same weights, same names."""

    def __init__(self, config):
        super().__init__(config)
        self.model = SmolVLMSceneModel(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, *args, **kwargs):
        """As in transformers, but a `quantization_config` without a list of modules to skip is that of the language
        model alone, as for SmolDriver."""
        kwargs["quantization_config"] = quantize_language_model_only(kwargs.get("quantization_config"))
        return super().from_pretrained(source, *args, **kwargs)

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, under the name of transformers' own class."""
        super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["architectures"] = [SmolVLMForConditionalGeneration.__name__]
        write_json(path, config, indent=2)


class SmolVLMSceneProcessor(SmolDriverProcessor):
    """SmolDriver's prompt for a SmolVLM: one picture of the tower's size per camera, not split into tiles.

    The one budget is the tower's own number of tokens. Saving copies the files of the folder that the processor was
    loaded from, byte for byte, so that transformers' own SmolVLMProcessor loads the new folder like the old one.
    """

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike, **kwargs) -> "SmolVLMSceneProcessor":
        """From a SmolVLM folder or Hub id; the normalisation is 0.5 if the folder does not name one."""
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        vision = config.vision_config
        files = {
            name: path
            for name in PROCESSOR_FILES
            if (path := cached_file(str(source), name, _raise_exceptions_for_missing_entries=False)) is not None
        }
        image_processor = tower_image_processor(source)
        image_processor.size = {"height": vision.image_size, "width": vision.image_size}
        processor = cls(
            image_processor,
            AutoTokenizer.from_pretrained(source, trust_remote_code=False),
            grid_size=vision.image_size // vision.patch_size,
            scale_factor=config.scale_factor,
        )
        processor.visual_token_budgets = processor.visual_token_budgets[:1]
        processor.files = files
        return processor

    def save_pretrained(self, save_directory, *args, **kwargs):
        for name, path in self.files.items():
            with written_whole(Path(save_directory) / name) as aside:
                shutil.copyfile(path, aside)


def end_answers_with_turns(model: SmolVLMForScenes, processor: SmolVLMSceneProcessor) -> None:
    """Let `generate` stop where a turn ends, whatever the folder's generation settings say."""
    model.generation_config.eos_token_id = processor.tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
