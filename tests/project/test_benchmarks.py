"""The benchmarks of speed: what they compare is the same, what they write is right, and all of them run."""

from __future__ import annotations

import importlib
import json
import threading
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

import whence
from benchmarks import limit, memory, options, peers, profile, report, startup, timing
from benchmarks.bench_models import load_model, make_model, make_text
from benchmarks.limit_rows import Setting, make_rows
from benchmarks.options import Case
from benchmarks.peer_rows import Row, captum_rows, inseq_rows

SOURCE, GENERATED, POINTS = 9, 18, 4
COMMANDS = ("limit", "memory", "peers", "profile", "scaling", "startup")
MACHINE = {
    "processor": "a machine",
    "threads": 2,
    "load": None,
    "dtype": "float32",
    "versions": {"whence": "1", "python": "3"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def setting_of(folder):
    made = {}

    def find(name):
        if name not in made:
            where = make_model(name, folder, quick=True)
            models = [load_model(where, device="cpu", dtype="float64", attention=a) for a in ("sdpa", "sdpa", "eager")]
            tokenizer = models[0][1]
            text = make_text(tokenizer, SOURCE, GENERATED)
            made[name] = Setting(
                whence.load(models[0][0], tokenizer=tokenizer), text, *(model for model, _ in models[1:])
            )
        return made[name]

    return find


# What is timed beside whence is the same.

CALLS = [
    (name, call) for name in ("gpt2", "llama", "t5") for call, row in make_rows(9, 4).items() if name in row.families
]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_scores_by_hand_are_those_of_whence(setting_of, name, call):
    setting, row = setting_of(name), make_rows(SOURCE, POINTS)[call]
    scores = setting.ask(row.options).scores.values
    # Other chunks than whence's: how rows are split changes nothing.
    hand = row.least(setting, 3)
    assert hand.shape[0] == scores.shape[0]
    assert np.abs(hand).max() > 1e-4
    assert limit.difference(scores, hand) < 1e-6
    row.checks(setting)


def test_every_score_by_hand_is_compared(setting_of):
    setting, row = setting_of("llama"), make_rows(SOURCE, POINTS)["saliency"]
    scores = setting.ask(row.options).scores.values
    for step in (0, GENERATED - 1):
        wrong = row.least(setting, 1)
        wrong[step, SOURCE - 1 + step] *= 1.5
        assert limit.difference(scores, wrong) > 1e-3


def test_scores_that_differ_are_not_timed(setting_of):
    row = make_rows(SOURCE, POINTS)["saliency"]
    other = make_rows(SOURCE, POINTS)["input_x_gradient"]
    given = limit.command().parse_args(["--repeats", "1"])
    with pytest.raises(RuntimeError, match="differ by"):
        limit.measure(
            setting_of("gpt2"), Case("gpt2", 9, 18), "saliency", type(row)(row.options, other.least, row.checks), given
        )


# Peers.


class Echo:
    """A peer that answers what whence does, and says how often it was asked."""

    def __init__(self, model, text, *, wrong=0.0):
        self.model, self.text, self.wrong, self.asked = model, text, wrong, []

    def run(self, row, steps, points):
        self.asked.append((row.method, steps, points))
        first = (len(self.text.generated) - steps) // 2
        out = self.model.attribute(
            list(self.text.source), list(self.text.generated), progress=False, **row.compared(points)
        )
        values = out.scores.values[first : first + steps].copy()
        values[:, 0] += self.wrong
        # Inseq's axis has the last token as well.
        return np.concatenate([values, np.full_like(values[:, :1], np.nan)], axis=1), first


class Broken:
    def run(self, row, steps, points):
        raise ValueError("it does not work\nat all")


PLAIN = Row({"method": "input_x_gradient"}, "input_x_gradient")


def pair_with(setting_of, peer):
    setting = setting_of("llama")
    return peers.Pair(peer(setting.model, setting.text), setting.model, setting.text)


def measured(pair, row=PLAIN, **changes):
    given = peers.command().parse_args(["--repeats", "2"])
    given.points = 6
    for name, value in changes.items():
        setattr(given, name, value)
    return peers.measure(pair, Case("llama", 9, 18), "inseq", "a row", row, given)


def test_a_peer_that_agrees_is_timed(setting_of):
    pair = pair_with(setting_of, Echo)
    line = measured(pair)
    assert line.difference == 0
    assert line.seconds > 0
    assert (line.steps, line.factor, line.note) == (GENERATED, 1.0, "")
    assert [steps for _, steps, _ in pair.peer.asked] == [1, 1, GENERATED, GENERATED]


def test_a_peer_that_differs_stops_the_run(setting_of):
    with pytest.raises(RuntimeError, match="the scores differ from inseq's"):
        measured(pair_with(setting_of, lambda *given: Echo(*given, wrong=0.1)))


def test_a_peer_that_fails_has_a_note_and_whence_has_a_time(setting_of):
    line = measured(pair_with(setting_of, lambda *_: Broken()))
    assert (line.seconds, line.note) == (None, "ValueError: it does not work")
    assert line.whence > 0
    table = peers.markdown([line], MACHINE, 2)
    assert "| llama 9+18: a row (inseq) | - |" in table
    assert "it does not work" in table


@pytest.mark.parametrize(
    ("one", "row", "asked"),
    [
        (0.1, PLAIN, (18, 60)),
        (2.0, PLAIN, (5, 60)),
        (100.0, PLAIN, (1, 60)),
        # With points, one step is tried with 3 of the 60.
        (0.05, Row({}, "m", points="n_steps"), (10, 60)),
        (1.0, Row({}, "m", points="n_steps"), (1, 30)),
        (50.0, Row({}, "m", points="n_steps"), (1, 3)),
        (50.0, Row({}, "m", whole=True), (18, 60)),
    ],
)
def test_a_slow_peer_is_asked_for_a_part(setting_of, monkeypatch, one, row, asked):
    monkeypatch.setattr(peers, "once", lambda call, device: one)
    assert peers.affordable(pair_with(setting_of, Echo), row, 60, 10.0, "cpu") == asked


def test_the_time_of_a_part_is_multiplied_and_marked(setting_of, monkeypatch):
    monkeypatch.setattr(peers, "affordable", lambda *_: (3, 2))
    row = Row({"method": "integrated_gradients", "baseline": "unk", "keep": "none"}, "m", points="n_steps")
    line = measured(pair_with(setting_of, Echo), row)
    assert line.factor == (GENERATED / 3) * (6 / 2)
    table = peers.markdown([line], MACHINE, 2)
    assert table.splitlines()[2].count("~") == 2
    assert "3 steps, 2 points" in table


def test_what_is_compared_with_peers_exists():
    for row in [*inseq_rows(16).values(), *captum_rows().values()]:
        method = whence.METHODS[row.options["method"]]
        known = set(method.__dataclass_fields__)
        assert {row.points} <= known | {""}
        assert set(row.same or {}) <= known


# Measuring.


def test_runs_take_turns_after_warming_up():
    order = []
    found = timing.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, "cpu")
    assert "".join(order) == "ab" + "abab"
    assert {name: len(one.seconds) for name, one in found.items()} == {"a": 2, "b": 2}


def test_the_median_of_runs():
    assert timing.Timing((3.0, 1.0, 2.0)).median == 2.0
    assert timing.Timing((4.0, 1.0)).median == 2.5


def test_the_peak_counts_what_is_given_back():
    size = 2**26
    found = timing.peak_bytes(lambda: torch.ones(size // 4).sum().item(), "cpu")
    assert 0.9 * size < found < 2 * size
    assert timing.peak_bytes(lambda: None, "cpu") < size / 4


def test_a_process_says_its_last_line_or_why_not():
    with pytest.raises(RuntimeError, match="No module named"):
        timing.in_a_process("benchmarks.nothing", [])


# The commands.


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(name, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    said = capsys.readouterr().out
    assert f"python -m benchmarks.{name} --" in said
    for option in ("--device", "--dtype", "--model", "--json", "--write", "--quick"):
        assert option in said


@pytest.mark.parametrize("name", ["limit", "peers", "scaling", "startup"])
def test_no_runs_are_refused(name, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    with pytest.raises(SystemExit):
        module.main(["--repeats", "0"])
    assert "at least 1" in capsys.readouterr().err


@pytest.fixture
def outputs(tmp_path):
    first, last = [tmp_path / one for one in ("figures.json", "page.md")]
    return first, last


def run(name, arguments, outputs, folder=None):
    figures, page = outputs
    page.write_text("\n".join(report.marks(name)) + "\n", encoding="utf-8")
    kept = [] if folder is None else ["--models", str(folder)]
    asked = ["--quick", "--json", str(figures), "--write", str(page), *kept, *arguments]
    importlib.import_module(f"benchmarks.{name}").main(asked)
    return json.loads(figures.read_text(encoding="utf-8")), page.read_text(encoding="utf-8")


def test_limit_runs(outputs, folder):
    asked = ["--model", "t5", "--repeats", "1", "--no-memory"]
    figures, page = run("limit", [*asked, "--methods", "saliency", "value_zeroing"], outputs, folder)
    # The rows of decoders are not asked of an encoder-decoder.
    (line,) = figures["lines"]
    assert (line["case"], line["row"]) == ("t5 8+20", "value_zeroing")
    assert min(line["whence"], line["checked"], line["least"]) > 0
    assert "| t5 8+20: value_zeroing |" in page


def test_profile_runs(outputs, folder):
    figures, page = run("profile", ["--model", "gpt2", "--methods", "saliency", "attention"], outputs, folder)
    assert [(line["row"], line["who"]) for line in figures["lines"]] == [
        ("saliency", "whence"),
        ("saliency", "least"),
        ("attention", "whence"),
        ("attention", "least"),
    ]
    for line in figures["lines"]:
        parts = [line[name] for name in ("products", "attention", "others")]
        # A model's passes are of all three kinds, but for eager attention, which is products and a softmax.
        assert (min(parts) > 0) == (line["row"] == "saliency" or line["who"] == "whence")
        assert sum(parts) < line["seconds"]
    assert "| gpt2 8+20: saliency (least) |" in page


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "products"),
        ("aten::bmm", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::tanh", "others"),
        ("aten::mean", "others"),
    ],
)
def test_what_an_operation_counts_as(operation, kind):
    assert profile.kind_of(operation) == kind


def test_operations_in_other_threads_are_seen():
    def call():
        worker = threading.Thread(target=lambda: torch.ones(64, 64) @ torch.ones(64, 64))
        worker.start()
        worker.join()

    seconds, kinds = profile.watched(call, "cpu")
    assert 0 < kinds["products"] < seconds


def test_scaling_runs(outputs, folder, tmp_path):
    asked = ["--axes", "source", "batch", "--methods", "occlusion", "--repeats", "1", "--no-memory"]
    figures, page = run("scaling", [*asked, "--plot", str(tmp_path / "plot.svg")], outputs, folder)
    assert [(point["axis"], point["value"]) for point in figures["points"]] == [
        ("source", 8),
        ("source", 16),
        ("batch", 1),
        ("batch", 2),
    ]
    assert len(figures["exponents"]) == 2
    assert "occlusion, source 8 to 16" in page
    ElementTree.parse(tmp_path / "plot.svg")


def test_peers_runs(outputs, folder, monkeypatch):
    def echo(peer, method, given, case, kept):
        plain, tokenizer, text = options.opened(given, case, kept)
        return Echo(whence.load(plain, tokenizer=tokenizer), text)

    monkeypatch.setattr(peers, "peer_of", echo)
    monkeypatch.setitem(peers.rows_of.__globals__, "inseq_rows", lambda source: {"saliency": PLAIN})
    asked = ["--model", "gpt2", "--peers", "inseq", "--repeats", "1", "--no-memory", "--methods", "saliency"]
    figures, page = run("peers", asked, outputs, folder)
    (line,) = figures["lines"]
    assert (line["peer"], line["difference"], line["note"]) == ("inseq", 0.0, "")
    assert "| gpt2 8+6: saliency (inseq) |" in page


def test_memory_runs(outputs, folder, monkeypatch):
    # Processes of their own would take most of a minute; what they are asked is answered here.
    def here(module, arguments):
        assert module == "benchmarks.memory"
        given = options.parsed(memory.command(), arguments)
        part, _, number = given.alone.partition(":")
        line = memory.measured(memory.calls_of(given)[part][int(number)], given, folder)
        return json.loads(json.dumps(line.__dict__))

    monkeypatch.setattr(memory, "in_a_process", here)
    figures, page = run("memory", ["--parts", "long"], outputs, folder)
    assert len(figures["long"]) == 3
    assert all(line["estimated"] > 0 for line in figures["long"])
    assert "| long 24+8: attention, last layer |" in page


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("limit", ["--model", "gpt2", "--methods", "occlusion", "--alone", "least"]),
        ("limit", ["--model", "gpt2", "--methods", "occlusion", "--alone", "whence"]),
        ("scaling", ["--alone", json.dumps({"method": "occlusion", "size": {"source": 8, "generated": 4}})]),
        ("memory", ["--alone", "estimate:3"]),
        (
            "peers",
            [
                "--model",
                "gpt2",
                "--methods",
                "saliency",
                "--alone",
                json.dumps({"tool": "whence", "steps": 1, "points": 1}),
            ],
        ),
    ],
)
def test_a_process_of_its_own_says_its_peak(name, asked, folder, capsys):
    importlib.import_module(f"benchmarks.{name}").main(["--quick", "--models", str(folder), *asked])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["peak"] >= 0


def test_startup_runs(outputs):
    figures, page = run("startup", [], outputs)
    assert [line["name"] for line in figures["lines"]] == ["python -c pass", "import whence", "whence --help"]
    assert "| `import whence` |" in page
    with pytest.raises(RuntimeError, match="nowhere"):
        startup.seconds_of(["-c", "raise SystemExit('nowhere')"])
