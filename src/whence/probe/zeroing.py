"""Value zeroing, put to the model: what `ModelProbe` needs for its question zero."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from whence.core.contract import Anatomy, Zeroed, Zeroing
from whence.core.progress import Progress
from whence.models.components import Architecture
from whence.probe.layers import leaf
from whence.probe.payload import run_data
from whence.probe.plan import Shape, make_rows
from whence.probe.zero import zero_values

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
    from torch import Tensor

    from whence.probe.probe import ModelProbe


def zero_features(probe: ModelProbe, question: Zeroing) -> Zeroed:
    """Distances of all layers; arguments and errors as `ModelProbe.zero` says."""
    import torch

    model, batch = probe.model, probe.batch
    examples, columns, masks = removals(probe, question.each)
    query, count = batch.query, len(probe.groups)
    parts = masks.split(list(batch.widths), dim=1)
    places = [torch.arange(width).expand(count, -1) for width in batch.widths]
    if not question.everywhere:
        places[-1] = query
    chunk = rows_per_pass(probe, question, len(examples))
    with Progress("rows", len(examples)) as bar:
        found = model.run(
            zero_values,
            run=run_data(model, batch),
            leaves=zero_leaves(model.architecture, probe.anatomy, question, source=bool(parts[0].any())),
            places=places,
            examples=examples,
            masks=list(parts),
            metric=question.metric,
            chunk=chunk,
            advance=bar.advance if model.remote is None else None,
        )
    third = probe.feature_count if question.each == "feature" else batch.width
    moved = [
        None if one is None else spread(one, examples, columns, torch.zeros(count, third)) for one in found["moved"]
    ]
    assert moved[-1] is not None, "the last stack has states"
    lone = torch.where(masks.sum(1) == 1, masks.int().argmax(1), -1)
    return Zeroed(
        moved=moved[-1].transpose(1, 2),
        query=query if question.everywhere else torch.arange(query.shape[1]).expand(query.shape),
        encoder=moved[0].transpose(1, 2) if len(moved) > 1 and moved[0] is not None else None,
        tokens=spread(lone, examples, columns, torch.full((count, third), -1)),
        mixture=worst_mixture(probe, found["mixture"], question.everywhere),
        record={"rows": len(examples) + count, "rows_per_pass": chunk},
    )


def removals(
    probe: ModelProbe, each: str
) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"], Bool[Tensor, "row token"]]:
    """The rows: the example, the feature or token that is removed, and the tokens that belong to it."""
    import torch

    if each == "token":
        present = probe.batch.mask([[True] * len(one.tokens) for one in probe.batch.sequences])
        examples, tokens = present.nonzero(as_tuple=True)
        return examples, tokens, torch.nn.functional.one_hot(tokens, probe.batch.width).bool()
    examples, features = probe.defined.any(1).nonzero(as_tuple=True)
    return examples, features, probe.feature_of()[examples] == features[:, None]


def zeroing_shape(probe: ModelProbe) -> Shape:
    """The sizes of a pass: patterns are in memory, whatever the implementation of attention, and logits are not."""
    return replace(probe.shape(), quadratic=True, kept=1)


def rows_per_pass(probe: ModelProbe, question: Zeroing, total: int) -> int:
    """Rows that fit."""
    model = probe.model
    if model.rows_interact:
        return 1
    if question.rows is not None:
        return question.rows
    return make_rows(zeroing_shape(probe), total, free=model.free_bytes(), cpu=model.device.type == "cpu")


def spread(
    rows: Shaped[Tensor, "row ..."], examples: Int[Tensor, " row"], columns: Int[Tensor, " row"], like: Tensor
) -> Shaped[Tensor, "example column ..."]:
    """Rows as columns of their example, among what stands where there was no row."""
    whole = like.to(rows).view(*like.shape, *(1,) * (rows.dim() - 1)).repeat(1, 1, *rows.shape[1:])
    whole[examples, columns] = rows
    return whole


def zero_leaves(
    architecture: Architecture, anatomy: Anatomy, question: Zeroing, *, source: bool
) -> list[dict[str, Any]]:
    """What the program reads and writes of every block, in the order of the forward pass.

    Args:
        architecture: Where things are in the model.
        anatomy: What there is.
        question: The question.
        source: Whether a row removes anything of the first stream; else an encoder is left alone.

    Raises:
        UnknownNameError: There is no last norm, and its output was asked for.
    """
    found = []
    for stream, (stack, count) in enumerate(anatomy.layers.items()):
        if stack == "encoder" and not source:
            continue
        for layer in range(count):
            for kind, keys, family in (("attn", stream, stack), ("cross_attn", 0, "cross")):
                if not anatomy.has(stack, f"{kind}.z", layer):
                    continue
                heads = question.heads[family][layer]
                for role in ("pattern", "v", "z") if heads else ():
                    site = architecture.site(anatomy.site(stack, f"{kind}.{role}", layer))
                    found.append({**leaf(site, stream), "role": role, "keys": keys, "heads": list(heads)})
            last = layer == count - 1
            normed = last and question.final_norm
            site = architecture.site(anatomy.site(stack, "resid_post", layer))
            # What enters the decoder's head is of no interest, what leaves the encoder is.
            state = {"role": "state", "restore": not last or (stack == "encoder" and not normed)}
            found.append({**leaf(site, stream), **state, "compare": not normed})
            if normed:
                site = architecture.site(anatomy.site(stack, "ln_final"))
                found.append({**leaf(site, stream), **state, "restore": stack == "encoder", "compare": True})
    for one in found:
        one["passing"] = True
    return sorted(found, key=lambda one: one["order"])


def worst_mixture(
    probe: ModelProbe, gaps: list[Float[Tensor, "example place"] | None], everywhere: bool
) -> Float[Tensor, "example column"]:
    """The largest gap among the places that a column looks at: its steps', and the whole source's."""
    import torch

    batch = probe.batch
    worst = batch.columns.new_zeros(batch.columns.shape[:2])
    own = gaps[-1]
    if own is not None:
        steps = own.gather(1, batch.query) if everywhere else own
        worst = torch.where(batch.columns > 0, steps[:, None].to(worst), 0.0).amax(-1)
    if len(gaps) > 1 and gaps[0] is not None:
        present = batch.mask([[True] * len(one.tokens) for one in batch.sequences])[:, : batch.widths[0]]
        worst = worst.maximum(torch.where(present, gaps[0].to(worst), 0.0).amax(1)[:, None])
    return worst
