"""Needles in a haystack: the eight retrieval tasks."""

from evalsuite.lexicon import FILLER
from evalsuite_tasks.ruler import prompts
from evalsuite_tasks.ruler.fit import Draft
from evalsuite_tasks.ruler.item import Item, Words
from evalsuite_tasks.ruler.specs import NIAH, Niah

DEPTHS = tuple(round(100 * i / 39) for i in range(40))  # percent, upstream's 40 levels of an essay needle


def _needles(words: Words, config: Niah) -> tuple[list[str], list[list[str]], list[str]]:
    """Keys, their values, and the needle sentences; each key's values follow one another."""
    keys, values, needles = [], [], []
    for _ in range(config.keys):
        keys.append(words.draw(config.key))
        values.append([words.draw(config.value) for _ in range(config.values)])
        needles += [_needle(config, keys[-1], value) for value in values[-1]]
    return keys, values, needles


def _needle(config: Niah, key: str, value: str) -> str:
    return prompts.NEEDLE.format(type_needle_v=config.value, key=key, value=value)


def niah(item: Item, size: int) -> Draft:
    """A needle question in `size` words of essays, or `size` noise texts or distractor needles."""
    config = NIAH[item.subtask]
    words = Words(item.rng("needles"), item.lexicon)
    keys, values, needles = _needles(words, config)
    asked = item.rng("query").sample(range(config.keys), config.queries)
    if config.haystack == "essay":
        units, joint = _essay_units(item, size), " "
    elif config.haystack == "needle":
        units, joint = [_needle(config, words.draw(config.key), words.draw(config.value)) for _ in range(size)], "\n"
        units += item.noise(0)
    else:
        units, joint = item.noise(size), "\n"
    gold = needles[asked[0]] if config.answers == 1 else None
    item.order().shuffle(needles)
    places = _places(item, len(units), len(needles), essay=config.haystack == "essay")
    context = joint.join(insert(units, needles, places, together=config.haystack == "essay"))
    prompt, prefix = prompts.niah(context, [keys[i] for i in asked], config.value, config.answers)
    target = tuple(value for i in asked for value in values[i])
    depth = None if gold is None else places[needles.index(gold)] / max(1, len(units))
    return Draft(prompt, prefix, target, depth, meta={"units": len(units)})


def _essay_units(item: Item, size: int) -> list[str]:
    """The first `size` words of the essays as sentences, the essays over and over where they are too short."""
    if item.lexicon:
        rng = item.rng("essay")
        text = rng.choices(FILLER, k=size)
        return [" ".join(text[i : i + 8]) + " ." for i in range(0, size, 8)]
    essays = item.essays
    whole, rest = divmod(size, essays.ends[-1])
    units = list(essays.sentences) * whole
    before = 0
    for sentence, end in zip(essays.sentences, essays.ends, strict=True):
        if end > rest:
            break
        units.append(sentence)
        before = end
    return units + ([" ".join(sentence.split(" ")[: rest - before])] if rest > before else [])


def _places(item: Item, units: int, needles: int, *, essay: bool) -> list[int]:
    """Before which unit each needle goes. By default uniform, whatever the length; upstream's levels under `nvidia`."""
    rng = item.rng("places")
    if not item.nvidia:
        return [int(rng.random() * (units + 1)) for _ in range(needles)]
    if essay:
        return [int(units * (depth / 100)) for depth in sorted(rng.sample(DEPTHS, needles))]
    return sorted(rng.sample(range(units), needles), reverse=True)


def insert(units: list[str], needles: list[str], places: list[int], *, together: bool) -> list[str]:
    """Needles among the units. `together`: as upstream joins essays, an empty stretch leaves its space."""
    pairs = sorted(zip(places, needles, strict=True), key=lambda pair: pair[0])
    parts: list[str] = []
    last = 0
    for place, needle in pairs:
        parts += [" ".join(units[last:place])] if together else units[last:place]
        parts.append(needle)
        last = place
    return parts + ([" ".join(units[last:])] if together else units[last:])
