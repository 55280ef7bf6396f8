"""What keeps a ccache fresh: each peer the real program, with the settings that serve it best in the case at hand."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.processes import children_of, toml

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
AIRFLOW = REPOSITORY / ".venv-frameworks" / "requirements-airflow" / "bin" / "airflow"


@dataclass(frozen=True)
class Case:
    """What a peer is to do: this principal's token in a directory of its own, a new one every `interval` seconds where
    it has to be told."""

    place: Path
    principal: str
    keytab: Path
    interval: float
    env: dict[str, str]
    directory: Path | None = None  # of the token, where it is to be another file system

    @property
    def token_directory(self) -> Path:
        return self.directory or self.place / "token"

    @property
    def ccache(self) -> Path:
        return self.token_directory / "krb5cc"


class Peer:
    """`name` is in the tables. `refreshes_on` is the signal that makes it refresh at once, if there is one."""

    name: str
    refreshes_on: signal.Signals | None = None

    def command(self, case: Case) -> list[str]:
        raise NotImplementedError

    def env(self, case: Case) -> dict[str, str]:
        return {}

    def start(self, case: Case, *, prefix: Sequence[str] = ()) -> Running:
        """Starts it, in a session of its own; what it says goes to a file beside the token's directory."""
        case.place.mkdir(parents=True, exist_ok=True)
        self._make_directory(case)
        command = self.command(case)
        return Running(self, case, [*prefix, *command], {**case.env, **self.env(case)})

    def _make_directory(self, case: Case) -> None:
        case.token_directory.mkdir(exist_ok=True)

    def shown(self, case: Case) -> str:
        """Its command line and its own variables, without this machine's paths."""
        variables = [f"{name}={value}" for name, value in sorted(self.env(case).items()) if name != "PYTHONPATH"]
        text = shlex.join([*variables, *self.command(case)])
        for path, name in (
            (case.ccache, "$CCACHE"),
            (case.keytab, "$KEYTAB"),
            (case.principal, "$PRINCIPAL"),
            (case.place, "$PLACE"),
            (Path(sys.executable).parent, ""),
            (AIRFLOW.parent, ""),
            (HERE, "benchmarks"),
        ):
            text = text.replace(f"{path}/" if not name else str(path), name)
        return re.sub(r"AIRFLOW_HOME=\S+ ", "", text)


class Krbrefresh(Peer):
    refreshes_on = signal.SIGUSR1

    def __init__(self, name: str = "krbrefresh", *, listen: str = "127.0.0.1:0", **kerberos: str) -> None:
        self.name, self.listen, self.kerberos = name, listen, kerberos

    def _make_directory(self, case: Case) -> None:
        pass  # it makes its own

    def env(self, case: Case) -> dict[str, str]:
        return {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}

    def command(self, case: Case) -> list[str]:
        config = case.place / "krbrefresh.toml"
        kerberos = {"principal": case.principal, "keytab": case.keytab, "ccache": case.ccache, **self.kerberos}
        config.write_text(toml(refresher={"listen": self.listen}, kerberos=kerberos))
        return [str(Path(sys.executable).with_name("krbrefresh")), "run", "--config", str(config)]

    def shown(self, case: Case) -> str:
        settings = "".join(f" {key}={value}" for key, value in self.kerberos.items())
        return super().shown(case) + (f" (besides principal, keytab and ccache:{settings})" if settings else "")


class K5start(Peer):
    """`safely` with -m, which makes it write beside the ccache and rename; without, it rewrites in place. It wakes up
    every -K minutes, one at the least, and refreshes when the next time but two minutes would be too late."""

    refreshes_on = signal.SIGALRM

    def __init__(self, *, safely: bool = True) -> None:
        self.name = "k5start -m" if safely else "k5start"
        self.safely = safely

    def command(self, case: Case) -> list[str]:
        minutes = max(1, round(case.interval / 60))
        mode = ["-m", "640"] if self.safely else []
        return ["k5start", "-K", str(minutes), *mode, "-f", str(case.keytab), "-k", str(case.ccache), case.principal]


class KinitLoop(Peer):
    """The one-liner: whatever happens, it sleeps and tries again."""

    name = "kinit loop"
    LOOP = 'while :; do kinit -k -t "$1" -c "$2" "$3"; sleep "$4"; done'

    def command(self, case: Case) -> list[str]:
        return ["sh", "-c", self.LOOP, "loop", str(case.keytab), str(case.ccache), case.principal, f"{case.interval:g}"]


class Sidecar(Peer):
    name = "kinit sidecar"

    def command(self, case: Case) -> list[str]:
        script = str(HERE / "sidecar.sh")
        return [script, str(case.keytab), str(case.ccache), case.principal, f"{case.interval:g}"]


class Airflow(Peer):
    """From its released package (tools/setup-frameworks). Its metadata database, without which it does not start, is
    made once, beside its environment."""

    name = "airflow kerberos"
    HOME = AIRFLOW.parent.parent / "home"

    def env(self, case: Case) -> dict[str, str]:
        return {
            "AIRFLOW_HOME": str(self.HOME),
            "AIRFLOW__KERBEROS__CCACHE": str(case.ccache),
            # A ticket with this machine's addresses cannot be renewed over loopback, and it ends when it cannot renew.
            "AIRFLOW__KERBEROS__INCLUDE_IP": "False",
            "AIRFLOW__KERBEROS__KEYTAB": str(case.keytab),
            "AIRFLOW__KERBEROS__PRINCIPAL": case.principal,
            "AIRFLOW__KERBEROS__REINIT_FREQUENCY": str(max(1, round(case.interval))),
        }

    def command(self, case: Case) -> list[str]:
        self.prepare()
        return [str(AIRFLOW), "kerberos"]

    @classmethod
    def prepare(cls) -> None:
        """Makes the database; several scenarios may come at the same time."""
        ready = cls.HOME / ".ready"
        cls.HOME.mkdir(parents=True, exist_ok=True)
        with open(cls.HOME / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not ready.exists():
                env = {"PATH": os.environ["PATH"], "AIRFLOW_HOME": str(cls.HOME)}
                subprocess.run([str(AIRFLOW), "db", "migrate"], env=env, capture_output=True, check=True)
                ready.touch()


class Libgssapi(Peer):
    """The worker holds the keytab: nothing runs beside it. It acquires twice a second, as a busy worker does."""

    name = "libgssapi"

    def env(self, case: Case) -> dict[str, str]:
        return {"KRB5CCNAME": f"FILE:{case.ccache}", "KRB5_CLIENT_KTNAME": str(case.keytab)}

    def command(self, case: Case) -> list[str]:
        return [sys.executable, str(HERE / "gssapi_worker.py"), f"{min(0.5, max(0.02, case.interval)):g}"]


KRBREFRESH = Krbrefresh()
SAFE_K5START = K5start()
PLAIN_K5START = K5start(safely=False)
KINIT_LOOP = KinitLoop()
SIDECAR = Sidecar()
AIRFLOW_KERBEROS = Airflow()
LIBGSSAPI = Libgssapi()
PEERS: list[Peer] = [KRBREFRESH, SAFE_K5START, PLAIN_K5START, KINIT_LOOP, SIDECAR, AIRFLOW_KERBEROS, LIBGSSAPI]


class Running:
    """A peer that has been started. `restart_after` says how long whoever runs the container waits before it starts one
    that has ended again, given how often that was; `tend` does so."""

    def __init__(self, peer: Peer, case: Case, command: list[str], env: dict[str, str]) -> None:
        self.peer, self.case = peer, case
        self._command, self._env = command, env
        self.log = case.place / "log"
        self.restart_after: Callable[[int], float] | None = None
        self.deaths = 0
        self._restart_at = 0.0
        self._start()

    def _start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        self._dead = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def tend(self) -> None:
        if self.alive():
            return
        now = time.monotonic()
        if not self._dead:
            self._dead = True
            self.deaths += 1
            if self.restart_after:
                self._restart_at = now + self.restart_after(self.deaths)
        if self.restart_after and now >= self._restart_at:
            self._start()

    def tree(self) -> list[int]:
        """It and all that it has started."""
        found = [self.pid]
        for pid in found:
            found += children_of(pid)
        return found

    def refresh(self) -> None:
        """Asks for a new token at once, where it can be asked."""
        if self.peer.refreshes_on is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, self.peer.refreshes_on)

    def kill(self) -> None:
        """SIGKILL to it and all that it has started, as when a container is killed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


def kubelet(deaths: int) -> float:
    """Seconds until a container that has ended is started again: 10, 20, 40 ... 300 (Kubernetes, "Pod Lifecycle")."""
    return float(min(300, 10 * 2 ** (deaths - 1)))


def at_once(deaths: int) -> float:
    """For tickets that live for minutes instead of hours, what ten seconds are to those."""
    return 1.0
