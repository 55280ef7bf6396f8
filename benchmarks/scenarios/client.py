"""The worker's half beside gssapi, krb5 and klist: imports, a token new and unchanged, the whole command.

gssapi is `Credentials(store=...)` with its name and lifetime, krb5 a context, `cc_resolve`, the principal and all
entries. All take turns, so that a busy moment does not hit one alone.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gssapi
import krb5
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import krbrefresh
from benchmarks.realm import Bench, kinit
from benchmarks.records import Scale
from krbrefresh import client, signature
from krbrefresh.token import seal

LANE, ROOT = "quiet", False
GSSAPI, KRB5, KLIST, KRBREFRESH_ALONE, ED25519 = "gssapi", "krb5", "klist -s", "krbrefresh", "Ed25519 alone"
PEERS = [GSSAPI, KRB5, KLIST, KRBREFRESH_ALONE]
COMMAND = str(Path(sys.executable).with_name("krbrefresh"))


def run(bench: Bench, scale: Scale) -> None:
    [account] = bench.accounts(1)
    case = bench.case(*account)
    case.token_directory.mkdir()
    token, signed, public_key = _tokens(case, bench.place)
    os.environ["KRB5_CONFIG"] = case.env["KRB5_CONFIG"]  # for gssapi and krb5 in this process
    principal = krbrefresh.validate(token).principal
    key = Ed25519PrivateKey.generate()
    message = bytes(400)  # as long as a manifest
    public, made = key.public_key(), key.sign(message)
    time.sleep(1.2)  # a file has rested by then, and is known
    within: dict[tuple[str, str], Callable[[], object]] = {
        (GSSAPI, "load, new"): lambda: _with_gssapi(token),
        (GSSAPI, "load, unchanged"): lambda: _with_gssapi(token),  # it knows nothing of files; the same call
        (KRB5, "load, new"): lambda: _with_krb5(token),
        (KRB5, "load, unchanged"): lambda: _with_krb5(token),
        (KRBREFRESH_ALONE, "load, new"): lambda: _anew(krbrefresh.load, token),
        (KRBREFRESH_ALONE, "load, unchanged"): lambda: krbrefresh.load(token),
        (KRBREFRESH_ALONE, "validate, new"): lambda: _anew(krbrefresh.validate, token),
        (KRBREFRESH_ALONE, "validate, new, all checks"): lambda: _anew(
            krbrefresh.validate, token, principal=principal, services=["HTTP/web@R"]
        ),
        (KRBREFRESH_ALONE, "validate, unchanged"): lambda: krbrefresh.validate(token),
        (KRBREFRESH_ALONE, "validate, new, signed"): lambda: _anew(
            krbrefresh.validate, signed, principal=principal, public_key=public_key
        ),
        (KRBREFRESH_ALONE, "validate, unchanged, signed"): lambda: krbrefresh.validate(
            signed, principal=principal, public_key=public_key
        ),
        (ED25519, "verify"): lambda: public.verify(made, message),
    }
    # As bytecode is cached from here on, wherever the package is.
    env = {name: os.environ[name] for name in ("PATH", "KRB5_CONFIG", "PYTHONPATH") if name in os.environ}
    whole: dict[tuple[str, str], list[str]] = {
        ("python", "bare"): [sys.executable, "-c", "pass"],
        (KLIST, "check"): ["klist", "-s", str(token)],
        (KRBREFRESH_ALONE, "import"): [sys.executable, "-c", "import krbrefresh"],
        (KRB5, "import"): [sys.executable, "-c", "import krb5"],
        (GSSAPI, "import"): [sys.executable, "-c", "import gssapi"],
        (KRBREFRESH_ALONE, "check"): [COMMAND, "check", str(token)],
        (KRBREFRESH_ALONE, "check, signed"): [
            *(COMMAND, "check", "--principal", principal, "--public-key", str(public_key), str(signed))
        ],
    }
    for index in range(scale.runs):
        for (peer, what), call in within.items():
            bench.results.add(peer, index, what, _call(call, scale.of(0.2, 0.01)), "us")
        took = _processes(whole, env, scale.of(15, 2))
        for (peer, what), milliseconds in took.items():
            bench.results.add(peer, index, what, milliseconds, "ms")
            if what == "import":
                over = milliseconds - took["python", "bare"]
                bench.results.add(peer, index, "import, over bare Python", over, "ms")


def _call(call: Callable[[], object], each: float) -> float:
    """Microseconds, the median of as many calls as go into that many seconds."""
    call()
    took = []
    end = time.perf_counter() + each
    while (began := time.perf_counter()) < end:
        call()
        took.append((time.perf_counter() - began) * 1e6)
    return statistics.median(took)


def _processes(commands: dict[tuple[str, str], list[str]], env: dict[str, str], count: int) -> dict[Any, float]:
    """Milliseconds of a whole process of each kind, medians of so many; in turn."""
    took: dict[tuple[str, str], list[float]] = {name: [] for name in commands}
    for _ in range(count):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
            took[name].append((time.perf_counter() - began) * 1000)
    return {name: statistics.median(values) for name, values in took.items()}


def _with_gssapi(path: Path) -> object:
    credentials = gssapi.Credentials(usage="initiate", store={"ccache": f"FILE:{path}"})
    return credentials.name, credentials.lifetime


def _with_krb5(path: Path) -> object:
    context = krb5.init_context()
    cache = krb5.cc_resolve(context, b"FILE:" + os.fsencode(path))
    return krb5.cc_get_principal(context, cache).name, [entry.times.endtime for entry in cache]


def _anew(call: Callable[..., object], path: Path, **checks: Any) -> object:
    """As it meets a file that has just been published: nothing is known of it."""
    client._known.clear()
    client._trusted.clear()
    return call(path, **checks)


def _tokens(case: Any, place: Path) -> tuple[Path, Path, Path]:
    """A token with a manifest, one that is signed besides, and the public key."""
    kinit(case)
    body = case.ccache.read_bytes()
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
