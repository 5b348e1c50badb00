"""Derivatives and perturbations of a decoder in plain PyTorch: the passes that the scores need, and nothing else.

No tracer, no checks, no names: hooks on the embedding and on the unembedding. The algorithms are whence's (one pass for
all steps, products in batches), so what whence takes beyond these is its own overhead. Axes are [row, position, unit];
steps and features count in the order of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.attention
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import forward_ad

Score = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Bare:
    """A decoder with one text.

    Attributes:
        model: The transformers model.
        ids: What it reads: the text without its last token.
        targets: The tokens that are explained.
        score: From the logits of every step and the targets to one number per step.
    """

    model: Any
    ids: Int[Tensor, " position"]
    targets: Int[Tensor, " step"]
    score: Score

    @property
    def steps(self) -> int:
        """How many tokens are explained: the last ones."""
        return len(self.targets)


def logit(logits: Float[Tensor, "row step vocab"], targets: Int[Tensor, " step"]) -> Float[Tensor, "row step"]:
    """The logit of every target."""
    return logits.gather(-1, targets.expand(len(logits), -1)[..., None]).squeeze(-1)


def logprob(logits: Float[Tensor, "row step vocab"], targets: Int[Tensor, " step"]) -> Float[Tensor, "row step"]:
    """The log-probability of every target."""
    return logit(logits, targets) - logits.logsumexp(-1)


def probability(logits: Float[Tensor, "row step vocab"], targets: Int[Tensor, " step"]) -> Float[Tensor, "row step"]:
    """The probability of every target."""
    return logprob(logits, targets).exp()


def forward(bare: Bare, rows: int, edit: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """One pass of so many rows of the text.

    Args:
        bare: The text.
        rows: How many.
        edit: What the embeddings are replaced by, or None.

    Returns:
        What enters the unembedding, and the target of every row and step.
    """
    model, seen = bare.model, {}
    inputs = {
        "input_ids": bare.ids.expand(rows, -1),
        "attention_mask": torch.ones_like(bare.ids).expand(rows, -1),
        "position_ids": torch.arange(len(bare.ids), device=bare.ids.device).expand(rows, -1),
    }
    hooks = [model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.update(hidden=given[0]))]
    if edit is not None:
        hooks.append(model.get_input_embeddings().register_forward_hook(lambda _, __, value: edit(value)))
    try:
        logits = model(**inputs, use_cache=False, logits_to_keep=bare.steps).logits
    finally:
        for hook in hooks:
            hook.remove()
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return seen["hidden"], bare.score(wide, bare.targets)


def embeddings(bare: Bare) -> Float[Tensor, "1 position unit"]:
    """The embeddings of the text."""
    with torch.no_grad():
        return bare.model.get_input_embeddings()(bare.ids)[None]


def clean(bare: Bare) -> Float[Tensor, "1 step"]:
    """The targets of the text as it is."""
    with torch.no_grad():
        return forward(bare, 1)[1]


def gradients(
    bare: Bare, points: Float[Tensor, "row position unit"], columns: Float[Tensor, "column step"], products: int
) -> Iterator[Float[Tensor, "column row position unit"]]:
    """Gradients of every column with respect to the embeddings, some columns at a time.

    Args:
        bare: The text.
        points: Where the embeddings are put.
        columns: Weight of every step in every column.
        products: Columns in a batch.

    Yields:
        The gradients of the next columns.
    """
    leaf = points.detach().requires_grad_(True)
    hidden, steps = forward(bare, len(leaf), lambda _: leaf)
    # Every step's logits come from one position, so one gradient of the sum holds the gradients of all.
    head = torch.autograd.grad(steps.sum(), hidden, retain_graph=True)[0]
    chunks = columns.to(head).split(products)
    for number, chunk in enumerate(chunks):
        cotangents = chunk[:, None, :, None] * head
        kept = number < len(chunks) - 1
        yield torch.autograd.grad(hidden, leaf, cotangents, is_grads_batched=True, retain_graph=kept)[0]


def single_steps(bare: Bare) -> Float[Tensor, "column step"]:
    """Columns that are the steps."""
    return torch.eye(bare.steps, device=bare.ids.device)


def whole_span(bare: Bare) -> Float[Tensor, "1 step"]:
    """The column that is the sum of all steps."""
    return torch.ones(1, bare.steps, device=bare.ids.device)


def saliency(bare: Bare, products: int, columns: Tensor) -> Float[np.ndarray, "column position"]:
    """The norm of every gradient."""
    found = gradients(bare, embeddings(bare), columns, products)
    return torch.cat([grad[:, 0].norm(dim=-1) for grad in found]).double().cpu().numpy()


def input_x_gradient(bare: Bare, products: int, columns: Tensor) -> Float[np.ndarray, "column position"]:
    """The product of every gradient with its embedding."""
    here = embeddings(bare)
    found = gradients(bare, here, columns, products)
    return torch.cat([(grad[:, 0] * here).sum(-1) for grad in found]).double().cpu().numpy()


def path_gradients(
    bare: Bare,
    low: Float[Tensor, " unit"],
    points: Sequence[float],
    weights: Sequence[float],
    *,
    rows: int,
    products: int,
    columns: Float[Tensor, "column step"],
) -> Float[np.ndarray, "column position"]:
    """Gradients along the straight way from a reference, times the way: integrated gradients, gradient SHAP.

    Args:
        bare: The text.
        low: The reference of every token.
        points: Where on the way, from 0 to 1.
        weights: Weight of each point.
        rows: Points per pass.
        products: Columns in a batch.
        columns: Weight of every step in every column.
    """
    here = embeddings(bare)
    move = here - low
    total = torch.zeros(len(columns), here.shape[1], device=here.device)
    share, weight = (torch.tensor(given, dtype=torch.float64).to(here) for given in (points, weights))
    for part in torch.arange(len(points), device=here.device).split(rows):
        stands, first = low + share[part, None, None] * move, 0
        for grad in gradients(bare, stands, columns, products):
            total[first : first + len(grad)] += torch.einsum("crpu,pu,r->cp", grad, move[0], weight[part])
            first += len(grad)
    return total.cpu().numpy()


def quadrature(count: int) -> tuple[list[float], list[float]]:
    """Gauss-Legendre points and weights on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(count)
    return ((points + 1) / 2).tolist(), (weights / 2).tolist()


def tangents(
    bare: Bare, stands: Float[Tensor, "row position unit"], moves: Float[Tensor, "row position unit"]
) -> Float[Tensor, "row step"]:
    """Derivatives of every step along a direction per row, in forward mode."""
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.no_grad(), forward_ad.dual_level(), plain:
        dual = forward_ad.make_dual(stands, moves)
        found = forward_ad.unpack_dual(forward(bare, len(stands), lambda _: dual)[1]).tangent
    assert found is not None, "the targets depend on the embeddings"
    return found


def path_tangents(
    bare: Bare,
    low: Float[Tensor, " unit"],
    points: Sequence[float],
    weights: Sequence[float],
    *,
    rows: int,
    features: Bool[Tensor, "feature position"],
) -> Float[np.ndarray, "step feature"]:
    """The same as `path_gradients`, with one row per feature in place of one product per step."""
    here, count = embeddings(bare), len(features)
    # What belongs to no feature stays as it is.
    move = (here - low) * features.any(0)[:, None]
    total = torch.zeros(count, bare.steps, device=here.device, dtype=torch.float64)
    share, weight = (torch.tensor(given, dtype=torch.float64).to(here) for given in (points, weights))
    for part in torch.arange(count * len(points), device=here.device).split(rows):
        point, feature = part // count, part % count
        stands = here - (1 - share[point, None, None]) * move
        found = tangents(bare, stands, features[feature][..., None] * move)
        total.index_add_(0, feature, (found * weight[point, None]).double())
    return total.T.cpu().numpy()


def removed(
    bare: Bare, low: Float[Tensor, " unit"], masks: Bool[Tensor, "row position"], rows: int
) -> Float[Tensor, "row step"]:
    """Targets of rows with some positions at the reference.

    Args:
        bare: The text.
        low: The reference.
        masks: The positions of each row that are replaced.
        rows: Rows per pass.
    """
    found = []
    with torch.no_grad():
        for part in masks.split(rows):
            edit = replacing(part, low)
            found.append(forward(bare, len(part), edit)[1])
    return torch.cat(found)


def replacing(masks: Bool[Tensor, "row position"], low: Float[Tensor, " unit"]) -> Callable[[Tensor], Tensor]:
    """An edit that puts the reference at the masked positions."""
    return lambda value: torch.where(masks[..., None], low.to(value), value)


def occlusion(bare: Bare, low: Float[Tensor, " unit"], rows: int) -> Float[np.ndarray, "step position"]:
    """What every step loses with one token at the reference; the first row removes nothing."""
    count = len(bare.ids)
    masks = torch.cat([torch.zeros(1, count), torch.eye(count)]).bool().to(bare.ids.device)
    values = removed(bare, low, masks, rows).double()
    return (values[0] - values[1:]).T.cpu().numpy()


def lime(
    bare: Bare, low: Float[Tensor, " unit"], kept: Bool[np.ndarray, "row position"], rows: int, *, width: float
) -> Float[np.ndarray, "step position"]:
    """A ridge regression of every step on the tokens that it can see (penalty 1).

    Args:
        bare: The text.
        low: The reference.
        kept: The tokens that each row keeps.
        rows: Rows per pass.
        width: Width of the kernel.
    """
    masks = torch.from_numpy(~kept).to(bare.ids.device)
    values = removed(bare, low, masks, rows).double().cpu().numpy()
    first = len(bare.ids) - bare.steps
    scores = np.zeros((bare.steps, len(bare.ids)))
    for step in range(bare.steps):
        seen = first + step + 1
        x = kept[:, :seen].astype(float)
        weight = np.exp(-((1 - np.sqrt(x.mean(1))) ** 2) / (2 * width**2))
        share = weight / weight.sum()
        inside, off = x - share @ x, values[:, step] - share @ values[:, step]
        gram = inside.T @ (weight[:, None] * inside) + np.eye(seen)
        scores[step, :seen] = np.linalg.solve(gram, inside.T @ (weight * off))
    return scores
