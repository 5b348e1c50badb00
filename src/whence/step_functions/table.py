"""The rows of the table of step functions: what each is called, its unit, how spans merge."""

from __future__ import annotations

from whence.step_functions import StepFunction
from whence.step_functions.functions import entropy, logit, logprob, probability
from whence.step_functions.multipliers import logit_multipliers, logprob_multipliers, probability_multipliers

LOGIT = StepFunction("logit", logit, unit="logits", additive=True, multipliers=logit_multipliers)
PROBABILITY = StepFunction(
    "probability", probability, unit="probability", additive=False, multipliers=probability_multipliers
)
LOGPROB = StepFunction("logprob", logprob, unit="nats", additive=True, multipliers=logprob_multipliers)
ENTROPY = StepFunction("entropy", entropy, unit="nats", additive=True)
