"""Give a model the rows that a longer vocabulary needs, and start each new row somewhere sensible.

Strategies, for a new token t (input embedding and output head alike, each from its own old rows):

- `random`: normal, mean 0, with the standard deviation of the matrix's own old rows.
- `mean`: the mean of all old rows.
- `subtoken-mean` (default): the mean of the rows of the old tokens that t used to be (arXiv 2406.11477).
- `position-weighted`: those rows with weights n, n-1, ..., 1: the first is predicted first.
- `gloss`: the mean over the old tokens of t's English gloss where there is one, else `subtoken-mean`.

A token's old spelling comes from the old tokenizer's BPE model itself, applied to the token's own string:
so tokens that begin or end inside a character need no special case, and no pre-tokenizer or leading space
interferes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from chinese_llama_lab.vocabulary import byte_level
from chinese_llama_lab.vocabulary.consistency import SPARE_ROWS, check_consistency
from chinese_llama_lab.vocabulary.errors import VocabularyError

Strategy = Literal["random", "mean", "subtoken-mean", "position-weighted", "gloss"]
STRATEGIES: tuple[Strategy, ...] = ("random", "mean", "subtoken-mean", "position-weighted", "gloss")


@dataclass(frozen=True)
class ExtendReport:
    """What `extend_embeddings` did.

    Attributes:
        old_rows, new_rows: rows of the embedding before and after. new_tokens: tokens that were added.
        spare_rows: rows beyond the tokenizer (padding to a multiple).
        tied: whether embedding and head are one matrix.
        sources: number of new tokens by where their row started (`subtokens`, `gloss`, `mean`, `random`).
    """

    old_rows: int
    new_rows: int
    new_tokens: int
    spare_rows: int
    tied: bool
    strategy: str
    sources: dict[str, int]


def extend_embeddings(
    model: Any,
    old_tokenizer: Any,
    new_tokenizer: Any,
    strategy: Strategy = "subtoken-mean",
    *,
    seed: int = 0,
    pad_to_multiple_of: int | None = None,
    glosses: Mapping[str, str] | None = None,
) -> ExtendReport:
    """Resize `model` in place to `new_tokenizer`; the rows of old tokens stay bit-identical.

    Args:
        model: a transformers causal language model, tied or not, of any floating dtype.
        old_tokenizer: the fast BPE tokenizer the model was trained with.
        new_tokenizer: one that extends it: every old token under its old id.
        strategy: where new rows start (see the top of the file).
        seed: of `random`; other strategies use no randomness.
        pad_to_multiple_of: round the number of rows up; the spare rows start at the mean; noted in config.
        glosses: Chinese word -> English gloss, for `gloss`.

    Returns: an ExtendReport. The model's config, generation config and pad id then agree with the tokenizer.

    Raises: VocabularyError if the vocabulary shrank or old ids changed, the model has fewer rows than the old
        tokenizer, the strategy is unknown, or `gloss` came without glosses.
    """
    if strategy not in STRATEGIES:
        raise VocabularyError(
            f"There is no strategy {strategy!r}.", remedy=f"Choose one of {', '.join(STRATEGIES)}."
        )
    if strategy == "gloss" and not glosses:
        raise VocabularyError(
            "The gloss strategy needs glosses.", where="glosses", remedy="Pass a word -> gloss mapping."
        )
    if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
        raise VocabularyError(
            f"pad_to_multiple_of is {pad_to_multiple_of}.", remedy="Use 1 or more, or None."
        )
    for name, tokenizer in (("old_tokenizer", old_tokenizer), ("new_tokenizer", new_tokenizer)):
        if not hasattr(tokenizer, "pad_token_id"):
            raise VocabularyError(
                f"A {type(tokenizer).__name__} knows no padding and no end of text.",
                where=name,
                remedy="Pass a transformers tokenizer, such as PreTrainedTokenizerFast(tokenizer_object=…).",
            )
    old_size, new_size = _check_extension(old_tokenizer, new_tokenizer)
    old_rows = int(model.get_input_embeddings().weight.shape[0])
    if old_rows < old_size:
        raise VocabularyError(
            f"The model has {old_rows} rows and the old tokenizer {old_size} tokens.",
            where="old_tokenizer",
            remedy="Pass the tokenizer this model was trained with.",
        )
    multiple = pad_to_multiple_of or 1
    # Never fewer rows than there were: Qwen's hub models have spare rows already, and new tokens may fill
    # those.
    wanted = -(-max(new_size, old_rows) // multiple) * multiple
    tied = _is_tied(model)
    plan, sources = _plan(old_tokenizer, new_tokenizer, old_size, strategy, glosses)

    if wanted != old_rows:
        model.resize_token_embeddings(wanted, mean_resizing=False)
    matrices = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None and not tied:
        matrices.append(head.weight)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for matrix in matrices:
            _fill(matrix, old_size, plan, strategy, generator)
        bias = getattr(head, "bias", None)
        if bias is not None:
            bias[old_size:] = bias[:old_size].float().mean().to(bias.dtype)
    _agree(model, new_tokenizer, wanted, wanted - new_size)
    check_consistency(model, new_tokenizer)
    return ExtendReport(
        old_rows, wanted, new_size - old_size, wanted - new_size, tied, strategy, dict(sources)
    )


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _check_extension(old: Any, new: Any) -> tuple[int, int]:
    """Sizes (highest id + 1) of both; raise unless `new` keeps every old token under its id."""
    before, after = old.get_vocab(), new.get_vocab()
    old_size, new_size = max(before.values()) + 1, max(after.values()) + 1
    if new_size < old_size:
        raise VocabularyError(
            f"The vocabulary shrank: {old_size} tokens before, {new_size} after.",
            where="new_tokenizer",
            remedy="Pass the tokenizers in the order old, new.",
        )
    moved = [token for token, index in before.items() if after.get(token) != index]
    if moved:
        token = min(moved, key=lambda t: before[t])
        raise VocabularyError(
            f"{len(moved)} old tokens changed their ids: {token!r} had {before[token]}"
            f" and has {after.get(token)}.",
            where="new_tokenizer",
            remedy="Extend the tokenizer with `merge` or `continue_bpe`, which keep old ids.",
        )
    return old_size, new_size


# One new token: its id, and the old ids with weights that its row is the weighted mean of; none means "mean
# of all".
_Plan = list[tuple[int, list[int], list[float]]]


def _plan(
    old: Any, new: Any, old_size: int, strategy: Strategy, glosses: Mapping[str, str] | None
) -> tuple[_Plan, Counter[str]]:
    inner_old, inner_new = byte_level.as_tokenizer(old), byte_level.as_tokenizer(new)
    special = {index for index, token in inner_new.get_added_tokens_decoder().items() if token.special}
    byte_like = byte_level.is_byte_level(inner_new)
    alone = byte_level.model_alone(inner_old)
    unknown = getattr(old, "unk_token_id", None)
    plan: _Plan = []
    sources: Counter[str] = Counter()
    for token, index in sorted(new.get_vocab().items(), key=lambda item: item[1]):
        if index < old_size:
            continue
        ids: list[int] = []
        source = "mean"
        if strategy == "random":
            source = "random"
        elif strategy != "mean" and index not in special:
            if strategy == "gloss" and glosses is not None:
                gloss = glosses.get(_readable(token, byte_like) or "")
                if gloss:
                    ids, source = (
                        list(old.encode(" " + gloss if byte_like else gloss, add_special_tokens=False)),
                        "gloss",
                    )
            if not ids:
                spelt = alone.encode(token, add_special_tokens=False).ids
                ids = [i for i in spelt if i != unknown]
                source = "subtokens" if ids else "mean"
        weights = [1.0] * len(ids)
        if strategy == "position-weighted":
            weights = [float(n) for n in range(len(ids), 0, -1)]
        plan.append((index, ids, weights))
        sources[source] += 1
    return plan, sources


def _readable(token: str, byte_like: bool) -> str | None:
    """The word a token spells, or None if it ends inside a character."""
    return byte_level.text_of(token) if byte_like else token.removeprefix("\u2581")


def _fill(
    matrix: torch.Tensor, old_size: int, plan: _Plan, strategy: Strategy, generator: torch.Generator
) -> None:
    """Write every row from `old_size` on. Rows are computed in float32 and rounded once to the dtype."""
    old = matrix[:old_size].float()
    mean = old.mean(dim=0)
    matrix[old_size:] = mean.to(matrix.dtype)  # spare rows keep this
    if strategy == "random":
        rows = torch.randn(len(plan), matrix.shape[1], generator=generator) * float(old.std())
        matrix[[index for index, _, _ in plan]] = rows.to(matrix.device, matrix.dtype)
        return
    for index, ids, weights in plan:
        if ids:
            w = torch.tensor(weights, device=old.device)
            matrix[index] = ((w[:, None] * old[ids]).sum(dim=0) / w.sum()).to(matrix.dtype)


def _agree(model: Any, tokenizer: Any, rows: int, spare: int) -> None:
    """Config and generation config say what the tokenizer says."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    config.vocab_size = rows
    if spare:
        setattr(config, SPARE_ROWS, spare)
    elif hasattr(config, SPARE_ROWS):
        delattr(config, SPARE_ROWS)
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def row_norms(model: Any, *, head: bool = False) -> torch.Tensor:
    """L2 norm of every row of the embedding (or the head), float32, shape (rows,)."""
    module = model.get_output_embeddings() if head else model.get_input_embeddings()
    norms: torch.Tensor = module.weight.detach().float().norm(dim=1)
    return norms


def norm_summary(norms: torch.Tensor) -> dict[str, float]:
    """Minimum, quartiles, maximum and mean of row norms."""
    values: Sequence[float] = torch.quantile(norms, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist()
    names = ("min", "q25", "median", "q75", "max")
    return dict(zip(names, values, strict=True)) | {"mean": float(norms.mean())}
