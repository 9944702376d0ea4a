"""The peft model that a recipe asks for, and what of it is trained.

New tokens train through `trainable_token_indices`: rows of their own beside the frozen matrix. peft's forward
writes those rows into a copy of the whole matrix at every step, and differentiates through the copy;
`lean_rows` computes the same from the two parts, which is where most of the head's memory goes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch.nn import functional

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.recipe import Recipe

# peft's name for "no target module at all", for a recipe that trains embeddings alone.
_NO_TARGETS = "dummy-target-modules"


@dataclass(frozen=True)
class Trained:
    """What a model trains.

    Attributes:
        parameters: distinct parameters; a matrix that is trained as a whole copy counts once, as the copy.
        trainable: those that are trained.
        by_kind: trainable parameters by kind: `lora`, `magnitudes` (DoRA), `new rows`, `whole matrices`.
    """

    parameters: int
    trainable: int
    by_kind: dict[str, int]

    @property
    def share(self) -> float:
        """trainable / parameters."""
        return self.trainable / self.parameters

    def __repr__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.by_kind.items() if count)
        return f"{self.trainable:,} of {self.parameters:,} parameters are trained ({self.share:.2%}): {kinds}"


def is_tied(model: Any) -> bool:
    """Whether embedding and head are one matrix."""
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def new_token_ids(recipe: Recipe, tokenizer: Any) -> list[int]:
    """Ids of the tokens that the recipe's base does not have: those from its `architecture.vocab_size` on."""
    return list(range(int(recipe.architecture.get("vocab_size", len(tokenizer))), len(tokenizer)))


def check_adaptable(model: Any, recipe: Recipe, new_tokens: Sequence[int] = ()) -> None:
    """Raise what `add_lora` raises; the model stays as it is."""
    from peft import PeftModel

    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise TrainingError(
            "the model has an adapter already", remedy="merge it first, or pass the plain model"
        )
    _check_targets(model, recipe)
    rows = int(model.get_input_embeddings().weight.shape[0])
    outside = [index for index in new_tokens if not 0 <= index < rows]
    if outside:
        raise TrainingError(
            f"token id {outside[0]} has no row: the embedding has {rows}",
            where="new_tokens",
            remedy="resize the model to its tokenizer with extend_embeddings",
        )
    new = recipe.embeddings == "new-rows" and len(new_tokens)
    if recipe.rank == 0 and recipe.embeddings != "published" and not new:
        raise TrainingError(
            "nothing is trained: rank is 0 and there are no new tokens",
            where=f"recipe {recipe.name!r}",
            remedy="set rank, or pass a tokenizer with new tokens",
        )


def add_lora(model: Any, recipe: Recipe, new_tokens: Sequence[int] = ()) -> Any:
    """The model with the recipe's adapter around it; the model itself is changed and frozen.

    Args:
        model: a transformers causal language model that is not a PeftModel yet.
        recipe: see `Recipe`.
        new_tokens: ids whose rows train where `embeddings = "new-rows"`; none leaves the embedding frozen.

    Returns: a `peft.PeftModel`. B starts at zero, so its logits are the model's. Adapter weights are float32
        where the model is bfloat16 or float16.

    Raises: TrainingError: a target that the model does not have, ids outside its rows, nothing to train, or a
        model that has an adapter already.
    """
    from peft import LoraConfig, get_peft_model

    check_adaptable(model, recipe, new_tokens)
    tied = is_tied(model)
    options: dict[str, Any] = {}
    if recipe.embeddings == "published":
        # Of a tied pair peft copies one and ties the other to it.
        names = ["embed_tokens"] if tied else list(recipe.embedding_modules)
        options = {"modules_to_save": names, "ensure_weight_tying": tied}
    elif recipe.embeddings == "new-rows" and len(new_tokens):
        # A plain list would train the embedding alone, and leave an untied head as it is.
        names = ["embed_tokens"] if tied else list(recipe.embedding_modules)
        options = {"trainable_token_indices": {name: sorted(set(new_tokens)) for name in names}}
        options["ensure_weight_tying"] = tied
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank or 8,
        lora_alpha=_whole(recipe.alpha),
        lora_dropout=recipe.dropout if recipe.rank else 0.0,
        target_modules=list(recipe.targets) if recipe.rank else _NO_TARGETS,
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        **options,
    )
    meta = model.get_input_embeddings().weight.device.type == "meta"
    with torch.random.fork_rng() if not meta else nullcontext():
        if not meta:
            torch.manual_seed(recipe.seed)
        with warnings.catch_warnings():
            # peft looks for the tied pair among whole modules alone; rows of new tokens are tied too.
            warnings.filterwarnings("ignore", message="You have requested `ensure_weight_tying`")
            return get_peft_model(model, config, low_cpu_mem_usage=meta)


def _whole(value: float) -> float:
    """32 rather than 32.0, which is what adapter_config.json says everywhere else."""
    return int(value) if value == int(value) else value


def _check_targets(model: Any, recipe: Recipe) -> None:
    if not recipe.rank:
        return
    there = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if hasattr(m, "in_features")}
    missing = [target for target in recipe.targets if target not in there]
    if missing:
        raise TrainingError(
            f"the model has no module {missing[0]!r}",
            where=f"recipe {recipe.name!r}, targets",
            remedy=f"its linear modules are {', '.join(sorted(there))}",
        )


def what_trains(model: Any) -> Trained:
    """Count the parameters of a peft model, by kind."""
    kinds = {"lora": 0, "magnitudes": 0, "new rows": 0, "whole matrices": 0}
    # Frozen originals under a whole copy are not part of the model that results.
    replaced = {
        id(p)
        for m in model.modules()
        if type(m).__name__ == "ModulesToSaveWrapper"
        for p in m.original_module.parameters()
    }
    total = 0
    for name, parameter in model.named_parameters():
        if id(parameter) in replaced:
            continue
        # bitsandbytes keeps two 4-bit values in a byte and remembers the shape.
        state = getattr(parameter, "quant_state", None)
        count = math.prod(state.shape) if state is not None else parameter.numel()
        if "trainable_tokens_delta" in name:
            kind = "new rows"
        elif "lora_magnitude_vector" in name:
            kind = "magnitudes"
        elif ".lora_" in name:
            kind = "lora"
        else:
            kind = "whole matrices"
        if parameter.requires_grad:
            kinds[kind] += count
        # New rows replace rows of the frozen matrix: they are already counted there.
        total += 0 if kind == "new rows" else count
    return Trained(total, sum(kinds.values()), kinds)


def expand(recipe: Recipe) -> Trained:
    """Build the recipe's model at full size without its weights (on the meta device), and count.

    Raises: TrainingError: the recipe has no `[architecture]`.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if not recipe.architecture:
        raise TrainingError(
            "the recipe has no [architecture]",
            where=f"recipe {recipe.name!r}",
            remedy="add the shape of its base, as in the shipped recipes",
        )
    shape = dict(recipe.architecture)
    old = shape["vocab_size"]
    shape["vocab_size"] = recipe.vocabulary or old
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape))
    return what_trains(add_lora(model, recipe, range(old, shape["vocab_size"])))


def lean_rows(model: Any) -> None:
    """Make peft's trainable token rows cost what they are worth; forward and gradients stay the same."""
    for module in model.modules():
        if type(module).__name__ == "TrainableTokensLayer":
            module.forward_adapters = MethodType(_lean_forward, module)


def come_last(indices: Sequence[int], rows: int) -> bool:
    """Whether these are the last rows of a matrix, in order."""
    return bool(indices) and list(indices) == list(range(indices[0], rows))


def _lean_forward(
    self: Any, x: torch.Tensor, active: Iterable[str], *args: Any, **kwargs: Any
) -> torch.Tensor:
    adapters = list(active)
    if self.disable_adapters or self.merged or len(adapters) != 1:
        result: torch.Tensor = type(self).forward_adapters(self, x, adapters, *args, **kwargs)
        return result
    delta = self.trainable_tokens_delta[adapters[0]]
    indices: list[int] = self.token_indices[adapters[0]]
    weight = self.base_layer.weight
    place = torch.tensor(indices, device=x.device)
    if isinstance(self.base_layer, torch.nn.Embedding):
        # Which row of `delta` an id has, or -1; the frozen matrix gives all others.
        lookup = torch.full((weight.shape[0],), -1, dtype=torch.long, device=x.device)
        lookup[place] = torch.arange(len(indices), device=x.device)
        row = lookup[x]
        new = functional.embedding(row.clamp(min=0), delta).to(weight.dtype)
        return torch.where((row >= 0)[..., None], new, functional.embedding(x, weight))
    logits = functional.linear(x, weight)
    new = functional.linear(x, delta.to(weight.dtype)).to(logits.dtype)
    if come_last(indices, weight.shape[0]):  # the usual case of new tokens
        return torch.cat((logits[..., : indices[0]], new), dim=-1)
    return logits.index_copy(-1, place, new)
