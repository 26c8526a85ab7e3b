"""The token stream: two designs must read the same bytes, and no label may stand where nothing was asked."""

from pathlib import Path

import numpy as np
import pytest

from evalsuite.errors import UserError
from evalsuite.lab.data import IGNORE, Stream, batches, build, row
from evalsuite.lab.run import MIXTURE
from evalsuite.lexicon import NAMES
from evalsuite.models.tokenizer import build_tokenizer, vocabulary

SMALL = Stream(MIXTURE, lengths=((128, 0.5), (256, 0.5)), curriculum=0.5, steps=12, tokens_per_step=512, seed=3)


def test_same_stream_is_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    build(SMALL, tmp_path / "a", workers=1)
    build(SMALL, tmp_path / "b", workers=2)
    for name in ("ids.npy", "labels.npy"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_another_stream_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    build(SMALL, tmp_path)
    with pytest.raises(UserError, match="another stream"):
        build(Stream(MIXTURE, steps=12, tokens_per_step=512, seed=4), tmp_path)


def test_a_half_written_stream_is_made_again(tmp_path: Path) -> None:
    build(SMALL, tmp_path)
    whole = (tmp_path / "ids.npy").read_bytes()
    (tmp_path / "stream.json").unlink()
    (tmp_path / "ids.npy").write_bytes(whole[:200])
    build(SMALL, tmp_path)
    assert (tmp_path / "ids.npy").read_bytes() == whole


def test_steps_keep_their_tokens_and_the_curriculum_its_lengths(tmp_path: Path) -> None:
    shapes = [ids.shape for ids, _ in batches(SMALL, build(SMALL, tmp_path))]
    assert len(shapes) == 12
    assert all(rows * length == 512 for rows, length in shapes)
    assert {length for _, length in shapes[:6]} == {128}
    assert {length for _, length in shapes[6:]} == {128, 256}


def test_a_resumed_reader_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = build(SMALL, tmp_path)
    late = list(batches(SMALL, folder, start=9))
    for (a, b), (c, d) in zip(list(batches(SMALL, folder))[9:], late, strict=True):
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)


@pytest.mark.parametrize("name", [name for name, _ in MIXTURE])
def test_the_tokenizer_reads_rows_as_the_stream_writes_them(name: str) -> None:
    """A row's text, tokenized anew, gives the row's ids: training and evaluation see the same tokens."""
    tokenizer = build_tokenizer(512)
    words = vocabulary()
    for index in range(5):
        ids, labels = row(Stream(((name, 1.0),)), 0, index, 256)
        count = int((ids != 0).sum())
        text = tokenizer.decode(ids[1:count].tolist())
        assert tokenizer(text).input_ids == ids[:count].tolist()
        asked = labels[labels != IGNORE]
        assert len(asked)
        assert all(words[label].startswith("▁") for label in asked)
        assert (labels[count:] == IGNORE).all()


def test_train_and_evaluation_share_no_question() -> None:
    """Graph questions of the stream and of the evaluation never stand on the same facts."""
    from evalsuite.task import Request, load

    task = load("multihop")
    request = Request(subtasks=("graph",), lengths=(256,), wording="terse", knobs={"facts": (8,), "hops": (1,)})
    (cell,) = task.cells(request)
    asked = {_facts(task.sample(cell, i, request, lambda text: len(text.split()) + 1).prompt) for i in range(200)}
    tokenizer = build_tokenizer(512)
    stream = Stream((("multihop.graph", 1.0),))
    trained = set()
    for index in range(300):
        ids, _ = row(stream, 0, index, 256)
        trained.add(_facts(tokenizer.decode(ids[1 : int((ids != 0).sum())].tolist())))
    assert len(asked) == 200
    assert min(map(len, asked | trained)) >= 3
    assert not asked & trained


def _facts(text: str) -> frozenset[str]:
    """The names of a graph: training and evaluation never use the same set of them."""
    return frozenset(text.partition(" ask ")[0].split()) & frozenset(NAMES)
