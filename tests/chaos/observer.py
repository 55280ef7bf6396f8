"""Readers that know nothing of the refresher but the paths of its tokens, and never rest.

What they hold: once there was a token at a path there always is one, whole, of its principal, never of an older
generation than before. That a token has ended is counted, and is no fault of these checks: a KDC may be away. Every new
generation is read by libkrb5 as well, and where a service is named, a ticket for it is fetched with it at the KDC
itself: nothing else tells whether a session key is the right one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import krbrefresh
from krbrefresh.token import Token
from tests.chaos.disk import die_with_parent

SAME_CLOCK = 60.0  # seconds of a KDC's clock beyond which the KDC itself, which has another one, refuses a ticket
LEFT = 0.5  # seconds of life without which a ticket is not tried: it would end on the way


class Observers:
    """So many processes that read these paths, `{path: principal}`, until `results`."""

    def __init__(
        self,
        paths: dict[str, str],
        count: int,
        place: Path,
        *,
        service: str = "",
        krb5_config: str = "/dev/null",
        rest: float = 0,
    ) -> None:
        self._stop = place / "observers-stop"
        self._processes = []
        for index in range(count):
            # One of them asks libkrb5: to fetch a ticket for each generation twice would tell nothing more.
            words = {"paths": paths, "stop": str(self._stop), "service": service, "rest": rest, "libkrb5": not index}
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, json.dumps(words)],
                    env={**os.environ, "KRB5_CONFIG": krb5_config, "KRB5CCNAME": "MEMORY:none"},
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

    def results(self) -> Counter[str]:
        """What they have counted; `bad` is 0, or this is an AssertionError."""
        self._stop.touch()
        counted = Counter[str]()
        bad: list[str] = []
        for process in self._processes:
            told = json.loads(process.communicate(timeout=30)[0])
            bad += told.pop("bad")
            counted.update(told)
        self._stop.unlink()
        assert not bad, f"{len(bad)} bad readings, the first of them: {bad[:5]}"
        return counted

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


class Reader:
    """One of them."""

    def __init__(self, words: dict[str, Any]) -> None:
        self._paths: dict[str, str] = words["paths"]
        self._service, self._libkrb5 = words["service"], words["libkrb5"]
        self._last: dict[str, int] = {}
        self._copy = Path(words["stop"]).with_name(f"copy-{os.getpid()}")
        self.counted = Counter[str]()
        self.bad: list[str] = []

    def look(self) -> None:
        for path, principal in self._paths.items():
            self.counted["reads"] += 1
            try:
                token = krbrefresh.load(path)
            except krbrefresh.TokenError as error:
                if path in self._last or error.reason != "missing":
                    self._wrong(path, f"{error.reason}: {error}")
                continue
            generation = token.generation or 0
            last = self._last.get(path)
            if generation == last:
                self._valid(path, principal)
                continue
            if last is not None and generation < last:
                self._wrong(path, f"generation {generation} after {last}")
            self._last[path] = generation
            self.counted["generations"] += 1
            self._valid(path, principal)
            if self._libkrb5:
                try:
                    self._as_libkrb5_sees_it(path, principal)
                except Exception as error:
                    self._wrong(path, f"libkrb5: {type(error).__name__}: {error}")

    def _valid(self, path: str, principal: str) -> None:
        try:
            krbrefresh.validate(path, principal=principal, min_remaining=0)
        except krbrefresh.ExpiredError:
            self.counted["expired"] += 1
        except krbrefresh.TokenError as error:
            self._wrong(path, f"{error.reason}: {error}")

    def _as_libkrb5_sees_it(self, path: str, principal: str) -> None:
        import gssapi
        import krb5

        data = Path(path).read_bytes()
        token = Token.parse(data)
        self._copy.write_bytes(data)  # who is root would have the ticket added to the file
        context = krb5.init_context()
        cache = krb5.cc_resolve(context, b"FILE:" + os.fsencode(self._copy))
        name = krb5.unparse_name_flags(context, krb5.cc_get_principal(context, cache)).decode()
        assert name == principal, name
        tgt = f"krbtgt/{token.realm}@{token.realm}"
        ends = [each.times.endtime for each in cache if krb5.unparse_name_flags(context, each.server).decode() == tgt]
        assert ends == [round(token.expires + token.offset)], (ends, token)
        self.counted["libkrb5"] += 1
        if self._service and abs(token.offset) < SAME_CLOCK and token.expires - time.time() > LEFT:
            initiator = gssapi.Credentials(usage="initiate", store={"ccache": str(self._copy)})
            target = gssapi.Name(self._service, gssapi.NameType.kerberos_principal)
            gssapi.SecurityContext(name=target, creds=initiator, usage="initiate").step()
            self.counted["tickets"] += 1

    def _wrong(self, path: str, words: str) -> None:
        self.bad.append(f"{path}: {words}")


def main() -> None:
    die_with_parent()
    words = json.loads(sys.argv[1])
    reader = Reader(words)
    reader.look()
    print("ready", flush=True)
    while not os.path.exists(words["stop"]):
        reader.look()
        if words["rest"]:
            time.sleep(words["rest"])
    reader.look()
    print(json.dumps({**reader.counted, "bad": reader.bad}))


if __name__ == "__main__":
    main()
