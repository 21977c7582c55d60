import csv
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from compresslens.cli.report import main
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
    assert "has no reference" in (output / "index.html").read_text()


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
