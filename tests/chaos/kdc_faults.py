#!/usr/bin/env python3
"""A KDC behind a proxy that loses, spoils, repeats and lies: what the refresher makes of it.

    .venv/bin/python tests/chaos/kdc_faults.py [--runs 2000] [--seconds 30] [--seed N] [--run K]

`--runs`: exchanges, each with a behaviour of the proxy that its own number draws (SEED and --run repeat one); over UDP
and over TCP. Each has to end within its deadline, in a token that our reader, libkrb5 and the KDC find good, or in a
reason that the network can be to blame for. Where nothing worse was done than delays, repetitions and answers that are
too big for UDP, it has to be a token. No exchange makes more than one attempt at the account.

`--seconds`: `krbrefresh run` with many credentials and tickets of some seconds, in weather that changes. Independent
readers look all the time (observer.py); the process lives and answers; a credential tries no more often than the policy
allows, and not at all once it was refused; and when the weather is fair again, each token is right in time.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import datetime
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gssapi
import krb5

import krbrefresh
from krbrefresh.errors import LOOK_AGAIN, REFRESH_REASONS, REJECTED, TRANSIENT, RefreshError
from krbrefresh.refresher import policy
from krbrefresh.refresher.child import MOST_CHILDREN, Exchanger
from krbrefresh.refresher.settings import CredentialSettings
from krbrefresh.token import Token
from tests.chaos.disk import die_with_parent
from tests.chaos.messages import Request
from tests.chaos.observer import Observers
from tests.chaos.proxy import HARMFUL, HARMLESS, LIES, MISLEADING, Asked, Deed, Proxy
from tests.chaos.world import World, world
from tests.faults import LISTENING, Http
from tests.processes import Runner, children_of, refresher, toml

WORKERS = 2  # processes; the first asks over UDP, the second over TCP
AT_A_TIME = MOST_CHILDREN + 4  # exchanges in each: some in line, or no child would be used twice
DEADLINES = (1.0, 2.0, 4.0)  # seconds
PATIENT = 20.0  # where nothing harmful is done
ENDS_WITHIN = 30.0  # seconds after its deadline: it may have to wait in line, on a machine that is busy
MOST_ATTEMPTS = 1  # requests with the account's key in one exchange, repetitions of the same bytes apart
MOST_REQUESTS = 2  # requests without it in one exchange, likewise
MOST_ROUNDS = 16  # of either, where the answers mislead it: libkrb5's own limit (get_in_tkt.c, MAX_IN_TKT_LOOPS)
READERS = 2
LIFE = "20s"  # of a ticket: an exchange may take a quarter of its window, 1.7 seconds
LONGEST_EXCHANGE = 4.0  # seconds, where there is no token
BUSY = 30.0  # seconds that a machine may be busy with other things
PATIENCE = 10.0  # seconds; who waits for longer is asked with USR1
LONGEST = 30.0  # seconds for an exchange, with its wait in line
EARLY = 0.1  # seconds by which two packets may come closer than they were sent
# How long a credential may wait after a failure, by the kind of it (policy.py): seconds, and one for rounding.
LONGEST_WAIT = {TRANSIENT: policy.BACKOFF_CAP + 1, LOOK_AGAIN: policy.LOOK_AGAIN_DELAY + 1,
                REJECTED: policy.REJECTED_DELAYS[-1] + 1}  # fmt: skip
LOSSES = ("lose the request", "lose the answer", "delay", "close", "reset", "hang in the middle", "no bytes")
# A bit of the ticket itself that is changed on the way is seen by nobody but the KDC, and so by our observers.
SEEN = tuple(name for name in HARMFUL if name != "spoil the answer")
NETWORK = [reason for reason, (retry, _) in REFRESH_REASONS.items() if retry != LOOK_AGAIN]
# Besides, an answer can say that no enctype will do, that there is no such service, or that the realm is another one.
ALLOWED = {*NETWORK, "enctype_unsupported", "service_unknown"}


def good(data: bytes, principal: str, where: Path, service: str | None) -> None:
    """What our reader, libkrb5 and the KDC say of a ccache. Raises AssertionError and theirs."""
    token = Token.parse(data)
    assert token.principal == principal, token.principal
    assert token.has_tgt
    where.write_bytes(data)
    context = krb5.init_context()
    cache = krb5.cc_resolve(context, b"FILE:" + os.fsencode(where))
    assert krb5.unparse_name_flags(context, krb5.cc_get_principal(context, cache)).decode() == principal
    assert [each.times.endtime for each in cache] == [round(token.expires + token.offset)]
    if service:
        initiator = gssapi.Credentials(usage="initiate", store={"ccache": str(where)})
        target = gssapi.Name(service, gssapi.NameType.kerberos_principal)
        gssapi.SecurityContext(name=target, creds=initiator, usage="initiate").step()


class Run:
    """One exchange, and how the proxy behaves meanwhile."""

    def __init__(self, seed: int, number: int) -> None:
        self.number = number
        self._dice = random.Random(f"{seed}:{number}")
        self.harmless = self._dice.random() < 0.15
        self.deadline = PATIENT if self.harmless else self._dice.choice(DEADLINES)
        self._rate = self._dice.choice([0.3, 0.6, 1.0])
        self._kinds = self._dice.choice([HARMFUL, HARMFUL, LIES, (*HARMFUL, *LIES, *HARMLESS)])
        self.deeds: list[str] = []

    def draw(self) -> Deed:
        name = "nothing"
        if self._dice.random() < self._rate:
            name = self._dice.choice(HARMLESS if self.harmless else self._kinds)
        self.deeds.append(name)
        return Deed(name, random.Random(self._dice.random()))


class Exchanges:
    """A process's share of the runs: every one whose number is `first` more than a multiple of WORKERS."""

    def __init__(self, here: World, directory: Path, seed: int, first: int) -> None:
        self._here, self._directory, self._seed = here, directory, seed
        self._tcp = first % 2 == 1
        self._honest = here.krb5_conf(directory / f"honest{first}", here.kdcs[0], tcp=False)
        self._through = directory / f"through{first}"
        self._runs: dict[str, Run] = {}
        self.seen = Counter[str]()
        self.attempts = Counter[str]()
        self.wrong: list[str] = []

    def _draw(self, request: Request | None) -> Deed:
        run = self._runs.get(request.client) if request else None
        return run.draw() if run else Deed("nothing", random.Random(0))

    async def play(self, numbers: list[int]) -> None:
        numbers.reverse()
        async with Proxy(self._here.realm.name, self._here.kdcs, self._draw) as proxy:
            self._here.krb5_conf(self._through, proxy.port, tcp=self._tcp)
            os.environ["KRB5_CONFIG"] = str(self._through)
            exchanger = Exchanger()

            async def player(principal: str) -> None:
                while numbers:
                    await self._one(numbers.pop(), principal, exchanger, proxy)

            await asyncio.gather(*(player(name) for name in self._here.principals[:AT_A_TIME]))
            await exchanger.close()
            self.seen.update({f"done: {name}": count for name, count in proxy.done.items()})

    async def _one(self, number: int, principal: str, exchanger: Exchanger, proxy: Proxy) -> None:
        run = self._runs[principal] = Run(self._seed, number)
        settings = CredentialSettings(principal=principal, keytab=str(self._here.keytab), ccache="/unused")
        outcome = ""
        try:
            exchanged = await asyncio.wait_for(exchanger.exchange(settings, run.deadline), run.deadline + ENDS_WITHIN)
            if exchanged.error:
                raise exchanged.error
            outcome = "a token"
            # Who has another clock than the KDC that is asked now is refused by it.
            service = None if "another clock" in run.deeds else self._here.service
            os.environ["KRB5_CONFIG"] = str(self._honest)
            try:
                good(exchanged.ccache, principal, self._directory / f"copy{number % WORKERS}", service)
            finally:
                os.environ["KRB5_CONFIG"] = str(self._through)
        except RefreshError as error:
            outcome = error.reason
            if error.reason == "internal":
                self.seen[f"internal: {error.code or error}"] += 1
            if error.reason not in ALLOWED:
                self._wrong(run, principal, f"{error.reason}: {error}")
        except gssapi.raw.GSSError as error:
            # The ticket itself is for the KDC's eyes: no client can see that a bit of it was changed on the way.
            if "spoil the answer" in run.deeds:
                outcome = "a ticket that was spoiled"
            else:
                self._wrong(run, principal, f"the KDC does not take the ticket: {error}")
        except Exception as error:
            self._wrong(run, principal, f"{type(error).__name__}: {error}")
        if run.harmless and outcome != "a token":
            self._wrong(run, principal, f"{outcome}, and nothing harmful was done")
        self.seen["runs"] += 1
        self.seen[f"came to: {outcome}"] += 1
        asked = [each for each in proxy.asked if each.client == principal]
        proxy.asked[:] = [each for each in proxy.asked if each.client != principal]
        for proves in (True, False):
            distinct = len({each.digest for each in asked if each.proves == proves})
            self.attempts[f"{'attempts' if proves else 'requests without a proof'}: {distinct}"] += 1
            most = MOST_ATTEMPTS if proves else MOST_REQUESTS
            if distinct > (MOST_ROUNDS if MISLEADING & set(run.deeds) else most):
                self._wrong(run, principal, f"{distinct} {'attempts' if proves else 'requests without a proof'}")
        most = max(Counter(each.digest for each in asked).values(), default=0)
        self.attempts[f"the same bytes: {most}"] += 1

    def _wrong(self, run: Run, principal: str, words: str) -> None:
        self.wrong.append(f"run {run.number}, {principal}, deadline {run.deadline} s, {run.deeds}: {words}")


def worker(words: dict[str, Any]) -> None:
    """One of the processes."""
    die_with_parent()
    here = World(_NoRealm(words["realm"]), Path(words["keytab"]), words["principals"], words["kdcs"])  # type: ignore[arg-type]
    mine = Exchanges(here, Path(words["directory"]), words["seed"], words["first"])
    asyncio.run(mine.play(words["numbers"]))
    print(json.dumps({"seen": mine.seen, "attempts": mine.attempts, "wrong": mine.wrong}))


class _NoRealm:
    """Its name is all that a worker knows of the realm."""

    def __init__(self, name: str) -> None:
        self.name = name


def play_exchanges(here: World, directory: Path, seed: int, numbers: list[int]) -> None:
    began = time.monotonic()
    processes = []
    each = len(here.principals) // WORKERS
    for first in range(WORKERS):
        words = {"realm": here.realm.name, "keytab": str(here.keytab), "kdcs": here.kdcs, "seed": seed, "first": first,
                 "principals": here.principals[first * each : (first + 1) * each], "directory": str(directory),
                 "numbers": [number for number in numbers if number % WORKERS == first]}  # fmt: skip
        file = directory / f"worker{first}"
        file.write_text(json.dumps(words))
        processes.append(
            subprocess.Popen([sys.executable, __file__, "--worker", str(file)], stdout=subprocess.PIPE, text=True)
        )
    seen, attempts, wrong = Counter[str](), Counter[str](), []
    try:
        for process in processes:
            output = process.communicate()[0]
            assert not process.returncode, f"a worker ended with status {process.returncode}"
            told = json.loads(output)
            seen.update(told["seen"])
            attempts.update(told["attempts"])
            wrong += told["wrong"]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    took = time.monotonic() - began
    print(f"{seen.pop('runs')} exchanges in {took:.0f} s\n  {figures(seen)}\n  {figures(attempts)}", flush=True)
    assert not wrong, "\n".join([f"{len(wrong)} wrong; the first:", *wrong[:20]])


# --- a refresher in bad weather ---


def short(name: str) -> str:
    """A principal's name without its realm, which is what its credential is called."""
    return name.partition("@")[0]


def moment(text: str) -> float:
    """A time in the refresher's words, as Unix seconds."""
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


class Weather:
    """What the proxy does to the requests of a refresher's credentials, each by dice of its own."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._dice: dict[str, random.Random] = {}
        self.kinds: tuple[str, ...] = HARMLESS
        self.rate = 0.0

    def draw(self, request: Request | None) -> Deed:
        client = request.client if request else ""
        dice = self._dice.setdefault(client, random.Random(f"{self._seed}:{client}"))
        name = dice.choice(self.kinds) if dice.random() < self.rate else "nothing"
        return Deed(name, random.Random(dice.random()))


class InBadWeather:
    """A refresher behind a proxy, those who watch it, and what is wrong."""

    def __init__(self, here: World, directory: Path, seed: int, principals: list[str]) -> None:
        self._here, self._directory = here, directory
        self._dice = random.Random(f"{seed}:weather")
        self._weather = Weather(seed)
        self.hurried: list[float] = []  # when everything was asked for anew: the start, and each USR1
        self._paths = {name: str(directory / short(name) / "krb5cc") for name in principals}
        self.seen = Counter[str]()
        # Seconds: of an answer of /livez, between attempts of one credential, by which this process itself was late.
        self.slowest, self.closest, self.late = 0.0, math.inf, 0.0

    def _config(self) -> Path:
        config = self._directory / "krbrefresh.toml"
        sections: dict[str, Any] = {
            f"credentials__{short(name)}": {"principal": name, "ccache": path} for name, path in self._paths.items()
        }
        config.write_text(
            toml(
                refresher={"log_format": "json", "exchange_deadline": f"{LONGEST_EXCHANGE:.0f}s"},
                kerberos={"keytab": self._here.keytab, "lifetime": LIFE},
                **sections,
            )
        )
        return config

    async def play(self, seconds: float) -> None:
        async with Proxy(self._here.realm.name, self._here.kdcs, self._weather.draw) as proxy:
            self._proxy = proxy
            through = self._here.krb5_conf(self._directory / "through", proxy.port, tcp=False)
            honest = self._here.krb5_conf(self._directory / "honest", self._here.kdcs[0], tcp=False)
            self._env = {**self._here.realm.env, "KRB5_CONFIG": str(through)}
            self.hurried.append(time.monotonic())
            with (
                refresher(Runner(), self._config(), {**self._env, **LISTENING}) as running,
                contextlib.ExitStack() as stack,
            ):
                self._running = running
                await asyncio.to_thread(lambda: running.logged("listening", within=60))
                self._http = Http(running)
                await self._all_right(within=60)
                observers = await asyncio.to_thread(
                    lambda: Observers(
                        {path: name for name, path in self._paths.items()},
                        READERS,
                        self._directory,
                        service=self._here.service,
                        krb5_config=str(honest),
                        rest=0.02,
                    )
                )
                stack.callback(observers.close)
                alive = asyncio.create_task(self._stays_alive())
                until = time.monotonic() + seconds
                before = len(os.listdir(f"/proc/{running.process.pid}/fd"))
                while time.monotonic() < until:
                    await self._a_storm()
                alive.cancel()
                await asyncio.gather(alive, return_exceptions=True)
                self.seen.update(await asyncio.to_thread(observers.results))
                after = len(os.listdir(f"/proc/{running.process.pid}/fd"))
                assert after <= before + 3 * MOST_CHILDREN, f"{before} descriptors before, {after} after"
                await asyncio.to_thread(running.stop)
                assert running.process.returncode == 0
                assert "Traceback" not in running.text, running.text
                assert not running.named("internal"), running.named("internal")
                self.seen["published"] += len(running.named("published"))
                self.seen.update(f"told: {reason}" for reason in running.reasons())
            self.seen.update({f"done: {name}": count for name, count in proxy.done.items()})
            self.judge_attempts(proxy.asked)

    async def _a_storm(self) -> None:
        """Bad weather, and fair again: what is right by itself, what is silent, and what is right when it is asked."""
        self._weather.kinds = self._dice.choice([HARMLESS, SEEN, LOSSES, LOSSES, (*SEEN, *LIES, *HARMLESS)])
        self._weather.rate = self._dice.choice([0.3, 0.6, 1.0, 1.0])
        self._refresh_all()  # in the middle of it
        await asyncio.sleep(self._dice.uniform(2, 8))
        self.seen["storms"] += 1
        if self._dice.random() < 0.5:
            await self._once()
        self._weather.rate = 0.0
        fair = time.monotonic()
        await asyncio.sleep(LONGEST_EXCHANGE + 1)  # what is on its way comes to its end
        told, now = (await self._ready())[1], time.time()
        refused, soon = set(), set()
        for name in self._paths:
            said = told[short(name)]
            wait = (moment(said["next_attempt_at"]) if said["next_attempt_at"] else 0) - now
            kind = REFRESH_REASONS[said["reason"]][0] if said["reason"] else TRANSIENT
            assert said["reason"] is None or wait <= LONGEST_WAIT[kind], (name, said)
            if kind == REJECTED and wait > PATIENCE:
                refused.add(name)
            elif wait < PATIENCE:
                soon.add(name)
        self.seen["right by themselves"] += len(soon)
        self.seen["refused"] += len(refused)
        self.seen["in a longer wait"] += len(self._paths) - len(soon) - len(refused)
        silent_since = time.monotonic()
        await self._all_right(within=PATIENCE + LONGEST_EXCHANGE + BUSY, names=soon)
        asked = [each for each in self._proxy.asked if each.client in refused and each.at > silent_since]
        assert not asked, f"asked although it was refused: {asked[:3]}"
        assert fair < silent_since
        self._refresh_all()
        await self._all_right(within=LONGEST_EXCHANGE + BUSY)

    def _refresh_all(self) -> None:
        self.hurried.append(time.monotonic())
        self._running.process.send_signal(signal.SIGUSR1)

    async def _once(self) -> None:
        """`krbrefresh once` for a principal of its own: it says how it went, and ends in time."""
        name = self._here.principals[-1]
        path = self._directory / f"once{self.seen['once']}" / "krb5cc"
        environ = {"KRBREFRESH__KERBEROS__PRINCIPAL": name, "KRBREFRESH__KERBEROS__KEYTAB": str(self._here.keytab),
                   "KRBREFRESH__KERBEROS__CCACHE": str(path), **self._env,
                   "KRBREFRESH__REFRESHER__EXCHANGE_DEADLINE": "4s"}  # fmt: skip
        runner = Runner()
        process = await asyncio.create_subprocess_exec(
            runner.python, "-m", "krbrefresh", "once", env={**runner.env, **environ},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            text = (await asyncio.wait_for(process.communicate(), 30))[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
        self.seen["once"] += 1
        self.seen[f"once ended with {process.returncode}"] += 1
        assert process.returncode in (0, 1), text
        if process.returncode:
            assert not path.exists(), text
        else:
            assert Token.parse(path.read_bytes()).principal == name

    async def _ready(self) -> tuple[int, dict[str, dict[str, Any]]]:
        return await asyncio.to_thread(self._http.ready)

    async def _all_right(self, *, within: float, names: set[str] | None = None) -> None:
        """Until each of these was seen with a valid token, and not failing."""
        until = time.monotonic() + within
        left = set(self._paths if names is None else names)
        while left:
            assert self._running.process.poll() is None, self._running.text[-2000:]
            told = (await self._ready())[1]
            left = {name for name in left if not self._right(name, told)}
            if left and time.monotonic() > until:
                some = [(name, told[short(name)]) for name in sorted(left)[:3]]
                words = f"{len(left)} are not right within {within} s, and /livez took {self.slowest:.2f} s: {some}"
                raise AssertionError(words)
            await asyncio.sleep(0.2)

    def _right(self, name: str, told: dict[str, dict[str, Any]]) -> bool:
        if told[short(name)]["state"] != "valid":
            return False
        try:
            krbrefresh.validate(self._paths[name], principal=name, min_remaining=0)
        except krbrefresh.TokenError:
            return False
        return True

    async def _stays_alive(self) -> None:
        while True:
            began = time.monotonic()
            status = (await asyncio.to_thread(self._http.get, "/livez"))[0]
            assert status == 200
            self.seen["looks at /livez"] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            children = len(children_of(self._running.process.pid))
            assert children <= 2 * MOST_CHILDREN, f"{children} child processes"
            rested = time.monotonic()
            await asyncio.sleep(0.5)
            self.late = max(self.late, time.monotonic() - rested - 0.5)

    def judge_attempts(self, all_asked: list[Asked]) -> None:
        """No credential asked more often than the policy lets it."""
        by_client: dict[str, list[Asked]] = collections.defaultdict(list)
        known = set()
        for each in all_asked:
            if each.digest not in known and each.client in self._paths:
                known.add(each.digest)
                by_client[each.client].append(each)
        for client, asked in by_client.items():
            for proves, most in ((True, MOST_ATTEMPTS), (False, MOST_REQUESTS)):
                some = [each for each in asked if each.proves == proves]
                self.seen["attempts" if proves else "requests without a proof"] += len(some)
                for index in range(most, len(some)):
                    first, last = some[index - most].at, some[index].at
                    since = _begun(asked, first) - EARLY - self.slowest
                    if any(since <= moment <= last for moment in self.hurried):
                        continue
                    if any(first <= each.at < last and each.deed in MISLEADING for each in asked):
                        continue  # it may be the same exchange
                    self.closest = min(self.closest, last - first)
                    words = f"{most + 1} within {last - first:.3f} s, {'with' if proves else 'without'} a proof"
                    around = [
                        (round(each.at - first, 3), each.proves, each.deed)
                        for each in asked
                        if -5 < each.at - first < 5
                    ]
                    hurried = [round(moment - first, 3) for moment in self.hurried if -20 < moment - first < 5]
                    assert last - first >= policy.MIN_DELAY - EARLY, (
                        f"{client}: {words}: {around}, asked for: {hurried}"
                    )


def _begun(asked: list[Asked], moment: float) -> float:
    """Since when the exchange of a request at that moment may have waited or run: a USR1 in that time asks for another
    one after it."""
    lately = [each for each in asked if moment - LONGEST <= each.at <= moment]
    began = max((each.at for each in lately if not each.proves), default=moment)
    return max([began - LONGEST, *(each.at for each in asked if each.at < began)])


async def play_weather(here: World, directory: Path, seed: int, seconds: float, count: int) -> None:
    began = time.monotonic()
    mine = InBadWeather(here, directory, seed, here.principals[:count])
    await mine.play(seconds)
    print(
        f"{count} credentials in {mine.seen.pop('storms')} storms in {time.monotonic() - began:.0f} s; "
        f"the slowest answer of /livez: {mine.slowest:.2f} s; two attempts of one were never closer than "
        f"{mine.closest:.2f} s\n  {figures(mine.seen)}\n  none torn, none missing, none older, none of another",
        flush=True,
    )


def figures(seen: collections.Counter[str]) -> str:
    return ", ".join(f"{word}: {number}" for word, number in sorted(seen.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000, help="exchanges")
    parser.add_argument("--seconds", type=float, default=30, help="of a refresher in bad weather")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another one each time, unless it is named")
    parser.add_argument("--credentials", type=int, default=24, help="of that refresher")
    parser.add_argument("--run", type=int, help="this exchange alone, of that seed")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # that a client has gone is no news
    if options.worker:
        worker(json.loads(options.worker.read_text()))
        return
    print(f"faults of the KDC: seed {options.seed}", flush=True)
    numbers = list(range(options.runs)) if options.run is None else [options.run]
    with tempfile.TemporaryDirectory(prefix="krbrefresh-faults-") as name:
        os.chmod(name, 0o755)
        with world(Path(name), max(WORKERS * AT_A_TIME, options.credentials + 1)) as here:
            if numbers:
                play_exchanges(here, Path(name), options.seed, numbers)
            if options.seconds and options.run is None:
                asyncio.run(play_weather(here, Path(name), options.seed, options.seconds, options.credentials))


if __name__ == "__main__":
    main()
