"""An interpreter of terse programs that knows nothing of their generators."""

import re
from itertools import pairwise

from evalsuite.lexicon import NAMES

ALL = frozenset(NAMES)


class Machine:
    """Reads terse words one by one and says what each has determined, or None."""

    def __init__(self):
        self.state, self.stacks, self.list, self.line, self.back = {}, {}, [], [], None

    def read(self, word):
        if self.back is not None and word in ALL:
            assert word == self.back.pop(0)
            return self.back[0] if self.back else None
        self.back = None
        if word in ("noise", "swap", "get", "push", "pop", "list", "?") or (
            self.done() and word not in ("[", "]", "=")
        ):
            self.line = []
        self.line.append(word)
        return self.step()

    def done(self):
        """Whether an assignment is complete, so that the next word begins a line."""
        line = self.line
        long = {"noise": 3, "swap": 3, "push": 3, "pop": 2}
        if not line or line[0] in long:
            return not line or len(line) == long[line[0]]
        if line[0] == "get":
            return len(line) > 1 and line.count("[") == line.count("]") and line[-1] != "["
        return "=" in line and line[-1] != "="

    def step(self):
        head, *rest = self.line
        match [head, *rest]:
            case ["?"]:
                self.back = self.list[::-1]
                return self.back[0]
            case ["list", *names]:
                self.list = names
            case ["swap", a, b]:
                self.state[a], self.state[b] = self.state[b], self.state[a]
                return self.state[b]
            case ["push", name, item]:
                self.stacks.setdefault(name, []).append(item)
            case ["pop", name]:
                return self.stacks[name].pop()
            case ["get", *expression] if expression:
                return self.evaluate(expression)
            case [name, "=", source]:
                self.state[name] = self.state.get(source, source)
                return self.state[name] if self.state[name] != source else None
            case [name, "[", key, "]", "=", source]:
                self.state[name, key] = source
        return None

    def evaluate(self, expression):
        """The value of the innermost open bracket's content that has just been closed; a variable's own value."""
        arrays = [word for word, after in pairwise(expression) if after == "["]
        closed = expression.count("]")
        inner = [word for word in expression if word not in ("[", "]")]
        if expression[-1] == "[" or len(inner) <= len(arrays):
            return None
        node = self.state.get(inner[-1], inner[-1])
        if not closed:
            return node if node != inner[-1] else None
        for array in list(reversed(arrays))[:closed]:
            node = self.state[array, node]
        return node


def labels(words):
    machine = Machine()
    return [machine.read(word) for word in words]


def programs(words):
    """The names of each program in a text: of each list, or of the whole."""
    text = " ".join(words)
    lists = re.findall(r"list ((?:[a-z]+ )+?)(?:noise|\?)", text + " ")
    return [sorted(found.split()) for found in lists] or [sorted(ALL.intersection(words))]
