"""What is refused at start, in words with what to do; and what must be accepted."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import krbrefresh
from krbrefresh.errors import LayoutError
from krbrefresh.refresher import layout
from krbrefresh.refresher.layout import Destination
from tests.processes import GROUP, REFRESHER, WORKER, Runner, krbrefresh_command, refresher, toml
from tests.support import Realm, eventually
from tests.test_publish import destination


@pytest.fixture
def write(realm: Realm, place: Path) -> Callable[..., Path]:
    """The settings of one credential, with a keytab of its own at place/secret/k and its token in place/token."""
    (place / "secret").mkdir(mode=0o755)
    realm.keytab(place / "secret" / "k", "etl")
    config = place / "c.toml"

    def write(**changes: Any) -> Path:
        section = {
            "principal": realm.principal("etl"),
            "keytab": place / "secret" / "k",
            "ccache": place / "token" / "krb5cc",
            **changes,
        }
        config.write_text(toml(refresher={"log_format": "json"}, kerberos=section))
        return config

    return write


def refused(runner: Runner, realm: Realm, config: Path, words: str) -> str:
    """The hint of a refusal at start, by `run` and `once` alike."""
    for command in ("run", "once"):
        ran = krbrefresh_command(command, runner, realm, config)
        assert ran.returncode == 2, ran.stderr
        first, hint = ran.stderr.splitlines()[-2:]
        assert first.startswith("layout: ")
        assert words in first, first
        assert hint.startswith("  ")
    return hint


# --- the keytab ---


def test_a_keytab_that_everybody_may_read(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    (place / "secret" / "k").chmod(0o444)
    hint = refused(runner, realm, write(), "everybody may read the keytab (its mode is 0444)")
    assert "defaultMode: 0400" in hint
    assert not (place / "token").exists()


@pytest.mark.parametrize("where", ["token", "token/below", "link"])
def test_a_keytab_in_a_token_directory(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path], where: str
) -> None:
    (place / "token").mkdir(mode=0o755)
    (place / "link").symlink_to("token")
    (place / where).mkdir(exist_ok=True)
    shutil.move(place / "secret" / "k", place / where / "k")
    hint = refused(runner, realm, write(keytab=place / where / "k"), "the keytab lies in the token directory")
    assert "a volume of its own" in hint


def test_the_keytab_of_one_credential_in_the_token_directory_of_another(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    (place / "other").mkdir(mode=0o755)
    shutil.copy2(place / "secret" / "k", place / "other" / "k")
    config = write()
    other = {"principal": realm.principal("etl"), "keytab": place / "other" / "k", "ccache": place / "b" / "krb5cc"}
    config.write_text(config.read_text() + toml(credentials__other=other).replace("/b/", "/b/"))
    assert krbrefresh_command("once", runner, realm, config).returncode == 0
    config.write_text(config.read_text().replace(f"{place}/token/", f"{place}/other/"))
    refused(runner, realm, config, f"lies in the token directory {place}/other")


def test_the_armours_keytab_is_a_keytab_too(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    realm.keytab(place / "host.keytab", "host/here").chmod(0o604)
    refused(runner, realm, write(fast_keytab=place / "host.keytab"), f"{place}/host.keytab: everybody may read")


def test_a_keytab_that_a_group_may_read_is_accepted_with_a_warning(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    (place / "secret" / "k").chmod(0o440)
    ran = krbrefresh_command("once", runner, realm, write())
    assert ran.returncode == 0, ran.stderr
    warning = json.loads(ran.stderr.splitlines()[0])
    assert (warning["event"], warning["level"]) == ("keytab_exposed", "warning")
    assert f"group {os.getegid()} may read the keytab (its mode is 0440)" in warning["message"]


def test_one_from_systemds_credentials_is_exempt_and_the_default(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    credentials = place / "credentials"
    credentials.mkdir(mode=0o755)
    shutil.move(place / "secret" / "k", credentials / "keytab")
    (credentials / "keytab").chmod(0o444)
    config = write()
    config.write_text("\n".join(line for line in config.read_text().splitlines() if not line.startswith("keytab")))
    ran = krbrefresh_command("once", runner, realm, config, CREDENTIALS_DIRECTORY=str(credentials))
    assert ran.returncode == 0, ran.stderr
    assert "keytab_exposed" not in ran.stderr
    assert krbrefresh.validate(place / "token" / "krb5cc")
    refused(runner, realm, write(keytab=credentials / "keytab"), "everybody may read")  # without systemd


@pytest.mark.root
def test_a_kubernetes_secret_under_fsgroup(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    """root:fsGroup 0440 behind two symlinks, read through the group; rotated by swapping a symlink."""
    volume, fs_group = place / "volume", REFRESHER + 50
    (volume / "..1").mkdir(parents=True)
    shutil.move(place / "secret" / "k", volume / "..1" / "keytab")
    os.chown(volume / "..1" / "keytab", 0, fs_group)
    (volume / "..1" / "keytab").chmod(0o440)
    (volume / "..data").symlink_to("..1")
    (volume / "keytab").symlink_to("..data/keytab")
    (place / "empty").mkdir()
    (place / "empty").chmod(0o777)  # an emptyDir
    config = write(keytab=volume / "keytab", ccache=place / "empty" / "etl" / "krb5cc", group=fs_group)
    with refresher(runner, config, realm.env, uid=REFRESHER, groups=(fs_group,)) as running:
        running.logged("published")
        found = (place / "empty" / "etl" / "krb5cc").stat()
        assert (found.st_gid, stat.S_IMODE(found.st_mode)) == (fs_group, 0o440)
        assert (place / "empty" / "etl").stat().st_gid == fs_group
        (volume / "..2").mkdir()
        shutil.copy2(volume / "..1" / "keytab", volume / "..2" / "keytab")
        os.chown(volume / "..2" / "keytab", 0, fs_group)
        (volume / "..new").symlink_to("..2")
        (volume / "..new").rename(volume / "..data")
        running.logged("file_changed", within=5)
        running.logged("published", count=2, within=5)


# --- the ccache and its directory ---


@pytest.mark.root
@pytest.mark.parametrize("name", ["krb5cc", "a name\twith \\ in it"])
def test_a_ccache_that_is_itself_a_mount_point(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path], name: str
) -> None:
    (place / "token").mkdir(mode=0o755)
    mounted, source = place / "token" / name, place / "source"
    mounted.touch()
    source.touch()
    subprocess.run(["mount", "--bind", str(source), str(mounted)], check=True)
    try:
        hint = refused(runner, realm, write(ccache=mounted), "the ccache is itself a mount point")
        assert "mount the directory" in hint
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    layout.judge(Destination(str(mounted.parent), name, 0o440, None))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda token: (token / "krb5cc").symlink_to("elsewhere"), "the ccache is a symlink"),
        (lambda token: (token / "krb5cc").write_text("precious"), "is not a ccache, and is not overwritten"),
        (lambda token: (token / "krb5cc").mkdir(), "not a regular file"),
        (lambda token: token.chmod(0o775), "group or others may write to the token directory"),
        (lambda token: (token.rmdir(), token.symlink_to("elsewhere")), "is a symlink or not a directory"),
    ],
    ids=["symlink", "foreign", "directory", "open", "directory is a symlink"],
)
def test_what_stands_at_the_ccache(
    runner: Runner,
    realm: Realm,
    place: Path,
    write: Callable[..., Path],
    break_it: Callable[[Path], object],
    words: str,
) -> None:
    (place / "token").mkdir(mode=0o755)
    break_it(place / "token")
    refused(runner, realm, write(), words)


def test_two_credentials_with_one_ccache_and_a_type_that_is_not_file(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    config = write()
    other = toml(credentials__other={"principal": realm.principal("etl"), "ccache": place / "token" / "." / "krb5cc"})
    config.write_text(config.read_text() + other)
    ran = krbrefresh_command("run", runner, realm, config)
    assert (ran.returncode, "have one ccache" in ran.stderr) == (2, True)
    (place / "link").symlink_to(place / "token")  # one by two names, in settings that know none of this
    config.write_text(config.read_text().replace("token/./", "link/../link/"))
    ran = krbrefresh_command("run", runner, realm, config)
    assert (ran.returncode, "have one ccache" in ran.stderr) == (2, True)
    for kind in ("KEYRING:x", "KCM:", "DIR:/x", "MEMORY:x"):
        ran = krbrefresh_command("run", runner, realm, write(ccache=kind))
        assert (ran.returncode, "a token is a FILE ccache" in ran.stderr) == (2, True)


def test_nothing_is_opened_to_judge_a_keytab(place: Path) -> None:
    directories = layout.real_directories([destination(place)])
    os.mkfifo(place / "k", 0o400)  # opening it would never return
    assert layout.judge_keytab(str(place / "k"), directories) is None
    assert layout.judge_keytab(str(place / "absent" / "k"), directories) is None


def test_a_keytab_in_a_token_directory_is_refused_by_whatever_name(place: Path) -> None:
    (place / "token").mkdir()
    (place / "token" / "k").touch(0o400)
    (place / "elsewhere").symlink_to(place / "token" / "k")
    (place / "there").symlink_to("token")
    directories = {str(place / "token"): str(place / "token")}
    for path in ("token/k", "elsewhere", "there/k"):
        with pytest.raises(LayoutError, match="lies in the token directory"):
            layout.judge_keytab(str(place / path), directories)


def test_the_exemption_is_for_systemds_directory_alone(place: Path) -> None:
    keytab = place / "k"
    keytab.touch()
    keytab.chmod(0o444)
    assert layout.judge_keytab(str(keytab), {}, {"CREDENTIALS_DIRECTORY": str(place)}) is None
    with pytest.raises(LayoutError):
        layout.judge_keytab(str(keytab), {}, {"CREDENTIALS_DIRECTORY": str(place / "credentials")})


# --- volumes as orchestrators make them ---


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o2777, 0o755])
def test_a_volume_root_of_any_mode_is_accepted(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path], mode: int
) -> None:
    volume = place / "volume"
    volume.mkdir()
    os.chown(volume, REFRESHER if mode == 0o755 else 0, -1)
    volume.chmod(mode)
    os.chown(place / "secret" / "k", REFRESHER, -1)
    config = write(ccache=volume / "etl" / "krb5cc", group=GROUP)
    with refresher(runner, config, realm.env, uid=REFRESHER, groups=(GROUP,)) as running:
        running.logged("published")
        directory = (volume / "etl").stat()
        assert stat.S_IMODE(directory.st_mode) == 0o2750
        assert (directory.st_uid, directory.st_gid) == (REFRESHER, GROUP)
        assert os.listdir(volume) == ["etl"]
        script = "import krbrefresh, sys; print(krbrefresh.validate(sys.argv[1]).principal)"
        ran = subprocess.run(
            [runner.python, "-c", script, str(volume / "etl" / "krb5cc")],
            **runner.user(WORKER, GROUP),
            env=runner.env,
            capture_output=True,
            text=True,
        )
        assert ran.stdout.strip() == realm.principal("etl"), ran.stderr


@pytest.mark.root
def test_a_tmpfs_that_is_emptied_under_the_running_process(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    volume = place / "volume"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "none", str(volume)], check=True)
    try:
        with refresher(runner, write(ccache=volume / "etl" / "krb5cc"), realm.env) as running:
            running.logged("published")
            shutil.rmtree(volume / "etl")
            running.logged("published", count=2, within=5)  # an event told of it
            assert krbrefresh.validate(volume / "etl" / "krb5cc")
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "none", str(volume)], check=True)  # over it
            running.logged("published", count=3, within=5)
            assert krbrefresh.validate(volume / "etl" / "krb5cc")
            running.stop()
    finally:
        while os.path.ismount(volume):
            subprocess.run(["umount", str(volume)], check=True)


def test_what_removes_the_token_again_and_again_does_not_keep_the_kdc_busy(
    runner: Runner, realm: Realm, place: Path, write: Callable[..., Path]
) -> None:
    path = place / "token" / "krb5cc"
    with refresher(runner, write(), realm.env) as running:
        running.logged("published")
        for count in (2, 3):
            path.unlink()
            running.logged("published", count=count, within=10)
        path.unlink()
        vanished = running.logged("token_vanished", count=3)[-1]
        published = running.logged("published", count=4, within=15)[-1]
        # 0, 2, 4 seconds after each loss, and a minute at the most.
        assert seconds(published) - seconds(vanished) > 3
        assert eventually(path.exists, within=1)


def seconds(event: dict[str, Any]) -> float:
    hours, minutes, rest = event["time"].removesuffix("Z").split("T")[1].split(":")
    return float(hours) * 3600 + float(minutes) * 60 + float(rest)
