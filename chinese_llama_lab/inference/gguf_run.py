"""A GGUF file run by llama.cpp, through llama-cpp-python where it is installed (the extra `gguf`).

It comes as source and is compiled on installation: minutes, a C++ compiler and CMake. Compiled as it comes,
it uses every instruction of the machine. On a virtual processor with AMX, version 0.3.36 then ended in a
general protection fault (at `ldtilecfg`) on Q8_0, and on the Q4_1 file that SmolLM2 comes in. `repack=False`
avoids that, and so does compiling without AMX: `CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON"`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chinese_llama_lab.inference.gguf_config import GgufError


@contextmanager
def opened(
    path: str | Path, *, context: int = 512, threads: int = 1, exact: bool = False, repack: bool = True
) -> Iterator[Any]:
    """A `llama_cpp.Llama`, closed at the end.

    Args:
        path: the GGUF file. context: tokens of prompt and answer together. threads: for all work.
        exact: keep the logits of all positions, and keys and values in float32 (llama.cpp's default is
            float16): for comparison with transformers.
        repack: let llama.cpp lay weights out anew for this processor.

    Raises: GgufError: llama-cpp-python is not installed, or llama.cpp cannot load the file.
    """
    try:
        import llama_cpp
        import llama_cpp.llama_cpp as binding
    except ImportError as error:
        raise GgufError(
            "llama-cpp-python is not installed",
            remedy='pip install -c constraints.txt "chinese_llama_lab[gguf]" (it is compiled: some minutes)',
        ) from error
    single = {"type_k": 0, "type_v": 0, "logits_all": True} if exact else {}
    defaults = binding.llama_model_default_params

    def plain() -> Any:
        settings = defaults()
        settings.use_extra_bufts = False
        return settings

    binding.llama_model_default_params = defaults if repack else plain  # `Llama` has no argument for it
    try:
        model = llama_cpp.Llama(
            str(path), n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False, **single
        )
    except ValueError as error:
        raise GgufError(
            f"llama.cpp cannot load it: {error}", where=str(path), remedy="export it again"
        ) from error
    finally:
        binding.llama_model_default_params = defaults
    try:
        yield model
    finally:
        model.close()


def logits(model: Any, ids: Sequence[int]) -> Any:
    """float32 [tokens, vocabulary] of a text, from a model opened with `exact`."""
    import numpy as np

    model.reset()
    model.eval(list(ids))
    return np.array(model.scores[: len(ids)])


def greedy(model: Any, ids: Sequence[int], new_tokens: int) -> tuple[list[int], float, float]:
    """Go on with the likeliest token; EOS stops nothing.

    Returns: the new tokens, seconds of the prefill (first new token included), seconds of all further ones.
    """
    model.reset()  # or the keys and values of the last prompt would be used again
    found, first = [], 0.0
    started = time.perf_counter()
    for token in model.generate(list(ids), temp=0.0, repeat_penalty=1.0):
        found.append(int(token))
        first = first or time.perf_counter()
        if len(found) == new_tokens:
            break
    return found, first - started, time.perf_counter() - first
