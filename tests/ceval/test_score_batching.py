"""Batches hold what they may hold, every question once, and the same whoever computes them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chinese_llama_lab.ceval.asked import Asked
from chinese_llama_lab.ceval.attention import see_before
from chinese_llama_lab.ceval.batching import Sizes, plan, share_out, tokens_behind
from chinese_llama_lab.ceval.prefix import common_start
from chinese_llama_lab.ceval.prompts import Prompt

from .conftest import ASKED, make_model

SIZES = Sizes(cached=100, passing=50, logits=1000)


def asked(lengths, prefix=40):
    start = tuple(range(1000, 1000 + prefix))
    return [
        Asked(
            n,
            n,
            replace(ASKED, id=str(n)),
            Prompt("prefix", "tail", "lm-eval", 0),
            (),
            ((*start, n, *[7] * (length - 1)),),
        )
        for n, length in enumerate(lengths)
    ]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=30),
    st.integers(0, 200_000),
    st.one_of(st.none(), st.integers(1, 9)),
    st.one_of(st.none(), st.integers(1, 900)),
)
def test_plans(lengths, memory, batch, tokens):
    given_ = asked(lengths)
    (group,) = plan(given_, SIZES, memory, batch=batch, tokens=tokens)
    assert sorted(one.place for part in group.batches for one in part) == list(range(len(lengths)))
    assert len(group.prefix) == (40 if len(lengths) > 1 else 0)
    flat = [one.longest for part in group.batches for one in part]
    assert flat == sorted(flat, reverse=True)
    for part in group.batches:
        if len(part) == 1:
            continue  # a question is asked whatever it takes
        behind = [tokens_behind(one, 40) for one in part]
        assert batch is None or len(part) <= batch
        assert tokens is None or sum(behind) <= tokens
        used = SIZES.prefix(40, group.room) + SIZES.batch(sum(behind), behind[0], 40, len(part))
        assert used <= memory
    again = plan(given_, SIZES, memory, batch=batch, tokens=tokens)
    assert [[one.key for one in part] for part in again[0].batches] == [
        [one.key for one in part] for part in group.batches
    ]


def test_generation_counts_each_questions_own_cache():
    given_ = asked([50] * 16)
    letters = plan(given_, SIZES, 300_000)
    words = plan(given_, SIZES, 300_000, new_tokens=100)
    # 300,000 less the prefix and its room (90 · 100) and the mask twice (2 · 50 · 90 · 4) leaves 255,000.
    # Each takes 2 · (40 + 50 + 100) · 100 of keys and values, 2 · 50 · 50 in passing, 2 · 1000 of logits.
    assert [len(part) for part in words[0].batches] == [5, 5, 5, 1]
    assert [len(part) for part in letters[0].batches] == [16]


@pytest.mark.parametrize("processes", [1, 2, 3, 40])
def test_work_is_shared_out_once(processes):
    groups = [g for n in range(5) for g in plan(asked([10 * n + 5] * 6), SIZES, 10**6, batch=2)]
    shares = share_out(groups, processes)
    assert len(shares) == processes
    given_ = sum(len(part) for g in groups for part in g.batches)
    assert sum(len(part) for share in shares for g in share for part in g.batches) == given_
    if processes == 2:
        loads = [sum(g.tokens for g in share) for share in shares]
        assert max(loads) < 1.5 * min(loads)


@given(
    st.lists(st.integers(0, 3), min_size=20, max_size=30),
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=2, max_size=5),
)
def test_common_start(start, tails):
    contexts = [tuple(start + tail) for tail in tails]
    shared = common_start(contexts)
    assert all(context[:shared] == contexts[0][:shared] for context in contexts)
    assert shared < min(map(len, contexts))  # a token is left to each
    longer = {context[: shared + 1] for context in contexts}
    assert len(longer) > 1 or shared + 1 == min(map(len, contexts))


def test_little_in_common_and_alone():
    assert common_start([(1,) * 100]) == 0
    assert common_start([(1,) * 15 + (2,), (1,) * 15 + (3,)]) == 0
    assert common_start([(1,) * 16 + (2,), (1,) * 16 + (3,)]) == 16


def test_mask_and_sizes():
    model = make_model(300)
    mask = see_before(2, 3, model.lm_head.weight)
    assert (mask == 0).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    sizes = Sizes.of(model)
    assert sizes.cached == 2 * 2 * 2 * 8 * 4  # layers, keys and values, key heads, size, bytes
    assert sizes.logits == 300 * 8
