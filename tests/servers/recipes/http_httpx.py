import os

import httpx
from httpx_gssapi import HTTPSPNEGOAuth

import krbrefresh

krbrefresh.activate()
with httpx.Client(auth=HTTPSPNEGOAuth(opportunistic_auth=True), timeout=30) as client:
    answer = client.get(os.environ["URL"])
    answer.raise_for_status()
    print(answer.text.strip())
