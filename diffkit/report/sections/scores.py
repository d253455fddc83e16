"""results.json read with care: every metric's values beside those of real held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..wording import count, number

COUNTS = frozenset({"samples", "reference", "held_out"})  # values that say how many examples were compared


@dataclass(frozen=True)
class Score:
    """One value of one metric; `held_out` is what real held-out data scores in the samples' place."""

    metric: str
    key: str
    value: float | None
    held_out: float | None
    headline: bool
    lower_is_better: bool | None
    definition: str
    counted: str
    nfe: float | None

    @property
    def label(self) -> str:
        """The metric's name, with the value's own name where it says more."""
        own = self.key.replace("_", "-") not in ("", self.metric)
        return f"{self.metric} {self.key}" if own else self.metric

    @property
    def ratio(self) -> float | None:
        """How many times worse than real data, 1 = equal; None where either number is absent or not positive."""
        if self.value is None or self.held_out is None or self.value <= 0 or self.held_out <= 0:
            return None
        ratio = self.value / self.held_out
        if self.lower_is_better is None:
            return max(ratio, 1.0 / ratio)
        return ratio if self.lower_is_better else 1.0 / ratio


def mapping(value: object) -> Mapping[object, object]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def scores(results: Mapping[str, object]) -> list[Score]:
    """All values in the order of the file; the first value of each metric is its headline."""
    found = []
    for name, entry in mapping(results.get("metrics")).items():
        record = mapping(entry)
        values, held_out = mapping(record.get("values")), mapping(record.get("held_out"))
        known = [key for key in values if number(values[key]) is not None or number(held_out.get(key)) is not None]
        keys = [key for key in known if key not in COUNTS]
        for place, key in enumerate(keys):
            found.append(
                Score(
                    metric=str(name),
                    key=str(key),
                    value=number(values[key]),
                    held_out=number(held_out.get(key)),
                    headline=place == 0,
                    lower_is_better=_direction(record.get("lower_is_better", True)),
                    definition=_sentence(str(record.get("definition") or "")),
                    counted=_counted(record),
                    nfe=number(record.get("nfe")),
                )
            )
    return found


def _direction(told: object) -> bool | None:
    """Lower is better where nothing else is said."""
    return None if told is None else told is not False


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text.strip(". ") else ""


def _counted(record: Mapping[object, object]) -> str:
    """What the value rests on: "512 samples against 1,285 training examples, drawn with ancestral, ..."."""
    values, held_out = mapping(record.get("values")), mapping(record.get("held_out"))
    samples, reference = (number(values.get(key, record.get(key))) for key in ("samples", "reference"))
    parts = []
    if samples is not None:
        against = f" against {count(reference)} real examples" if reference is not None else ""
        parts.append(f"{count(samples)} samples{against}")
    if number(held_out.get("samples")) is not None:
        parts.append(f"the real row from {count(held_out['samples'])} held-out examples")
    if record.get("sampler"):
        parts.append(f"samples drawn with {record['sampler']}")
    if number(record.get("nfe")) is not None:
        parts.append(f"{count(record.get('nfe'))} network calls each")
    return _sentence(", ".join(parts))
