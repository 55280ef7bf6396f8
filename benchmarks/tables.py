"""Which tables docs/benchmarks.md has, what is in their columns, and what a reader has to know of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """`less` is better, or more where it is False; None where neither is. `mean` besides the median, for what happens
    in some runs only. `ratio`: with a column that says how many times krbrefresh's it is."""

    figure: str
    heading: str
    digits: int = 1
    less: bool | None = True
    mean: bool = False
    ratio: bool = False


@dataclass(frozen=True)
class Table:
    """A row for each peer. `note` may name what the scenario says of itself, as `{life}`. `alone`: the rows are all
    krbrefresh's, and nobody is held against it."""

    scenario: str
    title: str
    note: str
    columns: tuple[Column, ...]
    plot: str = ""
    alone: bool = False


TABLES = (
    Table(
        "outage",
        "The KDC freezes",
        """Tickets of {life} s, and every peer is set to refresh at half of that ({interval} s; k5start and libgssapi
        do so of themselves), but for krbrefresh's default, the last third. Ten instances of each start at moments
        that are spread over an interval, so that the freezes hit each at another point. The KDC is stopped
        (SIGSTOP) for 30 s, later for 60 s, which is half of a ticket's life. A program that ends is started again
        after one second: to these tickets that is what five minutes, the longest that a kubelet waits, are to ten
        hours. A window of a third of the life does not bridge a freeze of half of it: whether a token lives
        through that depends on its age when it begins, for krbrefresh as for the others. Seconds without a
        valid token, sampled 50 times a second.""",
        (
            Column("invalid, healthy", "KDC up, s", 1, mean=True),
            Column("invalid, short freeze", "30 s freeze and after, s", 1, mean=True),
            Column("invalid, long freeze", "60 s freeze and after, s", 1, mean=True),
            Column("ended by itself", "times it ended by itself", 0, mean=True),
            Column("longest stall of the worker", "longest stall of a worker, s", 1, less=None),
        ),
        plot="outage",
    ),
    Table(
        "shortened",
        "The KDC gives shorter tickets than expected",
        """Tickets of {life} s where the peers were set for 120 ({interval} s between two refreshes), as when
        somebody lowers a principal's maximum life. The KDC is up all the time. Share of {seconds:.0f} s without a
        valid token.""",
        (Column("invalid", "without a valid token, %", 1),),
    ),
    Table(
        "rotation",
        "The key is rotated, and the keytab comes late",
        """The account's key changes at the KDC; the new keytab replaces the old one {stale:.0f} s later, when every
        token has ended. Instances start at moments that are spread over an interval of {interval} s. A program
        that ends is started again as a kubelet does: after 10, 20, 40 ... seconds. Refused attempts are what
        locks an account: Active Directory counts them. libgssapi asks whenever the worker acquires, twice a
        second here.""",
        (
            Column("attempts refused", "attempts that the KDC refused", 0, mean=True, ratio=True),
            Column("invalid after the new keytab", "then without a valid token, s", 1, mean=True, ratio=True),
        ),
    ),
    Table(
        "torn",
        "Reading while it is rewritten",
        """Two processes parse the ccache without a rest while the peer rewrites it as fast as it can be made to (3 s
        a run). Rewrites are changes of the file that were seen, several for each token where it is rewritten in
        place; airflow rests a second, and libgssapi's worker, whose tickets live two, asks without a rest.""",
        (
            Column("rewrites", "rewrites", 0, less=None),
            Column("reads", "reads", 0, less=None),
            Column("bad reads", "bad reads", 0, mean=True),
            Column("share of bad reads", "% of reads", 3, mean=True),
        ),
    ),
    Table(
        "kill",
        "SIGKILL in the middle of a write",
        """To the whole process group, at a random moment between the first event in the token's directory and the
        end of a write. strace makes each system call that writes, renames, removes or syncs last 5 ms, so that
        every step of every peer is as likely to be hit, however fast it is. A ticket that is left beside the
        ccache lives until it ends, unless somebody removes it.""",
        (
            Column("kills", "kills in a run", 0, less=None),
            Column("token destroyed", "token destroyed, % of kills", 1, mean=True),
            Column("tickets left beside it", "live tickets left, per 100 kills", 0, mean=True),
            Column("tickets there after the next start", "still there after the next start, per 100", 0, mean=True),
        ),
    ),
    Table(
        "full",
        "The disk fills up",
        """A small tmpfs is full, and what fills it goes on, while the peer refreshes several times in 14 s.""",
        (
            Column("token still good", "token still good, % of runs", 0, less=False, mean=True),
            Column("ended by itself", "times it ended by itself", 0, mean=True),
        ),
    ),
    Table(
        "term",
        "TERM while the KDC hangs",
        """In the middle of an exchange with a KDC that is stopped. As a process among others, and as the first
        process of a container (pid 1), where a signal that a program does not handle does nothing, and a shell
        waits for `kinit` or `sleep` before it would. {patience:.0f} s: it had not ended by then. A kubelet kills
        after 30. Left behind are children that live on without it.""",
        (
            Column("to the end, as a process", "as a process, s", 3, ratio=True),
            Column("left behind", "left behind", 0),
            Column("to the end, as pid 1", "as pid 1, s", 3, ratio=True),
        ),
    ),
    Table(
        "schedule",
        "What the KDC hears: 1,000 tokens of ten hours, issued in one minute",
        """**Reckoned, not measured**: krbrefresh's by its own policy with random numbers, the peers' by the schedule
        that their manual or code has, at their defaults (`reinit_frequency` 3600, `-K 10`, an hour for loops and
        sidecars). Longer intervals would make fewer exchanges and leave less time for retries; the bursts would
        be the same where nobody spreads them.""",
        (
            Column("exchanges", "AS exchanges an hour", 0, ratio=True),
            Column("largest burst in a second", "most in a second", 0, ratio=True),
            Column("largest burst in a minute", "most in a minute", 0, ratio=True),
        ),
    ),
    Table(
        "requests",
        "What the KDC hears, measured with short tickets",
        """{count} tokens of {life} s that were started together, counted in the KDC's log for {seconds:.0f} s from
        when all were there. krbrefresh refreshes in the first 30 % of the last third, so it has 12 s here to
        spread over, and an hour with tickets of ten. k5start looks once a minute, at most, and these tickets are so
        short for it that it refreshes at every look; with tickets of ten hours it makes fewer exchanges than
        krbrefresh (the table before this one).""",
        (
            Column("exchanges per token and life", "exchanges per token and ticket life", 2, ratio=True),
            Column("largest burst", "most in one second", 0, ratio=True),
        ),
        plot="requests",
    ),
    Table(
        "first",
        "Start to first token",
        """From the start of the program until a valid token is at the path, in turn, each in a new directory.""",
        (Column("first token", "ms", 0, ratio=True),),
    ),
    Table(
        "idle",
        "At rest, with one credential",
        """Memory of the program and what it has started: private is what ending it would free (USS), proportional
        has its share of what it shares (PSS). All instances of all peers are there at the same time, and what they
        share with others of their kind counts as no one's in the first and in parts in the second. Wake-ups
        are voluntary context switches of all threads, over
        {seconds:.0f} s. libgssapi works inside the worker and has no process of its own.""",
        (
            Column("private", "private, MiB", 1, ratio=True),
            Column("proportional", "proportional, MiB", 1),
            Column("resident", "resident, MiB", 1),
            Column("wake-ups", "wake-ups a minute", 1),
            Column("processor", "processor, ms a minute", 0),
        ),
    ),
    Table(
        "thousand",
        "{count:,} credentials",
        """One krbrefresh (after three scrapes of /metrics), and a k5start for each.""",
        (
            Column("processes", "processes", 0),
            Column("private", "private, MiB", 0, ratio=True),
            Column("proportional", "proportional, MiB", 0),
            Column("resident", "resident, MiB", 0),
            Column("all first tokens", "all first tokens, s", 1, ratio=True),
            Column("one /metrics", "one /metrics, ms", 0, less=None),
        ),
    ),
    Table(
        "scale",
        "How cost grows with the number of credentials",
        """One krbrefresh, one pass. Each credential has an account of its own and tickets of 300 s, of which half is
        the window, so that all are refreshed within 45 s: up to 111 a second, where 5,000 tickets of ten hours make
        one or two. A refresher that refreshes often keeps its children for a few seconds; that is where a refresh
        gets cheaper as they get more. Lateness is from the moment that was planned to when the token is published.
        The KDC and whatever measures share the processors; the first four rows are measured at the same time.""",
        (
            Column("private", "private, MiB", 1, less=None),
            Column("all first tokens", "all first tokens, s", 1, less=None),
            Column("processor per refresh", "processor per refresh, ms", 1, less=None),
            Column("late, median", "late, median, ms", 0, less=None),
            Column("late, p99", "late, p99, ms", 0, less=None),
            Column("all at once", "all at once (USR1), a second", 0, less=None),
        ),
        alone=True,
    ),
    Table(
        "scale",
        "The same, while nothing is due",
        """Processor time of the refresher over 20 seconds each: alone; with somebody who makes a file in one of the
        token directories every second; and of a second refresher that stands by. Answers over HTTP are medians of
        five, on a new connection each.""",
        (
            Column("at rest", "at rest, % of a core", 1, less=None),
            Column("a file a second", "a file a second, %", 1, less=None),
            Column("standing by", "standing by, %", 1, less=None),
            Column("/metrics", "/metrics, ms", 1, less=None),
            Column("/readyz", "/readyz, ms", 1, less=None),
            Column("/", "/, ms", 1, less=None),
            Column("/ size", "/, KiB", 0, less=None),
        ),
        alone=True,
    ),
)

# The worker's half: a row for each figure, a column for each reader.
CLIENT_NOTE = (
    "In turn, in one process, microseconds a call; then whole processes, milliseconds. gssapi is "
    "`Credentials(store=...)` with its name and lifetime, krb5 a context, `cc_resolve`, the principal and all entries. "
    "Neither checks whose token it is, whether it is about to end, or a signature."
)
CLIENT = {
    "us": (
        "load, new",
        "load, unchanged",
        "validate, new",
        "validate, new, all checks",
        "validate, unchanged",
        "validate, new, signed",
        "validate, unchanged, signed",
        "verify",
    ),
    "ms": ("bare", "import", "import, over bare Python", "check", "check, signed"),
}
CLIENT_NAMES = {
    "verify": "an Ed25519 signature of 400 bytes, alone",
    "bare": "`python -c pass`",
    "import": "`python -c 'import ...'`",
    "import, over bare Python": "the same over bare Python",
    "check": "`krbrefresh check`; `klist -s`",
    "check, signed": "`krbrefresh check --public-key`",
}


@dataclass(frozen=True)
class Budget:
    """At most `limit` of (scenario, peer, figure), or `limit` times what `of` names."""

    what: str
    measured: tuple[str, str, str]
    limit: float
    unit: str
    of: tuple[str, str, str] | None = None


_OURS = "krbrefresh"
BUDGETS = (
    Budget("`import krbrefresh` over bare Python", ("client", _OURS, "import, over bare Python"), 8, "ms"),
    Budget(
        "`validate()` of a new token",
        ("client", _OURS, "validate, new"),
        0.5,
        "gssapi",
        ("client", "gssapi", "load, new"),
    ),
    Budget("`validate()` of an unchanged token", ("client", _OURS, "validate, unchanged"), 5, "us"),
    Budget(
        "`validate()` of a new signed token",
        ("client", _OURS, "validate, new, signed"),
        1.74,  # 150 us where Ed25519 alone takes 86
        "Ed25519 alone",
        ("client", "Ed25519 alone", "verify"),
    ),
    Budget("`krbrefresh check`", ("client", _OURS, "check"), 3, "`python -c pass`", ("client", "python", "bare")),
    Budget("resident, idle, one credential", ("idle", _OURS, "resident"), 40, "MiB"),
    Budget("resident, 1,000 credentials, after a scrape", ("thousand", _OURS, "resident"), 60, "MiB"),
    Budget("1,000 first tokens", ("thousand", _OURS, "all first tokens"), 10, "s"),
    Budget("wake-ups, idle", ("idle", _OURS, "wake-ups"), 2, "a minute"),
    Budget("start to first token", ("first", _OURS, "first token"), 400, "ms"),
    Budget("bad reads while it is rewritten", ("torn", _OURS, "bad reads"), 0, ""),
)
