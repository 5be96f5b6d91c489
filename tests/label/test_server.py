# SPDX-License-Identifier: Apache-2.0
"""The page's server over HTTP: refusals, headers, resumption, and kills at any moment."""

import json
import random
import re
import signal
import threading
import urllib.error
import urllib.request

import pytest

from llm.label import page, server, tasks
from llm.label.ledger import Ledger

RECORDS = [{"prompt": f"Q{i}", "answers": [f"a{i}", f"b{i}"]} for i in range(60)]


class Client:
    def __init__(self, url):
        self.url = url
        self.token = re.search('name="token" content="([^"]+)"', self.get("/")[2])[1]

    def open(self, path, data=None, headers=()):
        request = urllib.request.Request(self.url.rstrip("/") + path, data, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                return reply.status, reply.headers, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def get(self, path, **headers):
        return self.open(path, None, headers)

    def post(self, path, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"X-Label-Token": self.token, "Content-Type": "application/json"} | headers
        status, _, text = self.open(path, data, headers)
        return status, json.loads(text)


@pytest.fixture
def client(tmp_path):
    listed = [tasks.from_record(r, {"file": "f", "hash": "0"}, "r") for r in RECORDS[:4]]
    service = server.Service(Ledger(str(tmp_path), listed))
    web = server.make(service, "127.0.0.1", 0)
    server.start(web)
    found = Client(f"http://127.0.0.1:{web.server_address[1]}/")
    found.service, found.folder = service, tmp_path
    yield found
    web.shutdown()
    web.server_close()


def test_the_page_allows_nothing_from_elsewhere(client):
    for path in ("/", "/label.js", "/label.css"):
        status, headers, text = client.get(path)
        policy = headers["Content-Security-Policy"]
        assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "http://" not in text and "https://" not in text
    assert client.get("/labels.jsonl")[0] == client.get("/../setup.py")[0] == 404
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert unsafe not in page.JS
    assert "<script>" not in page.html("t") and " style=" not in page.html("t")


def test_calls_from_elsewhere_are_refused(client):
    body = {"annotator": "anna"}
    assert client.post("/api/next", body, **{"X-Label-Token": "guess"})[0] == 403
    assert client.post("/api/next", body, **{"X-Label-Token": ""})[0] == 403
    assert client.get("/", Host="evil.example:80")[0] == 403
    assert client.post("/api/next", body, Host="evil.example:80")[0] == 403
    assert client.get("/", Host="localhost:80")[0] == 200
    assert client.post("/api/next", body)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"\xff",
        b"[" * 9000,
        {"annotator": ""},
        {"annotator": 5},
        {"annotator": "x" * 41},
        {"annotator": "a\u202eb"},
        {"annotator": "anna", "seconds": "1"},
        {"annotator": "anna", "seconds": -1},
        {"annotator": "anna", "seconds": 1, "task": "unknown", "choice": "left"},
        b'{"annotator": "anna", "seconds": NaN}',
    ],
)
def test_bad_requests_are_refused_and_change_nothing(client, body):
    status, answer = client.post("/api/label", body)
    assert status in (400, 409) and answer["error"]
    assert client.service.ledger.labels() == []
    assert client.post("/api/label", b"x" * (server.LARGEST + 1))[0] == 413


def test_a_whole_session(client):
    seen = []
    status, found = client.post("/api/next", {"annotator": " anna "})
    while found["task"]:
        seen.append(found["task"]["id"])
        body = {"annotator": "anna", "task": seen[-1], "choice": "right", "seconds": 0.5}
        status, found = client.post("/api/label", body)
        assert status == 200 and found["done"] == len(seen) and found["total"] == 4
    assert len(set(seen)) == 4
    assert client.post("/api/undo", {"annotator": "anna"})[1]["task"]["id"] == seen[-1]
    lines = (client.folder / "preferences.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["meta"]["task"] for line in lines] == seen[:3]
    assert client.post("/api/undo", {"annotator": "ben"})[0] == 409


def test_tasks_are_shared_among_annotators(tmp_path):
    listed = [tasks.from_record(r, {"file": "f", "hash": "0"}, "r") for r in RECORDS[:10]]
    service = server.Service(Ledger(str(tmp_path), listed), per_task=2)
    counts = {}
    for turn in range(30):
        name = {"annotator": ("anna", "ben", "cleo")[turn % 3]}
        task = service.next(name)["task"]
        if task:
            counts[task["id"]] = counts.get(task["id"], 0) + 1
            service.label({**name, "task": task["id"], "choice": "tie", "seconds": 1})
    assert len(counts) == 10 and set(counts.values()) == {2}


def test_killed_while_labelling_keeps_every_confirmed_label(serve, tmp_path):
    generator = random.Random(0)
    confirmed = {}
    for round_number in range(3):
        running = serve(tmp_path, RECORDS if round_number == 0 else ())
        client = Client(running.url)
        assert client.post("/api/next", {"annotator": "anna"})[1]["done"] >= len(confirmed)
        timer = threading.Timer(generator.uniform(0.02, 0.2), running.process.kill)
        timer.start()
        try:
            found = client.post("/api/next", {"annotator": "anna"})[1]
            while found["task"]:
                task, choice = found["task"]["id"], generator.choice(("left", "right"))
                body = {"annotator": "anna", "task": task, "choice": choice, "seconds": 1}
                status, found = client.post("/api/label", body)
                if status == 200:
                    confirmed[task] = choice
        except (OSError, ValueError):
            pass  # the kill
        timer.join()
        running.process.wait()
    running = serve(tmp_path)
    output = running.stop(signal.SIGINT)
    assert running.process.returncode == 0 and "preference pairs" in output
    logged = {e["task"]: e["choice"] for e in running.lines("labels.jsonl")}
    assert confirmed and confirmed.items() <= logged.items()
    made = {p["meta"]["task"]: p["meta"]["choice"] for p in running.lines("preferences.jsonl")}
    assert made == logged and not (tmp_path / "label.json").exists()


def test_a_second_server_on_one_folder_is_refused(serve, tmp_path):
    running = serve(tmp_path, RECORDS)
    with pytest.raises(AssertionError, match="in use by process"):
        serve(tmp_path / "." / "", ())
    assert running.process.poll() is None
