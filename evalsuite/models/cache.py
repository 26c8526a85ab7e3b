"""The generation cache: keys and values of attention layers, recurrent states, and the tails of the convolutions."""

from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import torch
import torch.nn.functional as F
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


class Bounds(TypedDict):
    """Where sequences begin and end, as `full_attention` takes it."""

    cu_seqlens: Tensor | None
    cu_seqlens_k: Tensor | None
    key_lengths: Tensor | None


@dataclass
class Keys:
    """What attention reads: packed `[1, S, H, D]` with `cu_seqlens`, or a cache `[N, S, H, D]` with `lengths`."""

    k: Tensor
    v: Tensor
    cu_seqlens: Tensor | None = None
    lengths: Tensor | None = None
    index: Tensor | None = None  # an indexer's keys, [1, S, D] or [N, S, D]

    def bounds(self, layout: Layout) -> Bounds:
        return {"cu_seqlens": layout.cu_seqlens, "cu_seqlens_k": self.cu_seqlens, "key_lengths": self.lengths}


class KVLayer:
    """Keys and values `[N, capacity, H, D]`, and an indexer's keys `[N, capacity, D]`; with a window, a ring of that
    many tokens."""

    def __init__(self, window: int | None = None) -> None:
        self.window = window
        self.room = 0  # tokens to make room for at once
        self.kept: tuple[Tensor, ...] = ()  # keys, values and an indexer's keys

    def _reserve(self, fresh: tuple[Tensor, ...], batch: int, needed: int) -> tuple[Tensor, ...]:
        planned = self.room >= needed
        needed = self.window or max(needed, self.room)
        if not self.kept:
            self.kept = tuple(x.new_zeros(batch, needed, *x.shape[2:]) for x in fresh)
        elif needed > (capacity := self.kept[0].shape[1]):
            more = (needed if planned else max(needed, capacity * 3 // 2)) - capacity
            self.kept = tuple(F.pad(x, (*[0, 0] * (x.dim() - 2), 0, more)) for x in self.kept)
        return self.kept

    def extend(self, k: Tensor, v: Tensor, layout: Layout, index: Tensor | None = None) -> Keys:
        """Append the new tokens; return all that their queries may read."""
        assert layout.cache is not None
        fresh = (k, v) if index is None else (k, v, index)
        old = layout.cache.lengths
        if layout.cu_seqlens is None:
            read, lengths = self._extend_step(fresh, old)
            return Keys(read[0], read[1], lengths=lengths, index=read[2] if index is not None else None)
        read, cu_seqlens = self._extend_packed(fresh, layout.cu_seqlens, old)
        return Keys(read[0], read[1], cu_seqlens=cu_seqlens, index=read[2] if index is not None else None)

    def _extend_step(self, fresh: tuple[Tensor, ...], old: Tensor) -> tuple[list[Tensor], Tensor]:
        longest = int(old.max()) + 1
        slots = old % self.window if self.window else old
        rows = torch.arange(len(old), device=old.device)
        read = min(longest, self.window or longest)
        kept = self._reserve(fresh, len(old), longest)
        for x, new in zip(kept, fresh, strict=True):
            x[rows, slots] = new[:, 0]
        # the order of the ring does not matter to one query that sees all of it
        valid = (old + 1).clamp(max=self.window) if self.window else old + 1
        return [x[:, :read] for x in kept], valid

    def _extend_packed(self, fresh: tuple[Tensor, ...], cu_seqlens: Tensor, old: Tensor) -> tuple[list[Tensor], Tensor]:
        bounds, before = cu_seqlens.tolist(), old.tolist()
        new = [b - a for a, b in pairwise(bounds)]
        had = bool(self.kept)
        kept = self._reserve(fresh, len(new), max(n + b for n, b in zip(new, before, strict=True)))
        packed: list[list[Tensor]] = [[] for _ in fresh]
        lengths = [0]
        for i, (start, count, past) in enumerate(zip(bounds, new, before, strict=False)):
            if not count:  # nobody reads this sequence's keys now
                lengths.append(lengths[-1])
                continue
            held = min(past, self.window - 1) if self.window else past
            slots = torch.arange(past - held, past, device=old.device)
            slots = slots % self.window if self.window else slots
            stored = min(count, self.window) if self.window else count
            places = torch.arange(past + count - stored, past + count, device=old.device)
            places = places % self.window if self.window else places
            for x, tokens, parts in zip(kept, fresh, packed, strict=True):
                mine = tokens[0, start : start + count]
                parts.extend([x[i, slots], mine] if had and held else [mine])
                x[i, places] = mine[count - stored :]
            lengths.append(lengths[-1] + held + count)
        end = torch.tensor(lengths, device=old.device, dtype=cu_seqlens.dtype)
        return [torch.cat(parts)[None] for parts in packed], end

    def select(self, index: Tensor) -> None:
        """Keep, repeat or reorder sequences."""
        self.kept = tuple(x[index] for x in self.kept)


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
    layer.kept = tuple(x.clone() if index is None else x[index] for x in mixer.kept)
    return layer
