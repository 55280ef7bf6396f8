#!/usr/bin/env python3
"""Fuzzing of the worker's reader: no exception but its own, no input slower than 50 ms, memory that its size bounds.

    .venv/bin/python tests/fuzz/ccache_fuzz.py --seconds 60 [--seed N] [--inputs N] [--engine atheris|own]

With atheris the mutations are led by the branches that they reach; without it they are those of inputs.py alone. What
is found is written into the current directory, with the traceback on standard error, and the exit status is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SLOW_NS = 50_000_000
MEMORY = 4 << 20  # what reading may take beside twice the input's size
PARSE_EVERY = 8  # it is the first half of what Token.parse does
FILE_EVERY = 32  # a file costs ten times what parsing costs
MEMORY_EVERY = 512

SHOWN = ("principal", "realm", "empty", "services", "generation", "starts_at", "expires_at", "renew_until", "remaining",
         "flags", "starts", "expires", "offset", "has_tgt", "manifest", "modified")  # fmt: skip
COUNTED = ("inputs", "accepted", "files", "slowest", "largest", "memory")


class Reader:
    """What is tried with each input, and the figures of it."""

    def __init__(self, place: Path) -> None:
        from krbrefresh import ccache, client, errors, token
        from tests.fuzz import inputs

        self.ccache, self.client, self.errors, self.token = ccache, client, errors, token
        self.path = str(place / "krb5cc")
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.slow = place / "slow"
        self.public_key = place / "key.pub"
        self.public_key.write_bytes(inputs.PUBLIC_KEY)
        self.inputs = self.accepted = self.files = self.slowest = self.largest = self.memory = 0
        self.shared = memoryview(mmap.mmap(-1, 4096)).cast("q")  # libFuzzer ends the process without a word
        self.began = time.monotonic()

    def look(self, data: bytes) -> None:
        """Raises whatever the reader lets through but should not."""
        self.inputs += 1
        self.largest = max(self.largest, len(data))
        measured = self.inputs % MEMORY_EVERY == 0 or len(data) > 1 << 20
        if measured:
            self.bounded(data)
        took = self.read(data)
        self.accepted += self.passed
        if self.inputs % FILE_EVERY == 0 or measured:
            took = max(took, self.read_file(data))
        if took > self.slowest:
            took = self.again(data, took)
            if took > SLOW_NS:
                raise AssertionError(f"{len(data)} bytes took {took / 1e6:.0f} ms")
            self.slowest = max(self.slowest, took)
        for index, name in enumerate(COUNTED):
            self.shared[index] = getattr(self, name)

    def read(self, data: bytes) -> int:
        """Reads it from memory; how long the longer of the two readers took, nanoseconds of processor time."""
        began = time.thread_time_ns()
        if self.inputs % PARSE_EVERY == 0:
            with contextlib.suppress(self.ccache.CcacheFormatError):
                self.ccache.parse(data)
        between = time.thread_time_ns()
        self.passed = False
        try:
            token = self.token.Token.parse(data, "fuzz")
            for name in SHOWN:
                getattr(token, name)
            repr(token), repr(token.manifest)
            self.passed = True
        except self.errors.TokenError as error:
            short(error)
        return max(between - began, time.thread_time_ns() - between)

    def read_file(self, data: bytes) -> int:
        """Reads it from a file; how long the longest call took."""
        self.files += 1
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, data, 0)
        longest = 0
        self.client._newest.clear()  # an older generation is no news here
        principal = {"principal": "etl@EXAMPLE.COM"}
        some_checks = (None, {"services": ["a/b@C"]}, principal, {**principal, "public_key": self.public_key})
        for checks in some_checks:
            began = time.thread_time_ns()
            try:
                self.client.load(self.path) if checks is None else self.client.validate(self.path, **checks)
            except self.errors.TokenError as error:
                short(error)
            longest = max(longest, time.thread_time_ns() - began)
        return longest

    def bounded(self, data: bytes) -> None:
        tracemalloc.start()
        try:
            self.read(data)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        self.memory = max(self.memory, peak)
        assert peak <= MEMORY + 2 * len(data), f"{len(data)} bytes took {peak} bytes of memory"

    def again(self, data: bytes, took: int) -> int:
        """Nanoseconds, when it is read again, so that a busy machine does not make it slow; what is slow all the same
        is read in a process of its own, where no fuzzer counts branches."""
        took = min(took, max(self.read(data), self.read_file(data)))
        if took <= SLOW_NS / 5:
            return took
        self.slow.write_bytes(data)
        done = subprocess.run(
            [sys.executable, __file__, "--time", str(self.slow)], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    def figures(self) -> str:
        for index, name in enumerate(COUNTED):
            setattr(self, name, self.shared[index])
        took = time.monotonic() - self.began
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
        return (
            f"{self.inputs} inputs in {took:.0f} s ({self.inputs / took:.0f} a second), {self.accepted} accepted, "
            f"{self.files} through a file, the largest of {self.largest} bytes; slowest {self.slowest / 1e6:.1f} ms; "
            f"memory for one input {self.memory / 1048576:.1f} MiB at the most, of the process {peak:.0f} MiB; "
            "no exception but the reader's own"
        )


def short(error: Exception) -> None:
    """An error is for a log: it has a length."""
    assert len(str(error)) < 20_000, f"an error of {len(str(error))} characters"


def timed(path: Path) -> int:
    data = path.read_bytes()
    with tempfile.TemporaryDirectory() as name:
        reader = Reader(Path(name))
        return min(max(reader.read(data), reader.read_file(data)) for _ in range(5))


def run_own(reader: Reader, seed: int, seconds: float, count: int) -> None:
    from tests.fuzz import inputs

    rng = random.Random(seed)
    some = inputs.seeds()
    pool = list(some)  # what was accepted is worth another change
    end = time.monotonic() + seconds
    while time.monotonic() < end and reader.inputs < count:
        data = inputs.mutate(rng, rng.choice(pool), some)
        before = reader.accepted
        try:
            reader.look(data)
        except Exception:
            Path(f"crash-{seed}-{reader.inputs}").write_bytes(data)
            raise
        if reader.accepted > before and len(data) < 4000:
            if len(pool) < 500:
                pool.append(data)
            else:
                pool[rng.randrange(len(some), 500)] = data


def run_large(reader: Reader, seed: int, seconds: float) -> None:
    from tests.fuzz import inputs

    rng = random.Random(seed)
    some = inputs.seeds()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = inputs.large(rng, some)
        try:
            reader.look(data)
        except Exception:
            Path(f"crash-large-{seed}-{reader.inputs}").write_bytes(data)
            raise


def run_atheris(atheris: Any, reader: Reader, seed: int, seconds: float, count: int, corpus: Path) -> None:
    from tests.fuzz import inputs

    some = inputs.seeds()
    for index, data in enumerate(some):
        (corpus / f"seed-{index}").write_bytes(data)

    def mutator(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, most))
        # A whole ccache again and again, or what is tried would be ever less of one.
        return inputs.mutate(rng, data if rng.random() < 0.5 else rng.choice(some), some, most)

    options = [f"-seed={seed}", f"-max_total_time={max(1, int(seconds))}", f"-runs={min(count, 2**31 - 1)}",
               "-max_len=2048", "-rss_limit_mb=1024", "-timeout=10", "-verbosity=0"]  # fmt: skip
    child = os.fork()
    if not child:
        atheris.Setup([sys.argv[0], *options, str(corpus)], reader.look, custom_mutator=mutator)
        atheris.Fuzz()  # ends the process
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise SystemExit(f"found by atheris, with status {status}: {reader.figures()}")


def imported(name: str) -> ModuleType | None:
    try:
        import atheris
    except ImportError:
        if name == "atheris" or (os.environ.get("CI") and sys.version_info >= (3, 11)):
            raise
        return None
    return atheris  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--inputs", type=int, default=1 << 40, help="end after so many, too")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another one each time, unless it is named")
    parser.add_argument("--engine", choices=("atheris", "own"), help="atheris where it is installed")
    parser.add_argument("--corpus", type=Path, help="keep there what reaches new branches, and begin with it")
    parser.add_argument("--time", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time:
        print(timed(options.time))
        return
    atheris = None if options.engine == "own" else imported(options.engine or "")
    if atheris:
        with atheris.instrument_imports(include=["krbrefresh.ccache", "krbrefresh.token"]):
            import krbrefresh  # noqa: F401
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        reader = Reader(Path(name))
        corpus = options.corpus or Path(name) / "corpus"
        corpus.mkdir(exist_ok=True)
        print(f"{'atheris' if atheris else 'our own mutations'}, seed {options.seed}", flush=True)
        large = min(options.seconds / 10, 60)
        run_large(reader, options.seed, large)
        rest = options.seconds - large
        if atheris:
            run_atheris(atheris, reader, options.seed, rest, options.inputs, corpus)
        else:
            run_own(reader, options.seed, rest, options.inputs)
        print(reader.figures())


if __name__ == "__main__":
    main()
