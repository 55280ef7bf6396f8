"""The systemd unit, as systemd's own tools judge it, and for real where a systemd is running."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import re
import shutil
import stat
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import krbrefresh
from tests.processes import REPOSITORY, Runner, toml
from tests.support import Realm, eventually

SYSTEMD = Path(REPOSITORY, "systemd")
UNIT = SYSTEMD / "krbrefresh.service"
MOST_EXPOSURE = 1.8  # of 10, as docs/systemd.md has it
USER, GROUP = "daemon", "mail"  # systemd takes only users and groups that the machine knows, and these nearly all do

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze, of the package systemd, is not installed here"
)
needs_systemd = pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="no systemd is running here")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The unit with a program that exists on this machine."""
    path = tmp_path / UNIT.name
    path.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT.read_text()))
    return path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


@needs_analyze
def test_the_unit_has_no_word_that_systemd_does_not_know(copy: Path) -> None:
    done = analyze("verify", "--man=no", copy)
    ours = [line for line in done.stderr.splitlines() if copy.name in line or str(copy) in line]
    assert (done.returncode, ours) == (0, []), done.stderr
    copy.write_text(copy.read_text().replace("ProtectClock", "ProtectClok"))
    assert "ProtectClok" in analyze("verify", "--man=no", copy).stderr


@needs_analyze
def test_the_unit_is_as_closed_as_the_documentation_says(copy: Path) -> None:
    words = analyze("security", "--help").stdout + analyze("--help").stdout
    if "--offline" not in words:
        pytest.skip("this systemd-analyze cannot judge a unit that is not loaded (systemd 250)")
    limit = f"--threshold={MOST_EXPOSURE * 10:.0f}"
    done = analyze("security", "--offline=yes", "--no-pager", limit, copy)
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposure is not None, done.stdout + done.stderr
    assert done.returncode == 0, done.stdout
    assert float(exposure[1]) <= MOST_EXPOSURE
    assert f"{MOST_EXPOSURE}" in Path(REPOSITORY, "docs", "systemd.md").read_text()


@pytest.mark.root  # systemd-sysusers gives the files that it writes to root
@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is not installed here")
def test_the_user_can_log_in_nowhere(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = SYSTEMD / "krbrefresh.sysusers.conf"
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", str(file)], check=True, timeout=60)
    (entry,) = [
        line for line in (tmp_path / "etc" / "passwd").read_text().splitlines() if line.startswith("krbrefresh:")
    ]
    fields = entry.split(":")
    assert 0 < int(fields[2]) < 1000
    assert fields[5:] == ["/", "/usr/sbin/nologin"]


# --- with a systemd that runs ---


@pytest.fixture
def start(runner: Runner, realm: Realm, place: Path) -> Iterator[Callable[..., str]]:
    """Starts the unit under a name of its own, with this krbrefresh, this realm, and lines added to [Service]."""
    name = f"krbrefresh-test-{uuid.uuid4().hex[:8]}"
    unit = Path("/run/systemd/system", f"{name}.service")
    keytab = realm.keytab(place / "k", "systemd")
    keytab.chmod(0o400)  # root's
    config = place / "krbrefresh.toml"
    config.write_text(
        toml(
            refresher={"listen": ""},
            kerberos={
                "principal": realm.principal("systemd"),
                "ccache": f"/run/{name}/default/krb5cc",
                "group": GROUP,
            },
        )
    )

    def started(*lines: str) -> str:
        changes = {
            "ExecStart": f"{runner.python} -m krbrefresh run --config {config}",
            "User": USER,
            "Group": USER,
            "SupplementaryGroups": GROUP,
            "LoadCredential": f"keytab:{keytab}",
            "RuntimeDirectory": name,
        }
        text = UNIT.read_text()
        for key, value in changes.items():
            text, count = re.subn(rf"(?m)^#?{key}=.*", f"{key}={value}", text)
            assert count == 1, key
        # PrivateTmp= hides what the tests have in /tmp.
        seen = {str(place), str(realm.directory), *runner.env.get("PYTHONPATH", "").split(":")} - {""}
        environ = {**runner.env, "KRB5_CONFIG": realm.env["KRB5_CONFIG"]}
        added = [f"BindReadOnlyPaths={path}" for path in sorted(seen)]
        added += [f"Environment={key}={value}" for key, value in environ.items()]
        unit.write_text(text.replace("\n[Install]", "\n".join(["", *added, *lines, "", "[Install]"])))
        subprocess.run(["systemctl", "daemon-reload"], check=True, timeout=60)
        done = subprocess.run(["systemctl", "start", name], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr + journal(name)
        return name

    try:
        yield started
    finally:
        subprocess.run(["systemctl", "stop", name], timeout=60, check=False)
        with contextlib.suppress(FileNotFoundError):
            unit.unlink()
        subprocess.run(["systemctl", "daemon-reload"], timeout=60, check=False)
        subprocess.run(["systemctl", "reset-failed", name], timeout=60, check=False, capture_output=True)
        shutil.rmtree(f"/run/{name}", ignore_errors=True)


def journal(name: str) -> str:
    return subprocess.run(["journalctl", "-u", name, "--no-pager"], capture_output=True, text=True, timeout=60).stdout


def shown(name: str, key: str) -> str:
    done = subprocess.run(
        ["systemctl", "show", name, "-p", key, "--value"], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@needs_systemd
@pytest.mark.root
def test_a_token_under_all_of_the_hardening(start: Callable[..., str], realm: Realm) -> None:
    name = start()
    path = Path(f"/run/{name}/default/krb5cc")
    eventually(path.exists, within=10, what=journal(name))
    assert krbrefresh.validate(path, principal=realm.principal("systemd"))
    found = os.stat(path)
    owner, group = pwd.getpwnam(USER).pw_uid, grp.getgrnam(GROUP).gr_gid
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (owner, group, 0o440)
    assert stat.S_IMODE(os.stat(f"/run/{name}").st_mode) == 0o711
    status = Path(f"/proc/{shown(name, 'MainPID')}/status").read_text()
    assert re.search(r"CapBnd:\s+0+\n", status)
    assert re.search(r"Seccomp:\s+2\n", status)
    subprocess.run(["systemctl", "stop", name], check=True, timeout=60)
    assert (shown(name, "Result"), path.exists()) == ("success", True)
    subprocess.run(["systemctl", "start", name], check=True, timeout=60)
    eventually(lambda: " adopted " in journal(name), within=10)


@needs_systemd
@pytest.mark.root
def test_a_refresher_that_hangs_is_ended_and_started_again(start: Callable[..., str]) -> None:
    name = start("WatchdogSec=1s", "RestartSec=100ms")
    pid = shown(name, "MainPID")
    os.kill(int(pid), 19)
    eventually(lambda: shown(name, "NRestarts") == "1" and shown(name, "MainPID") not in (pid, "0"), within=15)
