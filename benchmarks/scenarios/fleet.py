"""One krbrefresh with many credentials, where a peer is a process for each."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.peers import KRBREFRESH, Krbrefresh, Running
from benchmarks.realm import Bench
from tests.processes import toml
from tests.support import eventually


class _Many(Krbrefresh):
    """krbrefresh, with all of these accounts in its settings."""

    def __init__(self, accounts: list[tuple[str, Path]], **settings: str) -> None:
        super().__init__(KRBREFRESH.name)
        self._accounts, self._settings = accounts, settings

    def command(self, case: object) -> list[str]:
        command = super().command(case)  # type: ignore[arg-type]
        config = Path(command[-1])
        credentials = {
            f"credentials__c{index}": {
                "principal": principal,
                "keytab": keytab,
                "ccache": ccache(config.parent, index),
                **self._settings,
            }
            for index, (principal, keytab) in enumerate(self._accounts)
        }
        config.write_text(toml(refresher={"listen": self.listen, "log_format": "json"}, **credentials))
        return command


class Fleet:
    """`settings` are those of each credential."""

    def __init__(self, bench: Bench, accounts: list[tuple[str, Path]], **settings: str) -> None:
        self.bench, self.accounts, self.settings = bench, accounts, settings
        self.case = bench.case(*accounts[0])
        self.ccaches = [ccache(self.case.place, index) for index in range(len(accounts))]

    def start(self, **how: Any) -> Running:
        self.running = self.bench.start(_Many(self.accounts, **self.settings), self.case, **how)
        self.bench.results.commands[KRBREFRESH.name] += f" (one process, {len(self.accounts)} credentials)"
        return self.running

    def address(self) -> str:
        """Where it answers."""
        said: re.Match[str] | None = eventually(
            lambda: re.search(r'"address": ?"([^"]+)"', self.running.log.read_text()), within=10, what="its address"
        )
        assert said
        return said[1]

    def get(self, path: str) -> tuple[bytes, float]:
        """What it answers, and how many milliseconds that takes."""
        began = time.perf_counter()
        with urllib.request.urlopen(f"http://{self.address()}/{path}", timeout=30) as answer:
            body: bytes = answer.read()
        return body, (time.perf_counter() - began) * 1000


def ccache(place: Path, index: int) -> Path:
    return place / f"token{index}" / "krb5cc"
