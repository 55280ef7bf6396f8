"""What systemd wants to hear from a service: sd_notify(3), which is a datagram to the socket that $NOTIFY_SOCKET names.

Does nothing where nobody listens, and never raises or blocks: a notification must not hurt what it tells of.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping


class Notifier:
    """Tells the service manager that started this process how it is.

    `watchdog_interval` is how often, in seconds, to call `watchdog()` at the least: half of what `WatchdogSec=` allows;
    None where no watchdog waits for this process. Its one socket stays open: the watchdog is fed though no file
    descriptor is left.
    """

    def __init__(self, environ: MutableMapping[str, str] = os.environ, *, remove: bool = True) -> None:
        """Reads $NOTIFY_SOCKET, $WATCHDOG_USEC and $WATCHDOG_PID and, with `remove`, takes them out of `environ`:
        a child process that inherited them could speak in this one's name."""
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_interval = _watchdog_interval(environ)
        if remove:
            for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
                environ.pop(name, None)
        self._socket: socket.socket | None = None
        if self._address:
            try:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            except OSError:  # no file descriptor is left already
                pass

    @property
    def listens(self) -> bool:
        """Whether anybody listens: what costs something to say need not be said otherwise."""
        return self._socket is not None

    def ready(self) -> None:
        """The start, or a reload, is over."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))  # a line break would begin another assignment

    def watchdog(self) -> None:
        """This process is alive and at work."""
        self._send("WATCHDOG=1")

    def reloading(self) -> None:
        """The settings are read again; `ready()` ends it. With the time, as `Type=notify-reload` wants it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Nothing is sent from now on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode("utf-8", "replace"), socket.MSG_DONTWAIT, self._address)
        except OSError:  # nobody listens any more, or its queue is full
            pass


def _address(name: str) -> bytes:
    """The address of a socket in the file system or, with an @, in the abstract namespace; nothing for other kinds."""
    if name.startswith("/"):
        return os.fsencode(name)
    return b"\0" + os.fsencode(name[1:]) if name.startswith("@") else b""


def _watchdog_interval(environ: MutableMapping[str, str]) -> float | None:
    try:
        microseconds = int(environ["WATCHDOG_USEC"])
        pid = int(environ.get("WATCHDOG_PID") or os.getpid())
    except (KeyError, ValueError):
        return None
    return microseconds / 2e6 if microseconds > 0 and pid == os.getpid() else None
