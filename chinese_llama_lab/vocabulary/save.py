"""Write a SentencePiece BPE model as a folder that `AutoTokenizer.from_pretrained` loads, with the same ids.

SentencePiece ranks *pieces* (score, leftmost on a tie); a fast tokenizer ranks *pairs*. The two agree
exactly if
1. each piece is given its one canonical merge (`bpe.py`), not every way to split it in two;
2. pairs are ranked by the score of what they make, and no two scores that compete are equal;
3. every character of a piece is a piece itself, since a fast tokenizer turns others into bytes before
   merging;
4. spaces are treated alike: always one `▁` in front (the `Prepend` normaliser), never folded. transformers'
   own converter uses `Metaspace`, which adds none before a line that starts with a space: the 148 lines of
   the issue.

What stays different, by design of transformers: the strings of special tokens (`<s>`, `</s>`, `<unk>`,
`<pad>`) written in a text are read as these tokens; SentencePiece reads them as text.
`split_special_tokens=True` turns that off.

transformers 5 has no slow LLaMA tokenizer any more: `use_fast=False` is ignored by AutoTokenizer, and
`LlamaTokenizer` is a fast class that builds its own `Metaspace`. What is left is `SentencePieceBackend`
(`slow_tokenizer` below), which runs SentencePiece itself.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from chinese_llama_lab.paths import atomic_folder
from chinese_llama_lab.vocabulary import sp_model
from chinese_llama_lab.vocabulary.bpe import merge_steps
from chinese_llama_lab.vocabulary.errors import VocabularyError


def canonical_merges(model: Any) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE model, one for each reachable piece of two or more characters.

    Among equal scores longer runs of one character come first, which is exact; other ties keep the order of
    their ids, which is a guess (`tied_pieces` counts those).
    """
    proto = sp_model.as_model(model, expect="bpe")
    mergeable = (sp_model.NORMAL, sp_model.UNUSED)
    scores = {p.piece: p.score for p in proto.pieces if p.type in mergeable}
    bare = sp_model.bare_processor(proto)
    long = [(i, p) for i, p in enumerate(proto.pieces) if p.type == sp_model.NORMAL and len(p.piece) > 1]
    alone = bare.encode([p.piece for _, p in long], out_type=int)
    ranked: list[tuple[float, int, int, tuple[str, str]]] = []
    for (index, piece), ids in zip(long, alone, strict=True):
        if ids == [index]:
            pair = _last_merge(piece.piece, scores)
            if missing := [c for c in pair if c not in scores]:
                raise VocabularyError(
                    f"The piece {piece.piece!r} is made of {missing[0]!r}, which has no piece of its own:"
                    " a fast tokenizer turns it into bytes before merging and could never make the piece.",
                    where=f"piece {index}",
                    remedy="Add the character as a piece (policy='repaired' does) or drop the longer one.",
                )
            else:
                run = len(set(piece.piece)) == 1
                ranked.append((-piece.score, -len(piece.piece) if run else 0, index, pair))
    ranked.sort()
    return [pair for *_, pair in ranked]


def _last_merge(piece: str, scores: dict[str, float]) -> tuple[str, str]:
    """The pair that makes a reachable piece."""
    splits = [
        (piece[:k], piece[k:])
        for k in range(1, len(piece))
        if (k == 1 or piece[:k] in scores) and (k == len(piece) - 1 or piece[k:] in scores)
    ]
    if len(splits) == 1:
        return splits[0]
    _, steps = merge_steps(list(piece), scores)
    return steps[-1].left, steps[-1].right


def tied_pieces(model: Any) -> list[tuple[float, int, str]]:
    """Groups of pieces with one score: (score, how many, an example). If empty, conversion is exact."""
    proto = sp_model.as_model(model)
    groups: dict[float, list[str]] = defaultdict(list)
    for p in proto.pieces:
        if p.type == sp_model.NORMAL and len(p.piece) > 1:
            groups[p.score].append(p.piece)
    return [
        (score, len(texts), texts[0])
        for score, texts in groups.items()
        if len(texts) > 1 and len({c for t in texts for c in t}) > 1
    ]


def to_fast(model: Any) -> Tokenizer:
    """The `tokenizers.Tokenizer` that gives the ids of a SentencePiece BPE model.

    Raises: VocabularyError for a unigram model, or one whose spaces follow rules that are not rebuilt here
        (`treat_whitespace_as_suffix`, or user-defined pieces together with a dummy prefix and folded spaces).
    """
    proto = sp_model.as_model(model, expect="bpe")
    spec = proto.normalizer_spec
    if proto.trainer_spec.treat_whitespace_as_suffix:
        raise VocabularyError(
            "The model writes spaces as suffixes.", remedy="Train without treat_whitespace_as_suffix."
        )
    kinds = sp_model.kinds(proto)
    unknown = next(p.piece for p in proto.pieces if p.type == sp_model.UNKNOWN)
    tokenizer = Tokenizer(
        BPE(
            vocab={p.piece: i for i, p in enumerate(proto.pieces)},
            merges=canonical_merges(proto),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=kinds["byte"] == 256,
        )
    )
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    own = [p.piece for p in proto.pieces if p.type == sp_model.USER_DEFINED]
    if spec.add_dummy_prefix and own:
        # User-defined pieces are found in the normalised text, and each is normalised itself first: by this
        # rule it stays bare. (A line of one such piece alone gets no `▁`; SentencePiece adds it.)
        bare = "|".join(re.escape(piece) for piece in own)
        steps.append(normalizers.Replace(Regex(rf"\A(?!(?:{bare})\z)(?=.|\n)"), sp_model.SPACE))
    elif spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(sp_model.SPACE))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", sp_model.SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    strip = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(sp_model.SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    special = [p.piece for p in proto.pieces if p.type in (sp_model.CONTROL, sp_model.UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in special])
    tokenizer.add_tokens([AddedToken(piece, special=False, normalized=True) for piece in own])
    return tokenizer


def save_tokenizer(model: Any, folder: str | Path, *, add_bos: bool = True, max_length: int = 2048) -> Path:
    """Write `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json` into a new folder.

    Args:
        model: a SentencePiece BPE model (path, bytes, ModelProto, processor) or a MergeResult.
        folder: must not exist, or be empty.
        add_bos: put the BOS token in front when special tokens are asked for, as LLaMA does.
        max_length: `model_max_length` of the config.

    Returns: the folder. Raises: VocabularyError if it exists, or if the model cannot be converted.
    """
    proto = sp_model.as_model(getattr(model, "model", model), expect="bpe")
    folder = Path(folder)
    refuse_existing(folder)
    tokenizer = to_fast(proto)
    pieces = {p.piece: i for i, p in enumerate(proto.pieces)}
    spec = proto.trainer_spec
    config: dict[str, Any] = {
        # Not "LlamaTokenizer": that class would replace the normaliser by its own Metaspace (see above).
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "add_bos_token": add_bos,
        "unk_token": next(p.piece for p in proto.pieces if p.type == sp_model.UNKNOWN),
    }
    for name, piece in (
        ("bos_token", spec.bos_piece),
        ("eos_token", spec.eos_piece),
        ("pad_token", spec.pad_piece),
    ):
        if piece in pieces and proto.pieces[pieces[piece]].type == sp_model.CONTROL:
            config[name] = piece
    if add_bos and "bos_token" in config:
        bos = config["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, pieces[bos])]
        )
    with atomic_folder(folder) as temporary:
        (temporary / "tokenizer.model").write_bytes(proto.SerializeToString())
        tokenizer.save(str(temporary / "tokenizer.json"))
        (temporary / "tokenizer_config.json").write_text(
            json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
    return folder


def refuse_existing(folder: Path) -> None:
    """Raise `VocabularyError` if `folder` holds anything: nothing is overwritten in silence."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise VocabularyError(
            "The output folder exists and is not empty.",
            where=str(folder),
            remedy="Choose another folder, or remove this one first.",
        )


def slow_tokenizer(folder: str | Path) -> Any:
    """transformers' SentencePiece-backed ("slow") tokenizer for a folder that `save_tokenizer` wrote.

    Raises: VocabularyError if a file is missing.
    """
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    class WithBos(SentencePieceBackend):  # type: ignore[misc]
        """As the fast tokenizer: BOS in front of each text when special tokens are asked for."""

        def build_inputs_with_special_tokens(
            self, token_ids_0: list[int], token_ids_1: list[int] | None = None
        ) -> list[int]:
            second = [] if token_ids_1 is None else [self.bos_token_id, *token_ids_1]
            return [self.bos_token_id, *token_ids_0, *second]

    folder = Path(folder)
    for filename in ("tokenizer.model", "tokenizer_config.json"):
        if not (folder / filename).is_file():
            raise VocabularyError(
                f"The folder has no {filename}.",
                where=str(folder),
                remedy="Give a folder that `save_tokenizer` wrote; transformers' own saving drops the model.",
            )
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)}
    # legacy=True: SentencePiece puts the leading space itself. legacy=False cuts it off and changes ids.
    kind = WithBos if config.get("add_bos_token") and "bos_token" in names else SentencePieceBackend
    return kind(vocab_file=str(folder / "tokenizer.model"), legacy=True, **names)
