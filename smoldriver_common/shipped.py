"""The shipped rules that data scripts share, loaded without a model library.

Importing the package `modeling_smoldriver` registers its classes with transformers, and so imports transformers and
torch. Its `inputs_smoldriver.py` needs neither: here it is loaded from its file alone.
"""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

_FILE = Path(find_spec("modeling_smoldriver").origin).with_name("inputs_smoldriver.py")
_SPEC = spec_from_file_location("smoldriver_common.inputs_smoldriver", _FILE)
_inputs = module_from_spec(_SPEC)
_SPEC.loader.exec_module(_inputs)

CAMERAS = _inputs.CAMERAS
COMMANDS = _inputs.COMMANDS
MAX_PIXELS = _inputs.MAX_PIXELS
check_camera_names = _inputs.check_camera_names
check_text = _inputs.check_text
fault_of_text = _inputs.fault_of_text
to_rgb = _inputs.to_rgb
upright_size = _inputs.upright_size
