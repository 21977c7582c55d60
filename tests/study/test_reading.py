import copy

import numpy as np
import pytest

from compresslens.errors import UserError
from compresslens.study.columns import examples, of_one_seed
from compresslens.study.models import models_of
from compresslens.study.reading import find_runs
from tests.study.study_runs import DATA, write_run

CONFIG = {
    "trainer": {"max_epochs": 2, "precision": "auto", "devices": 1, "callbacks": []},
    "model": {
        "class_path": "lightning_modules.PruneAndFinetune",
        "init_args": {
            "network": {"init_args": {"architecture": "resnet18", "weights": "/runs/seed0/base/latest"}},
            "seed": 0,
        },
    },
    "data": {"class_path": "datamodules.MNISTScenes", "init_args": {"image_size": 64, "batch_size": 32, "seed": 0}},
}


def changed(key, value):
    """CONFIG with another value of "a.b.c"."""
    config = copy.deepcopy(CONFIG)
    *path, last = key.split(".")
    place = config
    for name in path:
        place = place[name]
    place[last] = value
    return config


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
    with pytest.raises(UserError, match=r'\(data.init_args.root: "there", and "here"\)'):
        find_runs(["prune", "low_rank"], tmp_path)


@pytest.mark.parametrize("option", ["batch_size", "train_transforms", "scenes_per_digit", "shortcut"])
def test_models_may_differ_in_the_training_images(tmp_path, option):
    write_run(tmp_path, "prune", config=CONFIG)
    write_run(tmp_path, "qat", config=changed(f"data.init_args.{option}", 1))
    found, _ = find_runs(["prune", "qat"], tmp_path)
    assert found[0].data == found[1].data == {**CONFIG["data"], "init_args": {"image_size": 64}}


def test_a_shortcut_of_other_data_may_be_in_the_test_images(tmp_path):
    for name, shortcut in (("prune", 0.0), ("qat", 0.5)):
        write_run(tmp_path, name, data={"class_path": "mine.Scenes", "init_args": {"shortcut": shortcut}})
    with pytest.raises(UserError, match=r"data.init_args.shortcut: 0.5, and 0.0"):
        find_runs(["prune", "qat"], tmp_path)


def test_what_is_held_out_matters_to_the_validation_images(tmp_path):
    for split in ("test", "val"):
        for name, fraction in (("prune", 0.1), ("qat", 0.2)):
            data = {"class_path": "datamodules.CIFAR10", "init_args": {"validation_fraction": fraction}}
            write_run(tmp_path / split, name, data=data, split=split)
    assert len(find_runs(["prune", "qat"], tmp_path / "test")[0]) == 2
    with pytest.raises(UserError, match="validation_fraction"):
        find_runs(["prune", "qat"], tmp_path / "val")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("trainer.max_epochs", 3, "trainer.max_epochs: 3, and 2"),
        ("trainer.precision", "32-true", 'trainer.precision: "32-true", and "auto"'),
        ("model.class_path", "mine.Prune", 'model.class_path: "mine.Prune", and "lightning_modules.PruneAndFinetune"'),
        ("model.init_args.sparsity", 0.9, "model.init_args.sparsity: 0.9, and not set"),
        ("model.init_args.network.init_args.weights", "timm", 'weights: "timm", and "from a file"'),
        ("data.init_args.batch_size", 64, "data.init_args.batch_size: 64, and 32"),
    ],
)
def test_other_trainings_are_not_seeds_of_one_model(tmp_path, key, value, said):
    first = write_run(tmp_path, "prune", seed=0, config=CONFIG)
    second = write_run(tmp_path, "prune", seed=1, stamp="20260102-000000", config=changed(key, value))
    with pytest.raises(UserError) as caught:
        find_runs(["prune"], tmp_path)
    for part in (str(first), str(second), said, "another --name"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.devices", 2),
        ("trainer.callbacks", [{"class_path": "callbacks.Honesty"}]),
        ("model.init_args.seed", 1),
        ("model.init_args.network.init_args.weights", "/runs/seed1/base/latest"),
        ("data.init_args.seed", 1),
        ("data.init_args.num_workers", 4),
    ],
)
def test_seeds_of_one_model_may_differ_in_what_does_not_change_the_training(tmp_path, key, value):
    write_run(tmp_path, "prune", seed=0, config=CONFIG)
    write_run(tmp_path, "prune", seed=1, stamp="20260102-000000", config=changed(key, value))
    assert [run.seed for run in find_runs(["prune"], tmp_path)[0]] == [0, 1]


def test_images_are_the_same_if_the_seed_of_the_data_is(tmp_path):
    """`--data.seed` may be another than `--seed_everything`."""
    write_run(tmp_path, "prune", seed=0, config=CONFIG)
    write_run(tmp_path, "qat", seed=0, config=changed("data.init_args.seed", 7))
    write_run(tmp_path, "low_rank", seed=7, config=CONFIG)
    write_run(tmp_path, "low_rank", seed=8, stamp="20260102-000000", config=CONFIG)
    write_run(tmp_path, "none", seed=7, data={"class_path": "datamodules.MNISTScenes", "init_args": {"image_size": 64}})
    found = {model.name: model for model in models_of(find_runs(["prune", "qat", "low_rank", "none"], tmp_path)[0])}
    assert [run.images_seed for model in found.values() for run in model.runs] == [0, 7, 0, 0, 7]
    assert of_one_seed([found["prune"], found["qat"]]) == []
    same = of_one_seed([found["prune"], found["low_rank"]])
    assert [[run.seed for run in model.runs] for model in same] == [[0], [7]]
    assert of_one_seed([found["qat"], found["none"]]) == [found["qat"], found["none"]]


def test_the_folder_of_all_runs_of_a_name_stands_for_it(tmp_path):
    write_run(tmp_path / "elsewhere", "prune", seed=0)
    newest = write_run(tmp_path / "elsewhere", "prune", seed=0, stamp="20260102-000000")
    other = write_run(tmp_path / "elsewhere", "prune", seed=1, stamp="20260101-120000")
    (newest.parent / "latest").symlink_to(newest.name)
    found, _ = find_runs([f"{tmp_path}/elsewhere/prune/"], tmp_path)
    assert [run.folder for run in found] == [newest, other]
    assert find_runs([f"{tmp_path}/elsewhere/prune/latest"], tmp_path)[0][0].folder == newest
    with pytest.raises(UserError, match="holds no runs"):
        find_runs([f"{tmp_path}/elsewhere"], tmp_path)
    unfinished = write_run(tmp_path, "qat", finished=False)
    (unfinished / "results.json").unlink()
    for place in (unfinished, unfinished.parent):
        with pytest.raises(UserError, match=r"(is|not) finished"):
            find_runs([str(place)], tmp_path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"no zip")])
def test_damaged_pictures_are_named(tmp_path, damage):
    folder = write_run(tmp_path, "prune")
    (model,) = models_of(find_runs(["prune"], tmp_path)[0])
    assert examples(model) is None
    path = folder / "figures" / "cam_examples.npz"
    path.parent.mkdir()
    np.savez(path, index=np.arange(3))
    assert list(examples(model)["index"]) == [0, 1, 2]
    damage(path)
    with pytest.raises(UserError, match=r"cam_examples\.npz cannot be read"):
        examples(model)


def test_unknown_and_broken_runs(tmp_path):
    with pytest.raises(UserError, match="there is no run 'prune'"):
        find_runs(["prune"], tmp_path)
    folder = write_run(tmp_path, "prune")
    (folder / "results.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        find_runs(["prune"], tmp_path)
    (folder / "results.json").write_text('{"schema": 1, "name": "prune"}')
    with pytest.raises(UserError, match="it has no 'split'"):
        find_runs(["prune"], tmp_path)
    (folder / "results.json").unlink()
    with pytest.raises(UserError, match="nothing was measured"):
        find_runs(["prune"], tmp_path)
    with pytest.raises(UserError, match="gone is no folder"):
        find_runs([str(tmp_path / "gone")], tmp_path)
