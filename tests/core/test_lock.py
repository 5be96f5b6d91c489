# SPDX-License-Identifier: Apache-2.0
"""One run per directory, whoever dies and however."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from llm.core import lock
from llm.errors import StorageError

CHILD = """
import sys, time
from llm.core import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def child(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_launch_is_refused_and_told_who_holds_it(tmp_path, child):
    with (
        pytest.raises(StorageError, match=f"process {child.pid} on {socket.gethostname()}"),
        lock.hold(tmp_path),
    ):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path, child):
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == child.pid
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_two_holders_in_one_process_are_refused_and_release_frees(tmp_path):
    with lock.hold(tmp_path), pytest.raises(StorageError, match="in use"), lock.hold(tmp_path):
        pass
    for _ in range(2):
        with lock.hold(tmp_path):
            pass


def test_only_process_zero_locks(tmp_path):
    with lock.hold(tmp_path), lock.hold(tmp_path, process_index=1):
        pass


def test_an_unusable_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"), lock.hold(tmp_path / "file" / "run"):
        pass


@pytest.fixture
def no_system_locks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def write_holder(folder, **changes):
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": None}
    (folder / ".lock").write_text(json.dumps(holder | changes))


def test_without_system_locks_the_name_decides(tmp_path, no_system_locks):
    with lock.hold(tmp_path), pytest.raises(StorageError, match="in use"), lock.hold(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()
    write_holder(tmp_path, host="elsewhere")
    with pytest.raises(StorageError, match="on elsewhere"), lock.hold(tmp_path):
        pass


def test_without_system_locks_the_dead_are_taken_over(tmp_path, no_system_locks):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_holder(tmp_path, pid=gone.pid)
    with lock.hold(tmp_path):
        pass
    # The number of a dead holder, used again by another process: its start mark differs.
    write_holder(tmp_path, started="1")
    with lock.hold(tmp_path):
        pass
    (tmp_path / ".lock").write_text("not JSON")
    with lock.hold(tmp_path):
        pass
