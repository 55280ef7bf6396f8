#!/usr/bin/env python3
"""A worker that holds the keytab itself: libgssapi refreshes the ccache when it acquires past half of its life.

gssapi_worker.py SECONDS: acquires, and rests that long in between. Says a line of JSON for each acquisition that failed
or took a tenth of a second or more, as its work would have to wait for that. KRB5_CLIENT_KTNAME and KRB5CCNAME say
whose.
"""

from __future__ import annotations

import json
import sys
import time

import gssapi
from gssapi.raw.misc import GSSError

STALL = 0.1  # seconds

while True:
    began, error = time.monotonic(), ""
    try:
        lifetime = gssapi.Credentials(usage="initiate").lifetime
    except GSSError as raised:
        lifetime, error = 0, type(raised).__name__
    took = time.monotonic() - began
    if error or took >= STALL:
        print(json.dumps({"began": began, "took": took, "lifetime": lifetime, "error": error}), flush=True)
    time.sleep(float(sys.argv[1]))
