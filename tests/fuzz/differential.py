#!/usr/bin/env python3
"""What our reader accepts, as libkrb5 and libgssapi read it: the same, or a disagreement of a class that has a name.

    .venv/bin/python tests/fuzz/differential.py [--seconds 60] [--seed N]

docs/architecture.md says of each class why it does no harm. Everything else is an AssertionError.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gssapi
import krb5

from krbrefresh import ccache
from krbrefresh.ccache import Ccache, Credential
from krbrefresh.errors import CorruptError
from krbrefresh.token import MANIFEST_KEY, Token
from tests.fuzz import inputs

AFTER = "entries after the manifest"
STRUCK_OUT = "an entry that is struck out in another way"
CONFIG = "a ticket in the configuration's realm"
FOREIGN = "somebody else's TGT"
SEVERAL = "several TGTs"
NO_TGT = "service tickets alone"
FAR = "an end that is 68 years away, or a clock that far off"
MICROSECONDS = "a million microseconds and more in the header"
CLASSES = (AFTER, STRUCK_OUT, CONFIG, FOREIGN, SEVERAL, NO_TGT, FAR, MICROSECONDS)

KRB5_CONF = """[libdefaults]
 default_realm = EXAMPLE.COM
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
"""


class Comparison:
    """Reads inputs with both sides, and counts."""

    def __init__(self) -> None:
        self.file = tempfile.NamedTemporaryFile()  # noqa: SIM115  (it lives as long as this does)
        self.inputs = self.accepted = self.tokens = self.valid = 0
        self.classes: collections.Counter[str] = collections.Counter()
        self.refused: collections.Counter[str] = collections.Counter()  # valid here, and no use to libgssapi

    def compare(self, data: bytes) -> None:
        self.inputs += 1
        try:
            token = Token.parse(data)
        except CorruptError:
            return
        self.accepted += 1
        self.file.seek(0)
        self.file.truncate()
        self.file.write(data)
        self.file.flush()
        ours = ccache.parse(data)
        self.entries(ours)
        if not token.empty:
            self.tokens += 1
            self.token(ours, token)

    def entries(self, ours: Ccache) -> None:
        """The principal, the offset, and each entry: names, times, flags, key and ticket, marshalled."""
        context = krb5.init_context()  # a new one for each file: the first offset that it reads stays in it
        cache = krb5.cc_resolve(context, b"FILE:" + os.fsencode(self.file.name))
        principal = krb5.cc_get_principal(context, cache)
        theirs = [krb5.marshal_credentials(context, entry) for entry in cache]
        assert (ours.principal.realm, ours.principal.components) == (principal.realm, tuple(principal.components))
        assert (ours.kdc_offset or (0, 0)) == krb5.get_time_offsets(context)
        assert [ccache.encode_credential(entry) for entry in ours.credentials if shown_by_mit(entry)] == theirs

    def token(self, ours: Ccache, token: Token) -> None:
        """Whose it is and until when, to a worker that uses GSSAPI."""
        classes = explained(ours, token)
        offset, micro = ours.kdc_offset or (0, 0)
        if abs(micro) >= 1_000_000:
            classes.add(MICROSECONDS)
        end = end_to_gssapi(ours, [entry for entry in ours.credentials if shown_by_mit(entry)])
        before = time.time() + offset
        name, lifetime = held_by_gssapi(self.file.name)
        after = time.time() + offset
        assert name in (None, str(token.principal).encode("utf-8", "surrogateescape"))
        if not (before >= 0 and after < 2**32 and -(2**31) < end - before < 2**31):
            classes.add(FAR)
        else:
            # A second for the rounding, one for the header's microseconds.
            assert max(0, end - after) - 2 <= lifetime <= max(0, end - before) + 2, (end - before, lifetime, token)
        self.classes.update(classes)
        if token.expires - time.time() > 60:
            self.valid += 1
            if lifetime == 0:
                assert classes, f"valid for us, and of no use to libgssapi: {token}"
                self.refused.update(classes)


def shown_by_mit(entry: Credential) -> bool:
    """MIT 1.20 looks for the times 0 and -1 alone; older Heimdals left the beginning, or changed the realm alone."""
    return not entry.removed or struck_out_otherwise(entry)


def struck_out_otherwise(entry: Credential) -> bool:
    return entry.removed and (entry.endtime, entry.authtime) != (0, 0xFFFFFFFF)


def is_config(entry: Credential) -> bool:
    """As krb5_is_config_principal sees it: a key is not asked for."""
    return entry.server.realm == b"X-CACHECONF:" and entry.server.components[:1] == (b"krb5_ccache_conf_data",)


def end_to_gssapi(ours: Ccache, entries: list[Credential]) -> int:
    """libgssapi (1.20) takes the last TGT, whoever it is for, else the first ticket that has an end."""
    end = 0
    for entry in entries:
        if not is_config(entry) and (entry.server == ccache.tgt_name(ours.principal.realm) or not end):
            end = entry.endtime
    return end


def explained(ours: Ccache, token: Token) -> set[str]:
    """The classes that lie between libgssapi's end and ours; without them the two are the same."""
    entries = [entry for entry in ours.credentials if shown_by_mit(entry)]
    keys = [entry.config_key for entry in ours.credentials]
    last = ours.credentials[keys.index(MANIFEST_KEY)].span[1] if MANIFEST_KEY in keys else 1 << 40
    tgt = ccache.tgt_name(ours.principal.realm)
    kept: dict[str, Callable[[Credential], bool]] = {
        AFTER: lambda entry: entry.span[1] <= last,
        STRUCK_OUT: lambda entry: not entry.removed,
        CONFIG: lambda entry: entry.is_ticket,
        FOREIGN: lambda entry: entry.server != tgt or entry.client == ours.principal,
    }
    classes = set()
    end = end_to_gssapi(ours, entries)
    for name, keep in kept.items():
        entries = [entry for entry in entries if keep(entry)]
        if end_to_gssapi(ours, entries) != end:
            classes.add(name)
            end = end_to_gssapi(ours, entries)
    tgts = [entry.endtime for entry in entries if entry.server == tgt]
    if end != (max(tgts) if tgts else min(entry.endtime for entry in entries)):
        classes.add(SEVERAL if tgts else NO_TGT)
        end = max(tgts) if tgts else min(entry.endtime for entry in entries)
    assert abs(token.expires + token.offset - end) < 0.01, (token, end)
    return classes


def held_by_gssapi(path: str) -> tuple[bytes | None, int]:
    try:
        held = gssapi.Credentials(usage="initiate", store={"ccache": f"FILE:{path}"})
        return bytes(held.name), held.lifetime or 0
    except gssapi.exceptions.ExpiredCredentialsError:
        return None, 0
    except gssapi.exceptions.MissingCredentialsError:  # `Credential cache is empty`: nothing with an end
        return None, 0


def run(seed: int, seconds: float, count: int = 1 << 40) -> Comparison:
    rng = random.Random(seed)
    some = inputs.seeds(int(time.time()))
    pool = list(some)
    comparison = Comparison()
    end = time.monotonic() + seconds
    while time.monotonic() < end and comparison.inputs < count:
        data = inputs.mutate(rng, rng.choice(pool), some)
        before = comparison.tokens
        try:
            comparison.compare(data)
        except AssertionError:
            Path(f"crash-differential-{seed}-{comparison.inputs}").write_bytes(data)
            raise
        if comparison.tokens > before and len(data) < 4000 and len(pool) < 500:
            pool.append(data)
    return comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another one each time, unless it is named")
    options = parser.parse_args()
    with tempfile.NamedTemporaryFile("w") as conf:
        conf.write(KRB5_CONF)
        conf.flush()
        os.environ["KRB5_CONFIG"] = conf.name  # names are looked up nowhere
        found = run(options.seed, options.seconds)
    print(
        f"seed {options.seed}: {found.inputs} inputs, {found.accepted} accepted and read by libkrb5 likewise, "
        f"{found.tokens} of them with a ticket, {found.valid} of these valid\n"
    )
    print("| class | tokens | of those valid for us, of no use to libgssapi |\n|---|---|---|")
    for name in CLASSES:
        print(f"| {name} | {found.classes[name]} | {found.refused[name]} |")


if __name__ == "__main__":
    main()
