"""The 13 configurations of RULER (Hsieh et al. 2024, table 6; github.com/NVIDIA/RULER, `scripts/synthetic.yaml`)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Niah:
    """One needle-in-a-haystack configuration: `keys` needles of `values` values each, `queries` keys asked."""

    haystack: str  # "noise", "essay" or "needle"
    key: str = "words"  # or "uuids"
    value: str = "numbers"  # or "uuids"
    keys: int = 1
    values: int = 1
    queries: int = 1

    @property
    def answers(self) -> int:
        return self.queries * self.values


NIAH = {
    "niah_single_1": Niah("noise"),
    "niah_single_2": Niah("essay"),
    "niah_single_3": Niah("essay", value="uuids"),
    "niah_multikey_1": Niah("essay", keys=4),
    "niah_multikey_2": Niah("needle"),
    "niah_multikey_3": Niah("needle", key="uuids", value="uuids"),
    "niah_multivalue": Niah("essay", values=4),
    "niah_multiquery": Niah("essay", keys=4, queries=4),
}
HOPS = 4  # of a variable-tracking chain, which has HOPS + 1 names
COMMON = 10  # words to be found by common-words extraction
FREQUENT = 3  # and by frequent-words extraction
MAX_NEW = dict.fromkeys(NIAH, 128) | {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}
TASKS = tuple(MAX_NEW)
DATA = {name: "essays" for name, niah in NIAH.items() if niah.haystack == "essay"} | {
    "qa_1": "squad",
    "qa_2": "hotpotqa",
}
VARIANTS = ("default", "nvidia")
HAYSTACKS = ("paper", "lexicon")
CHAINS = {"default": 4, "nvidia": 1}  # variable-tracking chains; with one, listing every name in the text is right


def zeta_counts(total: int, vocabulary: int) -> list[int]:
    """How often the word of rank 1, 2, ... appears among about `total`: int(total r^-2 / zeta(2))."""
    norm = math.pi**2 / 6
    return [int(total * rank**-2.0 / norm) for rank in range(1, vocabulary + 1)]
