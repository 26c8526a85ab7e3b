"""RULER's prompts byte for byte, its scorers, counts and averages."""

import pytest

from evalsuite.records import Completion, Sample
from evalsuite_tasks.ruler import Ruler, prompts, scoring, summary
from evalsuite_tasks.ruler.needles import DEPTHS, insert
from evalsuite_tasks.ruler.specs import MAX_NEW, NIAH, TASKS, zeta_counts

SINGLE = (
    "A special magic {0} is hidden within the following text. Make sure to memorize it. I will quiz you about the {0} "
    "afterwards.\nTEXT\nWhat is the special magic {0} for old-cat mentioned in the provided text?",
    " The special magic {0} for old-cat mentioned in the provided text is",
)
MANY = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the numbers afterwards.\nTEXT\nWhat are all the special magic numbers for {0} mentioned in the provided text?",
    " The special magic numbers for {0} mentioned in the provided text are",
)
QA = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "The following are given documents.\n\nDocument 1:\nOne.\n\nDocument 2:\nTwo.\n\n"
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.\n\n"
    "Question: Who are you?",
    " Answer:",
)


def _niah(queries, kind, answers):
    return prompts.niah("TEXT", queries, kind, answers)


ONE = (SINGLE[0].format("number"), SINGLE[1].format("number"))
ONE_UUID = (SINGLE[0].format("uuid"), SINGLE[1].format("uuid"))
EXPECTED = {
    **dict.fromkeys(("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multikey_2"), ONE),
    **dict.fromkeys(("niah_single_3", "niah_multikey_3"), ONE_UUID),
    "niah_multivalue": (MANY[0].format("old-cat"), MANY[1].format("old-cat")),
    "niah_multiquery": (MANY[0].format("a, b, c, and d"), MANY[1].format("a, b, c, and d")),
    "vt": (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\nTEXT\nQuestion: Find "
        "all variables that are assigned the value 54321 in the text above.",
        " Answer: According to the chain(s) of variable assignment in the text above, 5 variables are assigned the "
        "value 54321, they are: ",
    ),
    "cwe": (
        "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that "
        "appear most often.\n1. cat 2. dog\nQuestion: What are the 10 most common words in the above list?",
        " Answer: The top 10 words that appear most often in the list are:",
    ),
    "fwe": (
        "Read the following coded text and track the frequency of each coded word. Find the three most frequently "
        "appeared coded words. ... abcdef ...\nQuestion: Do not provide any explanation. Please ignore the dots "
        "'....'. What are the three most frequently appeared words in the above coded text?",
        " Answer: According to the coded text above, the three most frequently appeared words are:",
    ),
    "qa_1": QA,
    "qa_2": QA,
}


def _filled(task):
    if task in NIAH:
        config = NIAH[task]
        queries = ["a", "b", "c", "d"] if config.queries == 4 else ["old-cat"]
        return _niah(queries, config.value, config.answers)
    return {
        "vt": lambda: prompts.vt("TEXT", "54321", 5),
        "cwe": lambda: prompts.cwe(["cat", "dog"]),
        "fwe": lambda: prompts.fwe(["...", "abcdef", "..."]),
    }.get(task, lambda: prompts.qa(["One.", "Two."], "Who are you?"))()


@pytest.mark.parametrize("task", TASKS)
def test_prompt_bytes(task):
    assert _filled(task) == EXPECTED[task]


def test_examples_bytes():
    context = "VAR ABC = 12345"
    begin = EXPECTED["vt"][0].replace("TEXT", context).replace("54321", "12345")
    assert prompts.vt_example(context, "12345", ["ABC", "BCD"]) == (
        begin
        + " Answer: According to the chain(s) of variable assignment in the text above, 2 variables are assigned the "
        "value 12345, they are:  ABC BCD\n\n"
    )
    assert prompts.cwe_example(["cat", "dog"], ["dog"]) == "".join(EXPECTED["cwe"]) + " 1. dog\n"


def test_needle_sentence_keeps_the_plural():
    needle = prompts.NEEDLE.format(type_needle_v="numbers", key="old-cat", value="1234567")
    assert needle == "One of the special magic numbers for old-cat is: 1234567."


def test_essay_needles_are_joined_as_upstream_does():
    """Empty stretches before the first needle and between two leave their spaces."""
    units = ["A.", "B.", "C."]
    assert " ".join(insert(units, ["N1", "N2"], [0, 3], together=True)) == " N1 A. B. C. N2 "
    assert " ".join(insert(units, ["N1", "N2"], [1, 1], together=True)) == "A. N1  N2 B. C."
    assert "\n".join(insert(units, ["N1", "N2"], [2, 0], together=False)) == "N2\nA.\nB.\nN1\nC."


def test_depth_levels():
    assert DEPTHS[:8] == (0, 3, 5, 8, 10, 13, 15, 18)
    assert DEPTHS[-8:] == (82, 85, 87, 90, 92, 95, 97, 100)


def test_token_budgets():
    assert len(TASKS) == 13
    assert [MAX_NEW[t] for t in ("niah_multivalue", "vt", "cwe", "fwe", "qa_1", "qa_2")] == [128, 30, 120, 50, 32, 32]


def test_frequent_word_counts():
    assert zeta_counts(1000, 20)[1:5] == [151, 67, 37, 24]
    assert zeta_counts(1000, 20)[0] == 607


def test_string_match():
    refs = ["in the 10th century", "10th century", "10th"]
    assert scoring.match_part("It was the 10TH.", refs) == 1.0
    assert scoring.match_all("It was the 10TH.", refs) == pytest.approx(1 / 3)
    assert scoring.match_all("1234567 and 7654321", ["1234567", "7654321", "1111111", "2222222"]) == 0.5
    assert scoring.match_part("", refs) == scoring.match_all("", refs) == 0.0
    assert scoring.clean(" \x00a\tb\x1f ") == "a\nb"


def test_whole_words_and_no_listing():
    assert scoring.match_words("bade kilo", ["kilo", "bade"]) == 1.0
    assert scoring.match_words("badekilo", ["bade"]) == 0.0
    assert scoring.match_words("bade kilo zuvo", ["zuvo"]) == 0.0  # only as many words as there are answers


def _vt(metric):
    names = ["AAAAA", "BBBBB", "CCCCC", "DDDDD"]
    return Sample("x", "ruler.vt", "", ("AAAAA", "BBBBB"), meta={"metric": metric, "names": names})


@pytest.mark.parametrize(
    ("answer", "exact", "recall"),
    [
        ("AAAAA BBBBB", 1.0, 1.0),
        ("bbbbb, and aaaaa.", 1.0, 1.0),
        ("AAAAA BBBBB CCCCC DDDDD", 0.0, 1.0),
        ("AAAAA", 0.0, 0.5),
        ("", 0.0, 0.0),
    ],
)
def test_exact_set_against_recall(answer, exact, recall):
    task = Ruler()
    assert task.score(_vt("exact"), Completion("x", answer, 1)).value == exact
    assert task.score(_vt("all"), Completion("x", answer, 1)).value == recall


LLAMA = (95.5, 93.8, 91.6, 87.4, 84.7, 77.0)


def test_averages_of_the_published_row():
    got = summary.averages(LLAMA)
    assert (round(got.avg, 2), round(got.inc, 2), round(got.dec, 2)) == (88.33, 85.38, 91.29)


def test_effective_length():
    lengths = [4096 * 2**i for i in range(6)]
    assert summary.effective_length(dict(zip(lengths, LLAMA, strict=True))) == 32768
    assert summary.effective_length({4096: 85.6}) is None  # must exceed
    assert summary.effective_length({4096: 80.0, 8192: 90.0}) == 8192


def test_fewer_tasks_are_never_called_ruler():
    every = {f"ruler.{task}": 50.0 for task in TASKS}
    assert summary.mean(every).label == "RULER"
    assert summary.mean(every).absent == ()
    fewer = {name: score for name, score in every.items() if "qa" not in name}
    fewer["ruler.vt"] = 61.0
    got = summary.mean(fewer)
    assert got.value == 51.0
    assert got.absent == ("qa_1", "qa_2")
    assert got.label == "mean of 11 of 13 (without qa_1, qa_2)"
    with pytest.raises(ValueError, match="no RULER tasks: mmlu"):
        summary.mean({"mmlu": 1.0})
    with pytest.raises(ValueError, match="no scores"):
        summary.mean({})


def test_the_table_is_the_published_row_and_says_how_many_tasks_it_is_of():
    scores = {4096 * 2**i: {f"ruler.{name}": score / 100 for name in TASKS} for i, score in enumerate(LLAMA)}
    assert list(summary.table(scores).values()) == ["32,768", "88.3", "85.4", "91.3"]
    assert next(iter(summary.table(scores))).startswith("RULER, 4096, 8192, 16384")
    assert "effective length" in next(iter(summary.table(scores)))
    del scores[8192]["ruler.vt"]  # a length without it must not lift or sink the average
    fewer = summary.table(scores)
    assert all(name.startswith("mean of 12 of 13, ") for name in fewer)
    assert list(fewer.values()) == ["88.3", "85.4", "91.3"], "the threshold of an effective length is one of 13 tasks"
    assert summary.table({}) == {}
