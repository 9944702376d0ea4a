"""Messages of libraries that tell a reader nothing, because nobody here can act on them."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Silence two known messages; everything else is said as ever.

    - bitsandbytes: that the optional package `kernels` is not there, at every import on a processor
    - peft 0.21 asks transformers 5 for `is_gradient_checkpointing`, whose name changed
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
