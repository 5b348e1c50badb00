"""Reading and writing named internal values inside a trace.

These functions run where the model is, so they travel to remote places by their source: undecorated, with
plain data for arguments, and with nothing at module level but functions imported by name. A ``spec`` is the
plain-data description of one site that `whence.models.components.architecture` makes; ``model`` is the root
of the nnsight model. Inside one trace sites are read and written in the order of the forward pass; a site
that was just read can be written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from greenlet import getcurrent

from whence.core.errors import ModelError
from whence.models.attention import read_attention, write_attention
from whence.models.operations import first_element, operation, resolve, source_of, with_first_element

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def read_site(model: Any, spec: dict[str, Any]) -> Float[Tensor, "..."]:
    """Read a named value inside a trace.

    What is returned is the model's own tensor. Sites marked ``computed`` are made from it (queries in
    another layout, recomputed attention patterns): derivatives flow into them, but nothing in the model
    depends on them until they are written back.

    Args:
        model: The nnsight model.
        spec: The site's ``spec``.

    Returns:
        The value, with the axes that the site declares.
    """
    instrument(model, spec)
    kind = spec["kind"]
    if kind == "output":
        return _read_output(model, spec)
    if kind == "input":
        rows = _rows(model, spec)
        return _shaped(spec, resolve(model, spec["path"]).input, rows)
    if kind == "line":
        return _read_line(model, spec)
    if kind == "attention":
        return read_attention(model, spec)
    if kind == "result":
        return _read_result(model, spec)
    if kind == "logits":
        output = model.output
        return output[0] if isinstance(output, tuple) else output.logits
    raise ModelError(f"{spec.get('site')}: there is no kind of site {kind!r}.")


def write_site(model: Any, spec: dict[str, Any], value: Float[Tensor, "..."]) -> None:
    """Replace a named value inside a trace.

    Args:
        model: The nnsight model.
        spec: The site's ``spec``.
        value: The new value, of the shape that `read_site` gives; it may require gradients or be a dual.
    """
    instrument(model, spec)
    kind = spec["kind"]
    if kind == "output":
        _write_output(model, spec, value)
    elif kind == "input":
        resolve(model, spec["path"]).input = _unshaped(spec, value)
    elif kind == "line":
        _write_line(model, spec, value)
    elif kind == "attention":
        write_attention(model, spec, value)
    elif kind == "result":
        _write_result(model, spec, value)
    elif kind == "logits":
        output = model.output
        if isinstance(output, tuple):
            model.output = with_first_element(output, value)
        else:
            model.output = type(output)(**{**output, "logits": value})
    else:
        raise ModelError(f"{spec.get('site')}: there is no kind of site {kind!r}.")


def instrument(model: Any, spec: dict[str, Any]) -> None:
    """Have nnsight prepare the source of a module before it runs, for sites that are lines of it."""
    if spec.get("instrument"):
        source_of(model, {"site": spec["instrument"], **spec, "path": spec["instrument"]})


def remember_rows(rows: int) -> None:
    """Tell the sites of a running trace its number of rows, which they else look for (see `_rows`)."""
    getcurrent().__dict__["whence_rows"] = rows


def _read_output(model: Any, spec: dict[str, Any]) -> Float[Tensor, "..."]:
    rows = _rows(model, spec)
    envoy = resolve(model, spec["path"])
    output = envoy.output
    value = first_element(output)
    if spec.get("copy"):
        # The block adds to this tensor in place; it gets a copy, so that what was read stays what it was.
        envoy.output = with_first_element(output, value.clone())
    if spec.get("half") or spec.get("rest"):
        value = value.chunk(2, dim=-1)[1 if spec.get("rest") else 0]
    return _shaped(spec, value, rows)


def _write_output(model: Any, spec: dict[str, Any], value: Float[Tensor, "..."]) -> None:
    envoy = resolve(model, spec["path"])
    output = envoy.output
    value = _unshaped(spec, value)
    if spec.get("half"):
        value = torch.cat([value, first_element(output).chunk(2, dim=-1)[1]], dim=-1)
    if spec.get("copy"):
        value = value.clone()
    envoy.output = with_first_element(output, value)


def _read_line(model: Any, spec: dict[str, Any]) -> Float[Tensor, "..."]:
    value = operation(model, spec).output
    if spec.get("item") is not None:
        value = value[spec["item"]]
    if spec.get("factor") is not None:
        value = value * spec["factor"]
    return value.transpose(1, 2) if spec.get("heads_first") else value


def _write_line(model: Any, spec: dict[str, Any], value: Float[Tensor, "..."]) -> None:
    op = operation(model, spec)
    if spec.get("heads_first"):
        value = value.transpose(1, 2)
    if spec.get("factor") is not None:
        value = value / spec["factor"]
    if spec.get("item") is not None:
        parts = list(op.output)
        parts[spec["item"]] = value
        op.output = tuple(parts)
    else:
        op.output = value


def _read_result(model: Any, spec: dict[str, Any]) -> Float[Tensor, "batch position head unit"]:
    projection = resolve(model, spec["path"])
    return projected_alone(projection, projection.input.unflatten(-1, (spec["heads"], -1)))


def projected_alone(
    projection: Any, heads: Float[Tensor, "batch position head size"]
) -> Float[Tensor, "batch position head unit"]:
    """What an output projection makes of each head alone, less its bias.

    The heads go through the projection itself, so that quantised weights work.

    Args:
        projection: The envoy of the projection.
        heads: A vector per head.

    Returns:
        One vector of the residual stream per head.
    """
    count = heads.shape[2]
    chosen = torch.eye(count, dtype=heads.dtype, device=heads.device)
    alone = (chosen[:, :, None] * heads.unsqueeze(-3)).flatten(-2)
    # The kernel of 8-bit weights takes batch, position, unit and nothing with more axes.
    made = projection(alone.flatten(1, 2)).unflatten(1, (-1, count))
    return made - projection_bias(projection, heads.flatten(-2))


def _write_result(model: Any, spec: dict[str, Any], value: Float[Tensor, "batch position head unit"]) -> None:
    projection = resolve(model, spec["path"])
    bias = projection_bias(projection, projection.input)
    projection.output = value.sum(dim=2) + bias


def projection_bias(projection: Any, joined: Float[Tensor, "batch position size"]) -> Float[Tensor, " unit"]:
    """What a projection adds of its own, given any input of it."""
    return projection(torch.zeros_like(joined[:1, :1]))[0, 0]


def _rows(model: Any, spec: dict[str, Any]) -> int | None:
    """The number of rows, where a block joins batch and position into one axis.

    It can be seen once, just before the axes are joined; the trace's own thread of control (nnsight's
    greenlet) remembers it for the other sites of the model, as its batch does not change during a trace.
    """
    if "flat" not in spec:
        return None
    memory = getcurrent().__dict__
    if "whence_rows" not in memory:
        memory["whence_rows"] = operation(model, spec["flat"]).output[0]
    return memory["whence_rows"]


def _shaped(spec: dict[str, Any], value: Float[Tensor, "..."], rows: int | None) -> Float[Tensor, "..."]:
    if spec.get("heads"):
        return value.unflatten(-1, (spec["heads"], -1))
    return value if rows is None else value.reshape(rows, -1, value.shape[-1])


def _unshaped(spec: dict[str, Any], value: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    if spec.get("heads"):
        return value.flatten(-2)
    return value.flatten(0, 1) if "flat" in spec else value
