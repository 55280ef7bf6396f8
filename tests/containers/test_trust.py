"""The claim that matters, from inside running containers: the worker's token works, and the keytab is out of reach."""

from __future__ import annotations

import json

import pytest

from tests.containers.stack import (
    CLOSED,
    KEYTAB,
    REFRESHER,
    REPOSITORY,
    TOKEN,
    TOKENS,
    WORKER,
    Container,
    Stack,
    docker,
)

# Every file that this process can read and that is a keytab, by its first bytes, or has the key in it, which is an
# argument in hex. A keytab is small; a key could stand in the middle of a large file.
SEARCH = """
import json, os, stat, sys
key = bytes.fromhex(sys.argv[1])
found, looked = [], 0
for place, names, files in os.walk("/"):
    if place == "/":
        names[:] = [each for each in names if each not in ("proc", "sys")]
    for name in files:
        path = os.path.join(place, name)
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            continue
        looked += 1
        if data[:2] in (b"\\x05\\x01", b"\\x05\\x02") or key in data or key.hex().encode() in data:
            found.append(path)
print(json.dumps({"looked": looked, "found": found}))
"""

# What can be done to another process, and through /proc/PID to its files: the error, or what was had.
ATTACK = """
import ctypes, errno, json, os, signal, sys
pid, keytab = int(sys.argv[1]), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
def attempt(action):
    try:
        return action()
    except OSError as error:
        return errno.errorcode[error.errno]
def read(path):
    with open(path, "rb") as file:
        return len(file.read(64))
def call(name, *arguments):
    if libc[name](*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
    return "done"
class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(8)
here, there = Iovec(ctypes.addressof(buffer), 8), Iovec(0x1000, 8)
PTRACE_SEIZE = 0x4206
print(json.dumps({
    "uid": os.getuid(),
    "command": open(f"/proc/{pid}/cmdline").read().split("\\0")[1:3],
    "exists": attempt(lambda: os.kill(pid, 0)),
    "kill": attempt(lambda: os.kill(pid, signal.SIGWINCH)),
    "ptrace": attempt(lambda: call("ptrace", PTRACE_SEIZE, pid, 0, 0)),
    "process_vm_readv": attempt(
        lambda: call("process_vm_readv", pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)),
    "root": attempt(lambda: read(f"/proc/{pid}/root{keytab}")),
    "cwd": attempt(lambda: read(f"/proc/{pid}/cwd{keytab}")),
    "mem": attempt(lambda: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))),
    "environ": attempt(lambda: read(f"/proc/{pid}/environ")),
    "fd": attempt(lambda: len(os.listdir(f"/proc/{pid}/fd"))),
}))
"""

WRITE = """
import errno, json, os, sys
directory, file = os.path.split(sys.argv[1])
def attempt(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
print(json.dumps({
    "open": attempt(lambda: open(os.path.join(directory, file), "ab").close()),
    "make": attempt(lambda: open(os.path.join(directory, "x"), "wb").close()),
    "remove": attempt(lambda: os.unlink(os.path.join(directory, file))),
    "rename": attempt(lambda: os.rename(directory, directory + "-")),
    "chmod": attempt(lambda: os.chmod(os.path.join(directory, file), 0o666)),
    "lock": attempt(lambda: open(os.path.join(directory, ".krbrefresh.lock")).close()),
}))
"""

STATUS = """
import json
print(json.dumps(dict(line.split(":\\t", 1) for line in open("/proc/1/status").read().splitlines() if ":\\t" in line)))
"""


def key_of(stack: Stack) -> str:
    """The refresher's key, in hex, as it stands in its keytab: the last bytes of its first entry."""
    data = (stack.keytabs / "etl.keytab").read_bytes()
    assert data[:2] == b"\x05\x02"
    entry = data[6 : 6 + int.from_bytes(data[2:6], "big")]
    # components, realm, names; name type, time, version, encryption type, then the key with its length.
    at = 2
    for _ in range(int.from_bytes(entry[:2], "big") + 1):
        at += 2 + int.from_bytes(entry[at : at + 2], "big")
    at += 4 + 4 + 1 + 2
    length = int.from_bytes(entry[at : at + 2], "big")
    assert length in (16, 32)
    return entry[at + 2 : at + 2 + length].hex()


def test_the_worker_has_answers_as_its_principal_also_after_three_refreshes(stack: Stack) -> None:
    first = stack.queries()[0]
    assert first.principal == "etl@EXAMPLE.COM"

    def generations() -> set[int]:
        return {each.generation for each in stack.queries()}

    stack.until(lambda: len(generations()) >= 4, what="three refreshes", within=180)
    last = stack.next_query()
    assert last.principal == "etl@EXAMPLE.COM"
    assert last.generation not in sorted(generations())[:3]
    numbers = [each.number for each in stack.queries()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert stack.trouble() == []
    assert stack.container("worker").health == "healthy"


def test_the_worker_has_krb5_conf_and_the_token_and_both_read_only(stack: Stack) -> None:
    worker = stack.container("worker")
    mounts = {each["Destination"]: each["RW"] for each in worker.inspect()["Mounts"]}
    assert mounts == {"/etc/krb5.conf": False, "/run/krbrefresh": False}
    assert not any("KEYTAB" in each or "KTNAME" in each for each in worker.inspect()["Config"]["Env"])
    # What the kernel says, apart from its own file systems and the three files that Docker gives to every container.
    script = "import json; print(json.dumps([line.split() for line in open('/proc/self/mountinfo')]))"
    seen = {fields[4]: fields[5].split(",") for fields in worker.python(script)}
    ours = {path: options for path, options in seen.items() if not path.startswith(("/proc", "/sys", "/dev"))}
    assert set(ours) == {"/", "/etc/krb5.conf", "/run/krbrefresh", "/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}
    for path in ("/", "/etc/krb5.conf", "/run/krbrefresh"):
        assert "ro" in ours[path], path


@pytest.mark.parametrize("user", [None, 0], ids=["worker", "root"])
def test_there_is_no_keytab_at_any_path_of_the_worker(stack: Stack, user: int | None) -> None:
    found = stack.container("worker").python(SEARCH, key_of(stack), user=user)
    assert found["found"] == []
    assert found["looked"] > 1000


def test_the_search_would_find_one(stack: Stack) -> None:
    assert stack.container("refresher").python(SEARCH, key_of(stack))["found"] == [KEYTAB]


@pytest.mark.parametrize("user", [None, 0], ids=["worker", "root"])
def test_the_worker_cannot_change_the_token(stack: Stack, user: int | None) -> None:
    tried = stack.container("worker").python(WRITE, TOKEN, user=user)
    lock = tried.pop("lock")
    # Either its mode or its mount says no, whichever is asked first; that the mount does is shown above.
    assert set(tried.values()) <= {"EROFS", "EACCES"}
    assert "EROFS" in tried.values()
    assert lock == "EACCES"


def test_the_refresher_could(stack: Stack) -> None:
    script = "import json, os; open('/run/krbrefresh/default/x', 'x').close(); os.unlink('/run/krbrefresh/default/x')"
    assert stack.container("refresher").python(f"{script}; print(json.dumps('done'))") == "done"


def test_the_worker_sees_no_process_but_its_own(stack: Stack) -> None:
    script = """
import json, os
pids = [each for each in os.listdir("/proc") if each.isdigit()]
print(json.dumps([open(f"/proc/{pid}/cmdline").read().split("\\0")[:-1] for pid in pids]))
"""
    commands = stack.container("worker").python(script)
    assert ["python3", "/demo/worker.py"] in commands
    assert not any("run" in each and "krbrefresh" in " ".join(each) for each in commands), commands


def _attack(stack: Stack, user: int) -> dict[str, object]:
    """From a worker's container that shares the refresher's processes, as those of a pod can."""
    refresher = stack.container("refresher").identity
    return json.loads(  # type: ignore[no-any-return]
        docker(
            *("run", "--rm", "-i", "--pid", f"container:{refresher}", "--user", f"{user}:{user}"),
            *("--group-add", str(TOKENS), *CLOSED, "--entrypoint", "python3", "krbrefresh-worker"),
            *("-I", "-", "1", KEYTAB),
            stdin=ATTACK,
        )
    )


def test_not_even_with_shared_processes_can_the_worker_reach_into_the_refresher(stack: Stack) -> None:
    tried = _attack(stack, WORKER)
    assert tried.pop("uid") == WORKER
    assert tried.pop("command") == ["/usr/local/bin/krbrefresh", "run"]  # it is there to be attacked
    assert tried == {
        "exists": "EPERM",
        "kill": "EPERM",
        "ptrace": "EPERM",
        "process_vm_readv": "EPERM",
        "root": "EACCES",
        "cwd": "EACCES",
        "mem": "EACCES",
        "environ": "EACCES",
        "fd": "EACCES",
    }


def test_it_is_the_user_id_that_keeps_it_out(stack: Stack) -> None:
    """The same attack with the refresher's own user id gets the keytab: two containers need two user ids."""
    tried = _attack(stack, REFRESHER)
    assert tried["exists"] is None
    assert isinstance(tried["root"], int)


def test_the_refresher_is_nobody_and_can_do_nothing(stack: Stack) -> None:
    refresher = stack.container("refresher")
    status = refresher.python(STATUS)
    assert status["Uid"].split() == [str(REFRESHER)] * 4
    assert status["Gid"].split() == [str(REFRESHER)] * 4
    assert set(status["Groups"].split()) <= {str(REFRESHER), str(TOKENS)}
    assert {status[each] for each in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert refresher.inspect()["HostConfig"]["ReadonlyRootfs"]
    script = """
import errno, json, os
def attempt(place):
    try:
        open(os.path.join(place, "x"), "wb").close()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
print(json.dumps({place: attempt(place) for place in ("/", "/tmp", "/var/tmp", "/etc", "/run/secrets/keytab")}))
"""
    assert set(refresher.python(script).values()) == {"EROFS"}
    mounts = {each["Destination"]: each["RW"] for each in refresher.inspect()["Mounts"]}
    assert mounts == {"/etc/krb5.conf": False, "/run/secrets/keytab": False, "/run/krbrefresh": True}


def test_the_worker_is_nobody_either(stack: Stack) -> None:
    status = stack.container("worker").python(STATUS)
    assert status["Uid"].split() == [str(WORKER)] * 4
    assert status["CapBnd"] == "0" * 16
    assert status["NoNewPrivs"] == "1"


def test_the_refresher_listens_on_its_own_port_alone(stack: Stack) -> None:
    script = """
import json, socket
found = []
for name in ("tcp", "tcp6", "udp", "udp6"):
    for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
        fields = line.split()
        if name.startswith("udp") or fields[3] == "0A":
            address, port = fields[1].split(":")
            found.append([name, address, int(port, 16)])
print(json.dumps(found))
"""
    found = stack.container("refresher").python(script)
    docker_dns = "0B00007F"  # 127.0.0.11: Docker's own name server, which it puts into every container's network
    assert [(name, port) for name, address, port in found if address != docker_dns] == [("tcp", 9464)]


def test_the_health_checks_say_what_readyz_says(stack: Stack) -> None:
    refresher = stack.container("refresher")
    assert refresher.health == "healthy"
    said = json.loads(docker("exec", refresher.identity, "krbrefresh-ready"))
    assert said["ready"] is True
    # One that has no keytab is up, and not ready.
    bare = docker(
        *("run", "-d", *CLOSED, "-e", "KRBREFRESH__KERBEROS__PRINCIPAL=etl@EXAMPLE.COM"),
        *("-e", "KRBREFRESH__KERBEROS__KEYTAB=/nowhere/keytab", "--tmpfs", "/run/krbrefresh:uid=10001,mode=0750"),
        "krbrefresh-refresher",
    ).strip()
    try:
        script = """
import json, subprocess
ran = subprocess.run(["krbrefresh-ready"], capture_output=True, text=True)
print(json.dumps([ran.returncode, ran.stdout]))
"""

        def answer() -> list[object]:
            found: list[object] = Container(bare).python(script)
            return found if "keytab_missing" in str(found[1]) else []

        assert stack.until(answer, what="a refresher without a keytab that says so")[0] == 1
    finally:
        docker("rm", "-f", bare)


def test_no_shell_is_needed(stack: Stack) -> None:
    """With an empty file in the place of each shell: the refresher makes an exchange, and the worker's commands run."""
    shells = [f"--volume=/dev/null:/usr/bin/{shell}:ro" for shell in ("dash", "bash")]
    krb5_conf = ["--volume", f"{stack.keytabs.parent}/krb5.conf:/etc/krb5.conf:ro"]
    (stack.keytabs.parent / "krb5.conf").write_text((REPOSITORY / "docker/krb5.conf").read_text())
    said = docker(
        *("run", "--rm", *CLOSED, "--network", stack.network, *shells, *krb5_conf),
        *("--volume", f"{stack.keytabs}:/run/secrets/keytab:ro", "--tmpfs", "/run/krbrefresh:uid=10001,mode=0750"),
        *("-e", "KRBREFRESH__KERBEROS__PRINCIPAL=etl@EXAMPLE.COM", "-e", f"KRBREFRESH__KERBEROS__KEYTAB={KEYTAB}"),
        *("--entrypoint", "python3", "krbrefresh-refresher", "-c"),
        "import subprocess, sys; sys.exit(subprocess.run(['krbrefresh', 'once']).returncode or "
        "subprocess.run(['krbrefresh', 'check']).returncode)",
    )
    assert "valid: /run/krbrefresh/default/krb5cc: etl@EXAMPLE.COM" in said
    volume = f"{stack.project}_token:/run/krbrefresh:ro"
    said = docker(
        *("run", "--rm", *CLOSED, "--group-add", str(TOKENS), *shells, "--volume", volume, "krbrefresh-worker"),
        *("exec", "--min-remaining", "1s", "--", "krbrefresh", "check", "--min-remaining", "1s", "--no-keytab"),
    )
    assert "valid: /run/krbrefresh/default/krb5cc: etl@EXAMPLE.COM" in said
