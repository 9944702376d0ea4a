from __future__ import annotations

import pytest

from chinese_llama_lab.vocabulary import sp_model
from chinese_llama_lab.vocabulary.errors import VocabularyError
from chinese_llama_lab.vocabulary.sp_train import train_sentencepiece

from .conftest import CHINESE


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_deterministic_and_of_its_kind(kind):
    one, other = (train_sentencepiece(CHINESE, 200, kind, character_coverage=1.0) for _ in range(2))
    assert sp_model.sha256(one.model) == sp_model.sha256(other.model)
    assert sp_model.model_type(one.model) == kind
    assert len(one) <= 200


def test_defaults_are_the_published_ones():
    spec = train_sentencepiece(CHINESE, 200).model
    assert spec.trainer_spec.model_type == 1
    assert abs(spec.trainer_spec.character_coverage - 0.9995) < 1e-6
    assert not spec.trainer_spec.byte_fallback and spec.normalizer_spec.name == "nmt_nfkc"


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_more_than_the_text_yields(kind):
    result = train_sentencepiece(["中国人民"], 5000, kind)
    assert (
        len(result) < 5000
        and f"5000 pieces were asked for and the text yields {len(result)}" in result.message
    )
    assert train_sentencepiece(CHINESE, 105, kind, character_coverage=1.0).message == ""


def test_long_lines_are_used():
    # SentencePiece leaves out lines of more than 4,192 bytes unless told otherwise, and says so only in its
    # log.
    text = "天地玄黄" * 2000
    assert "天地" in {p.piece[:2] for p in train_sentencepiece([text, "宇宙"], 40, "bpe").model.pieces}


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ([], "empty"),
        ([""], "empty"),
        (["\n \n"], "empty"),
        (["only English"], "no Han"),
        (["中\ud800"], "surrogate"),
    ],
)
def test_bad_text(texts, match):
    with pytest.raises(VocabularyError, match=match):
        train_sentencepiece(texts, 100)


def test_bad_settings():
    with pytest.raises(VocabularyError, match="model type"):
        train_sentencepiece(CHINESE, 200, "wordpiece")  # type: ignore[arg-type]
    with pytest.raises(VocabularyError, match="required_chars"):
        train_sentencepiece(CHINESE, 5)


def test_byte_fallback():
    model = train_sentencepiece(CHINESE, 500, "bpe", byte_fallback=True).model
    assert sp_model.kinds(model)["byte"] == 256
    assert "<unk>" not in sp_model.processor(model).encode("龘🙂", out_type=str)
