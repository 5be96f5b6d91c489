# SPDX-License-Identifier: Apache-2.0
"""Secrets are hidden by form, by name and by the environment; ordinary text is kept."""

import logging

import pytest

from llm.core import redact

TOKEN = "hf_" + "A1b2C3d4E5f6"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--config.x.api_key=abc --config.n=1", "--config.x.api_key=*** --config.n=1"),
        ("--config.x.api_key abc --config.n=1", "--config.x.api_key *** --config.n=1"),
        ("--token abc", "--token ***"),
        ('{"api_key": "a b", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("'password': 'a b', 1", "'password': '***', 1"),
        ("WANDB_API_KEY=abc python x.py", "WANDB_API_KEY=*** python x.py"),
        ("MY_TOKEN=abc", "MY_TOKEN=***"),
        ("password = abc, user = me", "password = ***, user = me"),
        ("Authorization: Bearer abc", "Authorization: ***"),
        ("sent Bearer abcdefghijkl.", "sent Bearer ***"),
        (f"use {TOKEN} here", "use *** here"),
        ("sk-proj-abcdefghijkl", "***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
        ("ghp_abcdefghijklmnop", "***"),
        ("https://me:pass@host/x", "https://***@host/x"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "***"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----", "***"),
    ],
)
def test_hides(text, shown):
    assert redact.redact(text) == shown
    assert redact.redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "max_tokens=5, eos_token=</s>, tokenizer: byte, special_token: <pad>",
        "Unexpected token: foo at line 3",
        "key=3, cache_key=4, monkey=5, KEY: 6",
        "a secret weapon; the password is not here",
        "https://host:8080/path?page=2",
        "runs/pretrain/checkpoints/1200",
    ],
)
def test_keeps(text):
    assert redact.redact(text) == text


def test_hides_values_of_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "plain-looking-value")
    monkeypatch.setenv("SHORT_TOKEN", "word")
    assert redact.redact("sent plain-looking-value, a word") == "sent ***, a word"


@pytest.mark.parametrize("key", ["api_key", "hf_token", "password", "token", "x.wandb_api_key"])
def test_hides_in_trees_by_name(key):
    tree = {"a": [{key: "abc", "n": 1}], "b": (f"see {TOKEN}", None, 2.5)}
    shown = redact.redact_tree(tree)
    assert shown == {"a": [{key: "***", "n": 1}], "b": ["see ***", None, 2.5]}


def test_keeps_ordinary_settings():
    tree = {
        "max_tokens": 48,
        "tokenizer": {"path": "runs/tokenizer", "special_tokens": {"<pad>": 0}},
        "eos_token": "</s>",
        "tokens": ["a"],
    }
    assert redact.redact_tree(tree) == tree


def test_log_lines_and_their_tracebacks_hide():
    formatter = redact.Redacting("%(levelname)s %(message)s")
    try:
        raise ValueError(f"refused {TOKEN}")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, __file__, 1, "key %s", (TOKEN,), info)
    line = formatter.format(record)
    assert line.startswith("ERROR key ***") and "ValueError: refused ***" in line
    assert TOKEN not in line
