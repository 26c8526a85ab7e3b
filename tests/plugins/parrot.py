"""A third-party model: knows some capitals by heart; `parrot:N` knows the first N of them."""

from capitals import CAPITALS

from evalsuite.models.base import Speed
from evalsuite.records import Completion


class Parrot:
    context, wording = 512, "natural"

    def __init__(self, args):
        self.known = dict(list(CAPITALS.items())[: int(args or 1)])
        self.name = f"parrot-{args or 1}"
        self.speed = Speed()

    def identity(self):
        return {"known": sorted(self.known)}

    def count(self, text):
        return len(text.split())

    def cost(self, length):
        return {"kv": 64 * length, "state": 4096}

    def answer(self, samples):
        for sample in samples:
            country = sample.prompt.split("capital of ")[1].rstrip("?")
            tokens = self.count(sample.prompt)
            self.speed.prefill_tokens += tokens
            self.speed.prefill_seconds += 1e-3
            yield Completion(sample.id, self.known.get(country, "?"), tokens, 1)
