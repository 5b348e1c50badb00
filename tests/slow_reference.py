"""Independent slow implementations in plain PyTorch: one step at a time, on truncated copies, no tracer.

They share nothing with whence but the ids. Embeddings are replaced by forward hooks on the embedding
modules of the untraced model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


def embedding_modules(model: Any) -> list[torch.nn.Module]:
    """The modules whose outputs are the input embeddings: the encoder's and the decoder's."""
    if model.config.is_encoder_decoder:
        return [model.get_encoder().get_input_embeddings(), model.get_decoder().get_input_embeddings()]
    return [model.get_input_embeddings()]


@contextmanager
def outputs_replaced(replacements: Sequence[tuple[torch.nn.Module, Callable[[Tensor], Tensor]]]):
    """Plain forward hooks that replace what modules return."""

    def hook_of(fn: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (fn(output[0]), *output[1:])
            return fn(output)

        return hook

    with ExitStack() as stack:
        for module, fn in replacements:
            stack.callback(module.register_forward_hook(hook_of(fn)).remove)
        yield


def step_inputs(model: Any, prompt: list[int], continuation: list[int], step: int) -> dict[str, Tensor]:
    """What the model reads to predict one step, and nothing after it."""
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        return {
            "input_ids": torch.tensor([prompt]),
            "decoder_input_ids": torch.tensor([[start, *continuation[:step]]]),
        }
    return {"input_ids": torch.tensor([[*prompt, *continuation[:step]]])}


def target_value(name: str, logits: Tensor, token: int) -> Tensor:
    """The step function of the last position, written out."""
    logp = logits.log_softmax(-1)
    if name == "logit":
        return logits[token]
    if name == "logprob":
        return logp[token]
    if name == "probability":
        return logp[token].exp()
    return -(logp.exp() * logp).sum()


def clean_embeddings(model: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The embedding modules' outputs for these inputs."""
    seen: list[Tensor] = []
    modules = embedding_modules(model)

    def keep(value: Tensor) -> Tensor:
        seen.append(value.detach())
        return value

    with torch.no_grad(), outputs_replaced([(module, keep) for module in modules]):
        model(**inputs, use_cache=False)
    return seen


def gradients(
    model: Any, inputs: dict[str, Tensor], points: list[Tensor], target: str, token: int, place: int = -1
) -> tuple[list[Tensor], float]:
    """Gradient of one target at given embeddings, and the target's value, from the logits of one place."""
    leaves = [point.clone().requires_grad_(True) for point in points]
    modules = embedding_modules(model)
    swaps = [(module, lambda value, leaf=leaf: leaf) for module, leaf in zip(modules, leaves, strict=True)]
    with torch.enable_grad(), outputs_replaced(swaps):
        value = target_value(target, model(**inputs, use_cache=False).logits[0, place], token)
        grads = torch.autograd.grad(value, leaves)
    return [g[0] for g in grads], float(value.detach())


def attribution(
    model: Any,
    prompt: list[int],
    continuation: list[int],
    *,
    method: str,
    target: str,
    baselines: list[Tensor] | None = None,
    fixed: Callable[[int, int], bool] = lambda stream, place: False,
    n_steps: int = 50,
) -> tuple[Tensor, Tensor]:
    """Scores [step, token] with NaN where a step cannot look, and the difference to the baseline [step]."""
    streams = 2 if model.config.is_encoder_decoder else 1
    last = len(continuation)
    width = len(prompt) + last + (0 if streams == 2 else -1)
    scores = torch.full((last, width), float("nan"), dtype=torch.float64)
    differences = torch.zeros(last, dtype=torch.float64)
    for step, token in enumerate(continuation):
        inputs = step_inputs(model, prompt, continuation, step)
        clean = clean_embeddings(model, inputs)
        if method == "integrated_gradients":
            assert baselines is not None
            low = []
            for stream, value in enumerate(clean):
                rows = baselines[stream].expand_as(value).clone()
                for place in range(value.shape[1]):
                    if fixed(stream, place):
                        rows[:, place] = value[:, place]
                low.append(rows)
            # Gauss-Legendre nodes and weights, from the roots of the Legendre polynomial's companion matrix.
            nodes, weights = gauss_legendre(n_steps)
            parts = [torch.zeros(value.shape[1], dtype=torch.float64) for value in clean]
            for node, weight in zip(nodes, weights, strict=True):
                at = [b + node * (x - b) for x, b in zip(clean, low, strict=True)]
                grads, _ = gradients(model, inputs, at, target, token)
                for k, grad in enumerate(grads):
                    parts[k] += weight * (grad * (clean[k] - low[k])[0]).sum(-1)
            top = gradients(model, inputs, clean, target, token)[1]
            differences[step] = top - gradients(model, inputs, low, target, token)[1]
        else:
            grads, _ = gradients(model, inputs, clean, target, token)
            parts = [
                grad.norm(dim=-1) if method == "saliency" else (grad * value[0]).sum(-1)
                for grad, value in zip(grads, clean, strict=True)
            ]
        row = torch.cat(parts)
        scores[step, : len(row)] = row
    return scores, differences


def gauss_legendre(count: int) -> tuple[list[float], list[float]]:
    """Nodes and weights on [0, 1], by the eigenvalues of the Jacobi matrix (Golub and Welsch 1969)."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return ((values + 1) / 2).tolist(), (vectors[0] ** 2).tolist()


def whole_text_attribution(
    model: Any,
    prompt: list[int],
    continuation: list[int],
    *,
    method: str,
    target: str,
    baselines: list[Tensor] | None = None,
    n_steps: int = 50,
) -> Tensor:
    """The same scores with the whole text in every pass, one row a pass: some products depend on all tokens.

    The baseline stands at every position, none kept.
    """
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        ids = {
            "input_ids": torch.tensor([prompt]),
            "decoder_input_ids": torch.tensor([[start, *continuation[:-1]]]),
        }
        first, sources = 0, len(prompt)
    else:
        ids = {"input_ids": torch.tensor([[*prompt, *continuation[:-1]]])}
        first, sources = len(prompt) - 1, 0
    clean = clean_embeddings(model, ids)
    low = [torch.zeros_like(value) for value in clean]
    points, weights = [1.0], [1.0]
    if method == "integrated_gradients":
        assert baselines is not None
        low = [row.expand_as(value) for row, value in zip(baselines, clean, strict=True)]
        points, weights = gauss_legendre(n_steps)
    total = torch.zeros(len(continuation), sum(value.shape[1] for value in clean))
    for point, weight in zip(points, weights, strict=True):
        at = [b + point * (x - b) for x, b in zip(clean, low, strict=True)]
        for step, token in enumerate(continuation):
            grads, _ = gradients(model, ids, at, target, token, first + step)
            parts = [
                grad.norm(dim=-1) if method == "saliency" else (grad * (x - b)[0]).sum(-1)
                for grad, x, b in zip(grads, clean, low, strict=True)
            ]
            total[step] += weight * torch.cat(parts)
    # A step sees the source, and the text before it.
    place = torch.arange(total.shape[1])
    last = sources + first + torch.arange(len(continuation))[:, None]
    return torch.where(place <= last, total, torch.nan)
