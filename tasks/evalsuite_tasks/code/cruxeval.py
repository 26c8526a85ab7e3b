"""CRUXEval (Gu et al. 2024, arXiv 2401.03065): what does f return (output), or for which input does it return this?

Prompts are the repository's direct ones, with its two examples. An output is judged by its value alone: one expression
without calls, so that nothing computes it. Upstream runs it beside f and only looks for the text of the call. An input
has to be plain values, and functions in the two problems that take one: they come out of the sandbox, and the
benchmark's own f is called with them where no candidate is. An object that lies in its methods would otherwise make any
f return anything.
"""

import ast
from dataclasses import replace
from typing import TypeGuard

from evalsuite_tasks.code import answers
from evalsuite_tasks.code.problems import Benchmark, Problem, check_python, parsed, text
from evalsuite_tasks.rows import Row

OUTPUT = """You are given a Python function and an assertion containing an input to the function. \
Complete the assertion with a literal (no unsimplified expressions, no function calls) containing the output \
when executing the provided code on the given input, even if the function is incorrect or incomplete. Do NOT \
output any extra information. Provide the full assertion with the correct output in [ANSWER] and [/ANSWER] tags, \
following the examples.

[PYTHON]
def f(n):
    return n
assert f(17) == ??
[/PYTHON]
[ANSWER]
assert f(17) == 17
[/ANSWER]

[PYTHON]
def f(s):
    return s + "a"
assert f("x9j") == ??
[/PYTHON]
[ANSWER]
assert f("x9j") == "x9ja"
[/ANSWER]

"""
INPUT = """You will be given a function f and an output in the form f(??) == output. Find any input \
such that executing f on the input leads to the given output. There may be multiple answers, but you should only \
output one. In [ANSWER] and [/ANSWER] tags, complete the assertion with one such input that will produce the \
output when executing the function.

[PYTHON]
def f(my_list):
    count = 0
    for i in my_list:
        if len(i) % 2 == 0:
            count += 1
    return count
assert f(??) == 3
[/PYTHON]
[ANSWER]
assert f(["mq", "px", "zy"]) == 3
[/ANSWER]

[PYTHON]
def f(s1, s2):
    return s1 + s2
assert f(??) == "banana"
[/PYTHON]
[ANSWER]
assert f("ba", "nana") == "banana"
[/ANSWER]

"""
COMPUTED = (ast.Call, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.NamedExpr, ast.Await)
# Before the benchmark's f: whether something is a plain value, and less room than a test has otherwise.
PLAIN = """
import resource as _resource
_resource.setrlimit(_resource.RLIMIT_AS, (1 << 30, 1 << 30))
def _plain(x):
    if type(x) is dict:
        return all(map(_plain, x.keys())) and all(map(_plain, x.values()))
    if type(x) in (list, tuple, set, frozenset):
        return all(map(_plain, x))
    plain = (type(None), bool, int, float, complex, str, bytes, bytearray, range, slice)
    return type(x) in plain or FUNCTIONS and callable(x)
_args, _named = candidate()
assert _plain([_args, _named]), "the input is not of plain values"
"""


def _named(row: Row) -> str:
    return f"CRUXEval/{text(row, 'id').removeprefix('sample_')}"


def _columns(row: Row) -> tuple[str, str, str]:
    code, given, value = (text(row, column) for column in ("code", "input", "output"))
    check_python(code, "code", "f")
    check_python(f"f({given}) == ({value})", "input and output")
    return code, given, value


def _output(row: Row) -> Problem:
    code, given, value = _columns(row)
    return Problem(
        name=_named(row),
        prompt=f"{OUTPUT}[PYTHON]\n{code}\nassert f({given}) == ??\n[/PYTHON]\n",
        prefix="[ANSWER]\n",
        before="def answer():\n    return (\n",
        after="\n)\n",
        test=f"assert candidate() == ({value})\n",
        reference=f"assert f({given}) == {value}\n",
        entry="answer",
    )


def _input(row: Row) -> Problem:
    code, given, value = _columns(row)
    return Problem(
        name=_named(row),
        prompt=f"{INPUT}[PYTHON]\n{code}\nassert f(??) == {value}\n[/PYTHON]\n",
        prefix="[ANSWER]\n",
        before=f"{code}\ndef answer():\n    return (lambda *args, **named: [list(args), named])(\n",
        after="\n)\n",
        test=f"{PLAIN.replace('FUNCTIONS', str('lambda' in given))}\n{code}\nassert f(*_args, **_named) == ({value})\n",
        reference=f"assert f({given}) == {value}\n",
        entry="answer",
    )


def output(answer: str, problem: Problem) -> str | None:
    """The value behind `assert f(...) ==`, or an answer that is a value alone. Raises ValueError for a computed one."""
    said = _said(_tagged(answer))
    value = said.comparators[0] if said and _compares(said) else said
    if value is None:
        return None
    if any(isinstance(node, COMPUTED) and not _empty_set(node) for node in ast.walk(value)):
        raise ValueError("the answer is computed, not a literal")
    return ast.unparse(value)


def given(answer: str, problem: Problem) -> str | None:
    """The arguments between the parentheses of `assert f(...) == ...`, "" for a call without any."""
    said = _said(_tagged(answer))
    call = said.left if isinstance(said, ast.Compare) else said
    return ast.unparse(call)[2:-1] if call and _calls(call) else None


def _said(found: str) -> ast.expr | None:
    """The one expression that an answer is or asserts."""
    tree = parsed(found)
    if tree is None or len(tree.body) != 1:
        return None
    (only,) = tree.body
    return only.test if isinstance(only, ast.Assert) else only.value if isinstance(only, ast.Expr) else None


def _compares(said: ast.expr) -> TypeGuard[ast.Compare]:
    """Whether it is `f(...) == value`."""
    return isinstance(said, ast.Compare) and list(map(type, said.ops)) == [ast.Eq] and _calls(said.left)


def _calls(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "f"


def _empty_set(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node) == "set()"


def _tagged(answer: str) -> str:
    """What stands between the tags, and in a fence where there is one; either may be around the other."""
    if "[ANSWER]" in answer:
        answer = answer.partition("[ANSWER]")[2]
    answer = answer.partition("[/ANSWER]")[0].strip()
    return answers.code(answer, lambda tree: len(tree.body) == 1).strip()


CRUX_OUTPUT = Benchmark(
    name="cruxeval_output",
    data="cruxeval",
    what="CRUXEval's rows (id, code, input, output)",
    make=_output,
    stop=("[/ANSWER]",),
    room=512,
    code=output,
)
CRUX_INPUT = replace(CRUX_OUTPUT, name="cruxeval_input", make=_input, code=given)
