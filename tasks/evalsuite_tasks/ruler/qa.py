"""Questions over documents: SQuAD (qa_1) and HotpotQA (qa_2)."""

from itertools import chain
from math import ceil

from evalsuite_tasks.ruler import data, prompts
from evalsuite_tasks.ruler.fit import Draft
from evalsuite_tasks.ruler.item import Item


def _question(item: Item) -> tuple[data.Corpus, data.Question]:
    kind = "squad" if item.subtask == "qa_1" else "hotpotqa"
    corpus = data.corpus(kind, item.source)
    index = item.index % len(corpus.questions)
    if not item.nvidia:
        index = data.question_order(kind, len(corpus.questions), item.seed, item.version)[index]
    return corpus, corpus.questions[index]


def qa(item: Item, size: int) -> Draft:
    """A question over its gold documents and distractors of `size` words, the last distractor cut to fit."""
    corpus, question = _question(item)
    gold = [corpus.documents[i] for i in question.gold]
    others = _distractors(item, corpus, question, size)
    item.order().shuffle(others)
    total = len(gold) + len(others)
    places = sorted(item.rng("places").sample(range(total), len(gold)))
    rest, mine = iter(others), iter(item.rng("gold").sample(gold, len(gold)))
    documents = [next(mine) if i in places else next(rest) for i in range(total)]
    depth = places[0] / max(1, total - 1) if len(gold) == 1 else None
    prompt, prefix = prompts.qa(documents, question.text)
    meta = {"question": question.text, "documents": total, "gold": places}
    return Draft(prompt, prefix, tuple(dict.fromkeys(question.answers)), depth, question.cluster, meta)


def _distractors(item: Item, corpus: data.Corpus, question: data.Question, words: int) -> list[str]:
    """Near documents first, then the others, then all again but never the gold, until they have so many words."""
    rng = item.rng("distractors")
    near = rng.sample(question.near, len(question.near))
    skip = {*question.near, *question.gold}
    far = [i for i in range(len(corpus.documents)) if i not in skip]
    rng.shuffle(far)
    found: list[str] = []
    while words > 0 and near + far:
        for i in chain(near, far):
            pieces = corpus.documents[i].split(" ")
            found.append(" ".join(pieces[:words]))
            words -= len(pieces)
            if words <= 0:
                break
    return found


def qa_nvidia(item: Item, size: int) -> Draft:
    """A question over `size` whole documents in upstream's frozen order."""
    corpus, question = _question(item)
    number = len(corpus.documents)
    block, near = list(question.block), [] if item.subtask == "qa_2" else list(question.near)
    rng = item.rng("distractors")
    if size >= number:
        chosen = (list(range(number)) * ceil(size / number))[:size]
    elif size - len(block) > len(near):
        known = {*block, *near}
        rest = [i for i in range(number) if i not in known]
        chosen = block + near + rng.sample(rest, size - len(block) - len(near))
    else:
        chosen = block + rng.sample(near, size - len(block))
    item.order().shuffle(chosen)
    places = [i for i, document in enumerate(chosen) if document in question.gold]
    depth = places[0] / max(1, size - 1) if len(places) == 1 else None
    prompt, prefix = prompts.qa([corpus.documents[i] for i in chosen], question.text)
    meta = {"question": question.text, "documents": size, "gold": places}
    return Draft(prompt, prefix, tuple(dict.fromkeys(question.answers)), depth, question.cluster, meta)
