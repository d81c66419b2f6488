"""How a model is used without Python: what is published beside it, and how that is written."""
