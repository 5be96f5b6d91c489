# SPDX-License-Identifier: Apache-2.0
"""The labelling page in a real Chromium: keys, rankings, undo, reloads, hostile texts."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
driving = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(driving)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (driving.CHROMIUM and driving.DRIVER),
        reason="chromium and chromedriver are not installed (apt-get install chromium-driver)",
    ),
]

HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "</div></button><h1 id=planted>planted</h1>",
    "<style>*{display:none}</style>&lt;b&gt;&amp;",
    "\u202egnihtyna\u202c and \u0000\u0007 controls",
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe>",
    "{{7*7}} ${7*7} <svg onload=window.hit=1>",
    "javascript:window.hit=1",
]


@pytest.fixture
def window(tmp_path):
    with driving.browser(tmp_path) as found:
        yield found


def begin(window, url, name="anna"):
    window.open(url)
    window.click("#name")
    window.press(*name, "Enter")
    window.wait("return !document.getElementById('work').hidden")


def decide(window, *keys):
    """Press keys and wait until the decision is kept and the next task shown."""
    before = window.run("return document.body.dataset.done")
    window.press(*keys)
    window.wait("return document.body.dataset.done !== arguments[0]", before)


def picture(window, name, **size):
    """Keep a screenshot where LABEL_SCREENSHOTS says."""
    if os.environ.get("LABEL_SCREENSHOTS"):
        window.screenshot(f"{os.environ['LABEL_SCREENSHOTS']}/{name}.png", **size)


def test_pairs_by_keyboard(serve, window, tmp_path):
    chat = [
        {"role": "user", "content": "What is a list comprehension?"},
        {"role": "assistant", "content": "A short way to build a list."},
        {"role": "user", "content": "Show me one, please."},
    ]
    code = "Here it is:\n\n    squares = [n * n for n in range(10)]\n\nIt reads like the loop."
    records = [
        {"prompt": chat, "answers": [{"text": f"{code} ({i})", "model": "ours"}, f"No. ({i})"]}
        for i in range(6)
    ]
    running = serve(tmp_path / "labels", records)
    window.open(running.url)
    picture(window, "enter")
    begin(window, running.url)
    picture(window, "pair")
    picture(window, "narrow", width=500, height=900)
    shown = []
    for key in ("Left", "Right", "t", "b", "s", "1"):
        shown.append(window.texts(".answer .text"))
        decide(window, key)
    window.wait("return !document.getElementById('end').hidden")
    picture(window, "end")
    events = running.lines("labels.jsonl")
    choices = [event["choice"] for event in events]
    assert choices == ["left", "right", "tie", "both_bad", "skip", "left"]
    assert all(0 < event["seconds"] < 60 for event in events)
    found = running.lines("preferences.jsonl")
    expected = [tuple(shown[0]), tuple(shown[1][::-1]), tuple(shown[5])]
    sides = [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in found]
    assert sides == expected and found[0]["prompt"] == chat

    decide(window, "u")
    window.wait("return !document.getElementById('work').hidden")
    assert window.texts(".answer .text") == shown[5]
    running.stop(signal.SIGKILL)
    window.press("Right")
    window.wait("return !document.getElementById('problem').hidden")
    assert "does not answer" in window.text("#problem")
    again = serve(tmp_path / "labels")
    window.open(again.url)  # another port: another origin, so the name is asked for again
    begin(window, again.url)
    assert window.texts(".answer .text") == shown[5] and window.text("#count") == "5 of 6"
    decide(window, "Right")
    output = again.stop()
    assert "anna: 6 labels" in output and len(again.lines("preferences.jsonl")) == 3
    assert [entry for entry in window.log() if "Refused" in entry["message"]] == []


def test_rankings_and_hostile_text(serve, window, tmp_path):
    records = [
        {"prompt": HOSTILE[0], "answers": HOSTILE[:4]},
        {"prompt": [{"role": HOSTILE[2], "content": HOSTILE[5]}], "answers": HOSTILE[4:7]},
    ]
    running = serve(tmp_path / "labels", records)
    begin(window, running.url, "ben")
    for _ in records:
        texts = window.texts(".answer .text")
        assert set(texts) in [
            {t.replace("\u0000", "\u0000") for t in r["answers"]} for r in records
        ]
        count = len(texts)
        window.press("2", "1", "=", "3", *("4" if count == 4 else ""))
        picture(window, f"ranking{count}")
        assert window.texts(".rank")[:3] == ["second", "best", "second"]
        decide(window, "Enter")
    assert window.run("return window.hit === undefined && !document.getElementById('planted')")
    assert (
        window.run("return document.querySelectorAll('img, iframe, svg, main script').length") == 0
    )
    made = running.lines("preferences.jsonl")
    assert len(made) == (1 + 1 + 1 + 1 + 1) + 2  # tiers 1, 2, 1 of four and 1, 2 of three
    assert {pair["meta"]["choice"] for pair in made} == {"ranking"}
    running.stop()
