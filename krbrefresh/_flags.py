"""The ticket flags, apart so that a worker that does not ask for them does not import `enum`."""

from __future__ import annotations

import enum


class TicketFlags(enum.IntFlag):
    """A ticket's flags as they stand in a ccache (RFC 4120, 5.3; ENC_PA_REP RFC 6806; ANONYMOUS RFC 8062)."""

    FORWARDABLE = 0x40000000
    FORWARDED = 0x20000000
    PROXIABLE = 0x10000000
    PROXY = 0x08000000
    MAY_POSTDATE = 0x04000000
    POSTDATED = 0x02000000
    INVALID = 0x01000000
    RENEWABLE = 0x00800000
    INITIAL = 0x00400000
    PRE_AUTHENT = 0x00200000
    HW_AUTHENT = 0x00100000
    TRANSITED_POLICY_CHECKED = 0x00080000
    OK_AS_DELEGATE = 0x00040000
    ENC_PA_REP = 0x00010000
    ANONYMOUS = 0x00008000
