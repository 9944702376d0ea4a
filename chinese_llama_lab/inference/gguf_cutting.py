"""How llama.cpp would cut text: the name of a byte-level pre-tokenizer, and a tokenizer rebuilt to compare.

llama.cpp's own converter finds the name by a hash of the token ids of one text. A vocabulary that was
extended gives other ids for the Chinese in that text, so its hash is unknown and the conversion stops. Here
the name is found by cutting texts in every known way: what was added to the vocabulary has no part in that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chinese_llama_lab.inference.gguf_config import GgufError
from chinese_llama_lab.tokenization import gguf_vocabulary

FOR_OTHERS = "use llama.cpp's own convert_hf_to_gguf.py for other tokenizers"
# Each line tells two ways of cutting text apart, or is text as it comes. None begins with a space: there the
# fast tokenizers that transformers builds differ from SentencePiece, which is what llama.cpp follows.
CHECKED = (
    "The people's choice: I'VE won 1998 prizes, they'll pay 12345.67 dollars; WE'RE done!",
    "中华人民共和国成立于一九四九年十月一日，今天是2024年10月1日。他说：“学习语言要多读、多写！”",
    "在apple工作1314天～ and　ｆｕｌｌ ｗｉｄｔｈ １２３ ½ Ⅷ ² ㈱",
    "def f(x):\n    return x  + 1\n\n\n\t# done   \n  3 spaces before  4\r\nend  ",
    "Привет, мир! ¿Qué tal? 日本語のテキスト 한국어 ไทย हिन्दी العربية",
    "👩‍👩‍👧 🇨🇳 ✅ 龘靐齉 𠮷 ------======= ''''`` \"\"\"...!?",
)


def name_of_cutting(state: dict[str, Any], path: Path) -> str:
    """llama.cpp's name of the way in which a byte-level tokenizer cuts text, such as `smollm`.

    Args:
        state: what its `tokenizer.json` holds. path: of that file.

    Raises: GgufError: it normalises text, or cuts it in a way that has no name in `gguf_vocabulary.PATTERNS`.
    """
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    kind = (state.get("normalizer") or {}).get("type")
    if kind not in (None, "NFC"):
        raise GgufError(
            f"it normalises text ({kind}), and llama.cpp does not", where=str(path), remedy=FOR_OTHERS
        )

    def cut(by: Any) -> list[list[str]]:
        return [[part for part, _ in by.pre_tokenize_str(text)] for text in CHECKED]

    wanted = cut(Tokenizer.from_file(str(path)).pre_tokenizer)
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for name, patterns in gguf_vocabulary.PATTERNS.items():
        steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        if cut(pre_tokenizers.Sequence([*steps, last])) != wanted:
            continue
        if bool(state["model"].get("ignore_merges")) != _ignores_merges(name):
            raise GgufError(
                f"it cuts text as {name!r}, but its ignore_merges is not what llama.cpp takes with that",
                where=str(path),
                remedy=FOR_OTHERS,
            )
        return name
    raise GgufError(
        "it cuts text in a way for which llama.cpp's name is not known here",
        where=str(path),
        remedy=f"known are {', '.join(gguf_vocabulary.PATTERNS)}; {FOR_OTHERS}",
    )


def _ignores_merges(name: str) -> bool:
    """Whether llama.cpp takes a word that is a token whole, without going through its merges."""
    return name == "llama-bpe"


def rebuild(written: dict[str, Any]) -> Callable[[str], list[int]]:
    """text -> ids, without BOS and EOS, by what will be written alone.

    Args:
        written: `model`, `tokens`, `token_type`, `pre`, and `merges` or `scores` and `add_space_prefix`.
    """
    if written["model"] == "gpt2":
        tokenizer = gguf_vocabulary.byte_level_tokenizer(written, where="vocabulary")
        tokenizer.model.ignore_merges = _ignores_merges(written["pre"])
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=gguf_vocabulary.sentencepiece_model(written))
    return lambda text: list(processor.encode(text))


def check(written: dict[str, Any], reference: Callable[[str], list[int]], folder: Path) -> None:
    """Rebuild a tokenizer from what will be written, and compare its ids with the folder's.

    Raises: GgufError: a text of `CHECKED` gives other ids, or two ids have one token.
    """
    seen: set[str] = set()
    for token in written["tokens"]:
        if token in seen:
            raise GgufError(
                f"two ids have the same token {token!r}, which llama.cpp does not load",
                where=str(folder),
                remedy="give each token its own text in the tokenizer's files",
            )
        seen.add(token)
    rebuilt = rebuild(written)
    for text in CHECKED:
        if rebuilt(text) != reference(text):
            raise GgufError(
                f"llama.cpp would cut this text into other tokens: {text[:40]!r}",
                where=str(folder),
                remedy=FOR_OTHERS,
            )
