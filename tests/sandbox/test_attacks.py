"""Every attack, in every tier that this machine has, as root and as an ordinary user."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from evalsuite import sandbox
from evalsuite.sandbox import boxes

HERE = Path(__file__).parent
ATTACKS = runpy.run_path(str(HERE / "attacks.py"))["ATTACKS"]
STRANGER = 54321  # a user id that nobody has
PLACES = ["root T1r", "root T2", "user T1", "user T2"]


def needed() -> list[str]:
    """What the attacks' script imports of the package."""
    return ["evalsuite/__init__.py", "evalsuite/errors.py", "evalsuite/sandbox", "tests/sandbox/attacks.py"]


def outcomes(place: str) -> dict[str, str]:
    """All attacks' outcomes in a tier as a kind of user; skips where this machine has no such thing."""
    user, tier = place.split()
    if user == "root" and os.geteuid():
        pytest.skip("needs root")
    root = Path(tempfile.mkdtemp(prefix="attacked-"))
    try:
        for path in map(Path, needed()):
            (root / path.parent).mkdir(parents=True, exist_ok=True)
            source = HERE.parents[1] / path
            (shutil.copytree if source.is_dir() else shutil.copy)(source, root / path)
        canary = root / "home" / "canary"
        canary.parent.mkdir()
        canary.write_text("canary")
        if user == "user" and not os.geteuid():
            try:
                python = boxes.shared_python()
            except boxes.BoxError as error:
                pytest.skip(str(error))
            shutil.chown(canary, STRANGER)
            shutil.chown(canary.parent, STRANGER)
            root.chmod(0o755)
            who = {"user": STRANGER, "group": STRANGER, "extra_groups": []}
        else:
            python, who = sys.executable, {}
        command = [python, "-B", str(root / "tests/sandbox/attacks.py"), tier, str(canary)]
        environment = {"PATH": os.environ["PATH"], "HF_TOKEN": "hush"}
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=120, env=environment, cwd="/", **who
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, str] = json.loads(done.stdout)
        if "unavailable" in found:
            pytest.skip(f"no {tier} here: {found['unavailable']}")
        return found | {"canary": canary.read_text(), "mode": oct(canary.stat().st_mode & 0o777)}
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize("place", PLACES)
def test_every_attack_is_contained_and_the_machine_left_as_it_was(place: str) -> None:
    found = outcomes(place)
    contained = {name: re.compile(f"(the candidate |did: )?({expected})") for name, (_, expected) in ATTACKS.items()}
    assert {name: found[name] for name, pattern in contained.items() if not pattern.match(found[name])} == {}
    assert found["flood"] == f"False {1 << 20} wrote more than {1 << 20} bytes"
    assert found["left"] == ""
    assert int(found["grown"]) < 64  # MiB of the harness
    assert (found["canary"], found["mode"]) == ("canary", "0o644")


def test_sockets_are_what_the_attacks_think_they_are() -> None:
    """The refusals above are the sandbox's doing: outside, the same call gives a socket. It goes nowhere."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as free:
        assert free.fileno() >= 0
    ok, _, reason = sandbox.evaluate("import socket", "socket.socket(socket.AF_INET, socket.SOCK_STREAM)")
    assert not ok
    assert "PermissionError" in reason
