# SPDX-License-Identifier: Apache-2.0
"""The labelling page's server: a few routes on the standard library, for people on this machine.

What could go wrong from outside: another page in the same browser calls us (every call needs a
token that only our page holds), a foreign name is pointed at this address (only our own names are
answered), and texts that contain markup (they are sent as JSON and shown as text; the content
policy forbids everything that is not ours).
"""

import hmac
import json
import math
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llm import files
from llm.errors import ConfigError, UserError
from llm.label import page
from llm.label.ledger import Ledger, Refused
from llm.label.tasks import order, queue

LARGEST = 1 << 14  # bytes of a request
LONGEST_NAME = 40
PATIENCE = 30  # seconds that a silent connection is kept
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Service:
    """What the page may ask for; each method takes and returns JSON objects.

    Args:
        ledger: where decisions go.
        per_task: how many annotators a task needs; 0 gives every task to everybody.
    """

    def __init__(self, ledger: Ledger, per_task: int = 0):
        self.ledger = ledger
        self.per_task = per_task
        self.calls: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "/api/next": self.next,
            "/api/label": self.label,
            "/api/undo": self.undo,
        }

    def next(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the task to show, or none, and how far the annotator is."""
        annotator = name_of(request)
        done = self.ledger.done(annotator)
        tasks = self._open(annotator, done)
        progress = {"done": len(done), "total": len(done) + len(tasks), "task": None}
        return {**progress, "task": self._shown(tasks[0].id, annotator)} if tasks else progress

    def label(self, request: dict[str, Any]) -> dict[str, Any]:
        """Record a decision and return what is next."""
        annotator = name_of(request)
        seconds = request.get("seconds", 0)
        if type(seconds) not in (int, float) or not math.isfinite(seconds) or seconds < 0:
            raise Refused("The time taken is no number of seconds.")
        self.ledger.label(
            annotator,
            str(request.get("task")),
            str(request.get("choice")),
            request.get("ranking"),
            float(seconds),
        )
        self.ledger.export()
        return self.next(request)

    def undo(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the newest decision back and return its task."""
        annotator = name_of(request)
        task = self.ledger.undo(annotator)
        self.ledger.export()
        return {**self.next(request), "task": self._shown(task, annotator)}

    def _open(self, annotator: str, done: set[str]) -> list[Any]:
        """List what an annotator has still to do: what others began comes first."""
        tasks = queue(list(self.ledger.tasks.values()), annotator, self.ledger.seed)
        waiting = [task for task in tasks if task.id not in done]
        if not self.per_task:
            return waiting
        taken: dict[str, int] = {}
        for label in self.ledger.labels():
            taken[label.task] = taken.get(label.task, 0) + (label.choice != "skip")
        needed = [task for task in waiting if taken.get(task.id, 0) < self.per_task]
        return sorted(needed, key=lambda task: -taken.get(task.id, 0))

    def _shown(self, task_id: str, annotator: str) -> dict[str, Any]:
        task = self.ledger.tasks[task_id]
        places = order(task, annotator, self.ledger.seed)
        prompt = task.prompt
        if isinstance(prompt, str):
            prompt = [{"role": "prompt", "content": prompt}]
        return {"id": task.id, "prompt": prompt, "answers": [task.answers[i] for i in places]}


def name_of(request: dict[str, Any]) -> str:
    """Return the annotator's name.

    Raises:
        Refused: it is missing, too long, or has characters that do not print.
    """
    name = request.get("annotator")
    if not isinstance(name, str) or not 0 < len(name.strip()) <= LONGEST_NAME:
        raise Refused(f"A name has 1 to {LONGEST_NAME} characters.", "Enter your name.")
    if not name.isprintable():
        raise Refused("The name has characters that do not print.", "Enter your name.")
    return name.strip()


def make(service: Service, host: str, port: int) -> ThreadingHTTPServer:
    """Make the server; `serve_forever` runs it. Port 0 takes a free one.

    Raises:
        ConfigError: the address is in use or not ours.
    """
    token = secrets.token_urlsafe(24)

    class Handler(_Handler):
        pass

    Handler.service, Handler.token, Handler.local = service, token, host in LOOPBACK
    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"Cannot listen on {host}:{port}: {error.strerror or error}.",
            "Choose another --config.port, or 0 for a free one.",
        ) from error
    server.daemon_threads = True
    return server


class _Handler(BaseHTTPRequestHandler):
    service: Service
    token: str
    local: bool
    server_version, sys_version = "label", ""
    timeout = PATIENCE

    def do_GET(self) -> None:
        """Send the page or one of its two files."""
        if not self._is_ours():
            return
        if self.path.split("?")[0] == "/":
            self._send(200, "text/html", page.html(self.token))
        elif self.path in page.FILES:
            kind, content = page.FILES[self.path]
            self._send(200, kind, content)
        else:
            self._fail(404, "There is nothing here.")

    def do_POST(self) -> None:
        """Answer a call of the page."""
        if not self._is_ours():
            return
        given = self.headers.get("X-Label-Token", "")
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode()):
            self._fail(403, "The page is older than the server. Load it again.")
            return
        call = self.service.calls.get(self.path)
        length = self.headers.get("Content-Length", "")
        if call is None:
            self._fail(404, "There is nothing here.")
        elif not length.isdecimal() or int(length) > LARGEST:
            self._fail(413, "The request is too long.")
        else:
            self._call(call, self.rfile.read(int(length)))

    def _call(self, call: Callable[[dict[str, Any]], dict[str, Any]], body: bytes) -> None:
        try:
            request = files.parse_json(body.decode("utf-8"))
            if not isinstance(request, dict):
                raise ValueError("not an object")
        except ValueError:
            self._fail(400, "The request is not a JSON object.")
            return
        try:
            answer = call(request)
        except Refused as error:
            self._fail(409, str(error))
        except (UserError, OSError) as error:  # the disk: say so, the decision was not taken
            self._fail(500, f"Not saved: {error}")
        else:
            self._send(200, "application/json", json.dumps(answer))

    def _is_ours(self) -> bool:
        """Refuse names that are not of this machine: a foreign page may point its own name here."""
        name = self.headers.get("Host", "").rpartition(":")[0].strip("[]")
        if self.local and name not in LOOPBACK:
            self._fail(403, "Open the page by its own address.")
            return False
        return True

    def _fail(self, code: int, problem: str) -> None:
        self.close_connection = True
        self._send(code, "application/json", json.dumps({"error": problem}))

    def _send(self, code: int, kind: str, content: str) -> None:
        body = content.encode("utf-8", "replace")
        self.send_response(code)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal free of a line per request."""


def start(server: ThreadingHTTPServer) -> threading.Thread:
    """Run a server in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return thread
