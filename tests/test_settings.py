from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from krbrefresh.errors import SettingsError
from krbrefresh.refresher import explain, settings, sources
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


# --- sources and their order ---


def test_every_source_in_its_order(tmp_path: Path) -> None:
    """Airflow's variables, then the file, then the environment: the later is the stronger, key by key."""
    airflow = {"AIRFLOW__KERBEROS__KEYTAB": "/airflow", "AIRFLOW__KERBEROS__CCACHE": "/run/airflow/krb5cc"}
    airflow["AIRFLOW__KERBEROS__PRINCIPAL"] = "airflow@X"
    path = tmp_path / "c.toml"
    path.write_text('[kerberos]\nprincipal = "file@X"\nkeytab = "/file"\n')
    environ = {**airflow, "KRBREFRESH__KERBEROS__PRINCIPAL": "environment@X"}
    (credential,) = settings.load(str(path), environ, airflow=True).credentials
    assert (credential.principal, credential.keytab, credential.ccache) == (
        "environment@X",
        "/file",
        "/run/airflow/krb5cc",
    )
    (credential,) = settings.load(str(path), environ).credentials
    assert credential.ccache == "/run/krbrefresh/default/krb5cc"  # without --airflow they are not read
    path.write_text("")
    (credential,) = settings.load(str(path), airflow, airflow=True).credentials
    assert (credential.principal, credential.keytab) == ("airflow@X", "/airflow")


def test_airflows_keys_that_mean_something_else_are_passed_over() -> None:
    environ = {
        "AIRFLOW__KERBEROS__PRINCIPAL": "a@X",
        "AIRFLOW__KERBEROS__KEYTAB": "/k",
        "AIRFLOW__KERBEROS__FORWARDABLE": "True",
        "AIRFLOW__KERBEROS__REINIT_FREQUENCY": "3600",
        "AIRFLOW__KERBEROS__KINIT_PATH": "kinit",
        "AIRFLOW__CORE__SECURITY": "kerberos",
    }
    (credential,) = settings.load(None, environ, airflow=True).credentials
    assert credential.forwardable
    with pytest.raises(SettingsError, match="AIRFLOW__KERBEROS__FORWARDABLE: 'perhaps' is not true or false"):
        settings.load(None, {**environ, "AIRFLOW__KERBEROS__FORWARDABLE": "perhaps"}, airflow=True)


def test_the_principal_from_a_file_and_from_a_command(tmp_path: Path) -> None:
    keytab = {"KRBREFRESH__KERBEROS__KEYTAB": "/k"}
    (tmp_path / "principal").write_text("file@X\n")
    from_file = {**keytab, "KRBREFRESH__KERBEROS__PRINCIPAL_FILE": str(tmp_path / "principal")}
    assert settings.load(None, from_file).credentials[0].principal == "file@X"
    from_command = {**keytab, "KRBREFRESH__KERBEROS__PRINCIPAL_CMD": "printf '%s@%s' 'from command' X"}
    assert settings.load(None, from_command).credentials[0].principal == "from command@X"
    # Stronger than the file of settings, as any variable is.
    path = tmp_path / "c.toml"
    path.write_text('[kerberos]\nprincipal = "weak@X"\n')
    assert settings.load(str(path), from_command).credentials[0].principal == "from command@X"
    # No shell: a redirection is an argument.
    (tmp_path / "canary").touch()
    shell = {**keytab, "KRBREFRESH__KERBEROS__PRINCIPAL_CMD": f"echo a@X > {tmp_path}/canary"}
    with pytest.raises(SettingsError):
        settings.load(None, shell)
    assert (tmp_path / "canary").read_text() == ""


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PRINCIPAL_FILE": "/absent"}, "KRBREFRESH__KERBEROS__PRINCIPAL_FILE: /absent: No such file or directory"),
        ({"PRINCIPAL_CMD": "false"}, "KRBREFRESH__KERBEROS__PRINCIPAL_CMD: false: it ended with status 1"),
        ({"PRINCIPAL_CMD": "no-such-command"}, "no-such-command: No such file or directory"),
        ({"PRINCIPAL_CMD": "'open"}, "'open: No closing quotation"),
        ({"PRINCIPAL_CMD": ""}, "there is no command"),
        ({"PRINCIPAL_CMD": "true"}, "KRBREFRESH__KERBEROS__PRINCIPAL_CMD: has to be a text that is not empty"),
        ({"PRINCIPAL": "a@X", "PRINCIPAL_CMD": "true"}, "PRINCIPAL and KRBREFRESH__KERBEROS__PRINCIPAL_CMD: both are"),
        ({"KEYTAB_FILE": "/x"}, "KRBREFRESH__KERBEROS__KEYTAB_FILE: there is no such key; did you mean"),
        ({"PRINCIPAL": "a@X", "CCACHE_CMD": "/x"}, "KRBREFRESH__KERBEROS__CCACHE_CMD: there is no such key"),
    ],
)
def test_mistakes_with_files_and_commands(environ: dict[str, str], words: str) -> None:
    named = {f"KRBREFRESH__KERBEROS__{key}": value for key, value in environ.items()}
    with pytest.raises(SettingsError, match=re.escape(words)):
        settings.load(None, {"KRBREFRESH__KERBEROS__KEYTAB": "/k", **named})


def test_a_command_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "COMMAND_WITHIN", 0.2)
    environ = {"KRBREFRESH__KERBEROS__KEYTAB": "/k", "KRBREFRESH__KERBEROS__PRINCIPAL_CMD": "sleep 60"}
    with pytest.raises(SettingsError, match=r"timed out after 0\.2 seconds"):
        settings.load(None, environ)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("hive/_HOST@X", "hive/{host}@X"),
        ("hive/_HOST", "hive/{host}"),
        ("a/_HOST/b@X", "a/{host}/b@X"),
        ("_HOST/a@X", "_HOST/a@X"),
        ("hive/x_HOST@X", "hive/x_HOST@X"),
    ],
)
def test_host_in_a_principal(given: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "Node1.Example.COM")
    environ = {**BASE, "KRBREFRESH__KERBEROS__PRINCIPAL": given}
    assert settings.load(None, environ).credentials[0].principal == meant.format(host="node1.example.com")


def test_the_keytab_of_systemds_credentials_is_the_default() -> None:
    environ = {"KRBREFRESH__KERBEROS__PRINCIPAL": "a@X", "CREDENTIALS_DIRECTORY": "/run/credentials/krbrefresh.service"}
    assert settings.load(None, environ).credentials[0].keytab == "/run/credentials/krbrefresh.service/keytab"
    assert settings.load(None, {**environ, **BASE}).credentials[0].keytab == "/run/secrets/etl.keytab"


def test_renewal_asks_for_a_renewable_ticket(tmp_path: Path) -> None:
    def lifetime(text: str) -> float:
        return load(tmp_path, KERBEROS + text).credentials[0].renewable_lifetime

    assert lifetime("") == 0
    assert lifetime('method = "renew"') == 7 * 86400
    assert lifetime('method = "renew"\nrenewable_lifetime = "2d"') == 2 * 86400


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('method = "renew"\nrenewable_lifetime = 0', '[kerberos] renewable_lifetime: method = "renew" needs a ticket'),
        ('method = "kinit"', "[kerberos] method: 'kinit' is neither 'keytab' nor 'renew'"),
        ('fast_keytab = "/h"\nfast_ccache = "/c"', "[kerberos] fast_ccache: there is a fast_keytab, too"),
        ('fast_principal = "h@X"', "[kerberos] fast_principal: there is no fast_keytab to take it from"),
        ('addressless = "no!"', "[kerberos] addressless: 'no!' is not true or false"),
        ('[refresher]\ntls_certificate = "/c"', "[refresher] tls_certificate: tls_certificate and tls_key need"),
        ('[refresher]\ntls_key = "/c"', "[refresher] tls_key: tls_certificate and tls_key need each other"),
        ('[refresher]\ntls_client_ca = "/c"', "[refresher] tls_client_ca: without tls_certificate and tls_key"),
        ('[refresher]\nlisten = "nonsense"', "[refresher] listen: "),
        ('[refresher]\nlisten = "127.0.0.1:99999"', "[refresher] listen: "),
        ('[refresher]\nstop_path = "relative"', "[refresher] stop_path: 'relative' is not an absolute path"),
    ],
)
def test_keys_that_do_not_go_together(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        load(tmp_path, KERBEROS + text)


def test_the_http_server_is_on_loopback_unless_it_is_turned_off(tmp_path: Path) -> None:
    listen = settings.load(None, BASE).refresher.listen
    assert listen is not None
    assert (listen.host, listen.port, listen.certificate) == ("127.0.0.1", 9464, None)
    assert load(tmp_path, KERBEROS + '[refresher]\nlisten = ""\nstop_path = ""').refresher.listen is None
    tls = 'tls_certificate = "/c.pem"\ntls_key = "/k.pem"\ntls_client_ca = "/ca.pem"'
    listen = load(tmp_path, KERBEROS + f'[refresher]\nlisten = "[::1]:9000"\n{tls}').refresher.listen
    assert listen is not None
    assert (listen.host, listen.port) == ("::1", 9000)
    assert (listen.certificate, listen.key, listen.client_ca) == ("/c.pem", "/k.pem", "/ca.pem")


def test_the_fingerprint_does_not_change_with_options_that_have_their_defaults() -> None:
    """A later version with more options must not outdate every token: a restart of a thousand would be a storm."""
    credential = settings.CredentialSettings(principal="etl@EXAMPLE.COM", keytab="/k", ccache="/c")
    assert credential.fingerprint == "41ae4b3b6409"
    shaping = {"proxiable": True, "canonicalize": True, "addressless": False, "renewable_lifetime": 60.0}
    fingerprints = {dataclasses.replace(credential, **{key: value}).fingerprint for key, value in shaping.items()}
    assert len(fingerprints | {credential.fingerprint}) == 5
    same = dataclasses.replace(credential, keytab="/other", method="renew", fast_keytab="/h", group=1)
    assert same.fingerprint == credential.fingerprint


# --- krbrefresh config ---


def test_config_prints_what_is_in_effect_and_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        '[refresher]\nname = "edge"\n[kerberos]\nkeytab = "/k"\ngroup = 7\nforwardable = true\n'
        '[credentials.etl]\nprincipal = "etl@X"\n[credentials.renewed]\nprincipal = "r@X"\nmethod = "renew"\n'
    )
    environ = {"KRBREFRESH__CREDENTIALS__ETL__LIFETIME": "2h", "KRBREFRESH__REFRESHER__LISTEN": ""}
    loaded = settings.load(str(path), environ)
    text = explain.as_toml(loaded)
    lines = text.splitlines()
    assert f'name = "edge"  # {path}: [refresher] name' in lines
    assert 'listen = ""  # KRBREFRESH__REFRESHER__LISTEN' in lines
    assert 'log_format = "text"  # default' in lines
    assert f'keytab = "/k"  # {path}: [kerberos] keytab' in lines
    assert 'lifetime = "2h"  # KRBREFRESH__CREDENTIALS__ETL__LIFETIME' in lines
    assert 'ccache = "/run/krbrefresh/etl/krb5cc"  # default' in lines
    assert 'renewable_lifetime = "7d"  # default with method = "renew"' in lines
    assert "# tls_key is not set" in lines
    # It is a file of settings itself, with the same effect.
    again = tmp_path / "again.toml"
    again.write_text(text)
    assert settings.load(str(again), {}) == loaded
    assert json.loads(explain.as_json(loaded))["credentials.etl"]["forwardable"] == {
        "value": True,
        "source": f"{path}: [kerberos] forwardable",
    }


def test_the_command_config(tmp_path: Path) -> None:
    def config(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "krbrefresh", "config", *arguments], env=environ, capture_output=True, text=True
        )

    ran = config(**BASE)
    assert ran.returncode == 0
    assert ran.stdout.startswith("[refresher]\nname = ")
    assert '\n[kerberos]\nprincipal = "etl@EXAMPLE.COM"  # KRBREFRESH__KERBEROS__PRINCIPAL\n' in ran.stdout
    assert json.loads(config("--json", **BASE).stdout)["kerberos"]["mode"] == {"value": "0440", "source": "default"}
    ran = config("--airflow", AIRFLOW__KERBEROS__PRINCIPAL="a@X", AIRFLOW__KERBEROS__KEYTAB="/k")
    assert 'principal = "a@X"  # AIRFLOW__KERBEROS__PRINCIPAL' in ran.stdout
    ran = config()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("settings: there is no credential to refresh\n  set principal and keytab")


@pytest.mark.parametrize(
    ("principal", "realm"),
    [
        ("a@R", "R"),
        ("a/b@R.S", "R.S"),
        ("a", ""),
        (r"a\@suffix", ""),
        (r"a\@suffix@R", "R"),
        (r"a\\@R", "R"),
    ],
)
def test_the_realm_of_a_principal_is_what_stands_behind_an_at_that_is_none_of_its_name(
    principal: str, realm: str
) -> None:
    assert settings.CredentialSettings(principal=principal, keytab="/k", ccache="/c").realm == realm
