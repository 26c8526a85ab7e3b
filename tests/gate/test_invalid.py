"""Every way to make a comparison invalid ends in INVALID, exit code 3 and a line that says what differs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gate_runs
from gate_runs import Two, refused, told

Spoil = Callable[[Two], None]
CASES: dict[str, tuple[Spoil, str, str]] = {}


def case(kind: str, words: str) -> Callable[[Spoil], Spoil]:
    def add(spoil: Spoil) -> Spoil:
        CASES[spoil.__name__] = (spoil, kind, words)
        return spoil

    return add


def recorded(name: str, path: str, value: Any, kind: str, words: str) -> None:
    """A case in which the run's record alone differs."""

    def spoil(two: Two) -> None:
        *parents, last = path.split(".")
        target = two.new_meta
        for each in parents:
            target = target[each]
        target[last] = value

    CASES[name] = (spoil, kind, words)


recorded("other_tokenizer", "identity.tokenizer", "t2", "tokenizer", '"t1" -> "t2"')
recorded("other_weights", "identity.weights", "w2", "weights", '"w1" -> "w2"')
recorded("other_dtype", "identity.dtype", "bfloat16", "dtype", '"float32" -> "bfloat16"')
recorded("other_config", "identity.config", "c2", "config", '"c1" -> "c2"')
recorded("other_kernels", "identity.kernels", {"delta": "slow"}, "kernels", 'kernels.delta: "fast" -> "slow"')
recorded("other_context", "context", 1024, "context", "512 -> 1024")
recorded("other_model", "model", "large", "model", '"small" -> "large"')
recorded("identity_not_recorded", "identity", {}, "weights", '"w1" -> null')
recorded("other_seed", "tasks.toy.seed", 1, "seed", "toy.seed: 0 -> 1")
recorded("other_wording", "tasks.toy.wording", "terse", "wording", '"natural" -> "terse"')
recorded("other_task_version", "tasks.toy.version", 2, "version", "toy.version: 1 -> 2")
recorded("other_data", "tasks.toy.data", {"squad": "beef"}, "data", 'squad: null -> "beef"')
recorded("other_sandbox", "tasks.toy.tier", "T2", "tier", 'null -> "T2"')
recorded("other_missing", "missing", {"toy.c": "no data"}, "missing-task", 'toy.c: null -> "no data"')


@case("unsandboxed", "without a sandbox")
def no_sandbox(two: Two) -> None:
    for meta in (two.new_meta, two.old_meta):
        meta["tasks"]["toy"]["tier"] = "none"


@case("missing", "lacks samples that the baseline has, 1: toy/b/length=256/149")
def missing_sample(two: Two) -> None:
    two.new.pop()


@case("extra", "has samples that the baseline lacks, 1: toy/b/length=256/149")
def extra_sample(two: Two) -> None:
    two.old.pop()


@case("limit", "--limit 140 beside the baseline's 150")
def unequal_limits(two: Two) -> None:
    two.new = [row for row in two.new if int(row["id"].rpartition("/")[2]) < 140]
    two.new_meta["requests"][0]["limit"] = 140


@case("duplicate", "more than once, 1: toy/a/length=256/3")
def duplicate_sample(two: Two) -> None:
    two.new.append(two.new[3])


@case("prompt", "prompts differ from the baseline's, 1: toy/a/length=256/5")
def edited_prompt(two: Two) -> None:
    two.new[5] = gate_runs.row("toy.a", 5, 0.0, seed=9)


@case("edited", "are not what was asked, 1: toy/a/length=256/5")
def prompt_edited_under_its_hash(two: Two) -> None:
    two.new[5]["prompt"] += " Think step by step."


@case("edited", "are not what was asked")
def choices_edited_under_their_hash(two: Two) -> None:
    two.new[5]["choices"] = ["x"]


@case("target", 'accepted answers differ from the baseline\'s, 1: toy/a/length=256/5 (["x", "y"] beside ["x"])')
def other_target(two: Two) -> None:
    two.new[5]["target"] = ["x", "y"]


@case("chance", "chance levels differ")
def other_chance(two: Two) -> None:
    two.new[5]["chance"] = 0.5


@case("cluster", "clusters differ")
def other_clusters(two: Two) -> None:
    two.new[5]["cluster"] = "page 7"


@case("facets", "facets differ")
def other_facets(two: Two) -> None:
    two.new[5]["facets"]["depth"] = 0.5


@case("prompt-tokens", "other counts of tokens")
def tokenised_otherwise(two: Two) -> None:
    """The identity says the same tokenizer: a chat template or a special token is another."""
    for row in two.new:
        row["prompt_tokens"] = 10


@case("choices", "choices are by log probability on one side and generated on the other, 300: toy/a/length=256/0")
def choices_answered_otherwise(two: Two) -> None:
    for row in two.old:
        row["choice_logprobs"] = [-1.0, -2.0]


@case("errors", "more samples that failed than the 0.0% allowed, in 1: toy.a 1 of 150 (out of memory)")
def an_error(two: Two) -> None:
    two.new[5] |= {"finish": "error", "error": "out of memory", "score": 0.0}


@case("errors", "the baseline (")
def errors_of_the_baseline(two: Two) -> None:
    two.old[5] |= {"finish": "error", "error": "out of memory", "score": 0.0}


@case("error-scored", "scores errors above 0")
def an_error_scored_right(two: Two) -> None:
    two.policy = "max_errors = 0.5" + two.policy
    two.new[290] |= {"error": "out of memory", "finish": "error"}


@case("dropped", "lacks samples in the middle of its cells (policy: gaps), 1: toy/a/length=256/7")
def errors_dropped_from_both(two: Two) -> None:
    """Dropped in the same place in both runs, the pairs look complete."""
    del two.new[7], two.old[7]


@case("missing", "lacks samples that the baseline has, 3")
def errors_dropped(two: Two) -> None:
    del two.new[5:8]


@case("truncated", "more answers cut at max_new_tokens than the 0.0% allowed, in 1: toy.a 2 of 150")
def truncated_answers(two: Two) -> None:
    for row in two.new[:2]:
        row["finish"] = "length"


@case("score", "= nan")
def score_not_a_number(two: Two) -> None:
    two.new[5]["score"] = float("nan")


@case("score", "toy/a/length=256/5 = 1.5")
def score_over_one(two: Two) -> None:
    two.new[5]["score"] = 1.5


@case("empty", "the baseline (")
def empty_baseline(two: Two) -> None:
    two.old = []


@case("empty", "the run (")
def empty_run(two: Two) -> None:
    two.new = []


@case("unrecorded", "samples of other, which its run.json lacks")
def unrecorded_family(two: Two) -> None:
    for found in (two.new, two.old):
        found += [gate_runs.row("other.z", i, 1.0) for i in range(5)]


@case("no-match", "of family 'half' this matches no sample of the runs: toy.c")
def a_pattern_of_a_family_that_matches_nothing(two: Two) -> None:
    two.policy += '[[family]]\nname = "half"\ntasks = ["toy.a", "toy.c"]\n'


@case("no-match", "of family 'long' this matches no sample of the runs: length = 4096")
def a_facet_of_a_family_that_matches_nothing(two: Two) -> None:
    two.policy += '[[family]]\nname = "long"\ntasks = ["toy.*"]\nfacets = { length = [256, 4096] }\n'


@case("no-match", "family 'deep' matches no sample of the runs: tasks toy.*, facets {'hops': (9,)}")
def family_without_samples(two: Two) -> None:
    two.policy += '[[family]]\nname = "deep"\ntasks = ["toy.*"]\nfacets = { hops = 9 }\n'


@case("no-match", "family 'shown' matches no sample")
def advisory_family_without_samples(two: Two) -> None:
    two.policy += '[[family]]\nname = "shown"\ntier = "advisory"\ntasks = ["tyo.a"]\n'


QUARANTINE = '[[quarantine]]\ntask = "{}"\nreason = "flaky"\nissue = "#1"\nuntil = 2999-01-01\n'


@case("no-match", "the quarantine of 'tyo.a' matches no task")
def quarantine_of_nothing(two: Two) -> None:
    two.policy += QUARANTINE.format("tyo.a")


@case("all-quarantined", "nothing would be tested")
def all_quarantined(two: Two) -> None:
    two.policy += QUARANTINE.format("toy.*")


@case("required", "has float32: dtype must be bfloat16")
def required_dtype(two: Two) -> None:
    two.policy += '[identity]\nrequire = { dtype = "bfloat16" }\n'


@case("required", "does not say: machine must be H100")
def required_but_not_recorded(two: Two) -> None:
    two.policy += '[identity]\nrequire = { machine = "H100" }\n'


@case("not-exercised", "computed delta with fast and reference: the policy demands fast")
def kernel_fell_back(two: Two) -> None:
    two.policy += '[identity]\nran = { delta = "fast" }\n'
    two.new_meta["requests"][0]["ran"] = {"delta": ["fast", "reference"]}


@case("not-exercised", "computed delta with nothing")
def kernel_never_called(two: Two) -> None:
    two.policy += '[identity]\nran = { delta = "fast" }\n'
    two.new_meta["requests"][0]["ran"] = {}


@case("unmeasured", "kv: bytes are recorded for no length, in the baseline for 256 tokens")
def memory_not_recorded(two: Two) -> None:
    two.policy += '[[metric]]\nname = "kv"\nratio = 1.1\n'
    two.new_meta["cost"] = {}


@case("unmeasured", "decode: timed on A100 beside H100")
def timed_on_another_machine(two: Two) -> None:
    two.policy += '[[metric]]\nname = "decode"\nratio = 0.9\n'
    two.new_meta["requests"][0]["versions"] = {"gpu": "A100"}
    two.old_meta["requests"][0]["versions"] = {"gpu": "H100"}


def test_the_same_runs_unspoiled_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = Two(tmp_path)
    two.write()
    code, text, record = told(two, capsys)
    assert (code, record["verdict"], record["problems"]) == (0, "PASS", [])
    assert "all 300 scores are equal" in text


@pytest.mark.parametrize("name", CASES)
def test_invalid(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, kind, words = CASES[name]
    two = Two(tmp_path)
    spoil(two)
    two.write()
    refused(*told(two, capsys), kind, words)


def test_there_are_enough() -> None:
    assert len(CASES) >= 20
    assert len({kind for _, kind, _ in CASES.values()}) >= 20
