# SPDX-License-Identifier: Apache-2.0
"""What the fault tests share: a tiny corpus, the unkilled run to compare with, clean-up."""

import jax
import pytest

from tests import runs


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return runs.write_documents(tmp_path_factory.mktemp("data") / "docs.jsonl")


@pytest.fixture
def start():
    """Start real training processes; whatever still runs at the end is killed."""
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
    workdir = tmp_path_factory.mktemp("unstopped")
    code, output = runs.finish(runs.start(workdir, data)[0])
    assert code == 0, output
    return workdir


@pytest.fixture(scope="module")
def one_device():
    """Let runs in this process use one of the eight devices."""
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        patch.setattr(jax, "devices", lambda *a: first)
        yield
