"""Who runs what in the demo, and how another user runs this krbrefresh at all."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


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
        done = _run(staging, code, **as_user(uid, gid))
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


def as_user(uid: int, gid: int, *groups: int) -> dict[str, Any]:
    """The arguments of subprocess.Popen that make a process that user's."""
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
