"""What answers cost, given their prompts."""

from __future__ import annotations

import math

import pytest
import torch

from chinese_llama_lab.training.errors import TrainingError
from chinese_llama_lab.training.instructions import encode_instructions
from chinese_llama_lab.training.metrics import answer_bits

ROWS = [
    {"instruction": "写", "output": "字"},
    {"instruction": "do", "input": "now", "output": "yes, now"},
]


@pytest.mark.parametrize("template", ["chat", "v1"])
def test_equals_the_masked_loss(model, tokenizer, template):
    model.train()
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for example in encode_instructions(ROWS, template, tokenizer).examples:
            count = sum(label != -100 for label in example.labels)
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            nats += float(model.eval()(ids, labels=labels).loss) * count
            tokens += count
    model.train()
    got = answer_bits(model, tokenizer, ROWS, template, head_rows=2)
    assert got.tokens == tokens and got.characters == 9 and model.training
    assert got.bits_per_character == pytest.approx(nats / math.log(2) / 9, rel=1e-5)


def test_no_row_is_left_out_in_silence(model, tokenizer):
    with pytest.raises(TrainingError, match="row 1 was left out: longer than 256 tokens"):
        answer_bits(model, tokenizer, [ROWS[0], {"instruction": "a", "output": "b" * 400}], "chat")
    with pytest.raises(TrainingError, match="row 0 was left out: no answer"):
        answer_bits(model, tokenizer, [{"instruction": "a", "output": ""}, ROWS[0]], "chat")
