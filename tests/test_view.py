"""The coloured token view: plain and deterministic as text, safe and marked as HTML."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from chinese_llama_lab.errors import TextError, TokenizerError
from chinese_llama_lab.tokenization.registry import open_tokenizer
from chinese_llama_lab.tokenization.view import Piece, pieces, view

SENTENCE = "你好，龘！"


class Shown(HTMLParser):
    """The texts of the boxes, and whether every tag is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_repr_is_plain_with_one_line_a_tokenizer():
    assert repr(view(SENTENCE, ["llama", "qwen", "bert-base-chinese"])) == "\n".join(
        [
            "LLaMA           8 | ␣|你|好|，|‹E9›|‹BE›|‹98›|！",
            "Qwen            5 | 你好|，|‹E9 BE›|‹98›|！",
            "BERT Chinese    5 | 你|好|，|[?]|！",
        ]
    )


def test_it_is_the_same_every_time():
    first, second = view(SENTENCE, ["llama"]), view(SENTENCE, [open_tokenizer("llama")])
    assert first == second and repr(first) == repr(second)
    assert first._repr_html_() == second._repr_html_()


def test_html_has_a_box_for_each_token_and_marks_bytes_by_more_than_colour():
    shown = view(SENTENCE, ["llama", "qwen"])
    html = shown._repr_html_()
    parsed = Shown(html)
    assert parsed.open == [] and parsed.tags == {"div", "span"}
    assert parsed.text == "LLaMA8␣你好，E9BE98！Qwen5你好，E9 BE98！"
    assert html.count("1px dashed") == html.count('title="bytes ') == 5
    assert html.count('title="token ') == 5 + 3


@pytest.mark.parametrize(
    "text", ["<script>alert(1)</script>", "a & b", "\"quoted\" 'single'", "</span></div>", "<img src=x>"]
)
@pytest.mark.parametrize("name", ["llama", "qwen", "smollm2"])
def test_html_in_a_text_is_escaped(text, name):
    html = view(text, [name])._repr_html_()
    parsed = Shown(html)
    assert parsed.open == [] and parsed.tags == {"div", "span"}
    assert text.replace(" ", "␣") in parsed.text


def test_html_in_a_tokenizers_name_is_escaped():
    from chinese_llama_lab.tokenization.view import TokenView

    html = TokenView("x", (("<b>name</b>", (Piece("x", False),)),))._repr_html_()
    assert Shown(html).tags == {"div", "span"} and "&lt;b&gt;" in html


def test_spaces_and_line_breaks_are_seen():
    shown = repr(view("a b\n\tc", ["qwen"]))
    assert "\n" not in shown and "␣b" in shown and "⏎" in shown and "⇥" in shown
    for text in ("a\rb", "a\r\nb", "a\u2028b", "a\u0085b", "a\x0bb", "a\x1b[31mb"):
        assert len(repr(view(text, ["qwen"])).splitlines()) == 1, ascii(text)
        assert "\x1b" not in repr(view(text, ["qwen"]))


def test_a_piece_that_cuts_a_character_is_bytes():
    assert pieces(open_tokenizer("qwen"), "龘") == (Piece("E9 BE", True), Piece("98", True))
    assert pieces(open_tokenizer("llama"), "") == ()


def test_what_cannot_be_shown():
    with pytest.raises(TextError, match=r"U\+D800"):
        view("a\ud800", ["llama"])
    with pytest.raises(TokenizerError, match="'lama'"):
        view("a", ["lama"])
    assert repr(view("a", [])) == "" and Shown(view("a", [])._repr_html_()).text == ""
    assert repr(view("", ["llama"])) == "LLaMA    0 | "
