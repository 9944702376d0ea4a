"""Divergence of the logits, and greedy agreement."""

from __future__ import annotations

import math

import pytest
import torch

from chinese_llama_lab.quantization.agreement import (
    agreement,
    greedy_agreement,
    greedy_continuations,
    logit_divergence,
)
from chinese_llama_lab.quantization.errors import QuantizationError
from tests.quantization.quality_models import ROWS, tiny

BLOCKS = [[256, 5, 9, 200, 31], [256, 7], [256, *range(120)]]


class Fixed(torch.nn.Module):
    """A model whose logits are a table: row = the token that is read."""

    def __init__(self, table, eos=None):
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.tensor(table, dtype=torch.float32))
        self.head = torch.nn.Identity()
        self.config = type("Config", (), {"max_position_embeddings": 64, "eos_token_id": eos})()
        self.device = torch.device("cpu")

    def get_input_embeddings(self):
        return self.table

    def get_output_embeddings(self):
        return self.head

    def get_decoder(self):
        return lambda input_ids, **_: type(
            "Output", (), {"last_hidden_state": self.table(input_ids), "past_key_values": None}
        )()


def logs(*probabilities):
    return [math.log(p) for p in probabilities]


def nudged(seed=0, size=0.02):
    model = tiny(seed)
    torch.manual_seed(99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * size)
    return model


def test_by_hand():
    # Two tokens. After token 0: (1/2, 1/2) against (1/4, 3/4); after token 1 both say (0.9, 0.1).
    reference = Fixed([logs(0.5, 0.5), logs(0.9, 0.1)])
    model = Fixed([logs(0.25, 0.75), logs(0.9, 0.1)])
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    found = logit_divergence(reference, model, [[0, 1], [1, 1]])
    assert found.positions == 4
    assert found.mean == pytest.approx(first / 4, rel=1e-6)
    assert found.nats == pytest.approx(first, rel=1e-6)
    assert found.percentile_99 == pytest.approx(first * 0.97, rel=1e-6)  # 0.99 · 3 = 2.97: between 0 and it
    assert found.same_first_choice == 0.75  # (1/2, 1/2): the first of equals is taken
    # The other way round it is another number: KL is not symmetric.
    back = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert logit_divergence(model, reference, [[0]]).mean == pytest.approx(back, rel=1e-6)


def test_equals_torch():
    reference, model = tiny(), nudged()
    values, same = [], []
    with torch.no_grad():
        for block in BLOCKS:
            one, other = (
                m(torch.tensor([block])).logits[0].double().log_softmax(-1) for m in (reference, model)
            )
            values.append(torch.nn.functional.kl_div(other, one, log_target=True, reduction="none").sum(-1))
            same.append(one.argmax(-1) == other.argmax(-1))
    expected = torch.cat(values)
    for head_rows in (1, 7, 1000):
        found = logit_divergence(reference, model, BLOCKS, head_rows=head_rows)
        assert found.positions == len(expected) == 128
        assert found.mean == pytest.approx(float(expected.mean()), rel=1e-5)
        assert found.percentile_99 == pytest.approx(float(expected.quantile(0.99)), rel=1e-5)
        assert found.same_first_choice == pytest.approx(float(torch.cat(same).double().mean()))
    assert 0 < found.same_first_choice < 1


def test_with_itself_and_close_to_it():
    reference = tiny().train()
    same = logit_divergence(reference, reference, torch.tensor([[256, 3, 4]]))
    assert (same.mean, same.percentile_99, same.same_first_choice) == (0, 0, 1)
    assert reference.training  # as it was
    # For small changes KL grows with their square: float32 would drown it.
    near, nearer = (logit_divergence(reference, nudged(size=s), BLOCKS).mean for s in (1e-4, 1e-5))
    assert near / nearer == pytest.approx(100, rel=0.1)


def test_agreement_is_what_the_model_itself_would_write():
    reference, model = tiny(), nudged(size=0.01)
    prompts = [[256, n, n + 1, n + 2][: 2 + n % 3] for n in range(20)]
    found = greedy_agreement(reference, model, prompts, 40)
    stop = reference.generation_config.eos_token_id
    for number, prompt in enumerate(prompts):
        options = {"do_sample": False, "max_new_tokens": 40, "pad_token_id": 258, "eos_token_id": stop}
        one, other = (
            m.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()
            for m in (reference, model)
        )
        assert found.lengths[number] == len(one)
        same = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        assert found.equal_before[number] == same
    assert len(set(found.equal_before)) > 3  # the prompts are not all alike
    assert found.mean_equal_before == sum(found.equal_before) / 20
    assert found.same >= sum(found.equal_before)
    perfect = greedy_agreement(reference, reference, prompts, 40)
    assert perfect.share == 1 and perfect.equal_before == perfect.lengths


def test_teacher_forced_by_hand():
    # The reference counts 0 → 1 → 2 → 3 → 0; the model agrees but after 1.
    reference = Fixed([[0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9], [9, 0, 0, 0]])
    model = Fixed([[0, 9, 0, 0], [9, 0, 0, 0], [0, 0, 0, 9], [9, 0, 0, 0]])
    found = greedy_agreement(reference, model, [[0], [3, 2]], 6)
    assert found.equal_before == (1, 3)  # 1|2 3 0 1 2 and 3 0 1|2 3 0
    assert found.same == 4 + 5 and found.share == 9 / 12
    # EOS ends a continuation and counts as a token.
    ending = Fixed(reference.table.weight.tolist(), eos=[3, 77])
    assert [c.tokens for c in greedy_continuations(ending, [[0], [2]], 6)] == [(1, 2, 3), (3,)]
    assert greedy_agreement(ending, ending, [[0], [2]], 6).lengths == (3, 1)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], "no block"),
        ([[1], []], "block 1 is empty"),
        ([[1, ROWS]], f"holds id {ROWS}"),
        ([[-1]], "holds id -1"),
        ([[1] * 257], "257 tokens, and the models read 256"),
    ],
)
def test_bad_blocks(blocks, message):
    with pytest.raises(QuantizationError, match=message):
        logit_divergence(tiny(), tiny(1), blocks)


def test_bad_input():
    model = tiny()
    with pytest.raises(QuantizationError, match="259 tokens and the model 260"):
        logit_divergence(model, tiny(rows=260), [[1]])
    for prompts, message in (([], "no prompt"), ([[1], []], "prompt 1 is empty")):
        with pytest.raises(QuantizationError, match=message):
            greedy_agreement(model, model, prompts)
    with pytest.raises(QuantizationError, match="60 tokens and 200 are to follow, and the models read 256"):
        greedy_agreement(model, model, [[1] * 60])
    with pytest.raises(QuantizationError, match="new_tokens is 0"):
        greedy_agreement(model, model, [[1]], 0)
    with pytest.raises(QuantizationError, match="no continuation"):
        agreement(model, [])
    broken = tiny()
    with torch.no_grad():
        broken.model.norm.weight[0] = torch.nan
    with pytest.raises(QuantizationError, match="NaN or infinity\n  where: block 0"):
        logit_divergence(model, broken, [[1, 2]])
