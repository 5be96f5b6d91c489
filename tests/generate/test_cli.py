# SPDX-License-Identifier: Apache-2.0
"""scripts/generate.py: what it prints, what it refuses, and with which exit codes."""

import io
import json
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


def test_several_prompts_and_written_chats(lm, saved, tmp_path, capsys):
    answers = lm.generate(["a", "b"], max_tokens=8)
    assert cli.main([f"--model={saved}", "--prompt=a", "--prompt=b", "--max_tokens=8"]) == 0
    assert capsys.readouterr().out == f"> a\n{answers[0]}\n> b\n{answers[1]}\n"
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    file = tmp_path / "chats.jsonl"
    file.write_text("\n" + json.dumps({"messages": chat}) + "\n" + json.dumps({"messages": chat}))
    assert cli.main([f"--model={saved}", f"--chats={file}", "--limit=1", "--max_tokens=8"]) == 0
    wanted = lm.generate([chat[:1]], max_tokens=8)[0]
    assert capsys.readouterr().out == f"> hi\nwritten: yes\nmodel:   {wanted}\n"
    file.write_text('{"text": "no"}')
    assert cli.main([f"--model={saved}", f"--chats={file}"]) == 3
    assert "line 1: not a chat" in capsys.readouterr().err


def test_talking_at_the_terminal_remembers_what_was_said(lm, saved, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("hi\nmore\n"))
    assert cli.main([f"--model={saved}", "--chat", "--max_tokens=8"]) == 0
    messages = [{"role": "user", "content": "hi"}]
    first = lm.generate([messages], max_tokens=8)[0]
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "more"}]
    second = lm.generate([messages], max_tokens=8)[0]
    out = capsys.readouterr().out
    assert f"> {first}\n" in out and f"> {second}\n" in out


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
