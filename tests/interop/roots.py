"""Programs of other releases of Debian, each in a tree of its own that tools/setup-interop has unpacked."""

from __future__ import annotations

import gzip
import os
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import REPOSITORY

_ROOTS = Path(REPOSITORY, ".interop", "roots")
OPTIONAL = ("forky", "heimdal-forky")  # Debian's testing; what it has changes, and may not be to be had for a day

# The tree with this system's devices, processes and temporary files, for one program and those that it starts.
_ENTER = (
    'root=$1; shift; for each in /dev /proc "$1"; do mkdir -p "$root$each"; mount --rbind "$each" "$root$each"; done; '
    'shift; exec chroot "$root" "$@"'
)


@dataclass(frozen=True)
class Root:
    """A tree with programs of another release. The temporary directory is the same inside and outside."""

    name: str

    @property
    def path(self) -> Path:
        return _ROOTS / self.name

    @property
    def enter(self) -> tuple[str, ...]:
        """What to start one of its programs with; the process is the program's own in the end."""
        mounts = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", _ENTER, "sh")
        return (*mounts, str(self.path), tempfile.gettempdir())

    def shims(self, directory: Path, **programs: str) -> Path:
        """A directory with an executable for each of the programs, given by name (`_` for `.`) and path in the tree."""
        directory.mkdir()
        for name, path in programs.items():
            shim = directory / name.replace("_local", ".local")
            shim.write_text(f'#!/bin/sh\nexec {shlex.join(self.enter)} {path} "$@"\n')
            shim.chmod(0o755)
        return directory

    def version(self, package: str) -> str:
        return _version(self.path, package)


def installed_version(package: str) -> str:
    """The version of a package of this system."""
    return _version(Path("/"), package)


def _version(tree: Path, package: str) -> str:
    """By its changelog: in a tree that is unpacked and not installed there is nothing else."""
    with gzip.open(tree / "usr/share/doc" / package / "changelog.Debian.gz", "rt") as changelog:
        return changelog.readline().split()[1].strip("()")


def root(name: str) -> Root:
    """The tree of that name. Where it is missing the test is skipped and says so; on CI it fails, unless the tree is an
    optional one."""
    if not (_ROOTS / name / ".ready").exists():
        give_up = pytest.fail if os.environ.get("CI") and name not in OPTIONAL else pytest.skip
        give_up(f"no .interop/roots/{name}; tools/setup-interop unpacks it")
    return Root(name)
