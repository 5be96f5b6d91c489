# SPDX-License-Identifier: Apache-2.0
"""`scripts/generate.py`: stream a model's continuations to the terminal, or chat with it there."""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from llm import files
from llm.core.redact import redact
from llm.errors import ConfigError, DataError, UserError, nearest

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
    p.add_argument(
        "--prompt",
        action="append",
        help="text to continue; repeatable; read from standard input where absent",
    )
    p.add_argument(
        "--chat",
        action="store_true",
        help="answer as an assistant; without a prompt, talk at the terminal",
    )
    p.add_argument("--chats", help="answer the last question of each chat in a JSONL file")
    p.add_argument("--limit", type=int, default=5, help="chats of that file to answer")
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
    chats = _read_chats(options.chats, options.limit) if options.chats else []
    talks = options.chat and not options.prompt and not chats and sys.stdin.isatty()
    prompts = options.prompt or ([] if talks or chats else [sys.stdin.read()])
    from llm.generate.language_model import load

    lm = load(options.model, dtype=options.dtype, step=options.step)
    system = [{"role": "system", "content": options.system}] if options.system else []
    if talks:
        _talk(lm, system, options)
    for text in prompts:
        if len(prompts) > 1:
            print(f"> {text}")
        question = [*system, {"role": "user", "content": text}]
        _stream(lm, question if options.chat else text, options)
    for chat in chats:
        *question, answer = chat
        print(f"> {question[-1]['content']}\nwritten: {answer['content']}\nmodel:   ", end="")
        _stream(lm, [*system, *question], options)


def _talk(lm: Any, system: list[dict[str, str]], options: argparse.Namespace) -> None:
    """Answer what is typed, with all that was said before, until an empty line."""
    messages = list(system)
    print("Type a message; an empty line ends.")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            text = ""
        if not text:
            return
        messages.append({"role": "user", "content": text})
        answer = _stream(lm, messages, options)
        messages.append({"role": "assistant", "content": answer})


def _stream(lm: Any, prompt: Any, options: argparse.Namespace) -> str:
    """Print a continuation as it is made, and return it."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    settings = {name: getattr(options, name) for name in (*names, "stop", "seed")}
    count, first = 0, 0.0
    pieces = []
    for piece in lm.stream_pieces(prompt, **settings):
        first = first or time.perf_counter()
        count += len(piece.tokens)
        pieces.append(piece.text)
        print(piece.text, end="", flush=True)
    print(flush=True)
    if options.stats:
        rate = (count - 1) / max(time.perf_counter() - first, 1e-9)
        print(f"{count} tokens, {rate:.1f} tokens/s after the first", file=sys.stderr)
    return "".join(pieces)


def _read_chats(path: str, limit: int) -> list[list[dict[str, Any]]]:
    """Return the first chats of a JSONL file that end with an answer.

    Raises:
        DataError: the file is missing or holds no such chat.
    """
    place = files.path(path)
    if not place.exists():
        raise DataError(f"{path} does not exist.", "Give a JSONL file of chats to --chats.")
    found: list[list[dict[str, Any]]] = []
    for number, line in enumerate(place.read_text(encoding="utf-8").splitlines(), 1):
        try:
            messages = json.loads(line)["messages"] if line.strip() else []
            if len(messages) > 1 and messages[-1]["role"] == "assistant":
                found.append(messages)
        except (ValueError, TypeError, LookupError) as error:
            raise DataError(
                f'{path}, line {number}: not a chat {{"messages": […]}}.', "Repair it."
            ) from error
        if len(found) == limit:
            break
    if not found:
        raise DataError(f"{path} holds no chat with an answer.", "Give another file to --chats.")
    return found
