"""A small planner on SmolDriver's vision model: six pictures, a command and a speed -> six waypoints.

    pixel_values (B, V, 3, S, S), camera_ids (B, V)
      -> vision model and connector, as in SmolDriver                     (N, k^2, D), N views that are not padding
      -> put in the places of their cameras; learned vectors where a camera is missing   (B, cameras, k^2, D)
      -> a linear layer with weights of its own per camera and place      (B, cameras, k^2, token_width)
      -> flattened, with command, speed and (only as a control) history   -> ego state (B, hidden_size)
      -> optional decoder: each proposal attends to all tokens            (B, M, hidden_size)
      -> proposals (B, M, waypoints, 2), scores (B, M) -> the one with the best score: waypoints (B, waypoints, 2)

Waypoints are metres in the ego frame of the pictures' moment: x forward, y left, origin on the ground below the rear
axle; at 0.5, 1.0, ... 3.0 s. The language model takes no part. The weights of vision model and connector have
SmolDriver's names (`model.vision_model.*`, `model.connector.*`).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import ModelOutput

from .configuration_smoldriver import SmolDriverVisionConfig, visual_token_budgets
from .inputs_smoldriver import COMMANDS
from .modeling_smoldriver import SmolDriverConnector, SmolDriverPreTrainedModel, SmolDriverVisionModel
from .planning_processing_smoldriver import SmolDriverPlannerProcessor

# transformers 4.57 takes only the files that this one names from a folder, not those that they name in turn.
from .processing_smoldriver import CameraPicturesMixin  # noqa: F401
from .resampler_smoldriver import SmolDriverResampler  # noqa: F401
from .scene_smoldriver import SceneCache  # noqa: F401

EGO_INPUTS = ("speed", "history")
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
"""What `from_pretrained` passes on to the processor beside the weights."""
SPEED_SCALE = 10.0  # m/s: the head reads speeds divided by it
HISTORY_SCALE = 10.0  # metres, likewise
WAY_SPEED = 5.0  # m/s: a waypoint is the last layer's output times the way that this speed goes until then


class SmolDriverPlannerConfig(PretrainedConfig):
    """A planner on the vision model of a SmolDriver.

    Args:
        vision_config (`dict` or `SmolDriverVisionConfig`): as in the SmolDriver.
        scale_factor (`int`): as in the SmolDriver.
        token_size (`int`): width D of the visual tokens after the connector.
        visual_tokens (`int`): tokens per camera that the head reads, one of the vision model's budgets.
        token_width (`int`): width of each token when all are flattened.
        hidden_size (`int`): width of the ego state.
        num_decoder_layers (`int`): layers in which each proposal attends to all tokens; 0: none.
        num_attention_heads (`int`): heads of these layers.
        num_waypoints (`int`): waypoints of a plan.
        seconds_per_waypoint (`float`, seconds): time from one waypoint to the next.
        num_proposals (`int`): ways that are proposed; the one with the best score is taken.
        commands (`list[str]`, *optional*): what the route may ask for; default: `COMMANDS`.
        ego_inputs (`list[str]`, *optional*): "speed" and, only as a control, "history"; default: the speed.
        history_moments (`int`): moments of the history.
        status_dropout (`float`): share of the rows, in training, from which the ego inputs are withheld.
        dropout (`float`): of the flattened tokens and in the decoder, in training.
        lateral_weight (`float`): of errors to the side in the loss; errors along the way have 1.
        initializer_range (`float`): standard deviation of fresh embeddings.

    Raises:
        ValueError: names the value that is out of range and the accepted ones.
    """

    model_type = "smoldriver_planner"
    sub_configs = {"vision_config": SmolDriverVisionConfig}

    def __init__(
        self,
        # what is shared with the SmolDriver
        vision_config: dict | SmolDriverVisionConfig | None = None,
        scale_factor: int = 3,
        token_size: int = 2048,
        # head
        visual_tokens: int = 9,
        token_width: int = 40,
        hidden_size: int = 384,
        num_decoder_layers: int = 0,
        num_attention_heads: int = 6,
        # plan
        num_waypoints: int = 6,
        seconds_per_waypoint: float = 0.5,
        num_proposals: int = 1,
        # ego
        commands: list[str] | None = None,
        ego_inputs: list[str] | None = None,
        history_moments: int = 4,
        status_dropout: float = 0.5,
        dropout: float = 0.1,
        lateral_weight: float = 1.0,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        if vision_config is None or isinstance(vision_config, dict):
            vision_config = SmolDriverVisionConfig(**(vision_config or {}))
        self.vision_config = vision_config
        self.scale_factor = scale_factor
        self.token_size = token_size
        self.visual_tokens = visual_tokens
        self.token_width = token_width
        self.hidden_size = hidden_size
        self.num_decoder_layers = num_decoder_layers
        self.num_attention_heads = num_attention_heads
        self.num_waypoints = num_waypoints
        self.seconds_per_waypoint = seconds_per_waypoint
        self.num_proposals = num_proposals
        self.commands = list(COMMANDS if commands is None else commands)
        self.ego_inputs = list(EGO_INPUTS[:1] if ego_inputs is None else ego_inputs)
        self.history_moments = history_moments
        self.status_dropout = status_dropout
        self.dropout = dropout
        self.lateral_weight = lateral_weight
        self.initializer_range = initializer_range
        self._check()
        super().__init__(**kwargs)

    def _check(self):
        if self.scale_factor < 1 or self.vision_config.grid_size % self.scale_factor:
            raise ValueError(
                f"scale_factor={self.scale_factor} must divide the vision model's grid_size="
                f"{self.vision_config.grid_size}"
            )
        if self.visual_tokens not in self.visual_token_budgets:
            raise ValueError(
                f"visual_tokens={self.visual_tokens} is not a budget; choose one of {self.visual_token_budgets}"
            )
        unknown = [name for name in self.ego_inputs if name not in EGO_INPUTS]
        if unknown:
            raise ValueError(f"ego_inputs={self.ego_inputs} names {', '.join(unknown)}; use {', '.join(EGO_INPUTS)}")
        sizes = ("token_size", "token_width", "hidden_size", "num_attention_heads")
        for name in (*sizes, "num_waypoints", "num_proposals", "history_moments"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("seconds_per_waypoint", "num_decoder_layers", "lateral_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        for name in ("status_dropout", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        if self.num_decoder_layers and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be divisible by num_attention_heads={self.num_attention_heads}"
            )
        if not self.commands or len(set(self.commands)) != len(self.commands):
            raise ValueError(f"commands must be distinct names, got {self.commands}")

    @property
    def visual_token_budgets(self) -> list[int]:
        """Tokens per camera that the vision model offers, largest first."""
        return visual_token_budgets(self.vision_config.grid_size, self.scale_factor)


class SmolDriverPlannerPreTrainedModel(SmolDriverPreTrainedModel):
    """What the planner's parts share: loading is as strict as SmolDriver's."""

    config_class = SmolDriverPlannerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, PlaceLinear):
            nn.init.normal_(module.weight, std=module.weight.shape[2] ** -0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, SmolDriverPlannerModel):
            nn.init.normal_(module.missing, std=self.config.initializer_range)
        elif isinstance(module, ProposalDecoder):
            nn.init.normal_(module.query)
            nn.init.normal_(module.place, std=self.config.initializer_range)
        elif isinstance(module, FanInLinear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)


class SmolDriverPlannerModel(SmolDriverPlannerPreTrainedModel):
    """The vision model and connector of a SmolDriver; `forward` gives a token per camera and place."""

    def __init__(self, config: SmolDriverPlannerConfig):
        super().__init__(config)
        self.vision_model = SmolDriverVisionModel._from_config(config.vision_config)
        self.connector = SmolDriverConnector(config.vision_config.hidden_size, config.scale_factor, config.token_size)
        places = len(config.vision_config.cameras), config.visual_tokens
        self.missing = nn.Parameter(torch.empty(*places, config.token_size))
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor | None,
        camera_ids: torch.Tensor,
        view_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, views, 3, S, S)`, *optional*): normalised pictures.
            camera_ids (`torch.LongTensor` of shape `(batch, views)`): each view's camera, -1 for padding; without
                pictures all -1.
            view_tokens (`torch.FloatTensor` of shape `(batch, views, visual_tokens, token_size)`, *optional*): of
                [`encode_views`], in place of the pictures.

        Returns:
            `torch.Tensor` of shape `(batch, cameras, visual_tokens, token_size)`; `missing` where there is no view.

        Raises:
            ValueError: for shapes that disagree, or a camera id that the model does not have.
        """
        self._check_views(pixel_values, camera_ids, view_tokens)
        tokens = self.missing.expand(len(camera_ids), -1, -1, -1)
        frame, view = (camera_ids >= 0).nonzero(as_tuple=True)
        if not len(frame):
            return tokens
        if view_tokens is None:
            found = self._tokens_of_views(pixel_values[frame, view], camera_ids[frame, view])
        else:
            found = view_tokens[frame, view].to(tokens.dtype)
        return tokens.to(found.dtype).index_put((frame, camera_ids[frame, view]), found)

    def encode_views(self, pixel_values: torch.Tensor, camera_ids: torch.Tensor) -> torch.Tensor:
        """Tokens of each view, to be kept while the vision model does not change.

        Args: as of `forward`.

        Returns:
            `torch.Tensor` of shape `(batch, views, visual_tokens, token_size)`; zero where a view is padding.
        """
        self._check_views(pixel_values, camera_ids, None)
        frame, view = (camera_ids >= 0).nonzero(as_tuple=True)
        found = self._tokens_of_views(pixel_values[frame, view], camera_ids[frame, view])
        return found.new_zeros(*camera_ids.shape, *found.shape[1:]).index_put((frame, view), found)

    def _tokens_of_views(self, pictures: torch.Tensor, cameras: torch.Tensor) -> torch.Tensor:
        """`(N, 3, S, S)`, `(N,)` -> `(N, visual_tokens, token_size)`."""
        side = self.config.scale_factor * math.isqrt(self.config.visual_tokens)
        hidden = self.vision_model(pictures, cameras, side).last_hidden_state
        return self.connector(hidden.to(self.connector.modality_projection.proj.weight.dtype))

    def _check_views(
        self, pixel_values: torch.Tensor | None, camera_ids: torch.Tensor, view_tokens: torch.Tensor | None
    ) -> None:
        cameras = self.config.vision_config.cameras
        if camera_ids.numel() and not -1 <= int(camera_ids.min()) <= int(camera_ids.max()) < len(cameras):
            raise ValueError(
                f"camera_ids must be -1 (padding) or 0 .. {len(cameras) - 1} ({', '.join(cameras)});"
                f" got {sorted(set(camera_ids.flatten().tolist()))}"
            )
        if view_tokens is not None:
            expected = (*camera_ids.shape, self.config.visual_tokens, self.config.token_size)
            if pixel_values is not None or view_tokens.shape != expected:
                raise ValueError(
                    f"view_tokens must be {expected} and stand in place of pixel_values;"
                    f" got {tuple(view_tokens.shape)}"
                )
        elif pixel_values is None:
            if (camera_ids >= 0).any():
                raise ValueError(f"camera_ids {camera_ids.tolist()} name cameras, but there are no pixel_values")
        elif pixel_values.ndim != 5 or pixel_values.shape[:2] != camera_ids.shape:
            raise ValueError(
                "pixel_values must be (batch, views, 3, S, S) and camera_ids (batch, views);"
                f" got {tuple(pixel_values.shape)} and {tuple(camera_ids.shape)}"
            )


class FanInLinear(nn.Linear):
    """A linear layer whose fresh weights keep the size of its inputs: the head is not behind a residual stream."""


class PlaceLinear(nn.Module):
    """A linear layer with weights of its own per camera and place."""

    def __init__(self, cameras: int, places: int, width: int, narrow: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cameras, places, width, narrow))
        self.bias = nn.Parameter(torch.empty(cameras, places, narrow))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(batch, cameras, places, width)` -> `(batch, cameras, places, narrow)`."""
        return torch.einsum("bcpw,cpwn->bcpn", tokens, self.weight) + self.bias


class ProposalDecoder(nn.Module):
    """Each proposal starts at the ego state and attends to all tokens and to the other proposals."""

    def __init__(self, config: SmolDriverPlannerConfig):
        super().__init__()
        places = len(config.vision_config.cameras) * config.visual_tokens
        self.widen = FanInLinear(config.token_size, config.hidden_size)
        self.place = nn.Parameter(torch.empty(places, config.hidden_size))
        self.query = nn.Parameter(torch.empty(config.num_proposals, config.hidden_size))
        layer = nn.TransformerDecoderLayer(
            config.hidden_size,
            config.num_attention_heads,
            4 * config.hidden_size,
            dropout=config.dropout,
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerDecoder(layer, config.num_decoder_layers, norm=nn.LayerNorm(config.hidden_size))

    def forward(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """`(batch, hidden)`, `(batch, cameras, places, width)` -> `(batch, proposals, hidden)`."""
        return self.layers(state.unsqueeze(1) + self.query, self.widen(tokens.flatten(1, 2)) + self.place)


@dataclass
class SmolDriverTrajectoryOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): with `ego_future`.
        waypoints (`torch.FloatTensor` of shape `(batch, waypoints, 2)`): metres, the proposal of the best score.
        proposals (`torch.FloatTensor` of shape `(batch, proposals, waypoints, 2)`): metres.
        scores (`torch.FloatTensor` of shape `(batch, proposals)`): logits; 0 where there is one proposal.
        ego_state (`torch.FloatTensor` of shape `(batch, hidden_size)`): what the plan is made of.
    """

    loss: torch.FloatTensor | None = None
    waypoints: torch.FloatTensor | None = None
    proposals: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    ego_state: torch.FloatTensor | None = None


class SmolDriverForTrajectoryPrediction(SmolDriverPlannerPreTrainedModel):
    """The planner: pictures, command and speed -> waypoints. `plan` takes pictures by camera."""

    def __init__(self, config: SmolDriverPlannerConfig):
        super().__init__(config)
        self.model = SmolDriverPlannerModel(config)
        cameras, places, width = len(config.vision_config.cameras), config.visual_tokens, config.token_size
        self.norm = nn.LayerNorm(width)
        self.narrow = PlaceLinear(cameras, places, width, config.token_width)
        self.dropout = nn.Dropout(config.dropout)
        ego_width = len(config.commands) + 2 * ("speed" in config.ego_inputs)
        ego_width += 4 * config.history_moments * ("history" in config.ego_inputs)
        self.read = nn.Sequential(
            FanInLinear(cameras * places * config.token_width + ego_width, config.hidden_size),
            nn.GELU(),
            FanInLinear(config.hidden_size, config.hidden_size),
            nn.GELU(),
        )
        self.decoder = ProposalDecoder(config) if config.num_decoder_layers else None
        ways = 1 if config.num_decoder_layers else config.num_proposals  # of each state
        self.way = FanInLinear(config.hidden_size, ways * config.num_waypoints * 2)
        self.score = FanInLinear(config.hidden_size, ways) if config.num_proposals > 1 else None
        self.processor = None  # what `plan` reads pictures with
        self.post_init()

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        camera_ids: torch.LongTensor | None = None,
        command: torch.LongTensor | None = None,
        speed: torch.FloatTensor | None = None,
        ego_history: torch.FloatTensor | None = None,
        ego_history_mask: torch.BoolTensor | None = None,
        ego_future: torch.FloatTensor | None = None,
        ego_future_mask: torch.BoolTensor | None = None,
        view_tokens: torch.FloatTensor | None = None,
        **kwargs,
    ) -> SmolDriverTrajectoryOutput:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, views, 3, S, S)`, *optional*): normalised pictures.
            camera_ids (`torch.LongTensor` of shape `(batch, views)`, *optional*): each view's camera, -1 for padding.
            command (`torch.LongTensor` of shape `(batch,)`): its place in `config.commands`; -1: withheld.
            speed (`torch.FloatTensor` of shape `(batch,)`, *optional*): m/s; NaN: unknown.
            ego_history (`torch.FloatTensor` of shape `(batch, moments, 3)`, *optional*): x, y in metres and yaw in
                radians, the oldest first; only a planner with "history" among its `ego_inputs` reads it.
            ego_history_mask (`torch.BoolTensor` of shape `(batch, moments)`, *optional*): which moments are known.
            ego_future (`torch.FloatTensor` of shape `(batch, waypoints, 2)`, *optional*): metres; gives the loss.
            ego_future_mask (`torch.BoolTensor` of shape `(batch, waypoints)`, *optional*): which waypoints count.
            view_tokens (`torch.FloatTensor` of shape `(batch, views, visual_tokens, token_size)`, *optional*): of
                `model.encode_views`, in place of the pictures.

        Raises:
            ValueError: a missing or unknown command, a camera that the model does not have, a speed that is negative
                or infinite, a future of another shape.
        """
        self._check_ego(command, speed)
        if camera_ids is None:
            camera_ids = command.new_full((len(command), len(self.config.vision_config.cameras)), -1)
        tokens = self.model(pixel_values, camera_ids, view_tokens)
        # Under autocast too: bfloat16 rounds a waypoint 20 m ahead to 0.1 m.
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = self.norm(tokens.to(self.norm.weight.dtype))
            flat = self.dropout(self.narrow(tokens).flatten(1))
            ego = self._ego(command, speed, ego_history, ego_history_mask).to(flat.dtype)
            # The few numbers of the ego begin with as much weight as the thousands of the tokens.
            ego = ego * (flat.shape[-1] / ego.shape[-1]) ** 0.5
            state = self.read(torch.cat([flat, ego], dim=-1))
            proposals, scores = self._propose(state, tokens)
        best = scores.argmax(-1)
        loss = None
        if ego_future is not None:
            loss = imitation_loss(proposals, scores, ego_future, ego_future_mask, self.config.lateral_weight)
        return SmolDriverTrajectoryOutput(
            loss=loss,
            waypoints=proposals[torch.arange(len(best), device=best.device), best],
            proposals=proposals,
            scores=scores,
            ego_state=state,
        )

    def _check_ego(self, command: torch.Tensor | None, speed: torch.Tensor | None) -> None:
        commands = self.config.commands
        if command is None:
            raise ValueError(f"command is required: places in {commands}, or -1 where it is withheld")
        if not -1 <= int(command.min()) <= int(command.max()) < len(commands):
            raise ValueError(
                f"command must be -1 (withheld) or 0 .. {len(commands) - 1} ({', '.join(commands)});"
                f" got {command.tolist()}"
            )
        if speed is not None and bool(((speed < 0) | speed.isinf()).any()):
            raise ValueError(f"speed must be 0 m/s or more, NaN where it is unknown; got {speed.tolist()}")

    def _ego(self, command, speed, history, history_mask) -> torch.Tensor:
        """`(batch, ego width)`; in training speed and history are withheld from `status_dropout` of the rows."""
        config, batch, device = self.config, len(command), command.device
        kept = torch.ones(batch, 1, device=device)
        if self.training:
            kept = (torch.rand(batch, 1, device=device) >= config.status_dropout).float()
        parts = [F.one_hot(command.clamp_min(0), len(config.commands)).float() * (command >= 0).unsqueeze(-1)]
        if "speed" in config.ego_inputs:
            speed = torch.full((batch,), math.nan, device=device) if speed is None else speed.float()
            known = (~speed.isnan()).float().unsqueeze(-1) * kept
            parts += [speed.nan_to_num().unsqueeze(-1) / SPEED_SCALE * known, known]
        if "history" in config.ego_inputs:
            shape = batch, config.history_moments
            if history is None:
                history, history_mask = torch.zeros(*shape, 3, device=device), torch.zeros(shape, device=device)
            elif history_mask is None:
                history_mask = torch.ones(shape, device=device)
            known = history_mask.float().unsqueeze(-1) * kept.unsqueeze(-1)
            scale = torch.tensor([HISTORY_SCALE, HISTORY_SCALE, 1.0], device=device)
            parts.append(torch.cat([history.float() / scale * known, known], dim=-1).flatten(1))
        return torch.cat(parts, dim=-1)

    def _propose(self, state: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ego state `(batch, hidden)` -> ways `(batch, proposals, waypoints, 2)` and scores, both float32."""
        batch, proposals = len(state), self.config.num_proposals
        if self.decoder is not None:
            state = self.decoder(state, tokens)  # (batch, proposal, hidden)
        moments = torch.arange(1, self.config.num_waypoints + 1, device=state.device).view(-1, 1)
        reach = WAY_SPEED * self.config.seconds_per_waypoint * moments  # metres: the layer learns numbers near 1
        ways = self.way(state).float().view(batch, proposals, self.config.num_waypoints, 2) * reach
        if self.score is None:
            return ways, ways.new_zeros(batch, 1)
        return ways, self.score(state).float().view(batch, proposals)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, but strict; the processor beside the weights is loaded too, for `plan`."""
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        try:
            model.processor = SmolDriverPlannerProcessor.from_pretrained(pretrained_model_name_or_path, **hub)
        except OSError:  # weights alone, as in a trainer's checkpoint: they serve for all but `plan`
            model.processor = None
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers; the configuration also names the processor's class."""
        auto_map = dict(getattr(self.config, "auto_map", None) or {})
        auto_map["AutoProcessor"] = "planning_processing_smoldriver.SmolDriverPlannerProcessor"
        self.config.auto_map = auto_map
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def plan(self, images: dict | None, command: str | None, speed: float | None = None, history=None) -> torch.Tensor:
        """A plan for one moment. The model should be in eval mode, as it is when loaded.

        Args:
            images: {camera: picture}, any missing; None: no picture at all, a control.
            command: of `config.commands`; None: withheld.
            speed: m/s; None: unknown.
            history: see the processor's `encode_moments`; only for a planner with "history" among its `ego_inputs`.

        Returns:
            `torch.FloatTensor` of shape `(waypoints, 2)` on the CPU: metres in the ego frame, x forward, y left.

        Raises:
            ValueError: an unknown command or camera, a speed that is negative or not finite, a processor for another
                planner, a plan that is not finite.
        """
        self.check_processor()
        if history is not None and "history" not in self.config.ego_inputs:
            raise ValueError(f"this planner reads {', '.join(self.config.ego_inputs) or 'no ego input'}: no history")
        inputs = self.processor(images, command, speed, history).to(self.device)
        waypoints = self(**inputs).waypoints[0]
        if not waypoints.isfinite().all():
            raise ValueError(f"the plan is not finite: {waypoints.tolist()}; the weights or the pictures are broken")
        return waypoints.cpu()

    def check_processor(self) -> None:
        """Whether `plan` has the processor that this planner was built with.

        Raises:
            ValueError: there is none, or it is for another planner.
        """
        if self.processor is None:
            raise ValueError("this planner has no processor: load it with from_pretrained, or set planner.processor")
        config = self.config
        expected = {
            "cameras": config.vision_config.cameras,
            "commands": config.commands,
            "visual_tokens": config.visual_tokens,
        }
        for name, value in expected.items():
            given = getattr(self.processor, name)
            if given != value:
                raise ValueError(f"the processor is for another planner: its {name} are {given}, the model's {value}")


def imitation_loss(
    proposals: torch.Tensor,
    scores: torch.Tensor,
    future: torch.Tensor,
    mask: torch.Tensor | None,
    lateral_weight: float = 1.0,
) -> torch.Tensor:
    """L1 of the nearest proposal in metres, and the cross-entropy of its score.

    Args:
        proposals (`torch.Tensor` of shape `(batch, M, waypoints, 2)`): metres.
        scores (`torch.Tensor` of shape `(batch, M)`): logits.
        future (`torch.Tensor` of shape `(batch, waypoints, 2)`): metres.
        mask (`torch.Tensor` of shape `(batch, waypoints)`, *optional*): which waypoints count; None: all.
        lateral_weight (`float`): w below.

    Returns:
        The mean over all waypoints that count of |dx| + w |dy| of the nearest proposal; with several proposals also
        the mean over the rows with such a waypoint of the cross-entropy.

    Raises:
        ValueError: a future of another shape.
    """
    if future.shape != (len(proposals), *proposals.shape[2:]):
        raise ValueError(
            f"ego_future must be (batch, waypoints, 2), here {(len(proposals), *proposals.shape[2:])};"
            f" got {tuple(future.shape)}"
        )
    mask = torch.ones(future.shape[:2], device=future.device) if mask is None else mask.float()
    weights = torch.tensor([1.0, lateral_weight], device=proposals.device)
    errors = ((proposals - future.unsqueeze(1)).abs() @ weights) * mask.unsqueeze(1)  # (batch, proposal, waypoint)
    nearest = errors.detach().sum(-1).argmin(-1)
    chosen = errors[torch.arange(len(errors), device=errors.device), nearest]
    loss = chosen.sum() / mask.sum().clamp_min(1.0)
    if proposals.shape[1] > 1:
        known = (mask.sum(-1) > 0).float()
        loss = loss + (F.cross_entropy(scores, nearest, reduction="none") * known).sum() / known.sum().clamp_min(1.0)
    return loss


SmolDriverPlannerConfig.register_for_auto_class("AutoConfig")
SmolDriverForTrajectoryPrediction.register_for_auto_class("AutoModel")
