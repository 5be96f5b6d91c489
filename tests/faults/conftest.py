# SPDX-License-Identifier: Apache-2.0
"""What the fault tests share: a tiny corpus, the unkilled run to compare with, clean-up."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # for `from tests.faults import runs`
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    from tests.faults import runs

    return runs.write_documents(tmp_path_factory.mktemp("data") / "docs.jsonl")


@pytest.fixture
def start():
    """Start real training processes; whatever still runs at the end is killed."""
    from tests.faults import runs

    children = []

    def launch(*arguments, **options):
        found = runs.start(*arguments, **options)
        children.extend(found)
        return found

    yield launch
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture(scope="session")
def unstopped(data, tmp_path_factory):
    """One process, one device, never disturbed."""
    from tests.faults import runs

    workdir = tmp_path_factory.mktemp("unstopped")
    code, output = runs.finish(runs.start(workdir, data)[0])
    assert code == 0, output
    return workdir
