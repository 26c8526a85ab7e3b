"""The benchmark runs every operator it names, and says how the implementations compare."""

import pytest

from evalsuite_kernels import bench


@pytest.mark.parametrize("op", ["linear", "lightning", "mamba2", "gla", "deltanet", "gdn", "kda", "full", "conv"])
@pytest.mark.parametrize("backward", [[], ["--backward"]])
def test_it_prints_both_and_their_ratio(op, backward, capsys):
    bench.main(
        ["--op", op, "--length", "6", "--heads", "2", "--dim", "4", "--threads", "1", "--repeats", "1", *backward]
    )
    first, second, ratio = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{op} reference: ")
    assert second.startswith(f"{op} chunked: ")
    assert "times as fast as reference" in ratio


def test_an_unknown_operator_is_named(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--op", "rwkv", "--threads", "1"])
    assert "unknown op 'rwkv'" in capsys.readouterr().err
