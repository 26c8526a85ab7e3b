"""What a test may do with a candidate: values, errors, functions, iterators, classes, changes in place, scripts."""

import pytest

from evalsuite import sandbox
from evalsuite.errors import UserError
from evalsuite.sandbox import Limits, tiers

pytestmark = pytest.mark.usefixtures("tier")

ENDED = "the candidate ended by itself"
RIGHT = {
    "values": (
        "def same(x): return x",
        "for x in (None, True, 7, -(2**90), 1.5, float('inf'), 2j, 'é\\ud800', b'ab', [1, [2]], (1,), {1: {2}}, {}):\n"
        "    assert same(x) == x and type(same(x)) is type(x)\n"
        "assert same(float('nan')) != same(float('nan'))\nassert same(int) is int\nassert same(len)([1]) == 1",
    ),
    "subclasses": (
        "from collections import *\nfrom enum import IntEnum\nP = namedtuple('P', 'x y')\n"
        "def f(): return [Counter('aab'), OrderedDict(a=1), defaultdict(list, b=[1]), P(1, 2), IntEnum('E', 'A').A]",
        "assert f() == [{'a': 2, 'b': 1}, {'a': 1}, {'b': [1]}, (1, 2), 1]",
    ),
    "errors": (
        "class Mine(KeyError): pass\ndef f(x):\n    if x: raise ValueError('bad')\n    raise Mine('k')",
        "for x, kind in (1, ValueError), (0, KeyError):\n    try:\n        f(x)\n    except kind as error:\n"
        "        assert kind is KeyError or str(error) == 'bad'\n"
        "    else:\n        raise AssertionError('nothing raised')",
    ),
    "given functions": (
        "def f(g, xs): return sorted((g(x) for x in xs), key=lambda x: -x)",
        "assert f(lambda x: x * 2, [1, 2]) == [4, 2]\nassert f(abs, [-1]) == [1]\nassert f(int, ['3']) == [3]",
    ),
    "errors of given functions": (
        "def f(g):\n    try:\n        return g(0)\n    except ZeroDivisionError:\n        return 'caught'",
        "assert f(lambda x: 1 / x) == 'caught'",
    ),
    "functions within functions": (
        "def f(g): return lambda x: g(x) + 1",
        "assert f(lambda x: x * 10)(4) == 41\nassert f(f(lambda x: 0))(1) == 2",
    ),
    "iterators": (
        "def f(n): return (i * i for i in range(n))\n"
        "def naturals():\n    n = 0\n    while True:\n        yield n\n        n += 1",
        "assert list(f(3)) == [0, 1, 4]\nassert sum(f(5000)) == sum(i * i for i in range(5000))\n"
        "g = naturals()\nassert [next(g) for _ in range(4)] == [0, 1, 2, 3]\n"
        "assert dict(zip('ab', naturals())) == {'a': 0, 'b': 1}",
    ),
    "views": (
        "def f(d): return d.keys(), d.values(), d.items()",
        "k, v, i = f({1: 2})\nassert (k, list(v), i) == ({1}, [2], {(1, 2)})",
    ),
    "classes": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def pop(self): return self.items.pop()\n    def __len__(self): return len(self.items)\n"
        "class Node:\n    def __init__(self, v): self.v, self.next = v, None\n"
        "def total(node): return node.v + total(node.next) if node else 0",
        "s = Stack()\ns.push(3)\ns.push([4])\nassert len(s) == 2 and s.pop() == [4] and s.items == [3]\n"
        "a = Node(1)\na.next = Node(2)\nassert total(a) == 3 and a.next.v == 2 and a.next == a.next and a != a.next",
    ),
    "changes in place": (
        "def f(xs, d): xs.sort(); d['n'] = len(xs)",
        "xs, d = [3, 1, 2], {}\nassert f(xs, d) is None\nassert xs == [1, 2, 3] and d == {'n': 3}",
    ),
    "constants and imports": (
        "import math\nfrom dataclasses import dataclass\nR = 3\n"
        "@dataclass\nclass P:\n    x: int = 1\ndef f(): return P().x",
        "assert f() + R == 4 and math.isclose(1.0, 1.0)",
    ),
    "prints": ("def f():\n    print('{\"passed\": false}', flush=True)\n    return 1", "assert f() == 1"),
    "threads": (
        "import threading\ndef f():\n    out = []\n    t = threading.Thread(target=out.append, args=(1,))\n"
        "    t.start()\n    t.join()\n    return out",
        "assert f() == [1]",
    ),
    "typing": ("from typing import List\ndef f(x: List[int]) -> int: return len(x)", "assert f([1]) == 1"),
    "main is not run": ("def f(): return 1\nif __name__ == '__main__':\n    input()", "assert f() == 1"),
}
WRONG = {
    "a wrong answer": ("def f(x): return x", "assert f(1) == 2", "AssertionError: assert f(1) == 2"),
    "an error": ("def f(x): return 1 / x", "assert f(0) == 0", "ZeroDivisionError: division by zero"),
    "bad syntax": ("def f(x:", "assert f(1)", "SyntaxError"),
    "no such function": ("x = 1", "assert f(1) == 1", "NameError"),
    "exit in a call": (
        "import os\ndef f(x): os._exit(0)",
        "assert f(1) == 1",
        "the candidate ended by itself (exit 0)",
    ),
    "exit on import": ("raise SystemExit", "pass", "the candidate ended by itself (exit 0)"),
    "exit caught by the test": (
        "import os\ndef f(): os._exit(7)",
        "try:\n    f()\nexcept:\n    pass",
        "the candidate ended by itself (exit 7)",
    ),
    "a loop": ("def f(x):\n    while True: pass", "f(1)", "timed out after 0.7 s"),
    "recursion": ("def f(x): return f(x)", "f(1)", "RecursionError"),
    "memory": ("def f(x): return bytes(1 << 33)", "f(1)", "MemoryError"),
    "a loop in the test": ("def f(x): return 1", "while f(1): pass", "timed out after 0.7 s"),
    "exit of the test": ("def f(x): return 1", "raise SystemExit", "SystemExit"),
    "a test's object": ("def f(x): return 1", "class A: pass\nf(A())", "WireError: a A cannot be given to a candidate"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_right(case: str) -> None:
    program, test = RIGHT[case]
    found = sandbox.judge(program, test)
    assert found.passed, found.reason
    assert found.reason == ""


@pytest.mark.parametrize("case", WRONG)
def test_wrong(case: str) -> None:
    program, test, reason = WRONG[case]
    found = sandbox.judge(program, test, limits=Limits(seconds=0.7))
    assert not found.passed
    assert found.reason.startswith(reason)
    assert "\n" not in found.reason


def test_entry_is_the_candidate_and_has_to_exist() -> None:
    assert sandbox.judge("def f(): return 1", "assert candidate() == f() == 1", entry="f").passed
    assert sandbox.judge("x = 1", "pass", entry="f").reason == "the program defines no 'f'"


def test_pythons_own_names_stay_pythons_unless_asked_for() -> None:
    program = "def abs(x): return 0\ndef sum(a, b): return a + b"
    assert not sandbox.judge(program, "assert abs(3) == 0").passed
    assert sandbox.judge(program, "assert sum(1, 2) == 3", names=["sum"]).passed


def test_helpers_keep_a_benchmarks_own_functions_out_of_the_candidates_hands() -> None:
    trusted = "import math\ndef encode(s): return s[::-1]\ndef decode(s): return encode(s)"
    hack = "def encode(s): return s\ndef decode(s): return s"
    test = "assert candidate(encode('abc')) == 'abc' and encode('ab') == 'ba'"
    assert sandbox.judge(trusted, sandbox.helpers(trusted, "decode") + test, entry="decode").passed
    assert not sandbox.judge(hack, sandbox.helpers(trusted, "decode") + test, entry="decode").passed


def test_evaluate() -> None:
    assert sandbox.evaluate("def f(x): return {x: (1, [2.5])}", " f('a')\n") == (True, {"a": (1, [2.5])}, "")
    assert sandbox.evaluate("", "1 +")[2].startswith("SyntaxError: invalid syntax")
    assert sandbox.evaluate("", "1 / 0") == (False, None, "ZeroDivisionError: division by zero")
    assert sandbox.evaluate("import os", "os._exit(0)") == (False, None, "the candidate ended by itself (exit 0)")
    assert sandbox.evaluate("", "object()") == (False, None, "the value cannot be returned: it is no plain value")


def test_run_program() -> None:
    program = "import sys\nn = int(input())\nprint(sum(int(x) for x in sys.stdin))\nif n: exit()\n1 / 0"
    assert sandbox.run_program(program, "1\n2\n3") == (True, "5\n", "")
    assert sandbox.run_program(program, "0\n2\n3") == (False, "5\n", "ZeroDivisionError: division by zero")
    assert sandbox.run_program("if __name__ == '__main__': print(input())", "é" * 200_000)[1] == "é" * 200_000 + "\n"
    assert sandbox.run_program("raise SystemExit(3)", "") == (False, "", "ended with exit 3")
    assert sandbox.run_program("input()", "") == (False, "", "EOFError: EOF when reading a line")
    assert sandbox.run_program("while True: pass", "", limits=Limits(seconds=0.3))[2] == "timed out after 0.3 s"
    flood = sandbox.run_program("while True: print('x' * 9999)", "", limits=Limits(output=1000))
    assert flood == (False, "x" * 1000, "wrote more than 1000 bytes")


def test_sets_are_ordered_alike_every_time() -> None:
    found = {sandbox.evaluate("", "list({'a', 'b', 'c', 'd', 'e'})")[1][0] for _ in range(4)}
    assert len(found) == 1


def test_a_job_too_large_is_a_reason() -> None:
    found = sandbox.judge("#" * (9 << 20), "pass")
    assert found.reason == "the job cannot be sent: it is longer than 8 MiB"


def test_without_walls_only_when_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "chosen", tiers.chosen)
    monkeypatch.setattr(
        tiers, "tier", lambda: sandbox.Tier("none", "no sandbox on this machine: bubblewrap is missing")
    )
    with pytest.raises(UserError, match=r"bubblewrap is missing; .*allow_unsandboxed"):
        sandbox.judge("x = 1", "assert x == 1")
    sandbox.allow_unsandboxed(True)
    try:
        assert sandbox.judge("x = 1", "assert x == 1").tier == "none"
        program = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\ndef f(): return 1"
        assert sandbox.judge(program, "assert f() == 1").passed
    finally:
        sandbox.allow_unsandboxed(False)


def test_a_program_is_compiled_as_it_stands() -> None:
    unknown = "def f(x: List[int]): return len(x)"  # fails unless annotations are never looked at
    assert "NameError" in sandbox.judge(unknown, "assert f([1]) == 1", entry="f").reason
    assert not sandbox.run_program(f"{unknown}\nprint(f([1]))", "")[0]
    typed = "def f(x: int): return x\ndef g(): return f.__annotations__['x'] is int"
    assert sandbox.judge(typed, "assert g()").passed


def test_a_module_of_pythons_is_never_the_candidates() -> None:
    fake = "class F:\n    def isclose(s, *a, **k): return True\nmath = F()\ndef f(): return 5"
    assert not sandbox.judge(fake, "assert math.isclose(f(), 1.0)").passed
    assert sandbox.judge("def copy(x): return x", "assert candidate(1) == 1", entry="copy").passed


@pytest.mark.parametrize("asked", [{"seconds": float("inf")}, {"seconds": 0}, {"memory": -1}, {"files": float("nan")}])
def test_a_limit_that_is_none_is_an_error(asked: dict[str, float]) -> None:
    with pytest.raises(UserError, match="limit of"):
        Limits(**asked)


def test_a_reason_can_be_printed_and_written() -> None:
    said = r"raise ValueError('\ud800\x1b[2J\x07')"
    for reason in (sandbox.judge(said, "pass").reason, sandbox.run_program(said, "")[2]):
        assert reason.startswith("ValueError")
        assert reason.isprintable()
        reason.encode()


def test_what_is_too_long_to_come_back_is_named() -> None:
    assert "longer than 8 MiB" in sandbox.evaluate("", "['a'] * 1_500_000", limits=Limits(seconds=30))[2]
