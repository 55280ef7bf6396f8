"""Combinations rendered: by Helm, read, judged by the schemas; and how much of it there was."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chart.helm import CHART, RefusedError, Values, template
from tests.chart.matrix import Combination
from tests.manifests import Fault, Judge, judging
from tests.policies import Rendering, environment_references, volume_config_maps, volume_secrets

# What the terminal summary tells.
COUNTS: Counter[str] = Counter()


@dataclass(frozen=True)
class Rendered:
    """A combination, and what has become of it."""

    combination: Combination
    rendering: Rendering | None
    faults: tuple[Fault, ...] = ()
    refused: str = ""


def outside(values: Values) -> Iterator[tuple[str, str]]:
    """Kinds and names of what values say is there already."""

    def at(*path: str) -> Any:
        found: Any = values
        for key in path:
            found = found.get(key) or {}
        return found or ""

    yield "Secret", at("keytab", "existingSecret")
    yield "Secret", at("signing", "existingSecret")
    yield "ConfigMap", at("signing", "publicKeyConfigMap")
    yield "ConfigMap", at("krb5Conf", "existingConfigMap")
    for credential in (values.get("credentials") or {}).values():
        yield "Secret", (credential.get("keytabSecret") or {}).get("name", "")
    for each in values.get("imagePullSecrets") or []:
        yield "Secret", each["name"]
    for volume in values.get("extraVolumes") or []:
        yield from (("Secret", name) for name in volume_secrets(volume))
        yield from (("ConfigMap", name) for name in volume_config_maps(volume))
    for kind, name, _ in environment_references({"envFrom": values.get("extraEnvFrom"), "env": values.get("extraEnv")}):
        yield kind, name


def render(combination: Combination, judge: Judge, chart: Path = CHART) -> Rendered:
    try:
        text = template(
            combination.values, release=combination.release, kube_version=combination.kubernetes + ".0", chart=chart
        )
    except RefusedError as error:
        return Rendered(combination, None, refused=str(error))
    documents = judge.load(text)
    there = {
        (kind, name.replace("{{ .Release.Name }}", combination.release)) for kind, name in outside(combination.values)
    }
    rendering = Rendering(
        documents,
        kubernetes=combination.kubernetes,
        outside=frozenset(there),
        private=frozenset({"etl-keytab", *(name for option in combination.options for name in option.private)}),
        key_material=tuple(each for option in combination.options for each in option.key_material),
    )
    return Rendered(combination, rendering, tuple(judge.faults(documents, [combination.kubernetes])))


def render_all(combinations: Iterable[Combination], *, workers: int = 2) -> list[Rendered]:
    """Each worker has a judge of its own."""
    with ExitStack() as stack:
        judges: queue.SimpleQueue[Judge] = queue.SimpleQueue()
        for _ in range(workers):
            judges.put(stack.enter_context(judging()))

        def one(combination: Combination) -> Rendered:
            judge = judges.get()
            try:
                return render(combination, judge)
            finally:
                judges.put(judge)

        found = list(stack.enter_context(ThreadPoolExecutor(workers)).map(one, combinations))
    for each in found:
        COUNTS[
            "combinations refused, in the expected words" if each.rendering is None else "combinations rendered"
        ] += 1
        if each.rendering:
            COUNTS["manifests judged by the schemas of their version"] += len(each.rendering.documents)
    return found
