"""The generation cache: keys and values of attention layers, recurrent states, and the tails of the convolutions."""

from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache


@dataclass
class Layout:
    """Where the tokens of one forward pass stand.

    Tokens are `[B, T]`, or packed: B = 1 with `cu_seqlens [N+1]` bounding N sequences, on the host, so that no layer
    waits for a GPU to know them. `positions` has the tokens' shape.
    """

    positions: Tensor
    cu_seqlens: Tensor | None = None
    cache: "HybridCache | None" = None
    places: "dict[int | None, Places]" = field(default_factory=dict)  # of packed tokens in a cache of that window

    @property
    def step(self) -> bool:
        """One new token for each sequence of a cache."""
        return self.cache is not None and self.cu_seqlens is None


class Places(NamedTuple):
    """Where packed new tokens go in a cache, and where what they read stands, as indices on the cache's device."""

    longest: int  # tokens of a sequence, the new ones included
    rows: Tensor  # [new tokens that are kept]: which sequence
    slots: Tensor  # where in it
    kept: Tensor | None  # which of the new tokens; None: all
    past_rows: Tensor  # [tokens of before that are read]
    past_slots: Tensor
    order: Tensor | None  # [tokens that are read], of the past ones and the new ones after them; None: as they stand
    cu_seqlens: Tensor  # [N + 1] of the tokens that are read, on the host


def places_of(cu_seqlens: Tensor, before: Tensor, window: int | None, device: torch.device) -> Places:
    """`before [N]` tokens stand in the cache already, a ring of `window` tokens or, with None, as many as there are.

    A sequence without new tokens reads nothing.
    """
    new = cu_seqlens.diff()
    held = torch.where(new > 0, before if window is None else before.clamp(max=window - 1), 0)
    sequence, offset = _counted(new)
    old, back = _counted(held)
    ends = (held + new).cumsum(0)
    start = ends - held - new
    order = torch.empty(int(ends[-1]), dtype=torch.long)
    order[start[old] + back] = torch.arange(len(old))
    order[start[sequence] + held[sequence] + offset] = torch.arange(len(old), len(order))
    slots, past = before[sequence] + offset, before[old] - held[old] + back
    kept = None
    if window is not None:
        slots, past = slots % window, past % window
        if int(new.max()) > window:
            kept = (offset >= new[sequence] - window).nonzero().flatten()
            sequence, slots = sequence[kept], slots[kept]
    return Places(
        longest=int((before + new).max()),
        rows=sequence.to(device),
        slots=slots.to(device),
        kept=None if kept is None else kept.to(device),
        past_rows=old.to(device),
        past_slots=past.to(device),
        order=order.to(device) if (order.diff() != 1).any() else None,
        cu_seqlens=F.pad(ends, (1, 0)),
    )


def _counted(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """For sequences of `lengths [N]` tokens, side by side: each token's sequence, and its number in it."""
    which = torch.arange(len(lengths)).repeat_interleave(lengths)
    return which, torch.arange(len(which)) - (lengths.cumsum(0) - lengths)[which]


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
        if layout.cu_seqlens is None:
            read, lengths = self._extend_step(fresh, layout.cache.lengths)
            return Keys(read[0], read[1], lengths=lengths, index=read[2] if index is not None else None)
        read, cu_seqlens = self._extend_packed(fresh, layout)
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

    def _extend_packed(self, fresh: tuple[Tensor, ...], layout: Layout) -> tuple[list[Tensor], Tensor]:
        assert layout.cache is not None
        assert layout.cu_seqlens is not None
        if self.window not in layout.places:
            before, device = layout.cache.lengths.cpu(), layout.cache.lengths.device
            layout.places[self.window] = places_of(layout.cu_seqlens, before, self.window, device)
        at = layout.places[self.window]
        read = [x[0] for x in fresh]
        kept = self._reserve(fresh, len(layout.cache.lengths), at.longest)
        if len(at.past_rows):
            past = [x[at.past_rows, at.past_slots] for x in kept]
            read = [torch.cat(pair) for pair in zip(past, read, strict=True)]
            read = read if at.order is None else [x[at.order] for x in read]
        for x, (new,) in zip(kept, fresh, strict=True):
            x[at.rows, at.slots] = new if at.kept is None else new[at.kept]
        return [x[None] for x in read], at.cu_seqlens

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

    def snapshot(self) -> list[Tensor | None]:
        """All that a step replaces: states, tails, lengths. Keys and values are written in place, at `lengths`."""
        return [*(m.state if isinstance(m, StateLayer) else None for m in self.mixers), *self.tails, self.lengths]

    def put_back(self, before: list[Tensor | None], rows: Tensor) -> None:
        """Undo the last step for the sequences `rows [N]` (bool), of which `before` is the snapshot."""
        if not bool(rows.any()):
            return

        def undone(old: Tensor | None, new: Tensor | None) -> Tensor | None:
            if new is None or old is None:
                return new
            return torch.where(rows.view(-1, *[1] * (new.dim() - 1)), old, new)

        for mixer, old in zip(self.mixers, before, strict=False):
            if isinstance(mixer, StateLayer):
                mixer.state = undone(old, mixer.state)
        count = len(self.mixers)
        self.tails = [undone(old, new) for old, new in zip(before[count:-1], self.tails, strict=True)]
        self.lengths = torch.where(rows, before[-1], self.lengths)  # type: ignore[arg-type]  # never None

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
