"""The planner's processor: pictures by camera, a command and a speed -> model inputs. It has no tokenizer."""

import math

import torch
from transformers import BatchFeature, ProcessorMixin

from .configuration_smoldriver import visual_token_budgets
from .inputs_smoldriver import CAMERAS
from .processing_smoldriver import CameraPicturesMixin


class SmolDriverPlannerProcessor(CameraPicturesMixin, ProcessorMixin):
    """Wraps the image processor of a SmolDriver.

    Args:
        image_processor: resizes to the tower's square input, rescales and normalises as the tower wants it.
        commands (`list[str]`): what the route may ask for, in the order of the planner's configuration.
        grid_size, scale_factor (`int`): as in the model's configuration.
        visual_tokens (`int`): tokens per camera that the planner reads.
        cameras (`list[str]`, *optional*): camera names by camera id; default: nuScenes' six.
        budget_image_sizes (`dict`, *optional*): as in [`SmolDriverProcessor`].
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
        **kwargs,
    ):
        self.commands = list(commands or ())
        self.grid_size = grid_size
        self.scale_factor = scale_factor
        self.visual_tokens = visual_tokens
        self.cameras = list(CAMERAS if cameras is None else cameras)
        self.visual_token_budgets = visual_token_budgets(grid_size, scale_factor)
        self.budget_image_sizes = {str(tokens): size for tokens, size in (budget_image_sizes or {}).items()}
        super().__init__(image_processor)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "camera_ids", "command", "speed"]

    def __call__(self, images=None, command=None, speed=None, **kwargs) -> BatchFeature:
        """
        Args:
            images: {camera: picture} of one moment, any missing, or None; or a list of these.
            command (`str` or `list[str]`, *optional*): of `self.commands`; None: withheld.
            speed (`float` or `list[float]`, *optional*): m/s; None: unknown.

        Returns:
            `pixel_values` `(batch, views, 3, S, S)` (absent where no moment has a picture), `camera_ids`
            `(batch, views)`, -1 for padding, `command` `(batch,)` int64, -1 where it is withheld, `speed` `(batch,)`
            float32, NaN where it is unknown.

        Raises:
            ValueError: an unknown command or camera, a speed that is negative or not finite, lists of unlike lengths.
        """
        moments = images if isinstance(images, list) else [images]
        commands = command if isinstance(command, list) else [command] * len(moments)
        speeds = speed if isinstance(speed, list) else [speed] * len(moments)
        if not len(moments) == len(commands) == len(speeds):
            raise ValueError(
                f"{len(moments)} moments, {len(commands)} commands and {len(speeds)} speeds: give as many"
            )
        views = [self.scene_views(moment) if moment else [] for moment in moments]
        encoded = self.encode_images(views, self.visual_tokens)
        if not encoded:
            encoded["camera_ids"] = torch.full((len(moments), len(self.cameras)), -1)
        encoded["command"] = torch.tensor([self.command_id(one) for one in commands])
        encoded["speed"] = torch.tensor([_speed(one) for one in speeds])
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


def _speed(speed: float | None) -> float:
    if speed is None:
        return math.nan
    if not math.isfinite(speed) or speed < 0:
        raise ValueError(f"speed={speed} must be a finite number of m/s of at least 0; None: unknown")
    return float(speed)


SmolDriverPlannerProcessor.register_for_auto_class("AutoProcessor")
