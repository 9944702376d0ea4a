from __future__ import annotations

import pytest

from chinese_llama_lab.vocabulary import sp_model
from chinese_llama_lab.vocabulary.errors import VocabularyError


@pytest.mark.parametrize(
    ("name", "data", "looks_like"),
    [
        ("tiktoken", b"IQ== 0\nIg== 1\nIw== 2\n", "tiktoken"),
        ("wordpiece", "[PAD]\n[UNK]\n[CLS]\n的\n##们\n".encode(), "WordPiece"),
        ("json", b'{"version": "1.0", "model": {}}', "JSON"),
        ("gguf", b"GGUF\x03\x00\x00\x00", "GGUF"),
        ("pickle", b"\x80\x04\x95", "pickle"),
        ("empty", b"", "empty file"),
        ("noise", bytes(range(256)), "not a complete SentencePiece model"),
    ],
)
def test_names_what_a_wrong_file_is(tmp_path, name, data, looks_like):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(VocabularyError, match=looks_like) as caught:
        sp_model.load_model(path)
    assert str(path) in str(caught.value)


def test_a_model_cut_anywhere_is_refused(small_base):
    whole = small_base.SerializeToString()
    for keep in (1, 10, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        with pytest.raises(VocabularyError):
            sp_model.parse_model(whole[:keep])
    # Cut between two pieces, where protobuf itself sees nothing wrong.
    piece = small_base.pieces[0].ByteSize() + 2
    with pytest.raises(VocabularyError, match="cut short"):
        sp_model.parse_model(whole[:piece])


def test_the_other_algorithm_is_refused(small_base, small_extra):
    with pytest.raises(VocabularyError, match=r"unigram model, and a bpe model"):
        sp_model.as_model(small_extra, expect="bpe")
    assert sp_model.as_model(small_base, expect="bpe") is small_base


def test_duplicates_and_bad_scores_are_named(small_base):
    twice = sp_model.copy_model(small_base)
    twice.pieces.add().CopyFrom(small_base.pieces[300])
    with pytest.raises(VocabularyError, match=f"stands twice, at 300 and {len(small_base.pieces)}"):
        sp_model.check_model(twice)
    odd = sp_model.copy_model(small_base)
    odd.pieces[300].score = float("nan")
    with pytest.raises(VocabularyError, match="piece 300"):
        sp_model.check_model(odd)


def test_save_and_load(tmp_path, small_base):
    path = sp_model.save_model(small_base, tmp_path / "deep" / "m.model")
    assert sp_model.sha256(sp_model.load_model(path)) == sp_model.sha256(small_base)
    with pytest.raises(VocabularyError, match="cannot be read"):
        sp_model.load_model(tmp_path / "none.model")
    with pytest.raises(VocabularyError, match="int is not"):
        sp_model.as_model(3)
