"""The end of the wire inside the sandbox: runs the program nobody trusts and answers calls into it.

Nothing here is a guard. Whatever the program does to this process changes the answers that come out of it, no more.
It is sent in as code, so it imports nothing of the package but `wire`, and nothing slow.
"""

from __future__ import annotations

import builtins
import os
import sys

from evalsuite.sandbox.wire import FRAME, WireError, decode, encode, no_other, parse, receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

Module = type(sys)
Builtin = type(len)


class Guest:
    """Objects that have been given out, by number, and the two ends of the wire."""

    def __init__(self, source: int, to: int) -> None:
        self.source, self.to = source, to
        self.objects: dict[int, Any] = {}
        self.module = Module("candidate")

    def load(self, program: str, names: list[str]) -> dict[str, Any]:
        """Run the program as a module of its own; what it then has under `names`."""
        space = self.module.__dict__
        sys.modules["candidate"] = self.module  # dataclasses look their module up
        exec(compile(program, "<program>", "exec", dont_inherit=True), space)
        return {name: space[name] for name in names if name in space}

    def serve(self) -> None:
        """Answer until the judge goes away."""
        while (text := receive(self.source)) is not None:
            self.answer(parse(text))

    def answer(self, message: list[Any]) -> None:
        try:
            op, *rest = (decode(part, self.known) for part in message)
            reply = self.reply(op, rest)
            if len(reply) > FRAME:
                raise WireError(f"the answer is longer than {FRAME >> 20} MiB")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            reply = failure(error, self.handle)
        send(self.to, reply)

    def reply(self, op: str, rest: list[Any]) -> str:
        if op == "call":
            return self.call(*rest)
        value: Any = None
        if op == "load":
            value = self.load(*rest)
        elif op == "eval":
            value = eval(compile(rest[0].strip(), "<expression>", "eval", dont_inherit=True), self.module.__dict__)
        elif op == "next":
            value = pull(*rest)
        elif op == "get":
            value = getattr(*rest)
        elif op == "set":
            setattr(*rest)
        elif op == "item":
            value = rest[0][rest[1]]
        elif op == "put":
            rest[0][rest[1]] = rest[2]
        elif op == "len":
            value = len(rest[0])
        elif op == "iter":
            value = iter(rest[0])
        return f'["ok", {encode(value, self.handle)}]'

    def call(self, function: Any, given: list[Any], named: dict[str, Any]) -> str:
        """The result, and those arguments that the call has changed in place."""
        before = [self.written(value) for value in given]
        value = function(*given, **named)
        answer = encode(value, self.handle)
        after = [self.written(value) for value in given]
        changed = [f'["t", {i}, {text}]' for i, text in enumerate(after) if text != before[i]]
        return f'["ok", {answer}, ["l", {", ".join(changed)}]]' if changed else f'["ok", {answer}]'

    def written(self, value: Any) -> str:
        return encode(value, self.handle) if type(value) in (list, dict, set) else ""

    def handle(self, value: Any) -> list[Any]:
        """How what is no plain value is sent: by number, as an iterator (n), a module (m) or anything else (h)."""
        if type(value) is Module:
            return ["m", value.__name__]
        if isinstance(value, Callback):
            return ["p", value.number]
        self.objects[id(value)] = value
        kind = "n" if hasattr(type(value), "__next__") else "h"
        return [kind, id(value), str(getattr(value, "__name__", ""))]

    def known(self, tree: list[Any]) -> Any:
        """What the judge names: an object given out before, one of its own functions, a builtin function."""
        tag, name = tree
        if tag == "p":
            return Callback(self, name)
        return self.objects[name] if tag == "h" else getattr(builtins, name)


class Callback:
    """A function of the judge's, given as an argument."""

    def __init__(self, guest: Guest, number: int) -> None:
        self.guest, self.number = guest, number

    def __call__(self, *given: Any, **named: Any) -> Any:
        guest = self.guest
        parts = [encode(part, guest.handle) for part in ("back", self.number, given, named)]
        send(guest.to, f"[{', '.join(parts)}]")
        while (text := receive(guest.source)) is not None:
            tree = parse(text)
            if tree[0] not in ("returned", "raised"):  # the judge's function calls us before it is done
                guest.answer(tree)
                continue
            value = decode(tree[1], guest.known)
            if tree[0] == "returned":
                return value
            raise getattr(builtins, value[0], RuntimeError)(value[1])
        raise SystemExit


def pull(iterator: Any, count: int) -> tuple[list[Any], bool]:
    """The next `count` items at most, and whether that was the end."""
    items: list[Any] = []
    for item in iterator:
        items.append(item)
        if len(items) == count:
            return items, False
    return items, True


def failure(error: BaseException, other: Callable[[Any], list[Any]]) -> str:
    """An exception: the names of its classes, nearest first, and its message."""
    names = [kind.__name__ for kind in type(error).__mro__]
    try:
        text = error.args[0] if len(error.args) == 1 and type(error.args[0]) is str else str(error)
    except BaseException:
        text = ""
    return f'["error", {encode(names, other)}, {encode(text[:2000], other)}]'


def limit(bounds: dict[str, int]) -> None:
    """Set resource limits, by their names without RLIMIT_."""
    import resource

    for name, wanted in bounds.items():
        number = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(number)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(number, (value, value))


def main() -> None:
    """Wait on standard input for one job: how to run, under which limits, and for a script its source."""
    import resource  # noqa: F401  here, before there is a job, it costs nobody time

    builtins.__dict__.update(exit=sys.exit, quit=sys.exit)  # what the site module, left out, would have put there

    text = receive(0)
    if text is None:
        return
    mode, bounds, program = (decode(part, no_other) for part in parse(text))
    if mode == "script":
        limit(bounds)
        module = sys.modules["__main__"] = Module("__main__")
        sys.argv = ["program.py"]
        exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
        return
    guest = Guest(os.dup(0), os.dup(1))
    for number in (0, 1, 2):  # what the program prints goes nowhere, what it reads is empty
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, number)
        os.close(null)
    limit(bounds)
    guest.serve()


if __name__ == "__main__":
    main()
