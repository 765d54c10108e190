"""One table that a tracking service made of several runs, taken apart again."""

from __future__ import annotations

import re

from lightning_lossacc.readers.tables import Row

# W&B names the columns of its charts `<run> - <key>`, where a run may have such a dash in its name, and adds the
# extremes of what it merged into one point.
_EXTREMES = ("__MIN", "__MAX")
_COLUMN = re.compile(r"(.+) - (.+)")


def runs_in(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each run by its name; of a table that is no such export all rows under an empty name."""
    names = dict.fromkeys(name for row in rows for name in row)
    own = [name for name in names if not name.endswith(_EXTREMES)]
    parted = {name: found.groups() for name in own if (found := _COLUMN.fullmatch(name))}
    if not any(name + _EXTREMES[0] in names for name in parted):
        return {"": rows}
    runs: dict[str, list[Row]] = {}
    for run in dict.fromkeys(run for run, _ in parted.values()):
        keys = {name: name if name not in parted else parted[name][1] for name in own}
        mine = [name for name in own if name not in parted or parted[name][0] == run]
        runs[run] = [{keys[name]: row[name] for name in mine if name in row} for row in rows]
    return runs
