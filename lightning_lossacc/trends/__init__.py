"""Up, down, flat, not down, not up or undecided: what one series did, with jitter as the noise.

`find_rise`: has the level risen above an earlier one, and is it still there? The data pick the
reference (the lowest level so far), so the threshold pays for every candidate looked at. `compare`:
how does the level now stand against the level around one given evaluation? Nothing is picked, so
one interval does. `find_oscillation`, `find_plateau` and `find_spike` name other shapes.
`benchmarks/bench_trends.py` simulates the rates of false alarms and of misses.

Values that are not finite are left out; indexes count positions of the list that was given.
"""

from lightning_lossacc.trends.levels import Kind, Verdict, compare
from lightning_lossacc.trends.noise import MIN_EVALUATIONS, NORMAL_DIFFERENCE, QUANTILE, jitter
from lightning_lossacc.trends.rise import MAX_REPEATS, find_rise, first_rise
from lightning_lossacc.trends.shapes import Oscillation, Plateau, Spike, find_oscillation, find_plateau, find_spike
from lightning_lossacc.trends.shift import Shift

__all__ = [
    "MAX_REPEATS",
    "MIN_EVALUATIONS",
    "NORMAL_DIFFERENCE",
    "QUANTILE",
    "Kind",
    "Oscillation",
    "Plateau",
    "Shift",
    "Spike",
    "Verdict",
    "compare",
    "find_oscillation",
    "find_plateau",
    "find_rise",
    "find_spike",
    "first_rise",
    "jitter",
]
