"""Set-up that every test shares: offline, one thread, quiet."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from hypothesis import HealthCheck, settings

# A busy machine is no failure.
settings.register_profile(
    "whence", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("whence")

# Many small models: threads would wait for each other, and sums would depend on their number.
torch.set_num_threads(1)
