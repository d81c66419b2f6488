"""A small planner on SmolDriver's vision model: six pictures, a command and a speed -> six waypoints.

    pixel_values (B, V, 3, S, S), camera_ids (B, V)
      -> vision model and connector, as in SmolDriver                             (n, k^2, D), n views that are there
      -> a place for each camera and token; a learned vector where a camera is missing   (B, cameras, k^2, D)
      -> a linear layer with weights of its own per camera and place              (B, cameras, k^2, token_width)
      -> flattened, beside the command, the speed and (a control) the way driven  -> ego state (B, hidden_size)
      -> proposals (B, M, waypoints, 2) with scores (B, M) -> the best: waypoints (B, waypoints, 2)

Waypoints are metres in the ego frame of the pictures' moment: x forward, y left, origin below the rear axle; at
0.5, 1.0, ... 3.0 s. The language model takes no part: what it knows may guide the training, see `guidance`.
The weights of vision model and connector carry SmolDriver's names (`model.vision_model.*`, `model.connector.*`).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import ModelOutput

from .configuration_smoldriver import SmolDriverVisionConfig, visual_token_budgets
from .modeling_smoldriver import SmolDriverConnector, SmolDriverPreTrainedModel, SmolDriverVisionModel

COMMANDS = ("turn left", "turn right", "change lane left", "change lane right", "go straight")
EGO_INPUTS = ("speed", "history")
SPEED_SCALE = 10.0  # m/s; of the numbers that the head reads
HISTORY_SCALE = 10.0  # metres


class SmolDriverPlannerConfig(PretrainedConfig):
    """A planner on the vision model of a SmolDriver.

    Args:
        vision_config (`dict` or `SmolDriverVisionConfig`): as in the SmolDriver.
        scale_factor (`int`): as in the SmolDriver.
        token_size (`int`): width D of the visual tokens after the connector.
        visual_tokens (`int`): tokens per camera that the head reads: one budget, whose places have own weights.
        token_width (`int`): width to which each token is narrowed before all are flattened.
        hidden_size (`int`): width of the ego state.
        num_decoder_layers (`int`): layers in which each proposal attends to all tokens; 0: none.
        num_attention_heads (`int`): heads of these layers.
        num_waypoints, seconds_per_waypoint: what is planned; 6 and 0.5 s.
        num_proposals (`int`): ways that are proposed; the one with the best score is taken.
        commands (`list[str]`): what the route may ask for.
        ego_inputs (`list[str]`): "speed" and, as a control only, "history" (the way driven in the last 2 s).
        status_dropout (`float`): share of the training in which the ego inputs are withheld.
        dropout (`float`): of the flattened tokens in training.

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
        self.initializer_range = initializer_range
        self._check()
        super().__init__(**kwargs)

    def _check(self):
        if self.visual_tokens not in self.visual_token_budgets:
            raise ValueError(
                f"visual_tokens={self.visual_tokens} is not a budget; choose one of {self.visual_token_budgets}"
            )
        unknown = [name for name in self.ego_inputs if name not in EGO_INPUTS]
        if unknown:
            raise ValueError(f"ego_inputs={self.ego_inputs} names {', '.join(unknown)}; use {', '.join(EGO_INPUTS)}")
        for name in ("token_width", "hidden_size", "num_waypoints", "num_proposals", "history_moments"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
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


class SmolDriverPlannerModel(SmolDriverPreTrainedModel):
    """The vision model and connector of a SmolDriver; `forward` gives a token per camera and place."""

    config_class = SmolDriverPlannerConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: SmolDriverPlannerConfig):
        super().__init__(config)
        self.vision_model = SmolDriverVisionModel._from_config(config.vision_config)
        self.connector = SmolDriverConnector(config.vision_config.hidden_size, config.scale_factor, config.token_size)
        places = len(config.vision_config.cameras), config.visual_tokens
        self.missing = nn.Parameter(torch.zeros(*places, config.token_size))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor | None, camera_ids: torch.Tensor) -> torch.Tensor:
        """
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, views, 3, S, S)`, *optional*): normalised pictures.
            camera_ids (`torch.LongTensor` of shape `(batch, views)`): each view's camera, -1 for padding; without
                pictures all -1.

        Returns:
            `torch.Tensor` of shape `(batch, cameras, visual_tokens, token_size)`; `missing` where there is no view.
        """
        tokens = self.missing.expand(len(camera_ids), -1, -1, -1)
        frame, view = (camera_ids >= 0).nonzero(as_tuple=True)
        if pixel_values is None or not len(frame):
            return tokens
        side = self.config.scale_factor * math.isqrt(self.config.visual_tokens)
        cameras = camera_ids[frame, view]
        hidden = self.vision_model(pixel_values[frame, view], cameras, side)
        found = self.connector(hidden)
        return tokens.to(found.dtype).index_put((frame, cameras), found)


class PlaceLinear(nn.Module):
    """A linear layer with weights of its own per camera and place."""

    def __init__(self, cameras: int, places: int, width: int, narrow: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cameras, places, width, narrow))
        self.bias = nn.Parameter(torch.empty(cameras, places, narrow))

    def reset_parameters(self):
        nn.init.normal_(self.weight, std=self.weight.shape[2] ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`(batch, cameras, places, width)` -> `(batch, cameras, places, narrow)`."""
        return torch.einsum("bcpw,cpwn->bcpn", tokens, self.weight.to(tokens.dtype)) + self.bias.to(tokens.dtype)


@dataclass
class SmolDriverTrajectoryOutput(ModelOutput):
    """
    Args:
        loss (`torch.FloatTensor` of shape `()`): with `ego_future`.
        waypoints (`torch.FloatTensor` of shape `(batch, waypoints, 2)`): metres, the proposal of the best score.
        proposals (`torch.FloatTensor` of shape `(batch, proposals, waypoints, 2)`): metres.
        scores (`torch.FloatTensor` of shape `(batch, proposals)`): logits.
        ego_state (`torch.FloatTensor` of shape `(batch, hidden_size)`): what the plan is made of.
    """

    loss: torch.FloatTensor | None = None
    waypoints: torch.FloatTensor | None = None
    proposals: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    ego_state: torch.FloatTensor | None = None


class SmolDriverForTrajectoryPrediction(SmolDriverPreTrainedModel):
    """The planner: pictures, command and speed -> waypoints. `plan` takes pictures by camera."""

    config_class = SmolDriverPlannerConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

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
            nn.Linear(cameras * places * config.token_width + ego_width, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
        )
        self.decoder = _decoder(config)
        if self.decoder is not None:
            self.widen = nn.Linear(width, config.hidden_size)
            self.query = nn.Parameter(torch.zeros(config.num_proposals, config.hidden_size))
        count = 1 if self.decoder is not None else config.num_proposals
        self.way = nn.Linear(config.hidden_size, count * config.num_waypoints * 2)
        self.score = nn.Linear(config.hidden_size, count)
        self.processor = None  # set where a folder is loaded, for `plan`
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, PlaceLinear):
            module.reset_parameters()
        elif isinstance(module, SmolDriverPlannerModel):
            nn.init.normal_(module.missing, std=self.config.initializer_range)
        elif isinstance(module, SmolDriverForTrajectoryPrediction):
            if module.decoder is not None:
                nn.init.normal_(module.query, std=1.0)
        elif isinstance(module, nn.Linear) and module in self._head_layers():
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def _head_layers(self) -> list[nn.Module]:
        return [self.read[0], self.read[2], self.way, self.score, *([self.widen] if self.decoder is not None else [])]

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

        Raises:
            ValueError: no command.
        """
        if command is None:
            raise ValueError(f"command is required: places in {self.config.commands}, or -1 where it is withheld")
        if camera_ids is None:
            camera_ids = command.new_full((len(command), len(self.config.vision_config.cameras)), -1)
        tokens = self.norm(self.model(pixel_values, camera_ids))
        flat = self.dropout(self.narrow(tokens).flatten(1))
        ego = self._ego(command, speed, ego_history, ego_history_mask).to(flat.dtype)
        state = self.read(torch.cat([flat, ego], dim=-1))
        proposals, scores = self._propose(state, tokens)
        best = scores.argmax(-1)
        loss = None
        if ego_future is not None:
            loss = imitation_loss(proposals, scores, ego_future, ego_future_mask)
        return SmolDriverTrajectoryOutput(
            loss=loss,
            waypoints=proposals[torch.arange(len(best), device=best.device), best],
            proposals=proposals,
            scores=scores,
            ego_state=state,
        )

    def _ego(self, command, speed, history, history_mask) -> torch.Tensor:
        """`(batch, ego width)`; in training the status is withheld in `status_dropout` of the rows."""
        config, batch = self.config, len(command)
        kept = torch.ones(batch, 1, device=command.device)
        if self.training and config.status_dropout:
            kept = (torch.rand(batch, 1, device=command.device) >= config.status_dropout).float()
        parts = [F.one_hot(command.clamp_min(0), len(config.commands)).float() * (command >= 0).unsqueeze(-1)]
        if "speed" in config.ego_inputs:
            speed = torch.full((batch,), math.nan, device=command.device) if speed is None else speed.float()
            known = speed.isfinite().float().unsqueeze(-1) * kept
            parts += [speed.nan_to_num().unsqueeze(-1) / SPEED_SCALE * known, known]
        if "history" in config.ego_inputs:
            if history is None:
                history = torch.zeros(batch, config.history_moments, 3, device=command.device)
                history_mask = torch.zeros(batch, config.history_moments, dtype=torch.bool, device=command.device)
            known = history_mask.float().unsqueeze(-1) * kept.unsqueeze(-1)
            scale = history.new_tensor([HISTORY_SCALE, HISTORY_SCALE, 1.0])
            parts.append(torch.cat([history / scale * known, known], dim=-1).flatten(1))
        return torch.cat(parts, dim=-1)

    def _propose(self, state: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ego state `(batch, hidden)` -> ways `(batch, proposals, waypoints, 2)` in float32, scores."""
        if self.decoder is not None:
            memory = self.widen(tokens.flatten(1, 2))
            state = self.decoder(state.unsqueeze(1) + self.query, memory)  # (batch, proposal, hidden)
            scores = self.score(state).squeeze(-1)
        else:
            scores = self.score(state)
        ways = self.way(state).float().view(len(state), self.config.num_proposals, self.config.num_waypoints, 2)
        return ways, scores.float()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in transformers, but strict; the processor beside the weights is loaded too, for `plan`."""
        from .planning_processing_smoldriver import SmolDriverPlannerProcessor

        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.processor = SmolDriverPlannerProcessor.from_pretrained(pretrained_model_name_or_path)
        return loaded

    @torch.no_grad()
    def plan(self, images: dict | None, command: str | None, speed: float | None = None) -> torch.Tensor:
        """A plan for one moment.

        Args:
            images: {camera: picture}, any missing; None: no picture at all, a control.
            command: of `config.commands`; None: withheld.
            speed: m/s; None: unknown.

        Returns:
            Waypoints `(waypoints, 2)`: metres in the ego frame, x forward, y left.

        Raises:
            ValueError: an unknown command or camera, a speed that is negative or not finite, a plan that is not finite.
        """
        if self.processor is None:
            raise ValueError("this planner has no processor: load it with from_pretrained, or set planner.processor")
        inputs = self.processor(images=images, command=command, speed=speed).to(self.device)
        waypoints = self(**inputs).waypoints[0]
        if not waypoints.isfinite().all():
            raise ValueError(f"the plan is not finite: {waypoints.tolist()}; the weights or the pictures are broken")
        return waypoints.cpu()


def _decoder(config: SmolDriverPlannerConfig) -> nn.Module | None:
    if not config.num_decoder_layers:
        return None
    layer = nn.TransformerDecoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        4 * config.hidden_size,
        dropout=config.dropout,
        batch_first=True,
        norm_first=True,
    )
    return nn.TransformerDecoder(layer, config.num_decoder_layers)


def imitation_loss(
    proposals: torch.Tensor, scores: torch.Tensor, future: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """L1 of the nearest proposal in metres, and the cross-entropy of its score.

    Args: `proposals` `(batch, M, waypoints, 2)`, `scores` `(batch, M)`, `future` `(batch, waypoints, 2)`, `mask`
        `(batch, waypoints)`; a waypoint that is masked does not count.
    """
    mask = torch.ones(future.shape[:2], device=future.device) if mask is None else mask.float()
    errors = (proposals - future.unsqueeze(1)).abs().sum(-1) * mask.unsqueeze(1)  # (batch, proposal, waypoint)
    nearest = errors.detach().sum(-1).argmin(-1)
    chosen = errors[torch.arange(len(errors), device=errors.device), nearest]
    loss = chosen.sum() / mask.sum().clamp_min(1.0)
    if proposals.shape[1] > 1:
        known = (mask.sum(-1) > 0).float()
        loss = loss + (F.cross_entropy(scores, nearest, reduction="none") * known).sum() / known.sum().clamp_min(1.0)
    return loss


SmolDriverForTrajectoryPrediction.register_for_auto_class("AutoModel")
