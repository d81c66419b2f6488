"""vLLM's entry point (`vllm.general_plugins` in pyproject.toml): the model is in recipes/serving/vllm_model.py.

vLLM runs it in each of its processes, so it names the class instead of importing it.
"""


def register() -> None:
    from vllm import ModelRegistry

    ModelRegistry.register_model("SmolDriverForConditionalGeneration", "recipes.serving.vllm_model:SmolDriverForVLLM")
