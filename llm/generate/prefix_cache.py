# SPDX-License-Identifier: Apache-2.0
"""Who uses which page of the key-value pool; full pages of prompts are shared by their tokens.

A page's name is a hash of its tokens and of all before them. A named page that nobody uses stays
until its room is needed, the one longest unused first.
"""

import collections
import hashlib
from collections.abc import Sequence

import numpy as np

from llm.models.paged import PAGE


def page_names(tokens: Sequence[int] | np.ndarray) -> list[bytes]:
    """Return the name of every full page of a text."""
    ids = np.asarray(tokens, np.int32)
    names, name = [], b""
    for start in range(0, len(ids) - PAGE + 1, PAGE):
        page = ids[start : start + PAGE].tobytes()
        name = hashlib.blake2b(name + page, digest_size=16).digest()
        names.append(name)
    return names


class PagePool:
    """Hands out page numbers and counts their users."""

    def __init__(self) -> None:
        self.count = 0
        self._free: list[int] = []
        self._users: collections.Counter[int] = collections.Counter()
        self._by_name: dict[bytes, int] = {}
        self._names: dict[int, bytes] = {}
        self._idle: collections.OrderedDict[int, None] = collections.OrderedDict()

    def grow(self, count: int) -> None:
        """Own pages 0..count-1."""
        self._free.extend(range(count - 1, self.count - 1, -1))
        self.count = count

    @property
    def available(self) -> int:
        """How many pages can be taken."""
        return len(self._free) + len(self._idle)

    def take(self, n: int) -> list[int]:
        """Take n pages, of which there must be as many; the oldest shared ones are forgotten."""
        while len(self._free) < n:
            page, _ = self._idle.popitem(last=False)
            del self._by_name[self._names.pop(page)]
            self._free.append(page)
        pages = [self._free.pop() for _ in range(n)]
        self._users.update(pages)
        return pages

    def give_back(self, pages: Sequence[int]) -> None:
        """End one use of each page."""
        for page in pages:
            self._users[page] -= 1
            if self._users[page] == 0:
                del self._users[page]
                if page in self._names:
                    self._idle[page] = None
                else:
                    self._free.append(page)

    def share(self, name: bytes) -> int | None:
        """Use the page of this name too; None if there is none."""
        page = self._by_name.get(name)
        if page is not None:
            self._users[page] += 1
            self._idle.pop(page, None)
        return page

    def publish(self, name: bytes, page: int) -> None:
        """Let others find a page that has been filled; the first of a name stays."""
        if name not in self._by_name:
            self._by_name[name] = page
            self._names[page] = name

    def forget(self) -> None:
        """Forget all names: what the pages hold is not what the model would put there now."""
        self._free.extend(self._idle)
        self._idle.clear()
        self._by_name.clear()
        self._names.clear()
