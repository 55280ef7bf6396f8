"""What a soak takes place in: a realm, three refreshers, workers, a service, a small volume.

Two refreshers share the credentials of the `pair`: one leads, the other stands by, and the leader is killed now and
then. The third, the `veteran`, has credentials of its own and lives through all of it, for the slopes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krbrefresh.demo.realm import free_portbase, throwaway_realm
from krbrefresh.demo.staging import stage
from tests.faults import kadmin_all, tmpfs
from tests.processes import GROUP, REFRESHER, WORKER, Runner, toml
from tests.soak.judge import Poll
from tests.support import Realm, eventually

LIFETIME = 5  # seconds
SKEW = 3  # seconds that the realm forgives; at the usual 300 it would take a token that has ended
PROGRAMS = Path(__file__).parent
PAIR = ("a", "b")
VETERAN = "veteran"
KINDS = ("shared", "private", "gss", "gss-private")
EXTRA = "extra"  # the credential that comes and goes with HUP
_SAMPLE = re.compile(r'^krbrefresh_(\w+)\{credential="(\w+)"\} (\S+)$', re.MULTILINE)


class Log:
    """Reads a pipe into a file, and can leave off for a while."""

    def __init__(self, read_end: int, path: Path) -> None:
        self.reads = threading.Event()
        self.reads.set()
        self._pipe, self._path = read_end, path
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with open(self._path, "ab", buffering=0) as file:
            while True:
                self.reads.wait()
                data = os.read(self._pipe, 65536)
                if not data:
                    break
                file.write(data)
        os.close(self._pipe)

    def join(self) -> None:
        self.reads.set()
        self._thread.join(5)


class Refresher:
    """One refresher, through all its lives."""

    def __init__(self, world: World, name: str, credentials: list[str]) -> None:
        self.world, self.name, self.credentials = world, name, credentials
        self.port = world.port()
        self.config = world.place / f"{name}.toml"
        self.life = 0
        self.led = 0  # credentials that it publishes, when it was last asked
        self.answered = 0  # the life in which it was last heard over HTTP
        self.ends: list[dict[str, Any]] = []  # lives that nobody had asked to end
        self.asked = True
        self.lock = threading.Lock()  # who starts and ends it
        self.process: subprocess.Popen[bytes] | None = None
        self.configure()

    def configure(self, extra: bool = False) -> None:
        sections: dict[str, Any] = {
            "refresher": {"name": self.name, "log_format": "json", "listen": f"127.0.0.1:{self.port}"},
            "kerberos": {"lifetime": LIFETIME, "expiry_window": "50%", "group": str(self.world.group)},
        }
        if self.world.group is None:
            del sections["kerberos"]["group"]
        for name in [*self.credentials, *([f"{EXTRA}_{self.name}"] if extra else [])]:
            sections[f"credentials__{name}"] = {
                "principal": self.world.principal(name),
                "keytab": self.world.keytab(name),
                "ccache": self.world.ccache(name),
                "services": [self.world.service] if name in self.world.used else [],
            }
        new = self.config.with_suffix(".new")
        new.write_text(toml(**sections))
        new.chmod(0o644)
        new.rename(self.config)

    def start(self) -> None:
        self.life += 1
        read_end, write_end = os.pipe()
        self.process = subprocess.Popen(
            [self.world.runner.python, "-m", "krbrefresh", "run", "--config", str(self.config)],
            env={**self.world.runner.env, **self.world.realm.env, "TMPDIR": str(self.world.refreshers_tmp),
                 "KRBREFRESH__REFRESHER__LISTEN": f"127.0.0.1:{self.port}"},
            stdout=write_end, stderr=write_end, cwd="/",
            **self.world.as_refresher,
        )  # fmt: skip
        self.asked = False
        os.close(write_end)
        self.log = Log(read_end, self.world.out / f"{self.name}.log")

    @property
    def alive(self) -> bool:
        process = self.process
        if process is None or self.asked:
            return False
        if process.poll() is None:
            return True
        with self.lock:
            if not self.asked:
                self.asked = True
                self.ends.append({"refresher": self.name, "at": time.time(), "status": process.returncode})
        return False

    def end(self, number: int) -> float:
        """Sends the signal and waits for the end, which is asked for; how long it took."""
        assert self.process
        with self.lock:
            self.asked = True
        began = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        self.process.wait()
        took = time.monotonic() - began
        self.log.join()
        return took

    def signal(self, number: int) -> None:
        if self.alive and self.process:
            self.process.send_signal(number)

    def metrics(self) -> dict[str, dict[str, float]]:
        """By credential, then by the metric's name."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        found: dict[str, dict[str, float]] = {}
        for name, credential, value in _SAMPLE.findall(text):
            found.setdefault(credential, {})[name] = float(value)
        return found


class Worker:
    """One worker, and what it has said."""

    def __init__(self, world: World, number: int, names: list[str]) -> None:
        self.number, self.kind = number, KINDS[number % len(KINDS)]
        self.said: list[dict[str, Any]] = []
        brief = {
            "paths": {name: str(world.ccache(name)) for name in names},
            "principals": {name: world.principal(name) for name in names},
            "kind": self.kind,
            "acceptor": world.acceptor_port,
            "service": world.service,
        }
        self.errors = open(world.out / f"worker-{number}.log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [world.runner.python, str(world.programs / "worker.py"), json.dumps(brief)],
            env={**world.runner.env, "PATH": os.environ["PATH"], "KRB5_CONFIG": world.realm.env["KRB5_CONFIG"],
                 "TMPDIR": str(world.workers_tmp)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, cwd="/",
            **world.as_worker,
        )  # fmt: skip
        self.ready = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            said = json.loads(line)
            if "ready" in said:
                self.ready.set()
            else:
                self.said.append(said)

    def end(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._thread.join(5)
        self.errors.close()

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [said["run"] for said in self.said if "run" in said]

    @property
    def figures(self) -> dict[str, int]:
        return next((said["figures"] for said in self.said if "figures" in said), {})


class World:
    """All of it, once `world()` has made it."""

    def __init__(
        self, realm: Realm, runner: Runner, place: Path, out: Path, count: int, workers: int, seed: int
    ) -> None:
        self.realm, self.runner, self.place, self.out = realm, runner, place, out
        self.root = os.geteuid() == 0
        self.group = GROUP if self.root else None
        self.as_refresher = runner.user(REFRESHER if self.root else None, GROUP)
        self.as_worker = runner.user(WORKER if self.root else None, GROUP)
        self.volume, self.keys = place / "volume", place / "keys"
        self.refreshers_tmp, self.workers_tmp = place / "tmp-refreshers", place / "tmp-workers"
        self.programs = place / "programs"
        self.service = f"svc/soak.test@{realm.name}"
        self._ports = iter(range(free_portbase(), 1 << 16))
        self.names = [f"c{number:02d}" for number in range(count)]
        share = count * 3 // 5
        self.pair_names, self.veteran_names = self.names[:share], self.names[share:]
        self.acceptor_port = 0
        self.used: set[str] = set()  # with GSSAPI, and therefore with the service's ticket
        self.workers: list[Worker] = []
        self.share_out(workers, random.Random(seed))
        self.polls: list[Poll] = []
        self.unanswered: list[dict[str, Any]] = []

    def port(self) -> int:
        return next(self._ports)

    def principal(self, name: str) -> str:
        return f"{name}@{self.realm.name}"

    def keytab(self, name: str) -> Path:
        return self.keys / f"{name}.keytab"

    def ccache(self, name: str) -> Path:
        return self.volume / name / "krb5cc"

    def set_up(self) -> None:
        for directory, owner in ((self.keys, REFRESHER), (self.refreshers_tmp, REFRESHER), (self.programs, 0)):
            directory.mkdir()
            directory.chmod(0o755)
            if self.root:
                os.chown(directory, owner, owner)
        self.workers_tmp.mkdir()
        self.workers_tmp.chmod(0o1777)
        for program in ("worker.py", "acceptor.py"):
            shutil.copy(PROGRAMS / program, self.programs)
        everyone = [*self.names, f"{EXTRA}_a", f"{EXTRA}_b", f"{EXTRA}_{VETERAN}"]
        commands = []
        for name in everyone:
            commands += [f"addprinc -randkey {name}", f"ktadd -norandkey -k {self.keytab(name)} {name}"]
        service = self.place / "service.keytab"
        commands += [f"addprinc -randkey {self.service}", f"ktadd -norandkey -k {service} {self.service}"]
        kadmin_all(self.realm, commands)
        for keytab in (*(self.keytab(name) for name in everyone), service):
            keytab.chmod(0o400)
            if self.root:
                os.chown(keytab, REFRESHER, REFRESHER)
        self.acceptor = subprocess.Popen(
            [self.runner.python, str(self.programs / "acceptor.py")],
            env={**self.runner.env, **self.realm.env, "KRB5_KTNAME": str(service), "KRB5RCACHENAME": "none:"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        )  # fmt: skip
        assert self.acceptor.stdout
        self.acceptor_port = int(self.acceptor.stdout.readline())
        self.refreshers = {
            **{name: Refresher(self, name, self.pair_names) for name in PAIR},
            VETERAN: Refresher(self, VETERAN, self.veteran_names),
        }
        for each in self.refreshers.values():
            each.start()
            if each.name == PAIR[0]:
                eventually(lambda: all(self.ccache(name).exists() for name in self.pair_names), within=60, every=0.1)
        eventually(lambda: all(self.ccache(name).exists() for name in self.names), within=60, every=0.1)

    def share_out(self, count: int, rng: random.Random) -> None:
        """Which credentials each worker looks at; every one of them has two workers at least."""
        size = -(-2 * len(self.names) // count)
        names: list[str] = []
        while len(names) < count * size:
            names += rng.sample(self.names, len(self.names))
        self.shares = [list(dict.fromkeys(names[number * size : (number + 1) * size])) for number in range(count)]
        self.used = {share[0] for number, share in enumerate(self.shares) if "gss" in KINDS[number % len(KINDS)]}

    def start_workers(self) -> None:
        for number in range(len(self.shares)):
            self.workers.append(Worker(self, number, self.shares[number]))
        for worker in self.workers:
            assert worker.ready.wait(90), f"worker {worker.number} is not ready"

    def leads(self, name: str) -> int:
        """How many credentials of the pair this one publishes."""
        with contextlib.suppress(OSError):
            return sum("next_refresh_timestamp_seconds" in each for each in self.refreshers[name].metrics().values())
        return 0

    def poll(self) -> None:
        """Asks the refreshers how they are."""
        failing: dict[str, tuple[int, float]] = {}
        well = set()
        for each in self.refreshers.values():
            if not each.alive:
                continue
            life, began = each.life, time.time()
            try:
                told = each.metrics()
                each.answered = life
                each.led = sum("next_refresh_timestamp_seconds" in metrics for metrics in told.values())
            except OSError as error:
                if each.alive and each.life == life == each.answered:  # else it has just begun, or has just ended
                    self.unanswered.append({"refresher": each.name, "at": began, "error": str(error)})
                continue
            for credential, metrics in told.items():
                if "next_refresh_timestamp_seconds" not in metrics:
                    continue
                if metrics["consecutive_failures"]:
                    failing[credential] = (
                        int(metrics["consecutive_failures"]),
                        metrics["next_refresh_timestamp_seconds"],
                    )
                elif metrics.get("ticket_expiration_timestamp_seconds", 0.0) > time.time():
                    well.add(credential)
        # Now: a try that is due is told to be due at the moment of the answer.
        self.polls.append(Poll(time.time(), failing, frozenset(well)))

    def strays(self) -> list[str]:
        """What lies on the volume beside the tokens and the locks."""
        found = []
        for directory, _, files in os.walk(self.volume):
            found += [
                os.path.join(directory, file) for file in files if file not in ("krb5cc", ".krbrefresh.lock", "fill")
            ]
        return found

    def scratch(self) -> dict[str, int]:
        """Files in the temporary directories."""
        return {
            "refreshers": sum(len(files) for _, _, files in os.walk(self.refreshers_tmp)),
            "workers": sum(len(files) for _, _, files in os.walk(self.workers_tmp)),
        }

    def end_refreshers(self) -> dict[str, float]:
        return {name: round(each.end(signal.SIGTERM), 3) for name, each in self.refreshers.items() if each.alive}

    def tear_down(self) -> None:
        """Whatever has become of it."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.kill()
                worker.process.wait()
        for each in getattr(self, "refreshers", {}).values():
            if each.process and each.process.poll() is None:
                each.end(signal.SIGKILL)
        if hasattr(self, "acceptor"):
            self.acceptor.kill()
            self.acceptor.wait()


@contextlib.contextmanager
def world(place: Path, out: Path, credentials: int, workers: int, seed: int) -> Iterator[World]:
    """A realm whose clocks forgive little, with this many principals; all of it is gone at the end."""
    with throwaway_realm(libdefaults={"clockskew": str(SKEW)}) as kdc, contextlib.ExitStack() as stack:
        runner = Runner()
        if os.geteuid() == 0:
            staging = stage(place, WORKER, WORKER)
            runner = Runner(staging.python, {**staging.environment})
        made = World(Realm(kdc), runner, place, out, credentials, workers, seed)
        made.volume.mkdir()
        if made.root:
            stack.enter_context(tmpfs(made.volume, REFRESHER, size="4m"))
        try:
            made.set_up()
            yield made
        finally:
            with contextlib.suppress(ProcessLookupError):
                if kdc._kdc_proc:
                    os.kill(kdc._kdc_proc.pid, signal.SIGCONT)
            made.tear_down()
