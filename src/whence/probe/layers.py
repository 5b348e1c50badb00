"""Which sites a question is about: the input embeddings, or intermediate layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from whence.core.contract import Stage
from whence.core.errors import InputError, UnsupportedError
from whence.models.components import Architecture, Site

Leaf = dict[str, Any]


@dataclass(frozen=True)
class Layers:
    """Leaves of every layer that a question is about, as plain data for programs.

    Attributes:
        groups: One list of leaves per layer.
        labels: Names of the layers; empty when there is no layer axis.
        streams: The streams that the leaves cover.
        deep: Whether they are something else than the input embeddings.
        complete: Whether at every layer all that follows depends on the input only through the leaves.
    """

    groups: list[list[Leaf]]
    labels: tuple[str, ...]
    streams: frozenset[int]
    deep: bool
    complete: bool


def embedding_leaves(architecture: Architecture) -> list[Leaf]:
    """The input embeddings of every stream, in the order of the forward pass."""
    stacks = list(architecture.paths["embed"])
    names = [f"{stack}.embed" for stack in stacks] if architecture.encoder_decoder else ["embed"]
    return [leaf(architecture.site(name), stream) for stream, name in enumerate(names)]


def leaf(site: Site, stream: int) -> Leaf:
    """A site as plain data."""
    return {"key": site.name, "spec": site.spec, "order": site.order, "stream": stream}


def stage_data(architecture: Architecture, stage: Stage) -> dict[str, Any]:
    """A stage of a fold as plain data for programs.

    Raises:
        UnknownNameError: No site of a name.
    """
    stacks = list(architecture.paths["embed"])
    found = []
    for short, name in stage.sites.items():
        site = architecture.site(name)
        found.append({**leaf(site, stacks.index(site.stack)), "short": short})
    return {"name": stage.name, "facts": dict(stage.facts), "leaves": found}


def find_layers(architecture: Architecture, layer: Any) -> Layers:
    """Resolve the option ``layer``.

    Args:
        architecture: Names of the model's internals.
        layer: None (the input embeddings), the number of a block (its ``resid_post``; negative counts from
            the end), the name of a site, a list of these, or ``"all"`` (every block).

    Returns:
        The leaves.

    Raises:
        UnknownNameError: No site of that name; the nearest are listed.
        InputError: A number outside the blocks, or another kind of value.
        UnsupportedError: A site without a position axis, of another width per entry, or the output itself.
    """
    streams = list(architecture.paths["embed"])
    if layer is None:
        leaves = embedding_leaves(architecture)
        return Layers([leaves], (), frozenset(range(len(streams))), deep=False, complete=True)
    if layer == "all":
        layer = list(range(min(architecture.n_layers.values())))
    several = isinstance(layer, Sequence) and not isinstance(layer, str)
    wanted = list(layer) if several else [layer]
    if not wanted:
        raise InputError("layer: the list is empty.")
    groups = [_group(architecture, one, streams) for one in wanted]
    covered = {frozenset(leaf["stream"] for leaf in group) for group in groups}
    if len(covered) > 1:
        raise InputError("layer: the sites of one call must all be of the same stack.")
    labels = tuple(str(one) for one in wanted)
    if len(set(labels)) != len(labels):
        raise InputError(f"layer: {layer!r} names a layer twice.")
    cut = all(architecture.site(leaf["key"]).cut for group in groups for leaf in group)
    complete = cut and all(len(group) == len(streams) for group in groups)
    return Layers(groups, labels if several else (), covered.pop(), deep=True, complete=complete)


def _group(architecture: Architecture, layer: Any, streams: list[str]) -> list[Leaf]:
    if isinstance(layer, bool) or not isinstance(layer, int | str):
        raise InputError(f"layer is a number, the name of a site, a list of these or 'all', not {layer!r}.")
    if isinstance(layer, int):
        leaves = []
        for stream, stack in enumerate(streams):
            count = architecture.n_layers[stack]
            if not -count <= layer < count:
                raise InputError(f"layer: there is no block {layer}; the {stack} has {count} (0 to {count - 1}).")
            prefix = f"{stack}." if architecture.encoder_decoder else ""
            leaves.append(leaf(architecture.site(f"{prefix}blocks.{layer % count}.resid_post"), stream))
        return leaves
    site = architecture.site(layer)
    if site.name in ("unembed", "logits"):
        raise UnsupportedError(f"layer={layer!r} is the output itself; take ln_final or the resid_post of a block.")
    if tuple(site.axes[:2]) != ("batch", "position"):
        raise UnsupportedError(
            f"layer={layer!r} has axes {', '.join(site.axes)}: an attribution needs one vector per position. "
            "Take a site such as resid_post, attn.z, attn_out or mlp_out."
        )
    return [leaf(site, streams.index(site.stack))]
