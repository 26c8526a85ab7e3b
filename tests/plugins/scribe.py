"""A third-party model that writes every sample id it is asked to a log: `scribe:LOG`. Deterministic, and not quick."""

import hashlib
import os
import time
from pathlib import Path

from evalsuite.models.base import Speed
from evalsuite.records import Completion


class Scribe:
    name, context, wording = "scribe", 1 << 20, "natural"
    pause = float(os.environ.get("SCRIBE_PAUSE", "4e-3"))  # seconds

    def __init__(self, args):
        self.log = os.open(args, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self.speed = Speed()
        deadly = Path(f"{args}.deadly")  # holds the id of a sample that no process survives
        self.deadly = deadly.read_text() if deadly.exists() else ""

    def identity(self):
        return {"weights": os.environ.get(f"SCRIBE_WEIGHTS_{os.environ.get('RANK', '0')}", "none")}

    def count(self, text):
        return len(text.split())

    def cost(self, length):
        return {"kv": length}

    def answer(self, samples):
        for sample in samples:
            os.write(self.log, f"{os.environ.get('RANK', os.getpid())} {sample.id}\n".encode())
            time.sleep(self.pause)
            if sample.id == self.deadly:
                os._exit(9)
            number = int.from_bytes(hashlib.blake2b(sample.text.encode(), digest_size=4).digest())
            right = number % 3 and sample.target
            self.speed.prefill_tokens += self.count(sample.text)
            self.speed.prefill_seconds += self.pause
            yield Completion(
                sample.id, sample.target[0] if right else f"{number} 東京", self.count(sample.text), number % 5
            )
