"""Runs of a few steps on a model of two layers: what is promised about stopping, resuming and failing."""

from __future__ import annotations

import json
import signal
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from chinese_llama_lab.errors import LabError
from chinese_llama_lab.training import checkpoints as cp
from chinese_llama_lab.training import footprint
from chinese_llama_lab.training.errors import TrainingError, TrainingStopped
from chinese_llama_lab.training.finetune import finetune
from chinese_llama_lab.training.instructions import encode_instructions
from chinese_llama_lab.training.metrics import bits_per_character
from chinese_llama_lab.training.packing import pack
from chinese_llama_lab.training.pretrain import pretrain
from chinese_llama_lab.training.recipe import Recipe, load_recipe

from .conftest import CHINESE, ENGLISH, make_model, make_tokenizer

RECIPE = Recipe(
    name="test",
    task="pretrain",
    rank=4,
    alpha=8,
    dropout=0.1,
    block=32,
    micro_batch=2,
    batch=4,
    steps=8,
    learning_rate=1e-2,
    log_every=2,
    save_every=2,
    keep=3,
)
NEW = range(259, 264)
CORPUS = CHINESE * 10


def run(out, recipe=RECIPE, *, corpus=CORPUS, tied=False, **options):
    options.setdefault("new_tokens", NEW)
    return pretrain(
        make_model(264, tied=tied), make_tokenizer(5), corpus, recipe, out, progress=False, **options
    )


def weights(report):
    return load_file(report.adapter / "adapter_model.safetensors")


def same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    return all(torch.equal(one[key], other[key]) for key in one)


def at_step(step, action):
    def watch(row):
        if row["step"] == step and "loss" in row:
            action()

    return watch


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that never stopped."""
    return run(tmp_path_factory.mktemp("straight") / "run", held_out={"zh": CHINESE, "en": ENGLISH})


def test_what_is_reported(straight):
    assert straight.steps == 8 and straight.tokens == 8 * 4 * 32
    assert [row["step"] for row in straight.rows if "loss" in row] == [2, 4, 6, 8]
    row = straight.rows[1]
    assert {
        "loss",
        "tokens_per_second",
        "characters_per_second",
        "peak_memory_gib",
        "learning_rate",
    } <= row.keys()
    (first, before), (last, after) = straight.evaluations("zh_bits")
    assert (first, last) == (0, 8) and after < before and len(straight.evaluations("en_bits")) == 2
    assert straight.trained.by_kind["new rows"] == 2 * 5 * 32 and "new rows" in repr(straight.trained)
    lines = (straight.out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == straight.rows
    assert len({tuple(row) for row in straight.table()}) == 1
    assert "tail of" in straight.data and "bits per character" in repr(straight)
    assert not list(straight.out.rglob("training_args.bin"))


@pytest.mark.parametrize(("bos", "start"), [(False, "\n"), (True, None)])
def test_held_out_text_stands_behind_what_documents_stood_behind(straight, tmp_path, bos, start):
    short = RECIPE.replace(bos=True, steps=2)
    report = run(tmp_path / "run", short, held_out={"zh": CHINESE}) if bos else straight
    (_, logged) = report.evaluations("zh_bits")[-1]
    model = report.model.get_base_model()
    scored, other = (
        bits_per_character(model, make_tokenizer(5), CHINESE, window=256, start=before).bits_per_character
        for before in (start, "x")
    )
    assert scored == pytest.approx(logged, abs=1e-4)
    assert other != pytest.approx(logged, abs=1e-4)


def test_the_adapter_can_be_loaded(straight):
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(make_model(264), straight.adapter).eval()
    ids = torch.arange(255, 264)[None]
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, straight.model.eval()(ids).logits, atol=1e-6)


def test_old_checkpoints_are_removed(straight):
    assert [cp.checkpoint_step(path) for path in cp.checkpoints(straight.out)] == [4, 6, 8]


@pytest.mark.parametrize(
    ("changes", "tied"),
    [
        ({}, False),
        ({}, True),
        ({"dora": True, "rslora": True, "lora_plus_ratio": 4.0}, False),
        ({"embeddings": "published"}, False),
        ({"embeddings": "published"}, True),
        ({"gradient_checkpointing": True}, True),
        ({"precision": "bf16"}, True),
        ({"rank": 0, "dropout": 0.0}, False),
    ],
    ids=str,
)
def test_resumed_is_bit_identical(tmp_path, changes, tied):
    recipe = RECIPE.replace(**changes)
    whole = run(tmp_path / "whole", recipe, tied=tied)
    with pytest.raises(TrainingStopped, match=r"stopped after step 5 of 8(.|\n)*resume=True"):
        run(tmp_path / "cut", recipe, tied=tied, watch=at_step(4, lambda: signal.raise_signal(signal.SIGINT)))
    again = run(tmp_path / "cut", recipe, tied=tied, resume=True)
    assert again.resumed_from == 5
    assert same(whole, again)
    assert whole.losses[-1] == again.losses[-1] and whole.tokens == again.tokens


def test_a_run_that_died_goes_on_from_its_last_checkpoint(tmp_path, straight):
    class Died(Exception):
        pass

    def die():
        raise Died

    # The row of step 4 is logged before its checkpoint is written.
    with pytest.raises(Died):
        run(tmp_path / "r", watch=at_step(4, die), held_out={"zh": CHINESE, "en": ENGLISH})
    again = run(tmp_path / "r", resume=True, held_out={"zh": CHINESE, "en": ENGLISH})
    assert again.resumed_from == 2 and same(again, straight)
    assert [row["step"] for row in again.rows] == [row["step"] for row in straight.rows]


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_taken(tmp_path, straight):
    with pytest.raises(TrainingStopped):
        run(tmp_path / "r", watch=at_step(6, lambda: signal.raise_signal(signal.SIGTERM)))
    newest = cp.checkpoints(tmp_path / "r")[-1]
    piece = newest / "optimizer.pt"
    piece.write_bytes(piece.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged: optimizer.pt has"):
        again = run(tmp_path / "r", resume=True)
    assert again.refused and again.resumed_from < cp.checkpoint_step(newest) and same(again, straight)


def test_resume_without_a_checkpoint_starts(tmp_path, straight):
    assert same(run(tmp_path / "r", resume=True), straight)


def test_the_second_ctrl_c_is_not_needed_at_the_end(tmp_path):
    report = run(tmp_path / "r", watch=at_step(8, lambda: signal.raise_signal(signal.SIGINT)))
    assert report.steps == 8


def test_a_finished_run_resumed_is_the_same(tmp_path):
    recipe = RECIPE.replace(steps=2)
    one = run(tmp_path / "r", recipe)
    before = weights(one)
    again = run(tmp_path / "r", recipe, resume=True)
    assert all(torch.equal(before[key], value) for key, value in weights(again).items())


def poisoned():
    """A model whose embedding of the byte `Q` is no number."""
    model = make_model(264)
    tokenizer = make_tokenizer(5)
    (q,) = tokenizer.encode("Q")
    with torch.no_grad():
        model.get_input_embeddings().weight[q] = float("nan")
    return model, tokenizer


def test_no_number_stops_with_step_documents_and_checkpoint(tmp_path):
    model, tokenizer = poisoned()
    corpus = [*CORPUS, "Q"]
    with pytest.raises(TrainingError) as caught:
        pretrain(
            model, tokenizer, corpus, RECIPE.replace(save_every=1, steps=30), tmp_path / "r", progress=False
        )
    text = str(caught.value)
    assert "the loss is nan at step" in text and "document 40" in text
    step = int(text.split("at step ")[1].split(";")[0])
    good = f"step-{step - 1:06d}" if step > 1 else "(none yet)"
    assert good in text
    assert all(cp.check_whole(path) is None for path in cp.checkpoints(tmp_path / "r"))


def test_a_gradient_that_is_no_number_stops_too(tmp_path):
    model = make_model(264)

    class Spoil(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    model.model.layers[1].register_forward_hook(
        lambda module, inputs, output: Spoil.apply(output) if torch.is_tensor(output) else output
    )
    with pytest.raises(
        TrainingError, match=r"gradient's norm is (nan|inf) at step 1; its batch held document"
    ):
        pretrain(model, make_tokenizer(5), CORPUS, RECIPE, tmp_path / "r", progress=False)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, straight, error):
    original, calls = torch.save, []

    def save(*arguments, **options):
        calls.append(1)
        if len(calls) > 5:  # three files a checkpoint
            raise error
        return original(*arguments, **options)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(TrainingError, match=r"step 4 could not be written(.|\n)*room(.|\n)*step-000002"):
        run(tmp_path / "r")
    assert [path.name for path in cp.checkpoints_dir(tmp_path / "r").iterdir()] == ["step-000002"]
    monkeypatch.setattr(torch, "save", original)
    assert same(run(tmp_path / "r", resume=True), straight)


def test_a_folder_with_another_run_is_refused(tmp_path):
    run(tmp_path / "r", RECIPE.replace(steps=1))
    with pytest.raises(TrainingError, match=r"holds a run already(.|\n)*resume=True"):
        run(tmp_path / "r", RECIPE.replace(steps=1))
    with pytest.raises(TrainingError, match=r"another run: it differs in recipe \(rank, steps\)"):
        run(tmp_path / "r", RECIPE.replace(rank=2), resume=True)
    with pytest.raises(TrainingError, match=r"differs in data"):
        run(tmp_path / "r", RECIPE.replace(steps=1), corpus=CORPUS[1:], resume=True)
    with pytest.raises(TrainingError, match=r"differs in model"):
        model = make_model(264, seed=3)
        pretrain(
            model,
            make_tokenizer(5),
            CORPUS,
            RECIPE.replace(steps=1),
            tmp_path / "r",
            new_tokens=NEW,
            resume=True,
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(TrainingError, match="not empty, and holds no run"):
        run(tmp_path / "full")


def test_a_recipe_for_a_gpu_says_what_would_have_to_change(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError) as caught:
        run(tmp_path / "r", load_recipe("chinese-llama-plus-7b"))
    text = str(caught.value)
    assert 'device = "any"' in text and 'precision = "bf16"' in text and "12.8 GiB" in text
    with pytest.raises(TrainingError, match="int8"):
        footprint.check_machine(load_recipe("alpaca-lora-7b"))
    footprint.check_machine(load_recipe("smollm2-zh"))
    assert not (tmp_path / "r").exists()


def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch):
    def fail(self, *arguments, **options):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"
        )

    from transformers import Trainer

    monkeypatch.setattr(Trainer, "compute_loss", fail)
    with pytest.raises(TrainingError) as caught:
        run(tmp_path / "r")
    text = str(caught.value)
    assert "memory ran out; this step needs about" in text
    assert "micro_batch (now 2" in text and "block (now 32)" in text and "gradient_checkpointing" in text


def test_the_same_loss_however_the_batch_is_cut(tmp_path):
    recipe = RECIPE.replace(dropout=0.0)
    one = run(tmp_path / "one", recipe)
    other = run(tmp_path / "other", recipe.replace(micro_batch=4))
    assert one.losses == pytest.approx(other.losses, abs=1e-5)


def test_bad_input(tmp_path):
    for corpus, message in (([], "holds no text"), (["短"], "shorter than one block: 4 tokens")):
        with pytest.raises(TrainingError, match=message):
            run(tmp_path / "r", corpus=corpus)
    with pytest.raises(TrainingError, match="block is 512, and the model reads 256"):
        run(tmp_path / "r", RECIPE.replace(block=512), corpus=CORPUS * 9)
    with pytest.raises(LabError, match="do not belong together"):
        pretrain(make_model(259), make_tokenizer(5), CORPUS, RECIPE, tmp_path / "r")
    with pytest.raises(TrainingError, match="is for pretrain, not finetune"):
        finetune(make_model(264), make_tokenizer(5), [], RECIPE, tmp_path / "r")
    assert not (tmp_path / "r").exists()


ROWS = [{"instruction": f"写{n}个字。", "input": "", "output": "学习" * (n % 5 + 1)} for n in range(24)]


@pytest.mark.parametrize("batching", ["length", "packing"])
def test_finetune(tmp_path, batching):
    recipe = RECIPE.replace(task="finetune", template="chat", batching=batching, block=128, steps=0, epochs=2)
    rows = [*ROWS, {"instruction": "空", "output": ""}, {"instruction": "长" * 60, "output": "短"}]

    def tune(out, **options):
        return finetune(make_model(264), make_tokenizer(5), rows, recipe, out, progress=False, **options)

    whole = tune(tmp_path / "whole", held_out={"zh": ["学习学习"]})
    assert "1 with a shortened prompt" in whole.data and "1 refused: no answer" in whole.data
    if batching == "length":
        assert whole.steps == 13  # 2 × 25 rows, 4 a step
    assert whole.losses[-1] < whole.losses[0]
    (_, before), (_, after) = whole.evaluations()
    assert after < before
    with pytest.raises(TrainingStopped):
        tune(tmp_path / "cut", watch=at_step(2, lambda: signal.raise_signal(signal.SIGINT)))
    assert same(tune(tmp_path / "cut", resume=True), whole)


def test_packed_rows_give_the_loss_of_padded_rows(tmp_path):
    """The first step over the same rows, one a sequence or all in one: the same mean over answer tokens."""
    common = {
        "task": "finetune",
        "template": "chat",
        "block": 256,
        "steps": 1,
        "dropout": 0.0,
        "log_every": 1,
    }
    padded = RECIPE.replace(**common, micro_batch=3, batch=3)
    packed = RECIPE.replace(**common, micro_batch=1, batch=1, batching="packing")
    losses = []
    for n, recipe in enumerate((padded, packed)):
        report = finetune(
            make_model(264), make_tokenizer(5), ROWS[:3], recipe, tmp_path / str(n), progress=False
        )
        losses += report.losses
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_padding_is_no_token(tmp_path):
    rows = [{"instruction": "写", "output": "字" * n} for n in (1, 9, 3, 20, 2)]
    recipe = RECIPE.replace(task="finetune", template="chat", block=128, steps=0, log_every=1, save_every=1)
    report = finetune(make_model(264), make_tokenizer(5), rows, recipe, tmp_path / "r", progress=False)
    lengths = [
        len(e.input_ids)
        for e in encode_instructions(rows, "chat", make_tokenizer(5), max_length=128).examples
    ]
    assert report.tokens == sum(lengths) and report.characters == 35
    assert [row["tokens"] for row in report.rows][-1] == sum(lengths)


def test_tokens_are_counted_on_without_the_log(tmp_path, straight):
    with pytest.raises(TrainingStopped):
        run(tmp_path / "r", watch=at_step(4, lambda: signal.raise_signal(signal.SIGINT)))
    (tmp_path / "r" / "log.jsonl").write_bytes(b'\xff{"step"\n[]\n{"loss": 1}\n')
    again = run(tmp_path / "r", resume=True)
    assert again.tokens == straight.tokens and again.rows[0]["step"] > 4


def test_the_rate_of_a_step_is_the_one_it_was_taken_with(tmp_path):
    report = run(tmp_path / "r", RECIPE.replace(steps=4, log_every=1, warmup_ratio=0.0, schedule="linear"))
    assert [row["learning_rate"] for row in report.rows] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_what_is_refused_takes_no_folder(tmp_path):
    out, tokenizer = tmp_path / "r", make_tokenizer(5)
    model = make_model(264)
    pretrain(model, tokenizer, CORPUS, RECIPE.replace(steps=1), tmp_path / "once", progress=False)
    with pytest.raises(TrainingError, match="has an adapter already"):
        pretrain(model, tokenizer, CORPUS, RECIPE, out, progress=False)
    for changes, options, message in (
        ({"targets": ["nope"]}, {}, "no module 'nope'"),
        ({}, {"new_tokens": [264]}, "token id 264 has no row"),
        ({"rank": 0, "dropout": 0.0}, {"new_tokens": []}, "nothing is trained"),
        ({}, {"held_out": CHINESE}, "held_out is list"),
        ({}, {"held_out": {"zh": CHINESE[0]}}, "'zh' are one text"),
        ({}, {"held_out": {"zh": [""]}}, "'zh' are empty"),
        ({}, {"held_out": {"zh": [3]}}, "a text was expected"),
    ):
        with pytest.raises(LabError, match=message):
            run(out, RECIPE.replace(**changes), **options)
    assert not out.exists()


def test_held_out_texts_that_can_be_read_once_are_scored_at_every_evaluation(tmp_path):
    recipe = RECIPE.replace(steps=2, evaluate_every=1)
    held = {"zh": (text for text in CHINESE), "en": []}
    assert [step for step, _ in run(tmp_path / "r", recipe, held_out=held).evaluations()] == [0, 1, 2]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "file", str(tmp_path / "file" / "r")):
        with pytest.raises(TrainingError, match="folder cannot be written"):
            run(out)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_disk_that_fills_under_the_log_or_the_adapter(tmp_path, monkeypatch, straight):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    from chinese_llama_lab.training import trainer as module
    from chinese_llama_lab.training.reports import RunLog

    add = RunLog.add
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "add", lambda self, row: full() if row["step"] == 6 else add(self, row))
        with pytest.raises(TrainingError, match=r"what step 6 logged could not be written(.|\n)*step-000004"):
            run(tmp_path / "r")
    again = run(tmp_path / "r", resume=True)
    assert same(again, straight)
    before = weights(again)
    with monkeypatch.context() as patch:
        patch.setattr(module, "atomic_folder", full)
        with pytest.raises(TrainingError, match=r"the adapter could not be written(.|\n)*step-000008"):
            run(tmp_path / "r", resume=True)
    assert all(torch.equal(value, before[key]) for key, value in weights(again).items())


def test_memory_that_runs_out_while_weights_move(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("chinese_llama_lab.training.run.LabTrainer", fail)
    with pytest.raises(TrainingError, match="memory ran out; this step needs about"):
        run(tmp_path / "r")


def test_a_damaged_description_is_another_run(tmp_path):
    run(tmp_path / "r", RECIPE.replace(steps=1))
    (tmp_path / "r" / "run.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(TrainingError, match="holds another run"):
        run(tmp_path / "r", RECIPE.replace(steps=1), resume=True)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_documents_stay_apart_in_a_batch_of_several_blocks(tmp_path, micro):
    """The first loss is that of the blocks one by one, each document of a block on its own."""
    report = run(tmp_path / "r", RECIPE.replace(micro_batch=micro, dropout=0.0, steps=1, log_every=1))
    packed = pack(CORPUS, make_tokenizer(5), 32, tokens=4 * 32)
    model, nats, labels = make_model(264), 0.0, 0
    with torch.no_grad():
        for n in range(4):
            ids, positions = packed.block_ids(n), packed.block_positions(n)
            begins = [p for p, position in enumerate(positions) if position == 0] + [32]
            logits = torch.cat([model(torch.tensor([ids[a:b]])).logits[0] for a, b in pairwise(begins)])
            nats += float(functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum"))
            labels += 31
    assert report.losses[0] == pytest.approx(nats / labels, abs=1e-4)
