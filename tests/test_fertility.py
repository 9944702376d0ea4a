"""Tokens per character: known answers, a slow and obvious reference, streams, and what is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from chinese_llama_lab.errors import TextError, TokenizerError
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.tokenization import fertility as module
from chinese_llama_lab.tokenization.fertility import GROUPS, compare, fertility, iterate_texts
from chinese_llama_lab.tokenization.registry import open_tokenizer
from chinese_llama_lab.tokenization.sentencepiece_model import SentencePieceTokenizer

KNOWN = {
    "llama": 1.5447,
    "mistral": 1.2223,
    "smollm2": 1.8488,
    "llama-3": 0.8633,
    "qwen": 0.6577,
    "deepseek-v4": 0.6145,
}
SENTENCE = "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。"
EVERY_KIND = ["llama", "mistral", "smollm2", "qwen", "gpt-2", "deepseek-v4", "bert-base-chinese"]


@pytest.fixture(scope="module")
def news() -> list[str]:
    return load_corpus("peoples-daily").raw().texts()[::20]


@pytest.fixture(scope="module")
def measured(news):
    return compare(list(KNOWN), news, text_name="news")


def quick(tokenizer, texts, **options):
    return fertility(tokenizer, texts, **{"reference": None, "coverage": False, "resamples": 50, **options})


# --- known answers --------------------------------------------------------------------------------


def test_known_answers(measured):
    assert {result.characters for result in measured} == {94_735}
    found = {name: round(r.tokens_per_character, 4) for name, r in zip(KNOWN, measured, strict=True)}
    assert found == KNOWN


def test_the_papers_sentence():
    result = quick("llama", [SENTENCE])
    assert (result.characters, result.tokens) == (28, 35)
    assert result.bytes == 84 and result.documents == 1


def test_the_figures_are_each_others_inverse(measured):
    for result in measured:
        assert result.characters_per_token == pytest.approx(1 / result.tokens_per_character)
        assert result.bytes_per_token == pytest.approx(result.bytes / result.tokens)
        low, high = result.interval
        assert low < result.tokens_per_character < high
        assert high - low < 0.1


def test_relative_length_is_tokens_over_llamas(measured):
    for result in measured:
        assert result.relative_length == pytest.approx(result.tokens / measured[0].tokens)
        assert (result.reference, result.reference_characters) == ("LLaMA", 94_735)
    assert measured[0].relative_length == 1.0


def test_compare_is_separate_fertility_calls(news, measured):
    separate = [fertility(name, news, text_name="news") for name in KNOWN]
    assert separate == measured


# --- a slow reference -----------------------------------------------------------------------------


def slow(tokenizer, text: str) -> tuple[int, int, int]:
    """(characters cut into several tokens, characters spelled one token a byte, unknown tokens) of a text.

    Lays the bytes of the tokens beside the bytes of the text and looks, for each character, which tokens
    hold its bytes.
    """
    ids = tokenizer.encode(text)
    unknown = sum(token_id == tokenizer.unknown_id for token_id in ids)
    owner: list[int] = []  # for each byte, the number of its token
    spelled = b""
    for number, token_id in enumerate(ids):
        data = tokenizer.token_bytes(token_id)
        spelled += data
        owner += [number] * len(data)
    place = len(spelled) - len(text.encode("utf-8"))  # the space that SentencePiece puts before
    assert spelled[place:] == text.encode("utf-8")
    cut = as_bytes = 0
    for character in text:
        width = len(character.encode("utf-8"))
        owners = owner[place : place + width]
        cut += len(set(owners)) > 1
        # One token a byte: as many tokens as bytes, and each of them is that byte alone.
        alone = [owner.count(o) == 1 for o in set(owners)] if len(set(owners)) == width > 1 else [False]
        as_bytes += all(alone)
        place += width
    return cut, as_bytes, unknown


def agree(tokenizer, texts: list[str]) -> None:
    result = quick(tokenizer, texts)
    counted = [slow(tokenizer, text) for text in texts]
    assert round(result.split_share * result.characters) == sum(cut for cut, _, _ in counted)
    assert round(result.byte_share * result.characters) == sum(alone for _, alone, _ in counted)
    assert result.tokens == sum(len(tokenizer.encode(text)) for text in texts)
    assert round(result.unknown_share * result.tokens) == sum(unknown for _, _, unknown in counted)
    assert result.bytes == sum(len(text.encode("utf-8")) for text in texts)


LOSSLESS = [name for name in EVERY_KIND if name != "bert-base-chinese"] + [
    "o200k",
    "baichuan",
    "deepseek-llm",
]


@pytest.mark.parametrize("name", LOSSLESS)
def test_shares_on_real_text(name):
    texts = [text[:60] for text in load_corpus("three-kingdoms").raw().take(30).texts()]
    texts += [text[:60] for text in load_corpus("reviews").raw().take(30).texts()]
    texts += ["𠮷野家の龘靐齉 👩‍👩‍👧 e\u0301 ½ １９９８", SENTENCE, "Äpfel ﷺ हिन्दी", "\u2028\u0085"]
    agree(open_tokenizer(name), texts)


@pytest.mark.parametrize("name", LOSSLESS)
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("aé ½的龘齉𠮷👍ह\u2028\u0301，"), max_size=30), min_size=1, max_size=4)
)
def test_shares_on_invented_text(name, texts):
    if any(texts):
        agree(open_tokenizer(name), texts)


def test_shares_by_hand():
    # 龘 is no piece of LLaMA's: three byte tokens. 的 is one piece.
    result = quick("llama", ["的龘"])
    assert open_tokenizer("llama").tokens("的龘")[-3:] == [b"\xe9", b"\xbe", b"\x98"]
    assert (result.split_share, result.byte_share, result.unknown_share) == (0.5, 0.5, 0.0)


def test_unknown_text_is_said_to_be_lost():
    result = quick("bert-base-chinese", ["中𠮷"])
    assert (result.tokens, result.unknown_share) == (2, 0.5)
    assert result.split_share == result.byte_share == 0


def test_coverage_of_the_levels(measured):
    for result in measured:
        assert list(result.coverage) == ["level 1", "level 2", "level 3"]
        assert all(0 <= share <= 1 for share in result.coverage.values())
    by_name = {result.tokenizer: result for result in measured}
    assert by_name["LLaMA"].coverage["level 1"] < 0.2 < 0.9 < by_name["Qwen"].coverage["level 1"]


# --- the interval ---------------------------------------------------------------------------------


def by_hand(tokenizer, texts, resamples, confidence, seed):
    tokens = np.array([len(tokenizer.encode(text)) for text in texts])
    characters = np.array([len(text) for text in texts])
    generator = np.random.default_rng(seed)
    draws = generator.integers(0, len(texts), (resamples, len(texts)), dtype=np.int32)
    ratios = [tokens[draw].sum() / characters[draw].sum() for draw in draws]
    return tuple(np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2]))


@pytest.mark.parametrize("documents", [1, 2, 100, GROUPS])
def test_up_to_512_documents_it_is_the_exact_bootstrap(documents):
    texts = load_corpus("reviews").take(documents).texts()
    tokenizer = open_tokenizer("llama")
    result = quick("llama", texts, resamples=200, confidence=0.9, seed=7)
    assert result.interval == pytest.approx(by_hand(tokenizer, texts, 200, 0.9, 7))
    assert result.confidence == 0.9


def test_the_interval_depends_on_the_seed_alone(news):
    first = quick("qwen", news, seed=1)
    assert first.interval == quick("qwen", news, seed=1).interval
    assert first.interval != quick("qwen", news, seed=2).interval


def test_more_documents_than_groups_give_nearly_the_same_interval(news):
    assert len(news) > GROUPS
    result = quick("qwen", news, resamples=1000)
    low, high = by_hand(open_tokenizer("qwen"), news, 1000, 0.95, 0)
    assert result.interval[0] == pytest.approx(low, abs=0.003)
    assert result.interval[1] == pytest.approx(high, abs=0.003)


def test_empty_documents_count_as_documents_and_change_nothing_else():
    full = quick("llama", [SENTENCE, "你好"])
    holes = quick("llama", ["", SENTENCE, "", "", "你好", ""])
    assert (holes.documents, holes.empty_documents) == (6, 4)
    assert (holes.tokens, holes.characters, holes.interval) == (full.tokens, full.characters, full.interval)


# --- streams --------------------------------------------------------------------------------------


def test_a_generator_is_used_once_and_gives_the_same(news):
    reads = []

    def stream():
        for text in news:
            reads.append(len(text))
            yield text

    assert quick("qwen", stream()) == quick("qwen", news)
    assert len(reads) == len(news)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_size_of_a_batch_changes_nothing(news, monkeypatch, batch):
    some = news[:200]
    expected = quick("llama", iter(some))
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", batch)
    assert quick("llama", iter(some)) == quick("llama", some) == expected
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 100 * batch)
    assert quick("llama", iter(some)) == quick("llama", some) == expected


@pytest.mark.parametrize(("name", "documents"), [("llama", 6000), ("qwen", 2000)])
def test_a_long_stream_in_bounded_memory(name, documents):
    line = SENTENCE * 120  # about 10 kB: 60 MB and 20 MB in all
    tokenizer = open_tokenizer(name)
    quick(tokenizer, [line])
    tracemalloc.start()
    result = quick(tokenizer, (f"{number}{line}" for number in range(documents)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.bytes > 10_000 * documents and result.documents == documents
    assert peak < 90 << 20  # the ids of the shorter stream alone, as Python integers, would take more


def test_one_very_long_line(news):
    text = ("".join(news) * 3)[:200_000]
    for name in EVERY_KIND:
        result = quick(name, [text])
        assert result.characters == 200_000 and result.documents == 1
        assert result.interval == (result.tokens_per_character,) * 2


def test_a_data_set_and_its_column_give_the_same_as_a_list(news, tmp_path):
    from datasets import Dataset

    some = news[:300]
    expected = quick("qwen", some)
    assert quick("qwen", Dataset.from_dict({"text": some})) == expected
    rows = Dataset.from_dict({"id": list(range(300)), "content": some})
    assert quick("qwen", rows, column="content") == expected
    assert quick("qwen", rows["content"]) == expected
    assert quick("qwen", rows.to_iterable_dataset(), column="content") == expected


def test_documents_tuples_and_rows_are_taken_too():
    corpus = load_corpus("hsk-zh").take(50)
    texts = corpus.texts()
    expected = quick("llama", texts, text_name="x")
    assert quick("llama", corpus, text_name="x") == expected
    assert quick("llama", tuple(texts), text_name="x") == expected
    assert quick("llama", [{"text": text} for text in texts], text_name="x") == expected
    assert quick("llama", corpus).text == "hsk-zh" and quick("llama", texts).text == "text"


def test_progress_shows_a_bar(capsys):
    quick("llama", ["你好"] * 10, progress=True, text_name="greetings")
    assert "greetings" in capsys.readouterr().err


# --- the reference --------------------------------------------------------------------------------


def test_any_reference_or_none():
    texts = [SENTENCE]
    assert fertility("llama", texts, reference=None, coverage=False).relative_length is None
    result = fertility("llama", texts, reference="qwen", coverage=False)
    assert result.relative_length == pytest.approx(35 / len(open_tokenizer("qwen").encode(SENTENCE)))
    assert result.reference == "Qwen"
    assert fertility("llama", texts, reference=open_tokenizer("llama"), coverage=False).relative_length == 1


def test_another_tokenizer_of_the_same_name_is_not_taken_for_the_reference():
    impostor = SentencePieceTokenizer("LLaMA", open_tokenizer("mistral").model)
    result = fertility(impostor, [SENTENCE], coverage=False)
    assert result.relative_length == pytest.approx(len(impostor.encode(SENTENCE)) / 35)
    assert result.relative_length != 1


def test_the_reference_is_sampled_on_a_long_stream(monkeypatch):
    monkeypatch.setattr(module, "REFERENCE_CHARACTERS", 1000)
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 50)
    texts = load_corpus("modern").take(3000).texts()
    result = fertility("qwen", texts, coverage=False)
    assert 1000 < result.reference_characters < result.characters / 4
    exact = result.tokens / quick("llama", texts).tokens
    assert result.relative_length == pytest.approx(exact, rel=0.05)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [[], [""], ["", ""], iter([]), ()])
def test_nothing_to_measure_is_said(texts):
    with pytest.raises(TextError, match="nothing to measure") as caught:
        quick("llama", texts, text_name="my.txt")
    assert caught.value.where == "my.txt" and caught.value.remedy


@pytest.mark.parametrize("as_stream", [False, True])
def test_a_lone_surrogate_is_named_by_document_and_character(as_stream, monkeypatch):
    monkeypatch.setattr(module, "BATCH_DOCUMENTS", 100)
    texts = ["好"] * 250 + ["ab\udc80"] + ["好"] * 50
    with pytest.raises(TextError, match=r"U\+DC80") as caught:
        quick("qwen", iter(texts) if as_stream else texts)
    assert caught.value.where == "document 250, character 2"
    assert "utf-8" in caught.value.remedy


@pytest.mark.parametrize("bad", [None, 3, b"bytes", ["nested"]])
def test_a_value_that_is_no_text_is_named(bad):
    with pytest.raises(TextError, match=f"{type(bad).__name__} was found") as caught:
        quick("qwen", ["好"] * 5 + [bad])
    assert caught.value.where == "document 5"


def test_a_missing_column_names_the_ones_there_are():
    with pytest.raises(TextError, match="no text in column 'text'") as caught:
        quick("qwen", [{"text": "好"}, {"content": "好", "id": 1}])
    assert caught.value.where == "row 1" and "content, id" in caught.value.remedy
    with pytest.raises(TextError, match="row 0"):
        quick("qwen", [{"text": None}])


def test_one_text_or_a_dictionary_of_splits_is_not_a_list():
    with pytest.raises(TextError, match="one text was found"):
        quick("qwen", SENTENCE)
    with pytest.raises(TextError, match="dict was found") as caught:
        quick("qwen", {"train": ["好"], "test": ["坏"]}, progress=True)
    assert "train, test" in caught.value.remedy
    with pytest.raises(TextError, match="int was found"):
        quick("qwen", 3)


def test_an_unknown_tokenizer_is_refused_before_any_text_is_read():
    def stream():
        pytest.fail("the text was read")
        yield ""

    with pytest.raises(TokenizerError, match="'chatgpt'"):
        compare(["llama", "chatgpt"], stream())


def test_iterate_texts_numbers_from_where_it_is_told():
    with pytest.raises(TextError, match="document 11"):
        list(iterate_texts(["a", 5], first=10))


def test_the_row_is_flat_and_the_repr_plain():
    result = fertility("llama", [SENTENCE], text_name="paper")
    row = result.row()
    assert row["tokens_per_character"] == 1.25 and row["low"] == row["high"] == 1.25
    assert row["relative_length"] == 1.0 and set(row) >= {"coverage_level 1", "split_share", "unknown_share"}
    assert all(isinstance(value, (str, int, float)) for value in row.values())
    expected = "LLaMA on paper: 1.2500 tokens per character [1.2500, 1.2500], 28 characters in 1 documents"
    assert repr(result) == expected


@pytest.mark.parametrize("option", [{"resamples": 0}, {"confidence": 95}, {"seed": -1}])
def test_an_option_that_no_bootstrap_can_have_is_refused(option):
    with pytest.raises(TextError, match=next(iter(option))):
        fertility("llama", ["中国"], **option)


def test_a_table_is_not_measured_by_the_names_of_its_columns():
    pandas = pytest.importorskip("pandas", reason="pandas comes with datasets")
    frame = pandas.DataFrame({"title": ["一"], "body": ["中国人民"]})
    with pytest.raises(TextError, match="title, body"):
        fertility("llama", frame)
    assert fertility("llama", frame["body"]).characters == 4


def test_tokenizers_of_the_libraries_are_taken_as_they_are():
    texts = ["中国人民 hello", "2024年"]
    ours = open_tokenizer("deepseek-v4")
    library = tokenizers.Tokenizer.from_str(ours.tokenizer.to_str())
    library.enable_padding()
    assert fertility(library, texts).tokens == fertility(ours, texts).tokens
    assert library.padding is not None  # what the reader passed stays as it was
    llama = open_tokenizer("llama")
    assert fertility(llama.processor, texts).tokens == fertility(llama, texts).tokens
    with pytest.raises(TokenizerError, match="int"):
        fertility(7, texts)
