"""One sample of the natural wording to be made: its key, its generators, and the random words of RULER."""

import random
import string
import uuid
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice

from evalsuite.errors import UserError
from evalsuite.lexicon import NAMES
from evalsuite.task import generator
from evalsuite_tasks.ruler import data, prompts

FROZEN = 42  # upstream's seed, set anew for every sample


@dataclass(frozen=True)
class Item:
    """One sample to be made: its key, and where its data comes from."""

    subtask: str
    length: int
    variant: str
    haystack: str
    seed: int
    index: int
    version: int
    source: str = ""  # path or hub name of the essays or questions
    pad: int = 0  # words of filler on top, for lengths where a whole unit of haystack is too coarse

    @property
    def nvidia(self) -> bool:
        return self.variant == "nvidia"

    @property
    def lexicon(self) -> bool:
        return self.haystack == "lexicon"

    def rng(self, part: str, *, shared: bool = False) -> random.Random:
        """The generator of one part of the sample; `shared` by all samples of the cell."""
        index = "every" if shared else self.index
        key = (self.subtask, self.variant, self.haystack, self.length, self.seed, index)
        return generator("ruler", self.version, *key, part)

    def order(self) -> random.Random:
        """The generator that shuffles: upstream's is the same one in every sample, so that positions are frozen."""
        return random.Random(FROZEN) if self.nvidia else self.rng("order")

    def noise(self, number: int) -> list[str]:
        """RULER's one noise text `number` times, and its first words once more as padding."""
        text = "grass green . sky blue . sun yellow . here often . there again ." if self.lexicon else prompts.GRASS
        return [text] * number + ([" ".join(islice(cycle(text.split()), self.pad))] if self.pad else [])

    @cached_property
    def essays(self) -> data.Essays:
        return data.essays(self.source, self.nvidia)


class Words:
    """Distinct random words of the kinds that RULER uses."""

    def __init__(self, rng: random.Random, lexicon: bool) -> None:
        self.rng = rng
        self.lexicon = lexicon
        self.seen: set[str] = set()

    def draw(self, kind: str) -> str:
        """A word, number or uuid that has not been drawn before."""
        for _ in range(10_000):
            word = getattr(self, kind)()
            if word not in self.seen:
                self.seen.add(word)
                return str(word)
        raise UserError(f"no more than {len(self.seen)} distinct {kind} can be drawn")

    def words(self) -> str:
        if self.lexicon:  # single names first, then pairs of them
            single = len(self.seen) < len(NAMES) // 2
            return self.rng.choice(NAMES) if single else f"{self.rng.choice(NAMES)}-{self.rng.choice(NAMES)}"
        adjectives, nouns, _ = data.wonderwords()
        return f"{self.rng.choice(adjectives)}-{self.rng.choice(nouns)}"

    def numbers(self) -> str:
        return str(self.rng.randint(10**6, 10**7 - 1))

    def uuids(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def letters(self, length: int, alphabet: str) -> str:
        return self.words() if self.lexicon else "".join(self.rng.choices(alphabet, k=length))

    def upper5(self) -> str:
        return self.letters(5, string.ascii_uppercase)

    def upper3(self) -> str:
        return self.letters(3, string.ascii_uppercase)

    def lower6(self) -> str:
        return self.letters(6, string.ascii_lowercase)
