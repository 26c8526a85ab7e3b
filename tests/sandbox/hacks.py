"""What stands in for a solution and wants to pass all the same; ENTRY is the function's name."""

LYING = (
    "__eq__ = __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __contains__ = lambda *a: True\n    __hash__ = lambda s: 0\n"
)
NUMBERS = "__sub__ = __rsub__ = __abs__ = __round__ = lambda s, *a: s\n    __float__ = lambda s: 0.0\n"
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
