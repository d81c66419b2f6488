"""Runnable stages. Importing the package silences notes of libraries that say nothing about a run."""

import logging
import warnings

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # an optional kernel package is not there
warnings.filterwarnings("ignore", "`gradient_checkpointing`", FutureWarning)  # renamed in transformers 5.23, both work
