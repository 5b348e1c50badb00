"""DeepLIFT by hand in plain PyTorch: every torch function of the untraced model propagates multipliers backwards.

It knows nothing of architectures. The model runs on two rows, the input and its reference; a mode of torch's sees every
function that the model calls, and gives those that are not linear a backward pass of their own. Modules that are an
activation count as one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Under the name that the benchmarks know it by.
from tests.slow_reference import clean_embeddings, embedding_modules, outputs_replaced, target_value

ACTIVATIONS = ("transformers.activations", "torch.nn.modules.activation")


class Elementwise(torch.autograd.Function):
    """The rescale rule: the change of the output over the change of the input; the derivative where there is none."""

    @staticmethod
    def forward(ctx: Any, fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        # In float64, so that the difference of two close values is not mostly rounding.
        wide = x.detach().double()
        y = fn(wide)
        (a, b), (fa, fb) = wide.chunk(2), y.chunk(2)
        with torch.enable_grad():
            middle = ((a + b) / 2).requires_grad_(True)
            inner = torch.autograd.grad(fn(middle).sum(), middle)[0]
        close = (a - b).abs() < 1e-6
        ctx.slope = twice(torch.where(close, inner, (fa - fb) / torch.where(close, 1.0, a - b))).to(x)
        return y.to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, ctx.slope * grad


class Product(torch.autograd.Function):
    """Shapley's share of two factors: each moves beside the mean of the other."""

    @staticmethod
    def forward(ctx: Any, multiply: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        ctx.multiply, ctx.x, ctx.y = multiply, x.detach(), y.detach()
        return multiply(ctx.x, ctx.y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y = (twice(sum(part.chunk(2)) / 2).requires_grad_(True) for part in (ctx.x, ctx.y))
        with torch.enable_grad():
            return (None, *torch.autograd.grad(ctx.multiply(x, y), (x, y), grad))


class Softmax(torch.autograd.Function):
    """``diag(L) - L L' / sum(L)`` with the logarithmic mean of the probabilities of both rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        logs = x.detach().log_softmax(-1)
        a, b = logs.double().chunk(2)
        same = (a - b).abs() < 1e-9
        mean = torch.where(same, ((a + b) / 2).exp(), (a.exp() - b.exp()) / torch.where(same, 1.0, a - b))
        ctx.mean = twice(mean.nan_to_num(0.0))
        return logs.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        mean = ctx.mean.to(grad)
        return mean * (grad - (mean * grad).sum(-1, keepdim=True) / mean.sum(-1, keepdim=True))


def twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


def softmax(x: Tensor, dim: int, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    assert dim in (-1, x.dim() - 1)
    return Softmax.apply(x if dtype is None else x.to(dtype))  # pyright: ignore[reportReturnType]


def layer_norm(x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Tensor:
    """Written out: the scale is a function of the mean square, which is a product of the centred input with itself."""
    centred = x - x.mean(-1, keepdim=True)
    square = Product.apply(torch.mul, centred, centred).mean(-1, keepdim=True)
    y = Product.apply(torch.mul, centred, Elementwise.apply(torch.rsqrt, square + eps))
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def power(x: Tensor, exponent: float) -> Tensor:
    assert exponent == 2
    return Product.apply(torch.mul, x, x)  # pyright: ignore[reportReturnType]


def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, **kwargs: Any) -> Tensor:
    """Fused attention, written out."""
    k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], dim=1) for one in (k, v))
    scores = Product.apply(torch.matmul, q * (kwargs.get("scale") or q.shape[-1] ** -0.5), k.transpose(-1, -2))
    if kwargs.get("is_causal"):
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return Product.apply(torch.matmul, Softmax.apply(scores), v)  # pyright: ignore[reportReturnType]


PRODUCTS = {
    "mul": torch.mul,
    "__mul__": torch.mul,
    "__rmul__": torch.mul,
    "matmul": torch.matmul,
    "__matmul__": torch.matmul,
    "bmm": torch.matmul,
}
ELEMENTWISE = {"rsqrt": torch.rsqrt, "tanh": torch.tanh}
# Functions that are linear, or whose outcome is the same in both rows.
LINEAR = """
__add__ __format__ __get__ __getitem__ __iadd__ __len__ __neg__ __radd__ __rsub__ __sub__ add add_ addmm apply
broadcast_to cat chunk clone contiguous dim dropout expand flatten float is_floating_point linear masked_fill mean neg
numel ones_like permute repeat_interleave reshape scatter size split squeeze stack sub sum to transpose type type_as
unsqueeze view where
""".split()
# Linear in their first argument.
SCALED = "__itruediv__ __truediv__ div div_ mul mul_ __mul__ __rmul__ matmul __matmul__ bmm truediv".split()


class Multipliers(TorchFunctionMode):
    """Gives every function of a model its rule, and refuses those that it does not know."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        moving = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.requires_grad]
        if not moving or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if name in PRODUCTS and len(moving) == 2:
            return Product.apply(PRODUCTS[name], *args)
        if name == "baddbmm":
            products = Product.apply(torch.matmul, kwargs["batch1"], kwargs["batch2"])
            return args[0] * kwargs["beta"] + products * kwargs["alpha"]
        if name in ELEMENTWISE:
            return Elementwise.apply(ELEMENTWISE[name], args[0])
        if name == "softmax":
            return softmax(*args, **{key: value for key, value in kwargs.items() if key != "_stacklevel"})
        if name == "layer_norm":
            return layer_norm(*args, **{key: value for key, value in kwargs.items() if key != "shape"})
        if name == "scaled_dot_product_attention":
            return attention(*args, **kwargs)
        if name in ("pow", "__pow__", "square"):
            return power(args[0], args[1] if len(args) > 1 else 2)
        if name not in LINEAR and not (name in SCALED and len(moving) == 1):
            raise NotImplementedError(f"no rule for {name}")
        return func(*args, **kwargs)


@contextmanager
def one_function(module: Any):
    """An activation is one function, whatever it is written with."""
    forward, own = module.forward, "forward" in module.__dict__

    def plain(x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return forward(x)

    module.forward = lambda x: Elementwise.apply(plain, x)
    yield
    if own:
        module.forward = forward
    else:
        del module.__dict__["forward"]


def is_activation(module: Any) -> bool:
    return type(module).__module__ in ACTIVATIONS or "gelu" in type(module).__name__.lower()


def target_multipliers(name: str, high: Tensor, low: Tensor, token: int) -> Tensor:
    """Of one step's logits: they turn the change of the logits into the change of the target."""
    own = torch.zeros_like(high)
    own[token] = 1.0
    if name == "logit":
        return own
    a, b = high.log_softmax(-1), low.log_softmax(-1)
    same = (a - b).abs() < 1e-9
    mean = torch.where(same, a.exp(), (a.exp() - b.exp()) / torch.where(same, 1.0, a - b))
    share = own - mean / mean.sum()
    return share if name == "logprob" else mean[token] * share


def whole_text(model: Any, prompt: list[int], continuation: list[int]) -> dict[str, Tensor]:
    """What the model reads; the logits of the steps are the last."""
    if model.config.is_encoder_decoder:
        start = [model.config.decoder_start_token_id, *continuation[:-1]]
        return {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([start])}
    return {"input_ids": torch.tensor([[*prompt, *continuation[:-1]]])}


def both_ends(clean: Sequence[Tensor], baselines: Sequence[Tensor], keep_start: bool = True) -> list[Tensor]:
    """The embeddings of every stream and of its reference, as two rows; a decoder's start token may be kept."""
    pairs = []
    for stream, value in enumerate(clean):
        low = baselines[stream].to(value).expand_as(value).clone()
        if stream == 1 and keep_start:
            low[:, 0] = value[:, 0]
        pairs.append(torch.cat([value, low]))
    return pairs


def change(model: Any, prompt: list[int], continuation: list[int], target: str, baselines: Sequence[Tensor]) -> Tensor:
    """The target's change from the reference to the input at every step."""
    ids = whole_text(model, prompt, continuation)
    points = both_ends(clean_embeddings(model, ids), baselines)
    swaps = [(m, lambda value, at=at: at) for m, at in zip(embedding_modules(model), points, strict=True)]
    with torch.no_grad(), outputs_replaced(swaps):
        logits = model(**{name: twice(one) for name, one in ids.items()}, use_cache=False).logits.double()
    steps = logits[:, -len(continuation) :]
    values = [[target_value(target, z, y) for z, y in zip(row, continuation, strict=True)] for row in steps]
    return torch.stack(values[0]) - torch.stack(values[1])


def deeplift(
    model: Any,
    prompt: list[int],
    continuation: list[int],
    *,
    target: str,
    baselines: Sequence[Tensor],
    keep_start: bool = True,
) -> Tensor:
    """Scores [step, token] with NaN where a step cannot look."""
    ids = whole_text(model, prompt, continuation)
    clean = clean_embeddings(model, ids)
    leaves = [pair.requires_grad_(True) for pair in both_ends(clean, baselines, keep_start)]
    swaps = [(m, lambda value, leaf=leaf: leaf) for m, leaf in zip(embedding_modules(model), leaves, strict=True)]
    parameters = [one for one in model.parameters() if one.requires_grad]
    with ExitStack() as stack:
        for one in parameters:
            stack.callback(one.requires_grad_, True)
            one.requires_grad_(False)
        stack.enter_context(outputs_replaced(swaps))
        for module in model.modules():
            if is_activation(module):
                stack.enter_context(one_function(module))
        stack.enter_context(torch.enable_grad())
        with Multipliers():
            logits = model(**{name: twice(value) for name, value in ids.items()}, use_cache=False).logits
    total = torch.zeros(len(continuation), sum(value.shape[1] for value in clean), dtype=torch.float64)
    first = logits.shape[1] - len(continuation)
    for step, token in enumerate(continuation):
        seed = torch.zeros_like(logits)
        high, low = logits.detach()[:, first + step]
        seed[0, first + step] = target_multipliers(target, high.double(), low.double(), token).to(seed)
        grads = torch.autograd.grad(logits, leaves, seed, retain_graph=True)
        assert all(float(grad[1].abs().max()) == 0 for grad in grads), "something flowed to the reference"
        total[step] = torch.cat([(g[0] * (x[0] - x[1]).detach()).sum(-1) for g, x in zip(grads, leaves, strict=True)])
    sources = len(prompt) if model.config.is_encoder_decoder else 0
    place = torch.arange(total.shape[1])
    last = sources + first + torch.arange(len(continuation))[:, None]
    return torch.where(place <= last, total, torch.nan)
