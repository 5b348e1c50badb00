"""The programs of the three questions run where whence is not installed, and give the same numbers."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import whence
from tiny_models import tiny_model
from whence.models.model import Model

PROMPT, CONTINUATION = [5, 6, 7], [8, 9]
CALLS = (
    {"method": "saliency", "layer": "all"},
    {"method": "integrated_gradients", "n_steps": 3, "layer": 0, "mode": "reverse"},
    {"method": "input_x_gradient", "mode": "forward", "segments": [[0, 1], [2]]},
    {"method": "integrated_gradients", "n_steps": 2, "baseline": 11, "target": "entropy"},
    {"method": "gradient_shap", "n_samples": 3, "stdev": 0.2, "baseline": [11, "mean"]},
    {"method": "discretized_integrated_gradients", "n_anchors": 3},
    {"method": "sequential_integrated_gradients", "exact": False, "n_steps": 2},
    {"method": "vargrad", "n_samples": 3, "layer": "all"},
    {"method": "jacobian_scope", "scope": "fisher", "rank": 2},
    {"method": "deeplift", "baseline": 11, "target": "entropy", "layer": 0, "mode": "reverse"},
    {"method": "deeplift", "baseline": 12, "target": "probability", "segments": [[0, 1], [2]]},
    {"method": "attention", "step_scores": ["probability"]},
    {"method": "attention_rollout", "step_scores": ["probability"]},
    {"method": "value_zeroing", "step_scores": ["probability"]},
    {"method": "reagent", "n_rounds": 8, "sampler": "lm"},
    {"method": "reagent", "estimator": "paper", "n_probes": 1, "max_rounds": 1, "keep_top_n": 1},
    {"method": "occlusion", "layer": 0, "baseline": 11},
    {"method": "loo_segments", "segments": [[0, 1], [2]]},
    {"method": "loo_segments", "segments": "token", "hierarchical": {"levels": [[[0, 1], [2]]], "keep": 1}},
    {"method": "flashtrace", "observe": (0, 2)},
    {"method": "occlusion", "removal": "knockout", "keep": [0]},
    {"method": "saliency", "target": "contrast_prob_diff", "contrast": [8, 11]},
    {"method": "saliency", "target": "jsd", "contrast": {"continuation": [8, 11], "evaluate": "own"}},
    {"method": "occlusion", "target": "kl_divergence", "contrast": {"source": [5, 9, 7]}},
    {"method": "occlusion", "target": "mc_dropout_prob_std", "rate": 0.2, "n_passes": 2, "removal": "delete"},
    {"method": "deeplift", "target": "contrast_prob_diff", "contrast": [8, 11], "baseline": 12},
)


def tensors(value):
    """Every tensor in a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_programs_survive_a_place_without_whence(family, tmp_path, monkeypatch):
    import nnsight
    from nnsight.intervention.serialization import dumps

    nnsight.register("whence")
    hf = tiny_model(family)
    hf.save_pretrained(tmp_path / "model")
    blobs, here = [], []
    run = Model.run

    def recorded(self, program, **data):
        result = run(self, program, **data)
        sent = dict(data)
        if "question" in sent:
            sent["question"] = {**sent["question"], "advance": None}
        if "advance" in sent:
            sent["advance"] = None
        blobs.append(dumps((program, sent)))
        here.append(result)
        return result

    monkeypatch.setattr(Model, "run", recorded)
    model = whence.load(hf)
    for options in CALLS:
        model.attribute(PROMPT, CONTINUATION, **options)
    (tmp_path / "blobs").write_bytes(pickle.dumps(blobs))
    script = Path(__file__).with_name("foreign_place.py")
    made = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "model"), str(tmp_path / "blobs"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    there = torch.load(tmp_path / "out", weights_only=False)
    assert len(there) == len(here) >= 2 * len(CALLS)
    for a, b in zip(here, there, strict=True):
        assert tensors(a), "a program returned no numbers"
        for x, y in zip(tensors(a), tensors(b), strict=True):
            torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-6)
