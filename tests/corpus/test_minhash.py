# SPDX-License-Identifier: Apache-2.0
"""Near-duplicate detection against exact sets, the analytic curve, and a plain union-find."""

import numpy as np
import pytest

from llm.corpus import cluster, minhash
from llm.text.views import View, Vocabulary


def sign(texts, **options):
    vocabulary = Vocabulary()
    return minhash.sign([View(text, vocabulary) for text in texts], **options)


def exact_jaccard(left, right, n=5):
    """Compare word n-grams as Python sets; words are lower-cased and bare of symbols."""
    sets = []
    for text in (left, right):
        words = [w.strip(".,!").lower() for w in text.split()]
        sets.append({tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def word(number):
    """Spell a number in letters: digits all look alike to the signatures."""
    return "".join(chr(97 + int(digit)) for digit in str(number))


def edited(rng, words, rate):
    words = list(words)
    for i in np.flatnonzero(rng.random(len(words)) < rate):
        words[i] = f"new-{word(rng.integers(1e9))}"
    return words


def pairs(count, rate, length=300, seed=0):
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        words = [f"{word(i)}-{word(t)}" for t in rng.integers(0, 5000, length)]
        result += [" ".join(words), " ".join(edited(rng, words, rate))]
    return result


def test_shingles_give_the_exact_similarity():
    texts = [*pairs(5, 0.01), "one two three", "one two three", "alone", ""]
    signed = sign(texts)
    for i in range(0, len(texts) - 1, 2):
        left = signed.shingles[signed.offsets[i] : signed.offsets[i + 1]]
        right = signed.shingles[signed.offsets[i + 1] : signed.offsets[i + 2]]
        assert minhash.jaccard(left, right) == exact_jaccard(texts[i], texts[i + 1])


def test_case_accents_digits_and_symbols_do_not_matter():
    signed = sign(["Déjà vu, in 1999 at noon!", "deja VU in 2024 at noon", "deja vu in 24 at noon"])
    assert (signed.bands[0] == signed.bands[1]).all()
    assert not (signed.bands[0] == signed.bands[2]).any()


@pytest.mark.parametrize("rate", [0.005, 0.02, 0.04])
def test_bands_follow_the_analytic_curve(rate):
    count = 400
    texts = pairs(count, rate)
    signed = sign(texts)
    match = (signed.bands[0::2] == signed.bands[1::2]).any(axis=1)
    similarity = np.array([exact_jaccard(texts[2 * i], texts[2 * i + 1]) for i in range(count)])
    expected = 1 - (1 - similarity**8) ** 14
    error = 4 * np.sqrt((expected * (1 - expected)).sum()) / count + 0.002
    assert abs(match.mean() - expected.mean()) < error
    clear = similarity >= 0.85
    if clear.sum() > 50:
        assert match[clear].mean() >= 0.985


def test_different_documents_share_no_band():
    signed = sign(pairs(300, 1.0))
    for band in signed.bands.T:
        assert not len(cluster.buckets(band, np.arange(600))[0])


def test_batches_and_order_do_not_change_signatures():
    texts = pairs(20, 0.02)
    whole = sign(texts)
    for i, text in enumerate(texts):
        alone = sign([text])
        assert (alone.bands[0] == whole.bands[i]).all()
        assert (alone.shingles == whole.shingles[whole.offsets[i] : whole.offsets[i + 1]]).all()


def test_components_equal_a_plain_union_find():
    rng = np.random.default_rng(0)
    for count, edges in ((1, 0), (10, 3), (200, 150), (500, 600)):
        left, right = rng.integers(0, count, edges), rng.integers(0, count, edges)
        parent = list(range(count))

        def root(node, parent=parent):
            while parent[node] != node:
                node = parent[node]
            return node

        for a, b in zip(left, right, strict=True):
            low, high = sorted((root(int(a)), root(int(b))))
            parent[high] = low
        expected = [root(i) for i in range(count)]
        assert cluster.components(count, left, right).tolist() == expected


def test_a_long_chain_is_one_component():
    chain = np.random.default_rng(1).permutation(20_000)
    assert (cluster.components(20_000, chain[:-1], chain[1:]) == 0).all()


def test_equal_edges_join_to_the_best_ranked():
    left, right = cluster.equal_edges(np.array([7, 3, 7, 7, 5]), np.array([4, 0, 1, 3, 2]))
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(2, 0), (2, 3)]


def test_edges_in_portions_give_the_same_components():
    rng = np.random.default_rng(2)
    for count, edges in ((300, 100), (300, 290), (50, 400)):
        left, right = rng.integers(0, count, edges), rng.integers(0, count, edges)
        label = np.arange(count)
        for part in np.array_split(np.arange(edges), 7):
            cluster.join(label, left[part], right[part])
        expected = cluster.components(count, left, right)
        assert (cluster.roots(label, np.arange(count)) == expected).all()


def test_members_unlike_their_head_are_compared_with_one_another():
    kind = np.array([0, 1, 0, 1, 2, 1, 3])
    seen = []

    def similar(left, right):
        seen.extend(zip(left.tolist(), right.tolist(), strict=True))
        return kind[left] == kind[right]

    members, bucket = cluster.buckets(np.array([5, 5, 5, 5, 5, 5, 9]), np.arange(7))
    left, right, same = cluster.compare(members, bucket, similar)
    label = np.arange(7)
    cluster.join(label, left[same], right[same])
    assert label.tolist() == [0, 1, 0, 1, 4, 1, 6]
    assert len(seen) == len(set(seen)) == len(left)
