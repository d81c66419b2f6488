"""Code for processes that tests start: one that cannot import this project, one that is killed at a training step."""

HIDE_PROJECT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_smoldriver", "recipes", "data_scripts", "smoldriver_common"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())

try:
    import modeling_smoldriver
except ImportError:
    pass
else:
    raise SystemExit("the package can be imported: this would test the installed code")
"""
"""Goes before code that must run with what was saved beside a model alone."""


def killed_recipe(recipe: str, config: str) -> str:
    """`python -c <this> STEP ARGUMENTS`: the recipe of that name, killed with SIGKILL when that step begins.

    Args:
        recipe (`str`): module in `recipes`.
        config (`str`): its training arguments, as `module.Class` in `modeling_smoldriver`.
    """
    module, arguments = config.split(".")
    return f"""
import os, signal, sys
from transformers import TrainerCallback
from trl import ModelConfig, TrlParser
from modeling_smoldriver.{module} import {arguments}
from recipes import {recipe} as recipe

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

load = recipe.load
def load_and_kill(*arguments):
    trainer, *rest = load(*arguments)
    trainer.add_callback(Kill())
    return trainer, *rest

recipe.load = load_and_kill
parser = TrlParser((recipe.DataArguments, {arguments}, ModelConfig))
recipe.main(*parser.parse_args_and_config(args=sys.argv[2:]))
"""
