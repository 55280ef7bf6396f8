#!/usr/bin/env python3
"""The worker's half beside gssapi, krb5 and klist, in one run: imports, a token new and unchanged, the whole command.

    .venv/bin/python benchmarks/client.py [--runs 7] [--processes 20]

Needs what `make test` needs. Prints tables in Markdown; docs/benchmarks.md has the last ones.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gssapi
import krb5

import krbrefresh
from krbrefresh import client, signature
from krbrefresh.demo.realm import throwaway_realm
from krbrefresh.token import seal

Samples = dict[str, list[float]]

KRBREFRESH = str(Path(sys.executable).with_name("krbrefresh"))


def calls(calls: dict[str, Callable[[], object]], runs: int, each: float = 0.2) -> Samples:
    """Microseconds of one call, a median for each run; they take turns, and a busy moment does not hit one alone."""
    found: Samples = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            call()
            took = []
            end = time.perf_counter() + each
            while (began := time.perf_counter()) < end:
                call()
                took.append((time.perf_counter() - began) * 1e6)
            found[name].append(statistics.median(took))
    return found


def processes(commands: dict[str, list[str]], env: dict[str, str], runs: int, count: int) -> Samples:
    """Milliseconds of a whole process, a median for each run; in turn again."""
    found: Samples = {name: [] for name in commands}
    for _ in range(runs):
        took: Samples = {name: [] for name in commands}
        for _ in range(count):
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
                took[name].append((time.perf_counter() - began) * 1000)
        for name, values in took.items():
            found[name].append(statistics.median(values))
    return found


def with_gssapi(path: Path) -> object:
    credentials = gssapi.Credentials(usage="initiate", store={"ccache": f"FILE:{path}"})
    return credentials.name, credentials.lifetime


def with_krb5(path: Path) -> object:
    context = krb5.init_context()
    cache = krb5.cc_resolve(context, b"FILE:" + os.fsencode(path))
    return krb5.cc_get_principal(context, cache).name, [entry.times.endtime for entry in cache]


def anew(path: Path, **checks: Any) -> object:
    """`validate` as it meets a file that has just been published: nothing is known of it."""
    client._known.clear()
    client._trusted.clear()
    return krbrefresh.validate(path, **checks)


def tokens(kdc: Any, place: Path) -> tuple[Path, Path, Path]:
    """A token with a manifest, one that is signed besides, and the public key."""
    env = {**os.environ, "KRB5_CONFIG": kdc.env["KRB5_CONFIG"], "KRB5_KDC_PROFILE": kdc.env["KRB5_KDC_PROFILE"]}
    made = "addprinc -randkey etl\nktadd -norandkey -k " + str(place / "keytab")
    subprocess.run(["kadmin.local"], input=f"{made} etl\n".encode(), env=env, capture_output=True, check=True)
    subprocess.run(["kinit", "-k", "-t", place / "keytab", "-c", place / "kinit", "etl"], env=env, check=True)
    body = (place / "kinit").read_bytes()
    signature.generate(str(place / "key"))
    now = int(time.time())
    for name, signer in (("krb5cc", None), ("signed", signature.PrivateKey.load(str(place / "key")))):
        data = seal(
            body,
            generation=now,
            issued_at=now,
            window_opens_at=now + 60,
            refresher="h:1",
            settings="0" * 16,
            signer=signer,
        )
        (place / name).write_bytes(data)
    return place / "krb5cc", place / "signed", place / "key.pub"


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def table(title: str, found: Samples, peer: str, digits: int) -> None:
    """Medians, ranges, and how many times the peer's median each one is."""
    print(f"| {title} | median (range) | x {peer} |\n|---|---|---|")
    for name, values in found.items():
        print(
            f"| {name} | {spread(values, digits)} | {statistics.median(values) / statistics.median(found[peer]):.2f} |"
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7, help="five or more")
    parser.add_argument("--processes", type=int, default=20, help="processes of each kind in a run")
    options = parser.parse_args()
    with throwaway_realm() as kdc, tempfile.TemporaryDirectory() as name:
        os.environ["KRB5_CONFIG"] = kdc.env["KRB5_CONFIG"]
        token, signed, public_key = tokens(kdc, Path(name))
        principal = krbrefresh.validate(token).principal
        key = signature.Ed25519PrivateKey.generate()
        message = bytes(400)  # as long as a manifest
        public, made = key.public_key(), key.sign(message)
        time.sleep(1.2)  # a file has rested by then, and is known
        print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, Python", end=" ")
        print(f"{platform.python_version()}, load {os.getloadavg()[0]:.1f}, medians of {options.runs} runs\n")
        within = {
            "gssapi": lambda: with_gssapi(token),
            "krb5": lambda: with_krb5(token),
            "validate, new token": lambda: anew(token),
            "validate, new token, all checks": lambda: anew(token, principal=principal, services=["HTTP/web@R"]),
            "validate, unchanged token": lambda: krbrefresh.validate(token),
            "validate, new signed token": lambda: anew(signed, principal=principal, public_key=public_key),
            "validate, unchanged signed token": lambda: krbrefresh.validate(
                signed, principal=principal, public_key=public_key
            ),
            "Ed25519 alone": lambda: public.verify(made, message),
        }
        table("one call, us", calls(within, options.runs), "gssapi", 1)
        env = {name: os.environ[name] for name in ("PATH", "KRB5_CONFIG", "PYTHONPATH") if name in os.environ}
        whole = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "klist -s": ["klist", "-s", str(token)],
            "import krbrefresh": [sys.executable, "-c", "import krbrefresh"],
            "import krb5": [sys.executable, "-c", "import krb5"],
            "import gssapi": [sys.executable, "-c", "import gssapi"],
            "krbrefresh check": [KRBREFRESH, "check", str(token)],
            "krbrefresh check, signed": [
                KRBREFRESH, "check", "--principal", principal, "--public-key", str(public_key), str(signed)
            ],
        }  # fmt: skip
        found = processes(whole, env, options.runs, options.processes)
        table("a whole process, ms", found, "python -c pass", 1)
        bare = found["python -c pass"]
        over = {
            name: [one - without for one, without in zip(values, bare, strict=True)]
            for name, values in found.items()
            if name.startswith("import ")
        }
        table("over bare Python, ms", over, "import gssapi", 1)


if __name__ == "__main__":
    main()
