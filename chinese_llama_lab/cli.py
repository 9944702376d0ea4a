"""`chinese-llama-lab`: the library from the shell. Commands call it; they do not implement."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence

from chinese_llama_lab import __version__
from chinese_llama_lab.errors import INTERRUPTED, LabError
from chinese_llama_lab.quiet import quiet_libraries


def build_parser() -> argparse.ArgumentParser:
    """The parser with every command. Handlers import what they need when they run."""
    from chinese_llama_lab.ceval import commands as ceval
    from chinese_llama_lab.claims import commands as claims
    from chinese_llama_lab.course import commands as course
    from chinese_llama_lab.doctor import add_commands as add_doctor
    from chinese_llama_lab.inference import commands as inference
    from chinese_llama_lab.inference import gguf_commands, speed_commands
    from chinese_llama_lab.quantization import commands as quantization
    from chinese_llama_lab.sources import commands as sources
    from chinese_llama_lab.tokenization import commands as tokenization
    from chinese_llama_lab.training import commands as training
    from chinese_llama_lab.vocabulary import commands as vocabulary

    parser = argparse.ArgumentParser(
        prog="chinese-llama-lab",
        description="How an English LLaMA-class model is adapted to Chinese: the course's tools.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sources.add_commands(subparsers)
    tokenization.add_commands(subparsers)
    vocabulary.add_commands(subparsers)
    training.add_commands(subparsers)
    quantization.add_commands(subparsers)
    inference.add_commands(subparsers)
    speed_commands.add_commands(subparsers)
    gguf_commands.add_commands(subparsers)
    ceval.add_commands(subparsers)
    claims.add_commands(subparsers)
    course.add_commands(subparsers)
    add_doctor(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What a reader can act on is printed without a trace."""
    for stream in (sys.stdout, sys.stderr):  # a terminal without Chinese shows escapes instead of failing
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = build_parser().parse_args(arguments)
    quiet_libraries()
    try:
        return int(options.handler(options) or 0)
    except LabError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk, a folder that may not be written
        remedy = "check that the place exists, may be written and has room"
        print(f"{type(error).__name__}: {error}\n  what to do: {remedy}", file=sys.stderr)
        return 1
