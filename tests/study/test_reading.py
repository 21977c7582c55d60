import pytest

from compresslens.errors import UserError
from compresslens.study.reading import find_runs
from tests.study.study_runs import DATA, write_run


def test_a_name_stands_for_the_newest_run_of_each_seed(tmp_path):
    write_run(tmp_path, "prune", seed=0, stamp="20260101-000000")
    newest = write_run(tmp_path, "prune", seed=0, stamp="20260102-000000")
    other = write_run(tmp_path, "prune", seed=1, stamp="20260101-120000")
    write_run(tmp_path, "prune", seed=2, stamp="20260103-000000", finished=False)
    found, notes = find_runs(["prune"], tmp_path)
    assert [run.folder for run in found] == [newest, other]
    assert [run.seed for run in found] == [0, 1]
    assert notes == []


def test_folders_and_names_mix_and_the_same_run_counts_once(tmp_path):
    folder = write_run(tmp_path, "prune")
    write_run(tmp_path, "qat")
    found, notes = find_runs([str(folder), "qat", "prune"], tmp_path)
    assert [run.name for run in found] == ["prune", "qat"]
    assert len(notes) == 1
    assert "twice" in notes[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"finished": False}, "not finished"),
        ({"schema": 7}, "schema 7"),
        ({"data": {**DATA, "init_args": {"image_size": 32}}}, "other data"),
        ({"split": "val"}, "split"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(tmp_path, options, words):
    write_run(tmp_path, "prune")
    folder = write_run(tmp_path, "qat", **options)
    with pytest.raises(UserError, match=words) as caught:
        find_runs(["prune", str(folder)], tmp_path)
    assert "qat" in str(caught.value)


def test_the_seed_of_the_data_may_differ(tmp_path):
    write_run(tmp_path, "prune", seed=0)
    write_run(tmp_path, "prune", seed=1, stamp="2", data={**DATA, "init_args": {"image_size": 64, "seed": 1}})
    assert len(find_runs(["prune"], tmp_path)[0]) == 2


def test_two_folders_of_images_are_different_data(tmp_path):
    folder = {"class_path": "datamodules.ImageFolder", "init_args": {"root": "here", "num_workers": 0}}
    write_run(tmp_path, "prune", data=folder)
    write_run(tmp_path, "qat", data={**folder, "init_args": {"root": "here", "num_workers": 8}})
    assert len(find_runs(["prune", "qat"], tmp_path)[0]) == 2
    write_run(tmp_path, "low_rank", data={**folder, "init_args": {"root": "there", "num_workers": 0}})
    with pytest.raises(UserError, match="other data"):
        find_runs(["prune", "low_rank"], tmp_path)


def test_unknown_and_broken_runs(tmp_path):
    with pytest.raises(UserError, match="there is no run 'prune'"):
        find_runs(["prune"], tmp_path)
    folder = write_run(tmp_path, "prune")
    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        find_runs(["prune"], tmp_path)
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match="nothing was measured"):
        find_runs(["prune"], tmp_path)
    with pytest.raises(UserError, match="no run folder"):
        find_runs([str(tmp_path / "gone")], tmp_path)
