"""SmolDriver's configurations: the vision model (tower, projection, resamplers) and the whole."""

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto import modeling_auto

from .inputs_smoldriver import CAMERAS, check_camera_names

RESAMPLER_KEYS = ("content", "position")

DEFAULT_TOWER = {
    "model_type": "vit",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
DEFAULT_TEXT = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 49280,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 273768.0,
    "bos_token_id": 1,
    "eos_token_id": 49279,
    "pad_token_id": 2,
}

if hasattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES"):  # not in transformers 4.57
    # `transformers serve` takes a model with pictures only if this table knows its type and class.
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["smoldriver"] = "SmolDriverForConditionalGeneration"


def _sub_config(value: dict | PretrainedConfig | None, default: dict) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    values = dict(default if value is None else value)
    if "model_type" not in values:
        raise ValueError(f"a sub-configuration needs a `model_type`, got the keys {sorted(values)}")
    rope = values.get("rope_parameters")
    if rope and "rope_theta" in rope:  # written by transformers 5.x; 4.57 reads the flat name
        values.setdefault("rope_theta", rope["rope_theta"])
    return AutoConfig.for_model(**values)


class SmolDriverVisionConfig(PretrainedConfig):
    """The vision model: tower, projection and resamplers. The defaults are those of SmolVLM2-2.2B's connector.

    Args:
        tower_config (`dict` or `PretrainedConfig`):
            A transformers vision backbone with square patch tokens (ViT, DINOv2, SigLIP). Default: ViT-B/16.
        tower_image_size (`int`, pixels):
            Side of the square picture fed to the tower at the full budget; default `grid_size * 16`.
        hidden_size (`int`): width C of the visual tokens; it must equal the base VLM's vision width.
        grid_size (`int`): side G of the learned query grid; it must equal the base VLM's patch grid.
        num_attention_heads (`int`): heads of the resamplers' cross-attention.
        cameras (`list[str]`): the camera names; a view's camera id is the index in this list.
        resampler_keys (`str`): "content" (normalised feature + position) or "position" (as in the paper).
        resampler_residual (`bool`): add the spatially aligned patch feature to each query's output.
        layer_norm_eps (`float`): epsilon of the resamplers' normalisations.
        initializer_range (`float`): standard deviation of fresh weights.

    Raises:
        ValueError: for a width that the heads do not divide, an unknown kind of keys, camera names that
            [`check_camera_names`] refuses, or a tower whose patches do not tile `tower_image_size`.
    """

    model_type = "smoldriver_vision"
    base_config_key = "vision_config"
    sub_configs = {"tower_config": AutoConfig}

    def __init__(
        self,
        # tower
        tower_config: dict | PretrainedConfig | None = None,
        tower_image_size: int | None = None,
        # resamplers
        hidden_size: int = 1152,
        grid_size: int = 27,
        num_attention_heads: int = 16,
        cameras: list[str] | None = None,
        resampler_keys: str = "content",
        resampler_residual: bool = True,
        layer_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        self.tower_config = _sub_config(tower_config, DEFAULT_TOWER)
        self.tower_image_size = grid_size * 16 if tower_image_size is None else tower_image_size
        self.hidden_size = hidden_size
        self.grid_size = grid_size
        self.num_attention_heads = num_attention_heads
        self.cameras = check_camera_names(CAMERAS if cameras is None else cameras)
        self.resampler_keys = resampler_keys
        self.resampler_residual = resampler_residual
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self._check()
        super().__init__(**kwargs)

    def _check(self):
        if self.resampler_keys not in RESAMPLER_KEYS:
            raise ValueError(f"resampler_keys={self.resampler_keys!r} is unknown; use one of {RESAMPLER_KEYS}")
        for name in ("hidden_size", "grid_size", "num_attention_heads", "tower_image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be divisible by num_attention_heads={self.num_attention_heads}"
                " and by 4 (two axes of sine and cosine)"
            )
        patch_size = getattr(self.tower_config, "patch_size", None)
        if not isinstance(patch_size, int):
            raise ValueError(
                f"tower_config of type {self.tower_config.model_type!r} has patch_size={patch_size!r};"
                " SmolDriver needs a backbone with square patches (ViT, DINOv2, SigLIP)"
            )
        if self.tower_image_size % patch_size:
            raise ValueError(
                f"tower_image_size={self.tower_image_size} is not a multiple of the tower's patch_size={patch_size}"
            )


class SmolDriverConfig(PretrainedConfig):
    """The whole model; the layout follows SmolVLM's so that its connector, text model and lm_head fit in.

    Args:
        vision_config (`dict` or `SmolDriverVisionConfig`): see there.
        text_config (`dict` or `PretrainedConfig`): the language model, Llama (SmolLM2). Default: SmolLM2-1.7B.
        scale_factor (`int`): side s of the connector's pixel shuffle; each camera takes at most `(G / s) ** 2` tokens.
        image_token_id (`int`): id of the `<image>` placeholder.
        tie_word_embeddings (`bool`): whether lm_head is the input embedding.

    Raises:
        ValueError: if the query grid G is not a multiple of the connector's `scale_factor`.
    """

    model_type = "smoldriver"
    sub_configs = {"vision_config": SmolDriverVisionConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: dict | SmolDriverVisionConfig | None = None,
        text_config: dict | PretrainedConfig | None = None,
        scale_factor: int = 3,
        image_token_id: int = 49190,
        tie_word_embeddings: bool = False,
        **kwargs,
    ):
        if vision_config is None or isinstance(vision_config, dict):
            vision_config = SmolDriverVisionConfig(**(vision_config or {}))
        self.vision_config = vision_config
        self.text_config = _sub_config(text_config, DEFAULT_TEXT)
        self.text_config.tie_word_embeddings = tie_word_embeddings  # transformers 4.57 reads it there
        self.scale_factor = scale_factor
        self.image_token_id = image_token_id
        if scale_factor < 1 or vision_config.grid_size % scale_factor:
            raise ValueError(
                f"the query grid of {vision_config.grid_size}x{vision_config.grid_size} cannot serve the connector's"
                f" scale_factor={scale_factor}: grid_size must be a multiple of it"
            )
        auto_map = kwargs.get("auto_map") or {}
        if "AutoModelForImageTextToText" in auto_map:  # `transformers serve` loads by the newer name of the same class
            head = auto_map["AutoModelForImageTextToText"]
            kwargs["auto_map"] = {"AutoModelForMultimodalLM": head, **auto_map}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    @property
    def visual_token_budgets(self) -> list[int]:
        """The model's budgets (tokens per camera), largest first: k**2 for k = G/s .. 1."""
        return visual_token_budgets(self.vision_config.grid_size, self.scale_factor)


def visual_token_budgets(grid_size: int, scale_factor: int) -> list[int]:
    """The squares of k = grid_size / scale_factor .. 1, largest first."""
    return [k * k for k in range(grid_size // scale_factor, 0, -1)]
