"""A disk whose power can be cut: it keeps what is written to it in a volatile cache until it is told to flush.

The disk is a file in a FUSE file system of our own, which this process serves, and a loop device over it: the kernel's
real file systems run on it. Every write and every flush is recorded in its order, so that each state that a power cut
could have left on the medium can be made afterwards: all that was flushed, and any part of what was not, 4096 bytes
being written as a whole or not at all. Needs root, /dev/fuse and a loop device; no module, no device mapper.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import signal
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 4096

# linux/fuse.h, version 7.31
_VERSION = 7, 31
_IN_HEADER = struct.Struct("<IIQQIIII")
_OUT_HEADER = struct.Struct("<IiQ")
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 1, 2, 3, 4, 14, 15, 16
_RELEASE, _FSYNC, _INIT, _INTERRUPT, _DESTROY, _BATCH_FORGET = 18, 20, 26, 36, 38, 42
_UNANSWERED = (_FORGET, _INTERRUPT, _BATCH_FORGET)
_BIG_WRITES = 1 << 5
_DIRECT_IO = 1
_MOST = 128 << 10  # bytes of one write
_ROOT, _DISK = 1, 2
_NAME = b"disk"

_CLONE_NEWNS = 0x00020000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
# linux/loop.h, linux/fs.h
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LO_FLAGS_AUTOCLEAR = 0x4C82, 0x4C0A, 4
_BLKFLSBUF = 0x1261
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def private_mounts() -> None:
    """This process's mounts are its own from now on, and end with it. Needs root."""
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def die_with_parent() -> None:
    """This process is killed when the one that has started it ends: its mounts and devices go with it."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")


@dataclass
class Write:
    """Bytes that the disk took, and may have lost since."""

    offset: int
    data: bytes


class Flush:
    """All that was written before is on the medium."""


@dataclass
class Note:
    """What the program that writes says of itself, at this place among the writes."""

    word: str
    number: int


class Disk:
    """The disk, with what is on its medium at first; `log` is what has happened to it since. A context manager."""

    def __init__(self, medium: bytes, directory: Path) -> None:
        self.content = bytearray(medium)
        self.log: list[Write | Flush | Note] = []
        self.path = directory / _NAME.decode()
        self._directory = directory

    def note(self, word: str, number: int) -> None:
        self.log.append(Note(word, number))

    def __enter__(self) -> Disk:
        self._directory.mkdir()
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0".encode()
        place = os.fsencode(self._directory)
        _checked(_libc.mount(b"krbrefresh-disk", place, b"fuse", 0, options), "mount of a FUSE file system")
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self._directory)], check=True)
        self._thread.join(10)
        os.close(self._device)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, _MOST + 65536)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # it was interrupted
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, node, *_ = _IN_HEADER.unpack_from(request)
            answer = self._answer(opcode, node, memoryview(request)[_IN_HEADER.size :])
            if opcode in _UNANSWERED:
                continue
            body, code = (answer, 0) if isinstance(answer, bytes) else (b"", -answer)
            with contextlib.suppress(FileNotFoundError):  # it waits no more
                os.write(self._device, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), code, unique) + body)

    def _answer(self, opcode: int, node: int, body: memoryview) -> bytes | int:
        """The answer to a request, or an error number."""
        if opcode == _INIT:
            return struct.pack("<IIIIHHIIHHI28x", *_VERSION, 65536, _BIG_WRITES, 16, 12, _MOST, 1, 0, 0, 0)
        if opcode == _LOOKUP:
            known = node == _ROOT and bytes(body).rstrip(b"\0") == _NAME
            return (
                struct.pack("<QQQQII", _DISK, 0, 3600, 3600, 0, 0) + self._attributes(_DISK) if known else errno.ENOENT
            )
        if opcode in (_GETATTR, _SETATTR):
            return struct.pack("<QII", 3600, 0, 0) + self._attributes(node)
        if opcode == _OPEN:
            return struct.pack("<QIi", 0, _DIRECT_IO, 0)
        if opcode == _READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            return bytes(self.content[offset : offset + size])
        if opcode == _WRITE:
            _, offset, size = struct.unpack_from("<QQI", body)
            data = bytes(body[40 : 40 + size])
            if offset + size > len(self.content):
                return errno.ENOSPC
            self.content[offset : offset + size] = data
            self.log.append(Write(offset, data))
            return struct.pack("<II", size, 0)
        if opcode == _FSYNC:
            self.log.append(Flush())
            return b""
        if opcode in (_RELEASE, _DESTROY, *_UNANSWERED):
            return b""
        return errno.ENOSYS

    def _attributes(self, node: int) -> bytes:
        size, mode = (len(self.content), stat.S_IFREG | 0o600) if node == _DISK else (0, stat.S_IFDIR | 0o700)
        return struct.pack("<6Q10I", node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, BLOCK, 0)


class Medium:
    """What is on the medium at a moment of a disk's log, and what may be. Goes forward only."""

    def __init__(self, medium: bytes, log: list[Write | Flush | Note]) -> None:
        self._stable = bytearray(medium)
        self._log = log
        self._volatile: list[Write] = []  # not flushed, a block each
        self._at = 0
        self.notes: dict[str, int] = {}  # the last number for each word

    def go_to(self, moment: int) -> None:
        """After so many entries of the log."""
        for entry in self._log[self._at : moment]:
            if isinstance(entry, Flush):
                for write in self._volatile:
                    self._stable[write.offset : write.offset + len(write.data)] = write.data
                self._volatile.clear()
            elif isinstance(entry, Note):
                self.notes[entry.word] = entry.number
            else:
                self._volatile += _blocks(entry)
        self._at = moment

    def after_power_cut(self, dice: random.Random) -> bytearray:
        """The medium when the power is cut now: what is not flushed is lost, or is there, or some of it."""
        medium = bytearray(self._stable)
        how = dice.choice(["lost", "there", "begun", "some", "some", "some"])
        kept = {"lost": 0, "begun": dice.randrange(len(self._volatile) + 1)}.get(how, len(self._volatile))
        share = dice.random() if how == "some" else 1.0
        for write in self._volatile[:kept]:
            if dice.random() < share:
                medium[write.offset : write.offset + len(write.data)] = write.data
        return medium

    @property
    def unflushed(self) -> int:
        """How many blocks can be lost now."""
        return len(self._volatile)


def _blocks(write: Write) -> Iterator[Write]:
    offset = 0
    while offset < len(write.data):
        end = min(len(write.data), offset + BLOCK - (write.offset + offset) % BLOCK)
        yield Write(write.offset + offset, write.data[offset:end])
        offset = end


class Loop:
    """A block device over a file; it goes with this process, whatever ends that. A context manager."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> Loop:
        backing = os.open(self._file, os.O_RDWR | os.O_CLOEXEC)
        config = struct.pack("<II52xI240x", backing, 0, _LO_FLAGS_AUTOCLEAR)
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            while True:
                self.device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
                # Held open: a device that clears itself does so when nobody has it open.
                self._held = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(self._held, _LOOP_CONFIGURE, config)
                    return self
                except OSError as error:
                    os.close(self._held)
                    if error.errno != errno.EBUSY:  # somebody else took it
                        raise
        finally:
            os.close(control)
            os.close(backing)

    def __exit__(self, *_: object) -> None:
        os.close(self._held)

    @contextlib.contextmanager
    def mounted(self, place: Path, kind: str, options: str = "") -> Iterator[None]:
        """The file system on it, as it is in the file by now."""
        fcntl.ioctl(self._held, _BLKFLSBUF, 0)  # nothing is known of what was there before
        place.mkdir(exist_ok=True)
        where = os.fsencode(place)
        words = (self.device.encode(), where, kind.encode(), 0, options.encode())
        _checked(_libc.mount(*words), f"mount of {kind} at {place}")
        try:
            yield
        except BaseException:
            _libc.umount2(where, _MNT_DETACH)  # what went wrong may have it open
            raise
        _checked(_libc.umount2(where, 0), f"umount of {place}")
