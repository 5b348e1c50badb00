"""The rows of the table of step functions: what each is called, its unit, how spans merge."""

from __future__ import annotations

from whence.step_functions import StepFunction
from whence.step_functions.functions import entropy, logit, logprob, probability

LOGIT = StepFunction("logit", logit, unit="logits", additive=True)
PROBABILITY = StepFunction("probability", probability, unit="probability", additive=False)
LOGPROB = StepFunction("logprob", logprob, unit="nats", additive=True)
ENTROPY = StepFunction("entropy", entropy, unit="nats", additive=True)
