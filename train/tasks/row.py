"""The row that an update logs: means over its micro-batches and over all ranks."""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from train import ranks


class Means:
    """Means of scalars over the micro-batches of an update, by name; a value counts in those that have it.

    The sums stay on their device and hold no graph, so that nothing waits for them.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Scalars of one micro-batch."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] += 1

    def take(self) -> dict[str, Tensor]:
        """The means, float32; the next update begins."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, Counter()
        return means


class Row:
    """What an update logs, filled only in updates that are logged."""

    def __init__(self) -> None:
        self._means = Means()
        self._once: dict[str, Tensor | float] = {}

    def __bool__(self) -> bool:
        return bool(self._means.sums or self._once)

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Scalars of one micro-batch, of which the row has the mean."""
        self._means.add(values)

    def put(self, values: Mapping[str, Tensor | float]) -> None:
        """What an update has once: the row has it as it is, of rank 0."""
        self._once |= values

    def close(self) -> dict[str, float]:
        """The row; the next one begins. Every rank calls it, for it waits for the device and for the other ranks."""
        totals = {name: (float(total), self._means.counts[name]) for name, total in self._means.sums.items()}
        found: dict[str, list[tuple[float, int]]] = {}
        for of_rank in ranks.gather(totals):
            for name, total in of_rank.items():
                found.setdefault(name, []).append(total)
        row = {name: sum(total for total, _ in each) / sum(count for _, count in each) for name, each in found.items()}
        row |= {name: float(value) for name, value in self._once.items()}
        self._means, self._once = Means(), {}
        return row
