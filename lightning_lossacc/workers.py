"""Work spread over processes: results in order, and an interrupt that ends all of them at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")

# Starting a process costs about as much as reading this many runs.
MIN_PARALLEL = 24
MAX_WORKERS = 61  # Windows waits for no more
# Items that a process takes at once: more would save nothing and show no progress for long.
MAX_CHUNK = 8


def spread(
    look: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None, chunk: int | None = None
) -> Iterator[Result]:
    """`map`, over as many processes as there are cores; a handful of items stays in this one.

    When the caller stops early, by an interrupt or because it has seen enough, the processes are ended, not waited for.

    Args:
        look: what is done with each item; a function that can be pickled.
        items: what it is done with.
        workers: processes, by default one a core.
        chunk: items that a process takes at once.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(available if workers is None else workers, len(items), MAX_WORKERS)
    if count < 2 or len(items) < MIN_PARALLEL:
        yield from map(look, items)
        return
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    before = set(multiprocessing.active_children())
    # Processes that start afresh: a copy of one that runs threads (a progress bar's) may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_leave_interrupts_to_parent)
    size = chunk or min(max(len(items) // (8 * count), 1), MAX_CHUNK)
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    try:
        with _interrupts_ignored():
            tasks = [pool.submit(_each, look, part) for part in parts]
        # The last one first, so that each is forgotten once it has been handed over.
        tasks.reverse()
        while tasks:
            part = parts[-len(tasks)]
            try:
                found = tasks.pop().result()
            except BrokenProcessPool:
                # One of them was killed from outside, and all others are of no use: the rest is done here.
                found = _each(look, part)
            yield from found
    except BaseException:
        # Not cancelled before: the pool's own thread fails on cancelled work of processes that have gone.
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        pool.shutdown(wait=False)
        raise
    pool.shutdown()


def _each(look: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [look(item) for item in items]


def _leave_interrupts_to_parent() -> None:
    """Ctrl-C reaches every process of a terminal; the one that started them ends the rest."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes that are started here ignore interrupts from their first moment on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, known)
