"""Samba's domain controller: this system's, and those of other releases."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.ad import PASSWORD, PYTHON, Domain, active_directory
from tests.interop.kdcs import CAP, HOURS, CannotHoldError, Kdc, filtered
from tests.interop.roots import Root, installed_version

THRESHOLD = 3  # bad attempts
SUFFIX = "corp.example"  # of user principal names that are not the realm's
_AES = {"aes128-cts-hmac-sha1-96": (17, 8), "aes256-cts-hmac-sha1-96": (18, 16)}  # number; bit in the directory
_FORBIDDEN = '"/\\[]:;|=,+*?<>@'  # in a sAMAccountName ([MS-SAMR] 3.1.1.6)
_LEVEL = "ad dc functional level = 2016"  # from which on there are authentication policies
_OPTIONS = (
    "kdc supported enctypes = " + " ".join(_AES),
    f"kdc:user ticket lifetime = {CAP / HOURS:.0f}",
)


# Runs samba-tool, and scripts for `python -c`, with Samba's modules loaded once: loading them takes most of a command's
# time. Each runs in a process of its own all the same. A line of JSON with the command, a line with status and output.
_SERVER = """
import json, os, runpy, sys, tempfile, traceback
import samba.netcmd.computer, samba.netcmd.domain, samba.netcmd.user, samba.samdb
for line in sys.stdin:
    command = json.loads(line)
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            status = 0
            try:
                if command[0] == "samba-tool":
                    sys.argv = command
                    runpy.run_path("/usr/bin/samba-tool", run_name="__main__")
                else:
                    sys.argv = command[3:]
                    sys.argv.insert(0, "-c")
                    exec(command[2], {"__name__": "__main__"})
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(bool(end.code))
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        print(json.dumps([status, output.read().decode()]), flush=True)
"""


class ManyCommands(Domain):
    """A domain to which a case gives many commands, and whose clock nobody moves."""

    _server: subprocess.Popen[str] | None = None

    def __init__(self, place: Path, ports: dict[str, int], **more: Any) -> None:
        super().__init__(place, ports, **more)
        if self._programs:  # a Samba that is newer than this system's
            self.provisioning = ("--function-level=2016", f"--option={_LEVEL}")

    @property
    def _time(self) -> dict[str, str]:
        return {}

    def _run(self, *command: str) -> str:
        if self._server is None:
            self._server = subprocess.Popen(
                [*self._programs, PYTHON, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        status, output = json.loads(self._server.stdout.readline())
        assert status == 0, f"{command}: {output}"
        return str(output)

    def stop(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.communicate()
        super().stop()


class ActiveDirectory(Kdc):
    """A domain. With an `enctype`, its accounts and clients have no other."""

    family = "ad"

    def __init__(self, root: Root | None, domain: Domain, enctype: str | None = None) -> None:
        self.domain = domain
        self.realm = domain.realm
        self.version = root.version("samba") if root else installed_version("samba")
        self._enctype = enctype
        self._names: dict[str, str] = {}  # principal: account
        self._krb5_conf = domain.krb5_conf
        if enctype:
            self._web_name = f"HTTP/{enctype}.test"  # in the one directory
            self._krb5_conf = domain.place / f"krb5-{enctype}.conf"
            text = domain.krb5_conf.read_text()
            self._krb5_conf.write_text(text.replace("[realms]", f"permitted_enctypes = {enctype}\n[realms]"))

    @property
    def krb5_conf(self) -> Path:
        return self._krb5_conf

    @property
    def env(self) -> dict[str, str]:
        return {**self.domain.env, "KRB5_CONFIG": str(self.krb5_conf)}

    @property
    def wrapper(self) -> tuple[str, ...]:
        return self.domain.wrapper

    def unmet(self, name: str) -> None:
        if any(letter in name for letter in _FORBIDDEN):
            raise CannotHoldError(f"an account's name has none of `{_FORBIDDEN}`")

    def _created(self, name: str, principal: str) -> str:
        self._names[principal] = name
        bits = _AES[self._enctype][1] if self._enctype else sum(bit for _, bit in _AES.values())
        self.domain.modify(name, **{"msDS-SupportedEncryptionTypes": str(bits)})
        return principal

    def account(self, name: str) -> str:
        """A user. One whose name has an instance is a service account with that user principal name, as those are made
        for whom `kinit` has to work with the name of a service."""
        if "/" in name:
            short = self._short(name)
            self.domain.user(short)
            full = f"{name}@{self.realm}"
            self.domain.modify(short, userPrincipalName=full, servicePrincipalName=name)
            return self._created(short, full)
        self.unmet(name)
        return self._created(name, self.domain.user(name))

    def computer(self, name: str) -> str:
        self.domain.tool("computer", "create", name)
        account = f"{name.upper()}$"
        self.domain.tool("user", "setpassword", account, f"--newpassword={PASSWORD}{name}")
        return self._created(account, f"{account}@{self.realm}")

    def service(self, name: str) -> str:
        """A service account with a service principal name, and no other name."""
        short = self._short(name)
        self.domain.user(short)
        self.domain.modify(short, servicePrincipalName=name)
        return self._created(short, f"{name}@{self.realm}")

    def host(self, name: str) -> str:
        return self.computer(name[:15])  # as long as a NetBIOS name may be

    def owner(self, principal: str) -> str:
        """The account of a service principal name, by its own name."""
        return f"{self._names[principal]}@{self.realm}"

    def alias(self, principal: str, name: str) -> str:
        full = f"{name}@{self.realm}"
        self.domain.modify(self._names[principal], userPrincipalName=full)
        return full

    def trust(self, other: Kdc, password: str) -> None:
        raise CannotHoldError("Samba makes trusts with domains of Active Directory alone, and none with an MIT realm")

    def _short(self, name: str) -> str:
        return f"svc{len(self._names)}" + (f"-{self._enctype[:6]}" if self._enctype else "")

    def keytab(self, path: Path, principal: str) -> Path:
        account = self._names.get(principal)
        if (
            account
            and "/" in principal
            and not self.domain.attribute(account, "userPrincipalName").startswith(principal.partition("@")[0])
        ):
            return self._service_keytab(path, principal, account)
        self.domain.keytab(path, principal)
        return self._restricted(path)

    def _service_keytab(self, path: Path, principal: str, account: str) -> Path:
        """Samba exports by a service principal name only what is a user principal name, too."""
        self.domain.modify(account, userPrincipalName=principal)
        self.domain.keytab(path, principal)
        self.domain.modify(account, userPrincipalName=f"{account}@{self.realm}")
        return self._restricted(path)

    def _restricted(self, path: Path) -> Path:
        return filtered(path, path, _AES[self._enctype][0]) if self._enctype else path

    def rekey(self, principal: str) -> None:
        name = self._names[principal]
        self.domain.tool("user", "setpassword", name, f"--newpassword={PASSWORD}2{name}")

    def delete(self, principal: str) -> None:
        self.domain.tool("user", "delete", self._names[principal])

    def disable(self, principal: str) -> None:
        self.domain.tool("user", "disable", self._names[principal])

    def expire(self, principal: str) -> None:
        self.domain.tool("user", "setexpiry", self._names[principal], "--days=0")

    def expire_password(self, principal: str) -> None:
        self.domain.modify(self._names[principal], pwdLastSet="0")  # the key stays

    def lockout(self, principal: str) -> int:
        self.domain.tool(
            "domain", "passwordsettings", "set", f"--account-lockout-threshold={THRESHOLD}",
            "--account-lockout-duration=30", "--reset-account-lockout-after=30",
        )  # fmt: skip
        return THRESHOLD

    def enterprise(self, principal: str) -> tuple[str, str]:
        name = f"first.last@{SUFFIX}"
        self.domain.modify(self._names[principal], userPrincipalName=name)
        return name.replace("@", "\\@") + f"@{self.realm}", principal

    without_fast = ("policy_refused", None)

    @contextmanager
    def demanding_fast(self) -> Iterator[Kdc]:
        if not self.domain.provisioning:
            raise CannotHoldError("authentication policies, by which a domain demands FAST, are Samba's from 4.20 on")
        yield self

    def demand_fast(self, principal: str) -> None:
        """By an authentication policy: the account may be used from the domain's computers alone, as armour shows."""
        name = self._names[principal]
        computers = self.domain.attribute(name, "objectSid").rpartition("-")[0] + "-515"
        rule = f"O:SYG:SYD:(XA;OICI;CR;;;WD;(Member_of {{SID({computers})}}))"
        self.domain.tool(
            "domain", "auth", "policy", "create", "--name=armoured", "--enforce",
            f"--user-allowed-to-authenticate-from={rule}",
        )  # fmt: skip
        self.domain.tool("user", "auth", "policy", "assign", name, "--policy=armoured")

    @contextmanager
    def restricted(self, enctype: str) -> Iterator[Kdc]:
        if enctype not in _AES:
            raise CannotHoldError("Active Directory has no SHA-2 enctypes ([MS-KILE] 3.1.5.2)")
        yield ActiveDirectory(None, self.domain, enctype)


@contextmanager
def samba(root: Root | None) -> Iterator[ActiveDirectory]:
    """A domain that has AES alone."""
    newer = (_LEVEL,) if root else ()
    with active_directory(ManyCommands, programs=root.enter if root else (), options=(*_OPTIONS, *newer)) as domain:
        yield ActiveDirectory(root, domain)
