"""`krbrefresh run` and `once` against a real Active Directory, and against what locks accounts there and at MIT's."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.ad import PASSWORD, Clock, Domain, active_directory
from tests.interop.kdcs import renamed
from tests.processes import Refresher, Runner, children_of, refresher
from tests.support import Realm, eventually
from tests.test_service import configured

pytestmark = [pytest.mark.root, pytest.mark.samba]

THRESHOLD = 5  # bad attempts
WINDOW = 30  # minutes after the last one, and they are forgotten; and so long an account stays locked


@pytest.fixture(scope="session")
def shared_domain() -> Iterator[Domain]:
    with active_directory() as domain:
        yield domain


@pytest.fixture
def own_domain() -> Iterator[Domain]:
    """A domain for one test, which makes time pass in it."""
    with active_directory() as domain:
        yield domain


def once(runner: Runner, domain: Domain, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*domain.wrapper, runner.python, "-m", "krbrefresh", "once", "--config", str(config)],
        env={**runner.env, **domain.env}, capture_output=True, text=True, timeout=60, cwd="/",
    )  # fmt: skip


def validate(runner: Runner, environ: dict[str, str], path: Path) -> str:
    """What a worker says of a token, by the clock of that environment: its principal, or what is wrong with it."""
    script = (
        "import sys, krbrefresh\n"
        "try:\n    print(krbrefresh.validate(sys.argv[1]).principal)\n"
        "except krbrefresh.TokenError as error:\n    print(error.reason)\n"
    )
    done = subprocess.run(
        [runner.python, "-c", script, str(path)],
        env={**runner.env, **environ}, capture_output=True, text=True, timeout=30, check=True, cwd="/",
    )  # fmt: skip
    return done.stdout.strip()


def test_a_token_of_an_account_in_active_directory(runner: Runner, shared_domain: Domain, place: Path) -> None:
    domain = shared_domain
    principal = domain.user("etl")
    config = configured(place, principal, domain.keytab(place / "k", "etl"))
    path = place / "token" / "krb5cc"
    with refresher(runner, config, domain.env, wrapper=domain.wrapper) as running:
        running.logged("published")
        assert validate(runner, domain.env, path) == principal
        # It opens a service of the domain.
        served = subprocess.run(
            [*domain.wrapper, "kvno", "-c", str(path), f"host/dc@{domain.realm}"],
            env=domain.env, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert served.returncode == 0, served.stderr
    assert [answer for _, answer in domain.answers("etl")] == ["SUCCESS"]


def test_an_enterprise_name_is_canonicalized(runner: Runner, shared_domain: Domain, place: Path) -> None:
    domain = shared_domain
    principal = domain.user("upn")
    domain.modify("upn", userPrincipalName="first.last@corp.example")
    name = rf"first.last\@corp.example@{domain.realm}"
    keytab = renamed(domain.keytab(place / "k", "upn"), name)
    ran = once(runner, domain, configured(place, name, keytab, canonicalize=True))
    assert ran.returncode == 0, ran.stderr
    assert validate(runner, domain.env, place / "token" / "krb5cc") == principal


def disable(domain: Domain, name: str) -> None:
    domain.tool("user", "disable", name)


def expire(domain: Domain, name: str) -> None:
    domain.tool("user", "setexpiry", name, "--days=0")


def age_the_password(domain: Domain, name: str) -> None:
    domain.tool("user", "setpassword", name, f"--newpassword={PASSWORD}2{name}", "--must-change-at-next-login")


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("disabled", disable, "client_revoked"),
        ("expired", expire, "client_revoked"),  # Active Directory does not say which; MIT does
        ("mustchange", age_the_password, "client_expired"),
    ],
)
def test_the_reason_of_an_account_that_gets_none(
    runner: Runner, shared_domain: Domain, place: Path, name: str, change: Callable[[Domain, str], None], reason: str
) -> None:
    domain = shared_domain
    principal = domain.user(name)
    change(domain, name)
    ran = once(runner, domain, configured(place, principal, domain.keytab(place / "k", name)))
    assert ran.returncode == 1
    assert f'"reason": "{reason}"' in ran.stderr, ran.stderr
    assert len(domain.answers(name)) == 1


def test_the_reason_of_an_unknown_account(runner: Runner, shared_domain: Domain, place: Path) -> None:
    domain = shared_domain
    principal = domain.user("gone")
    config = configured(place, principal, domain.keytab(place / "k", "gone"))
    domain.tool("user", "delete", "gone")
    ran = once(runner, domain, config)
    assert ran.returncode == 1
    assert '"reason": "client_unknown"' in ran.stderr, ran.stderr


def set_lockout(domain: Domain) -> None:
    domain.tool(
        "domain", "passwordsettings", "set", f"--account-lockout-threshold={THRESHOLD}",
        f"--account-lockout-duration={WINDOW}", f"--reset-account-lockout-after={WINDOW}",
    )  # fmt: skip


def test_the_reason_of_an_account_that_is_locked(runner: Runner, shared_domain: Domain, place: Path) -> None:
    # This also shows that five bad attempts lock an account here, which the next test depends on.
    domain = shared_domain
    set_lockout(domain)
    principal = domain.user("locked")
    config = configured(place, principal, domain.keytab(place / "k", "locked"))
    domain.tool("user", "setpassword", "locked", f"--newpassword={PASSWORD}2locked")
    reasons = []
    for _ in range(THRESHOLD + 1):  # each one a new process, that knows nothing of the ones before
        ran = once(runner, domain, config)
        reasons += [word for word in ("key_rejected", "client_revoked") if f'"{word}"' in ran.stderr]
    assert reasons == ["key_rejected"] * THRESHOLD + ["client_revoked"]
    assert domain.attribute("locked", "lockoutTime") not in ("", "0")


# By the clock, minutes between one refused attempt and the next: for as long as you like, for from the fifth on nothing
# changes, and no two attempts are in one observation window any more.
MINUTES = [5, 10, 20, 40, 60, 60, 60, 60, 60]


def rests(running: Refresher) -> bool:
    """Whether it has no exchange under way, and has had nothing to do for a moment: it sleeps, which is not the same as
    to be given no processor."""
    process = Path(f"/proc/{running.process.pid}")

    def spent() -> str:
        return (process / "schedstat").read_text().split()[0]

    before = spent()
    time.sleep(0.1)
    asleep = (process / "stat").read_text().rpartition(")")[2].split()[0] == "S"
    return asleep and not children_of(running.process.pid) and spent() == before


def go_on_for_hours(
    running: Refresher, clock: Clock, krb5_conf: Path, attempts: Callable[[], list[float]], locked: Callable[[], bool]
) -> None:
    """A refresher with a stale key, until the last of its attempts; each one is made when it is due and not before.

    Time passes in leaps, which wake nobody. A krb5.conf that is replaced by itself does, and leaves a line in the log;
    after a refusal it is no reason to try.
    """

    def nudge() -> None:
        new = krb5_conf.with_suffix(".new")
        shutil.copyfile(krb5_conf, new)
        new.rename(krb5_conf)

    eventually(attempts, within=10, what="the first attempt")
    running.logged("refresh_failed")
    for made, minutes in enumerate(MINUTES, start=1):
        nudges = len(running.named("file_changed"))
        clock.advance(minutes * 60 - 20)
        nudge()
        running.logged("file_changed", count=nudges + 1)
        assert len(attempts()) == made
        clock.advance(20)
        nudge()
        eventually(lambda: len(attempts()) > made, within=15, what=f"attempt {made + 1}")  # noqa: B023
        # The KDC has it in its log before the refresher has the answer, from which it reckons the next wait.
        eventually(lambda: rests(running), within=15, what="an attempt that is over")
        assert not locked()
    at = attempts()
    waits = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert len(waits) == len(MINUTES)
    assert all(60 * minutes - 1 <= wait < 60 * minutes + 20 for minutes, wait in zip(MINUTES, waits, strict=True)), (
        waits
    )
    assert set(running.reasons()) == {"key_rejected"}, running.text


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_stale_key_does_not_lock_an_account_in_active_directory(
    runner: Runner, own_domain: Domain, place: Path, record_property: pytest.RecordProperty
) -> None:
    domain = own_domain
    set_lockout(domain)
    principal = domain.user("etl")
    keytab = domain.keytab(place / "k", "etl")
    domain.tool("user", "setpassword", "etl", f"--newpassword={PASSWORD}2etl")
    config = configured(place, principal, keytab)
    began = domain.clock.now()
    counts: list[int] = []

    def locked() -> bool:
        counts.append(int(domain.attribute("etl", "badPwdCount") or 0))
        return domain.attribute("etl", "lockoutTime") not in ("", "0")

    with refresher(runner, config, domain.env, wrapper=domain.wrapper) as running:
        go_on_for_hours(
            running, domain.clock, domain.krb5_conf, lambda: [when for when, _ in domain.answers("etl")], locked
        )
        hours = (domain.clock.now() - began) / 3600
        answers = [answer for _, answer in domain.answers("etl")]
        assert set(answers) == {"ERR_PREAUTH_FAILED"}
        assert max(counts) < THRESHOLD
        # The right keytab, and there is a token at once.
        domain.keytab(place / "new", "etl").rename(keytab)
        running.logged("published", within=6)
        assert validate(runner, domain.env, place / "token" / "krb5cc") == principal
    print(f"\n{len(answers)} attempts in {hours:.1f} hours; bad password counts {counts}")
    record_property("attempts", len(answers))
    assert hours > 6


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_stale_key_does_not_lock_an_account_at_an_mit_kdc(runner: Runner, own_realm: Realm, place: Path) -> None:
    realm = own_realm
    clock = Clock(place)
    realm.kadmin(f'addpol -maxfailure {THRESHOLD} -failurecountinterval "{WINDOW} min" -lockoutduration "1 day" strict')
    principal = realm.principal("etl", policy="strict")
    realm.kadmin(f"modprinc +requires_preauth {principal}")
    keytab = realm.keytab(place / "k", "etl")
    realm.kadmin(f"cpw -randkey {principal}")
    realm.kdc.stop_kdc()
    realm.kdc.env.update(clock.env)
    realm.kdc.start_kdc()
    config = configured(place, principal, keytab)

    year = datetime.now().year

    def attempts() -> list[float]:
        found: list[float] = []
        for line in realm.log().splitlines():
            if f"{principal} for krbtgt" in line and "NEEDED_PREAUTH" not in line:
                when = datetime.strptime(f"{year} {line[:15]}", "%Y %b %d %H:%M:%S")
                if found and when.timestamp() < found[-1]:  # the log has no year, and this may be New Year's Eve
                    when = when.replace(year=year + 1)
                found.append(when.timestamp())
        return found

    def locked() -> bool:
        (line,) = (line for line in realm.kadmin(f"getprinc {principal}").splitlines() if "Failed password" in line)
        return int(line.rpartition(":")[2]) >= THRESHOLD

    environ = {**realm.env, **clock.env}
    with refresher(runner, config, environ) as running:
        go_on_for_hours(running, clock, Path(realm.env["KRB5_CONFIG"]), attempts, locked)
        realm.keytab(place / "new", "etl").rename(keytab)
        running.logged("published", within=6)
        assert validate(runner, environ, place / "token" / "krb5cc") == principal
