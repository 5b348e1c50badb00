"""What several commands say of the same option."""

from __future__ import annotations

AGGREGATE = (
    "Operators before showing, in order: head:mean and layer:3 on axes, words, split, normalize, topk:5; see "
    "'Aggregation' in the documentation. Repeatable. A saved file keeps the raw scores."
)
PLUGIN = "Python file that registers step functions or aggregators of your own; repeatable."
