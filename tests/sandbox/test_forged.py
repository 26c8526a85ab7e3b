"""Candidates that have not solved the problem and want to pass all the same: none may."""

import gzip
import json
import os
from pathlib import Path

from evalsuite import sandbox
from evalsuite.sandbox import Job, Limits

LYING = (
    "__eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = lambda *a: True\n    __hash__ = lambda s: 0\n"
)
NUMBERS = "__sub__ = __rsub__ = __abs__ = __round__ = lambda s, *a: s\n    __float__ = lambda s: 0.0\n"
# What stands in for a solution; ENTRY is the function's name.
HACKS = {
    "exit in the call": "import os\ndef ENTRY(*a): os._exit(0)",
    "exit on import": "import os\ndef ENTRY(*a): pass\nos._exit(0)",
    "SystemExit": "def ENTRY(*a): raise SystemExit(0)",
    "SystemExit on import": "def ENTRY(*a): pass\nraise SystemExit(0)",
    "frame walk": """
import sys
def ENTRY(*a):
    frame = sys._getframe()
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            for name, value in list(space.items()):
                if isinstance(value, list): value.append("passed")
                if isinstance(value, dict): value.update(passed=True, result="passed")
                if name in ("passed", "reason", "result"): space[name] = True
        frame = frame.f_back
""",
    "always equal": f"class A:\n    {LYING}    {NUMBERS}def ENTRY(*a): return A()",
    **{
        f"always equal {kind}": f"""
class A({kind}):
    {LYING}
    __len__ = lambda s: 3
    __repr__ = lambda s: '1'
    def __iter__(s): yield A()
def ENTRY(*a): return A()
"""
        for kind in ("int", "str", "list", "dict", "tuple", "float", "set")
    },
    "list of always equal": f"class A(int):\n    {LYING}def ENTRY(*a): return [A()] * 3",
    "lying class": """
class M(type):
    __eq__ = __instancecheck__ = __subclasscheck__ = lambda *a: True
    __hash__ = type.__hash__
class A(metaclass=M):
    __class__ = bool
def ENTRY(*a): return A
""",
    "patched builtins": """
import builtins
for name in ("abs", "all", "any", "isinstance", "len", "sorted", "set", "tuple", "sum", "min", "max", "round", "list"):
    setattr(builtins, name, lambda *a, **k: True)
    globals()[name] = lambda *a, **k: True
builtins.AssertionError = BaseException
math = random = copy = check = METADATA = candidate = __builtins__ = lambda *a, **k: True
def ENTRY(*a): return True
""",
    "printed verdict": """
import os, sys
def ENTRY(*a):
    for text in ('passed', '{"passed": true}', '[true, "", ""]', '["done", true, "", 0.1, ""]', '["ok", true]'):
        print(text, flush=True)
        print(text, file=sys.stderr, flush=True)
""",
    "forged bytes": """
import os
def frame(text): return len(text).to_bytes(4, "big") + text.encode()
def ENTRY(*a):
    for fd in range(64):
        for text in ('[true, "", ""]', '["l", "done", true, "", 0.1, ""]', '["ok", null]', '["returned", true]'):
            try: os.write(fd, frame(text))
            except OSError: pass
""",
    "forged on import": """
import os
def ENTRY(*a): pass
for fd in range(3, 16):
    try: os.write(fd, b"".join(len(t).to_bytes(4, "big") + t for t in [b'["ok", ["d"]]', b'["ok", true]'] * 50))
    except OSError: pass
""",
    "garbage": "import os\ndef ENTRY(*a):\n    for fd in range(3, 16):\n"
    "        try: os.write(fd, os.urandom(5000))\n        except OSError: pass",
    "huge frame": "import os\ndef ENTRY(*a):\n    for fd in range(3, 16):\n"
    "        try: os.write(fd, b'\\x7f\\xff\\xff\\xff' + b' ' * 5000)\n        except OSError: pass",
    "calls home": 'import os\ndef ENTRY(*a):\n    t = b\'["back", 0, ["l", 1], ["d"]]\'\n    for fd in range(3, 16):\n'
    "        try: os.write(fd, len(t).to_bytes(4, 'big') + t)\n        except OSError: pass",
    "StopIteration": "def ENTRY(*a): raise StopIteration",
    "GeneratorExit": "def ENTRY(*a): raise GeneratorExit",
    "named like an ending": """
class SystemExit(Exception): pass
class StopIteration(SystemExit): pass
def ENTRY(*a): raise StopIteration
""",
    "KeyboardInterrupt": "def ENTRY(*a): raise KeyboardInterrupt",
    "itself": "def ENTRY(*a): return ENTRY",
    "nan": "def ENTRY(*a): return float('nan')",
    "recursion": "def ENTRY(*a): return ENTRY(*a)",
    "giant int": "def ENTRY(*a): return 1 << 10**7",
    "int at the bound": "def ENTRY(*a): return (1 << 131071) + 1",
    "deep": "def ENTRY(*a):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
    "wide and deep": "def ENTRY(*a):\n    x = [1]\n    for _ in range(60): x = [x, x]\n    return x",
    "itself within": "def ENTRY(*a):\n    x = []\n    x.append(x)\n    return x",
    "huge string": "def ENTRY(*a): return 'x' * (50 << 20)",
    "large string": "def ENTRY(*a): return 'x' * (7 << 20)",
    "colliding numbers": "def ENTRY(*a): return {i * (2**61 - 1): 1 for i in range(2000)}",
    "endless generator": "def ENTRY(*a):\n    while True: yield 1",
    "slow repr": """
import time
class A:
    def __repr__(s): time.sleep(60)
def ENTRY(*a): raise ValueError(A())
""",
    "slow name": "import time\nclass M(type):\n    def __getattribute__(s, n): time.sleep(60)\n"
    "class A(metaclass=M): pass\ndef ENTRY(*a): return A",
    "hang": "def ENTRY(*a):\n    while True: pass",
    "hang on import": "def ENTRY(*a): pass\nwhile True: pass",
    "silent wire": "import os, time\ndef ENTRY(*a):\n    os.closerange(3, 64)\n    time.sleep(60)",
}
SLOW = ("hang", "slow", "endless", "wide", "colliding", "silent", "recursion")  # hacks that use all the time they get
OWN = [
    "assert candidate([3, 1, 2]) == [1, 2, 3]\n    assert candidate([]) == []",
    "assert abs(candidate(2) - 1.4142) < 1e-3\n    assert all(candidate(x * x) == x for x in (3, 4))",
    "for got, x in zip(map(candidate, 'abc'), 'bcd'):\n        assert got == x\n    assert candidate('z') in 'a'",
]


def problems(tier: str) -> list[tuple[str, str, str]]:
    """(name of the function, prompt, test): our own, and of HumanEval where its data are at hand.

    What the walls are made of has no part in how answers are judged: T2 gets our own alone.
    """
    found = [(f"solve_{i}", "", f"def check(candidate):\n    {body}\n") for i, body in enumerate(OWN)]
    data = Path(os.environ.get("EVALSUITE_DATA", ""), "humaneval.jsonl.gz")
    if data.is_file() and tier != "T2":
        with gzip.open(data, "rt") as lines:
            rows = [json.loads(line) for line in lines]
        for row in [*rows[2:164:40], rows[38]]:  # 38 is one whose test leans on a function of the prompt's
            solved = row["prompt"] + row["canonical_solution"]
            test = sandbox.helpers(solved, row["entry_point"]) + row["test"]
            found.append((row["entry_point"], row["prompt"] + "    pass\n", test))
    return found


def job(hack: str, entry: str, prompt: str, test: str) -> Job:
    limits = Limits(0.6 if any(word in hack for word in SLOW) else 5.0)
    program = f"{prompt}\n{HACKS[hack].replace('ENTRY', entry)}"
    return Job(program, f"{test}\ncheck(candidate)\n", entry, limits=limits)


def test_no_hack_passes(tier: str) -> None:
    """Hacks and problems all at once, because most of their time is waiting."""
    jobs = {(hack, problem[0]): job(hack, *problem) for hack in HACKS for problem in problems(tier)}
    found = dict(zip(jobs, sandbox.judge_many(list(jobs.values())), strict=True))
    assert len(found) == len(HACKS) * len(problems(tier))
    assert [key for key, verdict in found.items() if verdict.passed or not verdict.reason] == []
    assert max(verdict.seconds for verdict in found.values()) < 8


def test_a_candidate_that_lies_in_its_own_class_is_asked_for_values_only() -> None:
    program = f"class A:\n    {LYING}    x = 1\ndef f(): return A()\n"
    assert not sandbox.judge(program, "assert f() == 3").passed
    assert not sandbox.judge(program, "assert f() in [1, 2]").passed
    assert not sandbox.judge(program, "assert f() < 3").passed
    assert sandbox.judge(program, "assert f().x == 1").passed


def test_a_callback_of_the_tests_gets_plain_values() -> None:
    program = f"class A(int):\n    {LYING}def f(g): return g(A(5))\n"
    seen = "def g(x):\n    assert type(x) is int and x != 4\n    return x\nassert f(g) == 5"
    assert sandbox.judge(program, seen).passed
