"""How do ranks agree on what was measured? Three collectives for everything, called by every rank whatever it saw."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lossacc.stages import StageState, make_layout

NO_LAYOUT = -(2**40)


def fold(
    states: Sequence[StageState],
    device: torch.device,
    beside: Sequence[StageState] = (),
    shared: Tensor | None = None,
) -> str | None:
    """Adds up the states of all ranks, in place, with three collectives; a no-op in a single process.

    The first (MAX) agrees on a header for each loader: whether any rank has a layout, its task, classes and ignored
    index, a hash of the layout, the size of the data set, and whether any rank lost its pairing or a part. The second
    and third (SUM) carry all counts, and all sums with the probes. A rank without data adopts the layout, adds zeros.

    Args:
        states: of one evaluation.
        device: on which the backend of the process group works.
        beside: states that travel along; one on which ranks disagree is marked as partial and left as it is.
        shared: (S,) float64 on `device`, of the same length on every rank; added up in place.

    Returns:
        None, or one sentence if ranks disagree on `states`; then nothing was folded, on any rank.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if torch.distributed.get_world_size() == 1 or not states:
        return None
    everything = [*states, *beside]
    header = torch.tensor([_header(state) for state in everything], dtype=torch.int64, device=device)
    torch.distributed.all_reduce(header, op=torch.distributed.ReduceOp.MAX)
    active = []
    for index, (state, row) in enumerate(zip(everything, header.tolist(), strict=True)):
        known, agreed = _adopt(state, row, device)
        is_beside = index >= len(states)
        if not agreed and not is_beside:
            where = f"{state.stage} loader {state.loader}"
            return f"lossacc: ranks captured different losses or class counts in {where}; this is not reported."
        if not agreed:
            state.fail("ranks captured different losses or class counts")
        elif known and (active or not is_beside):
            active.append(state)
    if not active:
        return None
    _all_reduce([state.counts for state in active])
    parts = [state.sums for state in active] + [state.looks.sums for state in active]
    parts += [state.probe.current[:-1] for state in active if state.probe is not None]
    _all_reduce(parts if shared is None else [*parts, shared])
    return None


def _adopt(state: StageState, row: list[int], device: torch.device) -> tuple[bool, bool]:
    """Makes a state what all ranks together know of it; whether any knows anything, and whether they agree."""
    known, is_binary, num_classes, ignore_index, high, negated_low, unpaired, partial, largest, negated_smallest = row
    if not known:
        return False, True
    if high != -negated_low:
        return True, False
    task = "binary" if is_binary else "multiclass"
    ignored = None if ignore_index == NO_LAYOUT else ignore_index
    state.adopt(make_layout(task, num_classes, ignored, state.settings, state.grid), device)
    # Another size is another probe, and vectors of other lengths would hang or mix up the sum.
    if unpaired or largest != -negated_smallest:
        state.unpair(state.unpaired or "another rank could not pair its rows")
    if partial and state.complete:
        state.fail("another rank lost a part")
    return True, True


def _header(state: StageState) -> list[int]:
    size = -1 if state.sampling.num_items is None else state.sampling.num_items
    partial = int(not state.complete)
    if state.layout is None:
        return [0, 0, 0, NO_LAYOUT, NO_LAYOUT, NO_LAYOUT, int(not state.sampling.known), partial, size, -size]
    layout, digest = state.layout, int(state.layout.fingerprint, 16)
    ignore_index = NO_LAYOUT if layout.ignore_index is None else layout.ignore_index
    is_binary, unpaired = int(layout.task == "binary"), int(bool(state.unpaired))
    return [1, is_binary, layout.num_classes, ignore_index, digest, -digest, unpaired, partial, size, -size]


def _all_reduce(tensors: Sequence[Tensor]) -> None:
    packed = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(packed)
    start = 0
    for tensor in tensors:
        tensor.copy_(packed[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
