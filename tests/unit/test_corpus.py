# SPDX-License-Identifier: Apache-2.0
"""Corpus: seeds first, then what the seed decides."""

from itertools import islice

import pytest

import pyvmm


def take(corpus: pyvmm.Corpus, count: int) -> list[bytes]:
    return list(islice(corpus, count))


def test_seeds_of_a_folder_come_first(tmp_path) -> None:
    for name, text in [("b", "two"), ("a", "one"), ("c", "one")]:
        (tmp_path / name).write_text(text)
    (tmp_path / "folder").mkdir()
    corpus = pyvmm.Corpus(tmp_path)
    assert len(corpus) == 2 and corpus.entries == [b"one", b"two"]
    assert take(corpus, 2) == [b"one", b"two"]
    assert take(pyvmm.Corpus(str(tmp_path)), 2) == [b"one", b"two"]
    assert not {b"one", b"two"}.issuperset(take(corpus, 50))


def test_seeds_are_bytes_or_several() -> None:
    assert take(pyvmm.Corpus(), 1) == [b""]
    assert take(pyvmm.Corpus(b"x"), 1) == [b"x"]
    assert take(pyvmm.Corpus([b"x", bytearray(b"y")]), 2) == [b"x", b"y"]


def test_the_seed_decides() -> None:
    def made(seed: int) -> list[bytes]:
        corpus = pyvmm.Corpus([b"some text", b"more"], seed=seed)
        first = take(corpus, 1000)
        corpus.add(first[-1])
        return first + take(corpus, 1000)

    assert made(1) == made(1)
    assert made(1)[2:] != made(2)[2:]
    assert len(set(made(1))) > 1500


def test_the_same_bytes_on_every_host() -> None:
    """Noted once; a change of the mutator changes them."""
    corpus = pyvmm.Corpus(b"0123456789", seed=1, max_size=16)
    assert take(corpus, 4)[1:] == SAME


SAME = [
    b"0123\x9d01\xb234456789",
    b"045\xff\xff\x00\x00jjjjjj7\x10\x00",
    b"yG\x0b\x0b\x10\x0b@6K9",
]


def test_what_is_added_is_made_use_of() -> None:
    corpus = pyvmm.Corpus(b"a" * 30, max_size=64)
    take(corpus, 1)
    corpus.add(b"B" * 30)
    corpus.add(b"B" * 30)
    assert len(corpus) == 2 and b"B" * 30 in corpus
    found = take(corpus, 200)
    assert b"B" * 30 not in found[:1]
    assert sum(b"BBBBBBBBBB" in data for data in found) > 50
    assert sum(b"aaaaaaaaaa" in data for data in found) > 50


def test_tokens() -> None:
    corpus = pyvmm.Corpus(b"....", tokens=[b"MAGIC"])
    assert sum(b"MAGIC" in data for data in take(corpus, 500)) > 50
    for bad in (b"", b"x" * 257):
        with pytest.raises(ValueError, match=f"not one of {len(bad)} bytes"):
            pyvmm.Corpus(tokens=[bad])


def test_max_size() -> None:
    corpus = pyvmm.Corpus(b"12345678", max_size=8)
    assert max(map(len, take(corpus, 2000))) == 8
    with pytest.raises(ValueError, match="9 bytes, more than max_size, 8"):
        corpus.add(b"123456789")
    corpus.limit(100)  # its own is less
    assert corpus.max_size == 8
    with pytest.raises(ValueError, match=r"seed has 8 bytes.*max_size, 7"):
        corpus.limit(7)
    loose = pyvmm.Corpus(b"x")
    assert loose.max_size == 4096
    loose.limit(3)
    assert max(map(len, take(loose, 2000))) == 3


@pytest.mark.parametrize(
    ("seeds", "options", "error", "words"),
    [
        ([], {}, ValueError, "holds no seeds"),
        ("/nonexistent", {}, FileNotFoundError, "nonexistent"),
        (["text"], {}, TypeError, "seed 0 is bytes, not str"),
        (b"", {"seed": -1}, (ValueError, OverflowError), "seed -1"),
        (b"", {"seed": 1 << 64}, (ValueError, OverflowError), "seed"),
        (b"", {"max_size": 0}, ValueError, "max_size is 0"),
        (b"", {"max_size": 1 << 31}, ValueError, "max_size 2147483648"),
        ([b"", b"123"], {"max_size": 2}, ValueError, "seed 1 has 3 bytes"),
    ],
)
def test_what_is_refused(seeds, options, error, words) -> None:
    with pytest.raises(error, match=words):
        pyvmm.Corpus(seeds, **options)


def test_an_empty_folder_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"test_an_empty.*holds no seeds"):
        pyvmm.Corpus(str(tmp_path))


def test_saved_and_taken_up_again(tmp_path) -> None:
    corpus = pyvmm.Corpus([b"one", b"two"])
    corpus.save(tmp_path / "kept")
    before = {p.name: p.stat().st_ino for p in (tmp_path / "kept").iterdir()}
    corpus.add(b"three")
    corpus.save(tmp_path / "kept")
    after = {p.name: p.stat().st_ino for p in (tmp_path / "kept").iterdir()}
    assert len(after) == 3 and before.items() <= after.items()
    again = pyvmm.Corpus(tmp_path / "kept")
    assert sorted(again.entries) == [b"one", b"three", b"two"]
    assert repr(again) == "<Corpus of 3, up to 4096 bytes>"


def test_in_any_place_of_a_loop() -> None:
    corpus = pyvmm.Corpus(b"x")
    assert next(corpus) == b"x"
    for count, data in enumerate(corpus):
        assert isinstance(data, bytes)
        if count == 10:
            break
