"""Values that several tests begin with."""

from __future__ import annotations

import copy

from tests.chart.helm import Values

MINIMUM: Values = {
    "image": {"repository": "registry.example.com/krbrefresh-refresher"},
    "principal": "etl@EXAMPLE.COM",
    "keytab": {"existingSecret": "etl-keytab"},
    "krb5Conf": {"existingConfigMap": "krb5-conf"},
}
EXAMPLES: Values = {
    "examples": {
        "image": {"repository": "registry.example.com/krbrefresh-worker"},
        "deployment": {"enabled": True},
        "job": {"enabled": True},
        "cronJob": {"enabled": True},
    }
}


def with_values(*more: Values) -> Values:
    """The least that a release needs, and more over it; None takes a value away."""

    def put(into: Values, values: Values) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                put(into[key], value)
            else:
                into[key] = copy.deepcopy(value)

    values = copy.deepcopy(MINIMUM)
    for each in more:
        put(values, each)
    return values
