"""Answers in words, many questions at a time behind one prefix; what is written is greedy search's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chinese_llama_lab.ceval.attention import Prefix

# The likeliest token each time, whatever a model's own `generation_config.json` says of drawing, penalties
# and lengths: `generate` would take each of these from there.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "use_cache": True,
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "top_k",
            "encoder_repetition_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "min_length",
            "min_new_tokens",
            "bad_words_ids",
            "suppress_tokens",
            "begin_suppress_tokens",
            "sequence_bias",
            "exponential_decay_length_penalty",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "guidance_scale",
            "renormalize_logits",
            "watermarking_config",
            "prompt_lookup_num_tokens",
            "cache_implementation",
            "max_time",
            "stop_strings",
        )
    ),
}


def keep_prefix(model: Any, ids: Sequence[int]) -> Prefix | None:
    """Keys and values of a prefix, [1, key heads, P, size] each; None for an empty one."""
    import torch
    from transformers import DynamicCache

    if not ids:
        return None
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(
            input_ids=torch.tensor([ids], device=model.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
    return Prefix(len(ids), 0, keys, values)


def write_answers(
    model: Any,
    tokenizer: Any,
    contexts: Sequence[Sequence[int]],
    prefix: Prefix | None,
    max_new_tokens: int,
) -> list[str]:
    """What the model writes behind each context, the likeliest token each time, up to EOS.

    Questions are padded on the left, between the prefix and themselves, so that all end at one place.
    """
    import torch
    from transformers import DynamicCache

    before = prefix.length if prefix else 0
    longest = max(map(len, contexts))
    stop = model.generation_config.eos_token_id
    stops = {stop} if isinstance(stop, int) else set(stop or ())
    # What padding holds is never seen; it only has to be a token.
    pad = next(
        (n for n in (tokenizer.pad_token_id, tokenizer.eos_token_id, *sorted(stops)) if n is not None), 0
    )
    rows, masks = [], []
    for context in contexts:
        gap = longest - len(context)
        rows.append([*context[:before], *[pad] * gap, *context[before:]])
        masks.append([1] * before + [0] * gap + [1] * (len(context) - before))
    options: dict[str, Any] = {}
    if prefix is not None:
        cache = DynamicCache(config=model.config)
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            shape = (len(rows), -1, -1, -1)
            cache.update(keys.expand(shape), values.expand(shape), layer)
        options["past_key_values"] = cache
    with torch.no_grad():
        output = model.generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(masks, device=model.device),
            max_new_tokens=max_new_tokens,
            **GREEDY,
            pad_token_id=pad,
            **options,
        )
    replies = []
    for written in output[:, longest:].tolist():
        end = next((place for place, token in enumerate(written) if token in stops), len(written))
        replies.append(str(tokenizer.decode(written[:end], skip_special_tokens=True)))
    return replies
