"""The planner's processor: pictures by camera, a command and a speed -> model inputs. It has no tokenizer."""

import math

import torch
from transformers import BatchFeature, ProcessorMixin

from .configuration_smoldriver import visual_token_budgets
from .inputs_smoldriver import CAMERAS, COMMANDS, check_camera_names
from .processing_smoldriver import CameraPicturesMixin


class SmolDriverPlannerProcessor(ProcessorMixin, CameraPicturesMixin):
    """Wraps the image processor of a SmolDriver.

    Args:
        image_processor: resizes to the tower's square input, rescales and normalises for the tower.
        commands (`list[str]`, *optional*): what the route may ask for, in the order of the planner's configuration.
        grid_size, scale_factor (`int`): as in the model's configuration.
        visual_tokens (`int`): tokens per camera that the planner reads.
        cameras (`list[str]`, *optional*): camera names by camera id; default: nuScenes' six.
        budget_image_sizes (`dict`, *optional*): as in [`SmolDriverProcessor`].
        allow_urls (`bool`): as in [`SmolDriverProcessor`].

    Raises:
        ValueError: `visual_tokens` is not a budget of the grid.
    """

    if not hasattr(ProcessorMixin, "get_attributes"):  # transformers 4.57; 5.x reads the arguments of __init__
        attributes = ["image_processor"]
        image_processor_class = "AutoImageProcessor"

    def __init__(
        self,
        image_processor=None,
        commands: list[str] | None = None,
        grid_size: int = 27,
        scale_factor: int = 3,
        visual_tokens: int = 9,
        cameras: list[str] | None = None,
        budget_image_sizes: dict[int, int] | None = None,
        allow_urls: bool = True,
        **kwargs,
    ):
        self.commands = list(COMMANDS if commands is None else commands)
        self.grid_size = grid_size
        self.scale_factor = scale_factor
        self.allow_urls = allow_urls
        self.cameras = check_camera_names(CAMERAS if cameras is None else cameras)
        self.visual_token_budgets = visual_token_budgets(grid_size, scale_factor)
        self.visual_tokens = self._check_budget(visual_tokens)
        self.budget_image_sizes = {str(tokens): size for tokens, size in (budget_image_sizes or {}).items()}
        super().__init__(image_processor)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "camera_ids", "command", "speed", "ego_history", "ego_history_mask"]

    def __call__(self, images, command, speed=None, history=None) -> BatchFeature:
        """Model inputs of one moment, as `encode_moments` with one entry each."""
        return self.encode_moments([images], [command], [speed], None if history is None else [history])

    def encode_moments(
        self, images: list, commands: list, speeds: list, histories: list | None = None
    ) -> BatchFeature:
        """Model inputs of several moments; one entry per moment in each list.

        Args:
            images (`list[dict | None]`): {camera: picture}, any missing; None: no picture.
            commands (`list[str | None]`): of `self.commands`; None: withheld.
            speeds (`list[float | None]`): m/s; None: unknown.
            histories (`list[list]`, *optional*): the way driven, the oldest moment first: x, y in metres and yaw in
                radians in the ego frame of the pictures, None where a moment is unknown.

        Returns:
            `pixel_values` `(batch, views, 3, S, S)` float32 (absent where no moment has a picture), `camera_ids`
            `(batch, views)` int64, -1 for padding, `command` `(batch,)` int64, -1 where it is withheld, `speed`
            `(batch,)` float32, NaN where it is unknown; with histories `ego_history` `(batch, moments, 3)` float32 and
            `ego_history_mask` `(batch, moments)` bool.

        Raises:
            ValueError: an unknown command or camera, a picture that cannot be read, a speed that is negative or not
                finite, a history that is not finite, lists of different lengths.
        """
        counts = [len(images), len(commands), len(speeds)] + ([] if histories is None else [len(histories)])
        if len(set(counts)) > 1:
            raise ValueError(f"pictures, commands, speeds (and histories) of {counts} moments: give as many of each")
        encoded = self.encode_images([self._views(moment) for moment in images], self.visual_tokens)
        if not encoded:
            encoded["camera_ids"] = torch.full((len(images), len(self.cameras)), -1)
        encoded["command"] = torch.tensor([self.command_id(command) for command in commands])
        encoded["speed"] = torch.tensor([_speed(speed) for speed in speeds])
        if histories is not None:
            encoded["ego_history"], encoded["ego_history_mask"] = _histories(histories)
        return BatchFeature(encoded)

    def command_id(self, command: str | None) -> int:
        """Place of a command in `self.commands`; -1 for None.

        Raises:
            ValueError: an unknown command.
        """
        if command is None:
            return -1
        if command not in self.commands:
            raise ValueError(f"unknown command {command!r}; the commands are {', '.join(self.commands)}")
        return self.commands.index(command)

    def _views(self, images: dict | None) -> list[tuple[str, object]]:
        """One moment's (camera, picture) pairs; unlike a frame with questions it may have none."""
        if images is None:
            return []
        for camera in images:
            self._check_camera(camera)
        return self.scene_views(images) if any(picture is not None for picture in images.values()) else []


def _speed(speed: float | None) -> float:
    if speed is None:
        return math.nan
    if not math.isfinite(speed) or speed < 0:
        raise ValueError(f"speed={speed} must be a finite number of m/s, 0 or more; None: unknown")
    return float(speed)


def _histories(histories: list) -> tuple[torch.Tensor, torch.Tensor]:
    """`(batch, moments, 3)`, zero where a moment is unknown, and `(batch, moments)`: which are known."""
    if len({len(history) for history in histories}) != 1 or any(
        pose is not None and len(pose) != 3 for history in histories for pose in history
    ):
        raise ValueError(f"every history must have as many moments, each x, y and yaw or None; got {histories}")
    mask = torch.tensor([[pose is not None for pose in history] for history in histories])
    poses = torch.tensor([[pose or (0.0, 0.0, 0.0) for pose in history] for history in histories])
    if not poses.isfinite().all():
        raise ValueError(f"the history must be finite, in metres and radians; got {histories}")
    return poses, mask


SmolDriverPlannerProcessor.register_for_auto_class("AutoProcessor")
