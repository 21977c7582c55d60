import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from compresslens.cli.report import main
from compresslens.reporting.report_figures import pareto_front
from compresslens.reporting.report_parts import beside_references, references
from compresslens.study.columns import hurt, of_one_seed, per_class
from compresslens.study.models import Model, models_of
from compresslens.study.reading import find_runs, load
from tests.study.study_runs import write_run

HOSTILE = '</script><script>alert("x")</script>'


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def run_report(tmp_path, *names, **options):
    output = tmp_path / "report"
    arguments = [*names, "--runs_dir", str(tmp_path), "--output", str(output)]
    return main([*arguments, *(part for key, value in options.items() for part in (f"--{key}", str(value)))]), output


def add_pictures(folder):
    (folder / "figures").mkdir()
    rng = np.random.default_rng(0)
    arrays = {
        "index": np.arange(3),
        "label": np.array([0, 1, 2]),
        "image": rng.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8),
        "map": rng.integers(0, 255, (3, 8, 8), dtype=np.uint8),
        "predicted": np.array([0, 1, 1]),
        "class_names": np.array([HOSTILE, "b", "c", "d"]),
    }
    theirs = {"reference_map": arrays["map"], "reference_predicted": arrays["predicted"]}
    np.savez(folder / "figures" / "cam_examples.npz", **arrays, **theirs)
    thumbnails = rng.integers(0, 255, (120, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "figures" / "thumbnails.npz", index=np.arange(120), thumbnail=thumbnails)


def test_everything_is_written_and_the_page_needs_no_network(tmp_path, capsys):
    add_pictures(write_run(tmp_path, "prune", accuracy=0.1))
    write_run(tmp_path, "qat", distance=0.5)
    status, output = run_report(tmp_path, "prune", "qat", title=HOSTILE)
    assert status == 0
    page = Page()
    text = (output / "index.html").read_text()
    page.feed(text)
    assert page.tags.count("script") == 1, "the page's own"
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert page.tags.count("img") >= 5
    said = "".join(page.text)
    assert HOSTILE in said
    assert "easier" in said
    assert "Images that compression lost" in said
    content = json.loads((output / "report.json").read_text())
    assert [model["name"] for model in content["models"]] == ["prune", "qat"]
    rows = list(csv.DictReader((output / "report.csv").read_text().splitlines()))
    assert {row["model"] for row in rows} == {"prune", "qat"}
    accuracy = next(row for row in rows if (row["model"], row["metric"]) == ("prune", "accuracy/top1"))
    assert float(accuracy["change"]) == pytest.approx(-0.1)
    card = (output / "prune.md").read_text()
    assert card.startswith("# prune\n")
    assert "| accuracy/top1 |" in card
    assert "as hard to fool: easier" in capsys.readouterr().out


def test_a_run_without_pictures_or_reference_still_has_a_page(tmp_path):
    write_run(tmp_path, "teacher", reference=False)
    status, output = run_report(tmp_path, "teacher")
    assert status == 0
    assert "without a reference" in (output / "index.html").read_text()


@pytest.mark.parametrize(("names", "words"), [(["gone"], "no run 'gone'"), (["prune", "half"], "half")])
def test_errors_are_one_line(tmp_path, capsys, names, words):
    write_run(tmp_path, "prune")
    write_run(tmp_path, "half", finished=False)
    status, output = run_report(tmp_path, *names)
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not output.exists()


def test_thresholds_are_parameters_and_on_the_page(tmp_path):
    write_run(tmp_path, "prune", energy=-0.1)
    _, output = run_report(tmp_path, "prune", localization=0.4)
    assert json.loads((output / "report.json").read_text())["models"][0]["looks_at_the_right_thing"]["answer"] == "yes"
    assert "40 %" in (output / "index.html").read_text()
    assert run_report(tmp_path, "prune", localization=2)[0] == 2


def test_pictures_are_of_a_seed_that_all_models_have(tmp_path):
    """Another seed has other images; index 3 of one is not index 3 of the other."""
    for name, seeds in (("prune", (0, 1)), ("qat", (1, 2))):
        for seed in seeds:
            write_run(tmp_path, name, seed=seed, stamp=f"2026010{seed}-000000")
    models = models_of(find_runs(["prune", "qat"], tmp_path)[0])
    assert [[run.seed for run in model.runs] for model in of_one_seed(models)] == [[1], [1]]
    write_run(tmp_path, "low_rank", seed=3)
    assert of_one_seed(models_of(find_runs(["prune", "low_rank"], tmp_path)[0])) == []
    status, output = run_report(tmp_path, "prune", "low_rank")
    assert status == 0
    assert "share no seed" in (output / "index.html").read_text()


def test_each_reference_stands_in_front_of_those_that_came_from_it():
    whats = {
        "distill": ("teacher", "a"),
        "prune": ("plain", "b"),
        "qat": ("plain", "c"),
        "other": (None, "d"),
        "teacher": (None, "teacher"),
    }

    def read(model, prefix):
        what = whats[model.name][0 if prefix else 1]
        return None if what is None else {"what": np.array([what])}

    found = beside_references([Model(name, []) for name in whats], read)
    assert list(found) == [
        "teacher (reference)",
        "distill",
        "reference of prune and others",
        "prune",
        "qat",
        "other",
    ]
    assert found["reference of prune and others"]["what"] == ["plain"]


def test_more_pictures_than_classes(tmp_path):
    folder = write_run(tmp_path, "prune")
    add_pictures(folder)
    path = folder / "figures" / "cam_examples.npz"
    arrays = load(folder).arrays("cam_examples")
    arrays["class_names"] = np.array(["a", "b", "c", "d"])
    for name in ("index", "label", "image", "map", "predicted", "reference_map", "reference_predicted"):
        arrays[name] = np.concatenate([arrays[name]] * 2)
    arrays["index"] = np.arange(6)
    np.savez(path, **arrays)
    assert run_report(tmp_path, "prune")[0] == 0


def test_a_report_does_without_lightning():
    """Its import would take longer than most reports."""
    modules = "compresslens.reporting.report_page, compresslens.reporting.model_card, compresslens.study.summary"
    script = f"import sys, {modules}; print('pytorch_lightning' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_calibration_cost_and_checks_are_on_the_page(tmp_path):
    write_run(tmp_path, "sure", overconfidence=0.04, cost=1.25)
    write_run(tmp_path, "masked", masking=1)
    status, output = run_report(tmp_path, "sure", "masked")
    assert status == 0
    page = Page()
    page.feed((output / "index.html").read_text())
    said = " ".join("".join(page.text).split())
    (cost,) = json.loads((output / "report.json").read_text())["costs"]
    assert cost["evaluations_ratio"] == pytest.approx(1.25, rel=0.01)
    assert (cost["name"], cost["seconds_ratio"]) == ("sure", None)
    assert cost["seconds_ratio_without_networks"] == pytest.approx(1.25)
    assert f"× {cost['evaluations_ratio']:.3f}" in said
    assert "Square is not stronger" in said
    assert "gradients are masked because <b>" in said
    assert "Not checked" not in said
    assert "+0.0400" in said  # change of the Brier score
    content = json.loads((output / "report.json").read_text())
    sure = next(row for row in content["calibration"] if row["name"] == "sure")
    assert sure["overconfidence"] - sure["reference_overconfidence"] == pytest.approx(0.04)
    alts = re.findall(r'alt="([^"]*)"', (output / "index.html").read_text())
    assert "accuracy against confidence" in alts
    assert "attack success against distance" in alts


def test_names_that_mean_something_to_matplotlib(tmp_path):
    folder = write_run(tmp_path, "a$_{$b")
    add_pictures(folder)
    path, arrays = folder / "figures" / "cam_examples.npz", load(folder).arrays("cam_examples")
    np.savez(path, **{**arrays, "class_names": np.array(["$5_$10", r"\$x", "_c", "$"])})
    write_run(tmp_path, "_x")
    assert run_report(tmp_path, "a$_{$b", "_x")[0] == 0


def test_the_front_is_what_nothing_beats():
    points = [(1.0, 0.5), (2.0, 0.4), (2.0, 0.9), (3.0, 0.9), (4.0, 0.95), (4.0, 0.91)]
    expected = [
        (cost, accuracy)
        for cost, accuracy in points
        if not any((c <= cost and a >= accuracy) and (c, a) != (cost, accuracy) for c, a in points)
    ]
    assert pareto_front(points) == expected == [(1.0, 0.5), (2.0, 0.9), (4.0, 0.95)]


def test_a_reference_that_every_run_has_timed_is_one_point(tmp_path):
    for name, milliseconds in (("prune", 4.0), ("qat", 5.0), ("low_rank", 9.0)):
        folder = write_run(tmp_path, name)
        results = json.loads((folder / "results.json").read_text())
        results["metrics"]["footprint/latency_ms"] = {"value": 1, "ci95": None, "n": 1, "reference": milliseconds}
        (folder / "results.json").write_text(json.dumps(results))
    models = models_of(find_runs(["prune", "qat", "low_rank"], tmp_path)[0])
    accuracy = models[0].reference("accuracy/top1")
    assert references(models, "footprint/latency_ms", 1.0) == [(5.0, accuracy)]


def test_who_was_hurt(tmp_path):
    """By hand: of 120 images the first 12 that the reference is right on are lost to both models, none to the third."""
    for name, accuracy in (("prune", 0.1), ("qat", 0.1), ("low_rank", 0.0)):
        write_run(tmp_path, name, accuracy=accuracy)
    models = models_of(find_runs(["prune", "qat", "low_rank"], tmp_path)[0])
    samples = models[0].runs[0].samples
    lost = samples.index[
        (samples["prediction"] != samples["label"]) & (samples["reference_prediction"] == samples["label"])
    ]
    found = hurt(models)
    assert found.index.tolist() == lost.tolist()
    assert (found["wrong"] == 2).all()
    assert (found["label"] == samples.loc[lost, "label"]).all()
    rows = {row["label"]: row for row in per_class(models[0])}
    for label, of_class in samples.groupby("label"):
        row = rows[label]
        assert row["model"] == pytest.approx((of_class["prediction"] == label).mean())
        assert row["reference"] == pytest.approx((of_class["reference_prediction"] == label).mean())
        assert row["p_adjusted"] >= row["p"]
    assert [row["change"] for row in per_class(models[0])] == sorted(row["change"] for row in rows.values())
