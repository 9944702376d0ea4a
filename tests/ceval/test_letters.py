"""Which id stands for a letter: on bytes, on joined tokens, and on LLaMA's SentencePiece."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chinese_llama_lab.ceval.errors import LetterError
from chinese_llama_lab.ceval.letters import encode, letter_ids
from chinese_llama_lab.ceval.prompts import Prompt, build_prompt, find_style

from .conftest import ASKED, SHOTS, make_tokenizer


def prompt(text: str, **changes) -> Prompt:
    return replace(Prompt("", text, "ceval-official", 0), **changes)


def test_bytes(tokenizer):
    found = letter_ids(tokenizer, prompt("答案："))
    assert found.tokens == ("A", "B", "C", "D") and found.taken == 0
    assert list(found.context) == encode(tokenizer, "答案：")
    assert found.ids == tuple(tokenizer.convert_tokens_to_ids(list("ABCD")))


def test_the_spaced_form_is_another_token(tokenizer):
    found = letter_ids(tokenizer, prompt("答案："), "spaced")
    assert found.tokens == ("ĠA", "ĠB", "ĠC", "ĠD")
    assert list(found.context) == encode(tokenizer, "答案：")


def test_a_space_at_the_end_goes_into_the_letter(tokenizer):
    """`### Response: ` + `A`: the tokenizer writes `ĠA`, so the context ends before the space."""
    for form in ("bare", "spaced"):
        found = letter_ids(tokenizer, prompt("### Response: "), form)
        assert found.tokens == ("ĠA", "ĠB", "ĠC", "ĠD") and found.taken == 1
        assert list(found.context) == encode(tokenizer, "### Response:")


def test_a_letter_joined_to_the_colon():
    joined = make_tokenizer(tuple(f": {letter}" for letter in "ABCD"))
    found = letter_ids(joined, prompt("Answer:"))
    assert found.tokens == (":A", ":B", ":C", ":D") and found.taken == 1
    assert list(found.context) == encode(joined, "Answer")


def test_a_letter_that_only_some_join_has_no_common_context():
    with pytest.raises(LetterError, match=r"the letter B takes 2 tokens.*':' 'B'[\s\S]*form bare"):
        letter_ids(make_tokenizer((": A",)), prompt("Answer:"))


def test_no_single_token_for_a_spaced_letter():
    plain = make_tokenizer()
    with pytest.raises(LetterError, match=r"takes 2 tokens.*'Ġ' 'A'[\s\S]*style ceval[\s\S]*form='bare'"):
        letter_ids(plain, prompt("答案："), "spaced")


def test_unknown_letters():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "答案": 1, "A": 2}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    blind = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    with pytest.raises(LetterError, match=r"cannot tell the letters apart: A, <unk>"):
        letter_ids(blind, prompt("答案 "))


def test_bos_is_kept_and_eos_is_not():
    from tokenizers.processors import TemplateProcessing

    both = make_tokenizer()
    both.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", both.bos_token_id), ("</s>", both.eos_token_id)]
    )
    found = letter_ids(both, prompt("x:"))
    assert found.context[0] == both.bos_token_id and both.eos_token_id not in found.context
    assert found.tokens == ("A", "B", "C", "D")
    without = letter_ids(both, prompt("<s>x:", writes_bos=True))
    assert without.context == found.context


def test_bad_form_and_empty_prompt(tokenizer):
    with pytest.raises(LetterError, match="form is 'wide'"):
        letter_ids(tokenizer, prompt("答案："), "wide")
    with pytest.raises(LetterError, match="nothing stands before"):
        letter_ids(tokenizer, prompt(""))


@pytest.fixture(scope="module")
def llama(gold, tmp_path_factory):
    from chinese_llama_lab.vocabulary import sp_model
    from chinese_llama_lab.vocabulary.save import save_tokenizer, slow_tokenizer

    model = sp_model.load_model(gold / "llama_tokenizer.model")
    return slow_tokenizer(save_tokenizer(model, tmp_path_factory.mktemp("llama") / "tokenizer"))


def test_llama_behind_the_official_prompt(llama):
    """The official code scores `▁A` (319) while its shots hold a bare `A` (29909)."""
    asked = build_prompt("ceval-official", ASKED, SHOTS)
    bare, spaced = letter_ids(llama, asked), letter_ids(llama, asked, "spaced")
    assert bare.tokens == ("A", "B", "C", "D") and bare.ids == (29909, 29933, 29907, 29928)
    assert spaced.tokens == ("▁A", "▁B", "▁C", "▁D") and spaced.ids == (319, 350, 315, 360)
    assert bare.context == spaced.context == tuple(encode(llama, asked.text))
    assert bare.context[0] == llama.bos_token_id == 1


def test_llama_scores_the_ids_of_the_published_code(llama):
    """C-Eval's own code takes `encode("A")[0]`; Chinese-LLaMA-Alpaca's adds `encode("：A")[-1]`."""

    def ids(prefix):
        return [tuple(llama.encode(prefix + letter, add_special_tokens=False))[-1] for letter in "ABCD"]

    def scored(style):
        form = find_style(style).resolve("published")
        forms = ("bare", "spaced") if form == "both" else (form,)
        return [list(letter_ids(llama, build_prompt(style, ASKED, SHOTS), one).ids) for one in forms]

    assert scored("ceval-official") == [ids("")]
    assert scored("chinese-llama-alpaca") == [ids("："), ids("")]
    assert ids("") != ids("：")


def test_llama_behind_a_prompt_that_ends_in_a_space(llama):
    asked = build_prompt("chinese-llama-alpaca-v1", ASKED)
    found = letter_ids(llama, asked)
    assert found.tokens == ("▁A", "▁B", "▁C", "▁D") and found.taken == 1
    assert list(found.context) == encode(llama, asked.text)[:-1]
