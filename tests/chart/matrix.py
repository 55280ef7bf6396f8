"""What is rendered: every option alone under every version of Kubernetes, those that touch each other in pairs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.chart.helm import Values
from tests.chart.values import EXAMPLES, with_values

KEYTAB = "BQIAAABKAAEAC0VYQU1QTEUuQ09NAANldGwAAAABAAAAAAEAEgAgXl5eXl5eXl5eXl5eXl5eXg=="  # of no account
PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
"""
CONF = '[libdefaults]\n    default_realm = {{ .Values.principal | splitList "@" | last }}\n'
DIGEST = "sha256:" + "0123456789abcdef" * 4
OLDEST = "1.25"  # Chart.yaml's, and the oldest whose schemas are published for us
BEFORE_NATIVE = ("1.25", "1.26", "1.27", "1.28")


@dataclass(frozen=True)
class Option:
    """A thing that a user may want."""

    values: Values
    private: tuple[str, ...] = ()  # Secrets that workers must not see
    key_material: tuple[str, ...] = ()
    release: str = "etl"
    objects: tuple[str, ...] = ()  # kinds that it adds
    waives: tuple[str, ...] = ()  # policies that it breaks because it is asked to


OPTIONS: dict[str, Option] = {
    "nothing": Option({}),
    "native": Option({"sidecar": {"mode": "native"}}),
    "stop file": Option({"sidecar": {"mode": "stopFile", "stopMountPath": "/run/stop"}}),
    "three credentials": Option(
        {
            "credentials": {
                "reports": {"principal": "reports@EXAMPLE.COM", "services": ["HTTP/reports.example.com@EXAMPLE.COM"]},
                "dw": {"principal": "dw@EXAMPLE.COM", "keytab": "dw.keytab", "lifetime": "2h"},
            },
            "examples": {"credential": "reports"},
        }
    ),
    "no default credential": Option(
        {"principal": "", "credentials": {"dw": {"principal": "dw@EXAMPLE.COM"}}},
    ),
    "a Secret for each credential": Option(
        {
            "credentials": {
                "a": {"principal": "a@EXAMPLE.COM", "keytabSecret": {"name": "keytab-a", "key": "a.keytab"}},
                "b": {"principal": "b@EXAMPLE.COM", "keytabSecret": {"name": "{{ .Release.Name }}-b"}},
            },
        },
        private=("keytab-a", "etl-b"),
    ),
    "settings of the default credential": Option(
        {
            "principal": "",
            "credentials": {
                "default": {
                    "principal": "etl@EXAMPLE.COM",
                    "keytabSecret": {"name": "keytab-a"},
                    "services": ["postgres/db.example.com@EXAMPLE.COM"],
                    "include_tgt": False,
                    "lifetime": "2h",
                },
                "other": {"principal": "other@EXAMPLE.COM"},
            },
        },
        private=("keytab-a",),
    ),
    "no shared Secret": Option(
        {
            "principal": "",
            "keytab": {"existingSecret": ""},
            "credentials": {"a": {"principal": "a@EXAMPLE.COM", "keytabSecret": {"name": "keytab-a"}}},
        },
        private=("keytab-a",),
    ),
    "keytab in the values": Option(
        {"keytab": {"existingSecret": ""}, "keytabBase64Content": KEYTAB}, key_material=(KEYTAB,), objects=("Secret",)
    ),
    "keytabs in the values": Option(
        {
            "keytab": {"existingSecret": ""},
            "keytabBase64Content": KEYTAB,
            "keytabsBase64Content": {"dw.keytab": KEYTAB},
            "credentials": {"dw": {"principal": "dw@EXAMPLE.COM", "keytab": "dw.keytab"}},
        },
        key_material=(KEYTAB,),
        objects=("Secret",),
    ),
    "a template as a name": Option({"keytab": {"existingSecret": "{{ .Release.Name }}-kt"}}, private=("etl-kt",)),
    "krb5.conf in the values": Option({"krb5Conf": {"existingConfigMap": ""}, "config": CONF}),
    "krb5.conf of the images": Option({"krb5Conf": {"existingConfigMap": ""}, "configPath": ""}),
    "other paths": Option(
        {
            "keytabPath": "/srv/kt/service.keytab",
            "configPath": "/srv/conf/krb5.conf",
            "ccacheMountPath": "/srv/tokens",
            "ccacheFileName": "token",
        }
    ),
    "signed, the public key in the values": Option(
        {"signing": {"existingSecret": "signing", "publicKey": PUBLIC_KEY}}, private=("signing",)
    ),
    "signed, the public key elsewhere": Option(
        {"signing": {"existingSecret": "{{ .Release.Name }}-sign", "publicKeyConfigMap": "public-key", "key": "k.pem"}},
        private=("etl-sign",),
    ),
    "signed, the workers do not look": Option({"signing": {"existingSecret": "signing"}}, private=("signing",)),
    "on loopback": Option({"listen": "127.0.0.1:9464"}),
    "no listener": Option({"listen": ""}, waives=("sidecars_are_probed_and_limited",)),
    "another port": Option({"listen": "0.0.0.0:8080"}),
    "probes by exec": Option({"probes": {"handler": "exec"}}),
    "TLS": Option(
        {
            "settings": {"refresher": {"tls_certificate": "/tls/tls.crt", "tls_key": "/tls/tls.key"}},
            "extraVolumes": [{"name": "tls", "secret": {"secretName": "tls", "defaultMode": 0o400}}],
            "extraVolumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
        },
        private=("tls",),
    ),
    "TLS with clients' certificates": Option(
        {
            "settings": {
                "refresher": {"tls_certificate": "/tls/tls.crt", "tls_key": "/tls/tls.key", "tls_client_ca": "/tls/ca"}
            },
            "extraVolumes": [{"name": "tls", "secret": {"secretName": "tls", "defaultMode": 0o400}}],
            "extraVolumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
        },
        private=("tls",),
        waives=("sidecars_are_probed_and_limited",),
    ),
    "services without the TGT": Option(
        {"settings": {"kerberos": {"include_tgt": False, "services": ["postgres/db.example.com@EXAMPLE.COM"]}}}
    ),
    "renewal": Option({"settings": {"kerberos": {"method": "renew", "renewable_lifetime": "7d", "lifetime": "10h"}}}),
    "FAST": Option({"settings": {"kerberos": {"fast_keytab": "host.keytab", "fast_principal": "host/a@EXAMPLE.COM"}}}),
    "all settings": Option(
        {
            "settings": {
                "refresher": {"log_format": "json", "exchange_deadline": "20s", "name": 'r "1" <&> ü'},
                "kerberos": {
                    "mode": "0440",
                    "lifetime": "12h",
                    "forwardable": True,
                    "proxiable": False,
                    "canonicalize": True,
                    "addressless": True,
                    "expiry_window": "25%",
                },
            }
        }
    ),
    "a lifetime for short Jobs": Option({"oneShot": {"lifetime": "4h"}}),
    "tokens on disk": Option({"token": {"medium": ""}}, waives=("tokens_are_in_memory_and_limited",)),
    "large tokens": Option({"token": {"sizeLimit": "16Mi"}}),
    "monitoring": Option(
        {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "interval": "15s"},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "runbookUrl": "https://wiki/x"},
            "dashboard": {"enabled": True},
        },
        objects=("PodMonitor", "PrometheusRule"),
    ),
    "alerts for Jobs": Option(
        {"podMonitor": {"enabled": True}, "prometheusRule": {"enabled": True, "exclude": ["KrbrefreshDown"]}},
        objects=("PodMonitor", "PrometheusRule"),
    ),
    "metrics by TLS": Option(
        {
            "settings": {
                "refresher": {"tls_certificate": "/tls/tls.crt", "tls_key": "/tls/tls.key", "tls_client_ca": "/tls/ca"}
            },
            "extraVolumes": [{"name": "tls", "secret": {"secretName": "tls", "defaultMode": 0o400}}],
            "extraVolumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
            "podMonitor": {"enabled": True, "tlsConfig": {"ca": {"secret": {"name": "prometheus", "key": "ca"}}}},
        },
        private=("tls",),
        objects=("PodMonitor",),
        waives=("sidecars_are_probed_and_limited",),
    ),
    "network policy": Option({"networkPolicy": {"enabled": True}}, objects=("NetworkPolicy",)),
    "narrow network policy": Option(
        {
            "networkPolicy": {
                "enabled": True,
                "kdc": {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [88, 464]},
                "dns": {"to": [{"namespaceSelector": {"matchLabels": {"name": "kube-system"}}}], "ports": [5353]},
                "metrics": {"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "prometheus"}}}]},
                "extraEgress": [{"ports": [{"port": 5432, "protocol": "TCP"}]}],
                "extraIngress": [{"ports": [{"port": "http"}]}],
            }
        },
        objects=("NetworkPolicy",),
    ),
    "labels and annotations": Option(
        {
            "labels": {"team": "data"},
            "annotations": {"example.com/contact": "data@example.com"},
            "podLabels": {"cost-centre": "42", "app.kubernetes.io/name": "mine"},
            "podAnnotations": {"example.com/note": "yes: 'and' \"no\""},
        }
    ),
    "images by digest": Option(
        {
            "image": {"digest": DIGEST, "tag": "ignored", "pullPolicy": "Always"},
            "imagePullSecrets": [{"name": "registry"}],
            "examples": {"image": {"digest": DIGEST}},
        }
    ),
    "images by tag": Option({"image": {"tag": "1.0"}, "examples": {"image": {"tag": "v1"}}}),
    "other users": Option({"users": {"refresher": 20001, "worker": 20002, "group": 20000}}),
    "users with large numbers": Option({"users": {"refresher": 1000700001, "worker": 1000700002, "group": 1000700000}}),
    "the worker's own user": Option({"users": {"worker": None}}),
    "resources": Option({"resources": {"limits": {"cpu": "1", "memory": "128Mi"}}}),
    "security contexts": Option(
        {
            "securityContexts": {
                "pod": {"supplementalGroups": [5000]},
                "refresher": {"seLinuxOptions": {}},
                "worker": {"seccompProfile": {"type": "RuntimeDefault"}},
            }
        }
    ),
    "more for the refresher": Option(
        {
            "extraEnv": [{"name": "KRB5_TRACE", "value": "/dev/stderr"}],
            "extraEnvFrom": [{"configMapRef": {"name": "proxy"}}],
            "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
            "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ca", "readOnly": True}],
        }
    ),
    "short names": Option({"nameOverride": "krb", "fullnameOverride": "tokens"}),
    "long names": Option({"nameOverride": "n" * 40, "fullnameOverride": "f" * 60}),
    "a long release": Option({}, release="a-release-with-a-name-that-is-as-long-as-helm-allows0"),
    "a release of the chart's name": Option({}, release="krbrefresh"),
    "a release that ends in a digit": Option({}, release="r2-2"),
    "a numeric release": Option({}, release="123"),
    "a numeric Secret": Option(
        {
            "keytab": {"existingSecret": "123"},
            "krb5Conf": {"existingConfigMap": "1e3"},
            "signing": {
                "existingSecret": "0x10",
                "key": "1",
                "publicKeyConfigMap": "456",
                "publicKeyKey": "2.0",
            },
        },
        private=("123", "0x10"),
    ),
    "numeric names of files": Option(
        {
            "keytabPath": "/run/secrets/keytab/1",
            "keytab": {"existingSecret": ""},
            "keytabBase64Content": KEYTAB,
            "configPath": "/etc/krb5/2",
            "krb5Conf": {"existingConfigMap": ""},
            "config": CONF,
            "ccacheFileName": "3",
            "signing": {"existingSecret": "signing", "publicKey": PUBLIC_KEY, "publicKeyKey": "4"},
        },
        private=("signing",),
        key_material=(KEYTAB,),
    ),
    "names that YAML takes for others": Option({"nameOverride": "no", "fullnameOverride": "true"}),
    "large numbers": Option(
        {
            "token": {"sizeLimit": 16777216},
            "examples": {"job": {"backoffLimit": 1000000}, "cronJob": {"backoffLimit": 2000000}},
        }
    ),
    "several replicas": Option({"examples": {"deployment": {"replicas": 3, "command": ["/bin/worker", "--flag=a b"]}}}),
    "no examples": Option({"examples": {key: {"enabled": False} for key in ("deployment", "job", "cronJob", "test")}}),
}

# Those that touch each other: they name the same objects, volumes, paths or probes.
TOUCHING = (
    "stop file",
    "three credentials",
    "a Secret for each credential",
    "keytabs in the values",
    "krb5.conf in the values",
    "krb5.conf of the images",
    "other paths",
    "signed, the public key in the values",
    "signed, the public key elsewhere",
    "on loopback",
    "no listener",
    "TLS",
    "services without the TGT",
    "monitoring",
    "narrow network policy",
    "labels and annotations",
    "long names",
    "a long release",
    "other users",
)

# What cannot be, and a word of what the chart says of it. Nothing else may be refused.
REFUSED: dict[frozenset[str], str] = {
    frozenset(names): said
    for *names, said in (
        *(("native", version, "sidecar.mode native needs Kubernetes 1.29") for version in BEFORE_NATIVE),
        ("three credentials", "no listener", "a probe can check one token alone"),
        ("a Secret for each credential", "no listener", "a probe can check one token alone"),
        ("keytabs in the values", "no listener", "a probe can check one token alone"),
        ("krb5.conf in the values", "krb5.conf of the images", "configPath is empty"),
        ("krb5.conf of the images", "other paths", "where is krb5.conf?"),
        (
            "signed, the public key in the values",
            "signed, the public key elsewhere",
            "two sources of one thing",
        ),
        ("on loopback", "monitoring", "nobody outside of the pod can ask"),
        ("no listener", "monitoring", "nobody outside of the pod can ask"),
    )
}


@dataclass(frozen=True)
class Combination:
    """Options together."""

    names: tuple[str, ...]
    kubernetes: str
    values: Values = field(compare=False)
    release: str

    def __str__(self) -> str:
        return f"{' + '.join(self.names)} on {self.kubernetes}"

    @property
    def options(self) -> list[Option]:
        return [OPTIONS[name] for name in self.names]

    def of(self, release: str) -> Combination:
        """The same, in another release."""
        return replace(self, release=release)

    @property
    def refusal(self) -> str | None:
        """What the chart has to say of it, if it cannot be."""
        given = {*self.names, self.kubernetes}
        return next((said for names, said in REFUSED.items() if names <= given), None)


def combination(kubernetes: str, *names: str) -> Combination:
    options = [OPTIONS[name] for name in names]
    releases = {option.release for option in options} - {"etl"}
    values = with_values(EXAMPLES, *(option.values for option in options))
    for key in ("extraVolumes", "extraVolumeMounts"):  # in a merge a list replaces another one
        if any(key in option.values for option in options):
            values[key] = [each for option in options for each in option.values.get(key, ())]
    return Combination(names, kubernetes, values, next(iter(releases), "etl"))


def combinations(versions: list[str]) -> Iterator[Combination]:
    """All that are rendered: each option on each version, pairs on the oldest and on the newest."""
    for name in OPTIONS:
        for version in versions:
            yield combination(version, name)
    for pair in itertools.combinations(TOUCHING, 2):
        for version in (versions[0], versions[-1]):
            yield combination(version, *pair)
