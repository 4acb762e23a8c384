"""One figure a row, what it is held against, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

MIB = 1 << 20
_HEAD = f"{'case':<8}{'what':<20}{'ours':>9}{'reference':>10}{'ratio':>7}{'goal':>7}{'least':>7}"
_TAIL = f"{'PSS MiB':>9}  {'':<6}more"


@dataclass(frozen=True, slots=True)
class Row:
    """A figure with its goal, and the least that will do.

    Attributes:
        unit: of `ours` and `reference`; the last is 0 where there is none.
        ratio: what is judged; the smaller the better when `goal` is below `least`.
        pss: peak of all our processes in bytes, 0 where it was not measured.
        more: other figures of the same runs, by name.
    """

    case: str
    what: str
    unit: str
    ours: float
    reference: float
    ratio: float
    goal: float
    least: float
    pss: int = 0
    more: dict[str, object] = field(default_factory=dict)

    @property
    def mark(self) -> Literal["ok", "least", "MISS"]:
        """Which of the two limits is kept."""
        sign = 1 if self.goal <= self.least else -1
        if sign * self.ratio <= sign * self.goal:
            return "ok"
        return "least" if sign * self.ratio <= sign * self.least else "MISS"

    def line(self) -> str:
        """For people."""
        reference = f"{self.reference:.2f}" if self.reference else "-"
        pss = f"{self.pss / MIB:.0f}" if self.pss else "-"
        more = ", ".join(f"{name} {_short(value)}" for name, value in self.more.items())
        return (
            f"{self.case:<8}{self.what:<20}{self.ours:>7.2f} {self.unit:<1}{reference:>10}"
            f"{self.ratio:>7.2f}{self.goal:>7g}{self.least:>7g}{pss:>9}  {self.mark:<6}{more}"
        ).rstrip()


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "/".join(_short(one) for one in value)
    return str(value)


def table(rows: Iterable[Row]) -> str:
    """All of them."""
    head = _HEAD + _TAIL
    return "\n".join([head, "-" * len(head), *(row.line() for row in rows)])
