"""`krbrefresh doctor` as an operator starts it, beside a real KDC, in set-ups that are whole and in broken ones."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from krbrefresh import keytabs, krb5conf, mounts
from krbrefresh.ccache import Principal
from krbrefresh.refresher import doctor_volume, publish
from krbrefresh.refresher.lock import LOCK_NAME
from krbrefresh.signature import generate
from krbrefresh.token import seal
from tests.processes import GROUP, REFRESHER, WORKER, Runner, faked_clock, refresher, toml
from tests.support import Realm, SilentKdc, ccache_bytes, eventually, ticket

PACKAGE = Path(krbrefresh.__file__).parent
KEYS = ["status", "check", "subject", "message", "hint"]


def tree(*places: Path) -> dict[str, tuple[int, ...]]:
    """Everything below these places, with what would tell that it was written to."""
    found = {}
    for place in places:
        for path in [place, *place.rglob("*")]:
            status = path.lstat()
            found[str(path)] = (status.st_ino, status.st_mode, status.st_uid, status.st_mtime_ns, status.st_ctime_ns)
    return found


class Answer:
    """What a doctor said."""

    def __init__(self, ran: subprocess.CompletedProcess[str]) -> None:
        assert "Traceback" not in ran.stdout + ran.stderr, ran.stderr
        self.status, self.text, self.errors = ran.returncode, ran.stdout, ran.stderr
        said = json.loads(ran.stdout)
        assert list(said) == ["side", "checks", "ok", "warn", "fail"]
        self.side: str = said["side"]
        self.checks: list[dict[str, Any]] = said["checks"]
        for check in self.checks:
            assert list(check) == KEYS
            assert check["status"] in ("ok", "warn", "fail")
            assert check["message"]
            assert bool(check["hint"]) == (check["status"] != "ok"), check
            assert "check itself failed" not in check["message"], check
        for status in ("ok", "warn", "fail"):
            assert said[status] == sum(check["status"] == status for check in self.checks)
        assert self.status == (1 if said["fail"] else 0)

    def of(self, name: str, subject: str | None = None) -> list[dict[str, Any]]:
        return [each for each in self.checks if each["check"] == name and subject in (None, each["subject"])]

    def line(self, name: str, status: str) -> dict[str, Any]:
        """The one check of that name and status."""
        found = [each for each in self.of(name) if each["status"] == status]
        assert len(found) == 1, json.dumps(self.checks, indent=1)
        return found[0]

    def failed(self) -> list[str]:
        return [each["check"] for each in self.checks if each["status"] == "fail"]

    def warned(self) -> list[str]:
        return [each["check"] for each in self.checks if each["status"] == "warn"]


def command(
    runner: Runner, realm: Realm, *arguments: str, uid: int | None = None, groups: tuple[int, ...] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [runner.python, "-m", "krbrefresh", *arguments],
        env={**runner.env, **realm.env, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        **runner.user(uid, *groups),
    )


@pytest.fixture
def configured(realm: Realm, place: Path) -> Callable[..., Path]:
    """Writes the settings of one credential, etl, whose keytab and token directory are in a place of its own."""
    keytab = realm.keytab(place / "etl.keytab", "etl")
    keytab.chmod(0o400)

    def write(listen: str = "", **kerberos: Any) -> Path:
        config = place / "krbrefresh.toml"
        section = {"principal": realm.principal("etl"), "keytab": keytab, "ccache": place / "volume/token/krb5cc"}
        section |= {} if os.geteuid() else {"group": GROUP}
        config.write_text(toml(refresher={"listen": listen}, credentials__etl={**section, **kerberos}))
        return config

    (place / "volume").mkdir()
    return write


@pytest.fixture
def look(runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path]) -> Callable[..., Answer]:
    """Runs the doctor of a refresher, and makes sure that it has written nothing."""

    def run(*arguments: str, kerberos: dict[str, Any] | None = None, listen: str = "", **environ: str) -> Answer:
        config = configured(listen=listen, **(kerberos or {}))
        before = tree(place)
        environ = {"KRBREFRESH__REFRESHER__LISTEN": listen, **environ}
        answer = Answer(command(runner, realm, "doctor", "--json", "--config", str(config), *arguments, **environ))
        assert tree(place) == before
        assert answer.side == "refresher"
        return answer

    return run


def as_requests(realm: Realm) -> int:
    return realm.log().count("AS_REQ")


# --- the refresher's side ---


def test_a_set_up_that_is_whole(
    runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path], look: Callable[..., Answer]
) -> None:
    assert command(runner, realm, "once", "--config", str(configured())).returncode == 0
    answer = look()
    assert answer.status == 0
    assert answer.warned() == ["leader"]  # once has ended
    assert [each["check"] for each in answer.checks] == [
        "side", "settings", "user", "package", "krb5.conf", "names", "listen", "keytab", "exchange", "clock", "ticket",
        "layout", "volume", "token", "leader",
    ]  # fmt: skip
    assert f"{realm.principal('etl')} kvno 1 aes256-cts" in answer.line("keytab", "ok")["message"]
    assert {each["subject"] for each in answer.of("keytab") + answer.of("token")} == {"etl"}
    assert "10h asked for, 10h given" in answer.line("ticket", "ok")["message"]
    assert "generation" in answer.line("token", "ok")["message"]


def test_in_words(
    runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path], look: Callable[..., Answer]
) -> None:
    ran = command(runner, realm, "doctor", "--config", str(configured(keytab="/nowhere/k\x1b[31m")))
    lines = ran.stdout.splitlines()
    assert ran.returncode == 1
    assert lines[0].startswith("ok    side        refresher (settings from ")
    number = next(
        number for number, line in enumerate(lines) if line.startswith("fail  keytab      etl: keytab_missing")
    )
    assert lines[number + 1] == " " * 18 + "-> mount the keytab, or correct the path of it"
    assert "\x1b" not in ran.stdout  # it is no terminal, and no name may steer one
    assert lines[-1].endswith("1 fail")
    assert ran.stderr == ""


def test_colours_on_a_terminal_alone(runner: Runner, realm: Realm, configured: Callable[..., Path]) -> None:
    config = str(configured(keytab="/nowhere/k"))
    for environ, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [runner.python, "-m", "krbrefresh", "doctor", "--config", config],
            env={**runner.env, **realm.env, **environ},
            stdout=theirs,
        )
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # Linux says EIO at the end
            while chunk := os.read(ours, 4096):
                said += chunk
        os.close(ours)
        assert process.wait(30) == 1
        assert (b"\x1b[31mfail" in said) == coloured


def test_a_reader_who_has_seen_enough(runner: Runner, realm: Realm, configured: Callable[..., Path]) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [runner.python, "-m", "krbrefresh", "doctor", "--offline", "--config", str(configured())],
        env={**runner.env, **realm.env},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert ran.stderr == ""


def test_offline_asks_no_kdc(realm: Realm, look: Callable[..., Answer]) -> None:
    realm.principal("etl")
    asked = as_requests(realm)
    answer = look("--offline", kerberos={"principal": realm.principal("offline-etl")})
    answer = look("--offline")
    assert as_requests(realm) == asked
    assert answer.of("exchange") == [
        {"status": "ok", "check": "exchange", "subject": "etl", "message": "not tried: --offline", "hint": None}
    ]
    assert answer.of("keytab")
    assert not answer.of("clock")


@pytest.mark.parametrize("word", ["keytab_missing", "keytab_invalid", "principal_not_in_keytab"])
def test_a_keytab_that_will_not_do_asks_no_kdc(
    realm: Realm, place: Path, look: Callable[..., Answer], word: str
) -> None:
    keytab = place / "k"
    if word == "keytab_invalid":
        keytab.write_bytes(b"not a keytab")
        keytab.chmod(0o400)
    elif word == "principal_not_in_keytab":
        realm.keytab(keytab, "somebody").chmod(0o400)
    asked = as_requests(realm)
    answer = look(kerberos={"keytab": keytab})
    assert answer.failed() == ["keytab"]
    assert answer.line("keytab", "fail")["message"].startswith(f"{word}: {keytab}: ")
    assert "not tried" in answer.line("exchange", "warn")["message"]
    assert as_requests(realm) == asked


@pytest.mark.root
def test_a_keytab_that_others_may_read(place: Path, look: Callable[..., Answer]) -> None:
    look()  # makes the keytab
    for mode, status in ((0o444, "fail"), (0o440, "warn")):
        (place / "etl.keytab").chmod(mode)
        answer = look()
        assert f"its mode is {mode:04o}" in answer.line("keytab", status)["message"]
        assert answer.line("exchange", "ok")


def test_a_keytab_in_the_token_directory(place: Path, look: Callable[..., Answer]) -> None:
    answer = look(kerberos={"ccache": place / "krb5cc"})
    assert "in the token directory" in answer.line("keytab", "fail")["message"]


def test_keys_of_a_weak_enctype_and_several_kvnos(realm: Realm, place: Path, look: Callable[..., Answer]) -> None:
    name = realm.principal("aged")
    keytab = place / "aged"
    realm.kadmin(f"ktadd -norandkey -k {keytab} {name}")
    realm.kadmin(f"ktadd -k {keytab} -e rc4-hmac:normal {name}")
    realm.keytab(keytab, "companion").chmod(0o400)
    answer = look("--offline", kerberos={"principal": name, "keytab": keytab})
    said = answer.line("keytab", "ok")["message"]
    assert f"{name} kvno 2 rc4-hmac" in said
    assert "older kvno 1; also keys of companion@" in said
    assert "weak" in answer.line("keytab", "warn")["message"]


def test_a_stale_key_costs_one_attempt(realm: Realm, place: Path, look: Callable[..., Answer]) -> None:
    keytab = realm.keytab(place / "stale", "stale")
    keytab.chmod(0o400)
    realm.kadmin(f"modprinc +requires_preauth {realm.principal('stale')}")
    realm.kadmin(f"cpw -randkey {realm.principal('stale')}")
    before = realm.log().count("PREAUTH_FAILED")
    answer = look(kerberos={"principal": realm.principal("stale"), "keytab": keytab})
    assert answer.failed() == ["exchange"]
    said = answer.line("exchange", "fail")
    assert said["message"].startswith("key_rejected: ")
    assert "kvno 1" in said["message"]
    assert "one attempt" in said["message"]
    assert "msDS-KeyVersionNumber" in said["hint"]
    assert eventually(lambda: realm.log().count("PREAUTH_FAILED") > before, within=5)
    assert realm.log().count("PREAUTH_FAILED") == before + 1


def test_two_credentials_of_one_refused_principal_cost_one_attempt(runner: Runner, realm: Realm, place: Path) -> None:
    keytab = realm.keytab(place / "twice", "twice")
    keytab.chmod(0o400)
    name = realm.principal("twice")
    realm.kadmin(f"modprinc +requires_preauth {name}")
    realm.kadmin(f"cpw -randkey {name}")
    config = place / "c.toml"
    config.write_text(
        toml(
            credentials__a={"principal": name, "keytab": keytab, "ccache": place / "a/krb5cc"},
            credentials__b={"principal": name, "keytab": keytab, "ccache": place / "b/krb5cc"},
        )
    )
    before = realm.log().count("PREAUTH_FAILED")
    answer = Answer(command(runner, realm, "doctor", "--json", "--config", str(config)))
    assert answer.failed() == ["exchange", "exchange"]
    time.sleep(0.2)
    assert realm.log().count("PREAUTH_FAILED") == before + 1


def test_an_unknown_principal(realm: Realm, place: Path, look: Callable[..., Answer]) -> None:
    keytab = realm.keytab(place / "gone", "deleted")
    keytab.chmod(0o400)
    name = realm.principal("deleted")
    realm.kadmin(f"delprinc -force {name}")
    realm._known.discard(name)
    answer = look(kerberos={"principal": name, "keytab": keytab})
    assert answer.line("exchange", "fail")["message"].startswith("client_unknown: ")


def test_a_kdc_that_is_down(runner: Runner, own_realm: Realm, place: Path) -> None:
    keytab = own_realm.keytab(place / "k", "etl")
    keytab.chmod(0o400)
    config = place / "c.toml"
    section = {"principal": own_realm.principal("etl"), "keytab": keytab, "ccache": place / "t/krb5cc"}
    config.write_text(toml(kerberos=section))
    own_realm.kdc.stop_kdc()
    answer = Answer(command(runner, own_realm, "doctor", "--json", "--config", str(config)))
    assert answer.failed() == ["exchange"]
    assert answer.line("exchange", "fail")["message"].startswith("kdc_unreachable: ")
    assert "takes no TCP connection: Connection refused" in answer.line("kdc", "warn")["message"]


def test_a_kdc_that_is_silent(realm: Realm, place: Path, look: Callable[..., Answer]) -> None:
    with SilentKdc() as silent:
        config = place / "krb5.conf"
        config.write_text(
            "[libdefaults]\nrdns = false\ndns_canonicalize_hostname = false\n"
            f"[realms]\n{realm.name} = {{\nkdc = 127.0.0.1:{silent.port}\n}}\n"
        )
        answer = look(KRB5_CONFIG=str(config), KRBREFRESH__REFRESHER__EXCHANGE_DEADLINE="2s")
    assert answer.line("exchange", "fail")["message"].startswith("kdc_timeout: ")
    assert "takes TCP connections, and gave no answer" in answer.line("kdc", "warn")["message"]


@pytest.mark.parametrize("mode", [0o646, 0o664])
def test_a_krb5_conf_that_others_may_write(place: Path, realm: Realm, look: Callable[..., Answer], mode: int) -> None:
    config = place / "krb5.conf"
    config.write_text(Path(realm.env["KRB5_CONFIG"]).read_text())
    if os.geteuid() == 0:
        os.chown(config, 0, GROUP)
    config.chmod(mode)
    answer = look(KRB5_CONFIG=str(config))
    said = answer.line("krb5.conf", "fail")
    assert f"mode {mode:04o}" in said["message"]
    assert "go-w" in said["hint"]
    config.chmod(0o644)
    assert "krb5.conf" not in look(KRB5_CONFIG=str(config)).failed()


def test_a_realm_without_kdcs(realm: Realm, place: Path, look: Callable[..., Answer]) -> None:
    config = place / "krb5.conf"
    config.write_text("[libdefaults]\n dns_lookup_kdc = false\n rdns = no\n")
    answer = look(KRB5_CONFIG=str(config))
    assert answer.line("exchange", "fail")["message"].startswith("krb5_config: ")
    assert f"{realm.name}: KDCs from DNS" in answer.line("krb5.conf", "ok")["message"]
    assert "dns_canonicalize_hostname = true, rdns = false" in answer.line("names", "warn")["message"]


@pytest.mark.parametrize("hours", [2, -2])
def test_a_clock_that_is_off(look: Callable[..., Answer], hours: int) -> None:
    answer = look(**faked_clock(f"{hours:+}h"))
    assert answer.status == 0
    said = answer.line("clock", "warn")["message"]
    assert "2h" in said or "1h 59m" in said
    assert ("behind" if hours > 0 else "ahead of") in said
    assert "refused by services" in said


def test_less_than_was_asked_for(realm: Realm, place: Path, look: Callable[..., Answer]) -> None:
    keytab = realm.keytab(place / "short", "short", maxlife="20 seconds", maxrenewlife="0 seconds")
    keytab.chmod(0o400)
    answer = look(kerberos={"principal": realm.principal("short"), "keytab": keytab, "method": "renew"})
    said = answer.line("ticket", "warn")
    assert said["message"] == "10h asked for, 20s given"
    assert "maxlife" in said["hint"]
    assert "each refresh is by keytab" in said["hint"]


def test_broken_settings(runner: Runner, realm: Realm, place: Path) -> None:
    config = place / "c.toml"
    for text, words in (
        ("[kerberos]\nprincpal = 'x'\n", "did you mean principal?"),
        ("[[", "it is not TOML"),
        ("", "no cred"),
    ):
        config.write_text(text)
        answer = Answer(command(runner, realm, "doctor", "--json", "--config", str(config)))
        assert answer.failed() == ["settings"]
        assert words in answer.line("settings", "fail")["message"]
        assert answer.line("package", "ok")  # what can be told without settings is told
        assert answer.line("krb5.conf", "ok")
    answer = Answer(command(runner, realm, "doctor", "--json", "--config", "/nowhere/c.toml"))
    assert "/nowhere/c.toml" in answer.line("settings", "fail")["message"]


def test_a_systemd_credential_that_a_shell_does_not_have(runner: Runner, realm: Realm) -> None:
    answer = Answer(command(runner, realm, "doctor", "--json", KRBREFRESH__KERBEROS__PRINCIPAL="a@B"))
    assert "CREDENTIALS_DIRECTORY=" in answer.line("settings", "fail")["hint"]


def test_a_broken_krb5_conf_is_told_with_its_line(place: Path, look: Callable[..., Answer]) -> None:
    config = place / "krb5.conf"
    config.write_text("[libdefaults]\n default_realm = X\n rdns false\n")
    answer = look(KRB5_CONFIG=str(config))
    said = answer.line("krb5.conf", "fail")["message"]
    assert said.startswith("krb5_config: ")
    assert f"{config}:3: " in said
    assert answer.failed() == ["krb5.conf", "keytab"]


def test_airflows_settings(runner: Runner, realm: Realm, place: Path) -> None:
    keytab = realm.keytab(place / "k", "etl")
    keytab.chmod(0o400)
    environ = {
        "AIRFLOW__KERBEROS__PRINCIPAL": realm.principal("etl"),
        "AIRFLOW__KERBEROS__KEYTAB": str(keytab),
        "AIRFLOW__KERBEROS__CCACHE": str(place / "t/krb5cc"),
    }
    assert Answer(command(runner, realm, "doctor", "--json", **environ)).side == "worker"
    answer = Answer(command(runner, realm, "doctor", "--json", "--airflow", **environ))
    assert (answer.side, answer.status) == ("refresher", 0)


# --- the token directory ---


@pytest.fixture
def directory(place: Path, configured: Callable[..., Path]) -> Path:
    """A token directory as the refresher makes it."""
    path = place / "volume/token"
    path.mkdir()
    if os.geteuid() == 0:
        os.chown(path, 0, GROUP)
    path.chmod(0o2750)
    return path


@pytest.mark.parametrize("word", ["write to the token directory", "symlink", "not a ccache", "a symlink or not a dir"])
def test_a_layout_that_is_refused(directory: Path, look: Callable[..., Answer], word: str) -> None:
    if word.startswith("write"):
        directory.chmod(0o2770)
    elif word == "symlink":
        (directory / "krb5cc").symlink_to("/etc/passwd")
    elif word == "not a ccache":
        (directory / "krb5cc").write_text("a letter")
    else:
        directory.rename(directory.parent / "real")
        directory.symlink_to("real")
    answer = look("--offline")
    assert word in answer.line("layout", "fail")["message"]
    assert answer.line("layout", "fail")["subject"] == "etl"


@pytest.mark.root
def test_the_layout_of_another_user(
    runner: Runner,
    realm: Realm,
    place: Path,
    directory: Path,
    configured: Callable[..., Path],
    look: Callable[..., Answer],
) -> None:
    os.chown(directory, REFRESHER, GROUP)
    directory.chmod(0o2750)
    answer = look()
    assert f"uid {REFRESHER}" in answer.line("user", "warn")["message"]
    assert "setpriv --reuid=" in answer.line("user", "warn")["hint"]
    assert "not judged" in answer.line("layout", "warn")["message"]
    config = configured()
    os.chown(place / "etl.keytab", REFRESHER, -1)
    theirs = Answer(command(runner, realm, "doctor", "--json", "--config", str(config), uid=REFRESHER, groups=(GROUP,)))
    assert theirs.status == 0
    assert theirs.line("layout", "ok")
    outside = Answer(command(runner, realm, "doctor", "--json", "--config", str(config), uid=REFRESHER))
    assert f"may not give files to group {GROUP}" in outside.line("layout", "fail")["message"]


@pytest.mark.root
def test_a_place_where_no_directory_can_be_made(
    runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path]
) -> None:
    config = configured()
    os.chown(place / "etl.keytab", REFRESHER, -1)
    answer = Answer(command(runner, realm, "doctor", "--json", "--config", str(config), uid=REFRESHER, groups=(GROUP,)))
    assert answer.failed() == ["layout"]
    assert f"cannot be made in {place}/volume" in answer.line("layout", "fail")["message"]


@pytest.mark.root
def test_file_systems(place: Path, look: Callable[..., Answer]) -> None:
    volume = place / "volume"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "none", volume], check=True)
    try:
        assert "tmpfs" in look("--offline").line("volume", "warn")["message"]  # less than a MiB is free
        (volume / "filler").write_bytes(b"\0" * 65536)
        assert "0 B free" in look("--offline").line("volume", "fail")["message"]
        subprocess.run(["mount", "-o", "remount,size=4m,ro", volume], check=True)
        answer = look("--offline")
        assert "in memory" in answer.line("volume", "ok")["message"]
        assert "mounted read-only" in answer.line("layout", "fail")["message"]
    finally:
        subprocess.run(["umount", volume], check=True)


@pytest.mark.parametrize(
    ("kind", "words"), [("nfs4", "the lock does not keep"), ("overlay", "own layer"), ("ext4", "a tmpfs")]
)
def test_kinds_of_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, words: str) -> None:
    mount = mounts.Mount("/", kind, "0:1", False)
    monkeypatch.setattr(mounts, "find", lambda _: mount)
    credential = doctor_volume.CredentialSettings(principal="a@B", keytab="/k", ccache=str(tmp_path / "t/krb5cc"))
    (check,) = doctor_volume.check_volume(credential)
    assert words in check.message
    assert check.status == ("ok" if kind == "ext4" else "warn")


def test_leftover_files(directory: Path, look: Callable[..., Answer]) -> None:
    names = [publish._temporary_name() for _ in range(2)]
    for name in names:
        (directory / name).write_bytes(b"")
        assert doctor_volume._TEMPORARY_NAME.match(name)
    os.utime(directory / names[0], (time.time() - 7200,) * 2)
    said = look("--offline").line("leftover", "warn")["message"]
    assert f"{names[0]} (2h old)" in said
    assert names[1] not in said  # a publication that goes on now


def sealed(name: str, seconds: int = 3600, *, issued: float = 0, window: float = 1800, settings: str = "x") -> bytes:
    now = int(time.time())
    return seal(
        ccache_bytes(ticket(Principal.parse(name), endtime=now + seconds), principal=Principal.parse(name)),
        generation=7,
        issued_at=int(now + issued),
        window_opens_at=int(now + seconds - window),
        refresher="test",
        settings=settings,
    )


def test_what_is_published(realm: Realm, directory: Path, look: Callable[..., Answer]) -> None:
    path = directory / "krb5cc"
    assert "missing" in look("--offline").line("token", "warn")["message"]
    path.write_bytes(sealed(realm.principal("etl"), -60))
    path.chmod(0o440)
    assert look("--offline").line("token", "fail")["message"].startswith("expired: ")
    path.chmod(0o600)
    path.write_bytes(sealed("other@" + realm.name))
    assert look("--offline").line("token", "fail")["message"].startswith("wrong_principal: ")
    path.write_bytes(sealed(realm.principal("etl"), 600))
    said = [each["message"] for each in look("--offline").of("token")]
    assert len(said) == 4
    assert "its refresh is late" in said[1]
    assert "other settings" in said[2]
    assert "its mode is 0600, not 0440" in said[3]
    path.write_bytes(
        ccache_bytes(ticket(Principal.parse(realm.principal("etl"))), principal=Principal.parse(realm.principal("etl")))
    )
    assert any("no manifest" in each["message"] for each in look("--offline").of("token"))


# --- beside a refresher that runs ---


def test_the_refresher_that_runs_is_seen_and_not_disturbed(
    runner: Runner, realm: Realm, place: Path, configured: Callable[..., Path], look: Callable[..., Answer]
) -> None:
    port = free_port()
    environ = {**realm.env, "KRBREFRESH__REFRESHER__LISTEN": ""}
    with refresher(runner, configured(), environ) as running:
        eventually(lambda: (place / "volume/token/krb5cc").exists(), within=20)
        answer = look(listen=f"127.0.0.1:{port}")
        assert answer.failed() == []
        assert f"pid {running.process.pid}" in answer.line("leader", "ok")["message"]
        assert "does not answer: Connection refused" in answer.line("listen", "warn")["message"]
    assert "nobody is seen" in look().line("leader", "warn")["message"]


def test_without_the_refreshers_half(realm: Realm, place: Path, configured: Callable[..., Path]) -> None:
    # As on Python 3.10 without tomli: a finder that does not find what settings.py needs.
    script = (
        "import sys\n"
        "sys.modules['krbrefresh.refresher.sources'] = None\n"
        "from krbrefresh.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, "doctor", "--json", "--config", str(configured())],
        env={**realm.env, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
    )
    answer = Answer(ran)
    assert answer.failed() == ["package"]
    assert "--worker" in answer.line("package", "fail")["hint"]


def test_the_lock_is_left_alone(directory: Path) -> None:
    credential = doctor_volume.CredentialSettings(principal="a@B", keytab="/k", ccache=str(directory / "krb5cc"))
    assert doctor_volume._leader(credential) == ""
    with open(directory / LOCK_NAME, "w") as file:
        assert doctor_volume._leader(credential) == ""
        fcntl.flock(file, fcntl.LOCK_EX)
        assert doctor_volume._leader(credential).startswith(f"pid {os.getpid()}, uid ")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def answering(status: int, body: object) -> Iterator[str]:
    """Something on loopback that says this to everything; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_no_attempt_is_made_where_the_running_refresher_was_refused(realm: Realm, look: Callable[..., Answer]) -> None:
    state = {"state": "degraded", "reason": "key_rejected", "consecutive_failures": 2}
    look("--offline")
    with answering(200, {"ready": True, "credentials": {"etl": state}}) as address:
        asked = as_requests(realm)
        answer = look(listen=address)
        assert as_requests(realm) == asked
    assert "etl degraded: key_rejected" in answer.line("listen", "warn")["message"]
    said = answer.line("exchange", "fail")
    assert said["message"].startswith("key_rejected: ")
    assert "not tried again" in said["message"]


@pytest.mark.parametrize("body", [{}, [], "x", {"credentials": None}, {"credentials": {"etl": 1}}, {"credentials": {}}])
def test_an_answer_that_is_not_understood(look: Callable[..., Answer], body: object) -> None:
    with answering(503, body) as address:
        assert "/readyz says 503" in look("--offline", listen=address).line("listen", "warn")["message"]
    with SilentKdc() as silent:
        listen = f"127.0.0.1:{silent.port}"
        assert "does not answer: timed out" in look("--offline", listen=listen).line("listen", "warn")["message"]


# --- FAST armour, and what a child cannot do ---


def test_the_armours_keytab_is_looked_at_too(realm: Realm, place: Path, look: Callable[..., Answer]) -> None:
    armour = realm.keytab(place / "host", "host/doctor")
    armour.chmod(0o400)
    answer = look("--offline", kerberos={"fast_keytab": armour})
    assert [each["status"] for each in answer.of("keytab")] == ["ok", "ok"]
    assert answer.of("keytab")[1]["message"].startswith(f"FAST armour: {armour}: host/doctor@")
    answer = look(kerberos={"fast_keytab": "/nowhere/host"})
    assert answer.line("keytab", "fail")["message"].startswith("FAST armour: keytab_missing: ")
    assert "not tried" in answer.line("exchange", "warn")["message"]


def test_the_services_that_are_fetched(realm: Realm, look: Callable[..., Answer]) -> None:
    known, unknown = realm.principal("HTTP/web.test"), f"HTTP/nowhere.test@{realm.name}"
    answer = look(kerberos={"services": [known], "include_tgt": "false"})
    assert answer.line("services", "ok")["message"] == "the KDC gave the ticket of 1 service"
    answer = look(kerberos={"services": [known, unknown]})
    failed = answer.line("services", "fail")
    assert failed["message"].startswith(f"service_unknown: {unknown}: ")
    assert answer.line("exchange", "ok")


def test_the_key_that_signs(place: Path, look: Callable[..., Answer]) -> None:
    key = place / "signing"
    key_id = generate(str(key))
    assert key_id in look("--offline", kerberos={"signing_key": key}).line("signing", "ok")["message"]
    key.chmod(0o644)
    answer = look("--offline", kerberos={"signing_key": key})
    assert "everybody may read the signing key" in answer.line("signing", "fail")["message"]
    answer = look("--offline", kerberos={"signing_key": place / "nowhere"})
    assert "No such file" in answer.line("signing", "fail")["message"]


def test_without_the_kerberos_package(realm: Realm, place: Path, configured: Callable[..., Path]) -> None:
    config = configured()
    libraries = place / "libraries"
    libraries.mkdir()
    (libraries / "tomli.py").write_text("from tomllib import *\n")
    for name, words in ((None, "not_installed"), ("krb5", "ImportError: no libkrb5")):
        if name:
            (libraries / name).mkdir()
            (libraries / name / "__init__.py").write_text("raise ImportError('no libkrb5')\n")
        ran = subprocess.run(
            [sys.executable, "-S", "-m", "krbrefresh", "doctor", "--json", "--config", str(config)],
            env={**realm.env, "PYTHONPATH": f"{PACKAGE.parent}:{libraries}", "KRBREFRESH__REFRESHER__LISTEN": ""},
            capture_output=True,
            text=True,
        )
        answer = Answer(ran)
        assert words in answer.of("package")[0]["message"]
        assert answer.of("package")[0]["status"] == "fail"
        assert "not looked into" in answer.line("keytab", "warn")["message"]
        assert answer.line("layout", "ok")
        assert ran.stderr == ""


# --- a worker's side ---


@pytest.fixture
def worker(runner: Runner, realm: Realm, place: Path) -> Callable[..., Answer]:
    """Runs the doctor of a worker, under its own user, and makes sure that it has written nothing."""

    def run(*arguments: str, uid: int | None = WORKER, groups: tuple[int, ...] = (GROUP,), **environ: str) -> Answer:
        before = tree(place)
        environ = {
            "KRBREFRESH_CCACHE": str(place / "token/krb5cc"),
            "KRB5CCNAME": f"FILE:{place}/token/krb5cc",
            **environ,
        }
        answer = Answer(command(runner, realm, "doctor", "--json", *arguments, uid=uid, groups=groups, **environ))
        assert tree(place) == before
        assert answer.side == "worker"
        return answer

    return run


@pytest.fixture
def token(place: Path) -> Path:
    """A token as the refresher publishes it, for the workers' group."""
    directory = place / "token"
    directory.mkdir()
    path = directory / "krb5cc"
    path.write_bytes(sealed("etl@EXAMPLE.COM"))
    if os.geteuid() == 0:
        os.chown(directory, REFRESHER, GROUP)
        os.chown(path, REFRESHER, GROUP)
    path.chmod(0o440)
    directory.chmod(0o2750)
    return path


@pytest.mark.root
def test_a_worker_that_is_whole(worker: Callable[..., Answer], token: Path) -> None:
    answer = worker()
    assert answer.status == 0
    assert {each["status"] for each in answer.checks} == {"ok"}
    assert [each["check"] for each in answer.checks] == [
        "side", "user", "krb5.conf", "names", "token", "directory", "environment", "keytab",
    ]  # fmt: skip


@pytest.mark.root
@pytest.mark.parametrize(
    "where", ["KRB5_KTNAME", "KRB5_CLIENT_KTNAME", "krb5.conf", "CREDENTIALS_DIRECTORY", "settings"]
)
def test_a_keytab_that_a_worker_can_read(
    worker: Callable[..., Answer], token: Path, place: Path, realm: Realm, where: str
) -> None:
    secrets = place / "secrets/deeper"
    secrets.mkdir(parents=True)
    keytab = secrets / "keytab"
    realm.keytab(keytab, "etl")
    os.chown(keytab, WORKER, -1)
    keytab.chmod(0o400)
    environ = {where: f"FILE:{keytab}"}
    arguments: tuple[str, ...] = ()
    if where == "krb5.conf":
        config = place / "krb5.conf"
        config.write_text(f"[libdefaults]\n default_client_keytab_name = {secrets}/../deeper/keytab\n")
        environ = {"KRB5_CONFIG": f"{config}:{realm.env['KRB5_CONFIG']}"}
    elif where == "CREDENTIALS_DIRECTORY":
        environ = {where: str(place / "secrets")}
    elif where == "settings":
        environ = {"KRBREFRESH__KERBEROS__PRINCIPAL": "etl@X", "KRBREFRESH__KERBEROS__KEYTAB": str(keytab)}
        arguments = ("--worker",)
    answer = worker(*arguments, **environ)
    assert answer.failed() == ["keytab"]
    said = answer.line("keytab", "fail")["message"]
    assert "keytab" in said
    assert "it holds the password" in said
    assert answer.warned() == (["environment"] if where == "KRB5_CLIENT_KTNAME" else [])
    os.chown(keytab, REFRESHER, -1)
    assert worker(*arguments, **environ).failed() == []
    as_root = worker(*arguments, uid=None, groups=(), **environ)
    assert as_root.failed() == []
    assert "as root" in as_root.line("keytab", "warn")["message"]
    assert as_root.line("user", "warn")


@pytest.mark.root
def test_a_worker_outside_the_group(worker: Callable[..., Answer], token: Path) -> None:
    answer = worker(groups=())
    assert answer.line("token", "fail")["message"].startswith("unreadable: ")


@pytest.mark.root
@pytest.mark.parametrize("word", ["missing", "expired", "expiring", "corrupt", "no volume", "kind"])
def test_a_workers_token_that_will_not_do(worker: Callable[..., Answer], token: Path, word: str) -> None:
    environ = {}
    if word == "missing":
        token.unlink()
    elif word == "no volume":
        environ = {"KRBREFRESH_CCACHE": str(token.parent.parent / "elsewhere/krb5cc"), "KRB5CCNAME": ""}
    elif word == "kind":
        environ = {"KRBREFRESH_CCACHE": "KCM:"}
    else:
        seconds = {"expired": -5, "expiring": 30}.get(word, 0)
        token.write_bytes(sealed("etl@EXAMPLE.COM", seconds) if seconds else b"\x05\x04torn")
    answer = worker(**environ)
    assert answer.failed() == ["token"]
    said = answer.line("token", "fail")
    if word == "no volume":
        assert "not even the directory" in said["message"]
        assert said["hint"].startswith("mount the volume")
    elif word == "kind":
        assert "a token is a FILE ccache" in said["message"]
    else:
        assert said["message"].startswith(f"{word}: ")


@pytest.mark.root
def test_a_worker_that_may_write(worker: Callable[..., Answer], token: Path) -> None:
    token.parent.chmod(0o2770)
    assert "may write to the directory" in worker().line("directory", "fail")["message"]
    token.parent.chmod(0o2750)
    token.chmod(0o660)
    assert "may write to the token" in worker().line("directory", "fail")["message"]
    subprocess.run(["mount", "--bind", token.parent, token.parent], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", token.parent], check=True)
        assert "mounted read-only" in worker().line("directory", "ok")["message"]
        subprocess.run(["mount", "--bind", token, token], check=True)
        try:
            assert "the file itself is mounted" in worker().line("directory", "fail")["message"]
        finally:
            subprocess.run(["umount", token], check=True)
    finally:
        subprocess.run(["umount", token.parent], check=True)


@pytest.mark.root
def test_a_workers_surroundings(worker: Callable[..., Answer], token: Path, place: Path) -> None:
    assert "is not set" in worker(KRB5CCNAME="").line("environment", "warn")["message"]
    assert "different tickets" in worker(KRB5CCNAME="KCM:").line("environment", "warn")["message"]
    config = place / "krb5.conf"
    assert f"{config}: " in worker(KRB5_CONFIG=str(config)).line("krb5.conf", "warn")["message"]
    config.write_text("[libdefaults]\n rdns = false\n dns_canonicalize_hostname = fallback\n}\n")
    answer = worker(KRB5_CONFIG=str(config))
    assert f"{config}:4: " in answer.line("krb5.conf", "warn")["message"]
    assert "dns_canonicalize_hostname = fallback" in answer.line("names", "warn")["message"]
    token.write_bytes(sealed("etl@EXAMPLE.COM", issued=600))
    assert "this machine's clock is behind" in worker().line("clock", "warn")["message"]


def test_a_workers_side_is_the_standard_library_and_nothing_of_the_refresher(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv.pop(1))\n"
        "from krbrefresh.cli import main\n"
        "main(['doctor', '--json'])\n"
        "tops = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'__main__'}\n"
        "assert tops == {'krbrefresh'}, tops\n"
        "assert 'krbrefresh.refresher' not in sys.modules\n"
    )
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(PACKAGE.parent)],
        env={"KRBREFRESH_CCACHE": str(tmp_path / "absent")},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["side"] == "worker"


# --- krb5.conf, keytabs, mounts ---


def test_krb5_conf_as_libkrb5_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = tmp_path / "more"
    more.mkdir()
    (more / "a.conf").write_text("[libdefaults]\n rdns = OFF\n")
    (more / ".b.conf").write_text("[libdefaults]\n hidden = 1\n")
    (more / "c.conf~").write_text("[libdefaults]\n hidden = 1\n")
    (more / "d").write_text("[realms]\n X = {\n  kdc = d.example.com\n }\n")
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(
        f"passed over = yes\n\n; a comment\n[libdefaults]\n  # another\n  includedir {more}\n"
        ' default_realm = "A \\"B\\""\n dns_canonicalize_hostname = nil\n'
        "[realms]\n X =\n {\n  kdc = a.example.com:88\n  kdc = b.example.com\n }*\n[libdefaults]*\n odd = perhaps\n"
    )
    second.write_text("[libdefaults]\n rdns = true\n later = 1\n")
    monkeypatch.setenv("KRB5_CONFIG", f"{first}:{second}:{tmp_path}/absent")
    conf = krb5conf.read()
    assert conf.problems == []
    assert conf.absent == [f"{tmp_path}/absent: No such file or directory"]
    assert conf.read == [str(first), f"{more}/a.conf", f"{more}/d", str(second)]
    assert conf.truth("libdefaults", "rdns", default=True) is False
    assert conf.truth("libdefaults", "dns_canonicalize_hostname", default=True) is False
    assert conf.truth("libdefaults", "odd", default=True) == "perhaps"
    assert conf.truth("libdefaults", "unset", default=True) is True
    assert conf.first("libdefaults", "default_realm") == 'A "B"'
    assert conf.first("libdefaults", "later") == "1"
    assert conf.first("libdefaults", "hidden") is None
    assert sorted(conf.values("realms", "X", "kdc")) == ["a.example.com:88", "b.example.com", "d.example.com"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[libdefaults\n", 1),
        ("[libdefaults] x\n", 1),
        ("[a]\n x\n", 2),
        ("[a]\n x y = z\n", 2),
        ("[a]\n = z\n", 2),
        ("[a]\n}\n", 2),
        ("[a]\n b = {\n c = d\n[e]\n", 4),
        ("[a]\n b =\n c = d\n", 3),
        ("[a]\ninclude /nowhere/at/all\n", 2),
        ("[a]\n b = c\n", None),
        ("[a]\n b = {\n c = d\n }\n", None),
        ("", None),
    ],
)
def test_where_krb5_conf_is_broken_libkrb5_thinks_so_too(
    realm: Realm, place: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int | None
) -> None:
    path = place / "krb5.conf"
    path.write_text(text)
    monkeypatch.setenv("KRB5_CONFIG", str(path))
    problems = krb5conf.read().problems
    assert [problem.split(":")[:2] for problem in problems[:1]] == ([] if line is None else [[str(path), str(line)]])
    ran = subprocess.run(
        [sys.executable, "-c", "import krb5; krb5.init_context()"],
        env={**os.environ, "KRB5_CONFIG": str(path)},
        capture_output=True,
    )
    assert (ran.returncode != 0) == (line is not None)


def test_krb5_conf_that_includes_itself_or_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "loop"
    path.write_text(f"include {path}\n")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    monkeypatch.setenv("KRB5_CONFIG", f"{path}:{tmp_path}/fifo:{tmp_path}/binary")
    conf = krb5conf.read()
    assert "include each other" in conf.problems[0]
    assert conf.absent == [f"{tmp_path}/fifo: it is not a regular file"]


def test_what_is_no_readable_keytab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("x")
    (tmp_path / "keytab").write_bytes(b"\x05\x02")
    (tmp_path / "link").symlink_to("keytab")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("KRB5_KTNAME", "MEMORY:x")
    monkeypatch.setenv("KRB5_CONFIG", str(tmp_path / "text"))
    found = [each for each in keytabs.readable() if each.path.startswith(str(tmp_path))]
    assert [each.path for each in found] == [str(tmp_path / "keytab")]
    assert stat.S_IMODE(os.stat(found[0].path).st_mode) == found[0].mode


def test_mounts(tmp_path: Path) -> None:
    proc = mounts.find("/proc/self/status")
    assert proc is not None
    assert (proc.point, proc.type) == ("/proc", "proc")
    here = mounts.find(str(tmp_path / "not" / "there"))
    assert here is not None
    assert mounts.is_point("/proc")
    assert not mounts.is_point(str(tmp_path))
