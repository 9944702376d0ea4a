"""Which of the standard characters are one token."""

from __future__ import annotations

import json

import pytest

from chinese_llama_lab.errors import SourceError
from chinese_llama_lab.tokenization import coverage
from chinese_llama_lab.tokenization.coverage import character_coverage, standard_characters
from chinese_llama_lab.tokenization.registry import open_tokenizer


def test_the_three_levels_of_the_standard():
    levels = standard_characters()
    assert {level: len(characters) for level, characters in levels.items()} == {
        "level 1": 3500,
        "level 2": 3000,
        "level 3": 1605,
    }
    every = [character for characters in levels.values() for character in characters]
    assert len(set(every)) == 8105 and all(len(character) == 1 for character in every)
    assert levels["level 1"][:2] == ("一", "乙")


@pytest.mark.parametrize(
    "name", ["llama", "mistral", "smollm2", "qwen", "llama-3", "deepseek-v4", "bert-base-chinese"]
)
def test_coverage_is_what_encoding_each_character_gives(name):
    tokenizer = open_tokenizer(name)
    found = character_coverage(tokenizer)
    for level, characters in standard_characters().items():
        # SentencePiece puts a space before a text, which may melt into the character: hide it behind a comma.
        start = "，" if name in ("llama", "mistral") else ""
        before = tokenizer.tokens(start)
        ids = tokenizer.encode_batch([start + character for character in characters])
        whole = 0
        for character, row in zip(characters, ids, strict=True):
            pieces = [tokenizer.token_bytes(token_id) for token_id in row]
            whole += pieces == [*before, character.encode()]
        assert found[level] == pytest.approx(whole / len(characters))


def test_known_shares():
    # LLaMA's vocabulary holds about 700 Chinese characters, BERT's nearly all of the first two levels.
    assert 0.1 < character_coverage(open_tokenizer("llama"))["level 1"] < 0.2
    bert = character_coverage(open_tokenizer("bert-base-chinese"))
    assert bert["level 1"] > 0.99 and bert["level 1"] > bert["level 2"] > bert["level 3"]


def test_the_answer_is_kept_and_cannot_be_spoiled(monkeypatch):
    tokenizer = open_tokenizer("llama")
    first = character_coverage(tokenizer)
    monkeypatch.setattr(coverage, "_measure", lambda _: pytest.fail("measured again"))
    character_coverage(tokenizer)["level 1"] = 5.0
    assert character_coverage(tokenizer) == first


def test_a_list_with_a_missing_character_is_refused(tmp_path, monkeypatch):
    from chinese_llama_lab.sources.fetch import source_file

    table = json.loads(source_file("characters").read_text(encoding="utf-8"))
    table["《通用规范汉字表》二级汉字"]["texts"].pop()
    path = tmp_path / "characters.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    monkeypatch.setattr(coverage, "source_file", lambda *_: path)
    standard_characters.cache_clear()
    try:
        with pytest.raises(SourceError, match="level 2 holds 2999 characters, and the standard has 3000"):
            standard_characters()
    finally:
        standard_characters.cache_clear()
