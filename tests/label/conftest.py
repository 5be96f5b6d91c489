# SPDX-License-Identifier: Apache-2.0
"""A labelling server as users start it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Running(NamedTuple):
    url: str
    process: subprocess.Popen
    folder: Path

    def lines(self, name):
        text = (self.folder / name).read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def stop(self, how=signal.SIGTERM):
        """End the server; return what it printed."""
        self.process.send_signal(how)
        return self.process.communicate(timeout=30)[0]


@pytest.fixture
def serve():
    """Return a function (folder, records) -> Running; with no records it goes on with the old."""
    with contextlib.ExitStack() as stack:

        def start(folder, records=(), **options):
            path = ""
            if records:
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / "answers.jsonl"
                path.write_text("\n".join(map(json.dumps, records)), "utf-8")
            (folder / "label.json").unlink(missing_ok=True)
            command = [sys.executable, "scripts/label.py", "--config=configs/label/tiny.py"]
            command += [f"--config.path={path}", "--config.port=0", f"--workdir={folder}"]
            command += [f"--config.{key}={value}" for key, value in options.items()]
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            while not (folder / "label.json").exists():
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.02)
            url = json.loads((folder / "label.json").read_text("utf-8"))["url"]
            return Running(url, process, folder)

        yield start
