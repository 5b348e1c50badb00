"""The result of an attribution: named-axis arrays, the tokens they belong to, aggregation, saving and loading."""

from whence.scores.aggregation import AGGREGATORS, aggregator
from whence.scores.aggregation.pipeline import Op, Pipeline, aggregate
from whence.scores.array import Axis, Scores
from whence.scores.attribution import Attribution, Check
from whence.scores.attributions import Attributions, load_attribution
from whence.scores.reducers import REDUCERS

__all__ = [
    "AGGREGATORS",
    "REDUCERS",
    "Attribution",
    "Attributions",
    "Axis",
    "Check",
    "Op",
    "Pipeline",
    "Scores",
    "aggregate",
    "aggregator",
    "load_attribution",
]
