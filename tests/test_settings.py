from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from krbrefresh.errors import SettingsError
from krbrefresh.refresher import settings
from krbrefresh.refresher.policy import Share

BASE = {
    "KRBREFRESH__KERBEROS__PRINCIPAL": "etl@EXAMPLE.COM",
    "KRBREFRESH__KERBEROS__KEYTAB": "/run/secrets/etl.keytab",
}


def load(tmp_path: Path, text: str = "", **environ: str) -> settings.Settings:
    path = tmp_path / "krbrefresh.toml"
    path.write_text(text)
    return settings.load(str(path), environ)


def test_the_environment_alone_is_enough() -> None:
    loaded = settings.load(None, {**BASE, "KRBREFRESH__KERBEROS__CCACHE": "/run/x/krb5cc", "OTHER": "1"})
    (credential,) = loaded.credentials
    assert (credential.name, credential.principal) == ("default", "etl@EXAMPLE.COM")
    assert (credential.keytab, credential.ccache) == ("/run/secrets/etl.keytab", "/run/x/krb5cc")


def test_the_defaults() -> None:
    (credential,) = settings.load(None, BASE).credentials
    assert credential.ccache == "/run/krbrefresh/default/krb5cc"
    assert (credential.mode, credential.group) == (0o440, None)
    assert (credential.lifetime, credential.renewable_lifetime, credential.forwardable) == (36000, 0, False)
    assert credential.expiry_window == Share(fraction=0.33)
    refresher = settings.load(None, BASE).refresher
    assert (refresher.log_format, refresher.exchange_deadline) == ("text", 15)
    assert refresher.name.endswith(f":{os.getpid()}")


def test_every_key_of_the_file(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """
        [refresher]
        name = "edge-1"
        log_format = "json"
        exchange_deadline = 5

        [kerberos]
        principal = "etl@EXAMPLE.COM"
        keytab = "FILE:/k/etl.keytab"
        ccache = "FILE:/run/krbrefresh//etl/./krb5cc"
        mode = "0400"
        group = 4711
        lifetime = "90m"
        renewable_lifetime = "7d"
        forwardable = true
        expiry_window = "20m"
        """,
    )
    assert loaded.refresher == settings.RefresherSettings(name="edge-1", log_format="json", exchange_deadline=5.0)
    assert loaded.credentials == (
        settings.CredentialSettings(
            principal="etl@EXAMPLE.COM",
            keytab="/k/etl.keytab",
            ccache="/run/krbrefresh/etl/krb5cc",
            mode=0o400,
            group=4711,
            lifetime=5400.0,
            renewable_lifetime=7 * 86400.0,
            forwardable=True,
            expiry_window=Share(seconds=1200.0),
        ),
    )


def test_credentials_inherit_from_kerberos_all_but_principal_and_ccache(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        """
        [kerberos]
        principal = "etl@EXAMPLE.COM"
        keytab = "/k/all.keytab"
        lifetime = "1h"

        [credentials.reports]
        principal = "reports@EXAMPLE.COM"

        [credentials.audit]
        principal = "audit@EXAMPLE.COM"
        keytab = "/k/audit.keytab"
        """,
        KRBREFRESH__CREDENTIALS__AUDIT__LIFETIME="2h",
    )
    assert [(c.name, c.principal, c.keytab, c.lifetime, c.ccache) for c in loaded.credentials] == [
        ("default", "etl@EXAMPLE.COM", "/k/all.keytab", 3600, "/run/krbrefresh/default/krb5cc"),
        ("reports", "reports@EXAMPLE.COM", "/k/all.keytab", 3600, "/run/krbrefresh/reports/krb5cc"),
        ("audit", "audit@EXAMPLE.COM", "/k/audit.keytab", 7200, "/run/krbrefresh/audit/krb5cc"),
    ]


def test_the_environment_is_stronger_than_the_file(tmp_path: Path) -> None:
    text = '[kerberos]\nprincipal = "file@X"\nkeytab = "/f"\n'
    loaded = load(tmp_path, text, **BASE, KRBREFRESH__REFRESHER__LOG_FORMAT="json")
    assert loaded.credentials[0].principal == "etl@EXAMPLE.COM"
    assert loaded.refresher.log_format == "json"


def test_the_file_is_named_by_option_then_variable(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f'[kerberos]\nprincipal = "{name}@X"\nkeytab = "/k"\n')
    environ = {"KRBREFRESH_CONFIG": str(tmp_path / "b")}
    assert settings.load(None, environ).credentials[0].principal == "b@X"
    assert settings.load(str(tmp_path / "a"), environ).credentials[0].principal == "a@X"


def test_the_fingerprint_is_of_what_shapes_the_token() -> None:
    (credential,) = settings.load(None, BASE).credentials
    same = settings.load(None, {**BASE, "KRBREFRESH__KERBEROS__EXPIRY_WINDOW": "10%"}).credentials[0]
    other = settings.load(None, {**BASE, "KRBREFRESH__KERBEROS__FORWARDABLE": "yes"}).credentials[0]
    assert re.fullmatch("[0-9a-f]{12}", credential.fingerprint)
    assert credential.fingerprint == same.fingerprint != other.fingerprint


KERBEROS = '[kerberos]\nprincipal = "etl@EXAMPLE.COM"\nkeytab = "/k"\n'

MISTAKES = {
    "[kerbros]\n": "[kerbros]: there is no such section; did you mean kerberos?",
    KERBEROS + 'lifetme = "1h"': "[kerberos] lifetme: there is no such key; did you mean lifetime?",
    "kerberos = 1": "kerberos: it has to be a section",
    KERBEROS + 'lifetime = "10 hours"': "[kerberos] lifetime: '10 hours' is not a duration: write 90s, 10m, 8h, 7d",
    KERBEROS + "lifetime = -1": "[kerberos] lifetime: -1 is not a duration",
    KERBEROS + "lifetime = nan": "[kerberos] lifetime: nan is not a duration",
    KERBEROS + "lifetime = true": "[kerberos] lifetime: True is not a duration",
    KERBEROS + "lifetime = 0": "[kerberos] lifetime: 0 is not a lifetime",
    KERBEROS + 'ccache = "KCM:"': "[kerberos] ccache: KCM:: a token is a FILE ccache; KCM is not read",
    KERBEROS + 'ccache = "KEYRING:persistent:0"': "a token is a FILE ccache; KEYRING is not read",
    KERBEROS + 'ccache = "DIR:/tmp/x"': "a token is a FILE ccache; DIR is not read",
    KERBEROS + 'ccache = "krb5cc"': "[kerberos] ccache: 'krb5cc' is not an absolute path",
    KERBEROS.replace('"/k"', '"MEMORY:x"'): "[kerberos] keytab: 'MEMORY:x': a keytab is a file; MEMORY is not read",
    KERBEROS.replace('"/k"', '"/k\\u0000"'): "[kerberos] keytab: has to be a text",
    KERBEROS.replace('"/k"', '""'): "[kerberos] keytab: has to be a text that is not empty",
    KERBEROS + 'mode = "0644x"': "[kerberos] mode: '0644x' is not a file mode",
    KERBEROS + 'mode = "0660"': "[kerberos] mode: 0660 is refused: the owner has to be able to read",
    KERBEROS + 'mode = "0040"': "[kerberos] mode: 0040 is refused",
    KERBEROS + 'group = "no-such-group-here"': "there is no group 'no-such-group-here' on this machine",
    KERBEROS + "group = -1": "[kerberos] group: -1 is not a group",
    KERBEROS + 'forwardable = "perhaps"': "[kerberos] forwardable: 'perhaps' is not true or false",
    KERBEROS + 'expiry_window = "0%"': "[kerberos] expiry_window: '0%' is not a percentage",
    KERBEROS + 'expiry_window = "third%"': "[kerberos] expiry_window: 'third%' is not a percentage",
    '[refresher]\nlog_format = "xml"\n' + KERBEROS: "[refresher] log_format: 'xml' is neither 'text' nor 'json'",
    KERBEROS.replace("etl@EXAMPLE.COM", "a@b@c"): "[kerberos] principal: principal 'a@b@c' is not of the form",
    KERBEROS + 'lifetime = "0.5s"': "[kerberos] lifetime: '0.5s' is not a lifetime: from a second to 68 years",
    KERBEROS + 'lifetime = "30000d"': "[kerberos] lifetime: '30000d' is not a lifetime",
    KERBEROS + 'renewable_lifetime = "30000d"': "[kerberos] renewable_lifetime: '30000d' is not a lifetime",
    KERBEROS + 'ccache = "/run/x/"': "[kerberos] ccache: '/run/x/' is not the plain path of a file",
    KERBEROS + 'ccache = "/run/x/../y"': "[kerberos] ccache: '/run/x/../y' is not the plain path of a file",
    '[refresher]\nname = "' + 300 * "x" + '"\n': "[refresher] name: has to be printable and of no more than 255",
    '[kerberos]\nccache = "/run/x"\n[credentials.a]\nprincipal = "a@B"\nkeytab = "/k"': (
        "[kerberos] ccache: it has no principal to go with, and is not inherited"
    ),
    '[kerberos]\nkeytab = "/k"\n': "there is no credential to refresh",
    '[kerberos]\nprincipal = "a@B"\n': "[kerberos] keytab: it is not set",
    '[credentials.x]\nkeytab = "/k"\n': "[credentials.x] principal: it is not set",
    "credentials.x = 1": "[credentials.x]: it has to be a section of its own",
    '[credentials."A b"]\nkeytab = "/k"': "a credential's name has lower-case letters",
    KERBEROS + '[credentials.default]\nprincipal = "x@Y"': "[credentials.default]: [kerberos] has a principal",
    KERBEROS + '[credentials.x]\nprincipal = "x@Y"\nccache = "/run/krbrefresh/default/krb5cc"': (
        "the credentials 'default' and 'x' have one ccache"
    ),
    "[kerberos": "it is not TOML: ",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_told_with_its_source(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert MISTAKES[text] in str(caught.value)
    assert "\n" not in re.sub(r"\(at line.*", "", str(caught.value))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("KRBREFRESH__KERBEROS__LIFETIME", "soon", "KRBREFRESH__KERBEROS__LIFETIME: 'soon' is not a duration"),
        (
            "KRBREFRESH__KERBEROS__KEYTABS",
            "/k",
            "KRBREFRESH__KERBEROS__KEYTABS: there is no such key; did you mean key",
        ),
        ("KRBREFRESH__KERBROS__KEYTAB", "/k", "did you mean KRBREFRESH__KERBEROS__?"),
        ("KRBREFRESH__CREDENTIALS__X", "/k", "KRBREFRESH__CREDENTIALS__X: there is no such setting"),
        ("KRBREFRESH__KERBEROS__CCACHE", "API:x", "KRBREFRESH__KERBEROS__CCACHE: API:x: a token is a FILE ccache"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(variable: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        settings.load(None, {**BASE, variable: value})


def test_one_ccache_by_two_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    text = (
        KERBEROS + f'ccache = "{tmp_path}/real/cc"\n[credentials.x]\nprincipal = "x@Y"\nccache = "{tmp_path}/link/cc"'
    )
    with pytest.raises(SettingsError, match="have one ccache"):
        load(tmp_path, text)


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        settings.load(str(tmp_path / "absent"), {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="not TOML"):
        settings.load(str(tmp_path / "binary"), {})


def test_the_reference_is_made_from_the_types_of_today() -> None:
    root = Path(__file__).parent.parent
    made = subprocess.run([sys.executable, root / "tools" / "settings_doc"], capture_output=True, text=True, check=True)
    assert (root / "docs" / "settings.md").read_text() == made.stdout, "run: make docs"


def test_the_example_of_the_reference_is_right(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "settings.md").read_text()
    example = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[-1].replace('group = "workers"\n', "")
    loaded = load(tmp_path, example)
    assert [c.ccache for c in loaded.credentials] == ["/run/krbrefresh/etl/krb5cc", "/run/krbrefresh/reports/krb5cc"]
