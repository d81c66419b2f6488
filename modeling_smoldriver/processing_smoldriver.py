"""SmolDriver's processor: pictures by camera and a prompt -> model inputs. Nothing else writes image tokens."""

import base64
import io
import json
import os
import re
import threading
import time
import urllib.request
from pathlib import Path

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData, ProcessingKwargs, TextKwargs

from .configuration_smoldriver import SmolDriverConfig, visual_token_budgets
from .inputs_smoldriver import (
    CAMERAS,
    END_OF_TURN,
    FAKE_IMAGE_TOKEN,
    GLOBAL_IMAGE_TOKEN,
    IMAGE_TOKEN,
    SPECIAL_TOKENS,
    cameras_by_place,
    check_bytes,
    check_camera_names,
    check_length,
    check_text,
    is_stored_picture,
    read_picture,
    shortened,
)

ALLOW_URLS = "SMOLDRIVER_ALLOW_URLS"
"""Environment variable: 0 switches the fetching of pictures from URLs off, also where `allow_urls` is True."""
URL_WAIT = 10  # seconds without a byte
URL_SECONDS = 30  # for a whole picture

_TOKENIZING = threading.Lock()
"""A fast tokenizer keeps the padding of a call as a state of its own, which calls in other threads would take over."""

_PLACEHOLDER = re.compile(rf"(?:(\w+):)?{re.escape(IMAGE_TOKEN)}")
_ROLES = ("User", "Assistant", "System")
PICTURE_OPTIONS = (
    *("do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    *("do_convert_rgb", "return_tensors"),
)
TEXT_OPTIONS = (*TextKwargs.__annotations__, "return_tensors", "return_text_replacement_offsets")
OPTIONS = {"text_kwargs": TEXT_OPTIONS, "images_kwargs": PICTURE_OPTIONS}
TEMPLATE_VARIABLES = ("scene_description",)  # transformers 4.57 hands them to the processor's call too
_QUESTION = "\nQuestion: "


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects of http and https, but none from https to http."""

    def redirect_request(self, request, response, code, message, headers, address):
        allowed = ("https://",) if request.full_url.lower().startswith("https://") else ("https://", "http://")
        if not address.lower().startswith(allowed):
            raise ValueError(
                f"{request.full_url} redirects to {shortened(address)}; only {' and '.join(allowed)} are followed"
            )
        return super().redirect_request(request, response, code, message, headers, address)


def fetch(address: str) -> bytes:
    """The bytes behind an http or https URL.

    Raises:
        ValueError: more than `MAX_FILE_BYTES`, longer than `URL_SECONDS`, or a redirect to another scheme.
        OSError: the server does not answer, or answers with an error.
    """
    request = urllib.request.Request(address, headers={"User-Agent": "smoldriver"})
    started, data = time.monotonic(), bytearray()
    with urllib.request.build_opener(Redirects).open(request, timeout=URL_WAIT) as response:
        check_bytes(int(response.headers.get("Content-Length") or 0))
        while chunk := response.read1(65536):
            data += chunk
            check_bytes(len(data))
            if time.monotonic() - started > URL_SECONDS:
                raise ValueError(f"{address} took longer than {URL_SECONDS} s")
    return bytes(data)


class CameraPicturesMixin:
    """Pictures by camera -> model inputs: for every processor with an `image_processor`, `cameras`,
    `visual_token_budgets`, `budget_image_sizes` and `allow_urls`.
    """

    def scene_views(self, images) -> list[tuple[str, object]]:
        """One frame's (camera, picture) pairs in the order of `self.cameras`, missing cameras left out.

        Args:
            images: a dict by camera name, or a list whose cameras its length says (see `cameras_by_place`).

        Raises:
            ValueError: an unknown camera name, a list of another length, no picture at all.
        """
        if not isinstance(images, dict):
            cameras = cameras_by_place(self.cameras, len(images))
            if cameras is None:
                raise ValueError(
                    f"{len(images)} pictures without camera names; give a dict by camera name, or a list of"
                    f" {len(self.cameras)} (None where one is missing) in the order {', '.join(self.cameras)}"
                )
            images = dict(zip(cameras, images, strict=True))
        for camera in images:
            self._check_camera(camera)
        views = [(camera, images[camera]) for camera in self.cameras if images.get(camera) is not None]
        if not views:
            raise ValueError(f"the scene has no picture at all; give at least one of {', '.join(self.cameras)}")
        return views

    def encode_images(
        self, views: list[list[tuple[str, object]]], visual_tokens: int | None = None, **options
    ) -> dict:
        """Model inputs of a batch of frames, each a list of (camera, picture); None for the largest budget.

        Args:
            options: of the image processor, of `PICTURE_OPTIONS`.

        Returns:
            `pixel_values` `(frames, views, 3, S, S)` float32 and `camera_ids` `(frames, views)` int64, -1 (and zeros)
            for padding; an empty dict where no frame has a picture.

        Raises:
            ValueError: an unknown budget, or a picture that cannot be read (its camera is named).
        """
        most = max((len(frame) for frame in views), default=0)
        if most == 0:
            return {}
        visual_tokens = self._check_budget(visual_tokens)
        pictures = [self._load(camera, picture) for frame in views for camera, picture in frame]
        size = self.budget_image_sizes.get(str(visual_tokens))
        if size is not None:
            options = {"size": {"height": size, "width": size}, **options}
        pixels = self.image_processor(pictures, **options, return_tensors="pt")["pixel_values"]
        camera_ids = torch.full((len(views), most), -1)
        for row, frame in enumerate(views):
            camera_ids[row, : len(frame)] = torch.tensor([self.cameras.index(camera) for camera, _ in frame])
        pixel_values = pixels.new_zeros(len(views), most, *pixels.shape[1:])
        pixel_values[camera_ids >= 0] = pixels
        return {"pixel_values": pixel_values, "camera_ids": camera_ids}

    def _check_budget(self, visual_tokens: int | None) -> int:
        if visual_tokens is None:
            return self.visual_token_budgets[0]
        if visual_tokens not in self.visual_token_budgets:
            raise ValueError(
                f"visual_tokens={visual_tokens} is not a budget; choose one of {self.visual_token_budgets}"
            )
        return visual_tokens

    def _check_camera(self, camera: str) -> str:
        if camera not in self.cameras:
            raise ValueError(f"unknown camera {camera!r}; the cameras are {', '.join(self.cameras)}")
        return camera

    def _load(self, camera: str, picture) -> Image.Image:
        try:
            if isinstance(picture, (str, Path)) and not os.path.isfile(picture):
                picture = Image.open(io.BytesIO(self._bytes_of(str(picture))))
            return read_picture(picture)
        except Exception as error:  # decoders and HTTP clients raise errors of every kind
            raise ValueError(f"{camera}: the picture cannot be read: {error}") from error

    def _bytes_of(self, source: str) -> bytes:
        """A picture's file behind a URL, or within a base64 string."""
        if source.lower().startswith(("http://", "https://")):
            if not self.allow_urls or os.environ.get(ALLOW_URLS, "1").lower() in ("0", "false", "no", "off"):
                raise ValueError(f"URLs are switched off (allow_urls or {ALLOW_URLS}): give the picture or its file")
            return fetch(source)
        check_bytes(len(source) * 3 // 4)
        text = source.partition(",")[2] if source.startswith("data:image/") else source
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except ValueError:
            raise ValueError(f"{shortened(source)!r} is not a file, a URL or a base64 string") from None


def _choices() -> str:
    return f"; of pictures: {', '.join(PICTURE_OPTIONS)}; of texts: {', '.join(dict.fromkeys(TEXT_OPTIONS))}"


def _is_frame(value) -> bool:
    """Several pictures and not one."""
    return isinstance(value, (dict, list, tuple)) and not is_stored_picture(value)


class SmolDriverProcessor(ProcessorMixin, CameraPicturesMixin):
    """Wraps an image processor and a SmolVLM tokenizer.

    Args:
        image_processor: resizes to the tower's square input, rescales and normalises for the tower.
        tokenizer: a fast tokenizer that knows SmolVLM's image and turn tokens.
        chat_template (`str`, *optional*): default: SmolDriver's.
        grid_size, scale_factor (`int`): as in the model's configuration; they give the visual-token budgets.
        cameras (`list[str]`, *optional*): camera names by camera id; default: nuScenes' six.
        budget_image_sizes (`dict`, *optional*): {tokens per camera: side of the tower's input in pixels} for budgets
            with a size of their own; the others use the image processor's.
        allow_urls (`bool`): fetch pictures that are given as http or https URLs. False, or 0 in the environment
            variable `SMOLDRIVER_ALLOW_URLS`, refuses them: for a server whose users must not reach other machines.
    """

    if not hasattr(ProcessorMixin, "get_attributes"):  # transformers 4.57; 5.x reads the arguments of __init__
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | None = None,
        grid_size: int = 27,
        scale_factor: int = 3,
        cameras: list[str] | None = None,
        budget_image_sizes: dict[int, int] | None = None,
        allow_urls: bool = True,
        **kwargs,
    ):
        cameras = check_camera_names(CAMERAS if cameras is None else cameras)
        if chat_template is None:
            chat_template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
            chat_template = chat_template.replace(repr(list(CAMERAS)), repr(cameras))  # engines render it alone
        self.grid_size = grid_size
        self.scale_factor = scale_factor
        self.allow_urls = allow_urls
        self.cameras = cameras
        self.visual_token_budgets = visual_token_budgets(grid_size, scale_factor)
        self.budget_image_sizes = {str(tokens): size for tokens, size in (budget_image_sizes or {}).items()}
        for tokens in self.budget_image_sizes:
            self._check_budget(int(tokens))
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        missing = [token for token in SPECIAL_TOKENS if token not in tokenizer.get_vocab()]
        if missing:
            raise ValueError(f"the tokenizer lacks SmolVLM's tokens {missing}; add them as special tokens first")
        self._tail = None  # (chat template, what it writes between a question and its answer)
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        # Names of transformers' own multimodal processors, which serving engines look up.
        self.image_ids = [self.image_token_id]
        self.image_token_ids = tokenizer.convert_tokens_to_ids([IMAGE_TOKEN, FAKE_IMAGE_TOKEN, GLOBAL_IMAGE_TOKEN])

    @classmethod
    def from_config(cls, config: SmolDriverConfig, image_processor, tokenizer, **kwargs) -> "SmolDriverProcessor":
        """The processor that fits a model's configuration; the picture size is set to `tower_image_size`."""
        size = config.vision_config.tower_image_size
        image_processor.size = {"height": size, "width": size}
        vision = config.vision_config
        return cls(
            image_processor,
            tokenizer,
            grid_size=vision.grid_size,
            scale_factor=config.scale_factor,
            cameras=vision.cameras,
            **kwargs,
        )

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, but 4.57 and 5.x can both read the tokenizer's configuration."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        path = Path(save_directory) / "tokenizer_config.json"
        tokenizer_config = json.loads(path.read_text(encoding="utf-8"))
        if tokenizer_config.get("tokenizer_class") == "TokenizersBackend":
            tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if isinstance(tokenizer_config.get("extra_special_tokens"), list):
            tokenizer_config["additional_special_tokens"] = tokenizer_config.pop("extra_special_tokens")
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(tokenizer_config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(aside, path)
        vars(self).pop("auto_map", None)  # set for the file, by transformers; a loaded processor has none either
        return saved

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, "pixel_values", "camera_ids"]

    def __call__(
        self,
        images=None,
        text: str | list[str] | None = None,
        visual_tokens: int | None = None,
        **kwargs,
    ) -> BatchFeature:
        """
        Args:
            images: one frame or a list of frames, each a dict {camera name: picture} in any order, or a list.
                A picture is a PIL image, an array `(height, width, channels)`, a path, a URL, a file's content as
                bytes or base64, an open file, or {"bytes": ..., "path": ...}; None: camera missing.
                A list is in the order of the camera names in the text. Without names, its length says the cameras:
                one per camera in the order of `self.cameras`, 1 (front) or 3 (front left, front, front right). A
                list with None in it must have one entry per camera.
            text (`str` or `list[str]`): prompts of `apply_chat_template`, one `<image>` per picture. A camera
                name directly before `<image>` (`CAM_FRONT:<image>`) says which camera it is.
            visual_tokens (`int`, *optional*): tokens per camera, of `self.visual_token_budgets`; default the largest.
            kwargs: `return_tensors`, and options of the tokenizer (`padding`, `padding_side`, ...) or of the image
                processor (`PICTURE_OPTIONS`), by name or within `text_kwargs`, `images_kwargs` and `common_kwargs`. A
                tokenizer that was loaded with a `padding` keeps it. Padding is on the left unless `padding_side` says
                otherwise, since `generate` continues each row at its right end. Nothing is ever cut: a prompt of more
                than `max_length` tokens is refused.
                `return_mm_token_type_ids` adds `mm_token_type_ids`, 1 for the tokens of pictures.

        Returns:
            `input_ids`, `attention_mask`; with pictures also `pixel_values` `(batch, views, 3, S, S)` float32 and
            `camera_ids` `(batch, views)` int64, views in the order of the prompt, -1 (and zeros) for padding.

        Raises:
            ValueError: an unknown or duplicated camera, a picture that cannot be read (its camera is named), pictures
                that do not match the `<image>` placeholders, an unknown budget or option, a prompt of more than
                `max_length` tokens or `MAX_CHARACTERS`.

        Example (a tiny model with pictures of 48 pixels and budgets of 9, 4 and 1):

        ```python
        >>> images = {"CAM_BACK": Image.open("back.jpg"), "CAM_FRONT": Image.open("front.jpg")}
        >>> messages = processor.scene_messages(images, "Why?")
        >>> text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        >>> text
        '<|im_start|>User:CAM_FRONT:<image>CAM_BACK:<image>\\nQuestion: Why?<end_of_utterance>\\nAssistant:'
        >>> inputs = processor(images=images, text=text, visual_tokens=4, return_tensors="pt")
        >>> {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        {'input_ids': (1, 55), 'attention_mask': (1, 55), 'pixel_values': (1, 2, 3, 48, 48), 'camera_ids': (1, 2)}
        >>> inputs["camera_ids"]
        tensor([[1, 4]])
        ```
        """
        for modality in ("videos", "audio"):
            if kwargs.pop(modality, None) is not None:
                raise ValueError(f"SmolDriver takes pictures and text; got {modality}")
        if not text:
            raise ValueError("text is required: a prompt with one <image> per picture (see apply_chat_template)")
        visual_tokens = self._check_budget(visual_tokens)
        text_options, image_options = self._sorted_options(kwargs)
        return_tensors = text_options.pop("return_tensors", None)
        return_spans = text_options.pop("return_text_replacement_offsets", False)
        texts = [text] if isinstance(text, str) else list(text)
        for prompt in texts:
            check_length(prompt, "prompt")
            if return_spans:  # a caller that puts the tokens in the prompt itself: a guess would not show there
                self.placeholder_cameras(prompt)
        views = [self._pair(prompt, frame) for prompt, frame in zip(texts, self._frames(images, texts), strict=True)]
        expanded = [
            self._expand(prompt, [camera for camera, _ in frame], visual_tokens)
            for prompt, frame in zip(texts, views, strict=True)
        ]
        prompts, spans = (list(column) for column in zip(*expanded, strict=True))
        return_types = text_options.pop("return_mm_token_type_ids", False)
        encoded = self._tokenize_whole(prompts if not isinstance(text, str) else prompts[0], **text_options)
        features = dict(encoded)
        if isinstance(text, str):
            features = {name: [value] for name, value in features.items()}
        if return_types:
            features["mm_token_type_ids"] = [
                [int(token in self.image_token_ids) for token in row] for row in features["input_ids"]
            ]
        features.update(self.encode_images(views, visual_tokens, **image_options))
        features = BatchFeature(features, tensor_type=return_tensors)
        if return_spans:  # apply_chat_template finds the assistant's tokens after the expansion with them
            features["text_replacement_offsets"] = spans
        return features

    def _sorted_options(self, options: dict) -> tuple[dict, dict]:
        """The tokenizer's and the image processor's options of a call; each is refused by name if nobody takes it."""
        parts = {part: dict(options.pop(part, None) or {}) for part in (*OPTIONS, "common_kwargs")}
        common = parts.pop("common_kwargs")
        options = {name: value for name, value in options.items() if value is not None}
        for name, value in (common | options).items():
            takers = [part for part, names in OPTIONS.items() if name in names]
            if not takers and name not in TEMPLATE_VARIABLES:
                raise ValueError(f"the processor has no option {name!r}{_choices()}")
            for part in takers:
                if name in options and name in parts[part]:
                    raise ValueError(f"{name} is given twice: as an option of the call and within {part}")
                parts[part].setdefault(name, value)
        for part, names in OPTIONS.items():
            unknown = [name for name in parts[part] if name not in names]
            if unknown:
                raise ValueError(f"{part} has no option {unknown[0]!r}{_choices()}")
        own = self.tokenizer.init_kwargs
        own = {name: own[name] for name in ("padding", "max_length") if "padding" in own and name in own}
        merged = self._merge_kwargs(ProcessingKwargs, tokenizer_init_kwargs=own, **parts)
        pictures = {name: value for name, value in merged["images_kwargs"].items() if value is not None}
        pictures.pop("return_tensors", None)  # a batch of views is stacked as tensors
        return merged["text_kwargs"], pictures

    def scene_messages(self, images, question: str, answer: str | None = None) -> list[dict]:
        """Chat messages of one question about a frame, for `apply_chat_template`; `images` as in `__call__`."""
        content = [{"type": "image", "camera": camera, "image": image} for camera, image in self.scene_views(images)]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        if answer is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return messages

    def scene_prompt(
        self, cameras: list[str], scene_description: str | None = None, visual_tokens: int | None = None
    ) -> str:
        """The part of the prompt that all questions about a frame share, image tokens expanded."""
        content = [{"type": "image", "camera": self._check_camera(camera)} for camera in cameras]
        if scene_description:
            scene_description = self._check_text(scene_description, "scene description")
        prefix, _ = self._template_parts(content, scene_description)
        return _PLACEHOLDER.sub(
            lambda match: match[0][: -len(IMAGE_TOKEN)] + self._image_tokens(visual_tokens), prefix
        )

    def question_prompt(self, question: str) -> str:
        """The part of the prompt between `scene_prompt` and the answer.

        Raises:
            ValueError: for an empty question or one that holds a special token.
        """
        tail = self._tail  # another thread may replace it
        if tail is None or tail[0] != self.chat_template:
            tail = self._tail = (self.chat_template, self._template_parts([], None)[1])
        return _QUESTION + self._check_text(question, "question") + tail[1]

    def encode_questions(self, questions: list[str]) -> list[list[int]]:
        """Token ids of the `question_prompt` of each question.

        Raises:
            ValueError: see `question_prompt`.
        """
        prompts = [self.question_prompt(question) for question in questions]
        return self._tokenize(prompts, add_special_tokens=False)["input_ids"]

    def _tokenize_whole(self, texts: str | list[str], max_length=None, truncation=None, **options):
        """As the tokenizer, but too long a prompt is refused: a cut one would lose image tokens or its question."""
        if options.get("padding") == "max_length":
            options["max_length"] = max_length
        encoded = self._tokenize(texts, **{"padding_side": "left", **options})
        if max_length is not None:
            masks = [encoded["attention_mask"]] if isinstance(texts, str) else encoded["attention_mask"]
            longest = max(sum(mask) for mask in masks)
            if longest > max_length:
                raise ValueError(
                    f"the prompt takes {longest} tokens, max_length is {max_length}: choose fewer visual_tokens or a"
                    " shorter text"
                )
        return encoded

    def _tokenize(self, texts: str | list[str], **options):
        with _TOKENIZING:
            return self.tokenizer(texts, **options)

    def answer_text(self, answer: str) -> str:
        """What the model learns to write after `question_prompt`."""
        return f" {self._check_text(answer, 'answer')}{END_OF_TURN}"

    def encode_scene(
        self, images: dict | list | None, scene_description: str | None = None, visual_tokens: int | None = None
    ) -> BatchFeature:
        """Inputs of `model.encode_scene`: the prompt that all questions of one frame share.

        Args:
            images: one frame as in `__call__`, a dict {camera name: picture}; None: a frame without pictures, for
                text-only controls.
            scene_description (`str`, *optional*): a summary of the scene, put before the question.
            visual_tokens (`int`, *optional*): tokens per camera, as in `__call__`.

        Returns:
            As `encode_scenes`, one row.

        Raises:
            ValueError: see `encode_scenes`.
        """
        if isinstance(images, (list, tuple)) and any(_is_frame(item) for item in images):
            raise ValueError("encode_scene takes one frame, a dict by camera name; encode_scenes takes a list of them")
        return self.encode_scenes([images], [scene_description], visual_tokens)

    def encode_scenes(
        self,
        images: list[dict | list | None],
        scene_descriptions: list[str | None] | None = None,
        visual_tokens: int | None = None,
    ) -> BatchFeature:
        """Inputs of `model.encode_scenes`: `encode_scene` for several frames.

        Args:
            images: one entry per frame, as in `encode_scene`.
            scene_descriptions: one entry per frame; None: no frame has one.
            visual_tokens (`int`, *optional*): tokens per camera, as in `__call__`.

        Returns:
            `input_ids`, `attention_mask` `(frames, length)`, padded on the right, and with pictures `pixel_values`
            `(frames, views, 3, S, S)` and `camera_ids` `(frames, views)`.

        Raises:
            ValueError: no frame, another number of descriptions than of frames, and what `__call__` refuses.
        """
        if not isinstance(images, (list, tuple)) or not images:
            raise ValueError(f"encode_scenes takes a list with at least one frame, got {images!r}")
        if scene_descriptions is None:
            scene_descriptions = [None] * len(images)
        if not isinstance(scene_descriptions, (list, tuple)) or len(scene_descriptions) != len(images):
            raise ValueError(f"{len(images)} frames need a list of as many descriptions; got {scene_descriptions!r}")
        views = [[] if frame is None else self.scene_views(frame) for frame in images]
        prompts = [
            self.scene_prompt([camera for camera, _ in frame], description, visual_tokens)
            for frame, description in zip(views, scene_descriptions, strict=True)
        ]
        encoded = self._tokenize(
            prompts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
        )
        return BatchFeature({**encoded, **self.encode_images(views, visual_tokens)})

    def _template_parts(self, content: list[dict], scene_description: str | None) -> tuple[str, str]:
        """The rendered prompt before and after a question."""
        mark = "\x00"
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": mark}]}]
        prompt = self.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, scene_description=scene_description
        )
        prefix, _, tail = prompt.rpartition(_QUESTION + mark)
        return prefix, tail

    def apply_chat_template(self, conversation, *args, **kwargs):
        """As in transformers, with a keyword `scene_description` for the first user turn.

        A picture is of the camera that its `camera` key names, or a text part with just the name before it. Pictures
        without names are taken by their place, as in `__call__`. The template holds the rule, since serving engines
        render it themselves.

        Raises:
            ValueError: a text or role that would write a special token into the prompt (see `check_text`), a picture
                whose camera is unknown, named twice or not to be known.
        """
        batched = bool(conversation) and not isinstance(conversation[0], dict)
        conversations = [
            [self._checked_message(message) for message in messages]
            for messages in (conversation if batched else [conversation])
        ]
        if kwargs.get("scene_description"):
            self._check_text(kwargs["scene_description"], "scene description")
        try:
            return super().apply_chat_template(conversations if batched else conversations[0], *args, **kwargs)
        except Exception as error:
            if type(error).__name__ != "TemplateError":  # what the template refuses; jinja2 may not be imported here
                raise
            raise ValueError(str(error)) from None

    def _checked_message(self, message: dict) -> dict:
        """A message with its content in parts that transformers 4.57 and 5.x know."""
        role = self._check_text(message["role"], "role")
        content = message["content"]
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        parts = []
        for part in content:
            if part.get("type") == "text" and part["text"] != "":
                self._check_text(part["text"], f"text of the {role}")
            if part.get("type") == "image_url":  # OpenAI's name
                address = part["image_url"]
                address = address["url"] if isinstance(address, dict) else address
                part = {"type": "image", "url": address, "camera": part.get("camera")}
            if part.get("type") == "image" and part.get("camera"):
                self._check_camera(part["camera"])
            parts.append(part)
        return {**message, "content": parts}

    def _check_text(self, text: str, what: str) -> str:
        return check_text(text, what, self.tokenizer.all_special_tokens)

    def _frames(self, images, texts: list[str]) -> list:
        """The pictures of each prompt: None, a dict by camera, or a list."""
        if images is None:
            return [None] * len(texts)
        if isinstance(images, dict) and not is_stored_picture(images):
            frames = [images]
        elif not isinstance(images, (list, tuple)):
            frames = [[images]]
        elif images and all(_is_frame(item) for item in images):
            frames = list(images)
        elif len(texts) == 1:
            frames = [list(images)]
        else:  # one flat list for several prompts
            frames, start = [], 0
            for text in texts:
                count = text.count(IMAGE_TOKEN)
                frames.append(list(images[start : start + count]))
                start += count
            if start != len(images):
                raise ValueError(
                    f"{len(images)} pictures for {start} {IMAGE_TOKEN} placeholders in {len(texts)} prompts"
                )
        if len(frames) != len(texts):
            raise ValueError(f"{len(frames)} frames of pictures for {len(texts)} prompts")
        return frames

    def _pair(self, prompt: str, images) -> list[tuple[str, object]]:
        """(camera, picture) of each placeholder, in the order of the prompt; `images` as `_frames` returns them."""
        names = self._names_of(prompt)
        named = [name for name in names if name is not None]
        pictures = self._by_camera(images, names)
        if len(pictures) != len(names):
            raise ValueError(
                f"{len(pictures)} pictures for {len(names)} {IMAGE_TOKEN} placeholders in the prompt;"
                " write one placeholder per picture (see scene_messages and apply_chat_template)"
            )
        if named and len(named) != len(names):
            raise ValueError(f"either all {IMAGE_TOKEN} placeholders carry a camera name or none; got {names}")
        if not isinstance(pictures, dict):
            return list(zip(named, pictures, strict=True)) if named or not names else self.scene_views(pictures)
        order = named or [camera for camera in self.cameras if camera in pictures]
        missing = [camera for camera in order if camera not in pictures]
        if missing:
            raise ValueError(f"the prompt names {', '.join(missing)}, but the pictures are of {', '.join(pictures)}")
        return [(camera, pictures[camera]) for camera in order]

    def _names_of(self, prompt: str) -> list[str | None]:
        """The camera before each placeholder of a prompt, None where there is no name."""
        names = [name if name and name not in _ROLES else None for name in _PLACEHOLDER.findall(prompt)]
        named = [self._check_camera(name) for name in names if name is not None]
        duplicated = sorted({name for name in named if named.count(name) > 1})
        if duplicated:
            raise ValueError(f"the prompt names a camera twice: {', '.join(duplicated)}")
        return names

    def placeholder_cameras(self, prompt: str) -> list[str]:
        """The camera of each placeholder of a rendered prompt, in its order.

        Raises:
            ValueError: a placeholder without a name, an unknown camera, a camera named twice.
        """
        names = self._names_of(prompt)
        if None in names:
            raise ValueError(
                f"{names.count(None)} of {len(names)} {IMAGE_TOKEN} placeholders have no camera name before them; the"
                f" cameras are {', '.join(self.cameras)}. vLLM drops the names unless SmolDriver's plugin is installed"
                " beside it (pip install smoldriver) and serves the model (no --model-impl transformers)"
            )
        return names

    def _by_camera(self, images, names: list[str | None]) -> dict | list:
        """A frame's pictures by camera, those that are None left out; a list if it is in the order of the prompt."""
        if images is None:
            return []
        if not isinstance(images, dict):
            in_prompt_order = names and all(names) and all(picture is not None for picture in images)
            if len(images) != len(self.cameras) or in_prompt_order:
                return list(images)
            images = dict(zip(self.cameras, images, strict=True))
        for camera in images:
            self._check_camera(camera)
        return {camera: picture for camera, picture in images.items() if picture is not None}

    def _expand(self, prompt: str, cameras: list[str], visual_tokens: int) -> tuple[str, list[dict]]:
        """Write the name of its camera and its image tokens in the place of each placeholder.

        Returns the tokenizer's text, and for each placeholder its characters before (`span`, `text`) and after
        (`new_span`, `replacement`), by the names that transformers' own processors use.
        """
        order, tokens, spans = iter(cameras), self._image_tokens(visual_tokens), []

        def expand(match: re.Match) -> str:
            camera = next(order)
            before = match[0][: -len(IMAGE_TOKEN)]
            text = before + ("" if match[1] == camera else f"{camera}:") + tokens
            start = match.start() + (spans[-1]["new_span"][1] - spans[-1]["span"][1] if spans else 0)
            spans.append(
                {
                    "type": "image",
                    "span": match.span(),
                    "new_span": (start, start + len(text)),
                    "text": match[0],
                    "replacement": text,
                }
            )
            return text

        return _PLACEHOLDER.sub(expand, prompt), spans

    def _image_tokens(self, visual_tokens: int | None) -> str:
        tokens = IMAGE_TOKEN * self._check_budget(visual_tokens)
        return f"{FAKE_IMAGE_TOKEN}{GLOBAL_IMAGE_TOKEN}{tokens}{FAKE_IMAGE_TOKEN}"

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """Placeholder tokens of pictures of the given sizes (height, width); serving engines call it."""
        count = len(image_sizes or [])
        tokens = self._check_budget(kwargs.get("visual_tokens")) + 3  # with the three tokens around a picture
        return MultiModalData(num_image_tokens=[tokens] * count, num_image_patches=[1] * count)


SmolDriverProcessor.register_for_auto_class("AutoProcessor")
