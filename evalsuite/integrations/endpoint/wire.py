"""One request to a server, tried again where trying again may help."""

import random
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import anyio
import httpx2

from evalsuite.errors import UserError
from evalsuite.integrations.endpoint.arguments import Arguments

FIRST, LONGEST = 0.5, 30.0  # seconds before the second try, and before any: each at random up to twice the one before
PASSING = (408, 409, 425, 429)  # statuses that pass, beside 500 and above
OWN = re.compile(  # a refusal of this prompt, which the next may not meet: too long, or held back by a filter
    r"context.?(length|window|size)|maximum (context|sequence|model|input)|max_model_len|too long|too many tokens|"
    r"content.?(filter|policy|management)|safety (system|filter)",
    re.IGNORECASE,
)
Json = Mapping[str, Any]


class AgainError(Exception):
    """A request failed in a way that may pass; `after` is how many seconds the server asks to be left alone, `heard`
    whether there is a server at all."""

    def __init__(self, reason: str, after: float = 0.0, *, heard: bool = True) -> None:
        super().__init__(reason)
        self.after, self.heard = after, heard


class AwayError(UserError):
    """The server failed for as long as it was given; `heard` says whether it was there to say so."""

    def __init__(self, message: str, *, heard: bool) -> None:
        super().__init__(message)
        self.heard = heard


class RefusedError(UserError):
    """The server understood the request and will not answer it; `said` is its reason."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said


class Pace:
    """Spaces requests by 1 / `rate` seconds (0: not at all), and holds all of them back when the server asks for it."""

    def __init__(self, rate: float) -> None:
        self.gap = 1 / rate if rate else 0.0
        self.next = self.quiet = 0.0  # monotonic seconds before which no request starts; `quiet` as the server asked

    async def turn(self) -> None:
        """Wait for the next free moment; again, where the server has asked for quiet meanwhile."""
        while True:
            now = time.monotonic()
            start = max(now, self.next)
            self.next = start + self.gap
            if start > now:
                await anyio.sleep(start - now)
            if time.monotonic() >= self.quiet:
                return

    def pause(self, seconds: float) -> None:
        """Start no request for a while."""
        self.quiet = max(self.quiet, time.monotonic() + seconds)
        self.next = max(self.next, self.quiet)


class Server:
    """Where a server is and how it is asked. Its key is in the headers of requests, and nowhere else."""

    def __init__(self, given: Arguments) -> None:
        self.url = given.base_url.rstrip("/")
        self.timeout, self.patience, self.concurrency = given.timeout, given.patience, given.concurrency
        self.pace = Pace(given.rate)
        self._key = given.key()

    def client(self) -> httpx2.AsyncClient:
        """Connections for one event loop."""
        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(self.timeout, connect=min(self.timeout, 30.0), pool=None),
            limits=httpx2.Limits(max_connections=self.concurrency),
        )

    async def ask(
        self, client: httpx2.AsyncClient, path: str, body: Json | None = None, *, patience: float | None = None
    ) -> Json:
        """The answer to a POST of `body`, or to a GET. Asks again and again for `patience` seconds, never
        for longer than the user has.

        Raises RefusedError where asking again is of no use, and AwayError where the server stays away.
        """
        limit = self.patience if patience is None else min(patience, self.patience)
        began, tries = 0.0, 0
        while True:
            try:
                await self.pace.turn()
                return await self._once(client, path, body)
            except AgainError as error:
                now = time.monotonic()
                began, tries = began or now, tries + 1
                wait = error.after + random.uniform(0, min(LONGEST, FIRST * 2**tries))
                if now + wait > began + limit:
                    asked = f" and asks to wait {error.after:.0f} s" if error.after else ""
                    raise AwayError(
                        f"{self.url} does not answer: {error}{asked}, after {tries} tries in {now - began:.0f} s "
                        f"(patience={limit:g}); what was answered is stored, and the same command goes on",
                        heard=error.heard,
                    ) from error
                if error.after:
                    self.pace.pause(error.after)
                await anyio.sleep(wait)

    async def _once(self, client: httpx2.AsyncClient, path: str, body: Json | None) -> Json:
        try:
            if body is None:
                response = await client.get(self.url + path)
            else:
                response = await client.post(self.url + path, json=body)
        except httpx2.RequestError as error:
            raise AgainError(self.plain(f"{type(error).__name__} {error}"), heard=False) from error
        if response.status_code in PASSING or response.status_code >= 500:
            said = self.plain(_said(response))
            raise AgainError(f"HTTP {response.status_code} {said}".strip(), _after(response.headers))
        if not response.is_success:
            said = self.plain(_said(response))
            raise RefusedError(
                f"{self.url}{path} refused with HTTP {response.status_code}: {said or response.reason_phrase}"
                f"{_mend(response.status_code)}",
                response.status_code,
                said,
            )
        try:
            found = response.json()
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("error"):
            said = self.plain(_said(response)) or "no JSON object"
            if _final(found, said):
                raise RefusedError(f"{self.url}{path} refused with HTTP 200: {said}", response.status_code, said)
            raise AgainError(f"HTTP 200 with {said}")
        return found

    def plain(self, text: str) -> str:
        """One short line, without the key: some servers send back what they were sent."""
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:300]


def _said(response: httpx2.Response) -> str:
    """The reason in the body of an error, in any of the layouts that servers use."""
    try:
        found = response.json()
    except ValueError:
        return response.text
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and found.get(name):
            found = found[name]
    if isinstance(found, dict):
        return f"{found.get('message', '')} {found.get('code') or ''}".strip() or str(found)
    return str(found)


def _final(found: Any, said: str) -> bool:
    """Whether an error that came with HTTP 200 will come again: its own code or its words say so."""
    error = found.get("error") if isinstance(found, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    refused = isinstance(code, int) and 400 <= code < 500 and code not in PASSING
    return refused or (error is not None and OWN.search(said) is not None)


def _after(headers: Mapping[str, str]) -> float:
    """Seconds of `Retry-After` (a number or a date) or `retry-after-ms`; 0 where there is none."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "0")
        if value.replace(".", "", 1).isdecimal():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _mend(status: int) -> str:
    return {
        401: "; give the key with key_env=VARIABLE",
        403: "; give a key that may use this model with key_env=VARIABLE",
        404: "; check base_url (it ends in /v1 on most servers) and model",
        405: "; check base_url (it ends in /v1 on most servers)",
    }.get(status, "")
