"""What generated task families share: cells by subtask, length and knobs, and which of them can be made."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import ClassVar

from evalsuite.errors import UserError, unknown
from evalsuite.records import Facet, Facets
from evalsuite.task import Cell, Count, Request, sample_id

LENGTHS = {"terse": (512,), "natural": (1024, 2048, 4096)}


class Family:
    """A family whose cells are its subtasks at every length and value of their knobs, as far as they can be made."""

    name: str
    parts: ClassVar[Mapping[str, tuple[str, ...]]]  # subtask -> its knobs
    defaults: ClassVar[Mapping[str, tuple[Facet, ...]]]
    words: ClassVar[Mapping[str, tuple[str, ...]]]  # knob -> what it takes beside numbers, or alone
    least: ClassVar[Mapping[str, int]]  # knob -> its smallest number; a knob without takes words alone

    def subtasks(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(self.parts)

    def knobs(self) -> Mapping[str, tuple[Facet, ...]]:
        """Every knob with its default values."""
        return self.defaults

    def cells(self, request: Request) -> Sequence[Cell]:
        """The cells that can be made. Raises UserError for an unknown subtask, knob or value."""
        return [found for _, found in self._survey(request) if isinstance(found, Cell)]

    def missing(self, request: Request) -> Mapping[str, str]:
        """Cells that cannot be made, and why. Natural text is judged at three characters a token."""
        return {name: found for name, found in self._survey(request) if isinstance(found, str)}

    def chance(self, cell: Cell, request: Request, count: Count) -> float:
        """Expected score of a guess. Raises UserError, with the mend, where the cell cannot be made."""
        raise AssertionError("a family tries its own cells")

    def _survey(self, request: Request) -> Iterator[tuple[str, Cell | str]]:
        knobs = self._checked(request)
        count = _words if request.wording == "terse" else _nominal
        for subtask, own in self.parts.items():
            if request.subtasks and subtask not in request.subtasks:
                continue
            for length, *values in product(request.lengths or LENGTHS[request.wording], *(knobs[knob] for knob in own)):
                facets: Facets = {"length": length, **dict(zip(own, values, strict=True))}
                cell = Cell(f"{self.name}.{subtask}", facets)
                try:
                    chance = self.chance(cell, request, count)
                except UserError as error:
                    yield sample_id(cell.task, facets, 0)[:-2], str(error)
                else:
                    yield "", Cell(cell.task, facets, chance)

    def _checked(self, request: Request) -> dict[str, tuple[Facet, ...]]:
        """Every knob's values, the request's or the default. Raises UserError for what does not exist."""
        for subtask in request.subtasks:
            if subtask not in self.parts:
                raise unknown("subtask", f"{self.name}.{subtask}", (f"{self.name}.{part}" for part in self.parts))
        for knob, values in request.knobs.items():
            if knob not in self.defaults:
                raise unknown("knob", f"{self.name}.{knob}", (f"{self.name}.{each}" for each in self.defaults))
            for value in values:
                if isinstance(value, int) and knob in self.least:
                    if value < self.least[knob]:
                        raise UserError(f"{self.name}.{knob}={value} is too small; give at least {self.least[knob]}")
                elif value not in self.words.get(knob, ()):
                    possible = self.words.get(knob, ("a whole number",))
                    raise unknown(f"value of {self.name}.{knob}", str(value), possible)
        return {**self.defaults, **request.knobs}


def _words(text: str) -> int:
    return len(text.split()) + 1


def _nominal(text: str) -> int:
    return len(text) // 3 + 1
