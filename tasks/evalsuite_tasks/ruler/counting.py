"""Common words and frequent words: the two aggregation tasks."""

import random

from evalsuite.lexicon import NAMES
from evalsuite_tasks.ruler import data, prompts
from evalsuite_tasks.ruler.fit import Draft
from evalsuite_tasks.ruler.item import FROZEN, Item, Words
from evalsuite_tasks.ruler.specs import COMMON, FREQUENT, zeta_counts


def cwe(item: Item, size: int, small: bool) -> Draft:
    """`size` distinct words, the first ten more often, after a solved example; `small` counts for short lengths."""
    example, main = ((20, 3, 1), (6, 1)) if small else ((40, 10, 3), (30, 3))
    shown, shown_common = _word_list(item, "example", *example)
    words, common = _word_list(item, "list", size, *main)
    prompt, prefix = prompts.cwe(words)
    meta = {"units": size, "frequencies": list(main)}
    return Draft(prompts.cwe_example(shown, shown_common) + prompt, prefix, tuple(common), meta=meta)


def _word_list(item: Item, part: str, distinct: int, often: int, rare: int) -> tuple[list[str], list[str]]:
    """All words in order of appearance, and the common ones."""
    rng = item.rng(part)
    pool = list(NAMES) if item.lexicon else list(data.wonderwords()[2])
    rng.shuffle(pool)
    if distinct > len(pool):  # upstream draws from a dictionary file; compounds stand in for it
        more = Words(rng, item.lexicon)
        more.seen.update(pool)
        pool += [more.draw("words") for _ in range(distinct - len(pool))]
    common, uncommon = pool[:COMMON], pool[COMMON:distinct]
    words = common * often + uncommon * rare
    (random.Random(FROZEN) if item.nvidia else rng).shuffle(words)
    return words, common


def fwe(item: Item, size: int, vocabulary: int) -> Draft:
    """About `size` coded words with Zipf counts; rank 1 is `...`, ranks 2 to 4 are the answer."""
    words = Words(item.rng("words"), item.lexicon)
    ranked = ["...", *(words.draw("lower6") for _ in range(vocabulary - 1))]
    counts = zeta_counts(size, vocabulary)
    text = [word for word, count in zip(ranked, counts, strict=True) for _ in range(count)]
    item.order().shuffle(text)
    prompt, prefix = prompts.fwe(text)
    return Draft(prompt, prefix, tuple(ranked[1 : FREQUENT + 1]), meta={"units": size})
