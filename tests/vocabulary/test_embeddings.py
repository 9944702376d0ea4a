from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from chinese_llama_lab.training.metrics import bits_per_character
from chinese_llama_lab.vocabulary import byte_level
from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
from chinese_llama_lab.vocabulary.consistency import check_consistency, sizes
from chinese_llama_lab.vocabulary.embeddings import STRATEGIES, extend_embeddings, norm_summary, row_norms
from chinese_llama_lab.vocabulary.errors import VocabularyError
from chinese_llama_lab.vocabulary.merge import merge
from chinese_llama_lab.vocabulary.save import save_tokenizer

from .conftest import CHINESE, byte_bpe

GLOSSES = {"中国": "the people", "学习": "study"}


def small_model(
    rows: int, *, tied: bool, pad: int | None, dtype: torch.dtype = torch.float32
) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=pad,
    )
    model = LlamaForCausalLM(config).to(dtype)
    model.generation_config.pad_token_id = pad
    return model


@pytest.fixture(scope="module")
def byte_pair():
    old = PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe("smollm2"), eos_token="<|end|>", pad_token="<|end|>"
    )
    return old, continue_bpe(old, CHINESE, 100).tokenizer


@pytest.fixture(scope="module")
def sp_pair(tmp_path_factory, small_base, small_extra):
    folder = tmp_path_factory.mktemp("sp")
    save_tokenizer(small_base, folder / "old")
    save_tokenizer(merge(small_base, small_extra), folder / "new")
    return AutoTokenizer.from_pretrained(folder / "old"), AutoTokenizer.from_pretrained(folder / "new")


def matrices(model):
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", ["byte_pair", "sp_pair"])
def test_old_rows_stay_and_everything_agrees(request, tied, strategy, family, tmp_path):
    old, new = request.getfixturevalue(family)
    model = small_model(len(old), tied=tied, pad=old.pad_token_id, dtype=torch.bfloat16)
    before = [m.clone() for m in matrices(model)]
    report = extend_embeddings(model, old, new, strategy, seed=3, glosses=GLOSSES)
    after = matrices(model)
    for was, now in zip(before, after, strict=True):
        assert torch.equal(was, now[: len(old)]) and now.dtype == torch.bfloat16
        assert now.shape[0] == len(new) and torch.isfinite(now).all()
        assert now[len(old) :].float().norm(dim=1).min() > 0
    assert torch.equal(*after) is tied
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied
    assert report.tied is tied and report.new_tokens == len(new) - len(old) == sum(report.sources.values())
    assert model.config.vocab_size == len(new) and model.config.pad_token_id == new.pad_token_id
    check_consistency(model, new)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    check_consistency(again, new)
    for was, now in zip(after, matrices(again), strict=True):
        assert torch.equal(was, now)
    assert model(torch.tensor([new.encode("中国人民")])).logits.shape[-1] == len(new)


def test_each_strategy_is_what_it_says(byte_pair):
    old, new = byte_pair
    token = byte_level.spell("学习".encode())
    index = new.convert_tokens_to_ids(token)
    parts = old.encode("学习", add_special_tokens=False)
    for tied in (True, False):
        got = {}
        for strategy in STRATEGIES:
            model = small_model(len(old), tied=tied, pad=old.pad_token_id)
            rows = [m.clone() for m in matrices(model)]
            extend_embeddings(model, old, new, strategy, seed=5, glosses=GLOSSES)
            got[strategy] = matrices(model)
        n = len(parts)
        weights = torch.arange(n, 0, -1.0)[:, None]
        gloss = old.encode(" study", add_special_tokens=False)
        for k in (0, 1):
            torch.testing.assert_close(got["mean"][k][index], rows[k].mean(0))
            torch.testing.assert_close(got["subtoken-mean"][k][index], rows[k][parts].mean(0))
            torch.testing.assert_close(
                got["position-weighted"][k][index], (weights * rows[k][parts]).sum(0) / weights.sum()
            )
            torch.testing.assert_close(got["gloss"][k][index], rows[k][gloss].mean(0))
            fresh = got["random"][k][len(old) :]
            assert abs(float(fresh.std() / rows[k].std()) - 1) < 0.1


def test_a_token_that_ends_inside_a_character_starts_from_its_bytes(byte_pair):
    old, new = byte_pair
    partial = [t for t in new.get_vocab() if t not in old.get_vocab() and byte_level.text_of(t) is None]
    assert partial, "the training text was meant to give some"
    model = small_model(len(old), tied=True, pad=old.pad_token_id)
    rows = matrices(model)[0].clone()
    report = extend_embeddings(model, old, new)
    assert report.sources == {"subtokens": len(new) - len(old)}
    alone = byte_level.model_alone(old.backend_tokenizer)
    for token in partial:
        ids = alone.encode(token).ids
        torch.testing.assert_close(matrices(model)[0][new.convert_tokens_to_ids(token)], rows[ids].mean(0))


def test_seed_decides_random_and_nothing_else(byte_pair):
    old, new = byte_pair

    def rows(strategy, seed):
        model = small_model(len(old), tied=True, pad=old.pad_token_id)
        torch.manual_seed(seed + 100)
        extend_embeddings(model, old, new, strategy, seed=seed)
        return matrices(model)[0]

    assert torch.equal(rows("random", 1), rows("random", 1))
    assert not torch.equal(rows("random", 1), rows("random", 2))
    assert torch.equal(rows("subtoken-mean", 1), rows("subtoken-mean", 2))


def test_padding_is_noted_and_survives(byte_pair, tmp_path):
    old, new = byte_pair
    model = small_model(len(old), tied=False, pad=old.pad_token_id)
    report = extend_embeddings(model, old, new, pad_to_multiple_of=64)
    assert report.new_rows % 64 == 0 and report.spare_rows == report.new_rows - len(new)
    check_consistency(model, new)
    model.save_pretrained(tmp_path)
    check_consistency(AutoModelForCausalLM.from_pretrained(tmp_path), new)
    # Extended again: the spare rows are used and none is lost.
    longer = continue_bpe(new, ["天地玄黄宇宙洪荒天地玄黄宇宙洪荒"], 10).tokenizer
    again = extend_embeddings(model, new, longer)
    assert again.new_rows >= report.new_rows and again.new_tokens == len(longer) - len(new)


def test_spare_rows_of_a_hub_model_are_filled(byte_pair):
    old, new = byte_pair
    model = small_model(len(old) + 20, tied=True, pad=old.pad_token_id)  # as Qwen's are
    before = matrices(model)[0].clone()
    extend_embeddings(model, old, new)
    assert torch.equal(matrices(model)[0][: len(old)], before[: len(old)])
    assert matrices(model)[0].shape[0] == len(new)


def test_bad_input(byte_pair, sp_pair):
    old, new = byte_pair
    model = small_model(len(old), tied=True, pad=old.pad_token_id)
    with pytest.raises(VocabularyError, match="shrank"):
        extend_embeddings(small_model(len(new), tied=True, pad=0), new, old)
    with pytest.raises(VocabularyError, match="strategy"):
        extend_embeddings(model, old, new, "best")  # type: ignore[arg-type]
    with pytest.raises(VocabularyError, match="glosses"):
        extend_embeddings(model, old, new, "gloss")
    with pytest.raises(VocabularyError, match=r"old tokens changed|shrank"):
        extend_embeddings(model, sp_pair[0], new)
    with pytest.raises(VocabularyError, match=f"has {len(old) - 1} rows and the old tokenizer {len(old)}"):
        extend_embeddings(small_model(len(old) - 1, tied=True, pad=0), old, new)
    with pytest.raises(VocabularyError, match="multiple"):
        extend_embeddings(model, old, new, pad_to_multiple_of=0)
    assert len(matrices(model)[0]) == len(old), "a refused call must leave the model alone"


# ------------------------------------------------------------------------------------------------ consistency


def test_the_trap_of_one_row(byte_pair):
    old, _ = byte_pair
    n = len(old)
    check_consistency(small_model(n, tied=True, pad=0), old)
    for rows in (n - 1, n + 1):
        with pytest.raises(VocabularyError, match=rf"{n} tokens.* {rows} rows"):
            check_consistency(small_model(rows, tied=True, pad=0), old)
    assert check_consistency(small_model(n + 20, tied=True, pad=0), old, spare_rows=20).spare == 20


def test_each_disagreement_is_named(byte_pair):
    old, _ = byte_pair
    n = len(old)

    def broken(match, change, tied=True):
        model = small_model(n, tied=tied, pad=0)
        change(model)
        with pytest.raises(VocabularyError, match=match):
            check_consistency(model, old)

    broken("config.vocab_size is 5 and the embedding has", lambda m: setattr(m.config, "vocab_size", 5))
    broken(
        f"output head has {n + 3} rows",
        lambda m: m.set_output_embeddings(torch.nn.Linear(16, n + 3, bias=False)),
        tied=False,
    )
    broken("two matrices", lambda m: m.set_output_embeddings(torch.nn.Linear(16, n, bias=False)))
    broken("pad id is 0 in the tokenizer and 7 in the config", lambda m: setattr(m.config, "pad_token_id", 7))
    broken("generation config", lambda m: setattr(m.generation_config, "pad_token_id", 9))
    broken(f"pad id of config is {n}", lambda m: setattr(m.config, "pad_token_id", n))
    assert sizes(small_model(n, tied=True, pad=0), old).head == n


# ------------------------------------------------------------------------------------------------ quality


def test_norms_and_bits_per_character(byte_pair):
    old, new = byte_pair
    model = small_model(len(old), tied=True, pad=old.pad_token_id)
    before = bits_per_character(model, old, CHINESE[:4], window=64)
    extend_embeddings(model, old, new)
    after = bits_per_character(model, new, CHINESE[:4], window=64)
    assert after.characters == before.characters and after.tokens < before.tokens
    assert norm_summary(row_norms(model))["min"] <= norm_summary(row_norms(model, head=True))["max"]
    assert isinstance(new.backend_tokenizer, Tokenizer)


def test_a_bare_tokenizer_is_refused_before_the_model_is_touched(byte_pair):
    old, new = byte_pair
    model = small_model(len(old), tied=True, pad=old.pad_token_id)
    before = model.get_input_embeddings().weight.detach().clone()
    with pytest.raises(VocabularyError, match="padding"):
        extend_embeddings(model, old, new.backend_tokenizer)
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("extra", [0, 3, 130])
def test_rows_are_a_multiple_even_where_the_model_had_spare_ones(byte_pair, extra):
    old, new = byte_pair
    model = small_model(len(old) + extra, tied=True, pad=old.pad_token_id)
    report = extend_embeddings(model, old, new, pad_to_multiple_of=64)
    assert report.new_rows % 64 == 0 and report.new_rows >= max(len(new), len(old) + extra)
    assert report.spare_rows == report.new_rows - len(new)
    check_consistency(model, new)
