"""From a batch of questions to rows: by the logits of the letters, or by what the model writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

from chinese_llama_lab.ceval.asked import Asked
from chinese_llama_lab.ceval.attention import Prefix, packed_questions
from chinese_llama_lab.ceval.batching import Group
from chinese_llama_lab.ceval.errors import CevalError
from chinese_llama_lab.ceval.extract import extract_answer
from chinese_llama_lab.ceval.generation import keep_prefix, write_answers
from chinese_llama_lab.ceval.prefix import read_last, read_prefix
from chinese_llama_lab.ceval.questions import LETTERS
from chinese_llama_lab.ceval.runs import Row

_DIGITS = 6


class Reader:
    """A model that answers; within `with` it is in eval mode, and its attention is the packed one.

    Args:
        model, tokenizer, method, max_new_tokens: as in `score`.
        share: the model can read many questions behind one prefix.
        sets: the letter ids that occur, which rows refer to by place.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        method: str,
        share: bool,
        max_new_tokens: int,
        sets: Sequence[Any],
    ) -> None:
        self._model, self._tokenizer, self._method, self._share = model, tokenizer, method, share
        self._new, self._sets = max_new_tokens, sets
        self._stack = ExitStack()

    def __enter__(self) -> Reader:
        self._stack.callback(self._model.train, self._model.training)
        self._model.eval()
        if self._share and self._method == "logits":
            self._stack.enter_context(packed_questions(self._model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def prefix(self, group: Group) -> Prefix | None:
        """What a group's questions share."""
        if not group.prefix:
            return None
        with _enough_memory(group.batches[0]):
            if self._method == "generation":
                return keep_prefix(self._model, group.prefix)
            return read_prefix(self._model, group.prefix, group.room)

    def read(self, batch: Sequence[Asked], prefix: Prefix | None) -> list[Row]:
        """The rows of a batch.

        Raises: CevalError: logits that are not finite, or no memory.
        """
        with _enough_memory(batch):
            return (
                self._words(batch, prefix) if self._method == "generation" else self._letters(batch, prefix)
            )

    def _letters(self, batch: Sequence[Asked], prefix: Prefix | None) -> list[Row]:
        before = prefix.length if prefix else 0
        tails = [context[before:] for one in batch for context in one.contexts]
        read = read_last if self._share else _alone
        logits = read(self._model, tails, prefix)
        rows, taken = [], 0
        for one in batch:
            behind = dict(zip(one.contexts, logits[taken:], strict=False))
            taken += len(one.contexts)
            totals = [0.0] * len(LETTERS)
            for ids in one.letters:
                picked = behind[ids.context][list(ids.ids)].tolist()
                totals = [a + b for a, b in zip(totals, picked, strict=True)]
            best = max(totals)
            if not all(abs(value) < float("inf") for value in totals):
                raise CevalError(
                    f"the model's logits are not finite: {totals}",
                    where=_where(one),
                    remedy="load the model in float32 or bfloat16; check that its weights are whole",
                )
            used = tuple((ids.form, ids.ids, ids.tokens, ids.taken) for ids in one.letters)
            rows.append(
                _row(one, LETTERS[totals.index(best)])
                | {
                    "logits": {a: round(b, _DIGITS) for a, b in zip(LETTERS, totals, strict=True)},
                    "tied": totals.count(best) > 1,
                    "letters": self._sets.index(used),
                }
            )
        return rows

    def _words(self, batch: Sequence[Asked], prefix: Prefix | None) -> list[Row]:
        contexts = [one.contexts[0] for one in batch]
        rows = []
        replies = write_answers(self._model, self._tokenizer, contexts, prefix, self._new)
        for one, reply in zip(batch, replies, strict=True):
            found = extract_answer(reply, one.question.options)
            rows.append(_row(one, found.letter) | {"text": reply, "rule": found.rule})
        return rows


@contextmanager
def _enough_memory(batch: Sequence[Asked]) -> Iterator[None]:
    import torch

    try:
        yield
    except RuntimeError as error:
        # On a CPU torch has words for it, and no class.
        said = any(words in str(error) for words in ("not enough memory", "can't allocate memory"))
        if not said and not isinstance(error, torch.OutOfMemoryError):
            raise
        raise CevalError(
            f"there is no memory for {len(batch)} questions at a time",
            where=_where(batch[0]),
            remedy="give a smaller memory_gib or batch (--memory-gib, --batch); what is written stays, and"
            " resume=True (--resume) goes on",
        ) from error


def _alone(model: Any, contexts: Sequence[Sequence[int]], _: Prefix | None) -> Any:
    """For models whose attention is of another kind: each context from its beginning."""
    import torch

    with torch.no_grad():
        rows = [
            model(input_ids=torch.tensor([list(ids)], device=model.device), logits_to_keep=1).logits[0, -1]
            for ids in contexts
        ]
    return torch.stack(rows).float()


def _row(one: Asked, predicted: str | None) -> Row:
    question = one.question
    return {
        "subject": question.subject,
        "split": question.split,
        "number": one.number,
        "id": question.id,
        "answer": question.answer,
        "predicted": predicted,
        "shots": one.prompt.shots,
        "tokens": one.longest,
        "prompt_sha256": one.prompt_sha256,
    }


def _where(one: Asked) -> str:
    return one.question.where or f"{one.question.subject}, id {one.question.id}"
