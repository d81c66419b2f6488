"""A planner for a SmolDriver's cameras, picture sizes and token budgets."""

import torch

from modeling_smoldriver import (
    SmolDriverConfig,
    SmolDriverForTrajectoryPrediction,
    SmolDriverPlannerConfig,
    SmolDriverPlannerProcessor,
    SmolDriverProcessor,
)


def fresh_planner(
    config: SmolDriverConfig, processor: SmolDriverProcessor, options: dict, dtype: torch.dtype | None = None
) -> SmolDriverForTrajectoryPrediction:
    """A planner with random weights and with its processor.

    Args:
        config, processor: of the SmolDriver.
        options: of the head, by their names in [`SmolDriverPlannerConfig`].

    Raises:
        ValueError: a budget that the SmolDriver lacks, or an option out of range.
    """
    planner_config = SmolDriverPlannerConfig(
        vision_config=config.vision_config.to_dict(),
        scale_factor=config.scale_factor,
        token_size=config.text_config.hidden_size,
        **options,
    )
    planner = SmolDriverForTrajectoryPrediction._from_config(planner_config, dtype=dtype or torch.float32)
    planner.processor = SmolDriverPlannerProcessor(
        processor.image_processor,
        commands=planner_config.commands,
        grid_size=processor.grid_size,
        scale_factor=processor.scale_factor,
        visual_tokens=planner_config.visual_tokens,
        cameras=processor.cameras,
        budget_image_sizes=processor.budget_image_sizes,
        allow_urls=processor.allow_urls,
    )
    return planner
