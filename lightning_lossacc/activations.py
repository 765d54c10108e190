"""Which hidden units passed no gradient on any sampled input?

A healthy ReLU network has 50-90 % zeros in every batch, so a unit is dead only if it was silent on *all* inputs of a
window. For each layer one vector is kept on the device: the largest activity of each unit so far. Hooks exist only
during sampled forward passes, and they only read.

Modules such as `nn.ReLU` are watched by their outputs. `F.relu` is no module: it is found in the autograd graph behind
the input of the next layer with weights, and watched there. The same graph tells channels from features, merges the
steps of a recurrent loop, and leaves out what is no hidden unit: inputs of the network (the always black border of an
image), parts that nothing trainable precedes, and activations that no later layer reads.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils.hooks import RemovableHandle

from lightning_lossacc.units import MIN_ROWS, MIN_UNITS, Kind, Site, kind_of, kind_of_node

# Nodes behind one input that the search in the autograd graph visits.
_MAX_NODES = 256
# Between a functional activation and the layer that reads it: they keep zeros zero and units in their place. Dropout is
# a multiplication by something without a gradient.
_POOLING = ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
_FLATTENING = ("View", "Reshape", "UnsafeView")
_SCALING = ("Mul", "NativeDropout", "FusedDropout", "AvgPool", "AdaptiveAvgPool")
_PASSING = (*_FLATTENING, *_SCALING, *_POOLING, "ToCopy", "Clone")
_WEIGHTED = ("Addmm", "Mm", "Bmm", "Baddbmm", "Linear", "Embedding")
_CHANNELS = ("Convolution", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm")


def reachable(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with names, without those inside compiled or scripted code, where a hook is not called or compiled in."""
    inside: set[nn.Module] = set()
    for name, child in module.named_modules():
        if child in inside:
            continue
        if is_compiled(child):
            inside.update(child.modules())
        else:
            yield name, child


def is_compiled(module: nn.Module) -> bool:
    """Whether a module's forward runs as compiled or scripted code."""
    compiled = getattr(module, "_compiled_call_impl", None) is not None or getattr(module, "_compiler_ctx", None)
    return bool(compiled) or hasattr(module, "_orig_mod") or isinstance(module, torch.jit.ScriptModule)


def _num_graphs() -> int:
    """Graphs that the compiler has made in this process; it is imported by whoever uses it."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else dynamo.counters["stats"]["unique_graphs"]


class _Look:
    """A hook that copies of the module do not inherit, and that compiled code does not contain."""

    __slots__ = ("_call", "_owner")

    def __init__(self, owner: Activations, call: Callable[[Activations, nn.Module, Any], None]) -> None:
        self._owner = weakref.ref(owner)
        self._call = call

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> None:
        if torch.compiler.is_compiling():
            return
        owner = self._owner()
        if owner is not None:
            owner.look(self._call, module, inputs if output is None else output)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _inert, ()


def _inert() -> Callable[..., None]:
    return _do_nothing


def _do_nothing(*_: Any) -> None:
    return None


class Activations:
    """Watches the hidden units of one module during the forward passes it is opened for.

    Args:
        module: the network.
        max_layers: layers that are watched; of more, evenly spaced ones.

    Attributes:
        reason: why nothing is watched any more, such as an error in a hook; None while all is well.
    """

    def __init__(self, module: nn.Module, max_layers: int) -> None:
        self.reason: str | None = None
        self._max_layers = max_layers
        self._names = {child: name for name, child in reachable(module)}
        # Whether all that is compiled is known to be; else a hook anywhere may be compiled into something.
        self._explained = any(map(is_compiled, module.modules()))
        self._graphs: int | None = None
        self._readers = [
            child for child in self._names if any(weight.ndim > 1 for weight in child.parameters(recurse=False))
        ]
        self._handles: list[RemovableHandle] = []
        self._sites: dict[Any, Site] = {}
        # By module, the sites of its first, second ... call in a forward pass.
        self._calls: dict[nn.Module, list[Site | None]] = {}
        self._found: dict[nn.Module, list[Any]] = {}
        self._nodes: dict[Any, Any] = {}
        self._count: dict[nn.Module, int] = {}
        self._searching = False

    @property
    def sites(self) -> list[Site]:
        """The layers that are watched, in the order of the first forward pass."""
        return list({id(site): site for calls in self._calls.values() for site in calls if site is not None}.values())

    def first(self) -> None:
        """Before the first forward pass, which has no hooks."""
        self._graphs = _num_graphs()

    def after_first(self) -> None:
        """After it: a compiled function may reach every module, so if one was compiled nothing is watched."""
        if self._graphs is not None and _num_graphs() > self._graphs and not self._explained:
            self.reason = "the forward pass is compiled"
        self._graphs = None

    def full(self) -> list[Site]:
        """Layers that have seen enough inputs for a statement."""
        return [site for site in self.sites if site.rows >= MIN_ROWS]

    def open(self, search: bool) -> None:
        """Registers the hooks of one forward pass; a search finds layers, and looks at none.

        A module in compiled code is left alone: its hooks would be compiled into it.
        """
        self.close()
        if self.reason is not None:
            return
        self._count.clear()
        self._searching = search
        if search:
            self._found, self._nodes = {}, {}
            for module in self._names:
                if kind_of(module) is not None:
                    self._handles.append(module.register_forward_hook(_Look(self, Activations._find_module)))
            for module in self._readers:
                self._handles.append(module.register_forward_pre_hook(_Look(self, Activations._find_functional)))
            return
        for module, calls in self._calls.items():
            if next(site for site in calls if site is not None).before:
                self._handles.append(module.register_forward_pre_hook(_Look(self, Activations._add)))
            else:
                self._handles.append(module.register_forward_hook(_Look(self, Activations._add)))

    def close(self) -> None:
        """Removes the hooks; after a search, decides what is watched."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._searching:
            self._searching = False
            self._settle()

    def look(self, call: Callable[[Activations, nn.Module, Any], None], module: nn.Module, seen: Any) -> None:
        """One call of a module; nothing here can raise into the step."""
        tensor = seen[0] if isinstance(seen, tuple) and seen else seen
        if self.reason is not None or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return
        # Inside `torch.func` transforms, and of sharded tensors, there is nothing of its own to look at.
        if is_functorch_wrapped_tensor(tensor) or is_traceable_wrapper_subclass(tensor):
            return
        try:
            call(self, module, tensor)
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"

    def _add(self, module: nn.Module, tensor: Tensor) -> None:
        number = self._count.get(module, 0)
        self._count[module] = number + 1
        calls = self._calls[module]
        # More calls than the search has seen can only be told apart if all of them are one layer.
        site = calls[number] if number < len(calls) else calls[0] if len(set(calls)) == 1 else None
        if site is not None:
            site.add(tensor)

    # -- the search ----------------------------------------------------------------------------------------------------

    def _find_module(self, module: nn.Module, output: Tensor) -> None:
        calls = self._found.setdefault(module, [])
        node = output.grad_fn
        if node is None or node in self._nodes:
            calls.append(None)
            return
        channels, weights = _origin(node)
        channels = output.ndim > 3 if channels is None else channels
        units = output.shape[1 if channels and output.ndim > 1 else -1] if output.ndim > 1 else 0
        key = (module, weights or len(calls), units)
        if key not in self._sites:
            self._sites[key] = Site(self._names[module], kind_of(module), channels, 0, before=False)
        calls.append(key if units >= MIN_UNITS else None)
        self._nodes[node] = key

    def _find_functional(self, module: nn.Module, tensor: Tensor) -> None:
        calls = self._found.setdefault(module, [])
        calls.append(None)
        if tensor.grad_fn is None:
            return
        for node in _behind(tensor.grad_fn):
            if node in self._nodes:
                self._sites[self._nodes[node]].hidden = True
        found = _functional(tensor, self._nodes)
        if found is None:
            return
        kind, channels, groups = found
        units = groups or tensor.shape[1 if channels else -1]
        if units < MIN_UNITS:
            return
        # Calls of one layer on several inputs are one layer of units.
        key = (module, "input", units)
        if key not in self._sites:
            self._sites[key] = Site(self._names[module], kind, channels, groups, before=True)
        calls[-1] = key

    def _settle(self) -> None:
        keys = list(dict.fromkeys(key for calls in self._found.values() for key in calls if key is not None))
        keys = [key for key in keys if self._sites[key].hidden]
        if len(keys) > self._max_layers:
            keys = [keys[index * len(keys) // self._max_layers] for index in range(self._max_layers)]
        self._sites = {key: self._sites[key] for key in keys}
        calls = {module: [self._sites.get(key) for key in found] for module, found in self._found.items()}
        self._calls = {module: sites for module, sites in calls.items() if any(site is not None for site in sites)}
        self._found, self._nodes = {}, {}


def _named(node: Any, prefixes: tuple[str, ...]) -> bool:
    return node.name().startswith(prefixes)


def _inputs(node: Any) -> list[Any]:
    return [parent for parent, _ in node.next_functions if parent is not None]


def _behind(node: Any) -> list[Any]:
    """Nodes from an input back to the layers with weights before it."""
    waiting, seen = [node], {node: None}
    while waiting and len(seen) < _MAX_NODES:
        current = waiting.pop(0)
        if _named(current, (*_WEIGHTED, "Convolution")):
            continue
        fresh = [parent for parent in _inputs(current) if parent not in seen]
        seen.update(dict.fromkeys(fresh))
        waiting += fresh
    return list(seen)


def _origin(node: Any) -> tuple[bool | None, frozenset[int]]:
    """Whether what an activation was given has channels in dimension 1, and the weights that made it."""
    channels: bool | None = None
    weights: set[int] = set()
    for earlier in _behind(node):
        if channels is None and _named(earlier, (*_CHANNELS, *_WEIGHTED, "NativeLayerNorm")):
            channels = _named(earlier, _CHANNELS)
        leaves = [earlier]
        if _named(earlier, (*_WEIGHTED, "Convolution")):
            # A weight lies behind its transposition, or its cast under autocast.
            leaves += [leaf for parent in _inputs(earlier) for leaf in (parent, *_inputs(parent))]
        weights.update(id(leaf.variable) for leaf in leaves if hasattr(leaf, "variable"))
    return channels, frozenset(weights)


def _functional(tensor: Tensor, modules: dict[Any, Any]) -> tuple[Kind, bool, int] | None:
    """The activation behind an input, if only pooling, dropout and flattening lie between.

    Returns:
        Its kind, whether units are in dimension 1 of the input, and the number of channels if they were flattened.
    """
    node, sizes, changed = tensor.grad_fn, None, False
    while True:
        if node in modules:
            return None
        kind = kind_of_node(node)
        if kind is not None:
            break
        inputs = _inputs(node)
        if len(inputs) != 1 or not _named(node, _PASSING):
            return None
        if _named(node, _FLATTENING):
            sizes = getattr(node, "_saved_self_sym_sizes", None)
            if sizes is None:
                return None
        changed |= _named(node, _SCALING)
        node = inputs[0]
    # A saturated unit that was scaled by dropout, or averaged, cannot be told from any other.
    if changed and kind.bounded:
        return None
    channels, weights = _origin(node)
    if not weights:
        return None
    if not channels:
        same = sizes is None or sizes[-1] == tensor.shape[-1]
        return (kind, False, 0) if same else None
    if sizes is None or (len(sizes) > 1 and sizes[1] == tensor.shape[1]):
        return kind, tensor.ndim > 1, 0
    flat = tensor.ndim == 2 and len(sizes) > 2 and math.prod(sizes[1:]) == tensor.shape[1]
    return (kind, False, int(sizes[1])) if flat else None
