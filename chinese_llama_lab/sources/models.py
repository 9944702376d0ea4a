"""Base models: SmolLM2 out of its wheel, what this project made of it, a local folder, or the model hub,
through one call."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from chinese_llama_lab.errors import ModelError
from chinese_llama_lab.paths import atomic_folder, cache_dir, remove_leftovers
from chinese_llama_lab.sources.fetch import cache_lock, source_file
from chinese_llama_lab.sources.hub import cached_hub_file, hub_endpoint, hub_reachable
from chinese_llama_lab.sources.manifest import load_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_GGUF = {"smollm2": "smollm2"}  # name → source of the manifest
BUNDLED = (*_GGUF, "smollm2-zh", "smollm2-zh-instruct")  # the latter two are merged from `data/adapters/`
DTYPES = ("float32", "bfloat16", "float16")


class Base(NamedTuple):
    """A causal language model and the tokenizer that belongs to it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def load_base(name: str, *, dtype: str = "float32", device: str = "cpu", **options: Any) -> Base:
    """Load a base model and its tokenizer.

    Args:
        name: `smollm2`, `smollm2-zh` or `smollm2-zh-instruct`; a folder with `config.json` and safetensors
            weights; or a hub id (`owner/name`).
        dtype: of the weights: float32, bfloat16 or float16.
        device: where the model goes, such as `cpu` or `cuda`.
        options: passed on to `AutoModelForCausalLM.from_pretrained`.

    Returns:
        (model in eval mode, tokenizer).

    Raises:
        ModelError: unknown name, incomplete folder, or a hub that cannot be reached.
        SourceError: SmolLM2's wheel could not be fetched.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if dtype not in DTYPES:
        raise ModelError(f"there is no dtype {dtype!r}", remedy=f"use one of {', '.join(DTYPES)}")
    place = str(converted_model(name)) if name in BUNDLED else _existing_place(name)
    if not Path(place).is_dir() and not hub_reachable():
        if cached_hub_file(place, "config.json") is None:
            raise _failed(
                name, ConnectionError(f"it is not in the hub's cache, and {hub_endpoint()} does not answer")
            )
        options.setdefault("local_files_only", True)  # spares half a minute of retries
    try:
        with _without_bars():
            model, found = AutoModelForCausalLM.from_pretrained(
                place,
                dtype=getattr(torch, dtype),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
        local = options.get("local_files_only", False)
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=local)
    except (OSError, ValueError) as error:
        raise _failed(name, error) from error
    except Exception as error:  # safetensors and the hub's checks of config.json have their own classes
        if type(error).__name__ not in ("SafetensorError", "StrictDataclassClassValidationError"):
            raise
        raise _failed(name, error) from error
    if found["missing_keys"]:  # transformers would fill them with random numbers and only warn
        missing = sorted(found["missing_keys"])
        raise _failed(name, ValueError(f"its weights lack {len(missing)} tensors, such as {missing[0]}"))
    try:
        return Base(model.to(device).eval(), tokenizer)
    except (AssertionError, RuntimeError) as error:  # no such device, or not enough memory on it
        raise ModelError(
            f"{name} could not be moved to {device!r}: {str(error).splitlines()[0]}",
            remedy='use device="cpu"; `chinese-llama-lab doctor` says which devices there are',
        ) from error


def own_device() -> str:
    """Where a process that was told no device puts its model: on its own GPU, or on `cpu`."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@contextmanager
def _without_bars() -> Iterator[None]:
    """transformers draws a bar even for a load of 0.2 s; in a notebook that is noise."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _existing_place(name: str) -> str:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                "the folder holds no model: it has no config.json",
                where=str(path),
                remedy="give the folder that `save_pretrained` wrote",
            )
        return str(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise ModelError(
        f"there is no base model called {name!r}, and no folder of that name",
        remedy=f"use {', '.join(BUNDLED)}, a folder, or a hub id (owner/name)",
    )


def _failed(name: str, error: Exception) -> ModelError:
    reason = str(error).strip().split("\n")[0]
    if Path(name).expanduser().is_dir():
        remedy = (
            "the folder needs config.json, model.safetensors and tokenizer.json, all whole: copy it again"
        )
    elif name in BUNDLED:
        remedy = f"delete {converted_path(name)} and run the same command again"
    else:
        remedy = (
            "check the id and the network, set HF_ENDPOINT to a mirror, log in for a gated model, or use "
            f"{', '.join(BUNDLED)}, which comes from a package index"
        )
    return ModelError(f"{name} could not be loaded: {reason}", remedy=remedy)


def converted_path(name: str) -> Path:
    """Where a bundled model is kept once it is converted or merged."""
    if name not in _GGUF:
        from chinese_llama_lab.shipped import merged_path

        return merged_path(name)
    member = load_manifest()[_GGUF[name]].members[0]
    return cache_dir() / "derived" / f"model-{name}-{member.sha256[:12]}-v1"


def converted_model(name: str) -> Path:
    """The folder of a bundled model as safetensors: converted from GGUF, or merged, the first time.

    SmolLM2's 4-bit weights are expanded to float32 without a further rounding. Two processes may ask at once;
    a kill leaves no folder behind.
    """
    folder = converted_path(name)
    if folder.is_dir():
        return folder
    base = None if name in _GGUF else _base_of(name)
    with cache_lock(folder.name):
        if not folder.is_dir():
            remove_leftovers(folder)
            try:
                if base is None:
                    gguf = source_file(_GGUF[name])
                    with atomic_folder(folder) as temporary:
                        _convert_gguf(gguf, temporary)
                else:
                    from chinese_llama_lab.shipped import merge_shipped

                    merge_shipped(name, base, folder)
            except OSError as error:
                raise ModelError(
                    f"{name} could not be converted: {error.strerror or error}",
                    where=str(folder.parent),
                    remedy="1.2 GB must be free there; LAB_CACHE_DIR moves the cache",
                ) from error
    return folder


def _base_of(name: str) -> Path:
    from chinese_llama_lab.shipped import SHIPPED

    return converted_model(SHIPPED[name])


def _convert_gguf(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from chinese_llama_lab.tokenization.gguf_vocabulary import byte_level_tokenizer, read_vocabulary

    loader = logging.getLogger("transformers")
    level = loader.level
    loader.setLevel(logging.ERROR)  # it warns that GGUF loading is slow; this happens once
    try:
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    finally:
        loader.setLevel(level)
    vocabulary = read_vocabulary(gguf)
    ids = {key: int(vocabulary[f"{key}_token_id"]) for key in ("bos", "eos", "padding", "unknown")}
    # `save_pretrained` refuses a model that still carries GGUF's quantization settings: build a plain one.
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "architectures", "dtype", "torch_dtype"):
        settings.pop(key, None)
    settings.update(bos_token_id=ids["bos"], eos_token_id=ids["eos"], pad_token_id=ids["padding"])
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config.update(
        bos_token_id=ids["bos"], eos_token_id=ids["eos"], pad_token_id=ids["padding"]
    )
    model.save_pretrained(out, safe_serialization=True)

    tokens = vocabulary["tokens"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(vocabulary, where=str(gguf)),
        bos_token=tokens[ids["bos"]],
        eos_token=tokens[ids["eos"]],
        pad_token=tokens[ids["padding"]],
        unk_token=tokens[ids["unknown"]],
        model_max_length=loaded.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = vocabulary["chat_template"]
    tokenizer.save_pretrained(out)
