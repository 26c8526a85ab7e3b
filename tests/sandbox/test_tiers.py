"""Which tier a machine gets, and what it is told when it lacks one."""

import pytest

from evalsuite import doctor, sandbox
from evalsuite.sandbox import filters, tiers


def test_the_canary_sings_where_there_are_no_walls() -> None:
    said = tiers.probe("none")
    for deed in ("reads files", "writes files", "opens sockets", "sees processes", "starts processes"):
        assert deed in said


def test_a_machine_without_bubblewrap_gets_the_second_tier_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong := tiers.probe("T2"):
        pytest.skip(wrong)
    monkeypatch.setattr(tiers.shutil, "which", lambda name: None)
    found = tiers._best()
    assert found.name == "T2"
    assert "bubblewrap is missing: apt-get install bubblewrap" in found.says
    assert "\n" not in found.says


def test_a_machine_with_nothing_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers.shutil, "which", lambda name: None)
    monkeypatch.setattr(filters, "landlock_abi", lambda: 0)
    found = tiers._best()
    assert found.name == "none"
    assert "Landlock is at version 0" in found.says
    assert "\n" not in found.says


def test_another_system_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters.platform, "machine", lambda: "mips")
    assert tiers._best().name == "none"


@pytest.mark.parametrize("name", ["T1r", "T2", "none"])
def test_doctor_tells(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "tier", lambda: sandbox.Tier(name, "why"))
    found = doctor._sandbox()
    assert found.found == f"{name}: why"
    assert found.ok == (name != "none") == (not found.fix)


def test_available_tells_of_each() -> None:
    found = sandbox.available()
    assert "T2" in found
    assert len(found) == 2
    assert sandbox.tier() is sandbox.tier()
    assert found.get(sandbox.tier().name, "") == ""


@pytest.mark.parametrize("machine", filters.MACHINES)
def test_filters_are_sound_programs(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every jump of a filter lands inside it, and it ends in a verdict, on either machine."""
    monkeypatch.setattr(filters.platform, "machine", lambda: machine)
    for bare in (False, True):
        steps = filters.assemble(bare=bare)
        assert len(steps) < 4096
        assert steps[-1][0] == filters.RETURN
        for at, (code, yes, no, _) in enumerate(steps):
            if code in (filters.EQUAL, filters.ABOVE, filters.ANY):
                assert at + 1 + max(yes, no) < len(steps)
