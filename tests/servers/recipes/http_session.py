import os

import requests
from requests_gssapi import HTTPSPNEGOAuth

session = requests.Session()
session.auth = HTTPSPNEGOAuth(opportunistic_auth=True)


def ask() -> str:
    answer = session.get(os.environ["URL"], timeout=30)
    answer.raise_for_status()
    return answer.text.strip()
