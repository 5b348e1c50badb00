"""Programs that any place can run: generation, and rows of the embedding matrix.

A program is an undecorated module-level function of the nnsight model and plain data, which opens its own
traces; it travels to remote places by its source, so it uses only torch and names imported by name.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import nnsight
import torch

from whence.models.access import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor


def generate(model: Any, inputs: dict[str, Any], options: dict[str, Any]) -> Int[Tensor, "batch position"]:
    """Generate from token ids, as transformers' ``generate`` does.

    Args:
        model: The nnsight model.
        inputs: ``input_ids`` and ``attention_mask``.
        options: Options of ``generate``.

    Returns:
        Ids as ``generate`` returns them: with the prompt, or with the decoder's start.
    """
    with model.trace(**inputs, **options, fn="generate") as tracer:
        made = nnsight.save(tracer.result)
    return made.cpu()


def embedding_rows(
    model: Any, paths: dict[str, str], ids: Int[Tensor, " id"], inputs: dict[str, Any], vocabulary: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """Embeddings of ids as the embedding modules give them, and statistics of all rows.

    The modules are called inside a trace: the weights themselves may be in another process.

    Args:
        model: The nnsight model.
        paths: For each stack, the path of its embedding module.
        ids: The ids.
        inputs: Any input of the model, for the trace.
        vocabulary: For each stack, its number of rows.

    Returns:
        For each stack: ``rows`` [id, unit] and ``norms`` [id] of the ids asked for, ``mean`` [unit] and
        ``median_norm`` over the whole matrix; scaling inside the module is included.
    """
    found = {}
    with torch.no_grad(), model.trace(**inputs, use_cache=False):
        for stack, path in paths.items():
            module = resolve(model, path)
            rows = looked_up(module, ids)
            every = torch.arange(vocabulary[stack])
            total, norms = torch.zeros_like(rows.sum(0)), []
            for part in every.split(8192):
                made = looked_up(module, part)
                total = total + made.sum(0)
                norms.append(made.norm(dim=1))
            found[stack] = nnsight.save(
                {
                    "rows": rows.cpu(),
                    "norms": rows.norm(dim=1).cpu(),
                    "mean": (total / len(every)).cpu(),
                    "median_norm": float(torch.cat(norms).median()),
                }
            )
    return found


def looked_up(module: Any, ids: Int[Tensor, " id"]) -> Float[Tensor, "id unit"]:
    """What an embedding module makes of ids, in float32 or better."""
    device = module._module.weight.device
    made = module(ids if device.type == "meta" else ids.to(device)).detach()
    return made.to(torch.promote_types(made.dtype, torch.float32))


def with_facts(model: Any, program: Callable[..., Any], data: dict[str, Any]) -> dict[str, Any]:
    """Run a program, and tell with its result what it ran on.

    Args:
        model: The nnsight model.
        program: The program.
        data: Its plain data.

    Returns:
        ``result`` and ``facts``.
    """
    return {"result": program(model, **data), "facts": facts(model)}


def facts(model: Any) -> dict[str, Any]:
    """What a client wants to know of the process that has the weights.

    Args:
        model: The nnsight model.

    Returns:
        ``dtype`` and ``device`` of the weights as text, and ``free``, the bytes that are free there.
    """
    weight = next(one for one in model._module.parameters() if one.is_floating_point())
    # Where the weights are behind a wall of this process, on the meta device, a CPU is the careful guess.
    device = weight.device if weight.device.type != "meta" else torch.device("cpu")
    return {
        "dtype": str(weight.dtype).removeprefix("torch."),
        "device": str(device),
        "free": free_bytes(device),
    }


def free_bytes(device: Any) -> int:
    """Bytes that are free on a device (for a CPU, of the machine's memory)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 4 << 30
