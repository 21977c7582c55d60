"""Every format: written, read back by what would read it, and the same network."""

from __future__ import annotations

import copy
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import onnx
import pytest
import safetensors
import torch
from torch import nn

from compresslens.errors import UserError
from compresslens.export import FORMATS, Tolerance, artefacts, export_model, load_recipe, runtimes
from compresslens.export.onnx import OPSET
from compresslens.export.safetensors_recipe import distinct_tensors
from compresslens.networks import PixelNetwork, create_network
from tests.export.networks import CLASSES, KEPT, SIZE, images, narrowed, plain

BATCHES = (1, 3, 5)
RUN_BY = {"onnx": "onnxruntime", "torch_export": "eager"}


@pytest.fixture(scope="module")
def network() -> PixelNetwork:
    return plain().eval()


@pytest.fixture(scope="module")
def written(network: PixelNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all formats of the plain network."""
    folder = tmp_path_factory.mktemp("model")
    found = export_model(network, folder, SIZE, images(16), class_names=[str(n) for n in range(CLASSES)])
    assert list(found) == list(FORMATS)
    for artefact in found.values():
        assert artefact.size == artefact.path.stat().st_size
        assert artefact.deflated == len(zlib.compress(artefact.path.read_bytes(), 6))
        assert artefact.parity is not None
        assert artefact.parity.images == 16
        assert artefact.parity.disagreements == 0
        assert artefact.parity.difference <= 1e-4 * artefact.parity.range
    return folder


def assert_all_compute(folder: Path, network: nn.Module) -> None:
    """Each artefact computes what the network computes, whatever the batch."""
    for count in BATCHES:
        batch = images(count)
        with torch.no_grad():
            expected = network(batch)
        for name, runtime in RUN_BY.items():
            predict = runtimes.load(runtime, folder / artefacts.FILES[name], None, SIZE)
            torch.testing.assert_close(torch.as_tensor(predict(batch)), expected, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(load_recipe(folder)(batch), expected, rtol=0, atol=0)


def test_plain(written: Path, network: PixelNetwork) -> None:
    assert_all_compute(written, network)
    assert {path.name for path in written.iterdir()} >= set(artefacts.FILES.values())


def test_changed_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = narrowed(monkeypatch).eval()
    export_model(changed, tmp_path, SIZE, images(4))
    assert_all_compute(tmp_path, changed)
    loaded: Any = load_recipe(tmp_path)
    assert loaded.backbone.layer1[0].conv1.out_channels == KEPT
    assert loaded.changes == changed.changes


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    network = plain().train()
    network.backbone.layer1.eval()
    network.backbone.fc.weight.grad = torch.ones_like(network.backbone.fc.weight)
    network.to(memory_format=torch.channels_last)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    with torch.inference_mode():
        export_model(network, tmp_path, SIZE, images(4))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert network.backbone.fc.weight.grad is not None
    assert network.backbone.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_half_precision_network_is_written_in_float32(tmp_path: Path, network: PixelNetwork) -> None:
    half = plain().bfloat16()
    export_model(half, tmp_path, SIZE, formats=("safetensors",))
    assert {value.dtype for value in load_recipe(tmp_path).parameters()} == {torch.float32}
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}


def test_the_onnx_file_describes_itself(written: Path) -> None:
    model = onnx.load(written / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, logits.name) == ("images", "logits")
    batch, *rest = image.type.tensor_type.shape.dim
    assert batch.dim_param == "batch"
    assert [dim.dim_value for dim in rest] == [3, SIZE, SIZE]
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node), "folded into the convolutions"


def test_the_recipe_describes_the_network(written: Path, network: PixelNetwork) -> None:
    recipe = json.loads((written / "recipe.json").read_text())
    assert recipe["format"] == 1
    assert recipe["recipe"]["architecture"] == "test_resnet"
    assert recipe["changes"] == []
    assert recipe["class_names"] == [str(number) for number in range(CLASSES)]
    assert recipe["normalization"]["mean"] == pytest.approx(network.normalize.mean.flatten().tolist())
    again = create_network(**recipe["recipe"], weights=str(written / "model.safetensors")).eval()
    with torch.no_grad():
        assert torch.equal(again(images(2)), network(images(2))), "the file is one that create_network takes, too"


def test_nothing_about_this_machine_is_in_the_files(written: Path) -> None:
    hidden = [Path.home(), Path(torch.__file__).parents[1], Path(__file__).parents[2], written, Path.cwd()]
    names = [str(path).encode() for path in hidden if path != Path("/")]
    files = [path for path in written.iterdir() if path.is_file()]
    assert {path.name for path in files} == {"model.onnx", "model.pt2", "model.safetensors", "recipe.json"}
    for path in files:
        content = path.read_bytes()
        for name in (*names, b"site-packages", b"test_artefacts", b'.py"', b", line "):
            assert name not in content, (path.name, name)


def test_the_same_network_gives_the_same_bytes(written: Path, network: PixelNetwork, tmp_path: Path) -> None:
    export_model(network, tmp_path, SIZE, formats=("safetensors",), class_names=[str(n) for n in range(CLASSES)])
    for name in ("model.safetensors", "recipe.json"):
        assert (tmp_path / name).read_bytes() == (written / name).read_bytes(), name
    simple = Plain()
    for folder in ("one", "two"):
        export_model(simple, tmp_path / folder, SIZE, formats=("onnx", "torch_export"))
    for name in ("model.onnx", "model.pt2"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


# Sparse weights -------------------------------------------------------------------------------------------------------


def test_zeros_make_the_deflated_file_small(written: Path, tmp_path: Path) -> None:
    sparse = plain()
    with torch.no_grad():
        for parameter in sparse.parameters():
            if parameter.ndim > 1:
                parameter[parameter.abs() < parameter.abs().flatten().quantile(0.9)] = 0
    for artefact in export_model(sparse, tmp_path, SIZE).values():
        dense = (written / artefact.path.name).read_bytes()
        assert artefact.size == pytest.approx(len(dense), rel=0.02), artefact.path.name
        assert artefact.deflated < 0.35 * len(zlib.compress(dense, 6)), artefact.path.name
    assert not (written / "model.safetensors.zz").exists()
    compressed = tmp_path / "model.safetensors.zz"
    assert compressed.stat().st_size == artefacts.deflated_bytes(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    with torch.no_grad():
        assert torch.equal(load_recipe(tmp_path)(images(2)), sparse.eval()(images(2))), "it alone is enough"


def test_a_compressed_copy_of_an_earlier_export_is_removed(tmp_path: Path, network: PixelNetwork) -> None:
    (tmp_path / "model.safetensors.zz").write_bytes(b"old")
    export_model(network, tmp_path, SIZE, formats=("safetensors",))
    assert not (tmp_path / "model.safetensors.zz").exists()


def test_shared_tensors_are_stored_once() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert list(distinct_tensors(nn.Sequential(first, second))) == ["0.weight", "0.bias", "1.bias"]


# Errors ---------------------------------------------------------------------------------------------------------------


class Plain(nn.Sequential):
    """A network that `create_network` did not make."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))


def test_a_network_without_a_recipe_has_the_other_formats(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a Plain cannot be written as safetensors .* create_network did not make it"):
        export_model(Plain(), tmp_path, SIZE)
    assert list(tmp_path.iterdir()) == []
    found = export_model(Plain(), tmp_path, SIZE, images(8), formats=("onnx", "torch_export"))
    assert [artefact.path.name for artefact in found.values()] == ["model.onnx", "model.pt2"]


def test_an_unknown_format(tmp_path: Path, network: PixelNetwork) -> None:
    with pytest.raises(UserError, match=r"there is no format 'onx' to export to. Nearest: onnx"):
        export_model(network, tmp_path, SIZE, formats=("onx",))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_that_cannot_be_written(tmp_path: Path, network: PixelNetwork, name: Any) -> None:
    (tmp_path / "model").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/model/model\.\w+: "):
        export_model(network, tmp_path / "model", SIZE, formats=(name,))


class Fork(nn.Module):
    """Takes another way if the first pixel is bright, which no graph can follow."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.mean((2, 3)) if pixels[0, 0, 0, 0] > 0.5 else pixels.amax((2, 3))


@pytest.mark.parametrize("name", ["onnx", "torch_export"])
def test_a_network_that_cannot_be_captured(tmp_path: Path, name: Any) -> None:
    with pytest.raises(UserError, match=r"Fork cannot be exported as a graph: .*; leave this format out"):
        export_model(Fork(), tmp_path, SIZE, formats=(name,))


@pytest.mark.parametrize("name", FORMATS)
def test_an_artefact_that_computes_something_else_is_an_error_and_removed(
    tmp_path: Path, name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = plain().eval() if name == "safetensors" else Plain()
    other: Any = copy.deepcopy(network)
    with torch.no_grad():
        (other.backbone.fc if name == "safetensors" else other[-1]).bias += torch.arange(CLASSES) * 0.1
    monkeypatch.setattr(artefacts, "ready", lambda _: other)
    with pytest.raises(UserError, match=r"model\.\w+ does not compute what the network computes: .* up to 0\.9"):
        export_model(network, tmp_path, SIZE, images(16), formats=(name,))
    assert list(tmp_path.iterdir()) == []
    found = export_model(network, tmp_path, SIZE, images(16), formats=(name,), tolerance=Tolerance(None, 0.0))
    assert found[name].parity is not None
    assert found[name].parity.difference == pytest.approx(0.9, abs=1e-3)


def test_what_nothing_can_run_is_said_not_to_be_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtimes, "missing", lambda runtime: "not installed")
    with caplog.at_level(logging.WARNING, "compresslens"):
        found = export_model(Plain(), tmp_path, SIZE, images(4), formats=("onnx",))
    assert found["onnx"].parity is None
    assert found["onnx"].path.is_file()
    assert caplog.messages == ["model.onnx was not verified: install the extra `deploy` (onnxruntime, openvino)"]


def test_onnx_needs_its_packages(tmp_path: Path, network: PixelNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    find = artefacts.check_packages.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "onnx" else find(name, *more))
    with pytest.raises(UserError, match="export to ONNX needs the package onnx: pip install onnx"):
        export_model(network, tmp_path, SIZE)
    assert list(tmp_path.iterdir()) == []


# Reading a recipe -----------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(written: Path, tmp_path: Path) -> Path:
    """A copy of the safetensors format."""
    for name in ("model.safetensors", "recipe.json"):
        (tmp_path / name).write_bytes((written / name).read_bytes())
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_files(recipe: Path) -> None:
    (recipe / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors: No such file"):
        load_recipe(recipe)
    with pytest.raises(UserError, match=r"cannot read .*recipe\.json: No such file"):
        load_recipe(recipe / "nowhere")


def test_broken_files(recipe: Path) -> None:
    whole = (recipe / "model.safetensors").read_bytes()
    (recipe / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read as weights"):
        load_recipe(recipe)
    (recipe / "recipe.json").write_text("{")
    with pytest.raises(UserError, match=r"recipe\.json is no JSON"):
        load_recipe(recipe)


def test_another_format(recipe: Path) -> None:
    edit(recipe, format=2)
    with pytest.raises(UserError, match=r"has format 2, but this version reads format 1"):
        load_recipe(recipe)


def test_an_unknown_change_is_not_looked_up(recipe: Path) -> None:
    edit(recipe, changes=[{"kind": "os.system"}])
    with pytest.raises(UserError, match=r"changed in a way that this version does not know: 'os\.system'"):
        load_recipe(recipe)


def test_weights_of_another_network(recipe: Path, written: Path) -> None:
    arguments = json.loads((written / "recipe.json").read_text())["recipe"]
    edit(recipe, recipe=arguments | {"num_classes": CLASSES + 1})
    with pytest.raises(UserError, match=r"does not fit its recipe: backbone\.fc\.\w+ is torch\.float32 \(10"):
        load_recipe(recipe)
    edit(recipe, recipe=arguments | {"architecture": "test_resnet", "stem": "small"})
    with pytest.raises(UserError, match=r"does not fit its recipe: .* (is missing|is not part of it|in the network)"):
        load_recipe(recipe)


def test_the_weights_are_plain_safetensors(written: Path, network: PixelNetwork) -> None:
    with safetensors.safe_open(written / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(network.state_dict())
