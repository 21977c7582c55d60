from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch._dynamo.config

from compresslens.errors import UserError
from compresslens.export import artefacts, export_model, runtimes
from compresslens.networks import PixelNetwork
from tests.export.networks import SIZE, images, plain


@pytest.fixture(scope="module")
def network() -> PixelNetwork:
    return plain().eval()


@pytest.fixture(scope="module")
def folder(network: PixelNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    export_model(network, folder, SIZE, formats=("onnx", "torch_export"))
    return folder


@pytest.mark.parametrize(
    "runtime", ["openvino", "onnxruntime", "eager", pytest.param("compiled", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("batch", [1, 3])
def test_all_compute_the_same(folder: Path, network: PixelNetwork, runtime: str, batch: int) -> None:
    path = folder / artefacts.FILES[runtimes.FILES[runtime]]
    predict = runtimes.load(runtime, path, batch, SIZE, threads=1)
    with torch.no_grad():
        expected = network(images(batch))
    torch.testing.assert_close(torch.as_tensor(predict(images(batch))), expected, rtol=1e-4, atol=1e-4)
    assert runtimes.version(runtime).count(".") >= 1


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_batches_of_any_size(folder: Path, network: PixelNetwork, runtime: str) -> None:
    with torch.no_grad():
        expected = network(images(7))
    got = runtimes.run(runtime, folder / "model.onnx", images(7), batch=3)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_threads_are_those_asked_for_only_within_a_call(folder: Path) -> None:
    before = torch.get_num_threads()
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return pixels

    runtimes.eager(Spy(), threads=before + 1)(images(1))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_what_is_not_installed(folder: Path, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == runtime else find(name, *more))
    message = rf"cannot run model\.onnx in {runtime}: {runtime} is not installed: pip install 'compresslens\[deploy\]'"
    with pytest.raises(UserError, match=message):
        runtimes.load(runtime, folder / "model.onnx", 1, SIZE)


def test_compiling_needs_a_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disabled = torch._dynamo.config.patch(disable=True)  # type: ignore[attr-defined]
    with disabled, pytest.raises(UserError, match=r"torch\.compile is switched off"):
        runtimes.load("compiled", folder / "model.pt2", 1, SIZE)

    def none() -> str:
        from torch._inductor.exc import InvalidCxxCompiler

        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    assert runtimes.missing("compiled") == "there is no C++ compiler: install g++"


def test_an_unknown_runtime() -> None:
    with pytest.raises(UserError, match=r"there is no runtime 'onnx'. Nearest: onnxruntime"):
        runtimes.missing("onnx")


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime", "eager"])
def test_a_broken_file(tmp_path: Path, runtime: str) -> None:
    path = tmp_path / ("model.pt2" if runtime == "eager" else "model.onnx")
    path.write_bytes(b"nothing of use")
    with pytest.raises(UserError, match=r"model\.\w+"):
        runtimes.load(runtime, path, 1, SIZE)
