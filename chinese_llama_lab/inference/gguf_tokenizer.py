"""A folder's tokenizer as a GGUF vocabulary: what llama.cpp needs to cut text into the same tokens.

Two families.
- `llama`: SentencePiece BPE. Pieces, scores, kinds (`gguf_pieces.py`).
- `gpt2`: byte-level BPE. Tokens, merges, kinds, and the *name* of the way in which text is cut first
  (`gguf_cutting.py`).

Nothing is taken on trust: a tokenizer is rebuilt from what will be written, and compared with the folder's.

llama.cpp reads `<s>` and the like in a text as text unless it is told to parse special tokens; transformers
always parses them.

transformers (5.23) reads a GGUF vocabulary back by rules of its own. It has none for `smollm` and cuts as
GPT-2 does, so that spaces before a digit come out otherwise ("a  1"); its LLaMA class puts no space before a
text that begins with one. `gguf_cutting.rebuild` goes by the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chinese_llama_lab.inference import gguf_pieces
from chinese_llama_lab.inference.gguf_config import GgufError
from chinese_llama_lab.inference.gguf_cutting import FOR_OTHERS, check, name_of_cutting
from chinese_llama_lab.inference.gguf_pieces import CONTROL, NORMAL, SPACE, UNUSED, USER_DEFINED
from chinese_llama_lab.vocabulary.save import tied_pieces

_IDS = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """What is written of a tokenizer.

    Attributes:
        model: `llama` (SentencePiece) or `gpt2` (byte-level BPE).
        pre: llama.cpp's name of the way in which text is cut first.
        tokens, types: by id; types as in `gguf_pieces`. scores: of SentencePiece, else empty.
        merges: of byte-level BPE, `left right`, else empty.
        ids: bos, eos, unk, pad -> id, where there is one.
        add_bos, add_eos: whether an encoded text gets them.
        space_prefix: whether SentencePiece puts a space in front.
        template: of chats, or name -> template, or None. notes: what the reader should know.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    ids: dict[str, int]
    add_bos: bool
    add_eos: bool
    space_prefix: bool
    template: str | dict[str, str] | None
    notes: list[str] = field(default_factory=list)

    def write(self, writer: Any) -> None:
        """Put the `tokenizer.*` keys into a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        if self.scores:
            writer.add_token_scores(self.scores)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, index in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(index)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.model == "llama":
            writer.add_add_space_prefix(self.space_prefix)
        if isinstance(self.template, dict):
            writer.add_chat_template([{"name": n, "template": t} for n, t in self.template.items()])
        elif self.template:
            writer.add_chat_template(self.template)

    def written(self) -> dict[str, Any]:
        """The keys that decide how text is cut, named as `gguf_vocabulary.read_vocabulary` names them."""
        return {
            "model": self.model,
            "pre": self.pre,
            "tokens": self.tokens,
            "token_type": self.types,
            "scores": self.scores,
            "merges": self.merges,
            "add_space_prefix": self.space_prefix,
        }


def read_tokenizer(folder: Path, rows: int, config: dict[str, Any]) -> Vocabulary:
    """The tokenizer of a model folder, padded to the rows of its embedding, and checked.

    Args:
        folder: with `tokenizer.json` or `tokenizer.model`. rows: of the embedding. config: `config.json`.

    Raises: GgufError: no tokenizer, more tokens than rows, another kind of tokenizer, or one whose text
        llama.cpp would cut otherwise.
    """
    from transformers import AutoTokenizer

    fast, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    if not fast.is_file() and not pieces.is_file():
        raise GgufError(
            "the folder has no tokenizer, and a GGUF file holds model and vocabulary",
            where=str(folder),
            remedy="copy tokenizer.json (or tokenizer.model) and tokenizer_config.json into it",
        )
    state = _state(fast)
    family = _family(state, fast) if state else "llama"
    proto = gguf_pieces.read_pieces(pieces) if family == "llama" and pieces.is_file() else None
    try:
        outer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        encoded = outer("a").input_ids
    except Exception as error:  # transformers and tokenizers raise bare exceptions for a damaged file
        raise _damaged(folder, error) from error
    notes: list[str] = []
    table = outer.get_vocab()
    tokens, types = _by_id(table, outer.added_tokens_decoder, rows, folder, notes)
    pre, merges, scores, prefix = "default", [], [], False
    if family == "gpt2":
        pre = name_of_cutting(state, fast)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    elif proto is not None:
        gguf_pieces.refuse_disagreement(table, proto, folder)
        scores = gguf_pieces.describe(types, proto)
        prefix = bool(proto.normalizer_spec.add_dummy_prefix)
        if state and (ties := sum(count for _, count, _ in tied_pieces(proto))):
            notes.append(
                f"{ties} pieces share their scores: llama.cpp takes the leftmost, as tokenizer.model does; "
                "tokenizer.json cannot, and cuts some texts otherwise"
            )
    else:
        scores = gguf_pieces.describe_merges(tokens, types, state["model"])
        prefix = _fast(fast).encode("a", add_special_tokens=False).tokens[0].startswith(SPACE)
    if family == "llama" and USER_DEFINED in types:
        notes.append("after an added token llama.cpp puts a space that SentencePiece does not")
    ids = _special_ids(outer, config, rows)
    found = Vocabulary(
        model=family,
        pre=pre,
        tokens=tokens,
        types=types,
        scores=scores,
        merges=merges,
        ids=ids,
        add_bos=len(encoded) > 1 and encoded[0] == ids.get("bos"),
        add_eos=len(encoded) > 1 and encoded[-1] == ids.get("eos"),
        space_prefix=prefix,
        template=outer.chat_template,
        notes=notes,
    )
    check(found.written(), gguf_pieces.encoder(proto) if proto is not None else _encoder(fast), folder)
    return found


def _state(fast: Path) -> dict[str, Any]:
    """What `tokenizer.json` holds; empty if there is none."""
    if not fast.is_file():
        return {}
    try:
        state = json.loads(fast.read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
            raise ValueError("it describes no tokenizer")
    except ValueError as error:
        raise _damaged(fast, error) from error
    return state


def _damaged(where: Path, error: Exception) -> GgufError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return GgufError(
        f"the tokenizer cannot be loaded: {reason}", where=str(where), remedy="copy its files again"
    )


def _fast(path: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encoder(path: Path) -> Callable[[str], list[int]]:
    tokenizer = _fast(path)
    return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


def _family(state: dict[str, Any], path: Path) -> str:
    model = state["model"]
    if model.get("type") == "BPE":
        if model.get("byte_fallback"):
            return "llama"
        if '"ByteLevel"' in json.dumps(state.get("pre_tokenizer")):
            return "gpt2"
    raise GgufError(
        f"its tokenizer ({model.get('type', 'untyped')}) is neither SentencePiece BPE with byte fallback "
        "nor byte-level BPE",
        where=str(path),
        remedy=FOR_OTHERS,
    )


def _by_id(
    table: dict[str, int], added: dict[int, Any], rows: int, folder: Path, notes: list[str]
) -> tuple[list[str], list[int]]:
    """Tokens and types by id; rows without a token get a name that no text can spell."""
    if (most := max(table.values()) + 1) > rows:
        raise GgufError(
            f"the tokenizer has {most} tokens, and the embedding {rows} rows",
            where=str(folder),
            remedy="`chinese-llama-lab extend` makes the missing rows; or copy the model's own tokenizer",
        )
    by_id = {index: token for token, index in table.items()}
    tokens, types = [], []
    for index in range(rows):
        if index in by_id:
            tokens.append(by_id[index])
            types.append(NORMAL if index not in added else CONTROL if added[index].special else USER_DEFINED)
        else:
            name = f"[PAD{index}]"
            while name in table:
                name = f"[{name}]"
            tokens.append(name)
            types.append(UNUSED)
    if spare := types.count(UNUSED):
        notes.append(f"{spare} rows without a token are named [PAD…] and marked unused")
    if any(token.lstrip or token.rstrip or token.single_word for token in added.values()):
        notes.append("llama.cpp ignores lstrip, rstrip and single_word of added tokens")
    return tokens, types


def _special_ids(outer: Any, config: dict[str, Any], rows: int) -> dict[str, int]:
    """What the tokenizer says, or else the config."""
    ids = {}
    for name in _IDS:
        index = getattr(outer, f"{name}_token_id", None)
        if index is None:
            index = config.get(f"{name}_token_id")
            index = index[0] if isinstance(index, Sequence) and index else index
        if isinstance(index, int) and 0 <= index < rows:
            ids[name] = index
    return ids
