"""Continued pre-training: packed text, every token a label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chinese_llama_lab.training.batches import BlockSequences, Sequences
from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.lora import new_token_ids
from chinese_llama_lab.training.packing import pack
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.reports import RunReport, Watcher


def pretrain(
    model: Any,
    tokenizer: Any,
    corpus: Iterable[Any],
    recipe: Recipe,
    out: Path,
    *,
    replay: Iterable[Any] = (),
    held_out: Mapping[str, Sequence[str]] | None = None,
    new_tokens: Sequence[int] | None = None,
    start_from: Path | None = None,
    resume: bool = False,
    watch: Watcher | None = None,
    progress: bool = True,
) -> RunReport:
    """Train an adapter on running text.

    Args:
        model: a transformers causal language model, resized to the tokenizer. It is changed: it carries the
            adapter afterwards.
        tokenizer: its tokenizer.
        corpus: documents: strings, or objects with a `text`; or the shards of `load_shards`, which hold their
            replay already.
        recipe: with `task = "pretrain"`; `load_recipe("smollm2-zh")`.
        out: folder of the run: `run.json`, `log.jsonl`, `checkpoints/`, and in the end `adapter/`.
        replay: English documents, for the recipe's `replay_share`.
        held_out: texts by language, such as `{"zh": […], "en": […]}`, scored before, during and after, in
            bits per character; the log's keys are `zh_bits`, `en_bits`.
        new_tokens: ids whose rows train under `embeddings = "new-rows"`; by default those that the recipe's
            base does not have.
        start_from: an adapter of the same model and shape, whose values are the start; the optimizer is new.
        resume: go on from the newest whole checkpoint in `out` (from the start if there is none). On a CPU
            the weights are bit for bit those of a run that never stopped.
        watch: called with every row of the log, to draw it.
        progress: show a bar.

    Returns: RunReport.

    Raises:
        TrainingError: an empty corpus or one shorter than a block; shards that were written with other
            options; a folder with another run in it; a recipe for a GPU where there is none; a loss or
            gradient that is no number (with step, documents and the last good checkpoint); a full disk;
            memory that ran out (with what to lower).
        TrainingStopped: Ctrl-C or SIGTERM; a checkpoint was saved.
        VocabularyError: model and tokenizer do not belong together.
    """
    from chinese_llama_lab.training.run import train

    check_task(recipe, "pretrain")
    sequences = _sequences(corpus, tokenizer, recipe, replay)
    return train(
        model,
        tokenizer,
        sequences,
        recipe,
        Path(out),
        new_tokens=new_token_ids(recipe, tokenizer) if new_tokens is None else new_tokens,
        held_out=held_out,
        start_from=start_from,
        resume=resume,
        watch=watch,
        progress=progress,
    )


def _sequences(corpus: Any, tokenizer: Any, recipe: Recipe, replay: Iterable[Any]) -> Sequences:
    """What the run trains on: blocks packed in memory, or those of shards."""
    if isinstance(corpus, Sequences):
        from chinese_llama_lab.training.shard_reading import ShardSequences

        if not isinstance(corpus, ShardSequences):
            raise TrainingError(
                f"the corpus is {type(corpus).__name__}",
                where="corpus",
                remedy="give documents, or the shards of load_shards",
            )
        if next(iter(replay), None) is not None:
            raise TrainingError(
                "replay texts were given beside shards, which hold their own",
                where="replay",
                remedy="leave them out; write_shards(…, replay=…, replay_share=…) mixes them in",
            )
        return corpus.for_run(recipe, tokenizer)
    packed = pack(
        corpus,
        tokenizer,
        recipe.block,
        seed=recipe.seed,
        separate=recipe.separate_documents,
        bos=recipe.bos,
        replay=replay,
        replay_share=recipe.replay_share,
        tokens=recipe.steps * recipe.batch * recipe.block or None,
    )
    return BlockSequences(packed, mark_replayed=recipe.replay_target == "base")


def check_task(recipe: Recipe, task: str) -> None:
    """Raise TrainingError unless the recipe is for `task`."""
    if recipe.task != task:
        raise TrainingError(
            f"recipe {recipe.name!r} is for {recipe.task}, not {task}",
            where="recipe",
            remedy=f"call {recipe.task} with it, or give a recipe for {task}",
        )
