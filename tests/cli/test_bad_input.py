"""Bad input through the command line: exit status 2, one line that says what to do, no traceback, no empty run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cli.tiny import NETWORK, write_tiny
from tests.command_line import SHORT, Answer, run, run_folders, run_process
from tests.real_formats import write_image_folder


@pytest.fixture(autouse=True)
def tiny(workplace: Path) -> Path:
    """A working folder with `tiny.yaml`."""
    write_tiny(workplace)
    return workplace


def fit(*arguments: str, config: str = "./tiny.yaml") -> Answer:
    """A fit of two steps."""
    return run("--config", config, *SHORT, *arguments)


def refused(*arguments: str, config: str = "./tiny.yaml") -> str:
    """The error of a fit that must not leave a run folder."""
    error = fit(*arguments, config=config).error
    assert run_folders() == []
    assert not Path("runs").exists() or list(Path("runs").iterdir()) == []
    return error


# Keys and names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_epoch=1", "no option '--trainer.max_epoch'; did you mean '--trainer.max_epochs'?"),
        ("--traner.max_epochs=1", "no option '--traner.max_epochs'; did you mean '--trainer.max_epochs'?"),
        ("--resme", "no option '--resme'; did you mean '--resume'?"),
        ("--data.batchsize=4", "datamodules.FashionMNIST has no option 'batchsize'; did you mean 'batch_size'?"),
        ("--model.netwrk.init_args.architecture=x", "ImageClassifier has no option 'netwrk'; did you mean 'network'?"),
        ("--model.init_args.netwrk=x", "ImageClassifier has no option 'netwrk'; did you mean 'network'?"),
        ("--model.network.init_args.architecure=x", "create_network has no option 'architecure'; did you mean"),
        (
            "--model.optimizer.init_args.momentun=1",
            "torch.optim.SGD has no option 'momentun'; did you mean 'momentum'?",
        ),
        ("--data=datamodules.FashionMNST", "no 'FashionMNST' in datamodules; did you mean 'FashionMNIST'?"),
        (
            "--model=lightningmodules.Distillation",
            "cannot import 'lightningmodules' (for lightningmodules.Distillation)",
        ),
        ("--model.losses=[]", "lightning_modules.ImageClassifier has no option 'losses'; it has: network, optimizer"),
    ],
)
def test_a_misspelt_key_on_the_command_line(option: str, message: str) -> None:
    assert message in refused(option)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"modle": {}}, "mine.yaml: there is no key 'modle'; did you mean 'model'?"),
        ({"trainer": {"max_epoch": 1}}, "mine.yaml: trainer has no key 'max_epoch'; did you mean 'max_epochs'?"),
        (
            {"trainer": {"max_epochs": "many"}},
            "mine.yaml: trainer.max_epochs: 'many' is not a valid value; expected int",
        ),
        (
            {"model": {"init_args": {"lable_smoothing": 0.1}}},
            "lightning_modules.ImageClassifier has no option 'lable_smoothing'; did you mean 'label_smoothing'?",
        ),
        (
            {"model": {"init_args": {"network": {"init_args": {"achitecture": "x"}}}}},
            "mine.yaml: compresslens.networks.create_network has no option 'achitecture'; did you mean 'architecture'?",
        ),
        (
            {"data": {"class_path": "datamodules.CIFAR10", "init_arg": {}}},
            "mine.yaml: data: 'init_arg' beside class_path; did you mean 'init_args'?",
        ),
        (
            {"model": {"init_arg": {"seed": 1}}},
            "mine.yaml: lightning_modules.ImageClassifier has no option 'init_arg.seed'",
        ),
        ({"data": {"batchsize": 1}}, "mine.yaml: datamodules.FashionMNIST has no option 'batchsize'; did you mean"),
        (
            {"trainer": {"callbacks+": [{"class_path": "callbacks.Accuracyy"}]}},
            "mine.yaml: there is no 'Accuracyy' in callbacks; did you mean 'Accuracy'?",
        ),
        (
            {"model": {"init_args": {"scheduler": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR"}}}},
            "T_max",
        ),
    ],
)
def test_a_misspelt_key_in_a_file(content: dict[str, Any], message: str) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump({"extends": "./tiny.yaml", **content}))
    error = refused(config="./mine.yaml")
    assert message in error
    assert error.startswith("mine.yaml: ") or "T_max" in error


def test_the_file_that_is_wrong_is_named_and_no_other_one_after_it() -> None:
    Path("bad.yaml").write_text(yaml.safe_dump({"trainer": {"max_epoch": 1}}))
    Path("mine.yaml").write_text(yaml.safe_dump({"extends": ["bad.yaml", "tiny.yaml"]}))
    assert refused(config="./mine.yaml").startswith("bad.yaml: trainer has no key")
    assert refused("--trainer.max_epochs=many").startswith("trainer.max_epochs: 'many'")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_epochs=many", "trainer.max_epochs: 'many' is not a valid value; expected int or null"),
        ("--trainer.precision=bf16-mixd", "did you mean 'bf16-mixed'?"),
        ("--data.batch_size=many", "datamodules.FashionMNIST batch_size: expected int, got 'many'"),
        ("--data.batch_size=0", "data.batch_size is 0 but must be at least 1"),
        ("--data.validation_fraction=1.5", "data.validation_fraction is 1.5 but must be between 0 and 1"),
        ("--model.network.init_args.stem=huge", "'huge' is not one of 'auto', 'imagenet', 'small'"),
        ("--model.label_smoothing=2", "label_smoothing is 2.0; it must be in [0, 1)"),
        ("--trainer.devices=0", "Trainer(devices='0')"),
        ("--trainer.limit_train_batches=3.5", "invalid value 3.5 for limit_train_batches"),
    ],
)
def test_a_value_that_cannot_be(option: str, message: str) -> None:
    assert message in refused(option)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"class_path": "torchvision.transforms.v2.RandomHorizontalFlp"}, "did you mean 'RandomHorizontalFlip'?"),
        ({"class_path": "torchvision.transforms.v2.RandomHorizontalFlip", "init_args": {"p": 7}}, "in the interval"),
        (
            {"class_path": "torchvision.transforms.v2.RandomCrop", "init_args": {"size": 8, "padding": "x"}},
            "RandomCrop padding: 'x'",
        ),
        (
            {"class_path": "torchvision.transforms.v2.Normalize", "init_args": {"mean": [0.5], "std": [0.5]}},
            "Take Normalize out of the transforms",
        ),
    ],
)
def test_a_transform_that_cannot_be(transform: dict[str, Any], message: str) -> None:
    assert message in refused(f"--data.train_transforms={json.dumps([transform])}")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"class_path": "compresslens.distillation.LogitKDLoss", "init_args": {"temperature": 0}},
            "temperature is 0.0",
        ),
        ({"class_path": "compresslens.distillation.LogitKDLos"}, "did you mean 'LogitKDLoss'?"),
        (
            {"class_path": "compresslens.distillation.HintLoss", "init_args": {"student_layers": ["layer9"]}},
            "no layer 'layer9' in test_resnet. Nearest: layer",
        ),
        (
            {"class_path": "compresslens.distillation.AttentionTransferLoss", "init_args": {"student_layers": ["fc"]}},
            "choose one that gives (N, C, H, W) maps",
        ),
    ],
)
def test_a_distillation_loss_that_cannot_be(loss: dict[str, Any], message: str) -> None:
    teacher = {"class_path": "compresslens.networks.create_network", "init_args": NETWORK}
    model = {"class_path": "lightning_modules.Distillation", "init_args": {"teacher": teacher, "losses": [loss]}}
    Path("mine.yaml").write_text(yaml.safe_dump({"extends": "./tiny.yaml", "model": model}))
    assert message in refused(config="./mine.yaml")


def test_an_unknown_config() -> None:
    assert refused(config="distil_resnet18.yaml") == (
        "no config 'distil_resnet18.yaml'; did you mean 'distill_resnet18.yaml'?"
    )
    assert "no config 'somewhere/else.yaml'" in refused(config="somewhere/else.yaml")


def test_an_unknown_architecture() -> None:
    assert refused("--model.network.init_args.architecture=resnet81") == (
        "unknown architecture 'resnet81'. Nearest: resnet18."
    )


# Checkpoints and teachers ---------------------------------------------------------------------------------------------


def test_a_class_count_that_does_not_fit_the_checkpoint() -> None:
    assert fit("--name", "ten").status == 0
    checkpoint = Path("runs/ten/latest/checkpoints/best.ckpt")
    teacher = {"class_path": "compresslens.networks.create_network", "init_args": {**NETWORK, "num_classes": 7}}
    teacher["init_args"] |= {"weights": str(checkpoint), "replace_head": False}  # type: ignore[operator]
    model = {"class_path": "lightning_modules.Distillation", "init_args": {"teacher": teacher, "losses": []}}
    Path("mine.yaml").write_text(yaml.safe_dump({"extends": "./tiny.yaml", "model": model}))
    assert fit(config="./mine.yaml").error == f"{checkpoint} has 10 classes, but 7 are wanted."

    arguments = ["test", "--config", "./tiny.yaml", *SHORT, "--ckpt_path", str(checkpoint)]
    error = run(*arguments, "--model.network.init_args.stem=small").error
    assert error.startswith("the checkpoint does not fit the model: ")
    assert "model.backbone.conv1.weight" in error
    assert run(*arguments[:-1], "gone.ckpt").error == "Checkpoint file not found: gone.ckpt"
    assert [name.split("/")[0] for name in run_folders()] == ["ten"]


def test_a_class_count_that_does_not_fit_the_data() -> None:
    error = refused("--model.network.init_args.num_classes=7")
    assert error == "the network gives 7 logits but the data has 10 classes; set its num_classes"


def test_weights_that_are_no_weights() -> None:
    Path("weights.pth").write_bytes(b"no weights")
    assert "weights.pth was refused" in refused("--model.network.init_args.weights=weights.pth")
    torch.save({"code": refused}, "weights.pth")
    assert "asks for" in refused("--model.network.init_args.weights=weights.pth")
    torch.save({"text": "but no tensor"}, "weights.pth")
    assert "weights.pth holds no state dict" in refused("--model.network.init_args.weights=weights.pth")
    assert "only for tf_efficientnet_lite0" in refused("--model.network.init_args.weights=package")


def test_an_absent_teacher_when_nothing_may_be_trained_for_it() -> None:
    error = run("--config", "cifar10/distill_resnet18.yaml", "--requires", "none").error
    assert "runs/cifar10_teacher_resnet34/latest/checkpoints/best.ckpt" in error
    assert "no run named 'cifar10_teacher_resnet34' has finished; train it first" in error
    assert run_folders() == []


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ("cifar10/baseline_resnet18.yaml", ["nowhere/cifar-10-batches-py/", "data.download: true"]),
        ("fashion_mnist/baseline_resnet18.yaml", ["nowhere", "data.download: true", "dataset-fashion-mnist"]),
        ("imagenet/baseline_resnet18.yaml", ["nowhere/train does not exist", "ILSVRC2012_img_train.tar"]),
        ("image_folder/baseline_resnet18.yaml", ["data folder nowhere does not exist", "data.root"]),
    ],
)
def test_a_missing_data_folder(config: str, parts: list[str]) -> None:
    network = "--model.network.init_args"
    error = refused(
        "--data.root=nowhere", f"{network}.architecture=test_resnet", f"{network}.weights=null", config=config
    )
    for part in parts:
        assert part in error


@pytest.fixture
def folder(tiny: Path) -> list[str]:
    """The options of a run on a folder of images, three classes, and the folder `images` itself."""
    write_image_folder(tiny / "images")
    network = "--model.network.init_args"
    options = [f"{network}.architecture=test_resnet", f"{network}.weights=null", f"{network}.num_classes=3"]
    return ["--data.root=images", "--data.image_size=16", "--data.train_transforms=null", *options]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_corrupt_image(workers: int, folder: list[str]) -> None:
    for name in ("cat", "dog", "owl"):
        Path(f"images/train/{name}/3.jpg").write_bytes(b"no image")
    arguments = [*folder, f"--data.num_workers={workers}", "--trainer.limit_train_batches=1.0"]
    error = fit(*arguments, config="image_folder/baseline_resnet18.yaml").error
    assert "/3.jpg is no readable image (cannot identify its format)" in error
    assert "data.on_corrupt: skip" in error
    assert fit(*arguments, "--data.on_corrupt=skip", config="image_folder/baseline_resnet18.yaml").status == 0


def test_an_empty_split(folder: list[str]) -> None:
    for name in ("cat", "dog", "owl"):
        shutil.rmtree(f"images/val/{name}")
    assert "the val split is empty" in refused(*folder, config="image_folder/baseline_resnet18.yaml")
    Path("images/val/cat").mkdir()
    assert "images/val/cat holds no images" in refused(*folder, config="image_folder/baseline_resnet18.yaml")


def test_classes_that_the_data_lacks(folder: list[str]) -> None:
    shutil.rmtree("images/train/owl")
    assert "images/val has class folders that the training data lacks: owl" in refused(
        *folder, "--model.network.init_args.num_classes=2", config="image_folder/baseline_resnet18.yaml"
    )


def test_fewer_images_than_a_batch() -> None:
    assert "lower data.batch_size" in refused("--data.batch_size=1000")


# Run folders ----------------------------------------------------------------------------------------------------------


def test_a_run_folder_that_cannot_be_made() -> None:
    error = fit("--runs_dir", "tiny.yaml/runs").error
    assert error.startswith("cannot create the run folder tiny.yaml/runs/tiny/")
    assert error.endswith("Not a directory; choose another --runs_dir")


def test_nothing_to_resume() -> None:
    assert fit("--resume").error == "nothing to resume: no unfinished run in runs/tiny"


# Training -------------------------------------------------------------------------------------------------------------

EXPLODING = ["--model.scheduler.class_path=torch.optim.lr_scheduler.ConstantLR", "--model.optimizer.init_args.lr=1e30"]


def test_a_loss_that_is_no_number_names_the_step() -> None:
    error = fit(*EXPLODING, "--trainer.limit_train_batches=8").error
    assert "the loss is nan at step 1 (epoch 0, batch 1); last good checkpoint: none yet" in error


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint() -> None:
    last = [{"class_path": "callbacks.LastCheckpoint", "init_args": {"every_n_steps": 1}}]
    late = ["--model.scheduler.class_path=torch.optim.lr_scheduler.StepLR", "--model.scheduler.init_args.step_size=4"]
    late += ["--model.scheduler.init_args.gamma=1e30", "--trainer.limit_train_batches=8"]
    answer = fit(*late, f"--trainer.callbacks+={json.dumps(last)}")
    (folder,) = run_folders()
    assert "the loss is nan at step 5 (epoch 0, batch 5)" in answer.error
    assert f"last good checkpoint: runs/{folder}/checkpoints/last.ckpt; lower the learning rate" in answer.error
    checkpoint = torch.load(f"runs/{folder}/checkpoints/last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point())
    assert not Path("runs/tiny/latest").exists()
    assert run("--config", "./tiny.yaml", "--resume").error == answer.error  # it goes on from there, and no better


# As a user sees it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "./tiny.yaml", "--trainer.max_epoch=1"], "did you mean '--trainer.max_epochs'?"),
        (["--config", "./tiny.yaml", "--data.root=nowhere"], "is missing in nowhere"),
    ],
)
def test_the_process_says_one_line_and_ends_with_status_2(arguments: list[str], message: str, tiny: Path) -> None:
    answer = run_process(*arguments, cwd=tiny)
    assert message in answer.error
    assert answer.err.splitlines()[-1].startswith("error: ")
    assert run_folders() == []
