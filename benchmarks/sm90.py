"""How many instructions, registers and spills do the kernels need on a Hopper GPU? Compiled offline: no GPU is asked.

    PYTHONPATH=. python benchmarks/sm90.py          writes benchmarks/results/sm90.jsonl, in a minute

The main loop is the longest backward branch of the disassembly; its instructions over the logits that a thread takes
per turn are the issue slots per logit. On an H200 (132 processors, 4 x 32 lanes a clock at 1.98 GHz, 4.3 TB/s) one read
of the logits leaves 31 slots for a float32 logit and 15.6 for a bfloat16 one.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lightning_lossacc.kernels import launch, launch_gradient
from lightning_lossacc.sums import EVALUATION_TEMPERATURES, Layout

OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
NAMES = {"fp32": 4, "bf16": 2, "fp16": 2}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ADDRESS = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);")
BRANCH = re.compile(r"\bBRA\b.*0x([0-9a-f]+)")
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What the compiler made of a kernel.

    Attributes:
        registers: per thread.
        stack: bytes of spilled registers per thread.
        turn: instructions of a turn of the main loop; of all where nothing loops.
        writing: of the loop that writes the gradient behind the main loop; none where nothing does.
        elements: logits that a thread takes per turn.
        text: all instructions.
    """

    registers: int
    stack: int
    turn: tuple[str, ...]
    writing: tuple[str, ...]
    elements: int
    text: tuple[str, ...]

    @property
    def slots(self) -> float:
        """Instructions per logit."""
        return len(self.turn) / self.elements

    @property
    def writing_slots(self) -> float:
        """Instructions per logit of the loop that writes the gradient."""
        return len(self.writing) / self.elements


def row_statistics(
    num_classes: int, dtype: str, layout: Layout | None, with_loss: bool = False, with_gradient: bool = False
) -> Compiled:
    """The row kernel for contiguous, aligned rows; no statistics without `layout`."""
    num_warps, block, vector = launch.row_shape(num_classes, NAMES[dtype])
    constants = dict(launch.constants(layout, True, with_loss, False, False, num_classes))
    constants |= {
        "BY_ITEM": False,
        "BLOCK": block,
        "CHUNK": -(-num_classes // block) * block,
        "SPLIT": 1,
        "ALIGNED": vector,
        "LANES": 32 * num_warps,
        "VEC": vector,
        "GRADIENT": with_gradient,
    }
    found = build(launch.row_kernel, dtype, constants, num_warps)
    return _measured(found, block // (32 * num_warps))


def lane_statistics(
    num_classes: int, dtype: str, layout: Layout | None, by_item: bool = True, with_gradient: bool = False
) -> Compiled:
    """The lane kernel for channels-first images (`by_item`), or for few classes side by side."""
    constants = dict(launch.constants(layout, True, with_gradient, False, False, num_classes))
    constants |= {"GRADIENT": with_gradient}
    constants |= {"BY_ITEM": by_item, "ROWS": launch.LANE_ROWS, "BINARY": False, "ONE_ITEM": by_item}
    constants |= {"KEEP": num_classes <= launch.FEW_CLASSES}
    found = build(launch.lane_kernel, dtype, constants, launch.LANE_WARPS)
    rows = launch.LANE_ROWS // (32 * launch.LANE_WARPS)
    # Few classes are unrolled: then the whole kernel is the loop.
    return _measured(found, rows * num_classes if num_classes <= launch.FEW_CLASSES else rows)


def renewal(kernel: str, num_classes: int, dtype: str) -> Compiled:
    """The kernel that makes a gradient anew where another scale has arrived; `row_gradient` or `lane_gradient`."""
    by_row = kernel == "row_gradient"
    constants = {"C": num_classes, "HAS_IGNORE": True, "WEIGHTED": False, "SMOOTH": False, "SHARED_SCALE": True,
                 "RENEW": True}  # fmt: skip
    if by_row:
        block = min(launch_gradient.ROW_BLOCK, num_classes)
        constants |= {"BLOCK": block, "ALIGNED": 16 // NAMES[dtype], "PARTS": -(-num_classes // block)}
    else:
        constants |= {"ROWS": launch_gradient.TILE_ROWS}
    found = build(getattr(launch_gradient, kernel), dtype, constants, launch_gradient.WARPS)
    lanes = 32 * launch_gradient.WARPS
    return _measured(found, block // lanes if by_row else launch_gradient.TILE_ROWS // lanes)


def build(kernel: Any, dtype: str, constants: dict[str, Any], num_warps: int) -> Any:
    """Compiles a kernel for sm_90 with the pointers and strides of aligned, contiguous tensors."""
    pointers = {
        "logits": f"*{dtype}", "target": "*i64", "counts": "*i64", "sums": "*fp64", "edges": "*fp32",
        "items": "*fp64", "weight": "*fp32", "row_lse": "*fp32", "row_loss": "*fp32", "row_scale": "*fp32",
        "made_scale": "*fp32",
        "parts": "*fp32", "tickets": "*i32", "gradient": f"*{dtype}",
    }  # fmt: skip
    signature, values, hints = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], values[(place,)] = "constexpr", constants[name]
        elif name in ("gradient", "row_scale") and not constants.get("GRADIENT", True):
            signature[name], values[(place,)] = "constexpr", None
        elif name in pointers:
            signature[name] = pointers[name]
            hints[(place,)] = [["tt.divisibility", 16]]
        elif name.startswith("smoothing"):
            signature[name] = "fp32"
        elif name in ("target_row_stride", "class_stride") and kernel is launch.row_kernel:
            signature[name], values[(place,)] = "constexpr", 1
        else:
            signature[name] = "i32"
            if name.endswith(("stride", "step")):
                hints[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=hints)
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def _measured(found: Any, elements: int) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        text = _tool("cuobjdump", "-sass", file.name)
    registers, stack = max((tuple(map(int, pair)) for pair in RESOURCES.findall(usage)), default=(0, 0))
    lines = []
    for line in text.splitlines():
        match = ADDRESS.match(line)
        if match:
            lines.append((int(match[1], 16), match[2]))
    inner = inner_loops(lines)
    turn = shortest_turn(lines[slice(*max(inner)[2:])]) if inner else lines
    writing = [loop for loop in inner if any("STG" in text for _, text in lines[slice(*loop[2:])])]
    writing = [loop for loop in writing if loop is not max(inner)]
    written = shortest_turn(lines[slice(*max(writing)[2:])]) if writing else []
    return Compiled(
        registers, stack, tuple(text for _, text in turn), tuple(text for _, text in written), elements,
        tuple(text for _, text in lines),
    )  # fmt: skip


def inner_loops(lines: list[tuple[int, str]]) -> list[tuple[int, int, int, int]]:
    """(exponentials, instructions, first, end) of the innermost loops that have exponentials."""
    places = {address: place for place, (address, _) in enumerate(lines)}
    loops = []
    for place, (_, text) in enumerate(lines):
        match = BRANCH.search(text)
        if match and int(match[1], 16) in places and places[int(match[1], 16)] < place:
            loops.append((places[int(match[1], 16)], place))
    with_exponentials = [
        (sum("MUFU.EX2" in lines[k][1] for k in range(first, last + 1)), last - first + 1, first, last + 1)
        for first, last in loops
    ]
    return [loop for loop in with_exponentials if loop[0] > 0 and not any(
        other is not loop and loop[2] <= other[2] and other[3] <= loop[3] and other[0] > 0
        for other in with_exponentials
    )]  # fmt: skip


def shortest_turn(lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The way through a loop with the most exponentials, and of those the shortest.

    One block in a row holds the target and runs longer; no other turn does. A turn that skips its row computes nothing.
    """
    places = {address: place for place, (address, _) in enumerate(lines)}
    best: list[tuple[int, int, int] | None] = [None] * len(lines)  # minus exponentials, instructions, from where
    best[0] = (0, 1, -1)
    for place, (_, text) in enumerate(lines[:-1]):
        if best[place] is None:
            continue
        match = BRANCH.search(text)
        goals = [places.get(int(match[1], 16), -1)] if match else []
        if not match or text.startswith("@"):
            goals.append(place + 1)
        exponentials, instructions, _ = best[place]
        reached = (exponentials - ("MUFU.EX2" in text), instructions + 1, place)
        for goal in goals:
            if goal > place and (best[goal] is None or reached[:2] < best[goal][:2]):
                best[goal] = reached
    if best[-1] is None:
        return lines  # its blocks do not lie in order
    way, place = [], len(lines) - 1
    while place >= 0:
        way.append(lines[place])
        place = best[place][2]
    return way[::-1]


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([str(TOOLS / name), *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    grids = (("no grid", ()), ("octaves", OCTAVES), ("half octaves", EVALUATION_TEMPERATURES))
    rows: list[measure.Row] = []
    print(f"{'kernel':<52}{'registers':>10}{'stack':>7}{'turn':>7}{'per logit':>11}")

    def keep(kernel: str, dtype: str, num_classes: int, name: str, found: Compiled) -> None:
        turn = len(found.turn) + len(found.writing)
        where = f"{kernel} {dtype} C={num_classes} {name}"
        slots = found.slots + found.writing_slots
        print(f"{where:<52}{found.registers:>10}{found.stack:>7}{turn:>7}{slots:>11.1f}", flush=True)
        rows.append({
            "table": "sm90", "kernel": kernel, "dtype": dtype, "num_classes": num_classes, "counts": name,
            "registers": found.registers, "stack": found.stack, "turn": turn, "logits": found.elements,
            "per_logit": round(slots, 2),
        })  # fmt: skip

    for dtype in ("fp32", "bf16"):
        for num_classes in (8192, 128256):
            for name, grid in grids:
                layout = Layout(num_classes, temperatures=grid)
                keep("rows", dtype, num_classes, name, row_statistics(num_classes, dtype, layout))
            keep("rows", dtype, num_classes, "loss alone", row_statistics(num_classes, dtype, None, True))
            found = row_statistics(num_classes, dtype, None, True, True)
            keep("rows", dtype, num_classes, "loss and gradient, both loops", found)
        for name, grid in grids:
            keep("lanes", dtype, 21, name, lane_statistics(21, dtype, Layout(21, temperatures=grid)))
    stamp = measure.environment() | {"triton": triton.__version__}
    measure.report("sm90", rows, [], stamp, measure.RESULTS)


if __name__ == "__main__":
    main()
