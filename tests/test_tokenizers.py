"""Each adapter against its reference library or llama.cpp's test vectors, and against damaged files."""

from __future__ import annotations

import base64
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from chinese_llama_lab.errors import TextError, TokenizerError
from chinese_llama_lab.sources.corpora import load_corpus
from chinese_llama_lab.sources.fetch import source_file, source_folder
from chinese_llama_lab.tokenization import registry
from chinese_llama_lab.tokenization.base import flatten, missing_bytes, utf8_lengths
from chinese_llama_lab.tokenization.fast import FastTokenizer, byte_alphabet
from chinese_llama_lab.tokenization.gguf_vocabulary import byte_level_tokenizer, read_vocabulary
from chinese_llama_lab.tokenization.registry import known_tokenizers, open_tokenizer
from chinese_llama_lab.tokenization.tiktoken_file import SCHEMES, TiktokenTokenizer

NAMES = list(known_tokenizers())
SENTENCEPIECE = ["llama", "baichuan", "mistral"]
BYTE_LEVEL = [name for name in NAMES if name not in (*SENTENCEPIECE, "bert-base-chinese")]
# One of each family and each adapter, for what is slow to try with all.
FAMILIES = ["llama", "smollm2", "qwen", "deepseek-v4", "bert-base-chinese"]
VECTORS = {
    "llama": "llama-spm",
    "gpt-2": "gpt-2",
    "llama-3": "llama-bpe",
    "qwen2": "qwen2",
    "qwen": "qwen2",
    "deepseek-llm": "deepseek-llm",
}
ODD = [
    "",
    " ",
    "   three   spaces  ",
    "\n\n\r\n\t",
    "人工智能是计算机科学、心理学、哲学等学科融合的交叉学科。",
    "𠮷野家 👩‍👩‍👧 e\u0301 ﬁ ½ １９９８",
    "\u2028\u2029\u0085\u00a0\u3000\u200b\ufeff",
    "</s><s><|endoftext|><|im_start|>[UNK][CLS]<unk><0x41>",
    "a\0b\x01\x7f",
    "한국어 ไทย हिन्दी עברית ﷺ",
    "It's we'RE I'll 3.14159 1234567890",
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real text of five kinds, Chinese and English."""
    names = ("peoples-daily", "reviews", "three-kingdoms", "modern", "c4-en")
    return [text[:1500] for name in names for text in load_corpus(name).raw().take(60).texts()]


# --- against the references -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "vectors"), VECTORS.items())
def test_llama_cpps_test_vectors(name, vectors):
    def read(end: str) -> str:
        path = source_file("tokenizer-vectors", f"ggml-vocab-{vectors}.gguf.{end}")
        return path.read_bytes().decode("utf-8")

    cases = read("inp").split("\n__ggml_vocab_test__\n")
    expected = [[int(number) for number in line.split()] for line in read("out").split("\n")[: len(cases)]]
    assert len(cases) > 40
    assert open_tokenizer(name).encode_batch(cases) == expected


def test_llama_is_metas_own_model(gold, texts):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(gold / "llama_tokenizer.model"))
    ours = open_tokenizer("llama")
    assert ours.vocab_size == reference.get_piece_size() == 32_000
    for token_id in range(32_000):
        assert ours.processor.id_to_piece(token_id) == reference.id_to_piece(token_id)
        assert ours.processor.get_score(token_id) == reference.get_score(token_id)
        for kind in ("is_byte", "is_control", "is_unknown", "is_unused"):
            assert getattr(ours.processor, kind)(token_id) == getattr(reference, kind)(token_id)
    assert ours.encode_batch(texts + ODD) == reference.encode(texts + ODD)
    assert [ours.decode(ids) for ids in ours.encode_batch(ODD)] == reference.decode(reference.encode(ODD))


def test_mistral_is_what_sentencepiece_makes_of_its_file(texts):
    path = source_file("mistral")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert open_tokenizer("mistral").encode_batch(texts + ODD) == reference.encode(texts + ODD)


def test_smollm2_is_the_tokenizer_of_the_model(texts):
    from transformers import AutoTokenizer

    from chinese_llama_lab.sources.models import converted_model

    reference = AutoTokenizer.from_pretrained(converted_model("smollm2"))
    ours = open_tokenizer("smollm2")
    plain = [text for text in texts + ODD if "<|" not in text]  # transformers reads special tokens from text
    assert ours.encode_batch(plain) == reference(plain, add_special_tokens=False).input_ids
    assert ours.vocab_size == len(reference)


def test_smollm2_cuts_text_as_its_authors_say(texts):
    # Its tokenizer.json on the hub says: single digits, then GPT-2's pattern. Built here from those words.
    vocabulary = read_vocabulary(source_file("smollm2"))
    table = {token: number for number, token in enumerate(vocabulary["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in vocabulary["merges"]]
    reference = tokenizers.Tokenizer(tokenizers.models.BPE(table, merges))
    steps = tokenizers.pre_tokenizers
    reference.pre_tokenizer = steps.Sequence(
        [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    expected = [reference.encode(text, add_special_tokens=False).ids for text in texts + ODD]
    assert open_tokenizer("smollm2").encode_batch(texts + ODD) == expected


@pytest.mark.parametrize(
    ("name", "pre"),
    [("smollm2", "smollm"), ("gpt-2", "gpt-2"), ("qwen2", "qwen2"), ("deepseek-llm", "deepseek-llm")],
)
def test_a_kept_conversion_is_what_the_code_would_make_today(name, pre):
    made = byte_level_tokenizer({"tokens": ["a"], "merges": [], "pre": pre}, where="here")
    kept = json.loads(registry.converted_gguf(name).read_text(encoding="utf-8"))
    fresh = json.loads(made.to_str())
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        assert kept[part] == fresh[part], "raise the version in the name of the conversions' folder"


def test_deepseek_v4_is_what_tokenizers_makes_of_its_file(texts):
    reference = tokenizers.Tokenizer.from_file(str(source_file("deepseek-v4")))
    plain = [text for text in texts + ODD if "<" not in text]
    expected = [reference.encode(text, add_special_tokens=False).ids for text in plain]
    ours = open_tokenizer("deepseek-v4")
    assert ours.encode_batch(plain) == expected
    assert [ours.decode(ids) for ids in expected] == plain


@pytest.mark.parametrize(("name", "encoding"), [("cl100k", "cl100k_base"), ("o200k", "o200k_base")])
def test_openais_vocabularies_are_tiktokens_own(name, encoding, texts, monkeypatch):
    # tiktoken finds its files in this folder under the very names they have here, so it needs no network.
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(source_file(name).parent))
    reference = tiktoken.get_encoding(encoding)
    ours = open_tokenizer(name)
    assert ours.encode_batch(texts + ODD) == [reference.encode_ordinary(text) for text in texts + ODD]
    assert ours.vocab_size == reference.n_vocab


def test_qwen_is_qwen2_without_its_special_tokens(texts):
    # The same vocabulary from two packages, in two formats, through two libraries.
    assert open_tokenizer("qwen").encode_batch(texts) == open_tokenizer("qwen2").encode_batch(texts)


def test_bert_is_transformers_bert(texts):
    from transformers import BertTokenizerFast

    path = source_file("bert-base-chinese")
    reference = BertTokenizerFast(vocab=str(path), do_lower_case=True)
    ours = open_tokenizer("bert-base-chinese")
    plain = [text for text in texts + ODD if "[" not in text]
    assert ours.encode_batch(plain) == reference(plain, add_special_tokens=False).input_ids
    assert ours.vocab_size == len(reference) == 21_128


# --- the interface --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_flat_batch_and_single_agree(name, texts):
    tokenizer = open_tokenizer(name)
    some = texts[::7] + ODD
    batch = tokenizer.encode_batch(some)
    assert batch == [tokenizer.encode(text) for text in some]
    flat, lengths = tokenizer.encode_flat(some)
    assert (flat.dtype, lengths.dtype) == (np.int32, np.int64)
    assert lengths.tolist() == [len(ids) for ids in batch]
    assert flat.tolist() == [token_id for ids in batch for token_id in ids]
    nothing, no_lengths = tokenizer.encode_flat([])
    assert len(nothing) == len(no_lengths) == 0 and tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_id_has_bytes_and_those_bytes_find_it(name):
    tokenizer = open_tokenizer(name)
    for token_id in range(tokenizer.vocab_size):
        data = tokenizer.token_bytes(token_id)
        assert isinstance(data, bytes)
        if data:
            found = tokenizer.find_token(data)
            # Another id may spell the same bytes (LLaMA's byte pieces); it must be spelled alike.
            assert found == token_id or found is None or tokenizer.token_bytes(found) == data
            if name in BYTE_LEVEL and name != "deepseek-v4":  # that one has added tokens, which are no merges
                assert found is not None
    assert tokenizer.find_token("这不可能是一个词元".encode()) is None


@pytest.mark.parametrize("name", NAMES)
def test_ids_outside_the_vocabulary_are_refused(name):
    tokenizer = open_tokenizer(name)
    for bad in (-1, tokenizer.vocab_size, 10**7):
        with pytest.raises(TokenizerError, match=f"id {bad} is not in the vocabulary") as caught:
            tokenizer.token_bytes(bad)
        assert str(tokenizer.vocab_size - 1) in caught.value.remedy
        with pytest.raises(TokenizerError):
            tokenizer.decode([bad])


def byte_spelling(tokenizer, text: str) -> bytes:
    return b"".join(tokenizer.tokens(text))


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
MIXED = st.text(st.sampled_from(" \n\r\t'aA1é中国，。𠮷👍\u0301\u2028\u3000</s>|"), max_size=60)


@pytest.mark.parametrize("name", BYTE_LEVEL)
@settings(max_examples=80, deadline=None)
@given(text=ANY_TEXT | MIXED)
def test_byte_level_tokenizers_lose_nothing(name, text):
    tokenizer = open_tokenizer(name)
    assert tokenizer.unknown_id is None and tokenizer.lossless == (name != "smollm2")
    if not tokenizer.lossless:  # it has no token for some control characters and for planes 4 to 16
        text = "".join(
            c for c in text if all(tokenizer.find_token(bytes([b])) is not None for b in c.encode())
        )
    assert byte_spelling(tokenizer, text) == text.encode("utf-8")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", SENTENCEPIECE)
@settings(max_examples=120, deadline=None)
@given(text=ANY_TEXT | MIXED)
def test_sentencepiece_loses_nothing_but_adds_a_space(name, text):
    text = text.replace("▁", "_")  # its own mark for a space
    tokenizer = open_tokenizer(name)
    spelled = byte_spelling(tokenizer, text)
    assert spelled == (b" " if text else b"") + text.encode("utf-8")
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_in_a_text_are_ordinary_characters(name):
    tokenizer = open_tokenizer(name)
    for text in ("</s>", "<|endoftext|>", "<|im_start|>user", "<s>", "<｜begin▁of▁sentence｜>", "[CLS]"):
        ids = tokenizer.encode(text)
        assert all(tokenizer.token_bytes(token_id) or token_id == tokenizer.unknown_id for token_id in ids), (
            text
        )
        assert len(ids) > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_lone_surrogates_name_the_text_and_the_place(name):
    tokenizer = open_tokenizer(name)
    with pytest.raises(TextError) as caught:
        tokenizer.encode_batch(["好", "ab\ud800c"])
    assert "U+D800" in caught.value.what and caught.value.where == "document 1, character 2"
    with pytest.raises(TextError):
        tokenizer.encode_flat(["\udfff"])
    with pytest.raises(TextError, match="NoneType was found"):
        tokenizer.encode_batch(["好", None])


@pytest.mark.parametrize(
    "name", ["llama", "baichuan", "smollm2", "qwen", "o200k", "deepseek-v4", "bert-base-chinese"]
)
@pytest.mark.parametrize("kind", ["news", "one character", "spaces", "digits"])
def test_200_000_characters_on_one_line(name, kind):
    news = "".join(load_corpus("peoples-daily").raw().take(4000).texts())
    text = {"news": news, "one character": "的" * 200_000, "spaces": " " * 200_000, "digits": "7" * 200_000}[
        kind
    ]
    text = text[:200_000]
    tokenizer = open_tokenizer(name)
    start = time.perf_counter()
    ids = tokenizer.encode(text)
    assert time.perf_counter() - start < 10
    if tokenizer.lossless:
        spelled = b"".join(map(tokenizer.token_bytes, ids))
        assert spelled == (b" " if name in SENTENCEPIECE else b"") + text.encode()
        assert tokenizer.decode(ids) == text


def test_unknown_text_is_counted_as_unknown():
    bert = open_tokenizer("bert-base-chinese")
    assert not bert.lossless and bert.unknown_id == 100
    assert bert.encode("𠮷") == [100] and bert.token_bytes(100) == b""


def test_begins_unfinished_is_what_the_bytes_say():
    for name in FAMILIES:
        tokenizer = open_tokenizer(name)
        ids = np.array(random.Random(0).sample(range(tokenizer.vocab_size), 500), dtype=np.int64)
        expected = [missing_bytes(tokenizer.token_bytes(int(i))) > 0 for i in ids]
        assert (
            tokenizer.begins_unfinished(ids).tolist() == expected == tokenizer.begins_unfinished(ids).tolist()
        )


@given(ANY_TEXT, st.integers(0, 200))
def test_missing_bytes_against_the_decoder(text, cut):
    data = text.encode("utf-8")[:cut]
    whole = len(data.decode("utf-8", errors="ignore").encode("utf-8"))
    tail = data[whole:]
    needed = {0: 0, 0xC0: 2, 0xE0: 3, 0xF0: 4}
    expected = 0
    if tail:
        lead = tail[0]
        expected = needed[0xF0 if lead >= 0xF0 else 0xE0 if lead >= 0xE0 else 0xC0] - len(tail)
    assert missing_bytes(data) == expected


def test_a_tail_of_an_earlier_character_is_not_a_beginning():
    assert missing_bytes(b"\xbd\xa0") == 0
    assert missing_bytes(b"\xa0\xe4\xbd") == 1
    assert missing_bytes("你".encode()) == 0
    assert missing_bytes(b"") == 0
    assert missing_bytes(b"a\xf0") == 3


def test_small_helpers():
    assert utf8_lengths(["a", "é", "中", "𠮷"]) == [1, 2, 3, 4]
    flat, lengths = flatten([[1, 2], [], [3]])
    assert flat.tolist() == [1, 2, 3] and lengths.tolist() == [2, 0, 1]
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    assert byte_alphabet() == {letter: byte for byte, letter in bytes_to_unicode().items()}


def test_repr_says_what_it_is():
    assert repr(open_tokenizer("llama")) == (
        "SentencePieceTokenizer('LLaMA', SentencePiece with byte fallback, 32,000 tokens)"
    )


# --- opening --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lama", "qwen-9", "chatgpt", ""])
def test_an_unknown_name_is_answered_with_all_that_exist(name):
    with pytest.raises(TokenizerError, match="no tokenizer called") as caught:
        open_tokenizer(name)
    assert repr(name) in caught.value.what
    for known in NAMES:
        assert known in caught.value.remedy


def test_near_names_are_offered():
    with pytest.raises(TokenizerError) as caught:
        open_tokenizer("lama")
    assert "did you mean llama" in caught.value.remedy


def test_a_hub_id_without_a_network_answers_quickly(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(TokenizerError, match="does not answer") as caught:
        open_tokenizer("nobody/such-a-tokenizer-does-not-exist")
    assert time.perf_counter() - start < 5
    assert "nobody/such-a-tokenizer-does-not-exist" in caught.value.what
    assert "HF_ENDPOINT" in caught.value.remedy and "qwen" in caught.value.remedy


def test_offline_means_that_the_hub_is_not_asked(monkeypatch):
    monkeypatch.setenv("LAB_OFFLINE", "1")
    start = time.perf_counter()
    with pytest.raises(TokenizerError):
        open_tokenizer("nobody/such-a-tokenizer-does-not-exist")
    assert time.perf_counter() - start < 2


FILES = {  # kind → (a known tokenizer of that kind, the file it is read from)
    "model": ("mistral", lambda: source_file("mistral")),
    "json": ("deepseek-v4", lambda: source_file("deepseek-v4")),
    "tiktoken": ("llama-3", lambda: source_file("llama-3")),
    "gguf": ("llama", lambda: source_file("llama")),
    "gguf-bpe": ("gpt-2", lambda: source_file("gpt-2")),
    "vocab": ("bert-base-chinese", lambda: source_file("bert-base-chinese")),
}


@pytest.mark.parametrize("kind", FILES)
def test_content_decides_not_the_suffix(kind, tmp_path):
    name, file = FILES[kind]
    path = tmp_path / "mystery.dat"
    os.symlink(file(), path)
    text = "人工智能 is 123 𠮷."
    opened = open_tokenizer(path)
    assert opened.encode(text) == open_tokenizer(name).encode(text)
    assert opened.name == "mystery"
    assert opened.vocab_size == open_tokenizer(name).vocab_size


@pytest.mark.parametrize("filename", ["tokenizer.json", "tokenizer.model", "vocab.txt"])
def test_a_folder_gives_its_tokenizer(filename, tmp_path):
    kind = {"tokenizer.json": "json", "tokenizer.model": "model", "vocab.txt": "vocab"}[filename]
    folder = tmp_path / "my-model"
    folder.mkdir()
    os.symlink(FILES[kind][1](), folder / filename)
    assert open_tokenizer(folder).name == "my-model"
    assert open_tokenizer(str(folder)).encode("中文") == open_tokenizer(FILES[kind][0]).encode("中文")


def test_a_folder_without_one_says_what_it_looked_for(tmp_path):
    with pytest.raises(TokenizerError, match="no tokenizer") as caught:
        open_tokenizer(tmp_path)
    assert str(tmp_path) in caught.value.where and "tokenizer.json" in caught.value.remedy


def refused(path: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        open_tokenizer(path)
    assert str(path) in caught.value.where and caught.value.remedy
    return str(caught.value)


@pytest.mark.parametrize("kind", ["model", "json", "tiktoken", "gguf"])
@pytest.mark.parametrize("part", [0.0005, 0.1, 0.37, 0.9, 0.999])
def test_a_truncated_file_is_refused(kind, part, tmp_path):
    data = FILES[kind][1]().read_bytes()
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(data[: int(len(data) * part)])
    refused(path)


def test_a_model_cut_between_two_pieces_is_refused(tmp_path):
    # A protobuf that ends between two fields is well-formed: only what is missing tells.
    from sentencepiece import sentencepiece_model_pb2

    whole = sentencepiece_model_pb2.ModelProto.FromString(source_file("mistral").read_bytes())
    cut = sentencepiece_model_pb2.ModelProto()
    cut.pieces.extend(whole.pieces[:5000])
    path = tmp_path / "tokenizer.model"
    path.write_bytes(cut.SerializeToString())
    assert source_file("mistral").read_bytes().startswith(path.read_bytes())
    assert "settings" in refused(path)
    cut.trainer_spec.CopyFrom(whole.trainer_spec)
    path.write_bytes(cut.SerializeToString())
    assert "settings" in refused(path)


@pytest.mark.parametrize("lines", [1, 100, 20_000])
def test_a_tiktoken_file_cut_between_lines_is_refused(lines, tmp_path):
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"".join(source_file("qwen").read_bytes().splitlines(keepends=True)[:lines]))
    assert f"{lines:,} ranks" in refused(path)


def test_a_tiktoken_file_cut_inside_its_last_rank_is_refused(tmp_path):
    data = source_file("qwen").read_bytes().rstrip(b"\n")
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(data[:-1])
    refused(path)


def test_a_wrong_line_of_a_tiktoken_file_is_named(tmp_path):
    lines = source_file("qwen").read_bytes().split(b"\n")
    path = tmp_path / "qwen.tiktoken"
    for bad in (b"!!!! 1000", b"AAAA", b"AAAA x", b"AAAA 1 2"):
        path.write_bytes(b"\n".join([*lines[:1000], bad, *lines[1001:]]))
        assert "line 1001" in refused(path)


def test_a_tiktoken_file_without_all_bytes_is_refused(tmp_path):
    lines = source_file("qwen").read_bytes().split(b"\n")
    token = base64.b64encode("一个不会有的词元".encode())
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(b"\n".join([token + b" 0", *lines[1:]]))
    refused(path)


def test_a_tiktoken_file_of_another_scheme_is_refused():
    with pytest.raises(TokenizerError, match="cannot be 'qwen'"):
        TiktokenTokenizer.from_file(source_file("llama-3"), scheme="qwen")
    with pytest.raises(TokenizerError, match="cannot be 'nonsense'"):
        TiktokenTokenizer.from_file(source_file("llama-3"), scheme="nonsense")
    assert {scheme.ranks for scheme in SCHEMES.values()} and source_folder("qwen").is_dir()


def test_a_cut_vocab_txt_is_refused_or_smaller(tmp_path):
    data = source_file("bert-base-chinese").read_bytes()
    path = tmp_path / "vocab.txt"
    inside = next(place for place in range(30_000, len(data)) if data[place] & 0xC0 == 0x80)
    path.write_bytes(data[:inside])
    assert "UTF-8" in refused(path)
    path.write_bytes(b"\n".join(data.split(b"\n")[:50]) + b"\n")
    assert "no known kind" in refused(path)  # it ends before [UNK]
    shorter = data.split(b"\n")[:15_000]  # cut between two lines it is a smaller vocabulary, and says so
    path.write_bytes(b"\n".join(shorter))
    assert open_tokenizer(path).vocab_size == 15_000


WRONG = {
    "empty": b"",
    "html": b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:9e556afd44\nsize 499723\n",
    "random": random.Random(1).randbytes(100_000),
    "random2": b"\n" + random.Random(2).randbytes(100_000),
    "zeros": bytes(10_000),
    "prose": "这只是一个普通的文本文件。\n".encode() * 100,
    "json": b'{"hello": "world"}',
    "config": b'{"model": null, "version": "1.0"}',
    "json list": b"[1, 2, 3]",
    "broken json": b'{"version": "1.0", "model": {"type": "BPE", ',
    "gguf magic": b"GGUF",
    "gguf old": b"GGUF\x01\x00\x00\x00" + bytes(1000),
    "gguf random": b"GGUF\x03\x00\x00\x00" + random.Random(3).randbytes(5000),
    "gguf empty": b"GGUF\x03\x00\x00\x00" + bytes(16),
    "gguf huge": b"GGUF\x03\x00\x00\x00" + b"\xff" * 16 + bytes(1000),
    "numbers": b"QQ== 0\nQg== 1\n",
    "safetensors": b"\x40\x00\x00\x00\x00\x00\x00\x00" + b'{"a":{"dtype":"F32"}}' + bytes(100),
    "pickle": b"\x80\x04\x95" + bytes(100),
}


@pytest.mark.parametrize("suffix", ["tokenizer.model", "tokenizer.json", "vocab.txt", "x.tiktoken", "x.gguf"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_files_are_refused_under_any_name(wrong, suffix, tmp_path):
    path = tmp_path / suffix
    path.write_bytes(WRONG[wrong])
    start = time.perf_counter()
    refused(path)
    assert time.perf_counter() - start < 5


def test_a_web_page_and_a_pointer_are_called_what_they_are(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(WRONG["html"])
    assert "web page" in refused(path)
    path.write_bytes(WRONG["lfs"])
    assert "Git LFS" in refused(path)


def test_flipped_bytes_of_a_gguf_file_never_hang_or_crash(tmp_path):
    data = source_file("llama").read_bytes()
    path = tmp_path / "vocabulary.gguf"
    for seed in range(12):
        broken = bytearray(data[:60_000])
        generator = random.Random(seed)
        for _ in range(3):
            broken[generator.randrange(4, 3000)] = generator.randrange(256)
        path.write_bytes(bytes(broken))
        refused(path)


def test_a_gguf_vocabulary_of_another_kind_names_the_known_ones(tmp_path):
    from gguf import GGUFWriter

    def write(model: str, pre: str | None) -> Path:
        path = tmp_path / f"{model}.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_tokenizer_model(model)
        writer.add_token_list(["a", "b"])
        if pre:
            writer.add_tokenizer_pre(pre)
            writer.add_token_merges(["a b"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path

    assert "'bert'" in refused(write("bert", None))
    message = refused(write("gpt2", "new-model"))
    assert "'new-model'" in message and "qwen2" in message


def test_a_gguf_file_without_a_vocabulary(tmp_path):
    from gguf import GGUFWriter

    path = tmp_path / "weights.gguf"
    writer = GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "no vocabulary" in refused(path)


def test_a_gguf_source_is_converted_once(monkeypatch):
    converted = registry.converted_gguf("llama")
    monkeypatch.setattr(registry, "read_vocabulary", lambda _: pytest.fail("read again"))
    assert registry.converted_gguf("llama") == converted
    assert len(read_vocabulary(source_file("llama"))["tokens"]) == 32_000


# --- tokenizer.json in all its forms --------------------------------------------------------------


def tiny_json(**changes) -> str:
    """A byte-level BPE of the 256 bytes, with a hole in its numbering if asked for."""
    letters = {letter: number for number, letter in enumerate(sorted(byte_alphabet()))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    described = json.loads(tokenizer.to_str())
    described["model"]["vocab"].update(changes)
    return json.dumps(described)


def test_a_hole_in_the_numbering_breaks_nothing(tmp_path):
    from chinese_llama_lab.tokenization.fertility import fertility

    path = tmp_path / "tokenizer.json"
    vocabulary = json.loads(tiny_json())
    vocabulary["model"]["vocab"]["a"] = 999
    path.write_text(json.dumps(vocabulary), encoding="utf-8")
    tokenizer = open_tokenizer(path)
    assert tokenizer.vocab_size == 1000
    assert tokenizer.encode("a") == [999]
    assert tokenizer.token_bytes(999) == b"a" and tokenizer.token_bytes(998) == b""
    assert fertility(tokenizer, ["aaa"], reference=None, coverage=False).tokens == 3


def test_a_token_outside_the_byte_alphabet_stands_for_itself(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tiny_json(**{"<中>": 256}), encoding="utf-8")
    tokenizer = open_tokenizer(path)
    assert tokenizer.token_bytes(256) == "<中>".encode()
    assert tokenizer.decode(tokenizer.encode("中")) == "中"


def test_a_metaspace_bpe_with_byte_fallback(tmp_path):
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "中"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            [("▁", "a")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    ours = open_tokenizer(path)
    assert isinstance(ours, FastTokenizer) and ours.lossless and ours.unknown_id == 0
    assert ours.tokens("a a中é") == [b"a", b" a", "中".encode(), b"\xc3", b"\xa9"]
    assert ours.find_token(b" a") == pieces.index("▁a")
    assert ours.find_token(b"\xc3") == pieces.index("<0xC3>")
    assert ours.token_bytes(0) == b"" and ours.token_bytes(1) == b""


def test_a_unigram_model(tmp_path):
    vocabulary = [("<unk>", 0.0), ("▁", -1.0), ("中", -2.0), ("国", -2.0), ("中国", -1.5)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_str(), encoding="utf-8")
    ours = open_tokenizer(path)
    assert ours.encode("中国x") == [4, 0]
    assert not ours.lossless and ours.unknown_id == 0 and ours.vocab_size == 5


def test_padding_and_truncation_of_a_file_do_not_count(tmp_path):
    described = tokenizers.Tokenizer.from_str(tiny_json())
    described.enable_truncation(3)
    described.enable_padding(length=10)
    path = tmp_path / "tokenizer.json"
    path.write_text(described.to_str(), encoding="utf-8")
    assert len(open_tokenizer(path).encode("abcdef")) == 6
