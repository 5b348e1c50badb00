"""Step functions of your own: one decorator, which tries the function before it is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from whence.core.errors import InputError
from whence.scores.merges import Merge
from whence.step_functions import STEP_FUNCTIONS, StepFunction

if TYPE_CHECKING:
    from whence.step_functions.inputs import StepInputs

Function = TypeVar("Function", bound=Callable[..., Any])

ROWS, STEPS, VOCABULARY, PASSES = 2, 3, 7, 3


def step_function(
    name: str | None = None,
    *,
    unit: str = "",
    merge: Merge = "mean",
    differentiable: bool = True,
    needs: Iterable[str] = (),
    overwrite: bool = False,
) -> Callable[[Function], Function]:
    """Register a function of the logits as a step function, under a name that works wherever built-in ones do.

    The function is called as ``fn(inputs, **options)`` with a `whence.step_functions.inputs.StepInputs`, and returns
    one number per row and step. It must be pure, treat rows and steps alike and apart, and have a default for every
    option; options become options of `attribute` and of the command line. To run with a model elsewhere it is sent by
    its source, so what it uses has to be torch, or imported by name inside of it.

    Args:
        name: The name; None takes the function's.
        unit: Unit of the number.
        merge: How the numbers of several steps become that of their span (see `whence.scores.merges`): ``"sum"`` if
            the number adds up over steps, which lets spans be explained.
        differentiable: It may be the target of a gradient method.
        needs: ``"contrast"`` if it reads ``inputs.contrast``, ``"noisy"`` if ``inputs.noisy``.
        overwrite: Replace a step function of the same name.

    Returns:
        A decorator that registers the function and returns it as it is.

    Raises:
        InputError: (by the decorator) The function does not return one finite number per row and step of random
            logits, mixes rows or steps, or has no gradient though it should; or the name is taken.
        UnknownNameError: A need or merge rule that does not exist.

    Example:
        ```python
        @whence.step_function(unit="logits", merge="sum")
        def lead(inputs, places=1):
            best = inputs.logits.topk(places + 1, dim=-1).values
            return best[..., 0] - best[..., places]
        ```
    """

    def register(fn: Function) -> Function:
        known = name if name is not None else getattr(fn, "__name__", "")
        made = StepFunction(known, fn, unit=unit, merge=merge, differentiable=differentiable, needs=frozenset(needs))
        check_step_function(made)
        STEP_FUNCTIONS.add(known, made, overwrite=overwrite)
        return fn

    return register


def step_function_of(fn: Callable[..., Any]) -> StepFunction:
    """A function that was not registered, for one use.

    Args:
        fn: The function, as for `step_function`.

    Returns:
        Its row: called as it is, explainable by gradients if it has one, averaged over spans.

    Raises:
        InputError: It is no step function.
    """
    import torch

    made = StepFunction(getattr(fn, "__name__", type(fn).__name__), fn, unit="", merge="mean", differentiable=False)
    check_step_function(made)
    with torch.enable_grad():
        return replace(made, differentiable=_flows(made))


def check_step_function(function: StepFunction) -> None:
    """Try a step function on random logits.

    Args:
        function: The step function, with the options bound that it is to be tried with.

    Raises:
        InputError: It is not one, and the message says what it returned.
    """
    import torch

    name = function.name
    for parameter in list(inspect.signature(function.fn).parameters.values())[1:]:
        if parameter.default is inspect.Parameter.empty and parameter.name not in function.options:
            raise InputError(f"step function {name!r}: its option {parameter.name!r} needs a default.")
    with torch.enable_grad():
        inputs, _ = _random_inputs()
        found = _called(function, inputs, (ROWS, STEPS))
        if not bool(torch.isfinite(found).all()):
            raise InputError(f"step function {name!r} returned NaN or infinity for ordinary logits.")
        for row in range(ROWS):
            for step in range(STEPS):
                alone = _called(function, _part(inputs, row, step), (1, 1))
                if not torch.allclose(alone.double(), found[row, step].double(), rtol=1e-5, atol=1e-6):
                    raise InputError(
                        f"step function {name!r} mixes rows or steps: alone, a step has another number "
                        "than among others. Reduce over the last axis (the vocabulary) only."
                    )
        if function.differentiable and not _flows(function):
            raise InputError(
                f"step function {name!r} has no gradient. Use torch operations that have one, or say "
                "differentiable=False."
            )


def _flows(function: StepFunction) -> bool:
    """Whether it has a gradient with respect to some of what it sees."""
    import torch

    inputs, leaves = _random_inputs()
    found = function.fn(inputs, **function.options)
    return found.requires_grad and any(
        grad is not None for grad in torch.autograd.grad(found.sum(), leaves, allow_unused=True)
    )


def _called(function: StepFunction, inputs: StepInputs, shape: tuple[int, int]) -> Any:
    import torch

    try:
        found = function.fn(inputs, **function.options)
    except Exception as error:
        raise InputError(f"step function {function.name!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(found, torch.Tensor) or tuple(found.shape) != shape:
        got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else repr(found)
        raise InputError(
            f"step function {function.name!r} returned {got:.200} for logits of shape {(*shape, VOCABULARY)}; "
            f"it has to return one number per row and step, {shape}."
        )
    return found


def _random_inputs() -> tuple[StepInputs, list[Any]]:
    import torch

    from whence.step_functions.inputs import ContrastInputs, StepInputs

    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, STEPS, VOCABULARY), (ROWS, STEPS, VOCABULARY), (PASSES, ROWS, STEPS, VOCABULARY)]
    main, other, noisy = (torch.randn(shape, generator=generator).requires_grad_(True) for shape in shapes)
    ids, foils = (torch.randint(VOCABULARY, (ROWS, STEPS), generator=generator) for _ in range(2))
    return StepInputs(main, ids, ContrastInputs(other, foils), noisy), [main, other, noisy]


def _part(inputs: StepInputs, row: int, step: int) -> StepInputs:
    from whence.step_functions.inputs import ContrastInputs, StepInputs

    rows, steps = slice(row, row + 1), slice(step, step + 1)
    contrast = ContrastInputs(inputs.contrast.logits[rows, steps], inputs.contrast.target_ids[rows, steps])
    return StepInputs(
        inputs.logits[rows, steps], inputs.target_ids[rows, steps], contrast, inputs.noisy[:, rows, steps]
    )
