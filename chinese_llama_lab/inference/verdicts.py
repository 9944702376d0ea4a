"""The article's figures of VRAM, each with the arithmetic that bears it out or does not.

The article names neither unit, prompt length nor loader. Taken here: GB are 10⁹ bytes; NF4 without double
quantization; embedding and head in 16 bits; the extended vocabulary; 0.5 GB of CUDA context. What is then
left of a figure has to be the cache and the prompt: so many tokens fit into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chinese_llama_lab.inference.estimate import estimate
from chinese_llama_lab.inference.fits import gpu_bytes, longest_block
from chinese_llama_lab.inference.memory import GIB
from chinese_llama_lab.inference.shapes import shape_of
from chinese_llama_lab.inference.weights import kv_bytes_per_token

_NF4: dict[str, Any] = {"quantization": "nf4"}
_WINDOW = 2048  # tokens that LLaMA was trained on
_FIVE_SHOT = (
    1051  # C-Eval: 877 tokens of five shots and 174 of the question, on average (SmolLM2's tokenizer)
)


@dataclass(frozen=True)
class Verdict:
    """One claim.

    Attributes:
        claim: as the article says it. verdict: `holds`, `plausible`, `holds with conditions`.
        arithmetic: the sum, with units.
    """

    claim: str
    verdict: str
    arithmetic: str

    def __repr__(self) -> str:
        return f"{self.claim}: {self.verdict}. {self.arithmetic}"


def vram_verdicts() -> list[Verdict]:
    """A verdict for each of the six figures."""
    found = []
    for model, value, adapted in (
        ("chinese-llama-7b", 6.2, False),
        ("chinese-alpaca-7b", 6.8, True),
        ("chinese-llama-13b", 10.1, False),
        ("chinese-alpaca-13b", 10.9, True),
    ):
        found.append(_inference(model, value, adapted))
    return [*found, _on_six(), _on_24()]


def _tokens(model: str, value: float, **options: Any) -> tuple[float, float]:
    """(GB before the first token, tokens that fill up to `value` GB)."""
    one, many = (estimate(model, block=block, **_NF4, **options).gb for block in (1, 1001))
    token = (many - one) / 1000
    fixed = one - token
    return fixed, (value - fixed) / token


def _inference(model: str, value: float, adapted: bool) -> Verdict:
    shape = shape_of(model)
    fixed, tokens = _tokens(model, value)
    cache = kv_bytes_per_token(shape) / 1024
    text = (
        f"weights, dequantized matrix, context: {fixed:.2f} GB; cache {cache:.0f} KiB a token; "
        f"{value} GB are reached at {tokens:,.0f} tokens"
    )
    if adapted:
        step = {"chinese-alpaca-7b": 0.6, "chinese-alpaca-13b": 0.8}[model]
        lora, _ = _tokens(model, value, adapter=True, lora_dtype="float16")
        whole, left = _tokens(model, value, adapter=True, lora_dtype="float16", embeddings="published")
        text += (
            ". Merged, the LoRA model needs as much as its base; LoRA (r 8) beside it "
            f"{lora - fixed:.2f} GB, with whole copies of embedding and head {whole - fixed:.2f} GB more "
            f"(then {left:,.0f} tokens): the step of {step} GB over the base cannot be LoRA's, but that of "
            "the copies or of a longer prompt"
        )
    says = "plausible" if _FIVE_SHOT < tokens < 2 * _WINDOW else "doubtful"
    return Verdict(f"{model}, 4-bit: {value} GB", says, text)


def _on_six() -> Verdict:
    longest = longest_block("chinese-llama-7b", 6, **_NF4)
    double = longest_block("chinese-llama-7b", 6, quantization="nf4-double")
    need = estimate("chinese-llama-7b", block=_WINDOW, **_NF4)
    text = (
        f"6 GB are {gpu_bytes(6) / 1e9:.2f} GB in decimal; a prompt and answer of {_WINDOW:,} tokens need "
        f"{need.gb:.2f} GB ({need.gib:.2f} GiB); up to {longest:,} tokens fit, {double:,} with double "
        "quantization, on a GPU that shows no desktop. The article's own 6.2 GB fit only because a 6 GB card "
        "has 6.44"
    )
    return Verdict("a 7B runs in 4 bits on 6 GB", "holds with conditions", text)


def _on_24() -> Verdict:
    run: dict[str, Any] = {"block": 512, "gradient_checkpointing": True}
    plain = estimate("llama-7b", "lora", targets=("q_proj", "k_proj", "v_proj", "o_proj"), **run)
    whole = estimate("chinese-llama-7b", "lora", embeddings="published", **run)
    rows = estimate("chinese-llama-7b", "lora", embeddings="new-rows", new_tokens=17953, **run)
    text = (
        f"{gpu_bytes(24) / GIB:.0f} GiB are there. LoRA on attention alone, 1 × 512 tokens, checkpointing: "
        f"{plain.gib:.1f} GiB. The published recipe, which trains embedding and head whole: "
        f"{whole.gib:.1f} GiB; with new rows alone {rows.gib:.1f} GiB"
    )
    return Verdict("a 7B fine-tunes with LoRA on one 24 GB RTX 3090", "holds", text)
