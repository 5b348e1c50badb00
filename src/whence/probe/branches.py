"""What an attention module adds to the residual stream, taken apart by head and by the token it comes from.

For query i, key j and head h the part is ``weight[h, i, j] * vector[j, h]``, where the weight is the attention
pattern and the vector is the value of j through head h's slice of the output projection. A norm that follows is
linearised: its statistics are held at those of this run. Then the parts, the residual stream and the biases still
add up exactly to what the model computed.

Plain data that these functions pass around:

``parts``    a list (self attention, or self and cross attention): ``weights`` [batch, head, row, key],
             ``vectors`` [batch, key, head, unit], ``own`` [batch, row, key] (True where the key is the row's own
             position; None where keys are of another stream), and what ``vectors`` are made of
``block``    ``parts``, ``residual``, ``bias`` and ``total``, each [batch, row, unit]

Travels with the folds of methods (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.models.access import projected_alone, projection_bias, resolve
from whence.models.attention import per_query_head
from whence.models.norms import norm_form, norm_scale, passed_on, wide

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


def attention_block(
    model: Any, stage: dict[str, Any], values: dict[str, Tensor], rows: Int[Tensor, "batch row"] | None = None
) -> dict[str, Any]:
    """The stream after an attention module, as the sum of its parts.

    Args:
        model: The nnsight model.
        stage: A stage of `whence.methods.internals.stages.attention_stages`.
        values: Its values.
        rows: The query positions of interest; None is all.

    Returns:
        The block. Its total is the residual stream, or where the norm comes after the sum, the norm's output.
    """
    block = with_residual(attention_sum(model, stage, values, rows), values, rows)
    return after_norm(model, stage, values, block, rows)


def attention_sum(
    model: Any, stage: dict[str, Any], values: dict[str, Tensor], rows: Int[Tensor, "batch row"] | None = None
) -> dict[str, Any]:
    """What an attention module adds to the stream, as the sum of its parts; arguments as in `attention_block`."""
    specs = stage_specs(stage)
    pattern, out = values["pattern"], values["out"]
    heads = per_query_head(values["v"].transpose(1, 2), pattern.shape[1]).transpose(1, 2)
    part = {
        "weights": wide(pick(pattern, rows, 2)),
        "heads": heads,
        "projection": specs["z"]["path"],
        "norms": [],
        "own": own_keys(pattern, rows) if stage["facts"]["kind"] == "attn" else None,
    }
    part["vectors"] = part_vectors(model, part)
    bias = projection_bias(resolve(model, part["projection"]), heads.flatten(-2))
    total = wide(pick(out, rows, 1))
    block = {
        "parts": [part],
        "residual": torch.zeros_like(total),
        "bias": wide(bias).expand_as(total),
        "total": total,
    }
    if specs["out"]["path"] == part["projection"]:
        return block
    return through_norm(model, specs["out"]["path"], out, block, total)


def with_residual(
    block: dict[str, Any], values: dict[str, Tensor], rows: Int[Tensor, "batch row"] | None = None
) -> dict[str, Any]:
    """A sum of parts together with what it is added to."""
    if "after" in values:
        # Not what entered the block: BLOOM can add its branches to the output of a norm.
        after = wide(pick(values["after"], rows, 1))
        return {**block, "residual": after - block["total"], "total": after}
    before = wide(pick(values["before"], rows, 1))
    return {**block, "residual": before, "total": before + block["total"]}


def after_norm(
    model: Any,
    stage: dict[str, Any],
    values: dict[str, Tensor],
    block: dict[str, Any],
    rows: Int[Tensor, "batch row"] | None = None,
) -> dict[str, Any]:
    """A block as the norm after the sum passes it on, where there is one."""
    if "normed" not in values:
        return block
    path = stage_specs(stage)["normed"]["path"]
    return through_norm(model, path, values["after"], block, wide(pick(values["normed"], rows, 1)))


def through_norm(
    model: Any, path: str, like: Tensor, block: dict[str, Any], output: Float[Tensor, "batch row unit"]
) -> dict[str, Any]:
    """A block after a norm of its total, with the norm's statistics held.

    Args:
        model: The nnsight model.
        path: Path of the norm.
        like: A tensor of the dtype and width of the norm's input.
        block: The block, whose total is the norm's input.
        output: What the norm made of it.

    Returns:
        The block, with the output for its total.
    """
    form = norm_form(model, path, like)
    scale = norm_scale(form, rebuilt(block), output)[..., None]
    parts = [
        {
            **part,
            "weights": part["weights"] * scale.squeeze(-1)[:, None, :, None],
            "vectors": passed_on(form, part["vectors"]),
            "norms": [*part["norms"], form],
        }
        for part in block["parts"]
    ]
    return {
        "parts": parts,
        "residual": scale * passed_on(form, block["residual"]),
        "bias": scale * passed_on(form, block["bias"]) + form["offset"],
        "total": output,
    }


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two attention modules one after the other as one: the first's block with the second's sum added."""
    return {
        "parts": [*first["parts"], *second["parts"]],
        "residual": first["residual"],
        "bias": first["bias"] + second["bias"],
        "total": first["total"] + second["total"],
    }


def part_vectors(model: Any, part: dict[str, Any]) -> Float[Tensor, "batch key head unit"]:
    """What each key gives to the stream through each head, where the head looks at nothing else."""
    vectors = wide(projected_alone(resolve(model, part["projection"]), part["heads"]))
    for form in part["norms"]:
        vectors = passed_on(form, vectors)
    return vectors


def rebuilt(block: dict[str, Any]) -> Float[Tensor, "batch row unit"]:
    """The sum of all parts, the residual and the biases; it should be the total."""
    total = block["residual"] + block["bias"]
    for part in block["parts"]:
        total = total + torch.einsum("bhrk,bkhu->bru", part["weights"], part["vectors"])
    return total


def rebuilding_gap(block: dict[str, Any], real: Bool[Tensor, "batch row"] | None) -> Float[Tensor, " batch"]:
    """How far the parts are from adding up to the total, as a share of the largest number in either.

    Args:
        block: The block.
        real: Which rows are no padding; None is all.

    Returns:
        The worst row of every example.
    """
    off = (rebuilt(block) - block["total"]).abs().amax(-1)
    size = torch.maximum(block["total"].abs().amax(-1), block["residual"].abs().amax(-1))
    share = off / size.clamp_min(torch.finfo(size.dtype).tiny)
    return share.amax(-1) if real is None else share.masked_fill(~real.to(share.device), 0).amax(-1)


def real_rows(run: dict[str, Any], stage: dict[str, Any]) -> Bool[Tensor, "batch row"] | None:
    """Which positions of a stage's stack are no padding; None where nothing is said of it."""
    two = "decoder_input_ids" in run["inputs"]
    name = "decoder_attention_mask" if two and stage["facts"]["stack"] == "decoder" else "attention_mask"
    return run["inputs"][name].bool() if name in run["inputs"] else None


def rows_of(block: dict[str, Any], rows: Int[Tensor, "batch row"]) -> dict[str, Any]:
    """Some rows of a block that has all."""
    parts = [
        {
            **part,
            "weights": pick(part["weights"], rows, 2),
            "own": None if part["own"] is None else pick(part["own"], rows, 1),
        }
        for part in block["parts"]
    ]
    return {"parts": parts, **{name: pick(block[name], rows, 1) for name in ("residual", "bias", "total")}}


def own_keys(
    pattern: Float[Tensor, "batch head query key"], rows: Int[Tensor, "batch row"] | None
) -> Bool[Tensor, "batch row key"]:
    """True where the key of a row is its own position."""
    keys = torch.arange(pattern.shape[3], device=pattern.device)
    if rows is None:
        rows = torch.arange(pattern.shape[2]).expand(pattern.shape[0], -1)
    return rows.to(pattern.device)[..., None] == keys


def pick(x: Float[Tensor, "batch ..."], rows: Int[Tensor, "batch row"] | None, dim: int) -> Float[Tensor, "batch ..."]:
    """Entries of an axis, other ones for every example; all where no rows are given."""
    if rows is None:
        return x
    index = rows.to(x.device).view(len(rows), *(1,) * (dim - 1), -1, *(1,) * (x.dim() - dim - 1))
    return x.gather(dim, index.expand(*x.shape[:dim], -1, *x.shape[dim + 1 :]))


def stage_specs(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Where the values of a stage come from, by their short names."""
    return {leaf["short"]: leaf["spec"] for leaf in stage["leaves"]}


def at_rows(x: Float[Tensor, "batch position unit"], rows: Int[Tensor, "batch row"]) -> Float[Tensor, "batch row unit"]:
    """Some positions, in float32 or better."""
    return wide(pick(x, rows, 1))


def stream_gap(run: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> Float[Tensor, " batch"]:
    """How far the stream before an attention module is from what its output is added to, as a share.

    Zero but for rounding where branches are added to the stream itself; not so where they are added to the output
    of a norm.
    """
    before, out = wide(values["before"]), wide(values["out"])
    after = wide(values["after"]) if "after" in values else before + out
    off = (after - out - before).abs().amax(-1) / torch.maximum(before.abs(), after.abs()).amax(-1).clamp_min(1e-30)
    real = real_rows(run, stage)
    return off.amax(-1) if real is None else off.masked_fill(~real.to(off.device), 0).amax(-1)
