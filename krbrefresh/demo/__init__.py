"""`krbrefresh demo`: a throwaway realm, a refresher and a worker on this machine, and a picture of the token's life.

All of it is real: MIT's KDC, `krbrefresh run`, a worker that has the public API and GSSAPI, a service that accepts it.
Only the tickets are short. As root the refresher and the worker are two unprivileged users, so that the worker's
attempt to read the keytab means something; otherwise the demo says that it cannot show this.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import NotInstalledError
from .picture import BOLD, Picture
from .realm import throwaway_realm
from .staging import Cast, as_user, assign_users
from .story import MESSAGE, Claim, Story

STOPS_WITHIN = 1.0  # seconds, from TERM to the refresher's end
FRAME = 0.1
_DYING = 0.2

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
            picture.say(f"krbrefresh demo: tickets of {ticket_life} seconds, watched for {seconds:.0f} seconds", BOLD)
            claims = _play(picture, signals, seconds, ticket_life)
            if signals:
                picture.say(f"{signal.Signals(signals[0]).name}: all processes are stopped, all files removed")
                return 128 + signals[0]
            return 0 if picture.summary(claims) else 1
    except BrokenPipeError:  # `krbrefresh demo | head`; the interpreter's last flush must not fail on it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _play(picture: Picture, signals: list[int], seconds: float, ticket_life: int) -> list[Claim]:
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="krbrefresh-demo-"))
        os.chmod(place, 0o711)  # each user has to get to its own part  # noqa: S103  # nosec B103
        with _deaf_children():
            kdc = stack.enter_context(throwaway_realm())
            cast = assign_users(place)
            scene = set_up(place, kdc, cast, ticket_life)
        os.environ.update(KRB5_CONFIG=scene.krb5_config, KRB5RCACHENAME=f"file2:{place}/rcache")  # for the service
        told: Told = queue.Queue()
        stack.enter_context(_service(scene, cast, told))
        arguments = ["krbrefresh", "run", "--config", scene.config]
        refresher = stack.enter_context(_process("refresher", cast, scene, told, *arguments))
        arguments = ["krbrefresh.demo.worker", scene.token, scene.socket, scene.keytab, str(cast.group)]
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
            '[refresher]\nname = "demo"\nlog_format = "json"\nlisten = ""\n\n'
            f'[kerberos]\nprincipal = "etl@{kdc.realm}"\n'
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
        **({} if cast.one_user else as_user(uid, uid, cast.group)),
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
    with contextlib.suppress(subprocess.TimeoutExpired):  # its pipes close a moment before it can be waited for
        status = process.wait(_DYING)
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
        os.chmod(scene.socket, 0o660)  # its group's, in a directory of its own  # nosec B103
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
                    reply = context.step(connection.recv(MESSAGE))
                    if reply:
                        connection.send(reply)
                context.unwrap(connection.recv(MESSAGE))
                connection.send(context.wrap(str(context.initiator_name).encode(), True).message)
            except (gssapi.raw.GSSError, OSError) as error:
                told.put(("service", f"it refused a context: {error}"))


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
