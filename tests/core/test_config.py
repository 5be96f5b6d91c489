# SPDX-License-Identifier: Apache-2.0
"""The command line: every measured trap of ml_collections is closed."""

import json
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict, config_dict

from llm.core import config as configs
from llm.core import launch
from llm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TINY = "--config=configs/pretrain/tiny.py"


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def small():
    return ConfigDict(
        {
            "steps": 5,
            "rate": 0.1,
            "name": "adam",
            "on": False,
            "sizes": (1, 2),
            "words": ("a",),
            "limit": config_dict.placeholder(int),
            "inner": {"depth": 3},
        }
    )


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("steps", "1e3", 1000),
        ("steps", "10k", 10_000),
        ("steps", "2M", 2_000_000),
        ("steps", "1_000", 1000),
        ("steps", "-3", -3),
        ("steps", "12345678901234567891", 12345678901234567891),
        ("rate", "1e-4", 1e-4),
        ("rate", "3", 3.0),
        ("on", "true", True),
        ("on", "0", False),
        ("name", "none", "none"),
        ("sizes", "3,4,5", (3, 4, 5)),
        ("sizes", "(7,)", (7,)),
        ("words", "x, y", ("x", "y")),
        ("limit", "7", 7),
        ("limit", "none", None),
        ("inner.depth", "4", 4),
    ],
)
def test_values(field, text, value):
    config = small()
    configs.apply_override(config, field, text)
    found = config
    for part in field.split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("steps", "1.5"),
        ("steps", "many"),
        ("steps", "true"),
        ("rate", "fast"),
        ("on", "maybe"),
        ("sizes", "a,b"),
        ("limit", "x"),
        ("inner", "3"),
        ("inner.nope", "3"),
        ("stepz", "3"),
    ],
)
def test_wrong_values_are_refused(field, text):
    with pytest.raises(ConfigError):
        configs.apply_override(small(), field, text)


def test_one_edit_typos_get_the_right_suggestion():
    config = configs.load_file("configs/pretrain/tiny.py")
    names = list(configs.fields(config))
    rng = random.Random(0)
    right = total = 0
    for name in names:
        section, _, last = name.rpartition(".")
        place = rng.randrange(len(last))
        kinds = (
            last[:place] + last[place + 1 :],
            last[:place] + rng.choice(string.ascii_lowercase) + last[place:],
            last[:place] + rng.choice(string.ascii_lowercase) + last[place + 1 :],
        )
        for wrong in kinds:
            typo = f"{section}.{wrong}" if section else wrong
            if typo in names or not wrong:
                continue
            total += 1
            with pytest.raises(ConfigError) as caught:
                configs.apply_override(config, typo, "1")
            right += f"'config.{name}'" in str(caught.value)
    assert right / total >= 0.95


def test_bind_names_the_wrong_key():
    def builder(depth, *, width=3):
        return depth, width

    assert configs.bind(builder, {"name": "x", "depth": 1}, "model") == {"depth": 1}
    with pytest.raises(ConfigError, match=r"widht.*Did you mean 'width'"):
        configs.bind(builder, {"depth": 1, "widht": 2}, "model")
    with pytest.raises(ConfigError, match="depth is missing"):
        configs.bind(builder, {}, "model")


def test_secrets_stay_out():
    config = ConfigDict({"track": {"api_key": "abc", "max_tokens": 5}, "tokenizer": "byte"})
    shown = configs.to_dict(config)
    assert shown["track"] == {"api_key": "***", "max_tokens": 5}
    assert shown["tokenizer"] == "byte"


def test_command_line_forms():
    call = configs.parse(
        [TINY, "--config.train.steps", "7", "--workdir=/x", "--debug"], launch.OPTIONS
    )
    assert call.config.train.steps == 7
    assert call.options["workdir"] == "/x" and call.options["debug"] == "true"


def test_a_section_within_one_is_given_whole():
    config = ConfigDict({"rollout": {"rewards": {"exact": {"weight": 1.0}}, "more": {}}, "rows": 2})
    given = "{'pattern': {'weight': 0.5, 'regex': '5'}}"
    configs.apply_override(config, "rollout.rewards", given)
    assert config.rollout.rewards.to_dict() == {"pattern": {"weight": 0.5, "regex": "5"}}
    configs.apply_override(config, "rollout.rewards.pattern.weight", "2")
    assert config.rollout.rewards.pattern.weight == 2.0
    configs.apply_override(config, "rollout.more", '{"a": 1}')
    assert config.rollout.more.a == 1
    for name, text in (("rollout.rewards", "pattern"), ("rollout", given), ("rollout.more", "3")):
        with pytest.raises(ConfigError, match=f"config.{name} is a section"):
            configs.apply_override(config, name, text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "No config file"),
        (["--config=configs/pretrain/tinny.py"], "configs/pretrain/tiny.py"),
        ([TINY, "config.train.steps=3"], "--config.train.steps=3"),
        ([TINY, "--config.train.stepz=3"], "config.train.steps"),
        ([TINY, "--wrkdir=x"], "workdir"),
        ([TINY, "--config.train.steps"], "no value"),
        ([TINY, "--config.train={'steps': 3}"], "config.train is a section"),
    ],
)
def test_wrong_command_lines_exit_2(arguments, says, capsys):
    assert launch.main("pretrain", arguments, {}) == 2
    printed = capsys.readouterr().err
    assert says in printed and len(printed.splitlines()) <= 5


def test_refusal_and_help_do_not_import_jax():
    code = (
        "import sys; from llm.core import launch\n"
        f"assert launch.main('pretrain', [{TINY!r}, '--config.train.stepz=1'], {{}}) == 2\n"
        f"assert launch.main('pretrain', [{TINY!r}, '--help'], {{}}) == 0\n"
        "assert not {'jax', 'numpy', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "--config.train.steps=200  (int)" in done.stdout
    assert "Hardware: any CPU" in done.stdout, "what the config is for"


def test_print_config_is_json(capsys):
    assert launch.main("pretrain", [TINY, "--config.seed=4", "--print_config"], {}) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 4


def test_a_setting_that_a_config_lacks_is_named(tmp_path, capsys):
    place = tmp_path / "mine.py"
    place.write_text("import ml_collections\nget_config = ml_collections.ConfigDict\n")
    assert launch.main("eval", [f"--config={place}", f"--workdir={tmp_path / 'run'}"], {}) == 2
    said = capsys.readouterr().err
    assert "mine.py has no setting '" in said and "configs/eval/" in said
    with pytest.raises(KeyError) as caught:
        {}["absent"]
    assert configs.lacking(caught.value) == ""
