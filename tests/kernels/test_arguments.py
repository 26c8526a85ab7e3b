"""Which implementation runs where, and what is said where one cannot."""

import subprocess
import sys

import pytest
import torch

from evalsuite_kernels import arguments, delta_rule, full_attention, linear_attention, record, short_convolution
from evalsuite_kernels.full import dispatch


def operators(dtype=torch.float32, K=4):
    q, beta = torch.zeros(1, 2, 1, K, dtype=dtype), torch.zeros(1, 2, 1, dtype=dtype)
    return {
        "full_attention": lambda impl: full_attention(q, q, q, impl=impl),
        "linear_attention": lambda impl: linear_attention(q, q, q, impl=impl),
        "delta_rule": lambda impl: delta_rule(q, q, q, beta, impl=impl),
        "short_convolution": lambda impl: short_convolution(q[0, 0, None], q[0, 0, 0, :, None], impl=impl),
    }


RECURRENT = ("full_attention", "linear_attention", "delta_rule")


@pytest.mark.parametrize("name", [*RECURRENT, "short_convolution"])
def test_auto_on_a_cpu_is_chunked_and_triton_needs_a_gpu(name, monkeypatch):
    monkeypatch.setattr(arguments, "INTERPRETED", False)
    operators()[name]("auto")
    with pytest.raises(ValueError, match=r"^impl='triton' cannot run here: .*; use impl='auto' or 'chunked'$"):
        operators()[name]("triton")
    assert record.implementations(torch.zeros(1))[name] == "chunked"


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize(
    ("setting", "value", "inputs", "message"),
    [
        ("INSTALLED", False, {}, "the package triton is not installed"),
        ("INTERPRETED", False, {}, "it needs a GPU, and a tensor is on cpu"),
        ("INTERPRETED", True, {"dtype": torch.float64}, "it takes bf16, fp16 and fp32, not torch.float64"),
        ("INTERPRETED", True, {"K": 257}, "head dims may reach 256, not 257"),
    ],
)
def test_what_stands_in_the_way_is_named(name, setting, value, inputs, message, monkeypatch):
    monkeypatch.setattr(arguments, setting, value)
    with pytest.raises(ValueError, match=f"cannot run here: {message}; use impl='auto' or 'chunked'"):
        operators(**inputs)[name]("triton")


def test_a_double_state_counts_too():
    q = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match=r"not torch\.float64"):
        linear_attention(q, q, q, initial_state=torch.zeros(1, 1, 4, 4).double(), impl="triton")


class OnGpu:
    """What the choice reads of a tensor, said to be on a GPU."""

    is_cuda, dtype, itemsize = True, torch.bfloat16, 2


def test_auto_on_a_gpu_is_triton_where_it_can_run(monkeypatch):
    assert arguments.choose("auto", OnGpu(), widest=256) == "triton"
    assert arguments.choose("auto", OnGpu(), widest=257) == "chunked"
    assert arguments.choose("auto", OnGpu(), torch.zeros(1).double()) == "chunked"
    monkeypatch.setattr(dispatch, "FASTER", {("window", 2): "triton", ("packed", 4): "triton"})
    assert record.implementations(OnGpu(), 64) == {
        "full_attention": "chunked; window: triton",
        "linear_attention": "triton",
        "delta_rule": "triton",
        "short_convolution": "chunked",
    }
    assert set(record.implementations(OnGpu(), 257).values()) == {"chunked"}


def test_versions():
    assert record.versions(torch.zeros(1)) is None
    if torch.cuda.is_available():
        told = record.versions(torch.zeros(1, device="cuda"))
        assert told is not None
        assert list(told) == ["triton", "ptxas", "cuda", "driver", "gpu"]
        assert all(value[0].isdigit() for name, value in told.items() if name != "gpu")


def test_without_triton():
    """In a process of its own in which triton cannot be found."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from evalsuite_kernels import linear_attention
q = torch.ones(1, 2, 1, 4)
linear_attention(q, q, q)
try:
    linear_attention(q, q, q, impl="triton")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    want = "impl='triton' cannot run here: the package triton is not installed; use impl='auto' or 'chunked'"
    assert done.stdout.strip() == want
