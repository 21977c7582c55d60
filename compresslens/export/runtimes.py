"""The programs that run artefacts: each as a function from images to logits, on the CPU, with a number of threads."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.export.onnx import INPUT
from compresslens.export.quiet import quiet
from compresslens.export.torch_export import load_torch
from compresslens.networks.names import nearest

Runtime = Literal["openvino", "onnxruntime", "compiled", "eager"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
"""From the one that is usually fastest to the slowest. "eager": PyTorch; "compiled": `torch.compile` (inductor)."""
FILES: dict[str, str] = {"openvino": "onnx", "onnxruntime": "onnx", "compiled": "torch_export", "eager": "torch_export"}
"""The format of `compresslens.export` that each of them reads."""

Predict = Callable[[Tensor], Any]


def missing(runtime: str) -> str | None:
    """What is missing on this machine to use a runtime; None if it can be used.

    Raises:
        UserError: there is no such runtime.
    """
    if runtime not in RUNTIMES:
        raise UserError(f"there is no runtime {runtime!r}. Nearest: {nearest(runtime, list(RUNTIMES))}")
    if runtime in ("openvino", "onnxruntime"):
        found = importlib.util.find_spec(runtime) is not None
        return None if found else f"{runtime} is not installed: pip install 'compresslens[deploy]'"
    if runtime == "compiled":
        return _missing_for_compiling()
    return None


def version(runtime: str) -> str:
    """Version of the package behind a runtime."""
    return importlib.metadata.version(runtime if runtime in ("openvino", "onnxruntime") else "torch")


def load(runtime: str, path: Path, batch: int | None, image_size: int, threads: int = 1) -> Predict:
    """Prepares an artefact to be run.

    What comes back is in the runtime's own type (a tensor or an array) and may be overwritten by the next call.

    Args:
        runtime: see `RUNTIMES`.
        path: the artefact, in the format that `FILES` says.
        batch: number of images of each call, which lets some runtimes plan ahead; None: any.
        image_size: S.
        threads: that a call may use.

    Returns:
        From images batch×3×S×S in [0, 1] to logits.

    Raises:
        UserError: there is no such runtime, it is not installed, or it cannot run the artefact.
    """
    lack = missing(runtime)
    if lack is not None:
        raise UserError(f"cannot run {path.name} in {runtime}: {lack}")
    try:
        if runtime == "openvino":
            return _openvino(path, batch, image_size, threads)
        if runtime == "onnxruntime":
            return _onnxruntime(path, threads)
        network = load_torch(path)
        return _compiled(network, batch, image_size, threads) if runtime == "compiled" else eager(network, threads)
    except UserError:
        raise
    except Exception as error:  # of many kinds
        raise UserError(f"{runtime} cannot run {path}: {' '.join(str(error).split())[:300]}") from error


def run(runtime: str, path: Path, images: Tensor, batch: int = 32) -> Tensor:
    """Float32 logits N×C of an artefact, for images N×3×S×S."""
    predict = load(runtime, path, None, images.shape[-1], threads=torch.get_num_threads())
    return torch.cat([torch.as_tensor(predict(part)).float().clone() for part in images.split(batch)])


def eager(network: nn.Module, threads: int = 1) -> Predict:
    """PyTorch as it is."""

    def predict(images: Tensor) -> Tensor:
        with torch_threads(threads), torch.no_grad():
            return network(images)

    return predict


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within the block PyTorch uses so many threads."""
    before = torch.get_num_threads()
    if count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compiled(network: nn.Module, batch: int | None, image_size: int, threads: int) -> Predict:
    """Compiles for one batch size, with the weights as constants (inductor's freezing), which INT8 needs.

    The graph of a `.pt2` file, unlike a network, is a class of its own: compiled networks of one class count towards
    dynamo's limit of recompilations together.
    """
    import torch._inductor.config as inductor

    compiled: Any = torch.compile(network, dynamic=batch is None)
    predict = eager(compiled, threads)
    with inductor.patch(freezing=True), quiet("torch.utils.cpp_extension"):
        predict(torch.zeros(batch or 2, 3, image_size, image_size))
    return predict


def _missing_for_compiling() -> str | None:
    from torch._dynamo import config
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if config.disable:
        return "torch.compile is switched off (TORCH_COMPILE_DISABLE)"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler: install g++"
    return None


def _onnxruntime(path: Path, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images.numpy()})[0]


def _openvino(path: Path, batch: int | None, image_size: int, threads: int) -> Predict:
    """Float stays float32: without the hint OpenVINO computes in bfloat16 where the processor can."""
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape([batch or -1, 3, image_size, image_size])
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda images: request.infer([images.numpy()], share_inputs=True, share_outputs=True)[0]
