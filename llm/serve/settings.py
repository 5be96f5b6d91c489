# SPDX-License-Identifier: Apache-2.0
"""What a server allows: where it listens, who may ask, and how much."""

import ipaddress
import os
from typing import NamedTuple

from llm.errors import ConfigError

KEY_VARIABLE = "LLM_API_KEY"


class Settings(NamedTuple):
    """Limits and identity of a server; `check` makes a checked one."""

    model_name: str = "model"
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str = ""
    max_queue: int = 32
    max_body: int = 1_000_000
    max_headers: int = 16_384
    max_choices: int = 8
    max_tokens: int = 512
    retry_after: int = 1
    drain_seconds: float = 30.0


def check(
    model_name: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str = "",
    max_queue: int = 32,
    max_body: int = 1_000_000,
    max_headers: int = 16_384,
    max_choices: int = 8,
    max_tokens: int = 512,
    retry_after: int = 1,
    drain_seconds: float = 30.0,
) -> Settings:
    """Check the settings of a server.

    Args:
        model_name: what clients call the model.
        host: address to listen on; one that others can reach needs a key.
        port: 0 picks a free one.
        api_key: clients send it as "Authorization: Bearer <key>"; "" takes the environment
            variable LLM_API_KEY, and without that no key is asked for.
        max_queue: generations waiting or running; more are refused with 429.
        max_body, max_headers: bytes of a request.
        max_choices: `n` of a request, and prompts of one completion request.
        max_tokens: generated where a chat request names no number.
        retry_after: seconds a refused client is told to wait.
        drain_seconds: after SIGTERM, given to running generations.

    Raises:
        ConfigError: a value is out of range, or a public address without a key.
    """
    key = api_key or os.environ.get(KEY_VARIABLE, "")
    settings = Settings(
        model_name or "model",
        host,
        port,
        key,
        max_queue,
        max_body,
        max_headers,
        max_choices,
        max_tokens,
        retry_after,
        drain_seconds,
    )
    for name in ("max_queue", "max_body", "max_headers", "max_choices", "max_tokens"):
        if getattr(settings, name) < 1:
            raise ConfigError(
                f"serve.{name}={getattr(settings, name)} is not positive.", "Use ≥ 1."
            )
    if not 0 <= port < 65536:
        raise ConfigError(f"serve.port={port} is no port.", "Use 1–65535, or 0 for a free one.")
    if not key and not is_loopback(host):
        raise ConfigError(
            f"serve.host={host} is reachable by others, and there is no API key.",
            f"Set the environment variable {KEY_VARIABLE}, or listen on 127.0.0.1.",
        )
    if key and (len(key) < 8 or not key.isascii() or not key.isprintable()):
        raise ConfigError("The API key is too weak.", "Use at least 8 printable ASCII characters.")
    return settings


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
