"""Which operators ran for which layer: the proof that nothing else did."""

from collections import Counter
from dataclasses import dataclass

from torch import nn

from evalsuite.errors import UserError

SLOT = "_evalsuite_tally"


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts the calls of one layer into all of its model's: (layer, operator) -> calls."""

    layer: int
    calls: Counter[tuple[int, str]]

    def __call__(self, operator: str) -> None:
        self.calls[self.layer, operator] += 1

    def __deepcopy__(self, _: object) -> "Tally":
        raise UserError(
            "a model on the kernels cannot be copied: what it calls would count for both; copy it, then use()"
        )


def tally_of(module: nn.Module) -> Tally:
    """The tally of a layer of a swapped model. Raises UserError for any other, which shares its attention's name."""
    tally: Tally | None = vars(module).get(SLOT)
    if tally is None:
        raise UserError(
            f"{type(module).__name__} was asked for the kernels without having been swapped; "
            "call evalsuite.integrations.hf.use(model) instead of naming them as attn_implementation"
        )
    return tally
