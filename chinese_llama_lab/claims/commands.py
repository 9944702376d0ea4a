"""`claims` from the shell: the ledger, or a part of it."""

from __future__ import annotations

import argparse


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "claims",
        help="what was claimed about such models, and what holds",
        description="The ledger (data/claims.csv). A verdict rests on primary sources and on results/; what"
        " needs a GPU or a hub model names the command that settles it (--full).",
    )
    parser.add_argument("--verdict", help="confirmed, refuted, partly or 'cannot be checked here'")
    parser.add_argument("--topic", help="such as vocabulary or VRAM (--topics lists them)")
    parser.add_argument("--search", metavar="WORDS", help="words in any column")
    parser.add_argument("--full", action="store_true", help="every column")
    parser.add_argument("--topics", action="store_true", help="the topics, and how many claims each has")
    parser.set_defaults(handler=_claims)


def _claims(given: argparse.Namespace) -> int:
    from chinese_llama_lab.claims.ledger import TOPICS
    from chinese_llama_lab.claims.shown import table

    shown = table(given.verdict, given.topic, given.search, full=given.full)
    if given.topics:
        for topic in TOPICS:
            print(f"{sum(claim.topic == topic for claim in shown.claims):4}  {topic}")
        return 0
    print(shown)
    return 0
