"""A policy that is misread could pass anything: whatever is not understood is an error."""

import datetime
from pathlib import Path

import pytest

from evalsuite.errors import UserError
from evalsuite.gate import policy
from gate_runs import POLICY

TODAY = datetime.date(2026, 6, 1)
QUARANTINE = '[[quarantine]]\ntask = "toy.a"\nreason = "flaky"\nissue = "#1"\nuntil = {}\n'
FAMILY = '[[family]]\nname = "x"\ntasks = ["toy.*"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "gates nothing"),
        ("alpha = 0.05", "gates nothing"),
        (FAMILY + 'tier = "advisory"\n', "gates nothing"),
        ("family = 3", "family is no list of tables"),
        ("alpha = ", "is no TOML"),
        ("alhpa = 0.05" + POLICY, "did you mean 'alpha'"),
        (FAMILY + "margn = 0.1", "did you mean 'margin'"),
        (POLICY + "[identity]\nmay_difer = []", "did you mean 'may_differ'"),
        (POLICY + '[[metric]]\nname = "kv"\nratio = 1.0\ntire = "critical"', "did you mean 'tier'"),
        (POLICY + '[[metric]]\nname = "speed"\nratio = 1.0', "unknown name"),
        (POLICY + '[[metric]]\nname = "decode"\nratio = 1.5', "is not a number from 1e-06 to 1"),
        (POLICY + '[[metric]]\nname = "kv"\nratio = 0.5', "is not a number from 1 to 1000"),
        (POLICY + '[[metric]]\nname = "kv"', "has no 'ratio'"),
        ("alpha = 0.0" + POLICY, "alpha = 0.0 is not a number"),
        ("alpha = 1" + POLICY, "alpha = 1 is not"),
        ("alpha = true" + POLICY, "alpha = True is not"),
        ('alpha = "0.05"' + POLICY, "is not a number"),
        ("alpha = 1e-5" + POLICY, "alpha = 1e-05 over 2 tests is finer than"),
        (POLICY + "[escalation]\nalpha = [0.0001, 0.04]\nseed = 1", "alpha = 0.0001 over 2 tests is finer than"),
        ("margin = 0" + POLICY, "margin = 0 is not"),
        ("max_errors = 1.0" + POLICY, "is not a share below 1"),
        ("seed = -1" + POLICY, "is not a whole number"),
        ('mode = "Release"' + POLICY, "did you mean 'release'"),
        ('[[family]]\nname = "x"\ntasks = []', "has no tasks"),
        ('[[family]]\nname = "x"\ntasks = "toy.*"', "no list of texts"),
        ('[[family]]\nname = " "\ntasks = ["toy.*"]', "is not a text"),
        ('[[family]]\ntasks = ["toy.*"]', "has no 'name'"),
        (FAMILY + "floor = 90", "floor = 90 is not a number from 0 to 1"),
        (FAMILY + "facets = { hops = [] }", "no value of a facet"),
        (FAMILY + "facets = { hops = true }", "no value of a facet"),
        (FAMILY + FAMILY, "two [[family]] called 'x'"),
        (POLICY + '[identity]\nmay_differ = ["tokenizer"]', "may_differ cannot hold tokenizer"),
        (POLICY + "[identity]\nrequire = { dtype = 16 }", "is no text"),
        (POLICY + "[escalation]\nalpha = [0.01, 0.05]\nseed = 1", "spends alpha 0.01 + 0.05, more than alpha = 0.05"),
        (POLICY + "[escalation]\nalpha = 0.05\nseed = 1", "no pair of levels"),
        (POLICY + "[escalation]\nalpha = [0.01, 0.04]", "has no 'seed'"),
        (POLICY + "[escalation]\nalpha = [0.01, 0.04]\nseed = 1\nretries = 3", "unknown key"),
        (POLICY + QUARANTINE.format("2026-05-31"), "expired on 2026-05-31: mend it (#1)"),
        (POLICY + QUARANTINE.format('"2026-12-31"'), "is no date"),
        (POLICY + QUARANTINE.format("2026-12-31T00:00:00"), "is no date"),
        (POLICY + '[[quarantine]]\ntask = "toy.a"\nreason = ""\nissue = "#1"\nuntil = 2026-12-31', "is not a text"),
        (POLICY + '[[quarantine]]\ntask = "toy.a"\nreason = "flaky"\nuntil = 2026-12-31', "has no 'issue'"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        policy.parse(text, today=TODAY)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_quarantine_holds_to_the_end_of_its_day() -> None:
    found = policy.parse(POLICY + QUARANTINE.format("2026-06-01"), today=TODAY)
    assert found.quarantined("toy.a") == found.quarantines[0]
    assert found.quarantined("toy.b") is None


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        policy.load(tmp_path / "gate.toml")


def test_defaults_and_dotted_keys() -> None:
    found = policy.parse('margin = 0.1\n[identity.require.kernels]\ndelta = "fast"\n' + POLICY)
    assert found.identity.require == {"kernels.delta": "fast"}
    assert found.families[0].margin == 0.1
    assert (found.mode, found.alpha, found.max_errors, found.families[0].tier) == ("pr", 0.05, 0.0, "critical")


def test_a_family_holds_by_task_and_facet() -> None:
    (family,) = policy.parse(FAMILY + "facets = { hops = [2, 4] }").families
    assert family.holds({"task": "toy.a", "facets": {"hops": 4}})
    assert not family.holds({"task": "toy.a", "facets": {"hops": 3}})
    assert not family.holds({"task": "toy.a", "facets": {}})
    assert not family.holds({"task": "other.a", "facets": {"hops": 2}})


def test_the_example_is_one() -> None:
    found = policy.load(Path(__file__).parents[2] / "examples" / "gate.toml")
    assert [family.name for family in found.families] == ["multihop", "two hops", "ruler", "knowledge"]
