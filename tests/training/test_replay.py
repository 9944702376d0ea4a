"""Replayed documents towards the model without its adapter."""

from __future__ import annotations

import signal
from itertools import pairwise

import pytest
import torch
from torch.nn import functional

from chinese_llama_lab.training.batches import BlockSequences, collate
from chinese_llama_lab.training.errors import TrainingError, TrainingStopped
from chinese_llama_lab.training.lora import add_lora, lean_rows
from chinese_llama_lab.training.loss import lean_loss
from chinese_llama_lab.training.packing import pack
from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import Recipe
from chinese_llama_lab.training.replay import BeforeAdapting, soft_positions
from chinese_llama_lab.training.shard_reading import load_shards
from chinese_llama_lab.training.shards import write_shards

from .conftest import CHINESE, ENGLISH, make_model, make_tokenizer
from .test_run import at_step, same

NEW = range(259, 264)
RECIPE = Recipe(
    name="test",
    task="pretrain",
    rank=4,
    dropout=0.0,
    block=48,
    micro_batch=2,
    batch=4,
    steps=6,
    learning_rate=1e-2,
    replay_share=0.4,
    replay_target="base",
    save_every=2,
    log_every=1,
)


def adapted(*, tied=False, embeddings="new-rows"):
    """A small model with an adapter that already does something, and the same model without."""
    model = add_lora(make_model(264, tied=tied), RECIPE.replace(embeddings=embeddings), NEW)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    lean_rows(model)
    return model, make_model(264, tied=tied)


def batch_of(**options):
    packed = pack(CHINESE * 4, make_tokenizer(5), 48, replay=ENGLISH * 20, replay_share=0.4, **options)
    sequences = BlockSequences(packed, mark_replayed=True)
    batch = collate(258, [(n, sequences.item(n)) for n in range(len(packed))])
    batch.pop("sequence")
    return packed, batch


def by_hand(model, teacher, batch):
    """The loss one document at a time, each on its own; mean over labels."""
    ids, positions, replayed = batch["input_ids"], batch["position_ids"], batch["replayed"]
    total, count = torch.zeros(()), 0
    for row in range(len(ids)):
        begins = [*(positions[row] == 0).nonzero()[:, 0].tolist(), ids.shape[1]]
        for begin, end in pairwise(begins):
            one = ids[row : row + 1, begin:end]
            logits = model(one, use_cache=False).logits[0]
            count += end - begin - (end == ids.shape[1])
            labels = one[0, 1:]
            if replayed[row, begin]:
                with torch.no_grad():
                    said = teacher(one, use_cache=False).logits[0, :-1]
                    said[:, 259:] = -torch.inf
                total = total + functional.cross_entropy(logits[:-1], said.softmax(-1), reduction="sum")
            else:
                total = total + functional.cross_entropy(logits[:-1], labels, reduction="sum")
            if end < ids.shape[1]:  # what follows the document is a token, as ever
                total = total + functional.cross_entropy(logits[-1:], ids[row, end : end + 1])
    return total / count


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("embeddings", ["frozen", "new-rows", "published"])
def test_loss_and_gradients_are_those_of_each_document_by_hand(tied, embeddings):
    model, teacher = adapted(tied=tied, embeddings=embeddings)
    _, batch = batch_of()
    assert batch["replayed"].any() and not batch["replayed"].all()
    expected = by_hand(model, teacher, batch)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with lean_loss(model.get_base_model(), BeforeAdapting(model, NEW)):
        got = model(**batch).loss
        got.backward()
    assert float(got.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, p in model.named_parameters():
        assert (p.grad is not None) == (name in gradients), name
        if p.grad is not None:
            error = float((p.grad - gradients[name]).abs().max())
            assert error <= 1e-4 * float(gradients[name].abs().max()), name


def test_an_adapter_that_does_nothing_has_no_gradient_from_replayed_text():
    model = add_lora(make_model(264), RECIPE.replace(embeddings="frozen"), ())
    _, batch = batch_of()
    batch["labels"][:, 1:][~soft_positions(batch["replayed"], batch["position_ids"])] = -100
    with lean_loss(model.get_base_model(), BeforeAdapting(model)):
        model(**batch).loss.backward()
    towards_base = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    with lean_loss(model.get_base_model()):
        model(**batch).loss.backward()
    towards_text = max(float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None)
    assert towards_base < 1e-6 < 1e-3 < towards_text


def test_the_teacher_is_the_model_without_its_adapter_and_leaves_it_as_it_was():
    model, plain = adapted()
    teacher = BeforeAdapting(model, NEW)
    _, batch = batch_of()
    ids, positions, replayed = batch["input_ids"], batch["position_ids"], batch["replayed"]
    before = model(ids, position_ids=positions, use_cache=False).logits
    soft = soft_positions(replayed, positions)
    said = teacher.chances(teacher.hidden(ids, positions, replayed, soft))
    expected = plain(ids, position_ids=positions, use_cache=False).logits[:, :-1][soft]
    expected[:, 259:] = -torch.inf
    assert torch.allclose(said, expected.softmax(-1), atol=1e-6)
    assert (said[:, 259:] == 0).all()
    assert torch.equal(model(ids, position_ids=positions, use_cache=False).logits, before)
    assert any(p.requires_grad for p in model.parameters())


def test_which_tokens_are_replayed(tokenizer, tmp_path):
    packed, batch = batch_of(bos=True)
    for block in range(len(packed)):
        expected = []
        for at in range(block * 48, block * 48 + 48):
            place = max(k for k, start in enumerate(packed.starts) if start <= at)
            expected.append(packed.documents[place] < 0)
        assert packed.block_replayed(block) == expected == batch["replayed"][block].tolist()
    # In shards as in memory; there English is what has Latin letters.
    write_shards(
        CHINESE * 9, tokenizer, tmp_path, block=48, shard_tokens=480, replay=ENGLISH * 40, replay_share=0.4
    )
    shards = load_shards(tmp_path).for_run(RECIPE, tokenizer)
    seen = set()
    for n in range(len(shards)):
        item = shards.item(n)
        for token, english in zip(item.input_ids, item.replayed, strict=True):
            piece = tokenizer.convert_ids_to_tokens(token)
            if piece.isascii() and piece.isalpha():
                assert english, (n, piece)
            elif len(piece) == 1 and not piece.isascii() and piece != "Ġ":  # a byte of a Han character
                assert not english, (n, piece)
            seen.add(english)
    assert seen == {True, False}


def run(out, recipe=RECIPE, **options):
    return pretrain(
        make_model(264),
        make_tokenizer(5),
        CHINESE * 10,
        recipe,
        out,
        replay=ENGLISH * 30,
        new_tokens=NEW,
        progress=False,
        **options,
    )


def test_a_run_stopped_and_resumed_is_the_run(tmp_path):
    whole = run(tmp_path / "whole")
    kill = at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(TrainingStopped):
        run(tmp_path / "cut", watch=kill)
    assert same(whole, run(tmp_path / "cut", resume=True))
    assert not same(whole, run(tmp_path / "text", RECIPE.replace(replay_target="text")))


def test_english_stays_nearer_to_the_base(tmp_path):
    """The divergence from the base on English, after a run towards text and one towards the base."""
    base, ids = make_model(264), torch.tensor([make_tokenizer(5).encode(ENGLISH[0])])
    with torch.no_grad():
        before = base(ids).logits[0].log_softmax(-1)[:, :259]
    far = {}
    for target in ("text", "base"):
        report = run(tmp_path / target, RECIPE.replace(replay_target=target, steps=30, save_every=0))
        with torch.no_grad():
            after = report.model(input_ids=ids).logits[0].log_softmax(-1)[:, :259]
        far[target] = float((before.exp() * (before - after)).sum(-1).mean())
    assert far["base"] < far["text"] / 2


def test_a_sharded_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match=r"sharded \(FSDP\)(.|\n)*replay_target = text"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_documents_that_are_not_kept_apart_are_refused():
    with pytest.raises(TrainingError, match=r"replay_target is base(.|\n)*separate_documents = true"):
        RECIPE.replace(separate_documents=False)
    with pytest.raises(TrainingError, match=r"replay_target is 'bas'(.|\n)*did you mean base"):
        RECIPE.replace(replay_target="bas")
