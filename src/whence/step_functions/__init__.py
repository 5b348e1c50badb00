"""Step functions turn the logits of every step into the number that is explained or reported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from whence.core.errors import InputError, unknown_name
from whence.core.registry import Registry

STEP_FUNCTIONS = Registry(
    "step function",
    "whence.step_functions",
    {
        "entropy": "whence.step_functions.table:ENTROPY",
        "logit": "whence.step_functions.table:LOGIT",
        "logprob": "whence.step_functions.table:LOGPROB",
        "probability": "whence.step_functions.table:PROBABILITY",
    },
)


@dataclass(frozen=True)
class StepFunction:
    """A row of the table of step functions.

    Attributes:
        name: The name that users type.
        fn: ``fn(inputs, **options)``, giving one number per row and step.
        unit: Unit of that number.
        additive: The value of a span of steps is the sum over its steps.
        differentiable: It may be the target of a gradient method.
        options: Options bound to this use of it.
        multipliers: ``multipliers(inputs, reference)``: exact multipliers of the logits between a run and its
            reference (see `whence.step_functions.multipliers`), where there is a closed form.
    """

    name: str
    fn: Callable[..., Any]
    unit: str
    additive: bool
    differentiable: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    multipliers: Callable[..., Any] | None = None

    def bind(self, options: Mapping[str, Any]) -> StepFunction:
        """The same step function with options set.

        Raises:
            UnknownNameError: It has no option of that name.
        """
        known = list(inspect.signature(self.fn).parameters)[1:]
        for name in options:
            if name not in known:
                raise unknown_name(f"option of step function {self.name!r}:", name, known or ["(none)"])
        return replace(self, options={**self.options, **options})


def resolve_step_function(target: str | StepFunction) -> StepFunction:
    """Find a step function by name, or take one as it is.

    Args:
        target: A registered name such as ``"probability"``, or a `StepFunction`.

    Returns:
        The row of the table.

    Raises:
        UnknownNameError: No step function has that name; the nearest names are listed.
        InputError: ``target`` is neither a name nor a `StepFunction`.
    """
    if isinstance(target, StepFunction):
        return target
    if not isinstance(target, str):
        raise InputError(f"a target is the name of a step function or a StepFunction, not {target!r}.")
    return STEP_FUNCTIONS[target]
