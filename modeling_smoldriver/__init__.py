"""SmolDriver: a small vision-language model that answers questions about six driving cameras.

Importing the package registers it with transformers' Auto classes, so that they load SmolDriver folders with this
code; where it is not installed they load the code saved beside the weights (`trust_remote_code=True`).
"""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .configuration_smoldriver import SmolDriverConfig, SmolDriverVisionConfig
from .inputs_smoldriver import CAMERAS
from .modeling_smoldriver import SmolDriverForConditionalGeneration, SmolDriverModel, SmolDriverVisionModel
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
AutoProcessor.register(SmolDriverConfig, SmolDriverProcessor)

__all__ = [
    "CAMERAS",
    "AutoModelForVision2Seq",
    "SmolDriverConfig",
    "SmolDriverForConditionalGeneration",
    "SmolDriverModel",
    "SmolDriverProcessor",
    "SmolDriverResampler",
    "SmolDriverVisionConfig",
    "SmolDriverVisionModel",
]
