"""The fast scorer answers what the plain one answers, whatever the shapes left over."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from chinese_llama_lab.ceval import reference
from chinese_llama_lab.ceval.attention import can_pack
from chinese_llama_lab.ceval.errors import CevalError, LetterError, PromptError, QuestionError
from chinese_llama_lab.ceval.identity import model_sha256
from chinese_llama_lab.ceval.prompts import STYLES, build_prompt, find_style
from chinese_llama_lab.ceval.questions import QuestionSet
from chinese_llama_lab.ceval.score import score
from chinese_llama_lab.quantization.load import load_quantized

from .conftest import ASKED, SHOTS, make_model, make_tokenizer, many

OTHER_DEV = [replace(shot, subject="computer_network", text=f"网络：{shot.text}") for shot in SHOTS]
MIXED = [
    *many(7),
    replace(ASKED, id="long", text="很长的题目" * 60),
    *many(4, subject="computer_network"),
    replace(ASKED, id="no answer", answer=None),
    replace(ASKED, id="short", text="2", options=("1", "2", "3", "4")),
]
DEV = [*SHOTS, *OTHER_DEV]


def llama(rows, **changes):
    torch.manual_seed(1)
    settings = {
        "vocab_size": rows,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | changes)).eval()


def both(
    model, tokenizer, questions=MIXED, *, dev=DEV, prompt="ceval-official", shots=2, form=None, **options
):
    """(plain, fast) over the same questions."""
    plain = list(reference.score(model, tokenizer, questions, style=prompt, dev=dev, shots=shots, form=form))
    run = score(
        model, tokenizer, questions, dev=dev, prompt=prompt, shots=shots, form=form, progress=False, **options
    )
    assert [row["id"] for row in run.rows] == [question.id for question in questions]
    return plain, run


def agree(plain, run, tolerance=1e-3):
    for expected, row in zip(plain, run.rows, strict=True):
        logits = list(row["logits"].values())
        assert logits == pytest.approx(expected.logits, abs=tolerance), row
        assert row["predicted"] == expected.letter and row["shots"] == expected.shots
        assert [entry["ids"] for entry in run.settings["letters"][row["letters"]]] == [
            list(ids.ids) for ids in expected.letter_ids
        ]


@pytest.mark.parametrize("prompt", STYLES)
@pytest.mark.parametrize("shots", [0, 2])
def test_every_style(model, tokenizer, prompt, shots):
    agree(*both(model, tokenizer, prompt=prompt, shots=shots))


@pytest.mark.parametrize("form", ["bare", "spaced", "both"])
def test_every_form(model, tokenizer, form):
    plain, run = both(model, tokenizer, form=form)
    agree(plain, run)
    assert [entry["form"] for entry in run.settings["letters"][0]] == (
        ["bare", "spaced"] if form == "both" else [form]
    )


@pytest.mark.parametrize("prompt", STYLES)
def test_the_published_form_is_recorded_as_what_it_is(model, tokenizer, prompt):
    plain, run = both(model, tokenizer, prompt=prompt, shots=0, form="published")
    agree(plain, run)
    meant = find_style(prompt).published_form
    _, named = both(model, tokenizer, prompt=prompt, shots=0, form=meant)
    assert run.rows == named.rows and run.settings["form"] == meant
    assert [entry["form"] for entry in run.settings["letters"][0]] == (
        ["bare", "spaced"] if meant == "both" else [meant]
    )


MODELS = {
    "GQA": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
    "MHA": {},
    "tied": {"tie_word_embeddings": True},
    "its own head size": {"head_dim": 32},
    "eager": {"attn_implementation": "eager"},
}


@pytest.mark.parametrize("kind", MODELS)
def test_models(tokenizer, kind):
    model = llama(len(tokenizer), **MODELS[kind])
    before = model.config._attn_implementation
    agree(*both(model, tokenizer))
    assert model.config._attn_implementation == before


def test_another_family(tokenizer):
    torch.manual_seed(2)
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=16, **small)
    agree(*both(Qwen3ForCausalLM(config).eval(), tokenizer))


def test_a_window_is_not_shared_but_scored(tokenizer):
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(3)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
    )
    model = MistralForCausalLM(config).eval()
    assert not can_pack(model)
    plain, run = both(model, tokenizer)
    agree(plain, run)
    assert run.settings["shared"] is False
    with pytest.raises(CevalError, match="cannot share a prefix in a model of type 'mistral'"):
        score(model, tokenizer, MIXED, dev=DEV, shots=1, shared=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(tokenizer, dtype):
    model = llama(len(tokenizer), num_key_value_heads=2).to(dtype)
    plain, run = both(model, tokenizer)
    if dtype is torch.float64:
        agree(plain, run, 1e-5)
        return
    for expected, row in zip(plain, run.rows, strict=True):
        assert list(row["logits"].values()) == pytest.approx(expected.logits, abs=0.25)


@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_4_bit_weights(tokenizer, tmp_path, kind):
    llama(len(tokenizer), num_key_value_heads=2, intermediate_size=128).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    # bitsandbytes' own kernel for processors computes in bfloat16, which rounds otherwise for every shape.
    model, _ = load_quantized(tmp_path, kind, compute_dtype="float32", fast=False)
    plain, run = both(model, tokenizer)
    agree(plain, run)
    assert run.settings["quantization"]["bnb_4bit_quant_type"] == "nf4"


def test_an_adapter_is_scored_and_known(tokenizer):
    from peft import LoraConfig, get_peft_model

    base = llama(len(tokenizer))
    bare = score(base, tokenizer, MIXED, dev=DEV, shots=2, progress=False)
    torch.manual_seed(4)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    plain, run = both(adapted, tokenizer)
    agree(plain, run)
    assert run.rows != bare.rows
    assert run.settings["adapters"] == ["default"] and bare.settings["adapters"] == []
    assert run.settings["model_sha256"] != bare.settings["model_sha256"]


def test_models_that_differ_in_one_number_have_other_hashes(tokenizer):
    model = llama(len(tokenizer)).to(torch.bfloat16)
    before = model_sha256(model)
    assert model_sha256(model) == before
    weight = model.get_input_embeddings().weight.data
    weight[5, 3] += 0.5
    changed = model_sha256(model)
    weight[[7, 8]] = weight[[8, 7]]  # the same numbers at other places
    assert len({before, changed, model_sha256(model)}) == 3


def test_an_extended_vocabulary(tokenizer):
    longer = make_tokenizer(("Ġ A", "Ġ B", "Ġ C", "Ġ D"))
    longer.add_tokens(["答案", "下列"])
    model = make_model(len(tokenizer))
    model.resize_token_embeddings(len(longer), mean_resizing=False)
    plain, run = both(model, longer)
    agree(plain, run)
    assert run.rows[0]["tokens"] < score(model, tokenizer, MIXED[:1], dev=DEV, shots=2).rows[0]["tokens"]


def test_a_tokenizer_that_joins_across_the_border(tokenizer):
    # The end of every shot, a line break, is joined to what a question begins with: prefixes in ids are
    # shorter than in text, and differ.
    joins = ("Ċ Ċ", "ĊĊ ä", "ĊĊ 2", "Ġ A", "Ġ B", "Ġ C", "Ġ D")
    joined = make_tokenizer(joins)
    agree(*both(make_model(len(joined)), joined))


def test_one_question(model, tokenizer):
    agree(*both(model, tokenizer, [ASKED]))


def test_questions_of_few_and_of_2000_tokens(tokenizer):
    model = llama(len(tokenizer), num_key_value_heads=2)
    questions = [
        replace(ASKED, id="1", text="1", options=("1", "2", "3", "4")),
        replace(ASKED, id="2", text="长" * 667),
        replace(ASKED, id="3", text="长" * 667 + "短"),
    ]
    plain, run = both(model, tokenizer, questions)
    agree(plain, run)
    assert run.rows[1]["tokens"] - run.rows[0]["tokens"] >= 1990
    agree(*both(model, tokenizer, questions, memory_gib=1e-6))


def test_shots_that_do_not_fit_are_dropped_question_by_question(tokenizer):
    def length(question, shots):
        return len(tokenizer(build_prompt("ceval-official", question, shots).text)["input_ids"])

    questions = [*many(4), replace(ASKED, id="long", text="长" * 80), *many(2, split="test")]
    model = make_model(len(tokenizer), positions=length(questions[4], SHOTS[1:]))
    plain, run = both(model, tokenizer, questions)
    agree(plain, run)
    assert [row["shots"] for row in run.rows] == [2, 2, 2, 2, 1, 2, 2]
    # A prefix that is longer than the context on its own: nothing of it stays.
    small = make_model(len(tokenizer), positions=length(questions[4], []))
    plain, run = both(small, tokenizer, questions, dev=[replace(SHOTS[0], text="长" * 200), SHOTS[1]])
    agree(plain, run)
    assert run.rows[4]["shots"] == 0
    with pytest.raises(PromptError, match="without any shots"):
        score(small, tokenizer, [*questions, replace(ASKED, id="x", text="长" * 81)], dev=SHOTS, shots=2)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_batches_change_nothing(model, tokenizer, batch):
    agree(*both(model, tokenizer, batch=batch))


def test_the_prefix_is_read_once_and_padding_never(model, tokenizer):
    read = []
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(args[0].shape[:2])), with_kwargs=True
    )
    try:
        run = score(model, tokenizer, MIXED, dev=DEV, shots=2, progress=False)
    finally:
        hook.remove()
    plain = sum(row["tokens"] for row in run.rows)
    assert all(rows == 1 for rows, _ in read)
    saved = 0
    for subject in ("operating_system", "computer_network"):
        members = [question for question in MIXED if question.subject == subject]
        shots = [shot for shot in DEV if shot.subject == subject]
        prefix = build_prompt("ceval-official", members[0], shots).prefix
        saved += (len(members) - 1) * len(tokenizer(prefix)["input_ids"])
    total = sum(tokens for _, tokens in read)
    # At least the text of the prefix; a few more ids where all questions begin alike.
    assert plain - saved - 3 * len(MIXED) <= total <= plain - saved


def test_head_looks_at_one_token_a_question(model, tokenizer):
    seen = []
    hook = model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    try:
        score(model, tokenizer, MIXED, dev=DEV, shots=2, progress=False)
    finally:
        hook.remove()
    assert sum(seen) == len(MIXED) + 2  # and one for each prefix


def test_rows_say_what_was_asked(model, tokenizer):
    run = score(model, tokenizer, QuestionSet("ceval", (*DEV, *MIXED)), shots=2, progress=False)
    assert [row["id"] for row in run.rows] == [question.id for question in MIXED]  # dev is not asked
    assert [row["number"] for row in run.rows] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 8, 9]
    for row, question in zip(run.rows, MIXED, strict=True):
        shots = [shot for shot in DEV if shot.subject == question.subject]
        text = build_prompt("ceval-official", question, shots).text
        assert row["prompt_sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert row["answer"] == question.answer
        assert row["tokens"] == len(tokenizer(text)["input_ids"])
    judged = [row for row in run.rows if row["answer"]]
    assert run.accuracy == sum(row["predicted"] == row["answer"] for row in judged) / 13
    assert run.settings["questions"] == 14 and run.settings["question_set"] == "ceval" and run.complete


def test_hashes_tell_apart(model, tokenizer):
    first = score(model, tokenizer, MIXED, dev=DEV, shots=1, progress=False).settings
    again = score(model, tokenizer, MIXED, dev=DEV, shots=1, progress=False).settings
    assert first | {"date": ""} == again | {"date": ""}
    other = make_model(len(tokenizer))
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.add_(1e-6)
    second = score(
        other, make_tokenizer(("Ġ A", "Ġ B", "Ġ C", "Ġ D", "a b")), MIXED[1:], dev=DEV, shots=1
    ).settings
    for key in ("model_sha256", "tokenizer_sha256", "questions_sha256"):
        assert len(first[key]) == 64 and first[key] != second[key]


def test_demonstrations_count_where_they_are_shown(model, tokenizer):
    other = [replace(DEV[0], text="换了一题"), *DEV[1:]]

    def hashes(shots, dev):
        about = score(model, tokenizer, MIXED, dev=dev, shots=shots, progress=False).settings
        return about["questions_sha256"], about["demonstrations_sha256"]

    assert hashes(0, DEV) == hashes(0, other) == hashes(0, [])
    assert hashes(1, DEV)[0] == hashes(1, other)[0] == hashes(0, DEV)[0]
    assert hashes(1, DEV)[1] not in (hashes(1, other)[1], hashes(0, DEV)[1])
    assert hashes(1, DEV) == hashes(1, [DEV[0], DEV[2]])  # what is not shown is none of it


def test_a_model_in_train_mode_is_left_so(tokenizer):
    model = llama(len(tokenizer), attention_dropout=0.5).train()
    run = score(model, tokenizer, MIXED, dev=DEV, shots=1, progress=False)
    assert model.training
    agree(list(reference.score(model.eval(), tokenizer, MIXED, dev=DEV, shots=1)), run)


def test_ties_and_logits_that_are_not_finite(tokenizer):
    flat = make_model(len(tokenizer))
    torch.nn.init.zeros_(flat.lm_head.weight)
    (row,) = score(flat, tokenizer, [ASKED], dev=SHOTS, shots=0, progress=False).rows
    assert row["tied"] and row["predicted"] == "A"
    torch.nn.init.constant_(flat.lm_head.weight, float("nan"))
    with pytest.raises(CevalError, match=r"not finite[\s\S]*operating_system_val.csv, row 8"):
        score(flat, tokenizer, [ASKED], dev=SHOTS, shots=0)
    assert flat.config._attn_implementation == "sdpa"  # an error leaves the model as it was


def test_bad_input(model, tokenizer):
    for options, message in (
        ({"method": "letters"}, "method is 'letters'[\\s\\S]*logits, generation"),
        ({"form": "wide"}, "form is 'wide'[\\s\\S]*bare, spaced, both, published"),
        ({"cot": True}, "has to be written before"),
        ({"prompt": "mmlu"}, "no prompt style"),
        ({"shots": -1}, "shots is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"memory_gib": 0.0}, "memory_gib is 0.0"),
        ({"method": "generation", "max_new_tokens": 2048}, "2048 new tokens leave no room"),
    ):
        with pytest.raises(CevalError, match=message):
            score(model, tokenizer, MIXED, **({"dev": DEV, "shots": 0} | options))
    with pytest.raises(CevalError, match="of 4 questions none is to be asked"):
        score(model, tokenizer, DEV)
    with pytest.raises(QuestionError, match="stands twice"):
        score(model, tokenizer, [ASKED, ASKED], dev=DEV, shots=0)
    with pytest.raises(LetterError, match="takes 2 tokens"):
        score(model, make_tokenizer(), [ASKED], dev=DEV, shots=0, form="spaced")
