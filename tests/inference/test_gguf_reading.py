"""What transformers makes of the tokenizer in a GGUF file: right on real text, wrong in named places."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from chinese_llama_lab.inference.gguf import export_gguf
from chinese_llama_lab.inference.gguf_cutting import rebuild
from chinese_llama_lab.tokenization.gguf_vocabulary import read_vocabulary
from tests.inference.gguf_models import make
from tests.vocabulary.conftest import CHINESE, ENGLISH


def both(folder, out):
    """(the folder's tokenizer, transformers' reading of the file), each text -> ids."""
    own = AutoTokenizer.from_pretrained(folder)
    back = AutoTokenizer.from_pretrained(out.parent, gguf_file=out.name)
    return lambda text: own(text).input_ids, lambda text: back(text).input_ids


def test_sentencepiece(tmp_path):
    folder = make(tmp_path / "model", "SentencePiece")
    own, back = both(folder, export_gguf(folder, tmp_path / "m.gguf").out)
    assert [own(text) for text in CHINESE] == [back(text) for text in CHINESE]
    assert all(own(text) == back(text) for text in ENGLISH if not text.startswith(" "))
    text = " a line that begins with a space"
    assert own(text) != back(text)  # its LLaMA class puts no `▁` there, llama.cpp and SentencePiece do
    assert own(text)[1:] == rebuild(read_vocabulary(tmp_path / "m.gguf"))(text)


@pytest.mark.slow
def test_smollm2(tmp_path):
    from chinese_llama_lab.sources.corpora import load_corpus
    from chinese_llama_lab.sources.models import converted_model

    folder = converted_model("smollm2")
    own, back = both(folder, export_gguf(folder, tmp_path / "m.gguf").out)
    news = load_corpus("peoples-daily").chinese_punctuation().split("held-out").sample(100).texts()
    for text in [*news, *load_corpus("c4-en").split("held-out").texts()]:
        assert own(text) == back(text)
    text = "a  1"
    assert own(text) != back(text)  # it knows no `smollm`, and cuts as GPT-2 does
    assert own(text) == rebuild(read_vocabulary(tmp_path / "m.gguf"))(text)
