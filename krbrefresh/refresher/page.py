"""The page at `/`, for people: one HTML document that needs nothing else, no script, no font, no image.

It is made anew for each request and asks the browser to come again. What comes from settings, files and the KDC is text
in it, never markup: everything goes through `_text`.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence

from .._text import moment_text, printable, seconds_text
from .status import DEGRADED, EXPIRED, STANDBY, STARTING, VALID, CredentialStatus, Status

CONTENT_TYPE = "text/html; charset=utf-8"
REFRESH_EVERY = 10  # seconds
MOST_CARDS = 200  # the rest, of which none is worse, has a line each: a browser has to lay it out every ten seconds

_WORST_FIRST = (EXPIRED, STARTING, DEGRADED, VALID, STANDBY)
_MARKS = {EXPIRED: "✕", STARTING: "…", DEGRADED: "!", VALID: "✓", STANDBY: "◦"}  # a colour alone tells not everybody

_STYLE = """
:root{color-scheme:light dark;--paper:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5b6675;--line:#dde2e9;--track:#e6eaf0;
--good:#17794a;--warn:#8a5a00;--bad:#b3261e;--still:#4a5b78;--spent:#8fa3bf;--window:#f0c869}
@media(prefers-color-scheme:dark){:root{--paper:#12161c;--card:#1b212a;--ink:#e6eaf0;--soft:#9aa7b8;--line:#2d3643;
--track:#2a323e;--good:#5fce95;--warn:#f0b94d;--bad:#ff8a80;--still:#a3b6d6;--spent:#64789a;--window:#8f6d1c}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.45 system-ui,sans-serif}
header,main,footer{max-width:60rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.5rem}
h1{font-size:1rem;font-weight:600;margin:0;color:var(--soft);overflow-wrap:anywhere}
.verdict{font-size:1.6rem;line-height:1.25;font-weight:650;margin:.15rem 0 .35rem}
.facts{margin:0 0 1.25rem;color:var(--soft);font-size:.9rem}
article{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--tone);border-radius:6px;
padding:.8rem 1rem .9rem;margin:0 0 .8rem}
h2{font-size:1.1rem;margin:0;display:flex;gap:.6rem;align-items:baseline;flex-wrap:wrap}
h2 span:first-child{overflow-wrap:anywhere}
.state{font-size:.85rem;font-weight:600;color:var(--tone);white-space:nowrap}
.whose{margin:.1rem 0 0;color:var(--soft);font-size:.9rem;overflow-wrap:anywhere}
.life{display:block;width:100%;height:12px;margin:.7rem 0 .25rem;border-radius:3px}
.track{fill:var(--track)}.window{fill:var(--window)}.spent{fill:var(--spent)}.now{fill:var(--ink)}
.expired .spent{fill:var(--bad)}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.35rem 1rem;margin:.5rem 0 0}
dt{font-size:.75rem;color:var(--soft)}
dd{margin:0;font-variant-numeric:tabular-nums}
.outcome{margin:.6rem 0 0;overflow-wrap:anywhere}
.outcome b{color:var(--tone)}
.hint{margin:.2rem 0 0;overflow-wrap:anywhere}
.key{display:inline-block;width:1.6em;height:.7em;border-radius:2px;margin:0 .35em 0 .9em}
.key.s{background:var(--spent)}.key.w{background:var(--window)}
.rest{list-style:none;margin:0;padding:.2rem 0;overflow-wrap:anywhere}
footer{padding:.4rem 1rem 2rem;color:var(--soft);font-size:.85rem}
.valid,.good{--tone:var(--good)}.degraded{--tone:var(--warn)}.expired,.bad{--tone:var(--bad)}
.starting,.standby{--tone:var(--still)}.starting.failing{--tone:var(--bad)}
.verdict{color:var(--tone)}
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS = (
    # Should markup get in nevertheless, it can load nothing, run nothing and send nothing (W3C, CSP Level 3).
    (
        "Content-Security-Policy",
        f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),
)


def render(status: Status) -> str:
    """The page for a status."""
    credentials = sorted(status.credentials, key=lambda each: (_WORST_FIRST.index(each.state), not each.reason))
    tone, verdict = _verdict(status)
    facts = [
        f"{moment_text(status.now)}",
        "publishes" if status.leader else "stands by",
        f"version {_text(status.version)}",
    ]
    if status.clock_offset is not None:
        facts.append(f"KDC's clock {_offset(status.clock_offset)}")
    legend = '<span class="key s"></span>over<span class="key w"></span>window: the time for a refresh'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_EVERY}">'
        f'<link rel="icon" href="data:,"><title>{verdict} · {_text(status.refresher)}</title>'
        f"<style>{_STYLE}</style></head><body>"
        f"<header><h1>krbrefresh · {_text(status.refresher)}</h1>"
        f'<p class="verdict {tone}">{verdict}</p><p class="facts">{" · ".join(facts)}</p></header>'
        f"<main>{''.join(_credential(credential, status.now) for credential in credentials[:MOST_CARDS])}"
        f"{_rest(credentials[MOST_CARDS:], status.now)}</main>"
        f"<footer>A token's life:{legend}. This page comes anew every {REFRESH_EVERY} s. For machines: "
        '<a href="readyz">readyz</a>, <a href="metrics">metrics</a>, <a href="livez">livez</a>.</footer>'
        "</body></html>\n"
    )


def _verdict(status: Status) -> tuple[str, str]:
    """The whole in one sentence, and its tone."""
    total = len(status.credentials)
    states = [credential.state for credential in status.credentials]
    without = states.count(EXPIRED) + states.count(STARTING)
    degraded = states.count(DEGRADED)
    if without:
        tone = STARTING if EXPIRED not in states and not any(each.reason for each in status.credentials) else "bad"
        return tone, f"{without} of {_tokens(total)} not valid" if total > 1 else "No valid token"
    if degraded:
        whose = f"{degraded} of {_tokens(total)}" if total > 1 else "The token is"
        return DEGRADED, f"{whose} valid, but not refreshed"
    if total and states.count(STANDBY) == total:
        return STANDBY, "Another refresher publishes"
    return "good", f"All {_tokens(total)} valid" if total > 1 else "The token is valid"


def _tokens(count: int) -> str:
    return f"{count} token{'s' if count != 1 else ''}"


def _credential(credential: CredentialStatus, now: float) -> str:
    return (
        f'<article class="{_classes(credential)}"><h2><span>{_text(credential.name)}</span>'
        f'<span class="state">{_MARKS[credential.state]} {credential.state}</span></h2>'
        f'<p class="whose">{_text(credential.principal)} → {_text(credential.path)}</p>'
        f"{_bar(credential, now)}<dl>{_facts(credential, now)}</dl>{_outcome(credential, now)}</article>"
    )


def _classes(credential: CredentialStatus) -> str:
    return f"{credential.state}{' failing' if credential.reason else ''}"


def _rest(credentials: Sequence[CredentialStatus], now: float) -> str:
    lines = []
    for each in credentials:
        words = [f"{_MARKS[each.state]} {each.state}"]
        if each.reason:
            words.append(_text(each.reason))
        if each.expires_at is not None:
            words.append(f"{'expires' if each.expires_at > now else 'expired'} {_length(each.expires_at, now)}")
        said = " · ".join(words)
        lines.append(f'<li class="{_classes(each)}">{_text(each.name)} <span class="state">{said}</span></li>')
    return f'<ul class="rest">{"".join(lines)}</ul>' if lines else ""


def _bar(credential: CredentialStatus, now: float) -> str:
    """The life of the published token: what is over of it, and the window at its end. In a thousand parts."""
    start, end = credential.starts_at, credential.expires_at
    if start is None or end is None or end <= start:
        return ""
    opens = end if credential.window_opens_at is None else credential.window_opens_at
    spent, window = (_part(each, start, end) for each in (now, opens))
    words = "the token has ended" if now >= end else f"{spent // 10} % of the token's life is over"
    return (
        '<svg class="life" viewBox="0 0 1000 12" preserveAspectRatio="none" role="img" '
        f'aria-label="{words}"><rect class="track" width="1000" height="12"/>'
        f'<rect class="window" x="{window}" width="{1000 - window}" height="12"/>'
        f'<rect class="spent" width="{spent}" height="12"/>'
        f'<rect class="now" x="{min(spent, 996)}" width="4" height="12"/></svg>'
    )


def _part(moment: float, start: float, end: float) -> int:
    """How far a moment is between two others, in thousandths."""
    return round(1000 * min(1.0, max(0.0, (moment - start) / (end - start))))


def _facts(credential: CredentialStatus, now: float) -> str:
    expires, opens = credential.expires_at, credential.window_opens_at
    moments = (
        ("expires" if expires is None or expires > now else "expired", expires),
        ("window opens" if opens is None or opens > now else "window opened", opens),
        ("renewable until", credential.renew_until),
        ("next try", credential.next_attempt_at),
        ("last published", credential.last_success_at),
    )
    facts = [(label, _when(moment, now)) for label, moment in moments if moment is not None]
    if credential.generation is not None:
        facts.append(("generation", str(credential.generation)))
    facts += [(f"refreshes by {_text(method)}", str(count)) for method, count in credential.refreshes.items() if count]
    return "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in facts)


def _outcome(credential: CredentialStatus, now: float) -> str:
    """What came of the last try."""
    if credential.reason:
        times = "The last try failed" if credential.failures == 1 else f"{credential.failures} tries in a row failed"
        hint = f'<p class="hint">What to do: {_text(credential.hint)}</p>' if credential.hint else ""
        said = f"{times}: <b>{_text(credential.reason)}</b>. {_text(credential.message or '')}"
        return f'<p class="outcome">{said}</p>{hint}'
    if credential.state == STANDBY:
        words = "Another refresher leads here; this one takes over when it ends."
    elif credential.state == STARTING:
        words = "No token yet: the first exchange is under way."
    elif credential.last_success_at is None:
        words = "Found at the start, still good, and not refreshed since."
    else:
        words = "The last try succeeded."
    return f'<p class="outcome">{words}</p>'


def _when(moment: float, now: float) -> str:
    """How far it is from now, with the moment itself behind it."""
    exact = _text(moment_text(moment))
    return f'<time datetime="{exact}" title="{exact}">{_length(moment, now)}</time>'


def _length(moment: float, now: float) -> str:
    """`in 9h 58m` or `3m 2s ago`."""
    length = seconds_text(moment - now)
    return "now" if length == "0s" else f"in {length}" if moment > now else f"{length} ago"


def _offset(seconds: float) -> str:
    if abs(seconds) < 1:
        return "agrees with ours"
    return f"{seconds_text(seconds)} {'ahead of' if seconds > 0 else 'behind'} ours"


def _text(value: str) -> str:
    return html.escape(printable(value))
