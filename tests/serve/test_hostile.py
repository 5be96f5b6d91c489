# SPDX-License-Identifier: Apache-2.0
"""Malformed and hostile requests: each is refused with its own status, none breaks the server."""

import json
import socket

import httpx
import pytest

MESSAGES = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "tiny", "messages": MESSAGES, "max_tokens": 1}
TEXT = {"model": "tiny", "prompt": "Hi", "max_tokens": 1}


def user(content):
    return {"messages": [{"role": "user", "content": content}]}


IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}

# Changes to a good chat request, and the status and field of the refusal.
CHAT_CASES = [
    ({"model": "gpt-4"}, 404, "model"),
    ({"model": ""}, 404, "model"),
    ({"model": "../../etc/passwd\r\nX: y"}, 404, "model"),
    ({"model": None}, 400, "model"),
    ({"model": "m" * 1000}, 400, "model"),
    ({"messages": []}, 400, "messages"),
    ({"messages": None}, 400, "messages"),
    ({"messages": "Hi"}, 400, "messages"),
    ({"messages": [[]]}, 400, "messages"),
    ({"messages": [{"role": "user"}]}, 400, "messages"),
    ({"messages": [{"role": "root", "content": "x"}]}, 400, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages"),
    ({"messages": MESSAGES * 2000}, 400, "messages"),
    (user(7), 400, "messages"),
    (user(None), 400, "messages"),
    (user([IMAGE]), 400, "messages"),
    (user([{"type": "file", "file": {"file_data": "x"}}]), 400, "messages"),
    (user("x" * 5000), 400, "messages"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": -5}, 400, "max_tokens"),
    ({"max_tokens": 2.5}, 400, "max_tokens"),
    ({"max_tokens": "5"}, 400, "max_tokens"),
    ({"max_tokens": True}, 400, "max_tokens"),
    ({"max_tokens": 10**30}, 400, "messages"),
    ({"max_tokens": 65}, 400, "messages"),
    ({"max_completion_tokens": 10**9}, 400, "messages"),
    ({"temperature": -0.1}, 400, "temperature"),
    ({"temperature": 2.1}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"top_p": 1.5}, 400, "top_p"),
    ({"n": 0}, 400, "n"),
    ({"n": 9}, 400, "n"),
    ({"n": 10**9}, 400, "n"),
    ({"stop": ["a"] * 5}, 400, "stop"),
    ({"stop": [""]}, 400, "stop"),
    ({"stop": "s" * 1000}, 400, "stop"),
    ({"stop": {"a": 1}}, 400, "stop"),
    ({"seed": "x"}, 400, "seed"),
    ({"seed": 2**63}, 400, "seed"),
    ({"seed": 10**300}, 400, "seed"),
    ({"stream": "yes"}, 400, "stream"),
    ({"stream_options": {"pickle": "x"}}, 400, "stream_options"),
    ({"logit_bias": {str(i): 1 for i in range(301)}}, 400, "logit_bias"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"٣": 1}}, 400, "logit_bias"),
    ({"logit_bias": {"9" * 5000: 1}}, 400, "logit_bias"),
    ({"logit_bias": {"1": 1000}}, 400, "logit_bias"),
    ({"tools": [{"type": "function"}]}, 400, "tools"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"chat_template": "{{ ''.__class__ }}"}, 400, "chat_template"),
    ({"chat_template_kwargs": {"tokenize": True}}, 400, "chat_template_kwargs"),
    ({"add_generation_prompt": False}, 400, "add_generation_prompt"),
    ({"frequency_penalty": 1.0}, 400, "frequency_penalty"),
    ({"top_logprobs": 20}, 400, "top_logprobs"),
    ({"user": "u" * 10_000}, 400, "user"),
    ({"__class__": "x"}, 400, "__class__"),
    ({"\ud800": 1}, 400, None),
]
TEXT_CASES = [
    ({"prompt": None}, 400),
    ({"prompt": []}, 400),
    ({"prompt": [[]]}, 400),
    ({"prompt": [1, "a"]}, 400),
    ({"prompt": [-1]}, 400),
    ({"prompt": [10**6]}, 400),
    ({"prompt": [10**40]}, 400),
    ({"prompt": [1.5]}, 400),
    ({"prompt": ["a"] * 9}, 400),
    ({"prompt": ["a"] * 3, "n": 3}, 400),
    ({"prompt": {"text": "a"}}, 400),
    ({"prompt": "a" * 64}, 400),
    ({"echo": True}, 400),
    ({"best_of": 5}, 400),
    ({"suffix": "x"}, 400),
    ({"logprobs": 5}, 400),
]
# What is not even a request: body, headers, status.
JSON_TYPE = {"content-type": "application/json"}
RAW_CASES = [
    (b"", JSON_TYPE, 400),
    (b"{", JSON_TYPE, 400),
    (b"null", JSON_TYPE, 400),
    (b"[1, 2]", JSON_TYPE, 400),
    (b"\xff\xfe{}", JSON_TYPE, 400),
    (b'{"model": "tiny", "temperature": NaN}', JSON_TYPE, 400),
    (b'{"model": "tiny", "top_p": Infinity}', JSON_TYPE, 400),
    (b'{"seed": ' + b"9" * 10_000 + b"}", JSON_TYPE, 400),
    (b"[" * 200_000, JSON_TYPE, 400),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, JSON_TYPE, 400),
    (b"x" * 1_000_001, JSON_TYPE, 413),
    (json.dumps(CHAT).encode(), {"content-type": "text/plain"}, 415),
    (json.dumps(CHAT).encode(), {}, 415),
    (json.dumps(CHAT).encode(), {**JSON_TYPE, "x-long": "a" * 20_000}, 431),
]


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def check_refusal(response, status):
    assert response.status_code == status, response.text[:300]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert "Traceback" not in response.text and len(response.text) < 2000
    return error


@pytest.mark.parametrize(("change", "status", "param"), CHAT_CASES)
def test_chat_refusals(http, change, status, param):
    body = json.dumps({**CHAT, **change})
    response = http.post("/v1/chat/completions", content=body, headers=JSON_TYPE)
    error = check_refusal(response, status)
    assert param is None or error["param"].startswith(param)


@pytest.mark.parametrize(("change", "status"), TEXT_CASES)
def test_completion_refusals(http, change, status):
    response = http.post("/v1/completions", json={**TEXT, **change})
    check_refusal(response, status)


@pytest.mark.parametrize(("body", "headers", "status"), RAW_CASES)
def test_raw_refusals(http, body, headers, status):
    response = http.post("/v1/chat/completions", content=body, headers=headers)
    check_refusal(response, status)


def test_body_without_length_is_limited(http):
    def pieces():
        for _ in range(30):
            yield b"x" * 50_000

    response = http.post("/v1/completions", content=pieces(), headers=JSON_TYPE)
    check_refusal(response, 413)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/v1/models/%2e%2e%2fetc%2fpasswd", 404),
        ("GET", "/v1/models/%ff%00", 404),
        ("DELETE", "/v1/models/tiny", 405),
    ],
)
def test_wrong_paths(http, method, path, status):
    response = http.request(method, path, json={} if method == "POST" else None)
    check_refusal(response, status)


@pytest.mark.parametrize("text", ["\ud800 alone", "\x00\x07", "{{ 7*7 }}{% raw %}", "\u202e\ufeff"])
def test_strange_text_is_only_text(http, text):
    body = {"model": "tiny", **user(text), "max_tokens": 1}
    response = http.post("/v1/chat/completions", content=json.dumps(body), headers=JSON_TYPE)
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == 1


def test_bytes_that_are_not_http(server):
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTP/1.1\r\n\r\n", b"A" * 70_000):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        assert not answer or b" 400 " in answer.split(b"\r\n")[0]


def test_the_server_still_answers(http, server):
    response = http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 200 and server.service.worker.alive
    counts = http.get("/metrics").text
    assert not [line for line in counts.splitlines() if 'status="5' in line]
