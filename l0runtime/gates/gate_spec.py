"""Which gates does the user want, and how are they distributed?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from l0runtime.errors import GateParameterError, OptionError
from l0runtime.gates.evaluation import EvaluationRule, check_rule
from l0runtime.gates.hard_concrete import HardConcrete
from l0runtime.gates.places import KINDS, Kind, Place


@dataclass(frozen=True)
class GateSpec:
    """A choice among the places that `attach` finds.

    Args:
        kinds: which of "units", "heads", "stream" and "blocks".
        include: shell-style patterns; a place is taken when its name or the name of a layer that writes or reads it
            fits one.
        exclude: patterns of places that are not taken all the same; they are held against the place's name alone.
        drop_rate: d of the initial log_alpha ~ N(log((1 - d) / d), 0.01). At most 0.083 and every gate evaluates to
            exactly 1 at first, so that attaching does not change the function.
        constants: beta (the temperature), gamma and zeta.
        rule: evaluation rule.
        per_example: one gate sample per example rather than one per batch; the gates then multiply activations, which
            costs more time.
    Raises:
        OptionError: an unknown kind.
        GateParameterError: drop_rate outside (0, 1), or an unknown rule.
    """

    kinds: Sequence[Kind] = ("units", "heads")
    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    drop_rate: float = 0.05
    constants: HardConcrete = field(default_factory=HardConcrete)
    rule: EvaluationRule = "paper"
    per_example: bool = False

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise OptionError(f"GateSpec: kind {kind!r} is unknown; known are {', '.join(KINDS)}.")
        if not self.kinds:
            raise OptionError(f"GateSpec: no kind of gates is asked for; known are {', '.join(KINDS)}.")
        if not 0 < self.drop_rate < 1:
            raise GateParameterError(f"GateSpec: drop_rate is {self.drop_rate}; expected a number between 0 and 1.")
        check_rule(self.rule)

    def wants(self, place: Place) -> bool:
        """Whether a place is chosen."""
        names = (place.name, *place.layers)
        chosen = any(fnmatchcase(name, pattern) for pattern in self.include for name in names)
        barred = any(fnmatchcase(place.name, pattern) for pattern in self.exclude)
        return place.kind in self.kinds and chosen and not barred

    def unused_patterns(self, places: Iterable[Place]) -> list[str]:
        """Patterns to include that fit nothing at all, which a misspelt name does."""
        names = {name for place in places for name in (place.name, *place.layers)}
        return [pattern for pattern in self.include if not any(fnmatchcase(name, pattern) for name in names)]
