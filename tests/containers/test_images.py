"""What is in the images, and what is not."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile

import pytest

from krbrefresh import __version__
from tests.containers.stack import CLOSED, REPOSITORY, Container, docker

LOOK = """
import importlib.util, json, os, shutil, stat
PROGRAMS = ("gcc", "cc", "cpp", "ld", "make", "pip", "pip3", "curl", "kinit")
MODULES = ("krbrefresh", "krbrefresh.refresher", "krbrefresh.demo", "krb5", "gssapi", "cryptography",
           "prometheus_client", "Cython", "setuptools", "pip")
headers, privileged, writable, count = [], [], [], 0
for place, names, files in os.walk("/"):
    if place == "/":
        names[:] = [each for each in names if each not in ("proc", "sys", "dev")]
    for name in files:
        path = os.path.join(place, name)
        found = os.lstat(path)
        count += 1
        if name.endswith((".h", ".pyx", ".a")):
            headers.append(path)
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o6000:
            privileged.append(path)
        if stat.S_ISREG(found.st_mode) and found.st_mode & 0o002:
            writable.append(path)
print(json.dumps({
    "count": count, "headers": headers, "privileged": privileged, "writable": writable,
    "programs": [name for name in PROGRAMS if shutil.which(name)],
    "modules": [name for name in MODULES if importlib.util.find_spec(name)],
}))
"""


def look(image: str) -> dict[str, object]:
    said = docker("run", "--rm", "-i", "--user", "0", "--entrypoint", "python3", image, "-I", "-", stdin=LOOK)
    found: dict[str, object] = json.loads(said)
    assert found.pop("count", 0) != 0
    return found


def config(image: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(docker("inspect", image))[0]["Config"]
    return found


def test_the_workers_image_is_the_pure_python_half(engine: None) -> None:
    assert look("krbrefresh-worker") == {
        "headers": [],
        "privileged": [],
        "writable": [],
        "programs": [],
        "modules": ["krbrefresh"],
    }


def test_the_refreshers_image_has_neither_compiler_nor_headers(engine: None) -> None:
    assert look("krbrefresh-refresher") == {
        "headers": [],
        "privileged": [],
        "writable": [],
        "programs": [],
        "modules": ["krbrefresh", "krbrefresh.refresher", "krb5", "gssapi", "cryptography", "prometheus_client"],
    }


def test_the_refresher_has_all_that_its_requirements_name(engine: None) -> None:
    script = """
import importlib.metadata, json
print(json.dumps({each.name.lower(): each.version for each in importlib.metadata.distributions()}))
"""
    said = docker("run", "--rm", "-i", "--entrypoint", "python3", "krbrefresh-refresher", "-I", "-", stdin=script)
    installed = {name.replace("_", "-"): version for name, version in json.loads(said).items()}
    installed.pop("krbrefresh")
    pinned = {}
    for line in (REPOSITORY / "docker/requirements-refresher.txt").read_text().splitlines():
        if line[:1].isalpha():
            name, _, version = line.split()[0].partition("==")
            pinned[name] = version
    assert installed == pinned


@pytest.mark.parametrize("image", ["krbrefresh-refresher", "krbrefresh-worker"])
def test_each_runs_as_a_number_without_a_shell_and_says_what_it_is(engine: None, image: str) -> None:
    found = config(image)
    assert str(found["User"]) in ("10001", "10002")
    assert found["Entrypoint"] == ["krbrefresh"]
    health = found["Healthcheck"]
    assert isinstance(health, dict)
    assert health["Test"][0] == "CMD"  # CMD-SHELL would need a shell
    labels = found["Labels"]
    assert isinstance(labels, dict)
    for name in ("title", "description", "licenses", "version", "revision"):
        assert labels[f"org.opencontainers.image.{name}"]
    assert labels["org.opencontainers.image.version"] == __version__


def test_each_works_where_everything_is_closed(engine: None) -> None:
    assert docker("run", "--rm", *CLOSED, "krbrefresh-worker", "--version").startswith("krbrefresh ")
    assert docker("run", "--rm", *CLOSED, "krbrefresh-refresher", "--version").startswith("krbrefresh ")


def test_a_plain_volume_belongs_to_the_refresher_and_its_group_may_pass(engine: None) -> None:
    script = "import json, os; s = os.stat('/run/krbrefresh'); print(json.dumps([s.st_uid, s.st_gid, oct(s.st_mode)]))"
    identity = docker(
        *("run", "-d", *CLOSED, "--volume", "/run/krbrefresh", "--entrypoint", "python3", "krbrefresh-refresher"),
        *("-c", "import time; time.sleep(600)"),
    ).strip()
    try:
        assert Container(identity).python(script) == [10001, 10000, "0o40750"]
    finally:
        docker("rm", "-f", "-v", identity)


def test_no_keytab_can_get_into_a_build(engine: None) -> None:
    """What a build is sent of the clone: a keytab that lies where compose.yaml has it, or among the sources, is not."""
    places = [REPOSITORY / "keytab" / "test.keytab", REPOSITORY / "docker" / "test.keytab"]
    try:
        for place in places:
            place.write_bytes(b"\x05\x02")
        image = (
            subprocess.run(
                ["docker", "build", "-q", "-f", "-", "."],
                input=b"FROM scratch\nCOPY . /context/\n",
                cwd=REPOSITORY,
                capture_output=True,
                check=True,
                env={**os.environ, "DOCKER_BUILDKIT": "0"},
            )
            .stdout.decode()
            .strip()
        )
    finally:
        for place in places:
            place.unlink()
    identity = docker("create", image, "nothing").strip()
    try:
        exported = subprocess.run(["docker", "export", identity], capture_output=True, check=True).stdout
    finally:
        docker("rm", identity)
        docker("rmi", image)
    with tarfile.open(fileobj=io.BytesIO(exported)) as archive:
        names = {name for name in archive.getnames() if name.startswith("context/")}
    tops = {name.split("/")[1] for name in names}
    assert tops == {"docker", "krbrefresh", "pyproject.toml", "README.md", "LICENSE"}
    assert "context/docker/krb5.conf" in names
    assert not any(name.endswith(".keytab") for name in names)
