"""SmolDriver: a small vision-language model that answers questions about six driving cameras.

Importing the package registers it with transformers' Auto classes, so that they load SmolDriver folders with this
code; where it is not installed they load the code saved beside the weights (`trust_remote_code=True`).
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
