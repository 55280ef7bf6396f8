"""`krbrefresh demo`: a throwaway realm, a refresher and a worker on this machine, and a picture of the token's life.

All of it is real: MIT's KDC, `krbrefresh run`, a worker that has the public API and GSSAPI, a service that accepts it.
Only the tickets are short. As root the refresher and the worker are two unprivileged users, so that the worker's
attempt to read the keytab means something; otherwise the demo says that it cannot show this.
"""

from __future__ import annotations

import contextlib
import datetime
import grp
import importlib.util
import json
import os
import pwd
import queue
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .client import activate, validate
from .errors import NotInstalledError, TokenError
from .realm import throwaway_realm
from .token import Token

LEAST_REFRESHES = 3  # after the first token
LEAST_CONTEXTS = 10
STOPS_WITHIN = 1.0  # seconds, from TERM to the refresher's end
FIRST_TOKEN_WITHIN = 15.0
SAMPLE_EVERY = 0.1
CONTEXT_EVERY = 1.0
FRAME = 0.1
TOKEN_MODE = 0o440  # what the refresher publishes with by default

COUNTS = ("samples", "invalid", "changed", "contexts", "failed")  # what the worker counts

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_MESSAGE = 1 << 16  # bytes; no GSSAPI token here is longer

_BOLD, _DIM, _RED, _GREEN, _YELLOW, _CYAN = "1", "2", "1;31", "32", "33", "1;36"  # ANSI's SGR numbers
_ASCII = str.maketrans("█▒░▼└", "#=.v^")  # for an output that is not in UTF-8

Told = queue.Queue[tuple[str, str | None]]  # (who, a line of what it says, or None at its end)


def demo(seconds: float = 40.0, ticket_life: int = 12) -> int:
    """Plays until `seconds` after the first token, with tickets of `ticket_life` seconds, and tells it on standard
    output. It leaves no process and no file behind.

    Returns 0 if every claim of its summary held, 1 if not, 128 + n after signal n. Raises NotInstalledError.
    """
    for module in ("krb5", "gssapi"):
        if importlib.util.find_spec(module) is None:
            raise NotInstalledError(
                f"the package {module} is not installed here", hint="install krbrefresh with its extra [demo]"
            )
    try:
        with _noted_signals() as signals, Picture(seconds) as picture:
            picture.say(f"krbrefresh demo: tickets of {ticket_life} seconds, watched for {seconds:.0f} seconds", _BOLD)
            claims = _play(picture, signals, seconds, ticket_life)
            if signals:
                picture.say(f"{signal.Signals(signals[0]).name}: all processes are stopped, all files removed")
                return 128 + signals[0]
            return 0 if picture.summary(claims) else 1
    except BrokenPipeError:  # `krbrefresh demo | head`; the interpreter's last flush must not fail on it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class Claim(NamedTuple):
    """A line of the summary; `held` is None for what could not be shown."""

    name: str
    text: str
    held: bool | None


def _play(picture: Picture, signals: list[int], seconds: float, ticket_life: int) -> list[Claim]:
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="krbrefresh-demo-"))
        os.chmod(place, 0o711)  # noqa: S103  (each user has to get to its own part of it)
        with _deaf_children():
            kdc = stack.enter_context(throwaway_realm())
            cast = assign_users(place)
            scene = set_up(place, kdc, cast, ticket_life)
        os.environ.update(KRB5_CONFIG=scene.krb5_config, KRB5RCACHENAME=f"file2:{place}/rcache")  # for the service
        told: Told = queue.Queue()
        stack.enter_context(_service(scene, cast, told))
        arguments = ["krbrefresh", "run", "--config", scene.config]
        refresher = stack.enter_context(_process("refresher", cast, scene, told, *arguments))
        arguments = ["krbrefresh.demo", scene.token, scene.socket, scene.keytab, str(cast.group)]
        worker = stack.enter_context(_process("worker", cast, scene, told, *arguments))
        assert worker.stdin

        picture.say(f"  realm      uid {os.geteuid():<6} krb5kdc for {kdc.realm} on 127.0.0.1")
        picture.say(f"  refresher  uid {cast.refresher:<6} pid {refresher.pid}: holds the keytab, publishes the token")
        picture.say(f"  worker     uid {cast.worker:<6} pid {worker.pid}: reads the token, by its group {cast.group}")
        if cast.one_user:
            picture.say(f"  One user runs all three: {cast.one_user}.")
            picture.say("  That the worker cannot read the keytab is therefore not shown.")
        picture.say("")
        story = Story(one_user=bool(cast.one_user))
        while not story.over(seconds) and not signals:
            _hear(told, story, picture)
            picture.draw(story)
        endings = [
            _end("worker", worker, worker.stdin.close, "its input's end", 5.0),
            _end("refresher", refresher, refresher.terminate, "TERM", STOPS_WITHIN),
        ]
        while len(story.ended) < len(endings):
            _hear(told, story, picture)
        picture.draw(story, last=True)
    return [*story.claims(cast), *endings]


def _hear(told: Told, story: Story, picture: Picture) -> None:
    with contextlib.suppress(queue.Empty):
        event = story.hear(*told.get(timeout=FRAME))
        if event:
            picture.event(event)


# --- Who runs what, and where it finds its code


class StagingError(Exception):
    """Another user cannot run krbrefresh here; the message says why."""


@dataclass(frozen=True)
class Staging:
    """How another user runs this krbrefresh: with which interpreter, and with what in its environment."""

    python: str
    environment: dict[str, str]


_IMPORTS = "import krbrefresh.refresher.service, krbrefresh.demo, krb5, gssapi"
_LIST_PACKAGES = f"""
import sys
before = set(sys.modules)
{_IMPORTS}
for name in {{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names:
    places = getattr(sys.modules[name], "__path__", None) or [getattr(sys.modules[name], "__file__", None)]
    if places[0]:
        print(places[0])
"""


def stage(directory: str | os.PathLike[str], uid: int, gid: int) -> Staging:
    """How the user `uid` with the group `gid` runs krbrefresh with krb5 and gssapi. Only root can ask.

    The interpreter and the packages may lie where that user cannot go (a clone or a pyenv in /root): then copies of the
    packages are made in `directory`/lib, readable for all, for an interpreter that this user can run. `directory` is
    one that the user can pass through. Raises StagingError.
    """
    if not _trial(directory, _here(), uid, gid):
        return _here()
    library = os.path.join(directory, "lib")
    os.mkdir(library)
    packages = _run(_here(), _LIST_PACKAGES, check=True).stdout.splitlines()
    subprocess.run(["cp", "-RL", "--", *packages, library], check=True)
    subprocess.run(["chmod", "-R", "u=rwX,go=rX", library], check=True)  # whatever the umask and the modes there
    name = f"python3.{sys.version_info.minor}"
    base = getattr(sys, "_base_executable", None) or sys.executable
    complaints = []
    for python in (sys.executable, base, f"/usr/bin/{name}", f"/usr/local/bin/{name}", "/usr/bin/python3"):
        staging = Staging(python, {"PYTHONPATH": library})
        complaints.append(_trial(directory, staging, uid, gid))
        if not complaints[-1]:
            return staging
    raise StagingError(f"no {name} here runs for another user ({complaints[0]})")


def _here() -> Staging:
    """As this process runs it."""
    paths = [os.path.dirname(_PACKAGE), os.environ.get("PYTHONPATH", "")]
    return Staging(sys.executable, {"PYTHONPATH": os.pathsep.join(filter(None, paths))})


def _trial(directory: str | os.PathLike[str], staging: Staging, uid: int, gid: int) -> str:
    """What is wrong with it for that user, or nothing. To find another krbrefresh than this one is wrong, too."""
    code = f"import os; os.stat({os.path.join(directory, '.')!r}); {_IMPORTS}; print(krbrefresh.__path__[0])"
    try:
        done = _run(staging, code, **_as_user(uid, gid))
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
    wanted = os.path.join(staging.environment["PYTHONPATH"].split(os.pathsep)[0], "krbrefresh")
    return "" if done.stdout.strip() == wanted else f"{staging.python} finds {done.stdout.strip()}"


def _run(staging: Staging, code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [staging.python, "-c", code]
    return subprocess.run(
        command, env=staging.environment, cwd="/", capture_output=True, text=True, timeout=60, **options
    )


def _as_user(uid: int, gid: int, *groups: int) -> dict[str, Any]:
    return {"user": uid, "group": gid, "extra_groups": list(groups)}


@dataclass(frozen=True)
class Cast:
    """Who runs what: the users' and the workers' group's numbers; `one_user` says why where it is one for all."""

    refresher: int
    worker: int
    group: int
    staging: Staging
    one_user: str = ""


def assign_users(place: str) -> Cast:
    """Two users that this machine does not know, and a group for both, if this process is root and can do that."""
    why = "not started as root"
    if os.geteuid() == 0:
        group, refresher, worker = _unused_ids()
        try:
            return Cast(refresher, worker, group, stage(place, worker, worker))
        except StagingError as error:
            why = str(error)
    return Cast(os.geteuid(), os.geteuid(), os.getegid(), _here(), why)


def _unused_ids() -> range:
    known = {user.pw_uid for user in pwd.getpwall()} | {group.gr_gid for group in grp.getgrall()}
    return next(ids for base in range(64200, 65000, 10) if known.isdisjoint(ids := range(base, base + 3)))


# --- The realm's accounts, the files, the processes


@dataclass(frozen=True)
class Scene:
    """The paths."""

    krb5_config: str
    config: str
    keytab: str
    token: str
    socket: str
    service_keytab: str


def set_up(place: str, kdc: Any, cast: Cast, ticket_life: int) -> Scene:
    """The accounts etl and demo/localhost, their keytabs, the refresher's settings and the directories."""

    def directory(name: str, mode: int, uid: int, gid: int) -> str:
        path = os.path.join(place, name)
        os.mkdir(path)
        os.chown(path, uid, gid)
        os.chmod(path, mode)  # whatever the umask
        return path

    scene = Scene(
        krb5_config=kdc.env["KRB5_CONFIG"],
        config=os.path.join(place, "demo.toml"),
        keytab=os.path.join(directory("secrets", 0o700, cast.refresher, -1), "etl.keytab"),
        token=os.path.join(directory("volume", 0o755, cast.refresher, -1), "etl", "krb5cc"),
        socket=os.path.join(directory("service", 0o750, -1, cast.group), "socket"),
        service_keytab=os.path.join(place, "demo.keytab"),
    )
    kdc.run_kadminl(f'addprinc -randkey -maxlife "{ticket_life} seconds" etl')
    kdc.run_kadminl("addprinc -randkey demo/localhost")
    kdc.run_kadminl(f'ktadd -norandkey -k "{scene.keytab}" etl')
    kdc.run_kadminl(f'ktadd -norandkey -k "{scene.service_keytab}" demo/localhost')
    os.chown(scene.keytab, cast.refresher, -1)
    os.chmod(scene.keytab, 0o400)
    with open(scene.config, "w") as file:  # a text in JSON is one in TOML
        file.write(
            f'[refresher]\nname = "demo"\nlog_format = "json"\n\n[kerberos]\nprincipal = "etl@{kdc.realm}"\n'
            f"keytab = {json.dumps(scene.keytab)}\nccache = {json.dumps(scene.token)}\ngroup = {cast.group}\n"
            f'lifetime = "{ticket_life}s"\n'
        )
    os.chmod(scene.config, 0o644)
    return scene


@contextlib.contextmanager
def _process(who: str, cast: Cast, scene: Scene, told: Told, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The refresher's or the worker's process; what it says goes to the queue, line by line."""
    uid = cast.refresher if who == "refresher" else cast.worker
    with subprocess.Popen(
        [cast.staging.python, "-m", *arguments],
        **({} if cast.one_user else _as_user(uid, uid, cast.group)),
        env={"PATH": os.environ["PATH"], "KRB5_CONFIG": scene.krb5_config, **cast.staging.environment},
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # our terminal's Ctrl-C is for us
    ) as process:
        reader = threading.Thread(target=_read, args=(who, process.stdout, told), daemon=True)
        reader.start()
        try:
            yield process
        finally:
            process.kill()
            reader.join()


def _read(who: str, lines: Iterable[str], told: Told) -> None:
    for line in lines:
        told.put((who, line))
    told.put((who, None))


def _end(who: str, process: subprocess.Popen[str], ask: Callable[[], None], what: str, within: float) -> Claim:
    """Ends a process by `ask`. The claim is that it was still there, and that it went in time and in order."""
    status = process.poll()
    if status is not None:
        return Claim(who, f"had ended by itself, with status {status}", False)
    start = time.monotonic()
    ask()
    try:
        status = process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        return Claim(who, f"was still there {within:.0f} s after {what}", False)
    return Claim(who, f"ended {time.monotonic() - start:.2f} s after {what}, with status {status}", status == 0)


@contextlib.contextmanager
def _service(scene: Scene, cast: Cast, told: Told) -> Iterator[None]:
    """The service demo/localhost, on a socket for the workers' group."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(scene.socket)
        os.chown(scene.socket, -1, cast.group)
        os.chmod(scene.socket, 0o660)
        listener.listen()
        thread = threading.Thread(target=_accept, args=(listener, scene.service_keytab, told), daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, keytab: str, told: Told) -> None:
    """Accepts contexts until the socket is shut down, and answers each client's question under its key."""
    import gssapi

    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(5)
            try:
                credentials = gssapi.Credentials(usage="accept", store={"keytab": keytab})
                context = gssapi.SecurityContext(creds=credentials, usage="accept")
                while not context.complete:
                    reply = context.step(connection.recv(_MESSAGE))
                    if reply:
                        connection.send(reply)
                context.unwrap(connection.recv(_MESSAGE))
                connection.send(context.wrap(str(context.initiator_name).encode(), True).message)
            except (gssapi.raw.GSSError, OSError) as error:
                told.put(("service", f"it refused a context: {error}"))


# --- The worker


def worker(token_path: str, socket_path: str, keytab: str, group: str) -> int:
    """The worker's process: samples the token and proves itself to the service until its standard input ends, and
    reports each event as a line of JSON."""
    counts = dict.fromkeys(COUNTS, 0)

    def tell(event: str, **fields: object) -> None:
        print(json.dumps({"event": event, "counts": counts, **fields}), flush=True)

    try:
        with open(keytab, "rb"):
            tell("keytab", refused=False, message="it can be read")
    except OSError as error:
        tell("keytab", refused=isinstance(error, PermissionError), message=error.strerror)
    while True:
        try:
            activate(token_path, timeout=0, min_remaining=0)
            break
        except TokenError as error:
            if _input_ended():
                tell("trouble", message=f"{error.reason}: {error}")
                return 0
    generation, trouble, next_context = None, "", 0.0
    while not _input_ended():
        before = trouble
        token, trouble = _sample(token_path, int(group), counts)
        if trouble and not before:
            tell("trouble", message=trouble)
        if token and token.manifest and token.generation != generation:
            generation = token.generation
            window = token.manifest.window_opens_at
            tell("token", principal=token.principal, generation=generation, life=(token.starts, window, token.expires))
        if time.monotonic() >= next_context:
            next_context = time.monotonic() + CONTEXT_EVERY
            tell(**_prove(socket_path, counts))
    tell("finished")
    return 0


def _input_ended() -> bool:
    """Waits for the next sample's time, or for the word to end, which also comes if the demo itself is killed."""
    return bool(select.select([sys.stdin], [], [], SAMPLE_EVERY)[0])


def _sample(path: str, group: int, counts: dict[str, int]) -> tuple[Token | None, str]:
    """The token, if it is valid now, and what is wrong with it or its file."""
    counts["samples"] += 1
    try:
        token = validate(min_remaining=0)
        found = os.stat(path)
    except (TokenError, OSError) as error:
        counts["invalid"] += 1
        return None, f"{getattr(error, 'reason', 'unreadable')}: {error}"
    if stat.S_IMODE(found.st_mode) == TOKEN_MODE and found.st_gid == group:
        return token, ""
    counts["changed"] += 1
    return token, f"the token has mode {stat.S_IMODE(found.st_mode):04o} and group {found.st_gid}"


def _prove(path: str, counts: dict[str, int]) -> dict[str, Any]:
    """A GSSAPI context with the service, mutually authenticated, and a question answered under its key: a report."""
    import gssapi

    start = time.monotonic()
    flags = gssapi.RequirementFlag.mutual_authentication | gssapi.RequirementFlag.confidentiality
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as service:
            service.settimeout(5)
            service.connect(path)
            name = gssapi.Name("demo@localhost", gssapi.NameType.hostbased_service)
            context = gssapi.SecurityContext(name=name, flags=flags, usage="initiate")
            reply = None
            while not context.complete:
                message = context.step(reply)
                if message:
                    service.send(message)
                if not context.complete:
                    reply = service.recv(_MESSAGE)
            if not context.actual_flags & gssapi.RequirementFlag.mutual_authentication:
                raise OSError("the service did not prove itself")
            service.send(context.wrap(b"who am I?", True).message)
            initiator = context.unwrap(service.recv(_MESSAGE)).message.decode()
    except (gssapi.raw.GSSError, OSError) as error:
        counts["failed"] += 1
        return {"event": "trouble", "message": f"no context: {error}"}
    counts["contexts"] += 1
    return {"event": "context", "initiator": initiator, "ms": (time.monotonic() - start) * 1000}


# --- What has happened


class Event(NamedTuple):
    """Something to tell: when, after the start, how to paint it, and what."""

    at: float
    style: str
    text: str


@dataclass
class Story:
    """What the refresher's log and the worker's reports say so far."""

    one_user: bool
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    refreshes: int = -1  # the first token is none
    expires_at: float = 0.0
    keytab: dict[str, Any] = field(default_factory=dict)
    token: dict[str, Any] = field(default_factory=dict)  # as the worker sees it
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    ended: set[str] = field(default_factory=set)

    def over(self, seconds: float) -> bool:
        """Whether there is nothing more to come: time is up, there is no first token, or a process has ended."""
        since, most = (self.first_token, seconds) if self.first_token else (self.started, FIRST_TOKEN_WITHIN)
        return bool(self.ended) or time.monotonic() - since > most

    def hear(self, who: str, line: str | None) -> Event | None:
        """Takes in a line of what the refresher, the worker or the service says; the event that it is, if it is one."""
        at = time.monotonic() - self.started
        if line is None:
            self.ended.add(who)
            return None
        try:
            said = json.loads(line)
            name = said["event"]
        except (ValueError, TypeError, KeyError):  # a traceback's, for one
            return Event(at, _RED, f"{who}: {line.strip()}")
        self.counts.update(said.get("counts", {}))
        if name == "published":
            return Event(at, _CYAN, self._published(said))
        if name == "token":
            self.token = said
        elif name == "keytab":
            self.keytab = said
            style = _RED if not said["refused"] and not self.one_user else ""
            return Event(at, style, f"the worker tries to read the keytab: {said['message']}")
        elif name == "context":
            text = f"demo/localhost accepted {said['initiator']} in {said['ms']:.1f} ms"
            return Event(at, "", f"context {self.counts['contexts']}: {text}")
        elif name == "trouble" or said.get("level") in ("warning", "error"):
            words = [said[key] for key in ("reason", "message") if key in said]
            return Event(at, _RED, ": ".join([who, *([] if name == "trouble" else [name]), *words]))
        return None

    def _published(self, said: dict[str, Any]) -> str:
        left = self.expires_at - _timestamp(said["time"])
        self.expires_at = _timestamp(said["expires_at"])
        self.refreshes += 1
        if self.refreshes:
            return f"refresh {self.refreshes}: generation {said['generation']}, {left:.1f} s before expiry"
        self.first_token = time.monotonic()
        return f"first token: generation {said['generation']}, {said['principal']}"

    def claims(self, cast: Cast) -> list[Claim]:
        """What the demo is to show, and whether it did."""
        samples, invalid, changed, contexts, failed = (self.counts[key] for key in COUNTS)
        refreshes = max(self.refreshes, 0)
        enough = contexts >= LEAST_CONTEXTS and not failed
        mode = f"{TOKEN_MODE:04o} and group {cast.group} in every sample, {changed} others"
        refused = bool(self.keytab.get("refused"))
        keytab = f"{'' if refused else 'not '}refused to the worker ({self.keytab.get('message', 'it never tried')})"
        if self.one_user:
            keytab = "one user runs all three, and can read it"
        return [
            Claim("refreshes", f"{refreshes} (at least {LEAST_REFRESHES})", refreshes >= LEAST_REFRESHES),
            Claim("contexts", f"{contexts} (at least {LEAST_CONTEXTS}), {failed} failed", enough),
            Claim("samples", f"{samples} of the token, {invalid} invalid", samples > 0 and not invalid),
            Claim("permissions", mode, samples > 0 and not changed),
            Claim("keytab", keytab, None if self.one_user else refused),
        ]


def _timestamp(moment: str) -> float:
    return datetime.datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()


# --- The picture


class Picture:
    """What is seen: on a terminal a block that is drawn again and again in place, elsewhere a line for each event."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._unicode = "utf" in (sys.stdout.encoding or "").lower()
        self._events: deque[Event] = deque(maxlen=8)
        self._height = 0

    def __enter__(self) -> Picture:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._write("\x1b[?25h")

    def say(self, text: str, style: str = "") -> None:
        """A line that stays."""
        self._write(self._paint(text, style) + "\n")

    def event(self, event: Event) -> None:
        """Something has happened."""
        self._events.append(event)
        if not self._live:
            self.say(f"{event.at:5.1f} s  {event.text}")

    def draw(self, story: Story, *, last: bool = False) -> None:
        """Draws the block over the former one; the last one stays, without the events, to make room."""
        if not self._live:
            return
        columns, rows = shutil.get_terminal_size()
        lines = self._token(story.token, min(columns, 100) - 1)
        lines += ["", self._clip(self._numbers(story), columns)]
        room = rows - len(lines) - 2
        events = [] if last or room < 1 else list(self._events)[-room:]
        lines += [""] * bool(events)
        for event in events:
            lines.append(self._paint(self._clip(f"  {event.at:5.1f} s  {event.text}", columns), event.style))
        up = f"\x1b[{self._height}A" if self._height else "\x1b[?25l"
        self._write("\r" + up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        self._height = len(lines)

    def _token(self, token: dict[str, Any], columns: int) -> list[str]:
        """The token's name and its life: a bar from start to expiry, with now and the expiry window marked."""
        if not token:
            return ["  waiting for the first token", "", "", ""]
        width = columns - 4
        starts, opens_at, expires = token["life"]
        now = min(max(time.time(), starts), expires)
        scale = width / max(expires - starts, 1)
        elapsed, opens = round((now - starts) * scale), round((opens_at - starts) * scale)
        left = f"{expires - now:.1f} s left"
        here = max(elapsed - 1, 0)
        pointer = f"{left} ▼".rjust(here + 1) if here >= len(left) + 1 else " " * here + f"▼ {left}"
        bar = (
            self._paint("█" * min(elapsed, opens), _GREEN)
            + self._paint("█" * (elapsed - opens), _YELLOW)
            + self._paint("░" * (opens - elapsed), _DIM)
            + self._paint("▒" * (width - max(elapsed, opens)), _YELLOW)
        )
        return [
            "  " + self._paint(self._clip(f"{token['principal']}, generation {token['generation']}", width), _BOLD),
            "   " + self._clip(pointer, width),
            f"  [{bar}]",
            self._paint(self._clip(" " * (opens + 3) + "└ expiry window", columns), _YELLOW),
        ]

    def _numbers(self, story: Story) -> str:
        elapsed = time.monotonic() - (story.first_token or time.monotonic())
        return (
            f"  {min(elapsed, self._seconds):.0f} of {self._seconds:.0f} s    refreshes {max(story.refreshes, 0)}"
            "    contexts {contexts}, failed {failed}    samples {samples}, invalid {invalid}".format(**story.counts)
        )

    def summary(self, claims: list[Claim]) -> bool:
        """Each claim with its verdict, and whether none failed."""
        verdicts = {True: ("ok", _GREEN), False: ("FAILED", _RED), None: ("not shown", _YELLOW)}
        self.say("")
        for claim in claims:
            verdict, style = verdicts[claim.held]
            self._write(f"  {claim.name:<12} {claim.text:<52} " + self._paint(verdict, style) + "\n")
        failed = [claim.name for claim in claims if claim.held is False]
        self.say("")
        self.say("FAILED: " + ", ".join(failed) if failed else "All of this held.", _RED if failed else _GREEN)
        return not failed

    def _clip(self, text: str, columns: int) -> str:
        return text[: max(columns - 1, 0)]

    def _paint(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and text and self._colour else text

    def _write(self, text: str) -> None:
        sys.stdout.write(text if self._unicode else text.translate(_ASCII))
        sys.stdout.flush()


# --- Around all of it


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Notes INT, TERM and HUP for the loop to find: nothing is interrupted between a start and the note to end it."""
    noted: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: noted.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # nohup's, or a shell's for what runs in the background
    }
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """What is started in here, above all krb5kdc, does not hear our terminal's Ctrl-C; we hear it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


if __name__ == "__main__":
    sys.exit(worker(*sys.argv[1:]))
