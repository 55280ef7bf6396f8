import os

import requests
from requests_gssapi import HTTPSPNEGOAuth

import krbrefresh

krbrefresh.activate()
with requests.Session() as session:
    session.auth = HTTPSPNEGOAuth(opportunistic_auth=True)
    answer = session.get(os.environ["URL"], timeout=30)
    answer.raise_for_status()
    print(answer.text.strip())
