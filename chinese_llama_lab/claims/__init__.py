"""The ledger of claims: what was said about adapting LLaMA to Chinese, and what holds (chapter 10)."""

from __future__ import annotations

from chinese_llama_lab.claims.errors import ClaimError
from chinese_llama_lab.claims.ledger import TOPICS, VERDICTS, Claim, counts, load_claims
from chinese_llama_lab.claims.numbers import unsupported_numbers
from chinese_llama_lab.claims.pointers import resolve
from chinese_llama_lab.claims.shown import ClaimBrowser, ClaimTable, table

__all__ = [
    "TOPICS",
    "VERDICTS",
    "Claim",
    "ClaimBrowser",
    "ClaimError",
    "ClaimTable",
    "counts",
    "load_claims",
    "resolve",
    "table",
    "unsupported_numbers",
]
