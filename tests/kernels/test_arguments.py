"""Which implementation runs where, and what is said where one cannot."""

import subprocess
import sys

import pytest
import torch

from evalsuite_kernels import arguments, delta_rule, full_attention, linear_attention, record, short_convolution
from evalsuite_kernels.full import api, dispatch


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

    is_cuda, dtype, itemsize, device = True, torch.bfloat16, 2, torch.device("cuda")
    requires_grad = False

    def __init__(self, *shape):
        self.shape = shape


def test_auto_on_a_gpu_is_triton_where_it_can_run(monkeypatch):
    assert arguments.choose("auto", OnGpu(), widest=256) == "triton"
    assert arguments.choose("auto", OnGpu(), widest=257) == "chunked"
    assert arguments.choose("auto", OnGpu(), torch.zeros(1).double()) == "chunked"
    assert set(record.implementations(OnGpu(), 257).values()) == {"chunked"}


FASTER = {
    ("window", 2, 64, "forward"): "triton",
    ("square", 2, 64, "forward"): "triton",
    ("square", 2, 128, "both"): "triton",
    ("cached", 2, 128, "forward"): "triton",
    ("packed", 4, 64, "forward"): "triton",
}


def test_the_record_says_what_auto_takes(monkeypatch):
    monkeypatch.setattr(dispatch, "FASTER", FASTER)
    monkeypatch.setattr(dispatch, "hopper", lambda device: True)
    told = record.implementations(OnGpu(), 64)
    assert told == {
        "full_attention": "chunked; square: triton; window: triton",
        "linear_attention": "triton",
        "delta_rule": "triton",
        "lightning_index": "triton",
        "sparse_attention": "triton",
        "block_attention": "triton",
        "short_convolution": "chunked",
    }
    assert record.implementations(OnGpu(), 48)["full_attention"] == "chunked; window: triton"
    assert record.implementations(OnGpu(), 128)["full_attention"] == "chunked; cached: triton"
    assert record.implementations(OnGpu(), 256)["delta_rule"] == "triton"
    monkeypatch.setattr(dispatch, "hopper", lambda device: False)
    assert record.implementations(OnGpu(), 64)["full_attention"] == "chunked"


@pytest.mark.parametrize(
    ("T", "S", "D", "window", "learned", "name"),
    [
        (8, 8, 64, None, False, "triton"),
        (8, 8, 64, None, True, "chunked"),
        (8, 8, 128, None, True, "triton"),
        (8, 8, 128, None, False, "chunked"),
        (8, 8, 48, None, False, "chunked"),  # plain calls were timed with whole classes of heads
        (8, 8, 48, 5, False, "triton"),
        (8, 8, 64, 100, False, "triton"),
        (2, 8, 128, None, False, "triton"),
        (2, 8, 64, None, False, "chunked"),
    ],
)
@pytest.mark.parametrize("B", [1, 5])
def test_the_choice_goes_by_the_class_of_a_call(B, T, S, D, window, learned, name, monkeypatch):
    monkeypatch.setattr(dispatch, "FASTER", FASTER)
    monkeypatch.setattr(dispatch, "hopper", lambda device: True)
    q, k, v = (OnGpu(B, n, 2, D) for n in (T, S, S))
    k.requires_grad = learned
    assert dispatch.faster(q, k, v, window, None, padded=False, packed=False) == name
    with torch.no_grad():
        without = dispatch.faster(q, k, v, window, None, padded=False, packed=False)
    k.requires_grad = False
    assert without == dispatch.faster(q, k, v, window, None, padded=False, packed=False)
    monkeypatch.setattr(dispatch, "hopper", lambda device: False)
    assert dispatch.faster(q, k, v, window, None, padded=False, packed=False) == "chunked"


def test_auto_runs_what_the_table_names(monkeypatch):
    ran = []
    monkeypatch.setattr(arguments, "INTERPRETED", True)
    monkeypatch.setattr(api, "choose", lambda *_, **__: "triton")
    monkeypatch.setattr(api, "_triton", lambda q, k, v, **_: ran.append("triton") or q)
    monkeypatch.setattr(dispatch, "hopper", lambda device: True)
    monkeypatch.setattr(dispatch, "FASTER", {("window", 4, 64, "forward"): "triton"})
    q = torch.zeros(1, 3, 1, 4)
    full_attention(q, q, q)
    assert ran == []
    full_attention(q, q, q, window=2)
    assert ran == ["triton"]
    full_attention(q.requires_grad_(), q, q, window=2)
    assert ran == ["triton"]


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


def test_what_really_runs_is_heard():
    q = torch.randn(1, 3, 1, 16)
    beta = torch.rand(1, 3, 1)
    with record.listening() as outer:
        delta_rule(q, q, q, beta, impl="reference")
        with record.listening() as inner:
            delta_rule(q, q, q, beta)
            linear_attention(q, q, q)
            full_attention(q, q, q, impl="reference")
            short_convolution(q[..., 0, :], torch.randn(16, 4))
    delta_rule(q, q, q, beta, impl="chunked")
    assert inner == {
        "delta_rule": {"chunked"},
        "linear_attention": {"chunked"},
        "full_attention": {"reference"},
        "short_convolution": {"chunked"},
    }
    assert outer == inner | {"delta_rule": {"chunked", "reference"}}
    with record.listening(outer), record.listening(outer), record.listening():
        linear_attention(q, q, q, impl="reference")
    assert outer["linear_attention"] == {"chunked", "reference"}
    assert record.told(outer)["linear_attention"] == ["chunked", "reference"]
    linear_attention(q, q, q, impl="chunked")
    assert inner["linear_attention"] == {"chunked"}, "nobody listens any more"
    with pytest.raises(RuntimeError), record.listening(inner):
        raise RuntimeError
    linear_attention(q, q, q, impl="reference")
    assert inner["linear_attention"] == {"chunked"}


def test_kernels_tell_of_themselves_even_in_a_compiled_graph():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q = torch.randn(1, 2, 1, 16, device=device, requires_grad=True)
    step = torch.compile(lambda q: linear_attention(q, q, q, impl="triton")[0], backend="aot_eager")
    with record.listening() as heard:
        step(q).sum().backward()
        with torch.no_grad():
            full_attention(q, q, q, impl="triton")
    assert heard == {
        "linear_attention": {"triton"},
        "linear_attention backward": {"triton"},
        "full_attention": {"triton"},
    }
