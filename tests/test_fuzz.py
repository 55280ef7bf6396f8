"""The fuzzer itself: it finds what is planted, and a short seeded run finds nothing. `make fuzz` runs it for longer."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from krbrefresh import ccache
from tests.fuzz import ccache_fuzz
from tests.fuzz.inputs import large, mutate, seeds


def careless(data: bytes, pos: int, size: int) -> tuple[ccache.Principal, int]:
    """A reader of principals that believes what it reads."""
    name_type, count = struct.unpack_from(">II", data, pos)
    parts = []
    for _ in range(count + 1):
        parts.append(data[pos + 12 : pos + 12 + data[pos + 11]])
        pos += 4 + data[pos + 11]
    return ccache.Principal(parts[0], tuple(parts[1:]), name_type), pos + 8


def greedy(data: bytes) -> ccache.Ccache:
    bytearray(16 << 20)
    raise ccache.CcacheFormatError("it is not read at all")


@pytest.mark.parametrize(
    ("name", "planted", "error"), [("_read_principal", careless, IndexError), ("parse", greedy, AssertionError)]
)
def test_a_planted_defect_is_found(
    name: str, planted: Callable[..., object], error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, some = random.Random(1), seeds()
    made = [mutate(rng, rng.choice(some), some) for _ in range(2000)]
    reader = ccache_fuzz.Reader(tmp_path)
    for data in made:
        reader.look(data)
    monkeypatch.setattr(ccache, name, planted)
    with pytest.raises(error):
        list(map(reader.look, made))


def test_a_slow_input_is_slow_the_second_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ccache_fuzz.Reader(tmp_path)
    took = [10**12, 10**12, 1_000_000]
    monkeypatch.setattr(reader, "read", lambda data: took.pop(0))  # a busy machine, twice, and then a calm one
    reader.passed = False
    monkeypatch.setattr(reader, "read_file", lambda data: 0)
    reader.look(seeds()[0])
    assert 0 < reader.slowest < ccache_fuzz.SLOW_NS  # as the process of its own measured it
    monkeypatch.setattr(reader, "again", lambda data, took: took)
    took[:] = [10**12]
    with pytest.raises(AssertionError, match="bytes took 1000000 ms"):
        reader.look(seeds()[0])


def test_the_same_seed_makes_the_same_inputs() -> None:
    def made(seed: int) -> list[bytes]:
        rng = random.Random(seed)
        some = seeds()
        return [mutate(rng, rng.choice(some), some) for _ in range(200)] + [large(rng, some) for _ in range(5)]

    assert made(1) == made(1) != made(2)


def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    script = Path(ccache_fuzz.__file__)
    done = subprocess.run(
        [sys.executable, script, "--engine", "own", "--seconds", "4", "--seed", "4"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no exception but the reader's own" in done.stdout
    assert not list(tmp_path.iterdir())
