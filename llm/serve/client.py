# SPDX-License-Identifier: Apache-2.0
"""Ask a running server one question and print the answer as it streams (standard library only)."""

import argparse
import http
import http.client
import json
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm import files
from llm.errors import PeerError, UserError


def address(workdir: str, wait: float = 60.0) -> tuple[str, str]:
    """Return (base URL, model name) of the server that runs in a workdir, once it is ready.

    Raises:
        PeerError: no server wrote its address within `wait` seconds.
    """
    target = Path(workdir) / "server.json"
    end = time.monotonic() + wait
    while not target.exists():
        if time.monotonic() > end:
            raise PeerError(
                f"No server runs in {workdir}.", f"Start scripts/serve.py --workdir={workdir}."
            )
        time.sleep(0.1)
    server = files.read_json(target)
    return f"http://{server['host']}:{server['port']}", server["model"]


def stream(base: str, model: str, question: str, max_tokens: int = 64) -> Iterator[str]:
    """Yield the pieces of a chat completion, greedily decoded.

    Raises:
        PeerError: the server refuses, or cannot be reached.
    """
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    where = urllib.parse.urlsplit(base)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=120)
    try:
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body).encode("utf-8"),
            {"Content-Type": "application/json"},
        )
        reply = connection.getresponse()
        if reply.status != http.HTTPStatus.OK:
            said = reply.read(200).decode("utf-8", "replace")
            raise PeerError(f"The server answered {reply.status}: {said}")
        for line in reply:
            data = line.decode("utf-8").strip().removeprefix("data: ")
            if data == "[DONE]":
                return
            if data.startswith("{"):
                for choice in json.loads(data)["choices"]:
                    yield choice["delta"].get("content") or ""
    except (OSError, http.client.HTTPException) as error:
        raise PeerError(f"{base} cannot be reached: {error}.", "Is the server running?") from error
    finally:
        connection.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Read --workdir and --question, print the streamed answer, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="the server's workdir")
    parser.add_argument("--question", required=True)
    parser.add_argument("--max_tokens", type=int, default=64)
    options = parser.parse_args(argv)
    try:
        base, model = address(options.workdir)
        print(f"{options.question}\n> ", end="")
        for piece in stream(base, model, options.question, options.max_tokens):
            print(piece, end="", flush=True)
        print()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
