"""The command line: every command on the bundled model, errors in one line, nothing heavy before it is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import whence
from whence.cli import app
from whence.cli.attribute import parse_steps
from whence.core.named import parse_named, parse_options

STORY = "Once upon a time"


def run(*arguments, text=None):
    return CliRunner().invoke(app, list(arguments), input=text)


def test_attribute_prints_a_table_of_the_bundled_model():
    result = run("attribute", STORY, "--max-new-tokens", "4", "--step-score", "probability")
    assert result.exit_code == 0, result.output
    for part in ("Once", "upon", "probability", "input_x_gradient", "whence/stories", "no-op ok"):
        assert part in result.output


def test_json_and_saved_file_hold_the_same_result(tmp_path):
    path = tmp_path / "out.json"
    result = run("attribute", STORY, "--max-new-tokens", "3", "--json", "--save", str(path), "--method",
                 "integrated_gradients:n_steps=4,rule=midpoint")  # fmt: skip
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    saved = whence.load_attribution(path)
    assert saved.info["method_options"]["n_steps"] == 4
    assert printed == json.loads(json.dumps(saved.to_dict()))


def test_quiet_prints_nothing_and_still_saves(tmp_path):
    path = tmp_path / "out.json"
    result = run("attribute", STORY, "--max-new-tokens", "2", "--quiet", "--save", str(path))
    assert result.exit_code == 0
    assert result.output == ""
    shown = run("show", str(path), "--width", "60")
    assert "Once" in shown.output
    assert max(len(line) for line in shown.output.splitlines()) <= 60


def test_options_reach_the_call():
    result = run("attribute", STORY, "--continuation", " there was a girl", "--layer", "1", "--segments", "word",
                 "--steps", "0:2", "--target", "logprob", "-o", "norm=l1", "--method", "saliency", "--dtype",
                 "float64", "--device", "cpu", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    info = made["info"]
    assert info["layer"] == 1
    assert info["segments"] == "word"
    assert info["target"] == "logprob"
    assert info["method_options"]["norm"] == "l1"
    assert info["dtype"] == "float64"
    assert len(made["steps"]) == 2


def test_several_texts_and_standard_input():
    result = run("attribute", STORY, STORY, "--max-new-tokens", "1", "--json")
    assert len(json.loads(result.stdout)) == 2
    piped = run("attribute", "-", "--max-new-tokens", "1", "--json", text=f"{STORY}\n\n{STORY} there\n")
    assert len(json.loads(piped.stdout)) == 2


def test_translation_model():
    result = run("attribute", "The manager said that she was tired.", "--model", "whence/en-it")
    assert result.exit_code == 0, result.output
    assert "source" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attribute", STORY, "--method", "salience"], "Did you mean 'saliency'"),
        (["attribute", STORY, "--model", "whence/storys"], "whence/stories"),
        (["attribute", STORY, "--model", "./nowhere"], "no such folder"),
        (["attribute", "  "], "prompt is empty"),
        (["attribute", STORY, "-o", "norm"], "name=value"),
        (["attribute", STORY, "--target", "logits"], "Did you mean 'logit'"),
        (["attribute", STORY, "--dtype", "float31"], "unknown dtype"),
        (["show", "nowhere.json"], "nowhere.json"),
        (["methods", "salience"], "Did you mean 'saliency'"),
    ],
)
def test_errors_are_one_line_with_the_way_out(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["attribute", STORY, "--steps", "first"],
        ["attribute", STORY, "--continuation", " x", "--max-new-tokens", "3"],
        ["attribute", STORY, "--method", "saliency:norm=l1", "-o", "norm=l2"],
        ["attribute"],
        ["attribute", STORY, "--align", "auto"],
        ["attribute", STORY, "Second", "--contrast", " one"],
    ],
)
def test_wrong_use_is_status_2(arguments):
    assert run(*arguments).exit_code == 2


def test_methods_lists_the_registry_and_describes_one():
    listed = run("methods").output
    for name, method in whence.METHODS.items():
        assert name in listed
        assert method.title in listed
        assert method.cost in listed
    about = run("methods", "integrated_gradients").output
    for part in ("n_steps=50", "Sundararajan", "cost:", "places:", "layer=:"):
        assert part in about


def test_models_lists_bundled_models_and_families():
    output = run("models").output
    for part in ("whence/stories", "whence/en-it", "gpt2", "gemma3", "m2m_100"):
        assert part in output


def test_help_has_examples():
    output = run("attribute", "--help").output
    assert 'whence attribute "Once upon a time"' in output
    assert "--method integrated_gradients" in output


def test_version():
    assert run("--version").output.strip() == f"whence {whence.__version__}"


def test_help_loads_nothing_heavy_and_module_runs():
    code = (
        "import sys; from typer.testing import CliRunner; from whence.cli import app;"
        "CliRunner().invoke(app, ['attribute', '--help']);"
        "print([m for m in ('torch', 'transformers', 'nnsight', 'numpy') if m in sys.modules])"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
    listed = subprocess.run([sys.executable, "-m", "whence", "methods"], capture_output=True, text=True, check=True)
    assert "saliency" in listed.stdout


def test_parsing_of_options():
    assert parse_options(["n_steps=4", "rule=left", "units=true"]) == {"n_steps": 4, "rule": "left", "units": True}
    assert parse_named("saliency") == ("saliency", {})
    assert parse_named("a:b=1,c=x") == ("a", {"b": 1, "c": "x"})
    assert parse_steps("3") == 3
    assert parse_steps("1:") == slice(1, None)
    assert parse_steps("prompt") == "prompt"
    with pytest.raises(whence.InputError, match="twice"):
        parse_options(["a=1", "a=2"])


def test_contrasts_reach_the_call():
    given = ("attribute", STORY, "--continuation", " there lived a king", "--json", "--target")
    result = run(*given, "contrast_prob_diff", "--contrast", " there lived a queen")
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["info"]["contrast"]["evaluate"] == "main"
    expected = whence.load("whence/stories").attribute(
        STORY, " there lived a king", target="contrast_prob_diff", contrast=" there lived a queen"
    )
    assert made["scores"] == json.loads(json.dumps(expected.to_dict()))["scores"]
    result = run(*given, "kl_divergence:top_k=9", "--contrast-source", "Once upon a day", "--step-score", "pcxmi")
    assert result.exit_code == 0, result.output
    info = json.loads(result.stdout)["info"]
    assert info["contrast"]["source"].endswith("Once upon a day")
    assert info["target_options"] == {"top_k": 9}
    pairs = ["--contrast", " there a queen", "--align", "[[0, 0], [3, 2]]", "--evaluate", "own"]
    info = json.loads(run(*given, "contrast_prob_diff", *pairs).stdout)["info"]
    assert info["contrast"]["evaluate"] == "own"
    assert info["contrast"]["foils"][0] == " there"


def test_step_functions_are_listed_and_described():
    listed = run("step-functions").output
    for name in whence.STEP_FUNCTIONS:
        assert name in listed
    assert "Kullback-Leibler" in run("step-functions", "kl_divergence").output
    missing = run("step-functions", "kl_divergance")
    assert missing.exit_code == 1
    assert "Did you mean 'kl_divergence'" in missing.output


PLUGIN = """
import whence


@whence.step_function(unit="logits", merge="sum")
def runner_up(inputs, place=1):
    'The logit of a less probable token.'
    return inputs.logits.topk(place + 1, dim=-1).values[..., place]
"""
BROKEN_PLUGIN = """
import whence


@whence.step_function()
def half(inputs):
    return inputs.logits
"""


def test_plugins_bring_step_functions(tmp_path):
    """In processes of their own: what is registered stays registered."""
    file = tmp_path / "my_functions.py"
    file.write_text(PLUGIN, encoding="utf-8")

    def call(*arguments):
        command = [sys.executable, "-m", "whence", *arguments, "--plugin", str(file)]
        return subprocess.run(command, capture_output=True, text=True)

    made = call("attribute", STORY, "--max-new-tokens", "2", "--target", "runner_up", "-o", "place=3", "--json",
                "--step-score", "runner_up")  # fmt: skip
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["info"]["target_options"] == {"place": 3}
    assert len(found["step_scores"]["runner_up"]) == 2
    assert "The logit of a less probable token." in call("step-functions", "runner_up").stdout
    file.write_text(BROKEN_PLUGIN, encoding="utf-8")
    broken = call("step-functions")
    assert broken.returncode == 1
    assert "'half' returned a tensor of shape (2, 3, 7)" in broken.stderr
    assert "Traceback" not in broken.stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, "no file"),
        ("two words.py", "", "no Python file"),
        ("json.py", "", "loaded already"),
        ("failing.py", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_says_why(tmp_path, name, text, message):
    file = tmp_path / name
    if text is not None:
        file.write_text(text, encoding="utf-8")
    result = run("step-functions", "--plugin", str(file))
    assert result.exit_code == 1
    assert message in result.output


def test_a_model_elsewhere_by_the_command_line(tmp_path, monkeypatch):
    """`serve-model` in one process, `attribute --remote` in another; both as people start them."""
    import re

    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    command = [sys.executable, "-m", "whence", "serve-model", "whence/stories", "--port", "0"]
    # As many threads as here: sums in another order round otherwise.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **threads}
    ) as server:
        try:
            address = None
            while address is None:
                line = server.stdout.readline()
                assert line, "the server did not start"
                address = re.search(r"^Serving whence/stories on (http://\S+)", line)
            there = run("attribute", STORY, "--max-new-tokens", "3", "--remote", address[1], "--json")
            assert there.exit_code == 0, there.output
        finally:
            server.terminate()
    here = run("attribute", STORY, "--max-new-tokens", "3", "--json")
    a, b = (json.loads(one.stdout) for one in (there, here))
    assert a["info"]["place"] == "ndif"
    assert a["scores"] == b["scores"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("whence/stories", "--host", "0.0.0.0"), "give keys"),
        (("whence/stories", "--keys", "MISSING"), "MISSING"),
        (("whence/storys",), "Did you mean"),
        (("./nowhere",), "no such folder"),
        (("whence/stories", "--port", "many"), "valid integer"),
    ],
)
def test_a_server_that_may_not_start_says_why(arguments, message, monkeypatch):
    result = run("serve-model", *arguments)
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output


def test_aggregate_changes_what_is_shown_and_not_what_is_saved(tmp_path):
    path = tmp_path / "out.json"
    result = run("attribute", STORY, "--max-new-tokens", "3", "--method", "attention", "--save", str(path),
                 "--aggregate", "layer:1,head:max", "--aggregate", "words|normalize")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "aggregated: layer:1, head:max, words, normalize" in result.output
    raw = whence.load_attribution(path)
    assert raw.scores.names == ("step", "token", "layer", "head")
    assert "ops" not in raw.info
    shown = run("show", str(path), "--aggregate", "layer:mean,head:mean,topk:1")
    assert "aggregated: layer:mean, head:mean, topk:1" in shown.output
    printed = run("attribute", STORY, "--max-new-tokens", "3", "--method", "attention", "--json",
                  "--aggregate", "layer:1,head:max")  # fmt: skip
    assert list(json.loads(printed.stdout)["axes"]) == ["step", "token"]


def test_show_prints_all_results_of_a_file(tmp_path):
    path = tmp_path / "two.json"
    run("attribute", STORY, STORY, "--max-new-tokens", "1", "--quiet", "--save", str(path))
    shown = run("show", str(path))
    assert shown.exit_code == 0, shown.output
    assert "2 of 2" in shown.output


def test_a_wrong_operator_is_found_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(whence, "load", lambda *args, **options: pytest.fail("loaded"))
    result = run("attribute", STORY, "--aggregate", "wrods")
    assert result.exit_code == 1
    assert "Did you mean 'words'" in result.output
