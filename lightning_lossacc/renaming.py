"""Under which other names does a model know the classes?"""

from __future__ import annotations

from collections.abc import Sequence


def one_to_one(confusion: Sequence[Sequence[float]]) -> list[int]:
    """A predicted class of its own for each target class: the largest cells first, of equal ones the class itself.

    Args:
        confusion: (C, C) rows by target and predicted class.

    Returns:
        A permutation of 0 ... C - 1, by target class.
    """
    cells = sorted(
        (
            (rows, target == predicted, -target, -predicted)
            for target, line in enumerate(confusion)
            for predicted, rows in enumerate(line)
        ),
        reverse=True,
    )
    found: dict[int, int] = {}
    taken: set[int] = set()
    for _, _, target, predicted in cells:
        if -target not in found and -predicted not in taken:
            found[-target] = -predicted
            taken.add(-predicted)
    return [found[target] for target in range(len(confusion))]
