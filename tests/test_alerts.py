"""The alert rules and the dashboard: as Prometheus' own tools judge them, against what is exported and what the runbook
has, and with a real Prometheus that scrapes a real refresher."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from krbrefresh.demo.realm import throwaway_realm
from krbrefresh.errors import REFRESH_REASONS, REJECTED, TRANSIENT
from krbrefresh.refresher import metrics
from krbrefresh.refresher.status import DEGRADED, Status
from tests.faults import LISTENING, Http, kdc_dies
from tests.processes import REPOSITORY, Refresher, Runner, refresher, toml
from tests.statuses import credential, status
from tests.support import Realm, eventually, program

MONITORING = Path(REPOSITORY, "monitoring")
RULES = MONITORING / "alerts.yaml"
RUNBOOK = Path(REPOSITORY, "docs", "operations.md")

# There is no YAML here but by Prometheus' own reading; the file is regular enough for this.
TEXT = re.sub(r"(?m)^\s*#.*$", "", RULES.read_text())
ALERTS = {each.split("\n", 1)[0]: each for each in TEXT.split("- alert: ")[1:]}
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
VARIABLES = {"job": "krbrefresh", "instance": ".*", "credential": ".*", "__rate_interval": "1m"}


def filled_in(query: str) -> str:
    """A query of the dashboard, as Grafana asks it."""
    return re.sub(r"\$(\w+)", lambda found: VARIABLES[found[1]], query)


def anchors(page: Path) -> list[str]:
    """Of each heading, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()))
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def full() -> Status:
    """One in which everything is known that can be."""
    return status(credential("etl", DEGRADED, renew_until=1.0, refreshes={"keytab": 1}))


def exported() -> set[str]:
    """The names of all samples that a refresher can have."""
    found = text_string_to_metric_families(metrics.render(full()).decode())
    return {sample.name for family in found for sample in family.samples}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=90)


# --- what the files say ---


def test_prometheus_takes_the_rules() -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_the_alerts_fire_when_they_should_and_say_what_they_should() -> None:
    tests = MONITORING / "alerts_test.yaml"
    done = subprocess.run(
        [program("promtool"), "test", "rules", str(tests)], capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = tests.read_text()
    for alert in ALERTS:
        assert re.search(rf"alertname: {alert} }}", text), f"nothing shows when {alert} does not fire"
        assert re.search(rf"alertname: {alert}\n\s+exp_alerts:", text), f"nothing shows when {alert} fires"


def test_prometheus_takes_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    rules = tmp_path / "queries.yaml"
    records = [{"record": f"query:{number}", "expr": filled_in(query)} for number, query in enumerate(QUERIES)]
    rules.write_text(json.dumps({"groups": [{"name": "queries", "rules": records}]}))  # JSON is YAML
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(rules)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("where", ["alerts", "dashboard"])
def test_every_metric_that_is_asked_for_is_exported(where: str) -> None:
    variables = [each["definition"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    text = TEXT if where == "alerts" else "\n".join(QUERIES + variables)
    asked = set(re.findall(r"\bkrbrefresh_\w+", text))
    assert len(asked) > 5
    assert asked <= exported()


def test_every_alert_leads_to_a_paragraph_of_the_runbook() -> None:
    found = anchors(RUNBOOK)
    assert len(found) == len(set(found))  # GitHub would number the second one
    paragraphs = set(found)
    assert {alert.lower() for alert in ALERTS} <= paragraphs
    assert {f"reason-{reason}" for reason in REFRESH_REASONS} <= paragraphs
    for alert, rule in ALERTS.items():
        (url,) = re.findall(r'runbook_url: "(.*)"', rule)
        page, _, anchor = url.partition("#")
        assert page == "docs/operations.md"
        if "{{" in anchor:
            assert anchor == "reason-{{ $labels.reason }}", alert
            assert "krbrefresh_failing{reason" in rule
        else:
            assert anchor == alert.lower()


def test_operations_has_every_metric_and_every_event_of_the_log() -> None:
    page = RUNBOOK.read_text()
    families = text_string_to_metric_families(metrics.render(full()).decode())
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert set(re.findall(r"(?m)^\| `(krbrefresh_\w+)` \|", page)) == names
    logged = set()
    for module in Path(REPOSITORY, "krbrefresh", "refresher").glob("*.py"):
        for level, name in re.findall(r"\bevent\(\s*logging\.(\w+),\s*([^,)]+)", module.read_text()):
            events = ["token_vanished", "token_replaced"] if name == "word" else [name.strip('"')]
            logged |= {(each, level.lower()) for each in events}
    rows = re.findall(r"(?m)^\| (`\w+`(?:, `\w+`)*) \| (info|warning|error) \|", page)
    assert {(name, level) for names, level in rows for name in re.findall(r"\w+", names)} == logged


def test_every_alert_has_a_severity_and_words() -> None:
    for alert, rule in ALERTS.items():
        assert re.search(r"severity: (critical|warning)\n", rule), alert
        for name in ("summary", "description"):
            assert re.search(rf"(?m)^\s+{name}: \S", rule), (alert, name)


def test_every_reason_has_one_alert_and_what_does_not_heal_is_the_more_urgent_one() -> None:
    (urgent,) = re.findall(r'krbrefresh_failing{reason=~"(.*?)"}', ALERTS["KrbrefreshKeytabRejected"])
    (others,) = re.findall(r'krbrefresh_failing{reason!~"(.*?)"}', ALERTS["KrbrefreshRefreshFailing"])
    assert urgent == others
    for reason, (retry, _) in REFRESH_REASONS.items():
        matched = re.fullmatch(urgent, reason) is not None
        if retry in (REJECTED, TRANSIENT):
            assert matched == (retry == REJECTED), reason


def test_the_dashboard_is_one_that_grafana_can_import() -> None:
    assert DASHBOARD["id"] is None
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource", "job", "instance", "credential"]
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    for panel in PANELS:
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(references) == len(set(references)), panel["title"]


# --- with a Prometheus that runs ---


class Prometheus:
    """A Prometheus that scrapes these refreshers, a job each or several, once a second, with the shipped rules, whose
    times are cut short."""

    def __init__(self, directory: Path, **jobs: list[Refresher]) -> None:
        directory.mkdir()
        rules = RULES.read_text()
        for pattern, short in (
            (r"(?m)^( +(?:keep_firing_)?for: )\d+[sm]", r"\g<1>1s"),
            (r"(\[|offset )10m", r"\g<1>2s"),  # KrbrefreshRefreshFailing
            (r"< 5\n", "< 0.5\n"),  # KrbrefreshRefreshOverdue: with tickets of seconds it is nearly always due soon
        ):
            rules, count = re.subn(pattern, short, rules)
            assert count, pattern
        (directory / "alerts.yaml").write_text(rules)
        scraped = [
            {"job_name": name, "static_configs": [{"targets": [address(each) for each in running]}]}
            for name, running in jobs.items()
        ]
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        (directory / "prometheus.yml").write_text(  # JSON is YAML
            json.dumps({"global": every, "rule_files": ["alerts.yaml"], "scrape_configs": scraped})
        )
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                    "--log.format=json",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            self._address = eventually(self._listening, within=20, what="Prometheus listens")
            eventually(self._ready, within=20, what="Prometheus is ready")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _listening(self) -> str:
        text = self._log.read_text()
        assert self._process.poll() is None, text
        found = re.search(r'"address":"(127\.0\.0\.1:[1-9]\d*)"', text)
        return found[1] if found else ""

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self._address}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **query: str) -> Any:
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def ask(self, query: str) -> list[Any]:
        """The result of an instant query."""
        found: list[Any] = self._get("query", query=query)["result"]
        return found

    def alerts(self, job: str, state: str = "firing") -> dict[tuple[str, ...], dict[str, str]]:
        """The annotations of a job's alerts in that state, by name, credential or else instance, and reason."""
        found = {}
        for alert in self._get("alerts")["alerts"]:
            labels = alert["labels"]
            if (labels.get("job"), alert["state"]) == (job, state):
                which = labels.get("credential") or labels.get("instance")
                key = (labels["alertname"], which, labels.get("reason"))
                found[tuple(filter(None, key))] = alert["annotations"]
        return found

    def judged(self) -> None:
        """Waits until every rule has been judged by samples of all targets that are younger than this call."""
        began = time.time()

        def enough() -> bool:
            rules = self._get("rules")["groups"][0]["rules"]
            targets = self._get("targets")["activeTargets"]
            assert all(rule["health"] != "err" for rule in rules), rules
            scraped = [moment(target["lastScrape"]) for target in targets]
            judged = [moment(rule["lastEvaluation"]) for rule in rules]
            # The last scrape's samples may not be there yet; those of the one before are.
            return min(scraped, default=0) > began + 1 and min(judged, default=0) > began + 2

        # Prometheus begins to scrape five seconds after it has started.
        eventually(enough, within=20, every=0.1, what="all rules are judged")

    def wait_for(self, job: str, *wanted: tuple[str, ...], within: float = 20) -> dict[tuple[str, ...], dict[str, str]]:
        """What fires, once all of these do."""
        fires: dict[tuple[str, ...], dict[str, str]] = {}

        def there() -> bool:
            nonlocal fires
            fires = self.alerts(job)
            return set(wanted) <= set(fires)

        try:
            eventually(there, within=within, every=0.1, what=str(wanted))
        except AssertionError as error:
            raise AssertionError(
                f"{error}; firing: {set(fires)}, pending: {set(self.alerts(job, 'pending'))}"
            ) from None
        return fires

    def wait_for_only(self, job: str, *wanted: tuple[str, ...]) -> None:
        """Until these fire and nothing else does."""
        try:
            eventually(lambda: set(self.alerts(job)) == set(wanted), within=20, every=0.1, what=f"nothing but {wanted}")
        except AssertionError as error:
            raise AssertionError(f"{error}; firing: {self.alerts(job)}") from None


def address(running: Refresher) -> str:
    return "{}:{}".format(*Http(running).address)


def moment(text: str) -> float:
    """A time of Prometheus', with nanoseconds, which Python 3.10 does not read, as Unix seconds."""
    found = re.fullmatch(r"(\d+-\d+-\d+T\d+:\d+:\d+)(\.\d+)?(Z|[+-]\d\d:\d\d)", text)
    assert found, text
    zone = found[3].replace("Z", "+00:00")
    return datetime.datetime.fromisoformat(f"{found[1]}{zone}").timestamp() + float(found[2] or 0)


def configured(place: Path, realm: Realm, name: str, **lifetimes: str) -> Path:
    """A refresher's settings, with a credential for each lifetime."""
    keytab = realm.keytab(place / f"{name}.keytab", *lifetimes)
    config = place / f"{name}.toml"
    sections = {
        f"credentials__{each}": {
            "principal": realm.principal(each),
            "ccache": place / each / "krb5cc",
            "lifetime": lifetime,
        }
        for each, lifetime in lifetimes.items()
    }
    config.write_text(toml(refresher={"log_format": "json", "name": name}, kerberos={"keytab": keytab}, **sections))
    return config


@dataclass
class World:
    """A realm, a refresher of its own job, `krbrefresh`, and two on one volume, of which `leader` leads, of the job
    `krbrefresh-pair`; and a Prometheus that scrapes them. A test breaks what is of one job."""

    realm: Realm
    place: Path
    one: Refresher
    leader: Refresher
    standby: Refresher
    prometheus: Prometheus


@pytest.fixture(scope="module")
def world(runner: Runner) -> Iterator[World]:
    program("prometheus")
    with contextlib.ExitStack() as stack:
        realm = Realm(stack.enter_context(throwaway_realm()))
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="krbrefresh-test-")))
        config = configured(place, realm, "one", good="1h", stale="1h", shut="1h", brief="12s")
        pair = configured(place, realm, "pair", etl="1h", reports="1h")
        env = {**realm.env, **LISTENING}
        one = stack.enter_context(refresher(runner, config, env))
        leader = stack.enter_context(refresher(runner, pair, env))
        leader.logged("published", count=2)
        standby = stack.enter_context(refresher(runner, pair, env))
        standby.logged("standing_by", count=2)
        one.logged("published", count=4)
        jobs = {"krbrefresh": [one], "krbrefresh-pair": [leader, standby]}
        prometheus = Prometheus(place / "prometheus", **jobs)
        stack.callback(prometheus.close)
        yield World(realm, place, one, leader, standby, prometheus)


@pytest.mark.slow
def test_what_goes_wrong_with_credentials_fires_as_what_it_is(world: World) -> None:
    realm, place, running, prometheus, job = world.realm, world.place, world.one, world.prometheus, "krbrefresh"
    prometheus.judged()
    assert prometheus.alerts(job) == {}
    assert set(prometheus.alerts(job, "pending")) <= {("KrbrefreshRefreshOverdue", "brief")}  # it is due all the time

    # The stale key and the directory that everybody may write to: two tries each.
    realm.kadmin(f"cpw -randkey {realm.principal('stale')}")
    (place / "shut").chmod(0o777)
    for count in (1, 2):
        running.process.send_signal(signal.SIGUSR1)
        running.logged("refresh_failed", count=2 * count)
    rejected = ("KrbrefreshKeytabRejected", "stale", "key_rejected")
    failing = ("KrbrefreshRefreshFailing", "shut", "publish_failed")
    fires = prometheus.wait_for(job, rejected, failing)
    assert set(fires) == {rejected, failing}
    assert "2 tries in a row" in fires[rejected]["description"]
    assert re.search(r"the published token for \d+m", fires[rejected]["description"])
    assert fires[rejected]["runbook_url"].endswith("#reason-key_rejected")
    assert fires[failing]["runbook_url"].endswith("#reason-publish_failed")
    empty = {query for query in QUERIES if not prometheus.ask(filled_in(query))}
    assert all("renew_until" in query for query in empty), empty  # these tickets cannot be renewed

    # And then there is no KDC: all fail for that reason, and the token of twelve seconds ends.
    kdc_dies(realm)
    running.process.send_signal(signal.SIGUSR1)
    expiring, expired = ("KrbrefreshTokenExpiring", "brief"), ("KrbrefreshTokenExpired", "brief")
    names = ("good", "stale", "shut", "brief")
    unreachable = [("KrbrefreshRefreshFailing", each, "kdc_unreachable") for each in names]
    fires = prometheus.wait_for(job, expiring)
    assert "(kdc_unreachable)" in fires[expiring]["description"]
    fires = prometheus.wait_for(job, expired, *unreachable)
    assert set(fires) - {expiring, rejected, failing} == {expired, *unreachable}
    assert "Refreshes fail: kdc_unreachable" in fires[expired]["description"]

    # The remedies. The tokens come back, and nothing fires any more but what is still wrong.
    realm.kdc.start_kdc()
    (place / "shut").chmod(0o2750)
    running.process.send_signal(signal.SIGUSR1)
    prometheus.wait_for_only(job, rejected)


@pytest.mark.slow
def test_refreshers_that_are_gone_or_stand_by_for_one_that_hangs(world: World) -> None:
    leader, standby, prometheus, job = world.leader, world.standby, world.prometheus, "krbrefresh-pair"
    prometheus.judged()
    assert prometheus.alerts(job) == {}
    assert prometheus.alerts(job, "pending") == {}

    down, leaderless = ("KrbrefreshDown", address(leader)), ("KrbrefreshNoLeader",)
    os.kill(leader.process.pid, signal.SIGSTOP)
    fires = prometheus.wait_for(job, down, leaderless)
    assert set(fires) == {down, leaderless}
    assert "(etl, reports)" in fires[leaderless]["description"]
    assert "Token of etl: ends 20" in fires[down]["description"]

    leader.process.kill()
    standby.logged("leading", count=2)
    prometheus.wait_for_only(job, down)
