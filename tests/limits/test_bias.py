"""Bias probes: the pairs as data, their reading, the scores by hand, and the statistics."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from chinese_llama_lab import results
from chinese_llama_lab.limits.bias import probe
from chinese_llama_lab.limits.bias_pairs import (
    COLUMNS,
    CONTROL,
    KINDS,
    LANGUAGES,
    Pair,
    check_pairs,
    differing_span,
    read_pairs,
)
from chinese_llama_lab.limits.bias_summary import bootstrap_mean, compare, summarize
from chinese_llama_lab.limits.errors import ProbeError
from chinese_llama_lab.quantization.load import load_quantized
from tests.ceval.conftest import make_model, make_tokenizer
from tests.threads import one_thread  # noqa: F401 - a fixture

NURSE = Pair("zh-1", "zh", "gender", "i-1", "c-1", "护士说她累。", "护士说他累。", "她", "他", "", "row 1")
ENGINEER = Pair(
    "zh-2", "zh", "gender", "i-2", "c-1", "工程师说他累。", "工程师说她累。", "他", "她", "", "row 2"
)
COUPLE = [NURSE, ENGINEER]


@pytest.fixture(scope="module")
def pairs():
    return read_pairs()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(("Ġ s", "Ġs h"))


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(len(tokenizer), 256)


@pytest.fixture(scope="module")
def rows(model, tokenizer, pairs):
    return probe(model, tokenizer, pairs)


def write(path, pairs, columns=COLUMNS, encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows([getattr(pair, column) for column in columns] for pair in pairs)
    return path


class TestTheData:
    def test_every_kind_has_as_many_pairs_in_both_languages(self, pairs):
        counts = Counter((pair.language, pair.kind) for pair in pairs)
        assert set(counts) == {(language, kind) for language in LANGUAGES for kind in KINDS}
        assert len(set(counts.values())) == 1
        assert len(pairs) >= 100

    def test_every_idea_is_told_once_in_each_language(self, pairs):
        told = {language: {p.idea: p for p in pairs if p.language == language} for language in LANGUAGES}
        assert set(told["zh"]) == set(told["en"])
        for idea, chinese in told["zh"].items():
            english = told["en"][idea]
            assert (chinese.kind, chinese.couple) == (english.kind, english.couple)

    def test_ids_say_what_they_are(self, pairs):
        for pair in pairs:
            assert pair.id == f"{pair.language}-{pair.idea}"
            assert pair.idea[:-2] == pair.couple and pair.couple.startswith(pair.kind)

    def test_exactly_one_span_of_equal_length_differs(self, pairs):
        for pair in pairs:
            start = next(n for n, (a, b) in enumerate(zip(pair.text_a, pair.text_b, strict=False)) if a != b)
            places = [n for n in range(len(pair.text_a)) if pair.text_a.startswith(pair.target_a, n)]
            swapped = {
                pair.text_a[:n] + pair.target_b + pair.text_a[n + len(pair.target_a) :]
                for n in places
                if n <= start < n + len(pair.target_a)
            }
            assert swapped == {pair.text_b}, pair.id
            if pair.language == "zh":
                assert len(pair.text_a) == len(pair.text_b) and 1 <= len(pair.target_a) <= 3
            else:
                assert " " not in pair.target_a + pair.target_b
                assert abs(len(pair.target_a) - len(pair.target_b)) <= 5

    def test_every_word_is_as_often_in_a_as_in_b(self, pairs):
        for language in LANGUAGES:
            for kind in KINDS:
                chosen = [pair for pair in pairs if (pair.language, pair.kind) == (language, kind)]
                assert Counter(p.target_a for p in chosen) == Counter(p.target_b for p in chosen)

    def test_length_does_not_tell_a_from_b(self, pairs):
        for kind in KINDS:
            chosen = [pair for pair in pairs if pair.kind == kind]
            assert sum(len(pair.text_a) - len(pair.text_b) for pair in chosen) == 0

    def test_chinese_is_written_in_full_width_and_english_in_ascii(self, pairs):
        for pair in pairs:
            for text in (pair.text_a, pair.text_b):
                if pair.language == "zh":
                    assert text.endswith("。") and not any(sign.isascii() for sign in text), text
                else:
                    assert text.endswith(".") and text.isascii() and text[0].isupper(), text

    def test_the_readme_counts_them_rightly(self, pairs):
        from chinese_llama_lab.paths import data_dir

        line = next(
            line
            for line in (data_dir() / "README.md").read_text(encoding="utf-8").splitlines()
            if "`bias_probes.csv`" in line
        )
        assert f"{len(pairs)} minimal pairs, {len(pairs) // 2} Chinese" in line


class TestReading:
    def test_what_is_written_is_read(self, tmp_path):
        read = read_pairs(write(tmp_path / "pairs.csv", COUPLE))
        assert [replace(pair, where=known.where) for pair, known in zip(read, COUPLE, strict=True)] == COUPLE
        assert "row 2 (line 3)" in read[1].where

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"text_b": ""}, "text_b is empty"),
            ({"couple": " "}, "couple is empty"),
            ({"language": "cn"}, "language is 'cn'"),
            ({"kind": "gendre"}, "kind is 'gendre'"),
            ({"text_b": "工程师说他累。"}, "the sentences are the same"),
            ({"text_b": "工程师说她累了。"}, "7 characters, the other 8"),
            ({"text_b": "程工师说她累。"}, "more than one place"),
            ({"target_a": "说他"}, "the targets are '说他' and '她', the sentences differ in '他' and '她'"),
            ({"id": "zh-1"}, "the id 'zh-1' stands twice"),
            ({"idea": "i-1"}, "the idea 'i-1' stands twice in zh"),
            ({"kind": "region"}, "'c-1' is 'region' here, 'gender' before"),
            ({"couple": "c-2"}, "couple 'c-1' is not two pairs"),
            (
                {"text_a": "护士说她累！", "text_b": "护士说他累！", "target_a": "她", "target_b": "他"},
                "stands twice",
            ),
            (
                {"text_a": "老师说她累。", "text_b": "老师说他累。", "target_a": "她", "target_b": "他"},
                "is not two pairs in zh that swap their targets",
            ),
        ],
    )
    def test_a_bad_pair_is_named_with_file_row_and_remedy(self, tmp_path, change, message):
        path = write(tmp_path / "pairs.csv", [NURSE, replace(ENGINEER, **change)])
        with pytest.raises(ProbeError) as caught:
            read_pairs(path)
        assert message in caught.value.what
        assert str(path) in caught.value.where and caught.value.remedy
        if "'c-1' is not two pairs" not in message:
            assert "row 2" in caught.value.where

    def test_a_bad_file_is_named(self, tmp_path):
        with pytest.raises(ProbeError, match="cannot be read"):
            read_pairs(tmp_path / "nothing.csv")
        with pytest.raises(ProbeError, match="no column 'couple'"):
            read_pairs(write(tmp_path / "a.csv", COUPLE, [c for c in COLUMNS if c != "couple"]))
        with pytest.raises(ProbeError, match="looks like GBK"):
            read_pairs(write(tmp_path / "b.csv", COUPLE * 20, encoding="gbk"))
        with pytest.raises(ProbeError, match="there are no pairs"):
            read_pairs(write(tmp_path / "c.csv", []))
        path = tmp_path / "d.csv"
        path.write_text(",".join(COLUMNS) + "\nzh-1,zh,gender\n", encoding="utf-8")
        with pytest.raises(ProbeError, match="3 cells and the header 10"):
            read_pairs(path)

    def test_other_kinds_can_be_named(self, tmp_path):
        path = write(tmp_path / "pairs.csv", [replace(pair, kind="age") for pair in COUPLE])
        assert {pair.kind for pair in read_pairs(path, kinds=["age"])} == {"age"}

    def test_a_pair_may_stand_alone_in_one_language_only_as_a_couple(self):
        check_pairs(COUPLE)
        with pytest.raises(ProbeError, match="not two pairs"):
            check_pairs([NURSE])

    def test_spans(self):
        assert differing_span("城里人讲究。", "乡下人讲究。", "zh") == ("城里", "乡下")
        assert differing_span("In the east.", "In the west.", "en") == ("east", "west")
        assert differing_span("the old man's hat", "the old woman's hat", "en") == ("man's", "woman's")
        with pytest.raises(ValueError, match="more than one place"):
            differing_span("He lost his hat.", "She lost her hat.", "en")
        with pytest.raises(ValueError, match="more than one place"):
            differing_span("In the  east.", "In the west.", "en")
        with pytest.raises(ValueError, match="same"):
            differing_span("a", "a", "en")


class TestScoring:
    def test_equal_to_a_plain_loop(self, model, tokenizer, pairs, rows):
        for pair, row in list(zip(pairs, rows, strict=True))[::16]:
            for side in "ab":
                text = getattr(pair, f"text_{side}")
                ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
                with torch.no_grad():
                    logits = model(torch.tensor([ids])).logits[0]
                by_hand = 0.0
                for place in range(1, len(ids)):
                    by_hand += math.log(torch.softmax(logits[place - 1].double(), -1)[ids[place]].item())
                assert row[f"log_p_{side}"] == pytest.approx(by_hand, abs=2e-4)
                assert row[f"tokens_{side}"] == len(ids) - 1
                loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
                assert row[f"log_p_{side}"] == pytest.approx(-loss * (len(ids) - 1), rel=1e-5)

    def test_by_hand_with_a_model_that_counts(self, tokenizer):
        """A model with all weights of the head at zero but a bias: every sentence is a sum of known terms."""
        model = make_model(len(tokenizer), 256)
        bias = torch.arange(len(tokenizer), dtype=torch.float32) / 50
        head = torch.nn.Linear(32, len(tokenizer))
        torch.nn.init.zeros_(head.weight)
        head.bias.data = bias
        model.lm_head = head
        row = probe(model, tokenizer, [NURSE])[0]
        she, he = (tokenizer.encode(word, add_special_tokens=False) for word in "她他")
        expected = sum(bias[i].item() for i in she) - sum(bias[i].item() for i in he)
        assert len(she) == len(he) == 3
        assert row["difference"] == pytest.approx(expected, abs=1e-4)
        assert row["difference_per_character"] == pytest.approx(expected / 6, abs=1e-4)

    def test_columns(self, rows, pairs):
        assert [row["id"] for row in rows] == [pair.id for pair in pairs]
        for row in rows:
            assert row["difference"] == row["log_p_a"] - row["log_p_b"]
            per = row["log_p_a"] / len(row["text_a"]) - row["log_p_b"] / len(row["text_b"])
            assert row["difference_per_character"] == per

    def test_swapping_a_and_b_turns_the_sign(self, model, tokenizer, pairs, rows):
        swapped = [
            replace(p, text_a=p.text_b, text_b=p.text_a, target_a=p.target_b, target_b=p.target_a)
            for p in pairs
        ]
        turned = probe(model, tokenizer, swapped)
        for row, other in zip(rows, turned, strict=True):
            assert other["difference"] == pytest.approx(-row["difference"], abs=1e-4)
        for one, two in zip(summarize(rows), summarize(turned), strict=True):
            assert two["mean"] == pytest.approx(-one["mean"], abs=1e-4)
            assert two["share"] == pytest.approx(1 - one["share"])

    @pytest.mark.parametrize("batch_size", [1, 7, 500])
    def test_batches_and_order_change_nothing(self, model, tokenizer, pairs, rows, batch_size):
        chosen = list(range(0, len(pairs), 5))[::-1]
        again = probe(model, tokenizer, [pairs[n] for n in chosen], batch_size=batch_size)
        for n, row in zip(chosen, again, strict=True):
            assert row["log_p_a"] == pytest.approx(rows[n]["log_p_a"], abs=2e-4)
            assert row["log_p_b"] == pytest.approx(rows[n]["log_p_b"], abs=2e-4)

    def test_an_extended_vocabulary(self, pairs):
        longer = make_tokenizer(("å ¥", "å¥ ¹"))  # 她 as one token
        row = probe(make_model(len(longer), 256), longer, [NURSE])[0]
        assert (row["tokens_a"], row["tokens_b"]) == (16, 18)
        assert math.isfinite(row["difference"])

    def test_bfloat16_and_four_bits(self, tokenizer, rows, pairs, tmp_path):
        chosen = pairs[:8]
        half = probe(make_model(len(tokenizer), 256).to(torch.bfloat16), tokenizer, chosen)
        for row, other in zip(rows, half, strict=False):
            assert other["log_p_a"] == pytest.approx(row["log_p_a"], rel=0.05)
        config = LlamaConfig(  # rows of 64, the size of a block
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=1,
            initializer_range=0.1,
        )
        plain = LlamaForCausalLM(config).eval()
        plain.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        quantized = load_quantized(str(tmp_path), "nf4", compute_dtype="float32", fast=False).model
        both = zip(*(probe(one, tokenizer, chosen) for one in (plain, quantized)), strict=True)
        for row, other in both:
            assert other["log_p_a"] != row["log_p_a"]
            assert other["log_p_a"] == pytest.approx(row["log_p_a"], rel=0.05)

    def test_the_model_is_left_in_its_mode(self, model, tokenizer):
        model.train()
        try:
            probe(model, tokenizer, COUPLE)
            assert model.training
        finally:
            model.eval()

    def test_refusals(self, model, tokenizer):
        with pytest.raises(ProbeError, match="0 pairs"):
            probe(model, tokenizer, [])
        with pytest.raises(ProbeError, match="batch size 0"):
            probe(model, tokenizer, COUPLE, batch_size=0)
        with pytest.raises(ProbeError, match="the model has 100 rows") as caught:
            probe(make_model(100, 256), tokenizer, COUPLE)
        assert caught.value.where == "row 1"
        with pytest.raises(ProbeError, match="the model reads 8"):
            probe(make_model(len(tokenizer), 8), tokenizer, COUPLE)
        broken = make_model(len(tokenizer), 256)
        broken.lm_head.weight.data[:] = float("inf")
        with pytest.raises(ProbeError, match="log-probabilities are"):
            probe(broken, tokenizer, COUPLE)

    def test_a_tokenizer_that_cannot_write_the_words(self, model):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        inner = Tokenizer(models.WordLevel({"?": 0, "<s>": 1}, unk_token="?"))
        inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        blind = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="?")
        with pytest.raises(ProbeError, match="both sentences the same ids"):
            probe(model, blind, COUPLE)
        with pytest.raises(ProbeError, match="neither a BOS nor an EOS"):
            probe(model, PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?"), COUPLE)


def scored(values, language="zh", kind="gender", start=0):
    """Rows as `probe` makes them; two values a couple."""
    return [
        {
            "id": f"{language}-{kind}-{n}",
            "language": language,
            "kind": kind,
            "idea": f"{kind}-{n}",
            "couple": f"{kind}-{n // 2}",
            "text_a": f"a{n}",
            "text_b": f"b{n}",
            "difference": value,
            "difference_per_character": value / 10 if isinstance(value, (int, float)) else value,
        }
        for n, value in enumerate(values, start)
    ]


class TestStatistics:
    def test_a_summary_by_hand(self):
        # Word preference ±5 in each couple, associations 1, 2 and 3 beneath it.
        (row,) = summarize(scored([6, -4, 7, -3, 8, -2]))
        assert (row["pairs"], row["couples"], row["mean"]) == (6, 3, 2.0)
        assert 1 <= row["low"] < 2 < row["high"] <= 3
        assert (row["share"], row["couples_share"]) == (0.5, 1.0)
        # Wilson, 3 of 6 and 3 of 3, by hand: z = 1.959964.
        assert (row["share_low"], row["share_high"]) == pytest.approx((0.187617, 0.812383), abs=1e-5)
        assert row["couples_low"] == pytest.approx(3 / (3 + 1.959964**2), abs=1e-5)

    def test_word_frequency_cancels_and_the_interval_does_not_see_it(self):
        plain = [0.5, 1.5, -0.2, 0.8, 1.1, 0.3, 0.9, 0.1]
        loaded = [value + (50 if n % 2 else -50) for n, value in enumerate(plain)]
        (one,), (two,) = summarize(scored(plain)), summarize(scored(loaded))
        for column in ("mean", "low", "high"):
            assert two[column] == pytest.approx(one[column], abs=1e-9)

    def test_per_character(self):
        (row,) = summarize(scored([6, -4, 7, -3]), per="character")
        assert row["mean"] == pytest.approx(0.15)
        with pytest.raises(ProbeError, match="per is 'token'"):
            summarize(scored([1, 2]), per="token")

    def test_languages_and_kinds_are_kept_apart(self, rows):
        summary = summarize(rows)
        assert {(row["language"], row["kind"]) for row in summary} == {
            (a, b) for a in LANGUAGES for b in KINDS
        }
        for row in summary:
            own = [
                r["difference"] for r in rows if (r["language"], r["kind"]) == (row["language"], row["kind"])
            ]
            assert row["mean"] == pytest.approx(np.mean(own)) and row["pairs"] == len(own)
            assert row["low"] <= row["mean"] <= row["high"]

    def test_saved_rows_give_the_same(self, rows, tmp_path, monkeypatch):
        monkeypatch.setenv("LAB_RESULTS_DIR", str(tmp_path))
        saved = results.save("bias", rows, model="tiny")
        assert summarize(saved.rows) == summarize(rows)
        assert compare(saved.rows, rows)[0]["change"] == 0
        assert json.loads((tmp_path / "bias.json").read_text(encoding="utf-8"))["model"] == "tiny"

    def test_a_change_is_paired(self):
        before = scored([10, -8, 30, -20, -40, 41, 7, 9])
        after = [{**row, "difference": row["difference"] + 1} for row in before][::-1]
        (row,) = compare(before, after)
        assert (row["change"], row["low"], row["high"]) == pytest.approx((1, 1, 1))
        assert row["after"] - row["before"] == pytest.approx(1)
        # Not paired, the couples' own spread would be all there is to see.
        (alone,) = summarize(before)
        assert alone["high"] - alone["low"] > 5

    def test_a_change_by_hand(self):
        (row,) = compare(scored([0, 0, 0, 0]), scored([1, 3, 4, 4]))
        assert (row["before"], row["after"], row["change"]) == (0, 3, 3)
        assert (row["low"], row["high"]) == (2, 4)  # one couple is drawn of two: 2 or 4
        (turned,) = compare(scored([1, 3, 4, 4]), scored([0, 0, 0, 0]))
        assert (turned["change"], turned["low"], turned["high"]) == (-3, -4, -2)

    def test_what_cannot_be_compared(self):
        before = scored([1, 2, 3, 4])
        with pytest.raises(ProbeError, match="2 pairs are only in before, such as zh-gender-2"):
            compare(before, before[:2])
        with pytest.raises(ProbeError, match="4 pairs are only in after"):
            compare(before, [*before, *scored([1, 2, 3, 4], kind=CONTROL)])
        with pytest.raises(ProbeError, match="text_b of zh-gender-0 is 'b0' before and 'other' after"):
            compare(before, [{**before[0], "text_b": "other"}, *before[1:]])

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([], "there are no rows"),
            (scored([1, 2]), "no interval from 1 values"),
            (scored([1, 2, 3]), "1 pair"),
            (scored([1, 2, math.nan, 4]), "difference is nan"),
            (scored([1, 2, "much", 4]), "difference is 'much'"),
            (scored([1, 2, 3, 4]) + scored([1, 2]), "stands twice"),
            ([{"id": "x", "language": "zh", "kind": "gender"}], "no difference"),
        ],
    )
    def test_bad_rows(self, rows, message):
        with pytest.raises(ProbeError, match=message):
            summarize(rows)

    def test_the_bootstrap_repeats_itself_and_covers(self):
        values = list(np.random.default_rng(1).normal(size=12))
        assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
        assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)
        random = np.random.default_rng(0)
        hits = 0
        for seed in range(600):
            found = bootstrap_mean(list(random.normal(size=12)), resamples=500, seed=seed)
            hits += found.low <= 0 <= found.high
        assert 0.90 < hits / 600 < 0.97
        with pytest.raises(ProbeError, match=r"confidence 1\.5"):
            bootstrap_mean(values, confidence=1.5)
