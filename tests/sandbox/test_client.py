"""What the harness makes of replies that say more of the machine than of the program."""

import pytest

from evalsuite.sandbox import Verdict, client, judge, wire

LOST = "the test itself ended early (SIGKILL)"


def asked(monkeypatch: pytest.MonkeyPatch, *replies: tuple[bool, str]) -> tuple[Verdict, int]:
    """The verdict of a job to which the supervisor gives these replies, and how many it gave."""
    given = iter(replies)
    count = 0

    def ask(message: str, tier: str, disk: int) -> str:
        nonlocal count
        count += 1
        return wire.encode(["done", *next(given), 0.1, ""], wire.no_other)

    monkeypatch.setattr(client, "_ask", ask)
    return judge("def f(): return 1", "assert f() == 1", entry="f"), count


def test_a_process_killed_from_outside_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, count = asked(monkeypatch, (False, LOST), (True, ""))
    assert (verdict.passed, count) == (True, 2)


def test_a_program_that_kills_every_time_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, count = asked(monkeypatch, (False, LOST), (False, LOST))
    assert (verdict.passed, verdict.reason, count) == (False, LOST, 2)


@pytest.mark.parametrize("reply", [(True, ""), (False, "AssertionError"), (False, "timed out after 10 s")])
def test_other_verdicts_stand(reply: tuple[bool, str], monkeypatch: pytest.MonkeyPatch) -> None:
    verdict, count = asked(monkeypatch, reply)
    assert (verdict.passed, count) == (reply[0], 1)
