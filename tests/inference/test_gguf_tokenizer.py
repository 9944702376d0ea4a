"""The vocabulary: what is written cuts any text as the folder's own tokenizer does; else it is refused."""

from __future__ import annotations

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from chinese_llama_lab.inference.gguf import GgufError, export_gguf
from chinese_llama_lab.inference.gguf_cutting import CHECKED, name_of_cutting, rebuild
from chinese_llama_lab.tokenization.gguf_vocabulary import read_vocabulary
from chinese_llama_lab.vocabulary.bpe_continue import continue_bpe
from chinese_llama_lab.vocabulary.save import save_tokenizer
from chinese_llama_lab.vocabulary.sp_train import train_sentencepiece
from tests.inference.gguf_models import FAMILIES, TEXTS, fields, make, save_model
from tests.threads import one_thread  # noqa: F401 - a fixture
from tests.vocabulary.conftest import CHINESE, ENGLISH, byte_bpe

TEXT = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=6),
        st.sampled_from(
            [" ", "  ", "中国", "人工智能", "people", "1998", "。", "\n", "'s", "'RE", "的", "▁"]
        ),
    ),
    max_size=8,
).map("".join)


def without_special(text):
    """transformers reads the strings of special tokens as these tokens; llama.cpp does so when told to."""
    return not any(name in text for name in ("<s>", "</s>", "<unk>", "<pad>", "<|end|>"))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(text -> ids by the folder, text -> ids by the file)."""
    folder = make(tmp_path_factory.mktemp("pair") / "model", request.param)
    out = export_gguf(folder, folder.with_name("m.gguf")).out
    own = AutoTokenizer.from_pretrained(folder)
    return lambda text: own.encode(text, add_special_tokens=False), rebuild(read_vocabulary(out))


@pytest.mark.parametrize("text", [*TEXTS, *CHECKED])
def test_the_file_cuts_text_as_the_folder_does(pair, text):
    own, back = pair
    assert own(text) == back(text)


@settings(max_examples=150, deadline=None)
@given(text=TEXT.filter(without_special))
def test_the_file_cuts_any_text_as_the_folder_does(pair, text):
    own, back = pair
    assert own(text) == back(text)


def exported(folder, **options):
    """(keys of the file, text -> ids by the file)."""
    out = export_gguf(folder, folder.with_name("m.gguf"), **options).out
    return fields(out), rebuild(read_vocabulary(out))


def test_pieces_from_either_file_alone(tmp_path):
    """`save_pretrained` drops tokenizer.model; old folders have nothing else."""
    both = make(tmp_path / "both" / "model", "SentencePiece")
    said, by_both = exported(both)
    for missing in ("tokenizer.model", "tokenizer.json"):
        folder = shutil.copytree(both, tmp_path / missing / "model")
        (folder / missing).unlink()
        if missing == "tokenizer.json":
            path = folder / "tokenizer_config.json"
            config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "LlamaTokenizer"}
            path.write_text(json.dumps(config), encoding="utf-8")
        found, by_one = exported(folder)
        for key in ("tokens", "token_type", "bos_token_id", "add_bos_token", "add_space_prefix", "pre"):
            assert found[f"tokenizer.ggml.{key}"] == said[f"tokenizer.ggml.{key}"], (missing, key)
        assert [by_one(text) for text in TEXTS] == [by_both(text) for text in TEXTS]


def test_added_tokens(tmp_path):
    """Chinese-Alpaca adds its padding behind the pieces; llama.cpp finds added words before it cuts."""
    folder = make(tmp_path / "model", "SentencePiece", spare=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["人工智能学院"])
    (folder / "tokenizer.model").unlink()
    tokenizer.save_pretrained(folder)
    out = export_gguf(folder, tmp_path / "m.gguf")
    said = fields(out.out)
    assert said["tokenizer.ggml.tokens"][first:] == ["[PAD]", "人工智能学院"]
    assert said["tokenizer.ggml.token_type"][first:] == [3, 4]
    assert said["tokenizer.ggml.padding_token_id"] == first
    assert any("after an added token" in note for note in out.notes)


def test_bos_and_eos_flags(tmp_path):
    folder = make(tmp_path / "model", "SentencePiece")
    said, _ = exported(folder)
    assert said["tokenizer.ggml.add_bos_token"] and not said["tokenizer.ggml.add_eos_token"]
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    state["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("add_bos_token")
    path.write_text(json.dumps(config), encoding="utf-8")
    folder.with_name("m.gguf").unlink()
    said, _ = exported(folder)
    assert not said["tokenizer.ggml.add_bos_token"]


def test_several_chat_templates(tmp_path):
    folder = make(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(folder)
    said, _ = exported(folder)
    assert said["tokenizer.chat_template"] == "{{ messages }}"
    assert said["tokenizer.chat_template.tool_use"] == "{{ tools }}"


def save(inner, folder):
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>").save_pretrained(folder)
    path = folder / "tokenizer.json"
    return json.loads(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("style", "name"), [("smollm2", "smollm"), ("qwen", "qwen2"), ("llama3", "llama-bpe"), ("gpt2", "gpt-2")]
)
def test_the_name_of_a_pre_tokenizer(tmp_path, style, name):
    """A longer vocabulary keeps the name: llama.cpp's own way, a hash of token ids, would lose it."""
    inner = byte_bpe("smollm2" if style == "gpt2" else style)
    if style == "gpt2":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert name_of_cutting(*save(inner, tmp_path / "base")) == name
    longer = continue_bpe(inner, CHINESE, 20)
    assert len(longer) > 10
    assert name_of_cutting(*save(longer.tokenizer, tmp_path / "longer")) == name


def test_an_extended_vocabulary(tmp_path):
    inner = byte_bpe("smollm2")
    longer = continue_bpe(inner, CHINESE, 30).tokenizer
    folder = tmp_path / "model"
    save(longer, folder)
    save_model(folder, longer.get_vocab_size())
    said, by_file = exported(folder)
    assert len(said["tokenizer.ggml.merges"]) > len(json.loads(inner.to_str())["model"]["merges"])
    assert [by_file(text) for text in TEXTS] == [longer.encode(text).ids for text in TEXTS]
    assert [by_file(text) for text in CHINESE] != [inner.encode(text).ids for text in CHINESE]


def refused(folder, match):
    out = folder.with_name("refused.gguf")
    with pytest.raises(GgufError, match=match) as caught:
        export_gguf(folder, out)
    assert caught.value.remedy and not out.exists()


def change(inner, what):
    if what == "uncut":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    elif what == "prefix":
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
        )
    elif what == "lower":
        inner.normalizer = normalizers.Lowercase()
    elif what == "ignore_merges":
        inner.model.ignore_merges = True
    return inner


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("uncut", "name is not known"),
        ("prefix", "name is not known"),
        ("lower", "normalises text .Lowercase"),
        ("ignore_merges", "ignore_merges"),
    ],
)
def test_byte_level_tokenizers_that_are_refused(tmp_path, what, match):
    inner = change(byte_bpe("smollm2"), what)
    save(inner, tmp_path / "model")
    refused(save_model(tmp_path / "model", inner.get_vocab_size()), match)


def test_other_algorithms_are_refused(tmp_path):
    for name, inner in {
        "wordpiece": Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
        "plain": Tokenizer(models.BPE({"a": 0, "b": 1}, [])),
    }.items():
        inner.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "isolated")
        save(inner, tmp_path / name / "model")
        refused(save_model(tmp_path / name / "model", 40), "neither SentencePiece BPE")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"normalization": "nmt_nfkc"}, "normalises text or folds"),
        ({"remove_extra_whitespaces": True}, "normalises text or folds"),
    ],
)
def test_sentencepiece_models_that_are_refused(tmp_path, options, match):
    settings = {
        "normalization": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
    } | options
    model = train_sentencepiece(CHINESE + ENGLISH, 500, "bpe", character_coverage=1.0, **settings).model
    save_tokenizer(model, tmp_path / "model")
    refused(save_model(tmp_path / "model", 500), match)
    (tmp_path / "model" / "tokenizer.model").unlink()
    refused(tmp_path / "model", "cut this text into other tokens")


def test_a_unigram_model_is_refused(tmp_path):
    folder = make(tmp_path / "model", "SentencePiece")
    unigram = train_sentencepiece(CHINESE, 300, "unigram", character_coverage=1.0).model
    (folder / "tokenizer.model").write_bytes(unigram.SerializeToString())
    refused(folder, "not SentencePiece BPE")


def test_damaged_and_missing_files_are_refused(tmp_path):
    folder = make(tmp_path / "model", "SentencePiece")
    pieces = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(pieces[: len(pieces) // 2])
    refused(folder, "no whole SentencePiece model")
    (folder / "tokenizer.model").unlink()
    whole = (folder / "tokenizer.json").read_text(encoding="utf-8")
    for text in (whole[: len(whole) // 2], "[]", '{"model": {"type": "BPE", "byte_fallback": true}}'):
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        refused(folder, "cannot be loaded")
    (folder / "tokenizer.json").unlink()
    refused(folder, "no tokenizer")


def test_files_of_two_tokenizers_are_refused(tmp_path):
    """A merged tokenizer.json beside the tokenizer.model of the base."""
    folder = make(tmp_path / "model", "SentencePiece")
    options = {"byte_fallback": True, "normalization": "identity", "remove_extra_whitespaces": False}
    other = train_sentencepiece(ENGLISH + CHINESE[:2], 420, "bpe", **options).model
    (folder / "tokenizer.model").write_bytes(other.SerializeToString())
    refused(folder, "of two tokenizers")


def test_more_tokens_than_rows_are_refused(tmp_path):
    folder = make(tmp_path / "model", spare=-3)
    refused(folder, r"has \d+ tokens, and the embedding \d+ rows")
