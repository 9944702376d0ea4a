"""How far a model's predictions lie from those of another: divergence of the logits, and greedy agreement.

Both read the same tokens, so the two models must have the same vocabulary. The KL divergence weighs every
token by the reference's probability; greedy agreement asks about the first choice alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from chinese_llama_lab.quantization.errors import QuantizationError

HEAD_ROWS = 64  # positions whose logits are computed at once: in float64, 49,152 pieces take 25 MB a matrix


@dataclass(frozen=True)
class Divergence:
    """KL(reference ‖ model), over positions.

    Attributes:
        mean: nats per token. percentile_99: of single positions, nats (linear interpolation).
        same_first_choice: share of the positions where both models' likeliest token is the same, 0 to 1.
        positions: how many were compared.
    """

    mean: float
    percentile_99: float
    same_first_choice: float
    positions: int

    @property
    def nats(self) -> float:
        """Summed over all positions."""
        return self.mean * self.positions


@dataclass(frozen=True)
class Agreement:
    """How far a model would go along with the reference's greedy continuation of some prompts.

    Attributes:
        equal_before: for each prompt, tokens before the first that the model would not have chosen.
        lengths: for each prompt, tokens of the reference's continuation, EOS included.
        same: positions of all continuations where the model's first choice is the reference's, given the
            reference's tokens before it.
    """

    equal_before: tuple[int, ...]
    lengths: tuple[int, ...]
    same: int

    @property
    def share(self) -> float:
        """Of all positions, those with the same first choice; 0 to 1."""
        return self.same / sum(self.lengths)

    @property
    def mean_equal_before(self) -> float:
        """Tokens before the first difference, mean over the prompts."""
        return sum(self.equal_before) / len(self.equal_before)


@dataclass(frozen=True)
class Continuation:
    """A prompt and what the reference makes of it, token ids."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


def logit_divergence(
    reference: Any, model: Any, blocks: Iterable[Sequence[int]], *, head_rows: int = HEAD_ROWS
) -> Divergence:
    """Compare what two models predict after every token of the blocks. Logarithms and sums are in float64.

    Args:
        reference, model: transformers causal language models of one vocabulary; put into eval mode and back.
        blocks: token ids, each block by itself from its first token; they may differ in length. A tensor
            [blocks, length] will do.
        head_rows: positions whose logits are computed at once; with this many, memory stays small.

    Returns: Divergence.

    Raises: QuantizationError: no block, an empty one, an id outside the vocabulary, a block longer than a
        model reads, vocabularies of different size, or logits that are not finite (with their block).
    """
    _check_vocabularies(reference, model)
    found: list[torch.Tensor] = []
    same = 0
    with evaluating(reference, model):
        for number, block in enumerate(blocks):
            ids = _checked(block, reference, model, f"block {number}")
            for one, other in _pairs_of_logits(reference, model, ids, head_rows):
                divergences, equal = _compare(one, other, f"block {number}")
                found.append(divergences)
                same += equal
    if not found:
        raise QuantizationError("there is no block to compare on", where="blocks", remedy="give at least one")
    values = torch.cat(found)
    percentile = float(_quantile(values, 0.99))
    return Divergence(float(values.mean()), percentile, same / len(values), len(values))


def greedy_agreement(
    reference: Any, model: Any, prompts: Iterable[Sequence[int]], new_tokens: int = 200
) -> Agreement:
    """Continue prompts with the reference, greedily, and ask at which tokens the model would have differed.

    One forward pass of the model over a whole continuation answers both questions. As long as all choices
    were the same, the model would have had these very tokens before it: the first difference is where its own
    greedy continuation leaves the reference's, up to rounding of a cached forward pass. Greedy continuations
    of small models often repeat themselves, and repetition is easy to agree on.

    Args:
        reference, model: as for `logit_divergence`.
        prompts: token ids, of any lengths.
        new_tokens: length of a continuation, unless EOS (which counts as a token) ends it before.

    Raises: QuantizationError: no prompts, an empty one, one that leaves no room for `new_tokens`, an id
        outside the vocabulary, or vocabularies of different size.
    """
    _check_vocabularies(reference, model)
    return agreement(model, greedy_continuations(reference, prompts, new_tokens))


def greedy_continuations(
    reference: Any, prompts: Iterable[Sequence[int]], new_tokens: int = 200
) -> list[Continuation]:
    """What a model goes on with when it takes the likeliest token each time. See `greedy_agreement`."""
    if new_tokens < 1:
        raise QuantizationError(f"new_tokens is {new_tokens}", where="new_tokens", remedy="use 1 or more")
    found = []
    with evaluating(reference):
        for number, prompt in enumerate(prompts):
            ids = _checked(prompt, reference, reference, f"prompt {number}", room=new_tokens)
            tokens = _continue(reference, ids, new_tokens)
            found.append(Continuation(tuple(ids.tolist()), tuple(tokens)))
    if not found:
        raise QuantizationError("there is no prompt", where="prompts", remedy="give at least one")
    return found


def agreement(model: Any, continuations: Sequence[Continuation]) -> Agreement:
    """How far a model goes along with continuations of a reference. See `greedy_agreement`."""
    if not continuations:
        raise QuantizationError("there is no continuation", where="continuations", remedy="give one or more")
    before, lengths, same = [], [], 0
    with evaluating(model):
        head = model.get_output_embeddings()
        for number, continuation in enumerate(continuations):
            given = [*continuation.prompt, *continuation.tokens[:-1]]
            ids = _checked(given, model, model, f"continuation {number}")
            hidden = _hidden(model, ids)[len(continuation.prompt) - 1 :]
            rows = hidden.split(HEAD_ROWS)
            chosen = [int(token) for part in rows for token in head(part).argmax(-1)]
            equal = [one == other for one, other in zip(chosen, continuation.tokens, strict=True)]
            before.append(equal.index(False) if False in equal else len(equal))
            lengths.append(len(equal))
            same += sum(equal)
    return Agreement(tuple(before), tuple(lengths), same)


@contextmanager
def evaluating(*models: Any) -> Iterator[None]:
    """Models in eval mode, without gradients, and then as they were."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def _hidden(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What the head reads at every position, [tokens, width]."""
    block = ids.view(1, -1).to(model.device)
    hidden: torch.Tensor = model.get_decoder()(input_ids=block, use_cache=False).last_hidden_state[0]
    return hidden


def _pairs_of_logits(
    reference: Any, model: Any, ids: torch.Tensor, head_rows: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits of both models, some positions at a time."""
    one, other = _hidden(reference, ids), _hidden(model, ids)
    heads = reference.get_output_embeddings(), model.get_output_embeddings()
    for at in range(0, len(ids), head_rows):
        end = at + head_rows
        yield heads[0](one[at:end]), heads[1](other[at:end]).to(one.device)


def _compare(one: torch.Tensor, other: torch.Tensor, name: str) -> tuple[torch.Tensor, int]:
    """(KL of each position in nats, float64 on the CPU; positions with the same likeliest token)."""
    if not bool(one.isfinite().all() and other.isfinite().all()):
        raise QuantizationError(
            "the logits hold NaN or infinity", where=name, remedy="look for NaN in the weights first"
        )
    expected = one.double().log_softmax(-1)
    # float64: the terms of the sum cancel almost entirely where the models are close.
    terms = expected - other.double().log_softmax(-1)
    divergences = terms.mul_(expected.exp_()).sum(-1).clamp_(min=0)
    return divergences.cpu(), int((one.argmax(-1) == other.argmax(-1)).sum())


def _quantile(values: torch.Tensor, share: float) -> torch.Tensor:
    """As `torch.quantile`, which refuses more than 16 million values."""
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)


def _continue(model: Any, ids: torch.Tensor, new_tokens: int) -> list[int]:
    stops = _stops(model)
    head, body = model.get_output_embeddings(), model.get_decoder()
    block, cache = ids.view(1, -1).to(model.device), None
    tokens: list[int] = []
    while len(tokens) < new_tokens:
        output = body(input_ids=block, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        block = head(output.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
        tokens.append(int(block))
        if tokens[-1] in stops:
            break
    return tokens


def _stops(model: Any) -> set[int]:
    """The tokens that end a text."""
    generation = getattr(model, "generation_config", None)
    found = getattr(generation, "eos_token_id", None)
    if found is None:
        found = model.config.eos_token_id
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def _rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _check_vocabularies(reference: Any, model: Any) -> None:
    if _rows(reference) != _rows(model):
        raise QuantizationError(
            f"the reference has {_rows(reference)} tokens and the model {_rows(model)}",
            where="vocabulary",
            remedy="compare models with the same tokenizer; bits per character compares across tokenizers",
        )


def _checked(given: Sequence[int], one: Any, other: Any, name: str, room: int = 0) -> torch.Tensor:
    """Token ids int64 [n] that both models can read, with room for some more."""
    ids = torch.as_tensor(given, dtype=torch.int64).view(-1)
    if len(ids) == 0:
        raise QuantizationError(f"{name} is empty", where=name, remedy="leave it out, or begin it with BOS")
    rows = _rows(one)
    if int(ids.min()) < 0 or int(ids.max()) >= rows:
        wrong = int(ids[(ids < 0) | (ids >= rows)][0])
        raise QuantizationError(
            f"{name} holds id {wrong} and the models have {rows} tokens",
            where=name,
            remedy="encode it with the models' own tokenizer",
        )
    limits = [getattr(model.config, "max_position_embeddings", None) for model in (one, other)]
    limit = min([limit for limit in limits if limit is not None], default=len(ids) + room)
    if len(ids) + room > limit:
        # transformers accepts longer sequences in silence and returns noise.
        more = f" and {room} are to follow" if room else ""
        raise QuantizationError(
            f"{name} has {len(ids)} tokens{more}, and the models read {limit}",
            where=name,
            remedy="make it shorter",
        )
    return ids
