"""All artefacts of a network in one folder, each checked."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.export import parity, runtimes
from compresslens.export.evaluation import logits_of
from compresslens.export.int8_onnx import for_runtimes
from compresslens.export.onnx import check_packages, export_onnx
from compresslens.export.ready import is_int8, is_rounded, ready
from compresslens.export.safetensors_recipe import (
    DEFLATE_LEVEL,
    RECIPE,
    WEIGHTS,
    check_recipe,
    export_safetensors,
    load_recipe,
)
from compresslens.export.torch_export import capture, export_torch, load_torch
from compresslens.networks.names import nearest

logger = logging.getLogger(__name__)

Format = Literal["onnx", "torch_export", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)
FILES: dict[str, str] = {"onnx": "model.onnx", "torch_export": "model.pt2", "safetensors": WEIGHTS}
"""The file that holds the weights, by format."""


@dataclass(frozen=True)
class Artefact:
    """A file that was written.

    Attributes:
        path: the file; beside a safetensors file stands its `recipe.json`.
        size: bytes on disk, without the recipe.
        deflated: the same after deflate (zlib, level 6), which is what makes zeros and repeated values count.
        parity: how it compares with the network; None if nothing installed can run it.
    """

    path: Path
    size: int
    deflated: int
    parity: parity.Parity | None

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the folder."""
        checked = None if self.parity is None else self.parity.as_json()
        return {"file": self.path.name, "bytes": self.size, "deflated_bytes": self.deflated, "parity": checked}


def suitable_formats(network: nn.Module) -> tuple[Format, ...]:
    """All formats; without the recipe where nobody could follow it, since `create_network` did not make the network."""
    has_recipe = bool(getattr(network, "recipe", None))
    return tuple(name for name in FORMATS if name != "safetensors" or has_recipe)


def check_formats(formats: Sequence[str], network: nn.Module | None = None) -> None:
    """Raises UserError unless these are formats, and such as can be written on this machine for this network."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"there is no format {name!r} to export to. Nearest: {nearest(name, list(FORMATS))}")
    if "onnx" in formats:
        check_packages()
    if "safetensors" in formats and network is not None:
        check_recipe(network)


@torch.inference_mode(False)  # what is traced and rebuilt must be ordinary tensors
def export_model(
    network: nn.Module,
    folder: Path,
    image_size: int,
    images: Tensor | None = None,
    calibration: Tensor | None = None,
    formats: Sequence[Format] = FORMATS,
    class_names: list[str] | None = None,
    tolerance: parity.Tolerance | None = None,
) -> dict[str, Artefact]:
    """Writes a network in several formats and checks each against the network; one that fails is removed.

    Args:
        network: from pixels N×3×S×S in [0, 1] to logits; left as it was. With fake quantizers, it is written in INT8.
        folder: where the files are to be.
        image_size: S.
        images: N×3×S×S, what the artefacts are checked on; None: they are not.
        calibration: N×3×S×S, training images; where given, the ONNX file of an INT8 network is adapted to the runtimes
            that read it, which makes it faster (see `int8_onnx`).
        formats: see `FORMATS`.
        class_names: in the order of the logits, for the recipe.
        tolerance: of the check; None: `parity.FLOAT`, or `parity.INT8` for an INT8 network.

    Returns:
        What was written, by format.

    Raises:
        UserError: no such format; a format does not suit the network; an artefact computes something else; a file
            cannot be written.
    """
    check_formats(formats, network)
    tolerance = tolerance or (parity.INT8 if is_rounded(network) else parity.FLOAT)
    deployed = ready(network)
    expected = None if images is None else logits_of(network, images)
    graph = capture(deployed, image_size) if set(formats) & {"onnx", "torch_export"} else None
    for_onnx = graph
    if is_int8(network) and calibration is not None and "onnx" in formats:
        for_onnx = capture(for_runtimes(deployed, calibration), image_size)
    written: dict[str, tuple[Path, parity.Parity | None, Future[int]]] = {}
    with ThreadPoolExecutor(1) as helper:  # deflating takes longer than writing, and waits for nothing
        for name in formats:
            path = folder / FILES[name]
            if name == "onnx":
                export_onnx(for_onnx, path, image_size)
            elif name == "torch_export":
                export_torch(graph, path, image_size)
            else:
                export_safetensors(network, folder, class_names, deployed)
            checked = None
            if images is not None and expected is not None:
                checked = _check(name, path, images, expected, tolerance)
            written[name] = path, checked, helper.submit(deflated_bytes, path)
    return {
        name: Artefact(path, path.stat().st_size, deflated.result(), checked)
        for name, (path, checked, deflated) in written.items()
    }


def deflated_bytes(path: Path) -> int:
    """Size of a file after deflate (zlib, level 6)."""
    return len(zlib.compress(path.read_bytes(), DEFLATE_LEVEL))


def _check(
    name: str, path: Path, images: Tensor, expected: Tensor, tolerance: parity.Tolerance
) -> parity.Parity | None:
    """Runs an artefact; removes it if it computes something else."""
    if name == "onnx":
        runtime = next((r for r in ("onnxruntime", "openvino") if runtimes.missing(r) is None), None)
        if runtime is None:
            logger.warning("%s was not verified: install the extra `deploy` (onnxruntime, openvino)", path.name)
            return None
        got = runtimes.run(runtime, path, images)
    else:
        runtime = "PyTorch"
        got = logits_of(load_torch(path) if name == "torch_export" else load_recipe(path.parent), images)
    found = parity.compare(expected, got, runtime)
    try:
        parity.check(found, tolerance, path.name)
    except UserError:
        path.unlink()
        if name == "safetensors":
            (path.parent / RECIPE).unlink()
        raise
    return found
