"""Where does the program call a loss function, and with what? Watched for the length of a step.

Every reference to the three loss functions of `torch.nn.functional` and to the one of `lightning_lossacc.loss`
(there, names bound in other modules, attributes of submodules) is replaced by a function that calls the original with
the caller's own arguments and then tells the listeners. One registry serves the process: listeners may
come and go in any order, and the last one to go leaves every reference as it was. A loss function
that only a closure, a default argument or an object that is no module holds is not found.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

CROSS_ENTROPY, NLL = "cross_entropy", "nll_loss"
BINARY = "binary_cross_entropy_with_logits"
FUSED = "lightning_lossacc.cross_entropy"
IGNORE_INDEX = -100

_PARAMETERS = {
    CROSS_ENTROPY: "input target weight size_average ignore_index reduce reduction label_smoothing",
    NLL: "input target weight size_average ignore_index reduce reduction",
    BINARY: "input target weight size_average reduce reduction pos_weight",
    FUSED: "logits target weight ignore_index reduction label_smoothing stats",
}
_NAMES = {function: tuple(names.split()) for function, names in _PARAMETERS.items()}
_IMPORTED = {name: getattr(F, name) for name in (CROSS_ENTROPY, NLL, BINARY)}
_FUSED_MODULE = "lightning_lossacc.loss"
_HOLDERS = frozenset({FunctionType, staticmethod, functools.partial})
_TORCH = os.path.dirname(torch.__file__) + os.sep
_DYNAMO = os.path.join(_TORCH, "_dynamo") + os.sep
# The module class in there calls the function in there: the place in the program is who called the class.
_NOT_SITES = (_TORCH, __file__, os.path.join(os.path.dirname(__file__), "loss.py"))


@dataclass(frozen=True, slots=True)
class Site:
    """A place in the program: an instruction, or a line and column of code that was compiled."""

    filename: str
    line: int
    column: int | None = None
    code: CodeType | None = None
    instruction: int = -1

    def matches(self, other: Site) -> bool:
        """Whether both are one place; compiled code that falls back to Python stays the same."""
        if self.code is None or other.code is None:
            return self._place() == other._place()
        return self.code is other.code and self.instruction == other.instruction

    def _place(self) -> tuple[str, int | None, int | None]:
        if self.code is None:
            return self.filename, self.line, self.column
        positions = itertools.islice(self.code.co_positions(), self.instruction // 2, None)
        line, _, column, _ = next(positions)
        return self.filename, line, column

    def __str__(self) -> str:
        return f"{os.path.basename(self.filename)}:{self.line}"


@dataclass(frozen=True, slots=True)
class LossCall:
    """The arguments of one call; tensors detached, otherwise as the caller gave them.

    Attributes:
        name: of the function in `torch.nn.functional`, or `FUSED`.
        logits, target: its first two arguments.
        ignore_index, label_smoothing: their defaults where the function has none.
        weighted: whether `weight` or `pos_weight` was given.
        site: the first frame outside torch.
    """

    name: str
    logits: Any
    target: Any
    ignore_index: int
    label_smoothing: float
    weighted: bool
    site: Site

    @property
    def function(self) -> str:
        """For people, such as `"F.cross_entropy"`."""
        return self.name if self.name == FUSED else f"F.{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """`owner[name]`, or the attribute of a class, that refers to a loss function."""

    owner: Any
    name: Any
    original: Any
    replacement: Any

    def get(self) -> Any:
        """What it refers to now; None if it is gone."""
        if isinstance(self.owner, list):
            return self.owner[self.name] if self.name < len(self.owner) else None
        return (vars(self.owner) if isinstance(self.owner, type) else self.owner).get(self.name)

    def set(self, value: Any) -> None:
        """Makes it refer to `value`; past `__setattr__`, which modules override."""
        if isinstance(self.owner, type):
            setattr(self.owner, self.name, value)
        else:
            self.owner[self.name] = value


@dataclass(slots=True, eq=False)
class Tally:
    """Two vectors that the fused loss fills while it reads the logits anyway.

    Attributes:
        counts, sums, layout: see `lightning_lossacc.sums`; the layout fits the call.
        items: number of items that the rows of logits (N, C) belong to, one after the other; None for N.
        filled: whether the loss has done it.
        error: why it could not; the vectors may hold a part then.
    """

    counts: Tensor
    sums: Tensor
    layout: Any
    items: int | None = None
    filled: bool = False
    error: Exception | None = None


class Listener(Protocol):
    """Is told about calls; must not raise."""

    def offer(self, call: LossCall) -> Tally | None:
        """Called before the fused loss runs: what it may fill; None to be told only."""

    def see(self, call: LossCall) -> None:
        """Called after the loss function has returned; at the end of the step for compiled code."""

    def fail(self, where: str, error: Exception) -> None:
        """Called if a call could not be read."""


class _Slots:
    """One attribute for each traced call; compiled code reads none, so it guards none."""


class _Local(threading.local):
    inside = False
    tally: Tally | None = None


_lock = threading.RLock()
_listeners: dict[Listener, list[Reference]] = {}
_replaced: dict[tuple[int, Any], tuple[int, Reference]] = {}  # (id of owner, name) -> users
_wrappers: dict[int, tuple[Any, Any]] = {}  # id of either -> (original, wrapper)
_slots = _Slots()
_slot_sites: dict[str, tuple[str, Site]] = {}
_local = _Local()


def listen(listener: Listener, references: list[Reference]) -> None:
    """Replaces the references that are still as they were found; tells the listener of every call.

    Not reported: calls inside another loss function, inside a backward pass (a checkpoint that is
    computed again), and those of a compiler that traces. In compiled code each traced call keeps
    its last arguments until `unlisten`.
    """
    with _lock:
        tell_compiled()
        installed = _listeners[listener] = []
        for reference in references:
            users, first = _replaced.get(_key(reference), (0, reference))
            if users == 0:
                if not any(reference.get() is it for it in (first.original, first.replacement)):
                    continue
                reference.set(reference.replacement)
            _replaced[_key(reference)] = users + 1, first
            installed.append(reference)


def unlisten(listener: Listener) -> None:
    """Tells all listeners about the calls of compiled code, then restores what nobody else uses."""
    with _lock:
        if listener not in _listeners:
            return
        try:
            tell_compiled()
        finally:
            for reference in _listeners.pop(listener):
                users, first = _replaced.pop(_key(reference))
                if users > 1:
                    _replaced[_key(reference)] = users - 1, first
                elif first.get() is first.replacement:
                    first.set(first.original)


def find_references(module: nn.Module) -> list[Reference]:
    """References in loaded modules, submodules, their classes, and dicts and lists in these."""
    references = []
    for name, imported in _IMPORTED.items():
        # Another library may have put its own function there.
        for function in (imported, getattr(F, name)):
            if id(function) not in _wrappers:
                _wrap(name, function)
        references.append(Reference(vars(F), name, *_wrappers[id(getattr(F, name))]))
    # Not imported for this: a program that uses it has loaded it.
    ours = sys.modules.get(_FUSED_MODULE)
    if ours is not None and id(ours.cross_entropy) not in _wrappers:
        _wrap(FUSED, ours.cross_entropy)
    children = list(module.modules())
    classes = {cls for child in children for cls in type(child).__mro__}
    owners: list[Any] = [child.__dict__ for child in children]
    owners += [cls for cls in classes if cls is not object and not cls.__module__.startswith("torch.")]
    for loaded in list(sys.modules.values()):
        foreign = isinstance(loaded, ModuleType) and loaded.__name__ != __name__
        if foreign and loaded.__name__.partition(".")[0] != "torch":
            owners.append(loaded.__dict__)
    return references + [reference for owner in owners for reference in _search(owner)]


def _search(owner: Any, deeper: bool = True) -> Iterator[Reference]:
    if isinstance(owner, list):
        items: list[tuple[Any, Any]] = list(enumerate(owner))
    else:
        items = list((vars(owner) if isinstance(owner, type) else owner).items())
    # Some 300 000 values with Lightning loaded: the type decides first.
    for name, value in items:
        kind = type(value)
        if kind in _HOLDERS:
            pair = _replacement(value)
            if pair is not None:
                yield Reference(owner, name, *pair)
        elif deeper and (kind is dict or kind is list):
            yield from _search(value, deeper=False)


def _replacement(value: Any) -> tuple[Any, Any] | None:
    if id(value) in _wrappers:
        return _wrappers[id(value)]
    if type(value) is staticmethod and id(value.__func__) in _wrappers:
        original, wrapper = _wrappers[id(value.__func__)]
        return (value if value.__func__ is original else staticmethod(original)), staticmethod(wrapper)
    if type(value) is functools.partial and id(value.func) in _wrappers:
        original, wrapper = _wrappers[id(value.func)]
        if value.func is wrapper:
            return value.__dict__.get("original", value), value
        replacement: Any = functools.partial(wrapper, *value.args, **value.keywords)
        replacement.original = value
        return value, replacement
    return None


def _wrap(name: str, original: Callable[..., Tensor]) -> None:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_dynamo_compiling():
            setattr(_slots, _new_slot(name), _read(name, args, kwargs))
            return original(*args, **kwargs)
        silent = _local.inside or not _listeners or torch.compiler.is_compiling()
        silent = silent or torch._C._current_graph_task_id() != -1
        tensors = tuple(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        before, _local.inside = _local.inside, True
        _local.tally = _offered(args, kwargs) if name == FUSED and not silent else None
        try:
            if has_torch_function(tensors):
                # Subclasses and modes must be told the function that they know, not this one.
                result = handle_torch_function(original, tensors, *args, **kwargs)
            else:
                result = original(*args, **kwargs)
            if not silent:
                _tell(name, args, kwargs)
            return result
        finally:
            _local.inside, _local.tally = before, None

    _wrappers[id(original)] = _wrappers[id(wrapper)] = original, wrapper


def _read(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    # Dynamo traces this as well: nothing that raises, nothing that counts.
    given = {**dict(zip(_NAMES[name], args, strict=False)), **kwargs}
    logits, target = given.get("logits" if name == FUSED else "input"), given.get("target")
    return (
        logits.detach() if isinstance(logits, Tensor) else logits,
        target.detach() if isinstance(target, Tensor) else target,
        given.get("ignore_index", IGNORE_INDEX),
        given.get("label_smoothing", 0.0),
        given.get("weight") is not None or given.get("pos_weight") is not None,
    )


def _tell(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        site = _site()
        if site is not None:
            call = LossCall(name, *_read(name, args, kwargs), site)
            for listener in tuple(_listeners):
                listener.see(call)
    except Exception as error:
        for listener in tuple(_listeners):
            listener.fail("reading a loss call", error)


def _offered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tally | None:
    try:
        site = _site()
        call = None if site is None else LossCall(FUSED, *_read(FUSED, args, kwargs), site)
        for listener in tuple(_listeners) if call is not None else ():
            tally = listener.offer(call)
            if tally is not None:
                return tally
    except Exception as error:
        for listener in tuple(_listeners):
            listener.fail("reading a loss call", error)
    return None


def take_tally() -> Tally | None:
    """What the loss that runs now may fill, once; for the fused loss alone."""
    tally, _local.tally = _local.tally, None
    return tally


def _site() -> Site | None:
    frame, in_graph = sys._getframe(1), False
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.startswith("<eval_with_key>"):
            in_graph = True
        elif in_graph and filename.startswith(_DYNAMO):
            return None  # a graph that Dynamo traced: its slot has been written
        elif not filename.startswith(_NOT_SITES):
            return Site(filename, frame.f_lineno, None, frame.f_code, frame.f_lasti)
        frame = frame.f_back
    return None


@torch._dynamo.assume_constant_result
def _new_slot(name: str) -> str:
    # Runs when a call is traced, not when it is executed.
    slot, place = f"slot_{len(_slot_sites)}", Site("compiled code", 0)
    for item in torch._guards.TracingContext.extract_stack():
        if not item.filename.startswith(_NOT_SITES):
            place = Site(item.filename, item.lineno or 0, item.colno)
    _slot_sites[slot] = name, place
    return slot


def tell_compiled() -> None:
    """Tells all listeners about the calls of compiled code since it was asked last."""
    values = dict(vars(_slots))
    vars(_slots).clear()
    for slot, (name, site) in _slot_sites.items() if values else ():
        if slot in values:
            for listener in tuple(_listeners):
                listener.see(LossCall(name, *values[slot], site))


def _key(reference: Reference) -> tuple[int, Any]:
    return id(reference.owner), reference.name
