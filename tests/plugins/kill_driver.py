"""One run with a deterministic model that writes every sample id it is asked to a log, to be killed at any moment.

python kill_driver.py OUT LOG LIMIT forks a run for every line on standard input, prints its process id, and at the next
line prints how it ended. Forking spares each run the start of Python.
"""

import hashlib
import os
import sys
import time

from evalsuite import plan, runner
from evalsuite.models.base import Speed
from evalsuite.records import Completion, Sample, Score
from evalsuite.task import Cell, generator, sample_id

TEXTS = ("plain", "Zürich 東京 🧮", "nul \x00 inside", "lone \ud83d surrogate", 'quote " and \\ and \n newline', "")


class Riddle:
    name, version, licence, source, needs = "riddle", 3, "CC0-1.0", "this file", ""

    def subtasks(self):
        return ("deep", "flat")

    def knobs(self):
        return {"hops": (1, 2)}

    def cells(self, request):
        deep = [Cell("riddle.deep", {"length": 64, "hops": hops}, 0.25) for hops in (1, 2)]
        return [*deep, Cell("riddle.flat", {"key": "uuid"}, 0.0)]

    def missing(self, request):
        return {}

    def sample(self, cell, index, request, count):
        draw = generator(cell.task, request.seed, index)
        prompt = " ".join(str(draw.randrange(1000)) for _ in range(40)) + " Ω?"
        facets = {"depth": draw.random()} if cell.task == "riddle.deep" else {}
        return Sample(
            sample_id(cell.task, cell.facets, index),
            cell.task,
            prompt,
            (str(draw.randrange(4)),),
            cluster=f"c{index // 3}",
            facets=facets,
        )

    def score(self, sample, completion):
        value = len(completion.text) % 3 / 2
        return Score(sample.id, value, completion.text[:4], {"size": len(completion.text)})


class Logger:
    name, context, wording = "logger", 4096, "natural"

    def __init__(self, log):
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.speed = Speed()

    def identity(self):
        return {"weights": "none", "dtype": "float32"}

    def count(self, text):
        return len(text.split())

    def cost(self, length):
        return {"kv": length, "state": 7}

    def answer(self, samples):
        for sample in samples:
            os.write(self.log, f"{sample.id}\n".encode())
            time.sleep(5e-4)
            number = int.from_bytes(hashlib.blake2b(sample.prompt.encode(), digest_size=4).digest())
            self.speed.prefill_tokens += 40
            self.speed.prefill_seconds += 0.5
            logprobs = (-0.1 * (number % 7), float("-inf"))
            yield Completion(sample.id, TEXTS[number % len(TEXTS)], 40, number % 5, choice_logprobs=logprobs)


def main(out, log, limit):
    selection = plan.Selection({"riddle": Riddle()}, {"riddle": ()}, limit=int(limit))
    runner.run(Logger(log), plan.make(selection, "natural"), out)


def serve():
    while sys.stdin.readline():
        child = os.fork()
        if child == 0:
            main(*sys.argv[1:])
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
