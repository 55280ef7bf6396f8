"""The page for people: what it says, that nothing in it is markup by accident, and how a browser shows it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krbrefresh._text import printable
from krbrefresh.errors import REFRESH_REASONS
from krbrefresh.refresher import page
from krbrefresh.refresher.status import (
    DEGRADED,
    EXPIRED,
    STANDBY,
    STARTING,
    VALID,
    CredentialStatus,
    Status,
)
from tests.browser import Browser, Tab, different_rows
from tests.http_client import Server
from tests.statuses import HOUR, NOW, credential, many, status
from tests.support import eventually

STATES = (EXPIRED, STARTING, DEGRADED, VALID, STANDBY)  # the worst first
VOID = {"meta", "link"}


class Parsed(html.parser.HTMLParser):
    """A page, read as HTML. Raises AssertionError where it is not well-formed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._open: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str, str]] = []  # in which tag, of which class, what
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), (tag, attrs)
        known = {name: value or "" for name, value in attrs}
        self.tags.append((tag, known))
        if tag not in VOID:
            self._open.append((tag, known.get("class", "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "rect", tag  # in HTML proper, nothing ends itself
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, kind = self._open[-1] if self._open else ("", "")
        if data.strip():
            self.texts.append((tag, kind, data))

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_pi(self, data: str) -> None:
        raise AssertionError(data)

    unknown_decl = handle_pi

    def of(self, tag: str, kind: str | None = None) -> list[str]:
        """The texts in such tags."""
        return [text for each, its, text in self.texts if each == tag and kind in (None, its)]

    @property
    def said(self) -> str:
        """All text but the style."""
        return " ".join(text for tag, _, text in self.texts if tag != "style")

    @property
    def skeleton(self) -> list[tuple[str, tuple[str, ...]]]:
        """What is markup, without what is in it."""
        return [(tag, tuple(attributes)) for tag, attributes in self.tags]

    def classes(self, tag: str) -> list[str]:
        return [attributes.get("class", "") for each, attributes in self.tags if each == tag]


def parsed(said: Status) -> Parsed:
    return Parsed(page.render(said))


def of(said: CredentialStatus) -> Parsed:
    return parsed(status(said))


# --- that it is harmless ---


def safe(read: Parsed) -> None:
    """That it loads nothing and runs nothing."""
    for tag, attributes in read.tags:
        assert tag not in ("script", "iframe", "object", "embed", "img", "base", "form", "input"), tag
        for name, value in attributes.items():
            assert name != "style"
            assert not name.startswith("on"), name
            assert name != "xmlns"
            if name in ("href", "src", "action", "content") or name.endswith(":href"):
                assert value in ("readyz", "metrics", "livez", "data:,", "10", "width=device-width,initial-scale=1")


def test_it_needs_nothing_else() -> None:
    text = page.render(many(20))
    safe(Parsed(text))
    assert "<script" not in text
    for reference in ("http://", "https://", "//", "@import", "url(", "javascript:"):
        assert reference not in text, reference
    assert text.startswith('<!doctype html><html lang="en"><head><meta charset="utf-8">')


HOSTILE = [
    "<script>alert(1)</script>",
    "</title></style></article><script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "&lt;b&gt; &amp; &#60;",
    "<!-- x",
    "]]>",
    "\x00\x1b[31m\x7f\r\n\t",
    "\u202egnitirw\u2066",
    "\udce9\ud800",
    "été 東京 ✕",
    "\ufeff\u2028",
    "http://evil.example/",
    "a" * 3000,
]
FIELDS = ("name", "principal", "path", "message", "hint", "reason")


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text)[:40])
@pytest.mark.parametrize("field", [*FIELDS, "method", "refresher", "version"])
def test_everything_is_text(field: str, text: str) -> None:
    def said(value: str) -> Status:
        if field in FIELDS:
            fields: dict[str, Any] = {field: value}
            return status(dataclasses.replace(credential("etl", DEGRADED), **fields))
        if field == "method":
            return status(credential("etl", DEGRADED, refreshes={value: 1}))
        return status(credential("etl", DEGRADED), **{field: value})

    rendered = page.render(said(text))
    read = Parsed(rendered)
    safe(read)
    assert read.skeleton == parsed(said("harmless")).skeleton
    assert printable(text) in read.said
    rendered.encode()  # there is nothing in it that is not text
    assert all(letter.isprintable() or letter == "\n" for letter in rendered)


def test_the_policy_lets_in_its_own_style_and_nothing_else() -> None:
    (style,) = parsed(many(3)).of("style")
    policy = dict(each.strip().split(" ", 1) for each in dict(page.HEADERS)["Content-Security-Policy"].split(";"))
    own = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == {
        "default-src": "'none'",
        "style-src": f"'sha256-{own}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert dict(page.HEADERS)["Referrer-Policy"] == "no-referrer"


# --- what it says ---


def verdict(*states: str, **fields: Any) -> tuple[str, str]:
    """The sentence, and its tone."""
    read = parsed(status(*(credential(f"c{index}", state, **fields) for index, state in enumerate(states))))
    (sentence,) = (text for tag, kind, text in read.texts if tag == "p" and kind.startswith("verdict"))
    (title,) = read.of("title")
    assert title == f"{sentence} · node1"
    (tone,) = (kind.removeprefix("verdict ") for kind in read.classes("p") if kind.startswith("verdict"))
    return tone, sentence


@pytest.mark.parametrize(
    ("states", "tone", "sentence"),
    [
        ([VALID], "good", "The token is valid"),
        ([VALID, VALID], "good", "All 2 tokens valid"),
        ([VALID, STANDBY], "good", "All 2 tokens valid"),
        ([STANDBY], "standby", "Another refresher publishes"),
        ([STANDBY, STANDBY], "standby", "Another refresher publishes"),
        ([DEGRADED], "degraded", "The token is valid, but not refreshed"),
        ([DEGRADED, VALID, VALID], "degraded", "1 of 3 tokens valid, but not refreshed"),
        ([DEGRADED, DEGRADED, STANDBY], "degraded", "2 of 3 tokens valid, but not refreshed"),
        ([STARTING], "starting", "No valid token"),
        ([STARTING, VALID], "starting", "1 of 2 tokens not valid"),
        ([STARTING, DEGRADED], "bad", "1 of 2 tokens not valid"),
        ([EXPIRED], "bad", "No valid token"),
        ([EXPIRED, STARTING, DEGRADED, VALID, STANDBY], "bad", "2 of 5 tokens not valid"),
    ],
)
def test_the_verdict(states: list[str], tone: str, sentence: str) -> None:
    assert verdict(*states) == (tone, sentence)


def test_the_verdict_of_a_start_that_fails() -> None:
    assert verdict(STARTING, reason="kdc_unreachable", message="m", failures=1) == ("bad", "No valid token")


def test_the_verdict_is_as_readyz_has_it() -> None:
    for states in itertools.product(STATES, repeat=3):
        said = status(*(credential(f"c{index}", state) for index, state in enumerate(states)))
        tone, _ = verdict(*states)
        assert (tone in ("bad", "starting")) == (not said.ready), states


def test_every_tone_has_a_colour() -> None:
    style = parsed(status()).of("style")[0]
    for name in ("good", "degraded", "bad", "starting", "standby", *STATES):
        assert re.search(rf"\.{name}[,{{]", style), name


@pytest.mark.parametrize(
    ("state", "mark", "outcome"),
    [
        (VALID, "✓ valid", "The last try succeeded."),
        (STANDBY, "◦ standby", "Another refresher leads here; this one takes over when it ends."),
        (STARTING, "… starting", "No token yet: the first exchange is under way."),
        (DEGRADED, "! degraded", "4 tries in a row failed: "),
        (EXPIRED, "✕ expired", "4 tries in a row failed: "),
    ],
)
def test_words_of_each_state(state: str, mark: str, outcome: str) -> None:
    read = of(credential("etl", state))
    assert read.of("span", "state") == [mark]
    assert read.of("p", "outcome")[0] == outcome
    assert read.of("p", "whose") == ["etl@EXAMPLE.COM → /run/krbrefresh/etl/krb5cc"]
    (article,) = read.classes("article")
    assert article.split() == [state, *(["failing"] if state in (DEGRADED, EXPIRED) else [])]
    if state in (DEGRADED, EXPIRED):
        assert read.of("b") == ["kdc_timeout"]
        assert read.of("p", "outcome")[1] == ". no answer in 15 s"
        assert read.of("p", "hint") == ["What to do: check its load"]
    else:
        assert read.of("b") == read.of("p", "hint") == []


def test_words_of_what_was_found_and_of_a_first_failure() -> None:
    found = of(credential("etl", VALID, last_success_at=None))
    assert found.of("p", "outcome") == ["Found at the start, still good, and not refreshed since."]
    first = of(credential("etl", STARTING, reason="keytab_missing", message=None, hint=None, failures=1))
    assert first.of("p", "outcome") == ["The last try failed: ", ". "]
    assert first.of("p", "hint") == []


def facts(said: CredentialStatus) -> dict[str, str]:
    read = of(said)
    values = [text for tag, _, text in read.texts if tag in ("time", "dd")]
    return dict(zip(read.of("dt"), values, strict=True))


def test_facts() -> None:
    assert facts(credential("etl")) == {
        "expires": "in 8h",
        "window opens": "in 4h",
        "renewable until": "in 1d",
        "next try": "in 4h",
        "last published": "2h ago",
        "generation": "7",
        "refreshes by keytab": "3",
        "refreshes by renewal": "2",
    }
    past = facts(credential("etl", EXPIRED))
    assert (past["expired"], past["window opened"]) == ("1h ago", "5h ago")
    assert facts(CredentialStatus(name="etl", principal="p", path="/t", state=STARTING)) == {}
    assert facts(credential("etl", STARTING, next_attempt_at=NOW)) == {"next try": "now"}
    assert facts(credential("etl", STARTING, next_attempt_at=NOW + 0.4)) == {"next try": "now"}
    assert facts(credential("etl", STARTING, next_attempt_at=NOW + 61)) == {"next try": "in 1m 1s"}
    assert facts(credential("etl", expires_at=0.0))["expired"] == "20833d 8h ago"
    assert facts(credential("etl", generation=0))["generation"] == "0"


def test_moments_are_there_exactly() -> None:
    (time,) = (attributes for tag, attributes in of(credential("etl", STARTING)).tags if tag == "time")
    assert time == {"datetime": "2027-01-15T12:00:00Z", "title": "2027-01-15T12:00:00Z"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "2027-01-15T08:00:00Z · publishes · version 1.2.3 · KDC's clock agrees with ours"),
        (
            {"leader": False, "clock_offset": 90.0},
            "2027-01-15T08:00:00Z · stands by · version 1.2.3 · KDC's clock 1m 30s ahead of ours",
        ),
        (
            {"clock_offset": -3600.0},
            "2027-01-15T08:00:00Z · publishes · version 1.2.3 · KDC's clock 1h behind ours",
        ),
        ({"clock_offset": None}, "2027-01-15T08:00:00Z · publishes · version 1.2.3"),
    ],
)
def test_facts_of_the_whole(fields: dict[str, Any], words: str) -> None:
    assert parsed(status(credential("etl"), **fields)).of("p", "facts") == [words]


def test_the_worst_comes_first_and_the_rest_stays_in_order() -> None:
    order = [VALID, STANDBY, EXPIRED, VALID, STARTING, DEGRADED, EXPIRED]
    read = parsed(status(*(credential(f"c{index}", state) for index, state in enumerate(order))))
    names = [text for tag, kind, text in read.texts if tag == "span" and not kind]
    assert names == ["c2", "c6", "c4", "c5", "c0", "c3", "c1"]


def test_of_many_the_worst_have_a_card_and_the_rest_a_line() -> None:
    late = credential("late", DEGRADED)
    read = parsed(status(*(credential(f"c{index}", VALID) for index in range(page.MOST_CARDS + 50)), late))
    names = [text for tag, kind, text in read.texts if tag == "span" and not kind]
    assert len(names) == page.MOST_CARDS
    assert names[0] == "late"
    lines = read.of("li", VALID)
    assert [line.strip() for line in lines] == [f"c{index}" for index in range(199, 250)]
    said = [text for tag, kind, text in read.texts if kind == "state"][-51:]
    assert all(re.fullmatch("✓ valid · expires in [0-9hms ]+", each) for each in said), said
    safe(read)


def test_it_comes_anew_and_names_what_machines_ask() -> None:
    read = parsed(status())
    assert ("meta", {"http-equiv": "refresh", "content": "10"}) in read.tags
    links = [attributes["href"] for tag, attributes in read.tags if tag == "a"]
    assert links == ["readyz", "metrics", "livez"]  # relative: behind a proxy they have another front


# --- the bar ---


def bar(**fields: Any) -> dict[str, tuple[int, int]]:
    """Where each part of it begins, and how wide it is, of 1000."""
    read = of(credential("etl", **fields))
    parts = {}
    for tag, attributes in read.tags:
        if tag == "rect":
            assert attributes["height"] == "12"
            parts[attributes["class"]] = int(attributes.get("x", "0")), int(attributes["width"])
    return parts


@pytest.mark.parametrize(
    ("start", "opens", "end", "spent", "window", "now"),
    [
        (-2, 4, 8, 200, 600, 200),  # hours from now
        (0, 4, 8, 0, 500, 0),
        (1, 2, 5, 0, 250, 0),  # not begun
        (-8, -4, 0, 1000, 500, 996),  # over at this moment
        (-10, -4, -1, 1000, 667, 996),  # over long ago
        (-4, None, 4, 500, 1000, 500),
        (-4, -9, 4, 500, 0, 500),  # a window that is longer than the life
        (-4, 9, 4, 500, 1000, 500),
    ],
)
def test_the_bar(start: int, opens: int | None, end: int, spent: int, window: int, now: int) -> None:
    opens_at = None if opens is None else NOW + opens * HOUR
    parts = bar(starts_at=NOW + start * HOUR, window_opens_at=opens_at, expires_at=NOW + end * HOUR)
    assert parts == {
        "track": (0, 1000),
        "window": (window, 1000 - window),
        "spent": (0, spent),
        "now": (now, 4),
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"starts_at": None},
        {"expires_at": None},
        {"starts_at": NOW, "expires_at": NOW},
        {"starts_at": NOW + 1, "expires_at": NOW},
    ],
)
def test_no_bar_where_there_is_no_life(fields: dict[str, Any]) -> None:
    assert bar(**fields) == {}


def label(**fields: Any) -> str:
    (found,) = (attributes["aria-label"] for tag, attributes in of(credential("etl", **fields)).tags if tag == "svg")
    return found


def test_the_bar_in_words() -> None:
    assert label() == "20 % of the token's life is over"
    assert label(starts_at=NOW) == "0 % of the token's life is over"
    assert label(starts_at=NOW - 1e9, expires_at=NOW + 1e-3) == "100 % of the token's life is over"
    assert label(expires_at=NOW) == label(expires_at=NOW - 1) == "the token has ended"


# --- whatever it is given ---

TEXTS = st.text(st.characters(exclude_categories=()), max_size=30)
MOMENTS = st.floats(-1e18, 1e18) | st.floats(NOW - 1e6, NOW + 1e6)
PERHAPS = st.none() | MOMENTS
CREDENTIALS = st.builds(
    CredentialStatus,
    name=TEXTS,
    principal=TEXTS,
    path=TEXTS,
    state=st.sampled_from(STATES),
    reason=st.none() | st.sampled_from(list(REFRESH_REASONS)),
    message=st.none() | TEXTS,
    hint=st.none() | TEXTS,
    failures=st.integers(0, 10**9),
    starts_at=PERHAPS,
    window_opens_at=PERHAPS,
    expires_at=PERHAPS,
    renew_until=PERHAPS,
    generation=st.none() | st.integers(0, 2**63),
    next_attempt_at=PERHAPS | st.just(float("inf")),
    last_success_at=PERHAPS,
    refreshes=st.dictionaries(TEXTS, st.integers(0, 100), max_size=3),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(CREDENTIALS, max_size=5), TEXTS, TEXTS, MOMENTS, st.booleans(), st.none() | st.floats(-1e12, 1e12))
def test_whatever_the_status_is(
    credentials: list[CredentialStatus], refresher: str, version: str, now: float, leader: bool, offset: float | None
) -> None:
    said = status(*credentials, refresher=refresher, version=version, now=now, leader=leader, clock_offset=offset)
    rendered = page.render(said)
    rendered.encode()
    read = Parsed(rendered)
    safe(read)
    assert read.classes("article") == [
        f"{each.state} failing" if each.reason else each.state
        for each in sorted(credentials, key=lambda each: (STATES.index(each.state), not each.reason))
    ]
    for tag, attributes in read.tags:
        if tag == "rect":
            begin, width = int(attributes.get("x", "0")), int(attributes["width"])
            assert 0 <= begin <= begin + width <= 1000


# --- colours ---


def colours(style: str) -> Iterator[dict[str, str]]:
    """The variables of the light one, and of the dark one."""
    light, dark = (dict(re.findall(r"--(\w+):(#\w+)", each)) for each in style.split("prefers-color-scheme:dark", 1))
    assert light.keys() == dark.keys()
    yield from (light, dark)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    parts = (int(digits[each : each + 2], 16) / 255 for each in (0, 2, 4))
    linear = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
    return sum(weight * each for weight, each in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(scheme: int) -> None:
    known = list(colours(parsed(status()).of("style")[0]))[scheme]
    for ink in ("ink", "soft", "good", "warn", "bad", "still"):
        for paper in ("paper", "card"):
            assert contrast(known[ink], known[paper]) >= 4.5, (ink, paper)  # WCAG 2.2, 1.4.3


# --- in a browser ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """It says what there is to say of each state, and has names that are as long as they are hostile."""
    long = "x" * 200
    states = [credential(state, state) for state in STATES]
    hostile = credential("<script>document.title='no'</script>" + long, EXPIRED, path=f"/{long}/krb5cc", message=long)
    made = Server(status(hostile, *states, refresher="node1." + long)).listen()
    yield made
    made.close()


def test_a_browser_shows_it(browser: Browser, server: Server) -> None:
    address = f"http://127.0.0.1:{server.port}/"
    with Tab(browser) as tab:
        tab.open(address)
        said = tab.evaluate("document.body.innerText")
        for words in (
            "3 of 6 tokens not valid",
            "✕ expired",
            "expired@EXAMPLE.COM → /run/krbrefresh/expired/krb5cc",
            "4 tries in a row failed: kdc_timeout. no answer in 15 s",
            "What to do: check its load",
            "Another refresher leads here",
            "<script>document.title='no'</script>",
        ):
            assert words in said, words
        assert tab.evaluate("document.title").startswith("3 of 6 tokens not valid · node1.")
        assert tab.evaluate("document.compatMode") == "CSS1Compat"
        # The policy lets its own style in, the page asks for nothing else, and nothing was refused.
        assert tab.evaluate("getComputedStyle(document.querySelector('h2')).display") == "flex"
        assert tab.requests() == [address]
        assert tab.complaints() == []
        assert different_rows(tab.screenshot()) > 50


def test_the_browser_would_complain(browser: Browser, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_STYLE", page._STYLE + "p{color:red}")
    with Tab(browser) as tab:
        tab.open(f"http://127.0.0.1:{server.port}/")
        assert tab.complaints()
        assert tab.evaluate("getComputedStyle(document.querySelector('h2')).display") == "block"


def test_light_and_dark(browser: Browser, server: Server) -> None:
    seen = []
    for dark, known in enumerate(colours(page._STYLE)):
        with Tab(browser, dark=bool(dark)) as tab:
            tab.open(f"http://127.0.0.1:{server.port}/")
            paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert paper == f"rgb({', '.join(str(int(known['paper'][each : each + 2], 16)) for each in (1, 3, 5))})"
            seen.append(tab.screenshot())
    assert seen[0] != seen[1]
    assert all(different_rows(each) > 50 for each in seen)


WIDER = """
[...document.querySelectorAll('body *')].filter(
    each => each.getBoundingClientRect().right > innerWidth + 0.5 || each.getBoundingClientRect().left < -0.5
).map(each => each.outerHTML.slice(0, 80))
"""


@pytest.mark.parametrize("width", [320, 390, 768, 1280, 2560])
def test_nothing_is_wider_than_the_screen(browser: Browser, server: Server, width: int) -> None:
    with Tab(browser, width=width, height=844) as tab:
        tab.open(f"http://127.0.0.1:{server.port}/")
        assert tab.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        assert tab.evaluate(WIDER) == []
        assert different_rows(tab.screenshot()) > 50


def test_the_bar_as_the_browser_has_it(browser: Browser, server: Server) -> None:
    server.said = status(credential("etl"))
    with Tab(browser, width=390, height=844) as tab:
        tab.open(f"http://127.0.0.1:{server.port}/")
        full, window, spent = (
            tab.evaluate(f"document.querySelector('.life .{part}').getBoundingClientRect().width")
            for part in ("track", "window", "spent")
        )
        assert full > 250
        assert window / full == pytest.approx(0.4, abs=0.01)
        assert spent / full == pytest.approx(0.2, abs=0.01)


def test_it_comes_anew_by_itself(browser: Browser, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "REFRESH_EVERY", 1)
    server.said = status(credential("etl"))
    with Tab(browser) as tab:
        tab.open(f"http://127.0.0.1:{server.port}/")
        assert tab.evaluate("document.querySelector('.verdict').innerText") == "The token is valid"
        server.said = status(credential("etl", EXPIRED))
        eventually(lambda: tab.evaluate("document.querySelector('.verdict')?.innerText") == "No valid token", within=10)


def test_a_thousand_credentials_in_a_browser(browser: Browser, server: Server) -> None:
    server.said = many(1000)
    with Tab(browser, width=390, height=844) as tab:
        tab.open(f"http://127.0.0.1:{server.port}/")
        assert tab.evaluate("document.querySelectorAll('article').length") == page.MOST_CARDS
        assert tab.evaluate("document.querySelectorAll('li').length") == 1000 - page.MOST_CARDS
        assert tab.evaluate("document.documentElement.scrollWidth") == 390
