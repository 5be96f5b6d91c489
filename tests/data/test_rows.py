# SPDX-License-Identifier: Apache-2.0
"""Rows on disk come back as written, and nothing else is touched."""

import numpy as np
import pytest

from llm.data import packing, rows
from llm.errors import DataError, StorageError


def blocks(count=3, size=5, length=8, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield {
            name: rng.integers(0, 70_000, (size, length)).astype(kind)
            for name, kind in packing.DTYPES.items()
        }


def test_take_gives_back_what_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "SHARD_TOKENS", 32)  # four rows per shard
    manifest = rows.write_rows(tmp_path / "r", blocks(), {"late": lambda: 7, "kind": "x"})
    assert manifest["rows"] == 15 and len(manifest["shards"]) == 4
    assert manifest["late"] == 7 and manifest["kind"] == "x"
    data = rows.open_rows(tmp_path / "r")
    data.verify()
    whole = [np.concatenate(parts) for parts in zip(*(b.values() for b in blocks()), strict=True)]
    for indices in ([3], [14, 0, 7, 7, 4], range(15), []):
        batch = data.take(list(indices))
        for (name, kind), values in zip(packing.DTYPES.items(), whole, strict=True):
            assert batch[name].dtype == kind
            np.testing.assert_array_equal(batch[name], values[list(indices)])
    with pytest.raises(DataError, match=r"outside 0\.\.14"):
        data.take([15])


def test_single_rows_and_blocks_are_written_alike(tmp_path):
    one = rows.write_rows(tmp_path / "a", blocks(), {})
    singles = ({k: v[i] for k, v in b.items()} for b in blocks() for i in range(5))
    two = rows.write_rows(tmp_path / "b", singles, {})
    assert one == two
    other = rows.write_rows(tmp_path / "c", blocks(seed=1), {})
    assert other["fingerprint"] != one["fingerprint"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([0, 255]), np.uint8),
        (np.array([0, 256]), np.uint16),
        (np.array([0, 65536]), np.int32),
        (np.array([-1, 3]), np.int32),
        (np.array([0.0, 1.0], np.float32), np.uint8),
        (np.array([0.5, 1.0], np.float32), np.float32),
        (np.array([np.nan], np.float32), np.float32),
    ],
)
def test_narrow_types_lose_nothing(values, kind):
    stored = rows.narrow(values)
    assert stored.dtype == kind
    np.testing.assert_array_equal(stored.astype(values.dtype), values)


def test_damage_is_noticed(tmp_path):
    rows.write_rows(tmp_path / "r", blocks(), {})
    target = tmp_path / "r" / "tokens-00000.npy"
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        rows.open_rows(tmp_path / "r").verify()
    target.write_bytes(content[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        rows.open_rows(tmp_path / "r").take([0])
    with pytest.raises(DataError, match="holds no rows"):
        rows.open_rows(tmp_path / "none")


def test_an_interrupted_write_leaves_the_old_rows(tmp_path):
    rows.write_rows(tmp_path / "r", blocks(), {"config_hash": "1"})

    def failing():
        yield from blocks(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows.write_rows(tmp_path / "r", failing(), {"config_hash": "2"})
    assert rows.reusable(tmp_path / "r", "1") and not rows.reusable(tmp_path / "r", "2")
    rows.open_rows(tmp_path / "r").verify()
    assert [item.name for item in tmp_path.iterdir()] == ["r"]


def test_foreign_folders_stay_and_nothing_is_not_written(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match=r"thesis\.tex"):
        rows.write_rows(tmp_path / "mine", blocks(), {})
    assert (tmp_path / "mine" / "thesis.tex").exists()
    with pytest.raises(DataError, match="no rows"):
        rows.write_rows(tmp_path / "empty", [], {})
    assert not (tmp_path / "empty").exists()
