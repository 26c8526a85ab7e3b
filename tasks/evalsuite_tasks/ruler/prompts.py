"""RULER's prompt strings (github.com/NVIDIA/RULER, `scripts/data/synthetic/constants.py`, Apache-2.0).

Every function returns (prompt, answer prefix): the user's turn, and the words with which the answer begins.
"""

from collections.abc import Sequence

Text = tuple[str, str]

NEEDLE = "One of the special magic {type_needle_v} for {key} is: {value}."
GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NIAH = (
    "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {type_needle_v} afterwards.\n{context}\n"
    "What are all the special magic {type_needle_v} for {query} mentioned in the provided text?",
    " The special magic {type_needle_v} for {query} mentioned in the provided text are",
)
VT = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above.",
    " Answer: According to the chain(s) of variable assignment in the text above, "
    "{num_v} variables are assigned the value {query}, they are: ",
)
CWE = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list?",
    " Answer: The top 10 words that appear most often in the list are:",
)
FWE = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text?",
    " Answer: According to the coded text above, the three most frequently appeared words are:",
)
QA = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\n{context}\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: {query}",
    " Answer:",
)
SINGULAR = (("Some", "A"), ("are all", "is"), ("are", "is"), ("answers", "answer"))  # in this order


def listed(items: Sequence[str]) -> str:
    """`a`, or `a, and b`, or `a, b, and c`."""
    return ", ".join(items[:-1]) + ", and " + items[-1] if len(items) > 1 else items[0]


def niah(context: str, queries: Sequence[str], kind: str, answers: int) -> Text:
    """`kind` is "numbers" or "uuids"; with a single answer the template is put into the singular before filling."""
    template, prefix = NIAH
    if answers == 1:
        kind = kind[:-1]
        for old, new in SINGULAR:
            template, prefix = template.replace(old, new), prefix.replace(old, new)
    values = {"type_needle_v": kind, "query": listed(queries)}
    return template.format(context=context, **values), prefix.format(**values)


def vt(context: str, value: str, number: int) -> Text:
    """`value` is what the chain's root holds, `number` how many names hold it."""
    return VT[0].format(context=context, query=value), VT[1].format(query=value, num_v=number)


def vt_example(context: str, value: str, names: Sequence[str]) -> str:
    """The solved example in front of a variable-tracking question."""
    return "".join(vt(context, value, len(names))) + " " + " ".join(names) + "\n\n"


def numbered(words: Sequence[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


def cwe(words: Sequence[str]) -> Text:
    return CWE[0].format(context=numbered(words)), CWE[1]


def cwe_example(words: Sequence[str], common: Sequence[str]) -> str:
    """The solved example in front of a common-words question."""
    return "".join(cwe(words)) + " " + numbered(common) + "\n"


def fwe(words: Sequence[str]) -> Text:
    return FWE[0].format(context=" ".join(words)), FWE[1]


def qa(documents: Sequence[str], question: str) -> Text:
    context = "\n\n".join(f"Document {i}:\n{document}" for i, document in enumerate(documents, 1))
    return QA[0].format(context=context, query=question), QA[1]
