"""The result of an attribution: named-axis arrays, the tokens they belong to, saving and loading."""

from whence.scores.array import Axis, Scores
from whence.scores.attribution import Attribution, Attributions, Check, load_attribution
from whence.scores.reducers import REDUCERS

__all__ = [
    "REDUCERS",
    "Attribution",
    "Attributions",
    "Axis",
    "Check",
    "Scores",
    "load_attribution",
]
