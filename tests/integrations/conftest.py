"""What several of these files start from; one that wants another says so itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from evalsuite.models import ZOO
from evalsuite.models.own import OwnModel, open_checkpoint
from strict_server import Strict


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of small tasks of lm_eval."""
    from foreign_tasks import written  # lm_eval may be missing

    return written(tmp_path / "tasks")


@pytest.fixture(scope="module")
def native() -> OwnModel:
    return open_checkpoint(ZOO / "hybrid-kda", "hybrid-kda", device="cpu")


@pytest.fixture
def server() -> Iterator[Strict]:
    made = Strict()
    yield made
    made.shutdown()
    made.server_close()
