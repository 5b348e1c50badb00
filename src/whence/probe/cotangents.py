"""What is differentiated, as vectors that multiply the last hidden state of each step: where derivatives start.

These functions travel to remote places by their source (see `whence.models.programs` for the rules). What
enters the unembedding is called h and the model's logits z; W = dz/dh is the unembedding with all that the model
does to logits after it (scale, soft-cap).

``target``  the step function's own gradient with respect to h
``logit``   the same for the logit of the step's token: its row of W
``norm``    h / ||h||, as a constant
``fisher``  main directions of F = W' (diag p - p p') W, each times the square root of its eigenvalue
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.lanczos import top_eigenpairs
from whence.probe.rows import step_places

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def every_step(run: dict[str, Any]) -> Float[Tensor, "example step step"]:
    """Columns that are single steps; steps that no column has count nothing."""
    used = (run["columns"].amax(1) > 0).to(run["columns"])
    return torch.diag_embed(used)


def cotangents(
    run: dict[str, Any],
    examples: Int[Tensor, " row"],
    out: dict[str, Any],
    steps: Float[Tensor, "row step"],
    question: dict[str, Any],
) -> tuple[list[Float[Tensor, "row position unit"]], Float[Tensor, "two row position"] | None]:
    """Vectors for the hidden state of every position that has logits.

    Args:
        run: The batch (see `whence.probe.rows`).
        examples: The example of each row.
        out: The forward pass, with its graph.
        steps: The target at every step.
        question: ``of``, and ``rank`` for ``fisher``.

    Returns:
        One tensor, or as many as the rank; and for ``fisher`` how far its directions are from being eigenvectors
        beside the largest eigenvalue, else None.
    """
    of, hidden = question["of"], out["hidden"]
    # Padding repeats a step; only steps that some column has may add to the head's gradient.
    used = (run["columns"][examples].amax(1) > 0).to(steps)
    if of == "target":
        return [torch.autograd.grad((steps * used).sum(), hidden, retain_graph=True)[0]], None
    if of == "logit":
        places = step_places(run, examples, out["logits"].shape[1])
        rows = torch.arange(len(examples))[:, None]
        own = out["logits"][rows, places, run["target_ids"][examples]]
        return [torch.autograd.grad((own * used).sum(), hidden, retain_graph=True)[0]], None
    if of == "norm":
        wide = hidden.detach().to(torch.promote_types(hidden.dtype, torch.float32))
        return [(wide / wide.norm(dim=-1, keepdim=True).clamp_min(1e-30)).to(hidden)], None
    return main_directions(hidden, out["logits"], question["rank"])


def main_directions(
    hidden: Float[Tensor, "row position unit"], logits: Float[Tensor, "row position vocab"], rank: int
) -> tuple[list[Float[Tensor, "row position unit"]], Float[Tensor, "two row position"]]:
    """The top eigenvectors of the Fisher metric of each position, times the roots of their eigenvalues.

    The metric is only ever multiplied with vectors: W v is the derivative of c -> W' c in the direction v, which
    autograd knows, and no matrix over the vocabulary is made.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    p = logits.detach().to(wide).softmax(-1)
    into = torch.zeros_like(logits, requires_grad=True)
    back = torch.autograd.grad(logits, hidden, into, create_graph=True)[0]

    def metric(v: Float[Tensor, "case unit"]) -> Float[Tensor, "case unit"]:
        along = v.view(hidden.shape).to(back)
        moved = torch.autograd.grad(back, into, along, retain_graph=True)[0].to(wide)
        centred = p * (moved - (p * moved).sum(-1, keepdim=True))
        found = torch.autograd.grad(logits, hidden, centred.to(logits), retain_graph=True)[0]
        return found.to(wide).flatten(0, 1)

    cases, units = hidden.shape[0] * hidden.shape[1], hidden.shape[2]
    found = top_eigenpairs(metric, (cases, units), min(rank, units), wide, hidden.device)
    roots = (found["values"].clamp_min(0).sqrt()[..., None] * found["vectors"]).to(hidden)
    shape = hidden.shape[:2]
    residual = torch.stack([found["residual"], found["values"][:, 0]]).view(2, *shape)
    return [roots[:, k].view(*shape, units) for k in range(roots.shape[1])], residual
