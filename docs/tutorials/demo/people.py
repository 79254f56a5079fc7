"""What people do in a browser, done here over HTTP: approving a device login on the sign-in page."""

import re
from urllib.parse import urljoin

import httpx

from modelkeep.auth import DevicePrompt


def approve_device(prompt: DevicePrompt, *, username: str, password: str) -> None:
    """Open the sign-in page, fill in its form and send it, as a person would.

    Raises:
        RuntimeError: the page did not accept the code or the password.
    """
    with httpx.Client(timeout=30) as browser:
        page = browser.get(prompt.verification_uri_complete or prompt.verification_uri)
        hidden = dict(re.findall(r'name="(\w+)"[^>]*type="hidden"[^>]*value="([^"]*)"', page.text))
        hidden |= dict(re.findall(r'type="hidden"[^>]*name="(\w+)"[^>]*value="([^"]*)"', page.text))
        origin = urljoin(prompt.verification_uri, "/").rstrip("/")
        answer = browser.post(
            prompt.verification_uri,
            data={**hidden, "user_code": prompt.user_code, "username": username, "password": password},
            headers={"origin": origin},
        )
    if answer.status_code != httpx.codes.OK:
        raise RuntimeError(f"the sign-in page answered {answer.status_code}")
