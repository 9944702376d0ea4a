"""Bias probes: how much likelier a model finds the sentence that follows a stereotype.

Each pair has a score: log p(a) - log p(b) in nats, of whole sentences. The sentences differ in one span, and
everything behind the span counts too, so it does not matter whether the group stands before or after what is
said of it. A sum over tokens does not depend on how many tokens a tokenizer makes, but for the other ways to
cut the same text, which are ignored.

What such probes cannot show:
- how a model behaves when it is asked something. They read likelihoods and no answers.
- how biased a model is in all. Somebody chose these stereotypes; others would be as good.
- that a model is fair. One that cannot read Chinese is indifferent to all of it: look at the control kind
  first. Where it cannot tell right from wrong, the other kinds mean nothing.
- that adaptation made a model more biased. All differences grow as a model reads better, the control's too.
- whether an association is false. Some stereotypes are frequent facts of text, some are facts of the world.
- a comparison of languages. The twins share an idea, not a meaning; words and writers differ.

The idea of comparing likelihoods of minimal pairs: Nangia et al., EMNLP 2020 (masked models); objections to
such sets: Blodgett et al., ACL 2021. Nothing of their data is used here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from chinese_llama_lab.errors import TextError
from chinese_llama_lab.limits.bias_pairs import Pair
from chinese_llama_lab.limits.errors import ProbeError
from chinese_llama_lab.tokenization.start import ids_before


def probe(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], *, batch_size: int = 16, start: str | None = None
) -> list[dict[str, Any]]:
    """Score pairs; the rows go into `summarize`, `compare` and `results.save`.

    Every sentence is read from its beginning, after BOS (EOS where there is none) or what `start` says, so
    that its first token has a probability too. Batches hold sentences of one length: nothing is padded, and
    no mask is needed. Differences of a few tenths of a nat need float32: bfloat16 has a significand of eight
    bits, and rounds a logit of 20 to the next eighth.

    Args:
        model: a causal language model of any dtype, quantized or not; it is put into eval mode and back.
        tokenizer: its tokenizer, extended or not.
        pairs: what to score.
        batch_size: the most sentences read together; the logits take batch x tokens x vocabulary x 4 bytes.
        start: what stands before each sentence, as for `bits_per_character`.

    Returns: one row a pair, in order: `id`, `language`, `kind`, `idea`, `couple`, `text_a`, `text_b`,
        `tokens_a`, `tokens_b` (of the sentence alone), `log_p_a`, `log_p_b` (nats), `difference` = log_p_a -
        log_p_b, and `difference_per_character`, where each log-probability is first divided by the
        characters (code points) of its sentence.

    Raises: ProbeError: no pairs, a batch size below 1, a tokenizer without BOS and EOS or that cannot tell
        two sentences apart or has ids that the model lacks, a sentence longer than the model's context, or a
        log-probability that is not finite.
    """
    if not pairs or batch_size < 1:
        raise ProbeError(
            f"{len(pairs)} pairs, batch size {batch_size}", where="pairs, batch_size", remedy="use 1 or more"
        )
    before = _before(tokenizer, start)
    sentences = [_encode(model, tokenizer, before, pair, text) for pair in pairs for text in _texts(pair)]
    for number, pair in enumerate(pairs):
        if sentences[2 * number] == sentences[2 * number + 1]:
            raise ProbeError(
                "the tokenizer gives both sentences the same ids",
                where=pair.where or f"id {pair.id}",
                remedy="use a tokenizer that can write the words, with byte fallback say",
            )
    logs = _log_probabilities(model, sentences, len(before), batch_size)
    rows = []
    for number, pair in enumerate(pairs):
        log_a, log_b = logs[2 * number : 2 * number + 2]
        ids_a, ids_b = sentences[2 * number : 2 * number + 2]
        row = {
            "id": pair.id,
            "language": pair.language,
            "kind": pair.kind,
            "idea": pair.idea,
            "couple": pair.couple,
            "text_a": pair.text_a,
            "text_b": pair.text_b,
            "tokens_a": len(ids_a) - len(before),
            "tokens_b": len(ids_b) - len(before),
            "log_p_a": log_a,
            "log_p_b": log_b,
            "difference": log_a - log_b,
            "difference_per_character": log_a / len(pair.text_a) - log_b / len(pair.text_b),
        }
        if not (math.isfinite(log_a) and math.isfinite(log_b)):
            raise ProbeError(
                f"the log-probabilities are {log_a} and {log_b}",
                where=pair.where or f"id {pair.id}",
                remedy="load the model in float32 or bfloat16: float16 overflows in some models",
            )
        rows.append(row)
    return rows


def _texts(pair: Pair) -> tuple[str, str]:
    return pair.text_a, pair.text_b


def _before(tokenizer: Any, start: str | None) -> list[int]:
    try:
        return ids_before(tokenizer, start, 16)
    except TextError as error:
        raise ProbeError(error.what, where="tokenizer, start", remedy=error.remedy) from None


def _encode(model: Any, tokenizer: Any, before: list[int], pair: Pair, text: str) -> list[int]:
    where = pair.where or f"id {pair.id}"
    ids = [*before, *tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)]
    rows = model.config.vocab_size
    if max(ids) >= rows:
        raise ProbeError(
            f"the tokenizer writes id {max(ids)}, the model has {rows} rows",
            where=where,
            remedy="load the tokenizer that belongs to the model, or resize its embeddings",
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and len(ids) > limit:
        raise ProbeError(
            f"a sentence takes {len(ids)} tokens, the model reads {limit}", where=where, remedy="shorten it"
        )
    return ids


def _log_probabilities(
    model: Any, sentences: Sequence[list[int]], given: int, batch_size: int
) -> list[float]:
    """log p of the ids behind the first `given`, of each sentence, in nats."""
    by_length: dict[int, list[int]] = {}
    for number, ids in enumerate(sentences):
        by_length.setdefault(len(ids), []).append(number)
    found = [0.0] * len(sentences)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for numbers in by_length.values():
                for at in range(0, len(numbers), batch_size):
                    chosen = numbers[at : at + batch_size]
                    block = torch.tensor([sentences[n] for n in chosen], device=model.device)
                    logits = model(input_ids=block, use_cache=False).logits[:, given - 1 : -1].float()
                    # Position p predicts token p + 1.
                    own = logits.gather(-1, block[:, given:, None].to(logits.device))[..., 0]
                    sums = (own - logits.logsumexp(-1)).double().sum(-1)
                    for n, value in zip(chosen, sums.tolist(), strict=True):
                        found[n] = value
    finally:
        model.train(was_training)
    return found
