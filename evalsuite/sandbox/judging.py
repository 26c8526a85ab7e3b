"""The trusted side of a call: runs the tests, with stubs where the candidate's functions would be.

It is a process of its own with a short life and bounded memory, so an answer that is huge, deep or endless can make a
test fail and hurt nobody. What it says goes down a pipe that no candidate has.
"""

import ast
import builtins
import importlib
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from evalsuite.sandbox import wire

ITEMS = 1_000_000  # of one iterator
MEMORY = 4 << 30  # bytes of address space: a test may import numpy
ENDED = "the candidate ended by itself"
MODULE = object()  # what a module that a program has imported is here
ENDINGS = ("StopIteration", "StopAsyncIteration")  # raised in a test's loop they would end it early


class Gone(BaseException):
    """The candidate answers no more, or nothing that can be read. No test may catch it and pass."""


class Link:
    """Calls into the candidate, one at a time."""

    def __init__(self, to: int, source: int) -> None:
        self.to, self.source = to, source
        self.ours: list[Callable[..., Any]] = []
        self.gone = ""

    def ask(self, op: str, *parts: Any) -> list[Any]:
        """Send one request; the parts of its answer. Raises what the candidate raised, or Gone."""
        self.send([op, *parts])
        while True:
            kind, *rest = self.receive()
            if kind == "ok":
                return rest
            if kind == "error" and len(rest) == 2:
                raise rebuilt(*rest)
            if kind != "back" or len(rest) != 3:
                self.lose("the candidate's answer cannot be read: it has an unknown form")
            self.back(*rest)

    def back(self, number: Any, given: Any, named: Any) -> None:
        """Run one of our own functions for the candidate."""
        try:
            value = self.ours[number](*given, **named)
            self.send(["returned", value])
        except Exception as error:
            text = str(error.args[0] if error.args else "")[:1000]
            self.send(["raised", (type(error).__name__, text)])

    def send(self, message: list[Any]) -> None:
        text = f"[{', '.join([wire.encode(part, self.outgoing) for part in message])}]"
        try:
            wire.send(self.to, text)
        except OSError:
            self.lose(ENDED)

    def receive(self) -> list[Any]:
        if self.gone:
            raise Gone(self.gone)
        try:
            text = wire.receive(self.source)
            tree = ["end"] if text is None else wire.parse(text)
            if type(tree) is not list or not tree:
                raise wire.WireError("it has an unknown form")
            parts = [wire.decode(part, self.incoming) for part in tree]
        except (wire.WireError, RecursionError, MemoryError) as error:
            self.lose(f"the candidate's answer cannot be read: {error or type(error).__name__}")
        if text is None:
            self.lose(ENDED)
        return parts

    def lose(self, why: str) -> NoReturn:
        self.gone = self.gone or why
        raise Gone(why)

    def incoming(self, tree: list[Any]) -> Any:
        """What an answer names: an object left in the sandbox, a module, one of our own functions."""
        tag, name, *rest = tree
        if tag == "n" and type(name) is int:
            return self.items(Remote(self, name, ""))
        if tag == "h" and type(name) is int:
            return Remote(self, name, str(rest[0]))
        if tag == "m":
            return MODULE
        if tag == "p" and type(name) is int:
            return self.ours[name]
        raise wire.WireError("it has an unknown form")

    def outgoing(self, value: Any) -> list[Any]:
        if type(value) is Remote:
            return ["h", value._number]
        name = getattr(value, "__name__", "")
        if getattr(builtins, name, None) is value:
            return ["u", name]
        if not callable(value):
            raise wire.WireError(f"a {type(value).__name__} cannot be given to a candidate")
        self.ours.append(value)
        return ["p", len(self.ours) - 1]

    def items(self, iterator: "Remote") -> Iterator[Any]:
        """An iterator of the candidate's, fetched as it is used, in growing bites."""
        bite, fetched = 1, 0
        while True:
            part, ended = self.ask("next", iterator, bite)[0]
            yield from part
            fetched += len(part)
            if ended is True:
                return
            if fetched >= ITEMS or not part:
                self.lose(f"the candidate's iterator has more than {ITEMS} items")
            bite = min(2 * bite, 1024)


class Remote:
    """A function, class or object that stays in the sandbox. It equals itself and nothing else: what it says of its
    own equality is the candidate's word."""

    __slots__ = ("__name__", "_link", "_number")

    def __init__(self, link: Link, number: int, name: str) -> None:
        for slot, value in zip(self.__slots__, (name, link, number), strict=True):
            object.__setattr__(self, slot, value)

    def __call__(self, *given: Any, **named: Any) -> Any:
        answer = self._link.ask("call", self, list(given), named)
        if len(answer) == 2:
            for index, value in answer[1]:
                _put_back(given[index], value)
        return answer[0]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("get", self, name)[0]

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self, key)[0]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.ask("put", self, key, value)

    def __len__(self) -> int:
        return int(self._link.ask("len", self)[0])

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        found: Iterator[Any] = iter(self._link.ask("iter", self)[0])
        return found

    def __eq__(self, other: object) -> bool:
        return type(other) is Remote and other._number == self._number

    def __hash__(self) -> int:
        return hash(self._number)


def _put_back(ours: Any, theirs: Any) -> None:
    """Do to the caller's argument what the candidate did to its copy."""
    if type(ours) is not type(theirs):
        return
    if type(ours) is list:
        ours[:] = theirs
    elif type(ours) in (dict, set):
        ours.clear()
        ours.update(theirs)


def rebuilt(names: Any, text: Any) -> Exception:
    """The nearest builtin exception to one that the candidate raised."""
    names = [name for name in names if type(name) is str] if type(names) is list else []
    for name in names:
        kind = getattr(builtins, name, None)
        if name not in ENDINGS and isinstance(kind, type) and issubclass(kind, Exception):
            try:
                return kind(text if name == names[0] else f"{names[0]}: {text}")
            except TypeError:
                continue
    return RuntimeError(f"{names[0] if names else 'an error'}: {text}")


def mentioned(test: str) -> list[str]:
    """The names that a test reads and Python does not give."""
    found = {node.id for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Name)}
    return sorted(name for name in found if not name.startswith("__") and not hasattr(builtins, name))


def run_test(link: Link, job: dict[str, Any]) -> str:
    """Run a test to its end; "" or why it failed. Job: program, test, entry, names."""
    asked = [*job["names"], *filter(None, [job["entry"]])]
    space: dict[str, Any] = {"__name__": "test"}
    try:
        wanted = sorted({*mentioned(job["test"]), *asked})
        given = link.ask("load", job["program"], wanted)[0]
        for name in wanted:
            if name in given and name in sys.stdlib_module_names and name not in asked:
                space[name] = importlib.import_module(name)  # a test may lean on the program's `import math`: ours
            elif name in given and given[name] is not MODULE:
                space[name] = given[name]
        if job["entry"]:
            if job["entry"] not in space:
                return f"the program defines no {job['entry']!r}"
            space["candidate"] = space[job["entry"]]
        exec(compile(job["test"], "<test>", "exec", dont_inherit=True), space)
    except Gone as error:
        return str(error)
    except BaseException as error:
        return link.gone or told(error, job["test"])
    return link.gone


def run_expression(link: Link, job: dict[str, Any]) -> tuple[str, str]:
    """Run a program, then an expression: its value as a message, and "" or why there is none."""
    try:
        link.ask("load", job["program"], [])
        value = link.ask("eval", job["expression"])[0]
        return wire.encode(value, wire.no_other), ""
    except wire.WireError as error:
        return "", f"the value cannot be returned: {error}"
    except (Gone, Exception) as error:
        return "", str(error) if isinstance(error, Gone) else told(error, "")


def told(error: BaseException, test: str) -> str:
    """An exception as one line; an assertion without words is quoted."""
    try:
        text = str(error)
    except Exception:  # of what the candidate has put in
        text = ""
    if isinstance(error, AssertionError) and not text:
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == "<test>"]
        text = test.splitlines()[lines[-1] - 1].strip() if lines and lines[-1] else ""
    return " ".join(f"{type(error).__name__}: {text}".split())[:300].rstrip(": ")


def main(ends: Sequence[int], job: dict[str, Any], bounds: str) -> None:
    """Judge one job and end. `ends`: to the candidate, from it, to the supervisor. `bounds`: what to set inside.

    The kernel ends this process itself, should the test hang: nobody else has to be alive for that.
    """
    to, source, report = ends
    seconds = job["limits"]["seconds"]
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard), hard))
    link = Link(to, source)
    value, reason = "", ""
    try:
        wire.send(to, bounds)
        if "expression" in job:
            value, reason = run_expression(link, job)
        else:
            reason = run_test(link, job)
    except (OSError, wire.WireError, MemoryError, RecursionError) as error:
        reason = link.gone or told(error, "")
    try:
        wire.send(report, _report(reason, value))
    except wire.WireError as error:
        wire.send(report, _report(f"the value cannot be returned: {error}", ""))


def _report(reason: str, value: str) -> str:
    return f"[{', '.join([wire.encode(part, wire.no_other) for part in (not reason, reason, value)])}]"
