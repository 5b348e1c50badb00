"""The rows of the table of step functions: what each is called, its unit, how spans merge, what it needs."""

from __future__ import annotations

from whence.step_functions import StepFunction
from whence.step_functions.contrasts import (
    contrast_logits,
    contrast_logits_diff,
    contrast_prob,
    contrast_prob_diff,
    in_context_pvi,
    jsd,
    kl_divergence,
    pcxmi,
)
from whence.step_functions.dropout import mc_dropout_prob_avg, mc_dropout_prob_std, mc_dropout_zscore
from whence.step_functions.functions import (
    crossentropy,
    entropy,
    log_odds,
    logit,
    logprob,
    margin,
    perplexity,
    probability,
    rank,
    top_p_size,
)
from whence.step_functions.multipliers import (
    logit_diff_multipliers,
    logit_multipliers,
    logprob_multipliers,
    probability_multipliers,
)

_PAIR = frozenset({"contrast"})
_TWO_RUNS = frozenset({"contrast", "other run"})
_NOISE = frozenset({"noisy"})
_IN_NATS = {"log": {"unit": "nats", "merge": "sum"}}

CONTRAST_LOGITS = StepFunction(
    "contrast_logits", contrast_logits, unit="logits", merge="sum", needs=_PAIR, only_contrast=True
)
CONTRAST_LOGITS_DIFF = StepFunction(
    "contrast_logits_diff",
    contrast_logits_diff,
    unit="logits",
    merge="sum",
    needs=_PAIR,
    multipliers=logit_diff_multipliers,
)
CONTRAST_PROB = StepFunction(
    "contrast_prob",
    contrast_prob,
    unit="probability",
    merge="prod",
    needs=_PAIR,
    only_contrast=True,
    changes=_IN_NATS,
)
CONTRAST_PROB_DIFF = StepFunction(
    "contrast_prob_diff",
    contrast_prob_diff,
    unit="probability",
    merge=("difference", "probability", "contrast_prob"),
    needs=_PAIR,
    changes=_IN_NATS,
)
CROSSENTROPY = StepFunction("crossentropy", crossentropy, unit="nats", merge="sum")
ENTROPY = StepFunction("entropy", entropy, unit="nats", merge="sum")
IN_CONTEXT_PVI = StepFunction("in_context_pvi", in_context_pvi, unit="nats", merge="sum", needs=_PAIR)
JSD = StepFunction(
    "jsd", jsd, unit="nats", merge="sum", needs=_TWO_RUNS, changes={"sqrt": {"unit": "sqrt(nats)", "merge": "mean"}}
)
KL_DIVERGENCE = StepFunction("kl_divergence", kl_divergence, unit="nats", merge="sum", needs=_TWO_RUNS)
LOGIT = StepFunction("logit", logit, unit="logits", merge="sum", multipliers=logit_multipliers)
LOGPROB = StepFunction("logprob", logprob, unit="nats", merge="sum", multipliers=logprob_multipliers)
LOG_ODDS = StepFunction("log_odds", log_odds, unit="nats", merge="log_odds")
MARGIN = StepFunction("margin", margin, unit="logits", merge="min")
MC_DROPOUT_PROB_AVG = StepFunction(
    "mc_dropout_prob_avg", mc_dropout_prob_avg, unit="probability", merge="prod", needs=_NOISE
)
MC_DROPOUT_PROB_STD = StepFunction(
    "mc_dropout_prob_std", mc_dropout_prob_std, unit="probability", merge="mean", needs=_NOISE
)
MC_DROPOUT_ZSCORE = StepFunction(
    "mc_dropout_zscore",
    mc_dropout_zscore,
    unit="standard deviations",
    merge="mean",
    needs=_NOISE,
    attributable=False,
)
PCXMI = StepFunction("pcxmi", pcxmi, unit="nats", merge="sum", needs=_PAIR)
PERPLEXITY = StepFunction("perplexity", perplexity, unit="tokens", merge="geometric")
PROBABILITY = StepFunction(
    "probability", probability, unit="probability", merge="prod", multipliers=probability_multipliers
)
RANK = StepFunction("rank", rank, unit="tokens", merge="max", differentiable=False)
TOP_P_SIZE = StepFunction("top_p_size", top_p_size, unit="tokens", merge="mean", differentiable=False)
