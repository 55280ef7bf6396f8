"""A throwaway MIT realm on loopback, for the demo and for the tests. Needs k5test and Debian's krb5-kdc."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import warnings
from collections.abc import Iterator
from typing import Any

from ..errors import KrbrefreshError, NotInstalledError

REALM = "DEMO.KRBREFRESH"


def free_portbase() -> int:
    """The first of ten ports in a row that nobody on loopback listens on; k5test numbers its servers from there."""
    for _ in range(200):
        # Below the ports that the kernel gives to clients; a port is no secret.
        base = random.randrange(20000, 32000, 10)  # noqa: S311  # nosec B311
        with contextlib.ExitStack() as sockets:
            try:
                for port in range(base, base + 10):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        sockets.enter_context(socket.socket(socket.AF_INET, kind)).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise OSError("no ten free ports in a row were found on 127.0.0.1")


@contextlib.contextmanager
def throwaway_realm(
    realm: str = REALM,
    *,
    kdc_conf: dict[str, Any] | None = None,
    libdefaults: dict[str, str] | None = None,
    plugins: dict[str, Any] | None = None,
) -> Iterator[Any]:
    """A running k5test MITRealm that listens on 127.0.0.1 alone; gone, with all its files, at the end.

    `kdc_conf` is added to the realm's section of kdc.conf, `libdefaults` and `plugins` to krb5.conf. Its directory
    can be passed through by every user, since its krb5.conf is for all; the database and the keytabs in it are root's
    or its maker's.
    Raises NotInstalledError where k5test or the KDC is missing, KrbrefreshError where it does not start.
    """
    try:
        with warnings.catch_warnings():  # its source has an escape that newer compilers complain of
            warnings.simplefilter("ignore")
            from k5test.realm import MITRealm
    except ImportError:
        raise NotInstalledError(
            "the package k5test is not installed here", hint="install krbrefresh with its extra [demo]"
        ) from None
    path = os.environ.get("PATH", os.defpath)
    if "/usr/sbin" not in path.split(os.pathsep):  # where Debian has krb5kdc, and not every user's PATH
        os.environ["PATH"] = path + os.pathsep + "/usr/sbin"
    for program in ("krb5kdc", "kadmin.local", "kdb5_util", "kinit"):
        if shutil.which(program) is None:
            raise NotInstalledError(
                f"{program} is not installed here", hint="apt-get install krb5-kdc krb5-admin-server krb5-user"
            )
    base = free_portbase()
    kdc = MITRealm(
        realm=realm,
        portbase=base,
        krb5_conf={
            "libdefaults": {"rdns": "false", "dns_canonicalize_hostname": "false", **(libdefaults or {})},
            "realms": {"$realm": {"kdc": "127.0.0.1:$port0", "admin_server": "127.0.0.1:$port1"}},
            "domain_realm": {"localhost": "$realm"},
            "plugins": plugins or {},
        },
        kdc_conf={
            "realms": {
                "$realm": {"kdc_listen": "127.0.0.1:$port0", "kdc_tcp_listen": "127.0.0.1:$port0", **(kdc_conf or {})}
            }
        },
        create_kdb=False,  # only the directory and its configuration: from here on stop() removes what there is
        create_user=False,
        create_host=False,
        get_creds=False,
    )
    try:
        os.chmod(kdc.tmpdir, 0o711)  # see above  # noqa: S103  # nosec B103
        os.chmod(kdc.env["KRB5_CONFIG"], 0o644)  # for all, whatever the umask
        kdc.env["USER"] = "admin"  # kadmin.local wants a name, and in a container not every uid has one
        try:
            kdc.create_kdb()
            kdc.start_kdc()
        except Exception as error:  # k5test raises nothing more exact
            raise KrbrefreshError(
                f"the throwaway realm does not start: {error}",
                hint=f"try again; the ports {base} to {base + 9} were free",
            ) from error
        yield kdc
    finally:
        kdc.stop()
