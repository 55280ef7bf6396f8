"""The refresher's state for Prometheus. docs/operations.md says what each metric means; the names are an interface.

What is not known is absent, not 0. The registry is its own: nothing of the process or the platform, no `_created`.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from .status import DURATION_BUCKETS, Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus, "Exposition formats"

# Of each credential: the metric's name, what it is, and the value's name in CredentialStatus.
_PER_CREDENTIAL = (
    ("ticket_expiration_timestamp_seconds", "When the published token ends.", "expires_at"),
    ("ticket_renew_until_timestamp_seconds", "Until when the published ticket can be renewed.", "renew_until"),
    ("next_refresh_timestamp_seconds", "When the next try is due.", "next_attempt_at"),
    ("last_success_timestamp_seconds", "When this process last published a token.", "last_success_at"),
    ("generation", "The generation of the published token.", "generation"),
    ("consecutive_failures", "How many tries have failed in a row.", "failures"),
)


def render(status: Status) -> bytes:
    """The text exposition of a status."""
    registry = CollectorRegistry()
    registry.register(_Collector(status))
    return generate_latest(registry)


class _Collector(Collector):
    """Makes one family at a time, so that those of a thousand credentials are never there together."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The families that have something to say."""
        return (family for family in self._families() if family.samples)

    def _families(self) -> Iterator[Metric]:
        status = self._status
        build = GaugeMetricFamily("krbrefresh_build_info", "1; the version that runs.", labels=["version"])
        build.add_metric([_label(status.version)], 1)
        yield build
        yield GaugeMetricFamily(
            "krbrefresh_leader", "1 where this refresher publishes, 0 where it stands by.", value=float(status.leader)
        )
        failures = CounterMetricFamily("krbrefresh_refresh_failures", "Tries that failed.", labels=["reason"])
        for reason, count in status.tally.failures.items():
            failures.add_metric([reason], count)
        yield failures
        yield _durations(status)
        if status.clock_offset is not None:
            yield GaugeMetricFamily(
                "krbrefresh_clock_offset_seconds", "The KDC's clock less this machine's.", value=status.clock_offset
            )
        for name, documentation, attribute in _PER_CREDENTIAL:
            gauge = GaugeMetricFamily(f"krbrefresh_{name}", documentation, labels=["credential"])
            for credential in status.credentials:
                value = getattr(credential, attribute)
                if value is not None:
                    gauge.add_metric([_label(credential.name)], value)
            yield gauge
        refreshes = CounterMetricFamily(
            "krbrefresh_refreshes", "Tokens published since the start.", labels=["credential", "method"]
        )
        for credential in status.credentials:
            for method, count in credential.refreshes.items():
                refreshes.add_metric([_label(credential.name), method], count)
        yield refreshes
        failing = GaugeMetricFamily(
            "krbrefresh_failing", "1 while the last try failed for this reason.", labels=["credential", "reason"]
        )
        for credential in status.credentials:
            if credential.reason:
                failing.add_metric([_label(credential.name), credential.reason], 1)
        yield failing


def _durations(status: Status) -> HistogramMetricFamily:
    total, buckets = 0, []
    for bound, count in zip((*map(str, DURATION_BUCKETS), "+Inf"), status.tally.buckets, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return HistogramMetricFamily(
        "krbrefresh_refresh_duration_seconds",
        "How long tries took, successful or not.",
        buckets=buckets,
        sum_value=status.tally.seconds,
    )


def _label(value: str) -> str:
    """The format is UTF-8: what cannot be written in it, of a name that is no text, is an escape."""
    return value.encode("utf-8", "backslashreplace").decode()
