"""Names of tensor dimensions, written once; signatures everywhere use these words.

``batch``    examples of a batch                 ``row``   one variant of an example, run as one batch row
``position`` places of one stream, padded         ``token`` the one token axis: all streams, one after another
``step``     explained tokens                     ``column`` what is asked for: a step, or a span of steps
``feature``  a token or a segment of tokens       ``unit``  components of a vector
``layer``, ``head``, ``vocab``                    as everywhere
"""

from __future__ import annotations

SCORE_AXES = ("step", "token", "layer", "head", "unit")
