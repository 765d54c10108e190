"""Logits and targets out of an unmodified LightningModule, while its own step runs.

Three ways, in this order: a callable of the user; `logits` and `target` in what the step returned;
the arguments of the loss function (`loss_calls.py`). Nothing of the training changes, no tensor
outlives its step, and whatever goes wrong here is remembered and never raised.

Two ways were measured and left out: a `TorchFunctionMode` costs 15-30 % of a small CPU step and
makes compiled code compile again when it ends; a `TorchDispatchMode` turns `torch.compile` off.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_lossacc.loss_calls import (
    BINARY,
    CROSS_ENTROPY,
    IGNORE_INDEX,
    NLL,
    LossCall,
    Reference,
    Site,
    Tally,
    find_references,
    listen,
    tell_compiled,
    unlisten,
)

Key = tuple[str, int]
User = Callable[[Any, Any], tuple[Tensor, Tensor] | None]
Task = Literal["multiclass", "binary"]

_MAX_NOTES = 8


@dataclass(frozen=True, slots=True)
class Captured:
    """What one loss call, or one step, was given.

    Attributes:
        logits: detached, otherwise as given, any float dtype; `(N, C, ...)`, binary: `(N,)` or
            `(N, 1, ...)`. Log-probabilities (of `F.nll_loss`) are logits whose normaliser is 0.
        target: as given: class indices of any integer dtype, or floats (binary, probabilities).
        task: `"multiclass"` or `"binary"`.
        ignore_index: target that does not count; None for binary.
        label_smoothing: in [0, 1]; 0.0 where none was given.
        weighted: whether class weights or `pos_weight` were given.
        source: for people, such as `"F.cross_entropy at model.py:31"`.
        counted: whether the loss has filled the vectors that were reserved for it.
    """

    logits: Tensor
    target: Tensor
    task: Task
    ignore_index: int | None
    label_smoothing: float
    weighted: bool
    source: str
    counted: bool = False


@dataclass(slots=True)
class _Stream:
    """What is known of one stage and loader; `way` is empty until a batch gave something."""

    way: Literal["", "user", "outputs", "loss"] = ""
    site: Site | None = None
    source: str | None = None
    compiled: bool = False
    notes: dict[str, None] = field(default_factory=dict)


class Capture:
    """Hands the logits and targets of each step to a consumer.

    Each stage and loader keeps to the way that worked in its first batch. Loss calls of that batch
    are held until its end; from the second batch on a call is handed over when it is made, and no
    tensor is kept. A loss inside compiled code is handed over at the end of the step; of a compiled
    function that runs several times in a step, the last run only.

    Args:
        user: `(outputs, batch) -> (logits, target)`, called at each batch end with what the step
            returned; None skips the batch. If given, nothing else is tried.
        which: number of the place in the program whose loss calls are captured, all of them;
            counted from 0 in order of first appearance, places inside compiled code last.

    Attributes:
        last_error: what last went wrong in here or in the consumer; None if nothing did.

    Raises:
        ValueError: if `which` is negative.
    """

    def __init__(self, user: User | None = None, which: int = 0) -> None:
        if which < 0:
            raise ValueError(f"Expected `which` to be 0 or larger, but got {which}; 0 is the first.")
        self.user = user
        self.which = which
        self.last_error: str | None = None
        self._streams: dict[Key, _Stream] = {}
        self._module: weakref.ref[nn.Module] | None = None
        self._references: list[Reference] = []
        self._reset()

    def __reduce__(self) -> tuple[type[Capture], tuple[User | None, int]]:
        # The rest holds globals of the user's modules, which copies and processes must not carry.
        return type(self), (self.user, self.which)

    def _reset(self) -> None:
        self._key: Key | None = None
        self._closed = False
        self._consume: Callable[[Captured], None] | None = None
        self._reserve: Callable[[Captured], Tally | None] | None = None
        self._tally: Tally | None = None
        self._thread = 0
        self._held: list[tuple[Site, Captured, tuple[int, int]]] = []

    def start(
        self,
        key: Key,
        module: nn.Module,
        consume: Callable[[Captured], None],
        reserve: Callable[[Captured], Tally | None] | None = None,
    ) -> None:
        """Opens a step; call at batch start.

        Args:
            key: stage and index of the data loader.
            module: the module whose step will run.
            consume: receives each captured pair; may be called several times in a step.
            reserve: asked before a fused loss of the chosen place runs: vectors that it fills in its own pass, or None.
                `consume` receives the pair all the same, as `counted`.
        """
        self.abort()
        self._key, self._consume, self._thread = key, consume, threading.get_ident()
        self._reserve = reserve
        try:
            stream = self._stream(key)
            # Code that was compiled with the replacement in it would be compiled again without.
            if self.user is None and (stream.way in ("", "loss") or stream.compiled):
                if self._module is None or self._module() is not module:
                    self._references, self._module = find_references(module), weakref.ref(module)
                listen(self, self._references)
        except Exception as error:
            self.fail("start", error)
            self.abort()

    def close(self) -> None:
        """The step's loss calls are over: later ones, of a step that is evaluated again, are not reported."""
        try:
            tell_compiled()
        except Exception as error:
            self.fail("close", error)
        self._closed = True

    def stop(self, outputs: Any, batch: Any) -> None:
        """Ends the step: restores every function, and hands over what was held or returned.

        Args:
            outputs: what the step returned.
            batch: the batch.
        """
        try:
            unlisten(self)
            if self._key is not None:
                self._finish(self._stream(self._key), outputs, batch)
        except Exception as error:
            self.fail("stop", error)
        finally:
            self.abort()

    def abort(self) -> None:
        """Ends the step after an exception: restores every function and drops what was held."""
        try:
            self._consume = None
            unlisten(self)
        except Exception as error:
            self.fail("abort", error)
        self._reset()

    def source(self, key: Key) -> str | None:
        """Where the pairs of this stage and loader come from; None until some were found."""
        return self._stream(key).source

    def explanation(self, key: Key) -> str:
        """What was tried, what was seen, what to do; if something was found, its source."""
        stream = self._stream(key)
        seen = "; ".join(stream.notes) or "nothing"
        if stream.source is not None:
            return f"Captured from {stream.source}." + (f" Also seen: {seen}." if stream.notes else "")
        tried = f"`logits` and `target` in the step's output, F.{CROSS_ENTROPY}, F.{NLL}, F.{BINARY}"
        return (
            f"No logits and targets were found for {key[0]} (data loader {key[1]}).\n"
            f"Tried: {'`capture=`' if self.user else tried}. Seen: {seen}.\n"
            'Return {"loss": loss, "logits": logits, "target": y} from the step,\n'
            "or give LossAccuracyMonitor(capture=lambda outputs, batch: (logits, target))."
        )

    def fail(self, where: str, error: Exception) -> None:
        """Remembers an error."""
        # As text: the exception would keep the step's frames, and so its tensors, alive.
        self.last_error = f"{where}: {type(error).__name__}: {error}"
        self._note(self.last_error)

    def offer(self, call: LossCall) -> Tally | None:
        """What a fused loss may fill: nothing before its place is known."""
        self._tally = None
        try:
            stream = None if self._key is None else self._stream(self._key)
            if self._closed or self._reserve is None or threading.get_ident() != self._thread:
                return None
            if stream is None or stream.site is None or not stream.site.matches(call.site):
                return None
            found = _check(call, "multiclass", "")
            self._tally = None if isinstance(found, str) else self._reserve(found)
        except Exception as error:
            self.fail("reserve", error)
        return self._tally

    def see(self, call: LossCall) -> None:
        """Takes or leaves one loss call."""
        try:
            if self._closed or self._key is None or threading.get_ident() != self._thread:
                return
            stream = self._stream(self._key)
            stream.compiled |= call.site.code is None
            if stream.way and not (stream.site is not None and stream.site.matches(call.site)):
                return
            source = stream.source or f"{call.function} at {call.site}"
            task: Task = "binary" if call.name == BINARY else "multiclass"
            found = _check(call, task, source)
            if isinstance(found, str):
                self._note(f"{source} was called with {found}")
            elif stream.way:
                tally, self._tally = self._tally, None
                if tally is not None and tally.error is not None:
                    self.fail("counting within the loss", tally.error)
                else:
                    self._pass(replace(found, counted=tally is not None and tally.filled))
            else:
                self._held.append((call.site, found, _versions(found)))
        except Exception as error:
            self.fail("capture", error)

    def _stream(self, key: Key) -> _Stream:
        return self._streams.setdefault(key, _Stream())

    def _note(self, text: str) -> None:
        if self._key is not None and len(notes := self._stream(self._key).notes) < _MAX_NOTES:
            notes[text] = None

    def _pass(self, captured: Captured) -> None:
        try:
            if self._consume is not None:
                self._consume(captured)
        except Exception as error:
            self.fail("consume", error)

    def _finish(self, stream: _Stream, outputs: Any, batch: Any) -> None:
        if self.user is not None:
            try:
                pair = self.user(outputs, batch)
            except Exception as error:
                self.fail("capture=", error)
                return
            if pair is None:
                self._note("`capture=` returned None")
            else:
                self._pass_pair(stream, "user", *pair, "capture=")
        elif stream.way in ("", "outputs") and self._has_pair(outputs):
            source = "logits/target of the step output"
            pair = outputs["logits"], outputs["target"]
            if not self._pass_pair(stream, "outputs", *pair, source) and not stream.way:
                self._pass_held(stream)
        elif not stream.way:
            self._pass_held(stream)

    def _has_pair(self, outputs: Any) -> bool:
        if isinstance(outputs, Mapping) and outputs:
            if "logits" in outputs and "target" in outputs:
                return True
            kind = f"a {type(outputs).__name__} with keys {sorted(map(str, outputs))}"
        else:
            kind = "a Tensor" if isinstance(outputs, Tensor) else repr(outputs)[:80]
        self._note(f"the step returned {kind}")
        return False

    def _pass_pair(
        self,
        stream: _Stream,
        way: Literal["user", "outputs"],
        logits: Any,
        target: Any,
        source: str,
    ) -> bool:
        found = from_pair(logits, target, source)
        if isinstance(found, str):
            self._note(f"{source} gave {found}")
            return False
        stream.way, stream.source = way, source
        self._pass(found)
        return True

    def _pass_held(self, stream: _Stream) -> None:
        sites: list[Site] = []
        for site, _, _ in self._held:
            if not any(site.matches(other) for other in sites):
                sites.append(site)
        if not sites:
            self._note("no call that could be captured")
        elif self.which >= len(sites):
            self._note(f"which={self.which}, but loss calls at {', '.join(map(str, sites))} only")
        else:
            stream.way, stream.site = "loss", sites[self.which]
            for site, captured, versions in self._held:
                if site.matches(stream.site):
                    stream.source = stream.source or captured.source
                    if versions == _versions(captured):
                        self._pass(captured)
                    else:
                        self._note(f"{captured.source} got tensors that were changed afterwards")


def from_pair(logits: Any, target: Any, source: str, ignore_index: int = IGNORE_INDEX) -> Captured | str:
    """The pair in shapes that metrics read, detached, or in words what it was; shapes tell the task."""
    logits, target = (it.detach() if isinstance(it, Tensor) else it for it in (logits, target))
    return _check(LossCall("", logits, target, ignore_index, 0.0, False, Site("", 0)), None, source)


def _check(call: LossCall, task: Task | None, source: str) -> Captured | str:
    """The pair in shapes that metrics read, or in words what it was; shapes tell a task of None."""
    logits, target = call.logits, call.target
    if not (isinstance(logits, Tensor) and isinstance(target, Tensor)):
        return f"{type(logits).__name__} and {type(target).__name__}, not two tensors"
    for tensor in (logits, target):
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return "tensors of torch.func"
        if type(tensor) is not Tensor and is_traceable_wrapper_subclass(tensor):
            return f"a {type(tensor).__name__}"
    if task is None:
        column = logits.shape[1] == 1 if logits.ndim > 1 else target.ndim == logits.ndim
        task = "binary" if column else "multiclass"
    scalar = 0 if task == "binary" else 1
    if logits.ndim == scalar:
        logits, target = logits.unsqueeze(0), target.unsqueeze(0)
    if not logits.is_floating_point() or target.is_complex() or logits.ndim == 0:
        return _shapes(logits, target)
    if task == "binary":
        if logits.ndim > 1 and logits.shape[1] != 1:
            return f"{logits.shape[1]} columns, which is multilabel: {_shapes(logits, target)}"
        if target.numel() != logits.numel():
            return _shapes(logits, target)
        return Captured(logits, target, task, None, 0.0, call.weighted, source)
    index_shape = (logits.shape[0], *logits.shape[2:])
    expected = logits.shape if target.is_floating_point() else index_shape
    if logits.ndim < 2 or logits.shape[1] < 2 or target.shape != expected:
        return _shapes(logits, target)
    return Captured(logits, target, task, call.ignore_index, call.label_smoothing, call.weighted, source)


def _shapes(logits: Tensor, target: Tensor) -> str:
    first, second = (f"{tuple(it.shape)} ({it.dtype})" for it in (logits, target))
    return f"logits {first} and target {second}"


def _versions(captured: Captured) -> tuple[int, int]:
    # Inference tensors keep no version counter.
    tensors = captured.logits, captured.target
    first, second = (0 if tensor.is_inference() else tensor._version for tensor in tensors)
    return first, second
