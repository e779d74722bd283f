"""Channels of convolutions and plain linear layers as groups, found by the torch-pruning library's trace of the graph.

The library follows autograd from layer to layer, through additions and concatenations; what it finds is turned into
our groups. Where it can't follow a graph, or a flattened map, `probe` finds the readers. Left as they are: layers whose
channels reach the output, the residual stream of layer norms (which mix all channels, so that taking one out changes
the rest), and what a block's own rule covers (`heads`, `widths`).
Source: Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv:2301.12900.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from deepseek.compress.pruning.groups import Group, Role, Slice
from deepseek.compress.pruning.probe import Probe
from deepseek.compress.pruning.tracing import Inputs, behind, run
from deepseek.errors import DeepSeekError, ModelError
from deepseek.lazy import require

_CONVS = nn.Conv1d | nn.Conv2d | nn.Conv3d
_TRANSPOSED = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_MIXING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_Item = tuple[nn.Module, Role, Tensor, Tensor]
"""A layer, its role, units and indices."""


def channel_groups(model: nn.Module, inputs: Inputs, owned: set[str], skipped: dict[str, str]) -> list[Group]:
    """Return the groups of channels of `model` (in eval mode, its parameters with gradients).

    `owned`: layers that other rules cover. Layers left out are added to `skipped` with the reason.
    Raises ModelError for a model that can't be traced, naming the module; MissingExtraError without torch-pruning.
    """
    scene = _Scene(model, inputs, owned)
    if not scene.free:
        return []
    graph = _trace(require("torch_pruning", "compress"), model, inputs)
    found: dict[nn.Module, list[_Item]] = {}
    seen: set[nn.Module] = set()
    for root in scene.free:
        if root in seen:
            continue
        items, reason = _followed(graph, root, scene)
        seen.update(module for module, role, _, _ in items if role == "makes")
        reason = reason or scene.unfit(items)
        if reason:
            skipped[scene.names[root]] = reason
        else:
            found[root] = items
    return [
        Group(
            scene.names[roots[0]],
            "channels",
            _width(roots[0]),
            tuple(part for item in items for part in _slices(scene.names[item[0]], *item)),
        )
        for roots, items in _joined(found, scene, skipped)
    ]


class _Scene:
    """What is known of a model's layers: names, calls, which may be pruned, which make the output."""

    def __init__(self, model: nn.Module, inputs: Inputs, owned: set[str]) -> None:
        self.model, self.inputs, self.owned = model, inputs, owned
        self.names = {module: name for name, module in model.named_modules()}
        self.layers = [module for module in self.names if isinstance(module, _MIXING)]
        self.calls: dict[nn.Module, int] = {}  # in the order of the first calls
        self.outputs = self._outputs()
        self._probe: Probe | None = None
        self.free = [
            layer
            for layer in self.layers
            if self.calls.get(layer) and not _passes(layer)
            if layer not in self.outputs and self.names[layer] not in owned
        ]

    def _outputs(self) -> set[nn.Module]:
        """Return the layers whose channels reach the model's output past no other layer; count all calls."""
        made: dict[Any, nn.Module] = {}

        def note(module: nn.Module, _: Any, output: Tensor) -> None:
            self.calls[module] = self.calls.get(module, 0) + 1
            made[output.grad_fn] = module

        handles = [layer.register_forward_hook(note) for layer in self.layers]
        try:
            results = run(self.model, self.inputs)
        finally:
            for handle in handles:
                handle.remove()
        if not any(result.grad_fn is not None for result in results):
            raise ModelError(
                f"{type(self.model).__name__} can't be traced: autograd sees no weight behind its output",
                found=f"last layer called: '{self.names[next(reversed(self.calls))] if self.calls else None}'",
                fix="take no_grad, detach and numpy out of forward()",
            )
        stops = [behind(result.grad_fn, made.__contains__) for result in results]
        return {made[node] for nodes in stops for node in nodes if node in made}

    def unfit(self, items: list[_Item]) -> str:
        """Return why a group can't be pruned, "" if it can."""
        for module, role, _, index in items:
            name, alone = self.names[module], isinstance(module, nn.GroupNorm)
            if (
                alone
                and module.num_groups != module.num_channels
                or not (alone or isinstance(module, (*_MIXING, *_BATCH_NORMS)))
            ):
                return f"its channels meet {type(module).__name__} '{name}', which mixes them"
            if name in self.owned:
                return f"its channels meet '{name}', which belongs to another part or is to be skipped"
            if role == "makes" and module in self.outputs:
                return f"its channels meet '{name}', which makes the output"
            if isinstance(module, _CONVS | _TRANSPOSED) and module.groups > 1 and role != "passes":
                return f"its channels meet '{name}', a convolution in groups"
            if self.calls.get(module, 1) > 1:
                return f"'{name}' is called more than once"
            if len(set(index.tolist())) != index.numel():
                return f"two of its channels are one of '{name}'"
        return "" if any(role == "reads" for _, role, _, _ in items) else "nothing in the model reads its channels"

    def probed(self, root: nn.Module) -> tuple[list[_Item], str]:
        """Return the group of a root whose channels no other layer's are added to, found by touching them."""
        if any(count > 1 for count in self.calls.values()):
            return [], "layers are called more than once"
        if self._probe is None:
            watched = [module for module in self.names if dict(module.named_parameters(recurse=False))]
            watched = [module for module in watched if not dict(module.named_children())]
            holding = [layer for layer in self.layers if self.calls.get(layer) and not _passes(layer)]
            self._probe = Probe(self.model, self.inputs, holding, watched)
        found = self._probe.readers(root, _width(root))
        if found is None:
            return [], "where its channels go is not plain"
        units = torch.arange(_width(root))
        items: list[_Item] = [(root, "makes", units, units)]
        for module, (owners, index) in found.items():
            items.append((module, "passes" if _passes(module) else "reads", owners, index))
        return items, ""


def _joined(
    found: dict[nn.Module, list[_Item]], scene: _Scene, skipped: dict[str, str]
) -> list[tuple[list[nn.Module], list[_Item]]]:
    """Put roots together whose channels meet one by one (a gate and what it gates); leave out those that overlap."""
    by_reader: dict[frozenset[tuple[nn.Module, int, int]], tuple[list[nn.Module], list[_Item]]] = {}
    owner: dict[tuple[nn.Module, int], list[nn.Module]] = {}
    clashing: set[nn.Module] = set()
    for root, items in found.items():
        read = [
            (module, unit, column)
            for module, role, units, index in items
            if role == "reads"
            for unit, column in zip(units.tolist(), index.tolist(), strict=True)
        ]
        roots, joined = by_reader.setdefault(frozenset(read), ([], []))
        known = {module for module, *_ in joined}
        joined.extend(item for item in items if item[0] not in known)
        roots.append(root)
        for module, _, column in read:
            if owner.setdefault((module, column), roots) is not roots:
                clashing.update(roots, owner[module, column])
    clean = []
    for roots, joined in by_reader.values():
        if clashing.isdisjoint(roots):
            clean.append((roots, joined))
        else:
            skipped.update({scene.names[root]: "another layer's channels are added to its own" for root in roots})
    return clean


def _trace(library: Any, model: nn.Module, inputs: Inputs) -> Any:
    """Return the library's graph of the model, None where it fails on it."""

    def tensors(output: Any) -> list[Tensor]:
        return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]

    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            return library.DependencyGraph().build_dependency(
                model,
                dict(inputs),
                forward_fn=lambda module, values: module(**values),
                output_transform=tensors,
                verbose=False,
            )
        except DeepSeekError:
            raise
        except Exception:  # a graph it was not made for; it says so in many ways
            return None


def _followed(graph: Any, root: nn.Module, scene: _Scene) -> tuple[list[_Item], str]:
    """Return the layers of a root's group with units and indices, and why the group can't be pruned ("" if it can)."""
    if isinstance(root, _CONVS | _TRANSPOSED) and root.groups not in (1, root.out_channels):
        return [], "a convolution in groups"
    if graph is None or root not in graph.module2node:
        return scene.probed(root)
    try:
        fn = graph.get_pruner_of_module(root).prune_out_channels
        group = graph.get_pruning_group(root, fn, list(range(_width(root))))
    except (AttributeError, IndexError, TypeError, ValueError):
        return scene.probed(root)
    items: list[_Item] = []
    for item in group:
        module = item.dep.target.module
        if isinstance(module, nn.Parameter):
            return items, "its channels meet a learned vector that no layer holds"
        if type(module).__name__ == "_OutputOp":
            return items, "its channels reach the output"
        if type(module).__module__.startswith("torch_pruning"):
            continue
        units, index = torch.tensor(item.root_idxs), torch.tensor(item.idxs)
        makes = graph.is_out_channel_pruning_fn(item.dep.handler)
        role: Role = "passes" if _passes(module) else "makes" if makes else "reads"
        flattened = isinstance(module, nn.Linear) and module.in_features > _width(root) == len(item.idxs)
        if role == "reads" and flattened and item.idxs == list(range(_width(root))):
            return scene.probed(root)
        items.append((module, role, units, index))
    return items, ""


def _width(layer: nn.Module) -> int:
    size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return int(size)  # type: ignore[arg-type]


def _passes(module: nn.Module) -> bool:
    """Return whether a layer treats each channel alone."""
    depthwise = isinstance(module, _CONVS) and 1 < module.groups == module.in_channels == module.out_channels
    return depthwise or not isinstance(module, _MIXING)


def _slices(name: str, module: nn.Module, role: Role, units: Tensor, index: Tensor) -> list[Slice]:
    if role == "reads":
        return [Slice(f"{name}.weight", 0 if isinstance(module, _TRANSPOSED) else 1, units, index, role)]
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    return [
        Slice(f"{name}.{leaf}", int(isinstance(module, _TRANSPOSED) and leaf == "weight"), units, index, role)
        for leaf, tensor in tensors.items()
        if tensor.ndim
    ]
