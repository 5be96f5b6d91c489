# SPDX-License-Identifier: Apache-2.0
"""Load, keys, clients that leave, and shutting down."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import openai
import pytest

from llm.errors import ConfigError
from llm.serve.settings import check, is_loopback

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40}


def wait_for(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_public_address_needs_a_key(monkeypatch):
    monkeypatch.delenv("LLM_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(ConfigError, match="API key"):
            check(host=host)
    assert check(host="0.0.0.0", api_key="a long key").host == "0.0.0.0"
    monkeypatch.setenv("LLM_API_KEY", "from the environment")
    assert check(host="0.0.0.0").api_key == "from the environment"
    assert check().host == "127.0.0.1"
    assert is_loopback("::1") and is_loopback("127.3.2.1") and is_loopback("localhost")


@pytest.mark.parametrize(
    "wrong", [{"port": 70_000}, {"max_queue": 0}, {"api_key": "short"}, {"api_key": "ключ ключ"}]
)
def test_wrong_settings(wrong):
    with pytest.raises(ConfigError):
        check(**wrong)


def test_key(scripted):
    key = "a-long-secret-key"
    with scripted(api_key=key) as running:
        url = f"{running.url}/v1"
        for given in ("wrong", key[:-1], key + "x", "é"):
            response = httpx.get(
                f"{url}/models", headers={b"Authorization": f"Bearer {given}".encode()}
            )
            assert response.status_code == 401 and key not in response.text
        for header in ({}, {"Authorization": key}, {"Authorization": f"Basic {key}"}):
            assert httpx.get(f"{url}/models", headers=header).status_code == 401
            assert httpx.post(f"{url}/completions", json=CHAT, headers=header).status_code == 401
            assert httpx.get(f"{running.url}/metrics", headers=header).status_code == 401
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert httpx.get(f"{running.url}/ready").status_code == 200
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="no", max_retries=0).models.list()
        assert openai.OpenAI(base_url=url, api_key=key, max_retries=0).models.list().data


def test_a_full_line_refuses(scripted):
    with scripted(pace=0.02, max_queue=2) as running:
        url = f"{running.url}/v1/chat/completions"
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(httpx.post(url, json=CHAT, timeout=30)))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        worker = running.service.worker
        wait_for(lambda: worker.running + worker.waiting == 2)
        refused = httpx.post(url, json=CHAT)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]
        # n choices need n places, all or none.
        many = httpx.post(url, json={**CHAT, "n": 3})
        assert many.status_code == 429 and worker.running + worker.waiting == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(scripted, stream):
    with scripted(pace=0.05) as running:
        worker = running.service.worker
        url = f"{running.url}/v1/chat/completions"
        body = {**CHAT, "stream": stream}
        with httpx.Client(timeout=0.4) as client:
            if stream:
                with client.stream("POST", url, json=body) as response:
                    next(response.iter_lines())
                    assert worker.running == 1
            else:
                with pytest.raises(httpx.ReadTimeout):
                    client.post(url, json=body)
        steps = len(running.log)
        wait_for(lambda: worker.running == 0)
        assert len(running.log) - steps <= 10
        wait_for(lambda: running.service.in_flight == 0)


def test_short_requests_overtake_long_ones(scripted):
    with scripted(pace=0.02) as running:
        url = f"{running.url}/v1/chat/completions"
        done = []
        long = threading.Thread(
            target=lambda: done.append(("long", httpx.post(url, json=CHAT, timeout=30)))
        )
        long.start()
        wait_for(lambda: running.service.worker.running == 1)
        done.append(("short", httpx.post(url, json={**CHAT, "max_tokens": 3}, timeout=30)))
        long.join()
        assert [name for name, _ in done] == ["short", "long"]


def test_answers_do_not_depend_on_neighbours(server):
    body = {"model": "tiny", "temperature": 0, "max_tokens": 16}
    prompts = ["Tell", "me, please", "x", "something"]

    def ask(prompt):
        answer = httpx.post(
            f"{server.url}/v1/completions", json={**body, "prompt": prompt}, timeout=120
        )
        return [choice["text"] for choice in answer.json()["choices"]]

    assert ask(prompts) == [text for prompt in prompts for text in ask(prompt)]


def test_a_broken_model_fails_its_requests_only(scripted):
    with scripted() as running:
        worker = running.service.worker
        device = worker.engine._device
        device.pace = "broken"
        url = f"{running.url}/v1/chat/completions"
        response = httpx.post(url, json=CHAT)
        assert response.status_code == 500
        assert "ZeroDivision" not in response.text
        streamed = httpx.post(url, json={**CHAT, "stream": True}).text
        assert '"error"' in streamed and streamed.endswith("data: [DONE]\n\n")
        device.pace = 0.0
        assert httpx.post(url, json=CHAT).status_code == 200


def test_draining_ends_what_runs_and_refuses_what_comes(scripted):
    with scripted(pace=0.02) as running:
        url = f"{running.url}/v1/chat/completions"
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(url, json=CHAT, timeout=30))
        )
        thread.start()
        wait_for(lambda: running.service.worker.running == 1)
        running.server.handle_exit(signal.SIGTERM, None)
        refused = httpx.post(url, json=CHAT)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert httpx.get(f"{running.url}/ready").status_code == 503
        assert httpx.get(f"{running.url}/health").status_code == 200
        thread.join()
        assert answers[0].status_code == 200
        assert answers[0].json()["usage"]["completion_tokens"] == 40
        wait_for(lambda: running.server.should_exit)


def test_the_stage_serves_and_drains_on_sigterm(lm, tmp_path):
    lm.save(tmp_path / "model")
    program = (
        "import ml_collections, sys\n"
        "from llm.serve.stage import run\n"
        "config = ml_collections.ConfigDict({'model': sys.argv[1], 'dtype': 'float32',\n"
        "    'weights': 'float', 'serve': {'port': 0, 'model_name': 'tiny'}})\n"
        "run(config, sys.argv[2])\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "model"), str(tmp_path / "run")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=dict(os.environ))
    announce = tmp_path / "run" / "server.json"
    try:
        wait_for(lambda: announce.exists() or process.poll() is not None, 60)
        where = json.loads(announce.read_text())
        assert where["pid"] == process.pid and where["host"] == "127.0.0.1"
        url = f"http://127.0.0.1:{where['port']}/v1"
        with openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
            answer = client.completions.create(
                model="tiny", prompt="ab", max_tokens=4, temperature=0
            )
        assert answer.choices[0].text == lm.complete(["ab"], max_tokens=4)[0].text
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not announce.exists()
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
