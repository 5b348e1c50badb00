"""Step functions turn the logits of every step into the number that is explained or reported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from whence.core.errors import InputError, unknown_name
from whence.core.named import parse_named
from whence.core.registry import Registry
from whence.scores.merges import Merge, check_merge

STEP_FUNCTIONS = Registry(
    "step function",
    "whence.step_functions",
    {
        "contrast_logits": "whence.step_functions.table:CONTRAST_LOGITS",
        "contrast_logits_diff": "whence.step_functions.table:CONTRAST_LOGITS_DIFF",
        "contrast_prob": "whence.step_functions.table:CONTRAST_PROB",
        "contrast_prob_diff": "whence.step_functions.table:CONTRAST_PROB_DIFF",
        "crossentropy": "whence.step_functions.table:CROSSENTROPY",
        "entropy": "whence.step_functions.table:ENTROPY",
        "in_context_pvi": "whence.step_functions.table:IN_CONTEXT_PVI",
        "jsd": "whence.step_functions.table:JSD",
        "kl_divergence": "whence.step_functions.table:KL_DIVERGENCE",
        "log_odds": "whence.step_functions.table:LOG_ODDS",
        "logit": "whence.step_functions.table:LOGIT",
        "logprob": "whence.step_functions.table:LOGPROB",
        "margin": "whence.step_functions.table:MARGIN",
        "mc_dropout_prob_avg": "whence.step_functions.table:MC_DROPOUT_PROB_AVG",
        "mc_dropout_prob_std": "whence.step_functions.table:MC_DROPOUT_PROB_STD",
        "mc_dropout_zscore": "whence.step_functions.table:MC_DROPOUT_ZSCORE",
        "pcxmi": "whence.step_functions.table:PCXMI",
        "perplexity": "whence.step_functions.table:PERPLEXITY",
        "probability": "whence.step_functions.table:PROBABILITY",
        "rank": "whence.step_functions.table:RANK",
        "top_p_size": "whence.step_functions.table:TOP_P_SIZE",
    },
)
NEEDS = ("contrast", "noisy", "other run")


@dataclass(frozen=True)
class StepFunction:
    """A row of the table of step functions.

    Attributes:
        name: The name that users type.
        fn: ``fn(inputs, **options)``, giving one number per row and step.
        unit: Unit of that number.
        merge: How the numbers of several steps become that of their span (see `whence.scores.merges`). Only numbers
            that add up (``"sum"``) can be explained for a span.
        differentiable: It may be the target of a gradient method.
        needs: What it reads beside the logits and tokens of the run: ``"contrast"``, ``"noisy"`` (runs under dropout),
            and with ``"contrast"`` also ``"other run"`` where another token of the same run would tell nothing.
        only_contrast: It depends on the contrast alone, so there is nothing to explain where that is a constant.
        attributable: It may be a target at all.
        options: Options bound to this use of it.
        changes: Option -> fields of this row that are others where the option is set, such as the unit.
        multipliers: ``multipliers(inputs, reference)``: exact multipliers of the logits between a run and its
            reference (see `whence.step_functions.multipliers`), where there is a closed form.
        typed: How it was asked for, where that is more than the name.

    Raises:
        InputError: A need, or a merge rule, that does not exist.
    """

    name: str
    fn: Callable[..., Any]
    unit: str
    merge: Merge = "sum"
    differentiable: bool = True
    needs: frozenset[str] = frozenset()
    only_contrast: bool = False
    attributable: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    multipliers: Callable[..., Any] | None = None
    typed: str = ""

    def __post_init__(self) -> None:
        check_merge(self.merge)
        for need in self.needs:
            if need not in NEEDS:
                raise unknown_name("need of a step function", need, NEEDS)

    @property
    def additive(self) -> bool:
        """Whether the value of a span of steps is the sum over its steps."""
        return self.merge == "sum"

    @property
    def label(self) -> str:
        """What its values are called: the name with options as it was typed, else the name."""
        return self.typed or self.name

    @property
    def known_options(self) -> tuple[str, ...]:
        """Names of its options."""
        return tuple(inspect.signature(self.fn).parameters)[1:]

    def bind(self, options: Mapping[str, Any]) -> StepFunction:
        """The same step function with options set.

        Raises:
            UnknownNameError: It has no option of that name.
        """
        for name in options:
            if name not in self.known_options:
                raise unknown_name(f"option of step function {self.name!r}:", name, self.known_options or ["(none)"])
        changed: dict[str, Any] = {}
        for name, fields in self.changes.items():
            changed |= fields if options.get(name) else {}
        if options.get("base") is not None:
            changed["unit"] = "bits" if options["base"] == 2 else f"units of log base {options['base']}"
        return replace(self, options={**self.options, **options}, **changed)

    @property
    def default_options(self) -> dict[str, Any]:
        """Its options with the values that this use of it has."""
        parameters = list(inspect.signature(self.fn).parameters.values())[1:]
        return {one.name: self.options.get(one.name, one.default) for one in parameters}


def resolve_step_function(target: str | StepFunction | Callable[..., Any]) -> StepFunction:
    """Find a step function by name, or take one as it is.

    Args:
        target: A registered name such as ``"probability"``, a name with options such as
            ``"kl_divergence:top_k=10"``, a `StepFunction`, or a function of the logits (see
            `whence.step_functions.custom.step_function`), which is then tried out.

    Returns:
        The row of the table.

    Raises:
        UnknownNameError: No step function has that name; the nearest names are listed.
        InputError: ``target`` is none of these, or a function that is no step function.
    """
    if isinstance(target, StepFunction):
        return target
    if callable(target):
        from whence.step_functions.custom import step_function_of

        return step_function_of(target)
    if not isinstance(target, str):
        raise InputError(f"a target is a step function or the name of one, not {target!r}.")
    name, options = parse_named(target)
    found = STEP_FUNCTIONS[name]
    return replace(found.bind(options), typed=target) if options else found


def share_options(
    functions: Sequence[StepFunction], options: Mapping[str, Any]
) -> tuple[list[StepFunction], dict[str, Any]]:
    """Give options to every step function that knows them and has none of that name yet.

    Args:
        functions: The step functions.
        options: Options by name.

    Returns:
        The step functions with those options bound, and the options that none of them knows.
    """
    bound = []
    for one in functions:
        mine = [name for name in one.known_options if name in options and name not in one.options]
        bound.append(one.bind({name: options[name] for name in mine}))
    known = {name for one in functions for name in one.known_options}
    return bound, {name: value for name, value in options.items() if name not in known}
