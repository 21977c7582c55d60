"""Weights from files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from compresslens.errors import UserError
from compresslens.networks import PixelNetwork, create_network, load_weights

State = dict[str, Tensor]


def small_network(num_classes: int = 3, **options: Any) -> Any:
    return create_network("resnet18", num_classes, image_size=32, **options)


@pytest.fixture(scope="module")
def trained() -> Any:
    return small_network()


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def lightning_content(network: PixelNetwork) -> dict[str, Any]:
    state = prefixed(network.state_dict(), "model.")
    state |= {"teacher.backbone.conv1.weight": torch.zeros(1), "losses.0.adapter.weight": torch.zeros(1)}
    return {"epoch": 1, "state_dict": state, "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{}]}


def assert_same(network: PixelNetwork, expected: PixelNetwork) -> None:
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), atol=0, rtol=0)


LAYOUTS: dict[str, tuple[str, Callable[[PixelNetwork], Any]]] = {
    "lightning": ("best.ckpt", lightning_content),
    "compiled": ("a.ckpt", lambda n: {"state_dict": prefixed(n.state_dict(), "model._orig_mod.")}),
    "network": ("a.pth", lambda n: n.state_dict()),
    "backbone": ("a.pt", lambda n: n.backbone.state_dict()),
    "nested": ("a.pth", lambda n: {"state_dict": n.backbone.state_dict(), "epoch": 3}),
    "nested model": ("a.pth", lambda n: {"model": n.backbone.state_dict(), "args": {}}),
    "data parallel": ("a.pth", lambda n: prefixed(n.backbone.state_dict(), "module.")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_torch_saves(layout: str, trained: Any, tmp_path: Path) -> None:
    name, content = LAYOUTS[layout]
    torch.save(content(trained), tmp_path / name)
    assert_same(small_network(weights=str(tmp_path / name), replace_head=False), trained)


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_safetensors(prefix: str, trained: Any, tmp_path: Path) -> None:
    save_file(prefixed(trained.backbone.state_dict(), prefix), tmp_path / "a.safetensors")
    assert_same(small_network(weights=str(tmp_path / "a.safetensors")), trained)


def test_run_folder_and_its_latest_link(trained: Any, tmp_path: Path) -> None:
    run = tmp_path / "teacher" / "20260101-000000"
    (run / "checkpoints").mkdir(parents=True)
    torch.save(lightning_content(trained), run / "checkpoints" / "best.ckpt")
    os.symlink(run.name, tmp_path / "teacher" / "latest")
    assert_same(small_network(weights=str(run)), trained)
    assert_same(small_network(weights=str(tmp_path / "teacher" / "latest")), trained)


def test_load_weights_fills_a_network_in_place(trained: Any, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    network = small_network()
    load_weights(network, tmp_path / "a.pth")
    assert_same(network, trained)


def test_auxiliary_classifiers_in_a_file_are_left_out(tmp_path: Path) -> None:
    from torchvision.models import googlenet

    saved = googlenet(num_classes=3, aux_logits=True, init_weights=False).state_dict()
    torch.save(saved, tmp_path / "a.pth")
    network = create_network("googlenet", 3, weights=str(tmp_path / "a.pth"), replace_head=False)
    loaded = network.backbone.state_dict()
    assert loaded.keys() == {name for name in saved if not name.startswith("aux")}
    assert all(torch.equal(value, saved[name]) for name, value in loaded.items())


def test_another_class_count(trained: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(lightning_content(trained), tmp_path / "a.ckpt")
    network = small_network(num_classes=5, weights=str(tmp_path / "a.ckpt"))
    assert "has 3 classes: the classifier for 5 is newly initialised" in caplog.text
    torch.testing.assert_close(network.backbone.layer4.state_dict(), trained.backbone.layer4.state_dict())
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    with pytest.raises(UserError, match="has 3 classes, but 5 are wanted"):
        small_network(num_classes=5, weights=str(tmp_path / "a.ckpt"), replace_head=False)


def test_another_architecture_is_refused(trained: Any, tmp_path: Path) -> None:
    torch.save(lightning_content(trained) | {"architecture": "resnet18"}, tmp_path / "named.ckpt")
    with pytest.raises(UserError, match="holds a 'resnet18', not a 'resnet34'"):
        create_network("resnet34", 3, image_size=32, weights=str(tmp_path / "named.ckpt"))
    small_network(weights=str(tmp_path / "named.ckpt"))
    torch.save(lightning_content(trained), tmp_path / "unnamed.ckpt")
    with pytest.raises(UserError, match=r"does not hold a 'resnet34': 96 tensors are missing, such as layer1\.2\."):
        create_network("resnet34", 3, image_size=32, weights=str(tmp_path / "unnamed.ckpt"))
    torch.save(create_network("resnet34", 3, image_size=32).state_dict(), tmp_path / "larger.pth")
    with pytest.raises(UserError, match=r"does not hold a 'resnet18': 96 are not part of it, such as layer1\.2\."):
        small_network(weights=str(tmp_path / "larger.pth"))
    with pytest.raises(UserError, match=r"does not hold a 'densenet121': .* missing"):
        create_network("densenet121", 3, weights=str(tmp_path / "unnamed.ckpt"))


def test_another_stem_is_refused(trained: Any, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"conv1\.weight is 64×3×3×3 in the file and 64×3×7×7 in the network.*stem"):
        small_network(stem="imagenet", weights=str(tmp_path / "a.pth"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gone.pth", r"no weights at .*gone\.pth\."),
        ("runs/teacher/latest", r"best\.ckpt: no run named 'teacher' has finished; train it first"),
        ("runs/teacher/latest/checkpoints/best.ckpt", r"no run named 'teacher' has finished; train it first"),
        ("", r"no weights at .*checkpoints.best\.ckpt\."),
    ],
)
def test_a_missing_file_is_named(path: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        small_network(weights=str(tmp_path / path))


def test_a_misspelt_kind_of_weights_gives_the_choices() -> None:
    with pytest.raises(UserError, match="'package', 'timm', the path"):
        small_network(weights="packages")


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": Malicious(tmp_path / "trace")}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"was refused: .* asks for \w+\.mkdir"):
        small_network(weights=str(tmp_path / "a.ckpt"))
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 torn"])
def test_a_corrupt_file_gives_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} (cannot be read|was refused)") as error:
        small_network(weights=str(tmp_path / name))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}])
def test_a_file_without_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        small_network(weights=str(tmp_path / "a.pth"))
