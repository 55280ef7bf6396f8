"""Values: what they become in the refresher's settings, and which are refused, in words."""

from __future__ import annotations

import base64
import hashlib
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from krbrefresh.refresher import settings
from tests.chart.helm import RefusedError, Values, template
from tests.chart.values import EXAMPLES, MINIMUM, with_values

KEYTAB = base64.b64encode(b"\x05\x02" + bytes(60)).decode()


def effective(values: Values, tmp_path: Path) -> settings.Settings:
    """What the refresher reads, by its own reader."""
    found = re.search(r"^  krbrefresh.toml: \|\n((?:    .*\n|\n)+)", template(values), re.MULTILINE)
    assert found
    path = tmp_path / "krbrefresh.toml"
    path.write_text(textwrap.dedent(found[1]))
    return settings.load(str(path), {})


def test_the_least_that_a_release_needs(tmp_path: Path) -> None:
    read = effective(MINIMUM, tmp_path)
    assert str(read.refresher.listen) == ":9464"
    (credential,) = read.credentials
    assert (credential.name, credential.principal) == ("default", "etl@EXAMPLE.COM")
    assert credential.keytab == "/run/secrets/keytab/kerberos.keytab"
    assert credential.ccache == "/run/krbrefresh/default/krb5cc"
    assert credential.group == 10000


def test_several_credentials_each_with_its_settings(tmp_path: Path) -> None:
    values = with_values(
        {
            "settings": {"refresher": {"log_format": "json"}, "kerberos": {"lifetime": "8h", "forwardable": True}},
            "signing": {"existingSecret": "signing"},
            "credentials": {
                "reports": {
                    "principal": "reports@EXAMPLE.COM",
                    "keytab": "reports.keytab",
                    "services": ["HTTP/www.example.com@EXAMPLE.COM", 'odd/"name"<&>@EXAMPLE.COM'],
                    "include_tgt": False,
                    "lifetime": 3600,
                },
                "other": {
                    "principal": "{{ .Release.Name }}@EXAMPLE.COM",
                    "keytabSecret": {"name": "other", "key": "k"},
                },
            },
        }
    )
    read = effective(values, tmp_path)
    assert read.refresher.log_format == "json"
    by_name = {each.name: each for each in read.credentials}
    assert set(by_name) == {"default", "reports", "other"}
    assert (by_name["default"].lifetime, by_name["reports"].lifetime) == (28800, 3600)
    assert by_name["reports"].services == ("HTTP/www.example.com@EXAMPLE.COM", 'odd/"name"<&>@EXAMPLE.COM')
    assert not by_name["reports"].include_tgt
    assert by_name["reports"].keytab == "/run/secrets/keytab/reports.keytab"
    assert by_name["other"].keytab == "/run/secrets/keytab-other/k"
    assert by_name["other"].principal == "etl@EXAMPLE.COM"
    assert by_name["other"].forwardable
    assert all(each.signing_key == "/run/secrets/krbrefresh-signing-key/signing.pem" for each in read.credentials)


def test_names_of_airflow_s_chart_mean_the_same(tmp_path: Path) -> None:
    values = with_values(
        {
            "keytab": {"existingSecret": ""},
            "krb5Conf": {"existingConfigMap": ""},
            "ccacheMountPath": "/var/kerberos-ccache",
            "ccacheFileName": "cache",
            "configPath": "/etc/kerberos/krb5.conf",
            "keytabPath": "/etc/keytab/airflow.keytab",
            "keytabBase64Content": "\n".join(textwrap.wrap(KEYTAB, 20)),
            "config": "[libdefaults]\n  default_realm = {{ .Release.Name | upper }}\n",
        }
    )
    (credential,) = effective(values, tmp_path).credentials
    assert credential.ccache == "/var/kerberos-ccache/default/cache"
    assert credential.keytab == "/etc/keytab/airflow.keytab"
    rendered = template(values)
    assert f"airflow.keytab: {KEYTAB}\n" in rendered
    assert "default_realm = ETL\n" in rendered


def test_the_default_credential_has_settings_of_its_own(tmp_path: Path) -> None:
    given = {
        "principal": "etl@EXAMPLE.COM",
        "keytabSecret": {"name": "own", "key": "k"},
        "services": ["HTTP/www.example.com@EXAMPLE.COM"],
        "include_tgt": False,
        "lifetime": "2h",
    }
    values = with_values({"principal": "", "keytab": {"existingSecret": ""}, "credentials": {"default": given}})
    (credential,) = effective(values, tmp_path).credentials
    assert (credential.name, credential.principal, credential.lifetime) == ("default", "etl@EXAMPLE.COM", 7200)
    assert credential.keytab == "/run/secrets/keytab-default/k"
    assert credential.services == ("HTTP/www.example.com@EXAMPLE.COM",)
    assert not credential.include_tgt
    assert credential.ccache == "/run/krbrefresh/default/krb5cc"


def test_nothing_is_started_again_for_each_attempt() -> None:
    """A refresher that is killed forgets how long it wanted to wait, and each attempt may count towards a lockout."""
    job = {"examples": {"image": {"repository": "w"}, "job": {"enabled": True}, "test": {"enabled": False}}}
    native = template(with_values(job))
    (probe,) = re.findall(r"startupProbe:\n((?: {12,}.*\n)+)", native)
    threshold, period = (int(re.findall(rf"{key}: (\d+)", probe)[0]) for key in ("failureThreshold", "periodSeconds"))
    assert threshold * period >= 24 * 3600
    older = template(with_values(job), kube_version="1.28.0")
    assert re.findall(r"args: (.*)", older) == ['["once", "--keep-trying"]', '["run"]']
    assert re.findall(r"backoffLimit: (\d+)", older) == ["1"]


@pytest.mark.parametrize("name", ["krbrefresh-reports", "krbrefresh-reporting"])
def test_ports_that_are_cut_are_told_apart(name: str) -> None:
    job = {"examples": {"image": {"repository": "w"}, "job": {"enabled": True}, "test": {"enabled": False}}}
    (port,) = re.findall(r"- name: (\S+)\n +containerPort", template(with_values(job, {"nameOverride": name})))
    assert len(port) == 15
    assert port == f"krbref-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def test_one_shot_asks_for_its_own_lifetime() -> None:
    assert "KRBREFRESH__KERBEROS__LIFETIME" not in template(with_values(EXAMPLES))
    rendered = template(with_values(EXAMPLES, {"oneShot": {"lifetime": "4h"}}))
    assert re.search(r"KRBREFRESH__KERBEROS__LIFETIME\n +value: 4h\n", rendered)


def test_other_settings_make_new_pods_and_a_rotated_keytab_does_not() -> None:
    def checksums(*more: Values) -> set[str]:
        return set(re.findall(r"checksum/krbrefresh: (\w+)", template(with_values(EXAMPLES, *more))))

    (before,) = checksums()
    assert checksums({"settings": {"kerberos": {"lifetime": "1h"}}}) != {before}
    inline = {"keytab": {"existingSecret": ""}, "keytabBase64Content": KEYTAB}
    assert checksums(inline) == {before}


def test_without_enabled_there_is_nothing() -> None:
    assert "kind:" not in template(with_values(EXAMPLES, {"enabled": False}))


@pytest.mark.parametrize(
    ("more", "handlers"),
    [
        ({}, {"httpGet"}),
        ({"listen": "127.0.0.1:9464"}, {"krbrefresh-ready"}),
        ({"listen": "localhost:1"}, {"krbrefresh-ready"}),
        ({"listen": "[::1]:1"}, {"krbrefresh-ready"}),
        ({"listen": ""}, {'"check"'}),
        ({"settings": {"refresher": {"tls_client_ca": "/ca"}}}, {'"check"'}),
    ],
)
def test_probes_ask_in_a_way_that_works(more: Values, handlers: set[str]) -> None:
    examples = {"examples": {"image": {"repository": "w"}, "job": {"enabled": True}, "test": {"enabled": False}}}
    rendered = template(with_values(examples, more))
    assert {each for each in ("httpGet", "krbrefresh-ready", '"check"') if each in rendered} == handlers


REFUSED: dict[str, tuple[Values, str]] = {
    "frequency": ({"reinitFrequency": 3600}, "expiry_window"),
    "no image": ({"image": {"repository": ""}}, "image.repository"),
    "no principal": ({"principal": ""}, "whose token"),
    "no keytab": ({"keytab": {"existingSecret": ""}}, "where is the keytab"),
    "two keytabs": ({"keytabBase64Content": KEYTAB}, "two sources"),
    "no keytab in base64": (
        {"keytab": {"existingSecret": ""}, "keytabBase64Content": base64.b64encode(b"hello, world").decode()},
        "not a keytab in base64",
    ),
    "the keytab itself": (
        {"keytab": {"existingSecret": ""}, "keytabBase64Content": "\x05\x02"},
        "not a keytab in base64",
    ),
    "a keytab that is not given": (
        {
            "keytab": {"existingSecret": ""},
            "keytabBase64Content": KEYTAB,
            "credentials": {"b": {"principal": "b@X", "keytab": "b.keytab"}},
        },
        "neither keytabBase64Content nor in keytabsBase64Content",
    ),
    "no krb5.conf": ({"krb5Conf": {"existingConfigMap": ""}}, "where is krb5.conf"),
    "two krb5.conf": ({"config": "[libdefaults]"}, "two sources"),
    "krb5.conf for nowhere": ({"configPath": ""}, "images' own krb5.conf"),
    "a keytab in place of /etc": ({"keytabPath": "/etc/airflow.keytab"}, "/etc is one that cannot be replaced"),
    "krb5.conf in place of /etc": ({"configPath": "/etc/krb5.conf"}, "/etc is one that cannot be replaced"),
    "a keytab among the tokens": (
        {"keytabPath": "/run/krbrefresh/keytab/k"},
        "mounted in one place, or one in the other",
    ),
    "a keytab elsewhere": (
        {"credentials": {"b": {"principal": "b@X", "keytab": "/elsewhere/b.keytab"}}},
        "is not where its Secret is mounted",
    ),
    "a keytab in two Secrets": (
        {"credentials": {"b": {"principal": "b@X", "keytab": "b.keytab", "keytabSecret": {"name": "b"}}}},
        "give keytabSecret.key",
    ),
    "one ccache for two": (
        {"credentials": {"b": {"principal": "b@X", "ccache": "/run/krbrefresh/default/krb5cc"}}},
        "have one ccache",
    ),
    "a ccache elsewhere": (
        {"credentials": {"b": {"principal": "b@X", "ccache": "/tmp/b/krb5cc"}}},
        "below ccacheMountPath",
    ),
    "a ccache at the top of the volume": (
        {"credentials": {"b": {"principal": "b@X", "ccache": "/run/krbrefresh/krb5cc"}}},
        "below ccacheMountPath",
    ),
    "default twice": ({"credentials": {"default": {"principal": "b@X"}}}, "the same credential twice"),
    "nothing to renew": (
        {"settings": {"kerberos": {"include_tgt": False, "services": ["HTTP/a@X"], "method": "renew"}}},
        "nothing to renew",
    ),
    "nothing to publish": ({"settings": {"kerberos": {"include_tgt": False}}}, "nothing to publish"),
    "two armours": ({"settings": {"kerberos": {"fast_keytab": "a", "fast_ccache": "/b"}}}, "keep one of them"),
    "a public key and no signature": ({"signing": {"publicKey": "PEM"}}, "no token would be signed"),
    "two public keys": (
        {"signing": {"existingSecret": "s", "publicKey": "PEM", "publicKeyConfigMap": "c"}},
        "two sources",
    ),
    "a private key for all": (
        {"signing": {"existingSecret": "s", "publicKey": "-----BEGIN PRIVATE KEY-----"}},
        "is a private key",
    ),
    "a user for the worker elsewhere": (
        {"securityContexts": {"worker": {"runAsUser": 10001}}},
        "securityContexts.worker.runAsUser would go before users",
    ),
    "a group of tokens elsewhere": (
        {"securityContexts": {"pod": {"fsGroup": 1}}},
        "securityContexts.pod.fsGroup would go before users",
    ),
    "a user for the refresher elsewhere": (
        {"securityContexts": {"refresher": {"runAsGroup": 1}}},
        "set users.refresher",
    ),
    "a worker that has the node": ({"securityContexts": {"worker": {"privileged": True}}}, "every keytab of the node"),
    "one user": ({"users": {"worker": 10001}}, "users.worker and users.refresher are one"),
    "httpGet on loopback": ({"listen": "127.0.0.1:9464", "probes": {"handler": "httpGet"}}, "from outside of the pod"),
    "httpGet and nobody there": ({"listen": "", "probes": {"handler": "httpGet"}}, "nobody to ask"),
    "exec with a client's certificate": (
        {"probes": {"handler": "exec"}, "settings": {"refresher": {"tls_client_ca": "/ca"}}},
        "has no certificate",
    ),
    "one check for two": ({"listen": "", "credentials": {"b": {"principal": "b@X"}}}, "one token alone"),
    "half of TLS": ({"settings": {"refresher": {"tls_certificate": "/c"}}}, "go together"),
    "metrics for nobody": ({"listen": "127.0.0.1:9464", "podMonitor": {"enabled": True}}, "nobody outside of the pod"),
    "alerts of nobody": ({"listen": "", "prometheusRule": {"enabled": True}}, "no alert could see this release"),
    "an alert that is not there": (
        {"prometheusRule": {"enabled": True, "exclude": ["KrbrefreshDwn"]}},
        'there is no alert "KrbrefreshDwn", but KrbrefreshTokenExpired, ',
    ),
    "metrics without a certificate": (
        {"podMonitor": {"enabled": True}, "settings": {"refresher": {"tls_client_ca": "/ca"}}},
        "set podMonitor.tlsConfig",
    ),
    "examples without an image": ({"examples": {"job": {"enabled": True}}}, "examples.image.repository"),
    "no such credential": (
        {"examples": {"credential": "b", "image": {"repository": "w"}, "job": {"enabled": True}}},
        "there is no credential",
    ),
    # the schema's
    "a slip": ({"keytabPth": "/a/b"}, "keytabPth"),
    "a slip in a setting": ({"settings": {"kerberos": {"lifetme": "1h"}}}, "lifetme"),
    "a setting of the chart's": ({"settings": {"kerberos": {"ccache": "/a"}}}, "ccache"),
    "no duration": ({"settings": {"kerberos": {"lifetime": "ten hours"}}}, "/settings/kerberos/lifetime"),
    "root": ({"users": {"refresher": 0}}, "/users/refresher"),
    "no digest": ({"image": {"digest": "latest"}}, "/image/digest"),
    "a mode": ({"sidecar": {"mode": "sidecar"}}, "/sidecar/mode"),
    "a relative path": ({"keytabPath": "etc/k"}, "/keytabPath"),
    "a section that was taken away": ({"keytab": None}, "missing property 'keytab'"),
    "a section below that was taken away": ({"settings": {"kerberos": None}}, "missing property 'kerberos'"),
    "a value that was taken away": ({"listen": None}, "missing property 'listen'"),
    "a path upwards": ({"ccacheMountPath": "/run/../etc"}, "/ccacheMountPath"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_words(name: str) -> None:
    more, words = REFUSED[name]
    with pytest.raises(RefusedError, match=re.escape(words)):
        template(with_values(more))


def test_a_native_sidecar_needs_a_cluster_that_knows_it() -> None:
    native: Any = {"sidecar": {"mode": "native"}}
    template(with_values(EXAMPLES, native), kube_version="1.29.0")
    with pytest.raises(RefusedError, match=r"needs Kubernetes 1\.29, and this is v1\.28\.9"):
        template(with_values(EXAMPLES, native), kube_version="1.28.9")


@pytest.mark.parametrize(("version", "native"), [("1.28.9", False), ("1.29.0", True), ("1.31.2-gke.100", True)])
def test_the_sidecar_is_native_where_it_can_be(version: str, native: bool) -> None:
    rendered = template(with_values(EXAMPLES), kube_version=version)
    assert ("restartPolicy: Always # what makes it a sidecar" in rendered) is native
    assert ("KRBREFRESH__REFRESHER__STOP_PATH" in rendered) is not native
    assert (": >/run/krbrefresh-stop/done" in rendered) is not native
