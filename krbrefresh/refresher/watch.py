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
import threading
from collections.abc import Callable, Collection, Iterable

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

_ANY = ""
_NOBODY: frozenset[object] = frozenset()


class Watch:
    """Calls `heard`, in the loop, when something happens in one of the directories: with those whom it concerns, or
    with None where that is everybody, or cannot be told."""

    def __init__(self, heard: Callable[[Collection[object] | None], None]) -> None:
        self._heard = heard
        # Whom it concerns, by the watch's number and the file's name; `_ANY` is for those whom every name concerns.
        self._concerned: dict[int, dict[str, set[object]]] = {}
        self._mutex = threading.Lock()  # never held while a file system is asked
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

    def add(self, who: object, paths: Iterable[str]) -> None:
        """Listens for `who` to what happens to these files, which may not be there; what is listened to already costs
        two system calls. May block as long as the file system does."""
        inotify = self._inotify
        if inotify is None:
            return
        for path in paths:
            directory, name = os.path.split(path)
            try:
                number = inotify.add_watch(directory, _EVENTS)
                # A link can lead to another file by way of its neighbours: a Secret's files all lead through `..data`.
                name = _ANY if os.path.islink(path) else name
            except (OSError, ValueError):  # not there, not for us, the limit of watches, or closed in the meantime:
                continue  # the looks that come anyway have to do
            with self._mutex:
                self._concerned.setdefault(number, {}).setdefault(name, set()).add(who)

    def forget(self, those: Collection[object]) -> None:
        """They have gone."""
        with self._mutex:
            for by_name in self._concerned.values():
                for name, each in list(by_name.items()):
                    each.difference_update(those)
                    if not each:
                        del by_name[name]

    def _read(self) -> None:
        assert self._inotify is not None
        heard: set[object] = set()
        everybody = False
        for event in self._inotify.read(timeout=0):
            with self._mutex:
                # A directory that is gone has no events any more, and a new one of its name another number.
                end = event.mask & flags.IGNORED
                by_name = self._concerned.pop(event.wd, {}) if end else self._concerned.get(event.wd)
                if by_name is None:  # events were lost, or came before `add` had noted whom they concern
                    everybody = True
                elif event.name:
                    heard |= by_name.get(event.name, _NOBODY) | by_name.get(_ANY, _NOBODY)
                else:  # it happened to the directory itself
                    heard.update(*by_name.values())
        if everybody or heard:
            self._heard(None if everybody else heard)

    def _read_mounts(self) -> None:
        assert self._mounts is not None
        if self._mounts.poll(0):
            self._heard(None)

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
