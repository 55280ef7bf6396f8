"""Hears of files that change (inotify(7)) and of mounts (proc(5), mountinfo), so that an idle refresher need not look
for them.

It is an ear, not the truth: an event makes the service look, and it looks now and then without one, for there are file
systems that tell nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
from collections.abc import Callable, Iterable

from inotify_simple import INotify, flags

# What can put another file in a path's place, or let us read one that we could not read. A file that is opened or read
# is no news: the exchange's child does that all the time.
_EVENTS = (
    flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.CLOSE_WRITE
    | flags.ATTRIB
    | flags.DELETE_SELF
    | flags.MOVE_SELF
)


class Watch:
    """Calls `heard`, in the loop, when something happens in one of the directories."""

    def __init__(self, heard: Callable[[], None]) -> None:
        self._heard = heard
        try:
            self._inotify: INotify | None = INotify(nonblocking=True)
        except OSError:  # the limit of instances per user
            self._inotify = None
        else:
            asyncio.get_running_loop().add_reader(self._inotify.fileno(), self._read)
        self._mounts: select.epoll | None = None
        self._mountinfo = -1
        with contextlib.suppress(OSError):
            self._mountinfo = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            self._mounts = select.epoll()
            self._mounts.register(self._mountinfo, select.EPOLLPRI | select.EPOLLERR)
            asyncio.get_running_loop().add_reader(self._mounts.fileno(), self._read_mounts)

    @property
    def works(self) -> bool:
        """Whether this system lets us hear at all."""
        return self._inotify is not None

    def add(self, paths: Iterable[str]) -> None:
        """Listens to the directories of these files; one that is listened to already costs a system call. May block
        as long as the file system does."""
        if self._inotify is None:
            return
        for directory in {os.path.dirname(path) for path in paths}:
            try:
                self._inotify.add_watch(directory, _EVENTS)
            except OSError:  # not there, not for us, or the limit of watches: the looks that come anyway have to do
                pass

    def _read(self) -> None:
        assert self._inotify is not None
        if self._inotify.read(timeout=0):
            self._heard()

    def _read_mounts(self) -> None:
        assert self._mounts is not None
        if self._mounts.poll(0):
            self._heard()

    def close(self) -> None:
        """Ends it."""
        if self._mounts is not None:
            asyncio.get_running_loop().remove_reader(self._mounts.fileno())
            self._mounts.close()
            os.close(self._mountinfo)
            self._mounts = None
        if self._inotify is not None:
            asyncio.get_running_loop().remove_reader(self._inotify.fileno())
            self._inotify.close()
            self._inotify = None
