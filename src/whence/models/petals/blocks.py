"""Blocks of a transformers model that are computed in a swarm, and differentiated there."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd import Function, forward_ad

from whence.core.errors import UnsupportedError
from whence.models.petals.swarm import Swarm

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class Padding:
    """Where the rows of the running pass begin.

    Servers know no attention mask, and count positions from zero. Padding on the left is undone before a
    request, by rolling each row to the left, and redone after it: exact, because a causal model never looks at
    what then trails. The hooks of `attach` tell each pass's offsets to the blocks.
    """

    def __init__(self) -> None:
        # Passes of several threads may be under way in one model.
        self._local = threading.local()

    @property
    def offsets(self) -> Int[Tensor, " row"] | None:
        """The first position of each row of this thread's pass; None where all are 0."""
        return getattr(self._local, "offsets", None)

    def attach(self, base: nn.Module) -> None:
        """Watch the arguments of a model's forward.

        Args:
            base: The transformers model without its head.
        """
        base.register_forward_pre_hook(self._before, with_kwargs=True)
        base.register_forward_hook(self._after, always_call=True)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        if kwargs.get("use_cache") or (past is not None and past.get_seq_length() > 0):
            raise UnsupportedError("a Petals swarm keeps no cache for this client; pass use_cache=False.")
        self._local.offsets = row_offsets(kwargs.get("attention_mask"), kwargs.get("position_ids"))

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._local.offsets = None


def row_offsets(mask: Tensor | None, positions: Tensor | None) -> Int[Tensor, " row"] | None:
    """Where each row begins.

    Args:
        mask: The attention mask, or None.
        positions: The position ids, or None.

    Returns:
        The first position of each row, or None where all begin at 0.

    Raises:
        UnsupportedError: The mask or the positions say what servers cannot be told.
    """
    offsets = None
    if mask is not None:
        if mask.ndim != 2:
            raise UnsupportedError("a Petals swarm takes no attention mask of one's own, only padding.")
        seen = mask.bool()
        first, count = seen.long().argmax(1), seen.sum(1)
        place = torch.arange(seen.shape[1], device=seen.device)
        whole = (place >= first[:, None]) & (place < (first + count)[:, None])
        if not bool((whole == seen).all()):
            raise UnsupportedError("a Petals swarm takes no attention mask with holes, only padding.")
        offsets = first if bool(first.any()) else None
    if positions is not None:
        start = 0 if offsets is None else offsets[:, None]
        place = torch.arange(positions.shape[-1], device=positions.device) - start
        wrong = (positions != place) & (place >= 0)
        if mask is not None:
            wrong = wrong & mask.bool()
        if bool(wrong.any()):
            raise UnsupportedError("a Petals swarm counts positions from 0; leave out position_ids of your own.")
    return offsets


def roll(
    rows: Float[Tensor, "row position unit"], offsets: Int[Tensor, " row"] | None
) -> Float[Tensor, "row position unit"]:
    """Each row moved to the left, around the end; a negative offset moves to the right."""
    if offsets is None:
        return rows
    place = torch.arange(rows.shape[1], device=rows.device) + offsets.to(rows.device)[:, None]
    return rows.gather(1, (place % rows.shape[1])[..., None].expand_as(rows))


class RemoteBlock(nn.Module):
    """Stands where a block of the model was: the residual stream in, the residual stream out.

    Args:
        swarm: Who computes it.
        block: Its number.
        padding: What knows where the rows begin.
        as_tuple: Whether this architecture's blocks return a tuple.
    """

    def __init__(self, swarm: Swarm, block: int, padding: Padding, *, as_tuple: bool) -> None:
        super().__init__()
        self.swarm = swarm
        self.block = block
        self.padding = padding
        self.as_tuple = as_tuple

    def forward(self, hidden_states: Float[Tensor, "row position unit"], *args: Any, **kwargs: Any) -> Any:
        """Run the block; arguments other than the residual stream are the same in every pass."""
        if forward_ad.unpack_dual(hidden_states).tangent is not None:
            raise NotImplementedError(
                "a Petals swarm gives no tangents (forward mode AD); its gradients are in reverse."
            )
        out = RemotePass.apply(hidden_states, self.swarm, self.block, self.padding.offsets)
        return (out, None) if self.as_tuple else out

    def extra_repr(self) -> str:
        """What torch prints of the module."""
        return f"block {self.block} of {self.swarm.prefix!r}"


class RemotePass(Function):
    """A block's forward pass in the swarm."""

    @staticmethod
    def forward(hidden: Tensor, swarm: Swarm, block: int, offsets: Tensor | None) -> Tensor:
        """Ask the swarm."""
        rolled = roll(hidden.detach(), offsets)
        out = swarm.forward(rolled.cpu(), block)
        return roll(out.to(hidden), None if offsets is None else -offsets)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Servers keep nothing between the passes, so the input is kept here."""
        hidden, ctx.swarm, ctx.block, ctx.offsets = inputs
        ctx.save_for_backward(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Ask for the gradient, of all columns at once where there are several."""
        (hidden,) = ctx.saved_tensors
        found = _columns_at_once(grads[0], hidden, ctx.swarm, ctx.block, ctx.offsets)
        return found, None, None, None


class RemoteGradient(Function):
    """The gradient of a block's input, from the swarm."""

    @staticmethod
    def forward(grad: Tensor, hidden: Tensor, swarm: Swarm, block: int, offsets: Tensor | None) -> Tensor:
        """Ask the swarm."""
        before = roll(hidden.detach(), offsets).cpu()
        found = swarm.backward(before, roll(grad.to(hidden), offsets).cpu(), block)
        return roll(found.to(grad), None if offsets is None else -offsets)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """There is nothing to keep."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Servers differentiate once."""
        raise UnsupportedError("a Petals swarm gives no second derivatives; leave out create_graph=True.")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int]:
        """Under ``torch.vmap`` the mapped axis joins the rows, so that it costs requests, not rounds."""
        count = info.batch_size
        grad, hidden = (
            one.expand(count, *one.shape) if axis is None else one.movedim(axis, 0)
            for one, axis in zip(args[:2], in_dims, strict=False)
        )
        return _fold(grad, hidden, *args[2:]), 0


def _fold(
    grad: Float[Tensor, "column row position unit"],
    hidden: Float[Tensor, "column row position unit"],
    swarm: Swarm,
    block: int,
    offsets: Int[Tensor, " row"] | None,
) -> Float[Tensor, "column row position unit"]:
    """Gradients for several columns, as one batch of rows."""
    columns = grad.shape[0]
    found = RemoteGradient.apply(
        grad.flatten(0, 1),
        hidden.flatten(0, 1),
        swarm,
        block,
        None if offsets is None else offsets.repeat(columns),
    )
    return found.unflatten(0, (columns, -1))


def _columns_at_once(grad: Tensor, hidden: Tensor, swarm: Swarm, block: int, offsets: Tensor | None) -> Tensor:
    """The gradient; under ``is_grads_batched`` of all columns in one batch of rows.

    There torch uses an older mechanism than ``torch.vmap``, which would run the rule of `RemoteGradient` column
    by column; so the mapped axis is taken off the tensor and put back, as torch itself does around the whole.
    """
    inner: Any = torch._C
    if not inner._functorch.is_legacy_batchedtensor(grad):
        return RemoteGradient.apply(grad, hidden, swarm, block, offsets)
    # Going in and out again tells how deep it is nested.
    level = inner._vmapmode_increment_nesting() - 1
    inner._vmapmode_decrement_nesting()
    apart: Tensor = inner._VariableFunctions._remove_batch_dim(grad, level, 1, 0)
    found = _fold(apart, hidden.expand(apart.shape), swarm, block, offsets)
    return inner._VariableFunctions._add_batch_dim(found, 0, level)
