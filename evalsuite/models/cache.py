"""The generation cache: keys and values of attention layers, recurrent states, and the tails of the convolutions."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import Cache


@dataclass
class Layout:
    """Where the tokens of one forward pass stand.

    Tokens are `[B, T]`, or packed: B = 1 with `cu_seqlens [N+1]` bounding N sequences. `positions` has their shape.
    """

    positions: Tensor
    cu_seqlens: Tensor | None = None
    cache: "HybridCache | None" = None

    @property
    def step(self) -> bool:
        """One new token for each sequence of a cache."""
        return self.cache is not None and self.cu_seqlens is None


@dataclass
class Keys:
    """What attention reads: packed `[1, S, H, D]` with `cu_seqlens`, or a cache `[N, S, H, D]` with `lengths`."""

    k: Tensor
    v: Tensor
    cu_seqlens: Tensor | None = None
    lengths: Tensor | None = None


class KVLayer:
    """Keys and values `[N, capacity, H, D]`; with a window, a ring of that many tokens."""

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.room = 0  # tokens to make room for at once
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def _reserve(self, k: Tensor, batch: int, needed: int) -> tuple[Tensor, Tensor]:
        planned = self.room >= needed
        needed = self.window or max(needed, self.room)
        if self.k is None or self.v is None:
            shape = (batch, needed, *k.shape[2:])
            self.k, self.v = k.new_zeros(shape), k.new_zeros(shape)
        elif needed > self.k.shape[1]:
            more = (needed if planned else max(needed, self.k.shape[1] * 3 // 2)) - self.k.shape[1]
            pad = (0, 0, 0, 0, 0, more)
            self.k, self.v = torch.nn.functional.pad(self.k, pad), torch.nn.functional.pad(self.v, pad)
        return self.k, self.v

    def extend(self, k: Tensor, v: Tensor, layout: Layout) -> Keys:
        """Append the new tokens; return all that their queries may read."""
        assert layout.cache is not None
        old = layout.cache.lengths
        if layout.cu_seqlens is None:
            return self._extend_step(k, v, old)
        return self._extend_packed(k, v, layout.cu_seqlens, old)

    def _extend_step(self, k: Tensor, v: Tensor, old: Tensor) -> Keys:
        longest = int(old.max()) + 1
        keys, values = self._reserve(k, len(old), longest)
        slots = old % self.window if self.window else old
        rows = torch.arange(len(old), device=k.device)
        keys[rows, slots], values[rows, slots] = k[:, 0], v[:, 0]
        # the order of the ring does not matter to one query that sees all of it
        valid = (old + 1).clamp(max=self.window) if self.window else old + 1
        read = min(longest, self.window or longest)
        return Keys(keys[:, :read], values[:, :read], lengths=valid)

    def _extend_packed(self, k: Tensor, v: Tensor, cu_seqlens: Tensor, old: Tensor) -> Keys:
        bounds, before = cu_seqlens.tolist(), old.tolist()
        new = [b - a for a, b in pairwise(bounds)]
        had = self.k is not None
        keys, values = self._reserve(k, len(new), max(n + b for n, b in zip(new, before, strict=True)))
        packed_k: list[Tensor] = []
        packed_v: list[Tensor] = []
        lengths = [0]
        for i, (start, count, past) in enumerate(zip(bounds, new, before, strict=False)):
            if not count:  # nobody reads this sequence's keys now
                lengths.append(lengths[-1])
                continue
            kept = min(past, self.window - 1) if self.window else past
            slots = torch.arange(past - kept, past, device=k.device)
            slots = slots % self.window if self.window else slots
            fresh_k, fresh_v = k[0, start : start + count], v[0, start : start + count]
            if had and kept:
                packed_k.append(keys[i, slots])
                packed_v.append(values[i, slots])
            packed_k.append(fresh_k)
            packed_v.append(fresh_v)
            lengths.append(lengths[-1] + kept + count)
            stored = min(count, self.window) if self.window else count
            places = torch.arange(past + count - stored, past + count, device=k.device)
            places = places % self.window if self.window else places
            keys[i, places], values[i, places] = fresh_k[count - stored :], fresh_v[count - stored :]
        return Keys(
            torch.cat(packed_k)[None],
            torch.cat(packed_v)[None],
            cu_seqlens=torch.tensor(lengths, device=k.device, dtype=cu_seqlens.dtype),
        )

    def select(self, index: Tensor) -> None:
        """Keep, repeat or reorder sequences."""
        if self.k is not None and self.v is not None:
            self.k, self.v = self.k[index], self.v[index]


class StateLayer:
    """A recurrent state [N, HV, K, V] in fp32."""

    def __init__(self) -> None:
        self.state: Tensor | None = None

    def select(self, index: Tensor) -> None:
        """Keep, repeat or reorder sequences."""
        if self.state is not None:
            self.state = self.state[index]


class HybridCache(Cache):
    """The cache of one batch: `lengths [N]` tokens seen by each; a mixer state and a convolution tail a layer."""

    is_compileable = False

    def __init__(self, mixers: list[KVLayer | StateLayer], batch: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self.mixers = mixers
        self.tails: list[Tensor | None] = [None] * len(mixers)  # [N, D, conv_size - 1]
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)

    def __len__(self) -> int:
        return len(self.mixers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the longest sequence."""
        return int(self.lengths.max())

    def select(self, index: Tensor) -> None:
        """Keep, repeat or reorder sequences: `index [M]` of the rows to keep."""
        for mixer in self.mixers:
            mixer.select(index)
        self.tails = [None if tail is None else tail[index] for tail in self.tails]
        self.lengths = self.lengths[index]

    reorder_cache = select  # type: ignore[assignment]
    batch_select_indices = select  # type: ignore[assignment]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence `repeats` times, side by side."""
        self.select(torch.arange(len(self.lengths), device=self.lengths.device).repeat_interleave(repeats))

    def reserve(self, length: int) -> None:
        """Make room for sequences of `length` tokens at the next new token, instead of growing step by step."""
        for mixer in self.mixers:
            if isinstance(mixer, KVLayer):
                mixer.room = length

    def fork(self, index: Tensor | None = None) -> "HybridCache":
        """A copy that can go its own way: of all sequences, or of the rows `index [M]`, which may repeat."""
        other = HybridCache.__new__(HybridCache)
        other.__dict__.update(self.__dict__)
        other.mixers = [_copy(mixer, index) for mixer in self.mixers]
        other.tails = list(self.tails)  # tails and states are replaced, never written in place
        other.lengths = self.lengths.clone()
        if index is not None:
            other.tails = [None if tail is None else tail[index] for tail in self.tails]
            other.lengths = self.lengths[index]
        return other


def _copy(mixer: KVLayer | StateLayer, index: Tensor | None) -> KVLayer | StateLayer:
    if isinstance(mixer, StateLayer):
        state = StateLayer()
        state.state = mixer.state
        if index is not None:
            state.select(index)
        return state
    layer = KVLayer(mixer.window)
    if mixer.k is not None and mixer.v is not None:
        layer.k = mixer.k.clone() if index is None else mixer.k[index]
        layer.v = mixer.v.clone() if index is None else mixer.v[index]
    return layer
