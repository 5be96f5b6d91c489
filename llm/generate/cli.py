# SPDX-License-Identifier: Apache-2.0
"""`scripts/generate.py`: stream a model's continuation of a prompt to the terminal."""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from llm.core.config import nearest
from llm.core.redact import redact
from llm.errors import ConfigError, UserError

EXAMPLE = "python scripts/generate.py --model=runs/pretrain_tiny --prompt='Return the'"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}.", f"For example: {EXAMPLE}")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    p = _Parser(
        description="Continue a prompt. The text is streamed to standard output.",
        epilog=f"example: {EXAMPLE}",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("--model", required=True, help="workdir, Hugging Face folder or .gguf file")
    p.add_argument("--prompt", help="text to continue; read from standard input where absent")
    p.add_argument("--chat", action="store_true", help="answer the prompt as an assistant")
    p.add_argument("--system", default="", help="system message of the chat")
    p.add_argument("--max_tokens", type=int, help="tokens to generate at most (128, or what fits)")
    p.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    p.add_argument("--top_k", type=int, default=0, help="choose among the k likeliest; 0 = off")
    p.add_argument("--top_p", type=float, default=1.0, help="choose within this probability mass")
    p.add_argument("--min_p", type=float, default=0.0, help="least share of the likeliest token")
    p.add_argument("--repetition_penalty", type=float, default=1.0, help="1 = off")
    p.add_argument("--stop", action="append", default=[], help="end before this text; repeatable")
    p.add_argument("--seed", type=int, default=0, help="same seed, same text")
    p.add_argument("--dtype", default="float32", help="of parameters and computation")
    p.add_argument("--step", type=int, help="checkpoint step; the newest where absent")
    p.add_argument("--stats", action="store_true", help="end with tokens per second, on stderr")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return p


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Raises:
        ConfigError: an option is unknown, lacks its value or has a wrong one.
    """
    p = parser()
    options, unknown = p.parse_known_args(argv)
    if unknown:
        name = unknown[0].partition("=")[0]
        known = [o for action in p._actions for o in action.option_strings]
        raise ConfigError(
            f"Unknown option {name}.{nearest(name, known)}", "--help lists the options."
        )
    return options


def run() -> NoReturn:
    """Run with the process's arguments and exit with the error's code."""
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Generate; return the exit code (see llm.errors)."""
    try:
        options = parse(argv)
        _generate(options)
        return 0
    except UserError as error:
        if "--debug" in argv:
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
        first, *rest = redact(str(error)).splitlines()
        print(f"error: {first}", *(f"  {line}" for line in rest), sep="\n", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone; give Python a place to flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _generate(options: argparse.Namespace) -> None:
    from llm.core.launch import quiet

    quiet()
    text = sys.stdin.read() if options.prompt is None else options.prompt
    from llm.generate.language_model import load

    lm = load(options.model, dtype=options.dtype, step=options.step)
    prompt: Any = text
    if options.chat:
        system = [{"role": "system", "content": options.system}] if options.system else []
        prompt = [*system, {"role": "user", "content": text}]
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    settings = {name: getattr(options, name) for name in (*names, "stop", "seed")}
    count, first = 0, 0.0
    for piece in lm.stream_pieces(prompt, **settings):
        first = first or time.perf_counter()
        count += len(piece.tokens)
        print(piece.text, end="", flush=True)
    print(flush=True)
    if options.stats:
        rate = (count - 1) / max(time.perf_counter() - first, 1e-9)
        print(f"{count} tokens, {rate:.1f} tokens/s after the first", file=sys.stderr)
