"""llama.cpp itself reads the files: same tokens of a text, same logits, same greedy answer.

Needs the extra `gguf` (llama-cpp-python, compiled on installation). `repack=False`: see `gguf_run.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chinese_llama_lab.inference.gguf import GgufError, export_gguf
from chinese_llama_lab.inference.gguf_run import greedy, logits, opened
from tests.inference.gguf_models import FAMILIES, TEXTS, make
from tests.threads import one_thread  # noqa: F401 - a fixture

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python (the extra `gguf`) is not installed")

ROPES = {
    "plain": {"rope_type": "default", "rope_theta": 5000.0},
    "linear": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}


def scores(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def answer(model, ids, count):
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    given = torch.tensor([ids])
    with torch.no_grad():
        found = model.generate(given, attention_mask=torch.ones_like(given), **options)
    return found[0, len(ids) :].tolist()


def differing(own, theirs):
    """Of the positions whose best token is another: by how much our two best differ there."""
    other = own.argmax(1) != theirs.argmax(1)
    best = np.sort(own, axis=1)[:, -2:]
    return (best[:, 1] - best[:, 0])[other]


def same_ids(tokenizer, model, texts):
    for text in texts:
        assert model.tokenize(text.encode(), add_bos=True, special=False) == tokenizer(text).input_ids, text


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_logits_and_answer(tmp_path, family, tied):
    folder = make(tmp_path / "model", family, tie_word_embeddings=tied, spare=3)
    own, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    ids = tokenizer("人工智能越来越有用。machine learning 1998").input_ids[:60]
    for kind, tolerance in {"f32": 2e-3, "f16": 0.5, "bf16": 3.0, "q8_0": 3.0}.items():
        out = export_gguf(folder, tmp_path / f"{kind}.gguf", kind=kind).out
        with opened(out, exact=True, repack=False) as model:
            same_ids(tokenizer, model, TEXTS)
            assert (model.token_eos(), model.n_vocab()) == (tokenizer.eos_token_id, own.config.vocab_size)
            ours, theirs = scores(own, ids), logits(model, ids)
            assert np.abs(ours - theirs).max() < tolerance, kind
            assert (differing(ours, theirs) < 2 * tolerance).all()
            if kind == "f32":
                assert greedy(model, ids, 30)[0] == answer(own, ids, 30)


@pytest.mark.parametrize("rope", ROPES)
def test_rotary_scaling(tmp_path, rope):
    folder = make(tmp_path / "model", rope_parameters=ROPES[rope])
    own = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = [20 + n % 200 for n in range(230)]
    out = export_gguf(folder, tmp_path / "m.gguf", kind="f32").out
    with opened(out, exact=True, repack=False) as model:
        assert np.abs(scores(own, ids) - logits(model, ids)).max() < 5e-3


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(GgufError, match="cannot load"), opened(path):
        pass


def held_out():
    from chinese_llama_lab.sources.corpora import load_corpus

    news = load_corpus("peoples-daily").chinese_punctuation()
    return [
        *news.split("held-out").sample(100).texts(),
        *load_corpus("c4-en").split("held-out").texts(),
        *TEXTS,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("extended", [False, True])
def test_smollm2(tmp_path, extended):
    """Before and after 500 new Chinese tokens. Where the answer differs, two tokens were as good as equal."""
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.models import converted_model, load_base
    from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
    from chinese_llama_lab.vocabulary.embeddings import extend_embeddings

    folder = converted_model("smollm2")
    if extended:
        own, words = load_base("smollm2")
        news = load_corpus("peoples-daily").chinese_punctuation().split("train").texts()[:3000]
        longer = continue_bpe(words, news, 500).tokenizer
        extend_embeddings(own, words, longer)
        folder = tmp_path / "model"
        own.save_pretrained(folder)
        longer.save_pretrained(folder)
    own, tokenizer = load_base(str(folder))
    prompts = [tokenizer(text).input_ids for text in ("The capital of France is", "中国的首都是")]
    for kind, share in {"f16": 0.97, "q8_0": 0.85}.items():
        out = export_gguf(folder, tmp_path / f"{kind}.gguf", kind=kind).out
        with opened(out, exact=True, repack=False) as model:
            if kind == "f16":
                same_ids(tokenizer, model, held_out())
            for ids in prompts:
                expected = answer(own, ids, 40)
                ours, theirs = (
                    f(m, ids + expected[:-1])[len(ids) - 1 :] for f, m in ((scores, own), (logits, model))
                )
                assert (ours.argmax(1) == theirs.argmax(1)).mean() >= share
                if kind == "f16":
                    assert (differing(ours, theirs) < 0.05).all()
                    if not differing(ours, theirs).size:
                        assert greedy(model, ids, 40)[0] == expected


@pytest.mark.slow
def test_the_merged_llama_tokenizer(tmp_path):
    """LLaMA's 32,000 pieces and the Chinese ones of the published project, on real text.

    The published merge gives all new pieces one score. SentencePiece and llama.cpp then take the leftmost
    pair; a fast tokenizer cannot.
    """
    from chinese_llama_lab.tokenization.registry import converted_gguf
    from chinese_llama_lab.vocabulary.merge import merge
    from chinese_llama_lab.vocabulary.save import save_tokenizer
    from chinese_llama_lab.vocabulary.sp_model import processor
    from tests.inference.gguf_models import save_model
    from tests.vocabulary.conftest import gold

    for policy in ("repaired", "published"):
        merged = merge(converted_gguf("llama"), gold("chinese_sp.model"), policy)
        folder = tmp_path / policy
        save_tokenizer(merged, folder)
        save_model(folder, len(merged))
        report = export_gguf(folder, tmp_path / f"{policy}.gguf")
        pieces = processor(merged.model)
        with opened(report.out, exact=True, repack=False) as model:
            for text in held_out():
                assert model.tokenize(text.encode(), add_bos=False) == pieces.encode(text), text
            if policy == "repaired":
                same_ids(AutoTokenizer.from_pretrained(folder), model, held_out())
        assert any("share their scores" in note for note in report.notes) == (policy == "published")
    assert report.tokens == 49953
