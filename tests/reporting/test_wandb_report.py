import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import wandb
import wandb_workspaces.reports.v2 as wr
from markdown_it import MarkdownIt
from wandb.apis.public.service_api import ServiceApi

from compresslens.cli.report import main, to_wandb
from compresslens.errors import UserError
from compresslens.reporting.wandb_blocks import blocks
from compresslens.reporting.wandb_report import publish, read_specification
from compresslens.reporting.wandb_runs import wandb_run
from compresslens.reporting.wandb_spec import specification
from compresslens.study.reading import load
from tests.study.study_runs import write_run

KEY = "0123456789abcdef0123456789abcdef01234567"
LOGGER = {"class_path": "compresslens.reporting.OfflineFirstWandbLogger"}
HOSTILE = "<script>alert(1)<script> $x$ ~~y~~ &lt; a|b"


pytestmark = pytest.mark.usefixtures("isolated_wandb")


def add_wandb(folder: Path, identity: str, project: str | None = None) -> None:
    """As a run that has logged to W&B offline leaves it."""
    (folder / "wandb" / f"offline-run-20260101_000000-{identity}").mkdir(parents=True)
    (folder / "wandb" / "run_id.txt").write_text(identity)
    if project is not None:
        results = json.loads((folder / "results.json").read_text())
        results["config"]["trainer"] = {"logger": [{**LOGGER, "init_args": {"project": project}}]}
        (folder / "results.json").write_text(json.dumps(results))


def run_report(runs_dir: Path, *names: str) -> tuple[int, Path]:
    output = runs_dir / "report"
    return main([*names, "--runs_dir", str(runs_dir), "--output", str(output), "--wandb"]), output


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and their report: prune is less accurate, qat easier to fool and of another project, low_rank not logged."""
    folder = tmp_path_factory.mktemp("runs")
    add_wandb(write_run(folder, "prune", accuracy=0.1), "aaaa1111")
    add_wandb(write_run(folder, "qat", distance=0.5), "bbbb2222", project="other")
    write_run(folder, "low_rank")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_MODE", "offline")
        assert run_report(folder, "prune", "qat", "low_rank")[0] == 0
    return folder


@pytest.fixture
def saved(runs_dir: Path, tmp_path: Path) -> Path:
    """A report of its own, that a test can spoil."""
    shutil.copytree(runs_dir / "report", tmp_path / "report")
    return tmp_path / "report" / "wandb_report.json"


def spoil(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))


def tables(spec: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Rows by the heading over the table."""
    found, heading = {}, ""
    for block in spec["blocks"]:
        heading = block["text"] if block["kind"] == "heading" else heading
        if block["kind"] == "table":
            found[heading] = block["rows"]
    return found


# The specification ----------------------------------------------------------------------------------------------------


def test_the_specification_says_what_the_report_says(runs_dir: Path) -> None:
    spec = json.loads((runs_dir / "report" / "wandb_report.json").read_text())
    content = json.loads((runs_dir / "report" / "report.json").read_text())
    assert (spec["schema"], spec["project"]) == (1, "compresslens")
    assert [(run["model"], run["id"], run["project"]) for run in spec["runs"]] == [
        ("prune", "aaaa1111", "compresslens"),
        ("qat", "bbbb2222", "other"),
        ("low_rank", None, "compresslens"),
    ]
    headings = [block["text"] for block in spec["blocks"] if block["kind"] == "heading"]
    for before, after in zip(
        ["Verdicts", "Figures", "Accuracy against what it costs", "Who was hurt", "Run by run", "The paper's claims"],
        [
            "Figures",
            "Accuracy against what it costs",
            "Who was hurt",
            "Run by run",
            "The paper's claims",
            "The whole report",
        ],
        strict=True,
    ):
        assert headings.index(before) < headings.index(after)
    found = tables(spec)
    for row, model in zip(found["Verdicts"], content["models"], strict=True):
        assert row[1].startswith(f"**{model['looks_at_the_right_thing']['answer']}**: ")
        assert row[2].startswith(f"**{model['as_hard_to_fool']['answer']}**: ")
    accuracies = [row[1] for row in found["Figures"]]
    value, (low, high) = (content["models"][0]["metrics"]["accuracy/top1"][key] for key in ("value", "ci95"))
    assert accuracies[0] == f"**{value:.3f}** ({low:.3f} to {high:.3f})", "differs significantly"
    assert "**" not in accuracies[1]
    assert [row[1].strip("*") for row in found["The paper's claims"]] == [
        claim["outcome"] for claim in content["claims"]
    ]
    assert [(row[0], row[1]) for row in found["Where it comes from"]] == [
        ("prune/20260101-000000", "aaaa1111"),
        ("qat/20260101-000000", "bbbb2222"),
        (r"low\_rank/20260101-000000", "not logged"),
    ]


def test_pictures_page_and_table_are_there(saved: Path) -> None:
    media = read_specification(saved)["media"]
    assert [item["kind"] for item in media[-2:]] == ["html", "table"]
    keys = {item["key"] for item in media}
    assert {"report/cost_1", "report/features_1", "report/fooled_1", "report/page", "report/table"} <= keys
    for item in media[:-2]:
        assert (saved.parent / item["file"]).read_bytes().startswith(b"\x89PNG")
    shown = [key for panel in panels_of(json.loads(saved.read_text()), "report") for key in panel["keys"]]
    assert sorted(shown) == sorted(keys - {"report/table"})


def panels_of(spec: dict[str, Any], of: str) -> list[dict[str, Any]]:
    found = [block for block in spec["blocks"] if block["kind"] == "panels" and block["runs"] == of]
    return [panel for block in found for panel in block["panels"]]


def test_panels_show_metrics_of_the_runs(runs_dir: Path) -> None:
    panels = panels_of(json.loads((runs_dir / "report" / "wandb_report.json").read_text()), "models")
    bars = [panel["metrics"] for panel in panels if panel["kind"] == "bar"]
    assert bars == [["accuracy/top1"], ["footprint/bytes"], ["cam/energy_in_mask"]]
    assert [panel["title"] for panel in panels if panel.get("metrics") == ["footprint/bytes"]] == ["bytes on disk"]
    (scatter,) = [panel for panel in panels if panel["kind"] == "scatter"]
    assert (scatter["x"], scatter["y"]) == ("footprint/bytes", "accuracy/top1")
    assert [panel["y"] for panel in panels if panel["kind"] == "line"] == [["val/top1"], ["train/loss"]]


def test_runs_that_are_not_on_wandb_have_no_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    write_run(tmp_path, "teacher", reference=False)
    status, output = run_report(tmp_path, "teacher")
    spec = read_specification(output / "wandb_report.json")
    assert status == 0
    assert panels_of(spec, "models") == []
    assert panels_of(spec, "report")
    notes = json.loads((output / "report.json").read_text())["notes"]
    assert spec["blocks"][0]["markdown"] == "\n".join(f"- Note: {note}" for note in notes)


def test_the_run_is_found_by_its_folder_and_its_config(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "home" / "runs", "prune")
    add_wandb(folder, "cccc3333", project="mine")
    (folder / "wandb" / "run_id.txt").unlink()
    found = wandb_run(load(folder))
    assert (found["id"], found["project"]) == ("cccc3333", "mine")
    assert found["offline"] == ["~/runs/prune/20260101-000000/wandb/offline-run-20260101_000000-cccc3333"]


def test_what_the_attack_costs(runs_dir: Path) -> None:
    content = json.loads((runs_dir / "report" / "report.json").read_text())
    cost = {
        "evaluations_ratio": 1.5,
        "ci95": [1.25, 1.75],
        "seconds_ratio": 2.0,
        "seconds_ratio_without_networks": None,
    }
    spec = specification({**content, "costs": [{"name": "prune", **cost}]}, "t", [], [page()], [])
    assert tables(spec)["What the attack costs"] == [["prune", "× 1.500 (× 1.250 to × 1.750)", "× 2.000", "unknown"]]


def page() -> dict[str, str]:
    return {"key": "report/page", "kind": "html", "place": "page", "alt": "report", "caption": "c"}


# Blocks ---------------------------------------------------------------------------------------------------------------


def test_every_block_becomes_one_of_wandb_workspaces_without_a_login(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = json.loads((runs_dir / "report" / "wandb_report.json").read_text())

    def refuse(*_: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found = blocks(spec)
    assert len(found) == len(spec["blocks"])
    report = wr.Report(entity="e", project="p", title=spec["title"], blocks=found)
    written = json.loads(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    kinds = [block["type"] for block in written["blocks"][1:-1]]  # without the empty paragraphs around them
    names = {"heading": "heading", "markdown": "markdown-block", "table": "markdown-block", "panels": "panel-grid"}
    assert kinds == [names[block["kind"]] for block in spec["blocks"]]
    for block, of_spec in zip(written["blocks"][1:-1], spec["blocks"], strict=True):
        if of_spec["kind"] == "panels":
            panels = block["metadata"]["panelBankSectionConfig"]["panels"]
            assert len(panels) == len(of_spec["panels"])
            places = [(panel["layout"]["x"], panel["layout"]["y"]) for panel in panels]
            assert len(set(places)) == len(places)
            assert all(panel["layout"]["x"] + panel["layout"]["w"] <= 24 for panel in panels)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_names_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and a class with a hostile name stay in their cells, as text."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_run(tmp_path, HOSTILE)
    write_run(tmp_path, "- `x` **y**", reference=False)
    status, output = run_report(tmp_path, HOSTILE, "- `x` **y**")
    assert status == 0
    content = json.loads((output / "report.json").read_text())
    row = {"name": HOSTILE, "model": 0.5, "reference": 0.6, "change": -0.1, "p_adjusted": 0.5, "n": 9}
    spec = specification(content, HOSTILE, [], [page()], [{"name": HOSTILE, "rows": [row]}])
    found = blocks(spec)
    for block, of_spec in zip(found, spec["blocks"], strict=True):
        if of_spec["kind"] not in {"markdown", "table"}:
            continue
        shown = Page()
        shown.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(block.text))
        ours = {"code"} if "`callbacks.CarliniWagner`" in block.text else set()
        assert {"script", "s", "code", "img", "a"} & set(shown.tags) == ours
        if of_spec["kind"] == "table":
            assert shown.tags.count("td") == len(of_spec["columns"]) * len(of_spec["rows"])
            assert shown.tags.count("th") == len(of_spec["columns"])
        if of_spec["kind"] == "table" and of_spec["columns"][0] == "model":
            assert HOSTILE in shown.text
        if "Note:" in block.text:
            assert all(note in shown.text for note in content["notes"])
            assert "- `x` **y**" in shown.text
            assert shown.tags.count("li") == len(content["notes"])
    formulas = [
        text for block in found if isinstance(block, wr.MarkdownBlock) for text in re.findall(r"(.?)\$", block.text)
    ]
    assert formulas
    assert set(formulas) == {"\\"}, "W&B takes what is between two $ for a formula"


# Offline --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, "WANDB_MODE is offline"),
        ({}, "wandb login"),
        ({"WANDB_API_KEY": "nonsense"}, "does not work"),
    ],
)
def test_without_a_login_how_to_publish_it_is_said(
    saved: Path, environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    to_wandb(saved, later=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert words in line
    assert f"`python report.py --publish {saved}`" in line
    assert main(["--publish", str(saved)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_without_wandb_workspaces_the_extra_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert main(["--publish", str(saved)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'pip install "compresslens[wandb]"' in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "cannot read"),
        (lambda path: path.write_text("{"), "is not JSON"),
        (lambda path: path.write_text("[]"), "schema None, not 1"),
        (lambda path: spoil(path, lambda spec: spec.update(schema=2)), "schema 2, not 1"),
        (lambda path: spoil(path, lambda spec: spec["blocks"].append({"kind": "film"})), "damaged.*film"),
        (
            lambda path: spoil(path, lambda spec: spec["blocks"].append({"kind": "table", "rows": []})),
            "damaged.*columns",
        ),
        (lambda path: spoil(path, lambda spec: spec["blocks"][-2]["panels"][0].update(x="y")), "damaged"),
        (lambda path: spoil(path, lambda spec: spec.pop("media")), "damaged.*media"),
        (lambda path: spoil(path, lambda spec: spec.update(runs=[{"id": "x"}])), "damaged.*project"),
        (lambda path: (path.parent / "index.html").write_text("another"), "index.html is not what it was"),
        (lambda path: (path.parent / "wandb_report" / "cost_1.png").unlink(), "cost_1.png is not what it was"),
    ],
)
def test_what_cannot_be_published_is_refused_in_one_line(
    saved: Path, change: Callable[[Path], Any], words: str, capsys: Any
) -> None:
    change(saved)
    assert main(["--publish", str(saved)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(words, line)


@pytest.mark.parametrize("arguments", [[], ["prune", "--publish", "wandb_report.json"]])
def test_either_runs_or_a_file(arguments: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "give runs to report on, or --publish FILE" in capsys.readouterr().err


# Publication ----------------------------------------------------------------------------------------------------------


class Server:
    """Answers what wandb asks of a server, and keeps what it is told to store."""

    def __init__(self) -> None:
        self.runs = {"compresslens": ["aaaa1111"], "other": ["bbbb2222"]}
        self.report: dict[str, Any] = {}

    def answer(self, query: str, asked: dict[str, Any]) -> dict[str, Any]:
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
        if name == "GetDefaultEntity":
            return {"viewer": {"id": "1", "entity": "team"}}
        if name == "Runs":
            if asked["project"] not in self.runs:
                return {"project": None}
            wanted = json.loads(asked["filters"])["name"]["$in"]
            found = [{"node": self.run(run)} for run in self.runs[asked["project"]] if run in wanted]
            pages = {"hasNextPage": False, "endCursor": None}
            return {"project": {"internalId": "2", "runCount": len(found), "runs": {"edges": found, "pageInfo": pages}}}
        if name == "GetProjects":
            return {"models": {"edges": [], "pageInfo": {"hasNextPage": False, "endCursor": None}}}
        if name == "CreateProject":
            return {"upsertModel": {"inserted": True}}
        if name == "ProjectInternalId":
            return {"project": {"id": "3", "internalId": asked["projectName"]}}
        assert name == "upsertView", f"unexpected: {name}"
        self.report = asked
        return {
            "upsertView": {
                "view": {
                    "id": "Vmlldzox",
                    "name": "n",
                    "displayName": asked["displayName"],
                    "description": asked["description"],
                    "project": {"name": asked["projectName"], "entityName": asked["entityName"]},
                    "spec": asked["spec"],
                },
                "inserted": True,
            }
        }

    @staticmethod
    def run(identity: str) -> dict[str, Any]:
        empty = {"config": "{}", "summaryMetrics": "{}", "systemMetrics": "{}"}
        return {
            "id": identity,
            "name": identity,
            "displayName": identity,
            "state": "finished",
            "tags": [],
            "user": {"name": "n", "username": "n"},
            "sweepName": None,
            **empty,
        }


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Logged in at a server; runs that are logged to it are kept in a folder."""
    found = Server()
    start = wandb.init

    def execute(
        self: Any, query: str, variables: Any = None, timeout: Any = None, *, parse: Any = json.loads, **_: Any
    ) -> Any:
        return parse(json.dumps(found.answer(query, dict(variables or {}))))

    def init(**options: Any) -> Any:
        assert options["mode"] == "online"
        return start(**{**options, "mode": "offline", "dir": str(tmp_path)})

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(ServiceApi, "authenticate", lambda self: None)
    monkeypatch.setattr(ServiceApi, "execute_graphql", execute)
    monkeypatch.setattr(wandb, "init", init)
    return found


def records(folder: Path) -> list[dict[str, Any]]:
    leet = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    (part,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    lines = subprocess.run([*leet, str(part)], check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_a_published_report_is_bound_to_the_runs(server: Server, saved: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["--publish", str(saved)]) == 0
    assert "W&B report: https://" in capsys.readouterr().out
    assert (server.report["entityName"], server.report["projectName"]) == ("team", "compresslens")
    assert server.report["displayName"] == "Compressed models beside the ones they came from"

    found = records(tmp_path)
    (run,) = [record["run"] for record in found if record["type"] == "run"]
    assert (run["job_type"], run["project"], run["entity"]) == ("report", "compresslens", "team")
    items = [record["history"]["item"] for record in found if record["type"] == "history"]
    spec = read_specification(saved)
    kinds = {"image": "image-file", "html": "html-file", "table": "table-file"}
    for item in spec["media"]:
        assert items[0][f"{item['key']}._type"] == kinds[item["kind"]]
    assert str(Path.home()) not in json.dumps(found)

    sets: dict[str, Any] = {}
    for block in json.loads(server.report["spec"])["blocks"]:
        if block["type"] == "panel-grid":
            for runset in block["metadata"]["runSets"]:
                (only,) = runset["filters"]["filters"]
                assert (only["key"], only["op"]) == ({"section": "run", "name": "name"}, "IN")
                sets.setdefault(runset["name"], {})[runset["project"]["name"]] = only["value"]
    assert sets == {
        "models": {"compresslens": ["aaaa1111"], "other": ["bbbb2222"]},
        "report": {"compresslens": [run["run_id"]]},
    }


def test_report_and_publication_in_one_call(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("WANDB_ENTITY", "others")
    add_wandb(write_run(tmp_path, "prune"), "aaaa1111")
    assert run_report(tmp_path, "prune")[0] == 0
    assert "W&B report: https://" in capsys.readouterr().out
    assert server.report["entityName"] == "others"


@pytest.mark.parametrize("known", [{"compresslens": ["aaaa1111"]}, {"compresslens": ["aaaa1111"], "other": []}])
def test_runs_that_the_server_does_not_have_are_named(
    server: Server, saved: Path, runs_dir: Path, known: dict[str, list[str]], tmp_path: Path, capsys: Any
) -> None:
    server.runs = known
    assert main(["--publish", str(saved)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    part = runs_dir / "qat" / "20260101-000000" / "wandb" / "offline-run-20260101_000000-bbbb2222"
    assert f"`wandb sync {part}`" in line
    assert "qat/20260101-000000 (bbbb2222)" in line
    assert "prune" not in line
    assert f"`python report.py --publish {saved}`" in line
    assert server.report == {}
    assert list(tmp_path.glob("wandb/offline-run-*")) == [], "nothing is logged before that is known"


@pytest.mark.parametrize(
    ("folders", "remedy"),
    [([], "nothing is left to sync"), (["~/my runs/a", "/b"], r"run `wandb sync ~/'my runs/a' /b`")],
)
def test_what_there_is_to_sync(server: Server, saved: Path, folders: list[str], remedy: str) -> None:
    server.runs = {"compresslens": ["aaaa1111"], "other": []}
    spoil(saved, lambda spec: spec["runs"][1].update(offline=folders))
    with pytest.raises(UserError, match=remedy):
        publish(saved)


def test_a_failing_server_costs_one_line(server: Server, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise wandb.errors.CommError("no route\nto host")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(UserError, match="did not take the report: CommError: no route to host"):
        publish(saved)
    assert server.report == {}


def test_a_title_longer_than_wandb_takes_is_cut(server: Server, saved: Path) -> None:
    spoil(saved, lambda spec: spec.update(title="t" * 200))
    publish(saved)
    assert server.report["displayName"] == "t" * 127 + "…"
