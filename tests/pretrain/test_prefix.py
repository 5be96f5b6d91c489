# SPDX-License-Identifier: Apache-2.0
"""Prefix LM, UL2 and fill-in-the-middle against examples worked out by hand."""

import numpy as np
import pytest

from llm import tokenizers
from llm.errors import ConfigError
from llm.pretrain import denoise, fim, prefix

BYTE = tokenizers.load("byte")
PAD, START, END = BYTE.pad_id, BYTE.bos_id, BYTE.eos_id
PRE, SUF, MID = (BYTE.special_tokens[f"<|fim_{n}|>"] for n in ("prefix", "suffix", "middle"))
MODE = {m: BYTE.special_tokens[f"<|spare_{i}|>"] for i, m in enumerate("RXS")}
X0, X1 = BYTE.vocab_size, BYTE.vocab_size + 1  # the first two sentinels


class Scripted:
    """A random generator that answers what it is told."""

    def __init__(self, **answers):
        self.answers = {name: iter(values) for name, values in answers.items()}

    def random(self, size=None):
        return np.array(next(self.answers["random"]))

    def integers(self, low, high):
        return next(self.answers["integers"])

    def choice(self, size, p=None):
        return next(self.answers["choice"])


def script(monkeypatch, **answers):
    monkeypatch.setattr(denoise, "generator", lambda seed, number: Scripted(**answers))


def row(*texts, length):
    """Pack texts as training does: start, letters; targets are the letters and the end."""
    fields = {name: [] for name in ("tokens", "targets", "weights", "segments", "positions")}
    for number, text in enumerate(texts, start=1):
        ids = BYTE.encode(text)
        size = len(ids) + 1
        fields["tokens"] += [START, *ids]
        fields["targets"] += [*ids, END]
        fields["weights"] += [1.0] * size
        fields["segments"] += [number] * size
        fields["positions"] += list(range(size))
    kinds = {"weights": np.float32}
    return {
        name: np.pad(np.array(values), (0, length - len(values)))[None].astype(
            kinds.get(name, np.int32)
        )
        for name, values in fields.items()
    }


def ids(text):
    return BYTE.encode(text)


def test_prefix_lm_by_hand(monkeypatch):
    script(monkeypatch, integers=[3, 1])
    transform = prefix.prefix_lm(BYTE, length=12)
    made = transform(row("abcde", "xyz", length=12), np.zeros(1))
    # <s>ab|cde and <s>|xyz: from the last token of the prefix on, what comes next is learned.
    np.testing.assert_array_equal(made["prefix"][0], [1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(made["weights"][0], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(made["tokens"], row("abcde", "xyz", length=12)["tokens"])


def test_borders_are_uniform():
    block = {k: np.repeat(v, 3000, axis=0) for k, v in row("abcde", length=6).items()}
    made = prefix.prefix_lm(BYTE, length=6)(block, np.arange(3000))
    counts = np.bincount(made["prefix"].sum(axis=1), minlength=7)
    assert counts[0] == 0 and counts[6] == 0
    np.testing.assert_allclose(counts[1:6] / 3000, 0.2, atol=0.03)


def test_ul2_by_hand(monkeypatch):
    """Two documents in a row: the first regularly denoised, the second sequentially."""
    script(monkeypatch, choice=[0, 1])
    mask = np.array([0, 0, 1, 1, 0, 0, 1, 0], bool)
    monkeypatch.setattr(prefix, "random_spans", lambda *a: mask)
    tasks = [("R", 1.5, 0.4), ("S", 0, 0.25)]
    rows = row("abcdefg", "stu", length=12)
    made = prefix.ul2(BYTE, length=12, denoisers=tasks)(rows, np.zeros(1))
    a = ids("abcdefg")
    first = [MODE["R"], START, a[0], X0, a[3], a[4], X1, a[6]]
    second = [MODE["S"], START, *ids("st"), X0]
    got = {name: values[0] for name, values in made.items()}
    lengths = prefix.ul2_lengths(12, tasks)
    assert len(got["encoder_tokens"]) == lengths[0] and len(got["tokens"]) == lengths[1]
    joined = [*first, *second][: lengths[0]]
    assert got["encoder_tokens"][: len(joined)].tolist() == joined
    targets = [X0, a[1], a[2], X1, a[5], END, X0, *ids("u"), END]
    assert got["targets"][: len(targets)].tolist() == targets[: lengths[1]]
    shifted = [PAD, X0, a[1], a[2], X1, a[5], PAD, X0, *ids("u")]
    assert got["tokens"][: len(shifted)].tolist() == shifted[: lengths[1]]
    assert got["segments"][:9].tolist() == [1] * 6 + [2] * 3
    assert got["positions"][:9].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]


def test_ul2_for_a_decoder_by_hand(monkeypatch):
    script(monkeypatch, choice=[0])
    tasks = [("S", 0, 0.25)]
    rows = row("abcdefg", length=8)
    made = prefix.ul2(BYTE, length=8, denoisers=tasks, decoder_only=True)(rows, np.zeros(1))
    a = ids("abcdefg")
    source, target = [MODE["S"], START, *a[:5], X0], [X0, *a[5:], END]
    whole = [*source, *target]
    got = {name: values[0].tolist() for name, values in made.items()}
    assert got["tokens"] == whole[:-1] and got["targets"] == whole[1:]
    assert got["prefix"] == [1] * 8 + [0] * 3
    assert got["weights"] == [0] * 7 + [1] * 4
    assert got["segments"] == [1] * 11


def test_ul2_draws_its_tasks_evenly_and_hides_what_they_say():
    length, count = 128, 1400
    letters = np.random.default_rng(0).integers(16 + 97, 16 + 123, (count, length))
    rows = {
        "tokens": letters.astype(np.int32),
        "segments": np.ones((count, length), np.int32),
    }
    made = prefix.ul2(BYTE, length=length)(rows, np.arange(count))
    modes = made["encoder_tokens"][:, 0]
    shares = [float((modes == MODE[mode]).mean()) for mode in "RXS"]
    np.testing.assert_allclose(shares, [2 / 7, 4 / 7, 1 / 7], atol=0.04)
    hidden = ((made["targets"] < X0) & (made["targets"] != END) & (made["weights"] > 0)).sum(1)
    assert hidden[modes == MODE["R"]] / length == pytest.approx(0.15, abs=0.005)
    assert hidden[modes == MODE["S"]] / length == pytest.approx(0.25, abs=0.005)
    extreme = hidden[modes == MODE["X"]] / length
    assert set(np.round(extreme, 2)) == {0.15, 0.5} and (extreme > 0.4).mean() > 0.65


def test_ul2_refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match="denoisers"):
        prefix.ul2(BYTE, length=8, denoisers=[("Q", 3, 0.15)])
    with pytest.raises(ConfigError, match="vocab_size"):
        prefix.ul2(BYTE, length=128, vocab_size=BYTE.vocab_size)


# (rearranged at all, SPM), the two cuts as shares of the text, and what comes out of "abcdefghij"
# in a row that holds it all: three letters make room for three names.
FIM = {
    "psm": ((0, 1), (0.3, 0.7), [PRE, *ids("ab"), SUF, *ids("fg"), MID, *ids("cde")]),
    "spm": ((0, 0), (0.3, 0.7), [PRE, SUF, *ids("fg"), MID, *ids("ab"), *ids("cde")]),
    "empty middle": ((0, 1), (0.5, 0.5), [PRE, *ids("abcd"), SUF, *ids("efg"), MID]),
    "empty prefix": ((0, 1), (0.0, 0.999), [PRE, SUF, MID, *ids("abcdefg")]),
}


@pytest.mark.parametrize("unit", fim.UNITS)
@pytest.mark.parametrize("name", FIM)
def test_fim_by_hand(name, unit, monkeypatch):
    coins, cuts, wanted = FIM[name]
    script(monkeypatch, random=[coins, cuts])
    transform = fim.fim(BYTE, length=11, rate=0.5, spm_rate=0.5, unit=unit)
    made = transform(row("abcdefghij", length=11), np.zeros(1))
    assert made["tokens"][0].tolist() == [START, *wanted]
    assert made["targets"][0].tolist() == [*wanted, END]
    assert made["weights"].all() and made["segments"].all()


def test_documents_that_are_left_alone(monkeypatch):
    clean = row("abcdefghij", "xyz", length=16)
    script(monkeypatch, random=[(0.9, 0), (0, 0), (0.3, 0.7)])
    made = fim.fim(BYTE, length=16, rate=0.5)(clean, np.zeros(1))
    for field, values in clean.items():  # the first by the coin, the second because it is short
        np.testing.assert_array_equal(made[field], values, field)


def test_fim_can_be_undone_and_keeps_to_its_rates():
    """Umlauts take two tokens: cuts between characters never split one."""
    count, text = 400, "grün und süß"
    clean = {k: np.repeat(v, count, axis=0) for k, v in row(text, length=20).items()}
    made = fim.fim(BYTE, length=20, rate=0.5, spm_rate=0.3)(clean, np.arange(count))
    changed = [row for row in made["tokens"].tolist() if PRE in row]
    assert len(changed) / count == pytest.approx(0.5, abs=0.08)
    first = [row[2] == SUF for row in changed]
    for one in changed:
        body = one[1:]
        pre, suf, mid = (body.index(name) for name in (PRE, SUF, MID))
        before, after, end = body[pre + 1 : suf], body[suf + 1 : mid], body[mid + 1 :]
        end = [token for token in end if token != PAD]
        whole = before + end + after
        assert text.startswith(BYTE.decode(whole)) and len(whole) >= len(ids(text)) - 4
        assert "\ufffd" not in BYTE.decode(before) + BYTE.decode(after) + BYTE.decode(end)
    assert sum(first) / len(first) > 0.2


def test_fim_refuses_wrong_settings():
    with pytest.raises(ConfigError, match="spm_rate"):
        fim.fim(BYTE, length=8, spm_rate=2)
    with pytest.raises(ConfigError, match="unit"):
        fim.fim(BYTE, length=8, unit="word")
