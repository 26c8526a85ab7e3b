"""What stands behind `--model openai:`, as a checked record."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from evalsuite.errors import UserError, unknown
from evalsuite.plan import WORDINGS

CHOICES = ("auto", "logprobs", "generation")
SECRETS = ("key", "api_key", "apikey", "token", "password")


@dataclass(frozen=True, slots=True)
class Arguments:
    """`base_url=http://HOST/v1,model=NAME,...`; times in seconds, rates in requests a second, context in tokens."""

    base_url: str = ""
    model: str = ""  # as the server calls it
    name: str = ""  # of the run; else the last part of `model`
    context: int = 0  # prompt and answer; 0: what the server says
    chat: bool = False
    concurrency: int = 8  # samples in flight
    rate: float = 0.0  # 0: as fast as they are answered
    tokenizer: str = ""  # folder or name
    key_env: str = ""  # the variable that holds the key
    wording: str = "natural"
    timeout: float = 600.0  # of one request
    patience: float = 600.0  # for which a request that failed is tried again
    choices: str = "auto"

    def key(self) -> str:
        """The key, "" where none is named. Raises UserError where its variable is not set."""
        found = os.environ.get(self.key_env, "").strip() if self.key_env else ""
        if self.key_env and not found:
            raise UserError(f"key_env={self.key_env} names a variable that is not set; export {self.key_env}=...")
        return found


def parse(text: str) -> Arguments:
    """Read `key=value,...`. Raises UserError, one line that never repeats a key, for what is wrong or missing."""
    known = {field.name: field.type for field in fields(Arguments)}
    found: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, value = (side.strip() for side in part.partition("="))
        if name.lower() in SECRETS:
            raise UserError(
                f"openai: {name} would stand in the run's record; put it in a variable, and key_env=VARIABLE"
            )
        if name not in known:
            raise unknown("argument of openai:", name, known)
        if not (equals and value):
            raise UserError(f"openai: {name} has no value; write {name}=...")
        found[name] = READ[known[name]](name, value)
    made = Arguments(**found)
    _check(made)
    return made


def _check(made: Arguments) -> None:
    for name in ("base_url", "model"):
        if not getattr(made, name):
            raise UserError(f"openai: needs {name}; write openai:base_url=http://HOST/v1,model=NAME")
    try:
        url = urlsplit(made.base_url)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    if not good:
        raise UserError("openai: base_url is no address; write base_url=http://HOST:PORT/v1")
    if url.username or url.password or url.query:
        raise UserError("openai: base_url holds a password or a query; put the key in a variable, and key_env=VARIABLE")
    for name, value, words in (("wording", made.wording, WORDINGS), ("choices", made.choices, CHOICES)):
        if value not in words:
            raise unknown(name, value, words)
    if made.chat and made.choices == "logprobs":
        raise UserError(
            "openai: chat=true gives no log probability of a prompt; leave choices=logprobs or chat=true out"
        )


def _whole(name: str, value: str) -> int:
    """`8192` or `8k`, at least 1."""
    digits, unit = (value[:-1], 1024) if value.lower().endswith("k") else (value, 1)
    if not digits.isdecimal() or int(digits) < 1:
        raise UserError(f"openai: {name}={value} is no whole number from 1 on")
    return int(digits) * unit


def _number(name: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 < found < 1e9:
        raise UserError(f"openai: {name}={value} is no number above 0")
    return found


def _truth(name: str, value: str) -> bool:
    if value.lower() not in ("true", "false"):
        raise UserError(f"openai: {name}={value} is neither true nor false")
    return value.lower() == "true"


READ: Mapping[Any, Callable[[str, str], Any]] = {int: _whole, float: _number, bool: _truth, str: lambda _, value: value}
