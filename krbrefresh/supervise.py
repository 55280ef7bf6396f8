"""The parent that `krbrefresh exec` stays where it has more to do than to start a command: keep a private copy fresh,
signal the command at each new generation, and be a container's first process.

Signals are blocked and taken one by one (sigwaitinfo), so that none comes between; what follows the token is a thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading

from .client import Checks, activate, watch
from .errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .client import CheckOptions
    from .token import Token

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_BY_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_SI_KERNEL = 0x80  # sigaction(2): the terminal has sent it, to each process of its foreground group
_AS_BEFORE_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, and a command would inherit that
_AT_ONCE = 10.0  # seconds; the token has passed a moment ago
_INTERVAL = 1.0


def run(argv: list[str], path: str, *, private: bool, on_refresh: int | None, options: CheckOptions) -> int:
    """Runs the command with the token that is at `path`, which has passed already; its exit status, or 128 and the
    signal that ended it. `on_refresh` is the signal that tells it of a new generation.

    Raises CommandError where the command cannot be started, OSError where no private copy can be made, and TokenError
    where the token has gone bad in the meantime.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody hears of a child's end
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*FORWARDED, signal.SIGCHLD))  # the threads inherit it
    command = _Command()

    def tell(_: Token) -> None:
        if on_refresh is not None:
            command.send(on_refresh)

    if private or Checks(**options).verifies:
        activate(path, private=True, timeout=_AT_ONCE, **options)
        from .private import listen

        listen(path, tell)  # once the copy is the new token
    else:
        activate(path, timeout=_AT_ONCE, **options)
        watch(tell, path, interval=_INTERVAL, **options)
    command.start(argv, before)
    while True:
        told = signal.sigwaitinfo((*FORWARDED, signal.SIGCHLD))
        if told.si_signo == signal.SIGCHLD:
            status = command.reap()
            if status is not None:
                return status
        elif not (told.si_signo in _BY_THE_TERMINAL and told.si_code == _SI_KERNEL and command.is_in_our_group()):
            command.send(told.si_signo)


class _Command:
    """The command's process, once it has been started, and until it has been waited for: its pid is its own so long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid: int | None = None

    def start(self, argv: list[str], mask: set[int | signal.Signals]) -> None:
        with self._lock:
            try:
                self._pid = os.posix_spawnp(argv[0], argv, os.environ, setsigmask=mask, setsigdef=_AS_BEFORE_PYTHON)
            except OSError as error:
                raise CommandError(error) from None

    def send(self, number: int) -> None:
        with self._lock:
            if self._pid is not None:
                with contextlib.suppress(PermissionError):  # it has become another user's
                    os.kill(self._pid, number)

    def is_in_our_group(self) -> bool:
        """Whether what the terminal sends to this process has reached the command as well."""
        with self._lock, contextlib.suppress(OSError):
            return self._pid is not None and os.getpgid(self._pid) == os.getpgrp()
        return False

    def reap(self) -> int | None:
        """Waits for all children that have ended, those that a container's first process inherits too; the command's
        exit status if it is one of them."""
        found = None
        with self._lock:
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return found
                if not pid:
                    return found
                if pid == self._pid:
                    self._pid = None
                    code = os.waitstatus_to_exitcode(status)
                    found = code if code >= 0 else 128 - code
