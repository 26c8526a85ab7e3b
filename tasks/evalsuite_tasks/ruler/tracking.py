"""Variable tracking: which names hold a value, through chains of assignments."""

from dataclasses import dataclass, replace
from itertools import chain, pairwise

from evalsuite_tasks.ruler import prompts
from evalsuite_tasks.ruler.fit import Draft
from evalsuite_tasks.ruler.item import Item, Words
from evalsuite_tasks.ruler.needles import insert
from evalsuite_tasks.ruler.specs import CHAINS, HOPS


@dataclass(frozen=True, slots=True)
class Chains:
    """Names of each chain, the value that its root holds, and its statements in forward order."""

    rows: list[list[str]]
    values: list[str]
    texts: list[list[str]]


def _chains(item: Item) -> tuple[Chains, Chains]:
    """The chains of the question and those of the solved example, which share no name and no value."""
    words = Words(item.rng("names"), item.lexicon)
    number = CHAINS[item.variant]
    values = [str(value) for value in item.rng("values").sample(range(10000, 99999), 2 * number)]
    made = []
    for kind, held in (("upper5", values[:number]), ("upper3", values[number:])):
        rows = [[words.draw(kind) for _ in range(HOPS + 1)] for _ in range(number)]
        texts = [
            [f"VAR {row[0]} = {value}", *(f"VAR {new} = VAR {old} " for old, new in pairwise(row))]
            for row, value in zip(rows, held, strict=True)
        ]
        made.append(Chains(rows, held, texts))
    return made[0], made[1]


def _track(item: Item, texts: list[list[str]], size: int, part: str, *, shared: bool) -> str:
    """Assignments among `size` noise texts, all in random order; under `nvidia` each chain in forward order."""
    lines = item.noise(size)
    rng = item.rng(part, shared=shared)
    if item.nvidia:
        for text in texts:
            places = sorted(rng.sample(range(len(lines)), len(text)))
            for j, (place, statement) in enumerate(zip(places, text, strict=True)):
                lines.insert(place + j, statement)
    else:
        statements = list(chain.from_iterable(texts))
        rng.shuffle(statements)
        places = [int(rng.random() * (len(lines) + 1)) for _ in statements]
        lines = insert(lines, statements, places, together=False)
    return "\n".join(lines).replace(". \n", ".\n")


def vt(item: Item, size: int, example: int) -> Draft:
    """Variable tracking in `size` noise texts, after a solved example in `example` of them."""
    chains, _ = _chains(item)
    context = _track(item, chains.texts, size, "places", shared=False)
    prompt, prefix = prompts.vt(context, chains.values[0], HOPS + 1)
    meta = {"names": [name for row in chains.rows for name in row], "units": size}
    return Draft(vt_example(item, example).prompt + prompt, prefix, tuple(chains.rows[0]), meta=meta)


def vt_example(item: Item, size: int) -> Draft:
    """The solved example; its statements stand at the same places in every sample under `nvidia`."""
    _, chains = _chains(item)
    context = _track(replace(item, pad=0), chains.texts, size, "example places", shared=item.nvidia)
    return Draft(prompts.vt_example(context, chains.values[0], chains.rows[0]), "", ())
