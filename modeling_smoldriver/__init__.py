"""SmolDriver: a small vision-language model that answers questions about six driving cameras.

Importing the package registers it with transformers' Auto classes, so that they load SmolDriver folders with this
code; where it is not installed they load the code saved beside the weights (`trust_remote_code=True`).

Limits of other libraries, each with its way round (the versions are those of constraints.txt):

- TRL's own scripts (`sft_vlm.py`) load without `trust_remote_code`: put `import modeling_smoldriver` at their head.
- TRL's GRPO and RLOO trainers give the loss a fixed list of inputs, without `camera_ids`. Rows with the pictures of
  all cameras, in the order of `processor.cameras`, train as they are with GRPO without `beta`; for the rest (RLOO, a
  reference model, frames with fewer pictures) `grpo_smoldriver.FramePromptsMixin` stands before the trainer.
- PEFT by the usual names (`target_modules=["q_proj", "v_proj"]`) adapts the tower too, in transformers 5. There rows
  are views, so that batches of mixed adapters (`adapter_names`) and aLoRA need adapters of the language model alone:
  `target_modules=r".*text_model.*\\.(q_proj|v_proj)"`.
- accelerate's `load_checkpoint_and_dispatch` reads a file's names as they are, but transformers 5 saves a ViT under
  the names of transformers 4: load with `from_pretrained(folder, device_map=...)`, which renames them.
- bitsandbytes re-orders 4-bit weights for good at the first forward pass on a CPU with AVX512-BF16 (in eval mode,
  without gradients): what is saved afterwards is corrupt, and no gradient passes it. Save first, or set
  `support_avx512bf16_for_cpu = False` on each `Linear4bit` before, as the recipes do.
"""

import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_smoldriver import SmolDriverConfig, SmolDriverVisionConfig
from .inputs_smoldriver import CAMERAS, COMMANDS
from .modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverModel, SmolDriverVisionModel
from .planning_processing_smoldriver import SmolDriverPlannerProcessor
from .planning_smoldriver import SmolDriverForTrajectoryPrediction, SmolDriverPlannerConfig
from .processing_smoldriver import SmolDriverProcessor
from .resampler_smoldriver import SmolDriverResampler

try:
    from transformers import AutoModelForVision2Seq
except ImportError:  # its name in transformers 5
    AutoModelForVision2Seq = AutoModelForImageTextToText

AutoConfig.register(SmolDriverConfig.model_type, SmolDriverConfig)
AutoModel.register(SmolDriverConfig, SmolDriverModel)
for auto_class in {AutoModelForImageTextToText, AutoModelForVision2Seq}:
    auto_class.register(SmolDriverConfig, SmolDriverForConditionalGeneration)
if hasattr(transformers, "AutoModelForMultimodalLM"):  # the name that `transformers serve` loads by
    transformers.AutoModelForMultimodalLM.register(SmolDriverConfig, SmolDriverForConditionalGeneration)
AutoProcessor.register(SmolDriverConfig, SmolDriverProcessor)

AutoConfig.register(SmolDriverPlannerConfig.model_type, SmolDriverPlannerConfig)
AutoModel.register(SmolDriverPlannerConfig, SmolDriverForTrajectoryPrediction)
AutoProcessor.register(SmolDriverPlannerConfig, SmolDriverPlannerProcessor)

__all__ = [
    "CAMERAS",
    "COMMANDS",
    "AutoModelForVision2Seq",
    "SmolDriverConfig",
    "SmolDriverForConditionalGeneration",
    "SmolDriverForTrajectoryPrediction",
    "SmolDriverModel",
    "SmolDriverPlannerConfig",
    "SmolDriverPlannerProcessor",
    "SmolDriverProcessor",
    "SmolDriverResampler",
    "SmolDriverVisionConfig",
    "SmolDriverVisionModel",
]
