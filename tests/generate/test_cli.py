# SPDX-License-Identifier: Apache-2.0
"""scripts/generate.py: what it prints, what it refuses, and with which exit codes."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from llm.generate import cli
from llm.generate.language_model import LanguageModel

SCRIPT = Path(__file__).parents[2] / "scripts" / "generate.py"


@pytest.fixture(scope="module")
def saved(lm, tmp_path_factory):
    place = tmp_path_factory.mktemp("model") / "lm"
    lm.save(place)
    return str(place)


def test_the_continuation_is_streamed_to_stdout(lm, saved, capsys):
    assert cli.main(["--model", saved, "--prompt=hello", "--max_tokens=20", "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == lm.generate("hello", max_tokens=20)[0] + "\n"
    assert "tokens/s" in err


def test_the_prompt_may_come_from_stdin_and_be_a_chat(lm, saved, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi"))
    assert cli.main([f"--model={saved}", "--chat", "--max_tokens=8"]) == 0
    wanted = lm.generate([{"role": "user", "content": "hi"}], max_tokens=8)[0]
    assert capsys.readouterr().out == wanted + "\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "--model"),
        (["--model=x", "--temprature=1"], "Did you mean '--temperature'"),
        (["--model=x", "--top_k=many", "--prompt=a"], "invalid int"),
        (["--model=/nowhere", "--prompt=a"], "does not exist"),
    ],
)
def test_wrong_commands_exit_with_2(arguments, message, capsys):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) <= 5


def test_help_is_quick_and_loads_no_jax():
    code = (
        "import sys; from llm.generate import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "--temperature" in done.stdout


def test_interrupting_ends_cleanly(saved, capsys, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(LanguageModel, "stream_pieces", interrupted)
    assert cli.main([f"--model={saved}", "--prompt=a"]) == 130
    assert capsys.readouterr().err.strip() == "stopped"


def test_the_script_runs_from_anywhere(tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model=missing", "--prompt=a"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: missing does not exist")
