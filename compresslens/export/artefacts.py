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
from compresslens.export.parity import FLOAT, INT8, Parity, Tolerance
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
        adapted: whether it is an INT8 network's graph adapted to the runtimes (see `int8_onnx`); False: the graph as it
            is, which ONNX Runtime computes partly in float; None: nothing to adapt in this format or network.
        rejected: how the adapted graph compared, if that is why it was not taken.
    """

    path: Path
    size: int
    deflated: int
    parity: Parity | None
    adapted: bool | None = None
    rejected: Parity | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the folder."""
        return {
            "file": self.path.name,
            "bytes": self.size,
            "deflated_bytes": self.deflated,
            "parity": None if self.parity is None else self.parity.as_json(),
            "adapted": self.adapted,
            "rejected_parity": None if self.rejected is None else self.rejected.as_json(),
        }


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
    tolerance: Tolerance | None = None,
) -> dict[str, Artefact]:
    """Writes a network in several formats and checks each against the network; one that fails is removed.

    Args:
        network: from pixels N×3×S×S in [0, 1] to logits; left as it was. With fake quantizers, it is written in INT8.
        folder: where the files are to be.
        image_size: S.
        images: N×3×S×S, what the artefacts are checked on; None: they are not.
        calibration: N×3×S×S, training images; where given, the ONNX file of an INT8 network is adapted to the runtimes
            that read it, which makes it faster (see `int8_onnx`). If the check then fails, a warning says so, and the
            graph is written, and checked, as it is.
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
    tolerance = tolerance or (INT8 if is_rounded(network) else FLOAT)
    deployed = ready(network)
    expected = None if images is None else logits_of(network, images)
    graph = capture(deployed, image_size) if set(formats) & {"onnx", "torch_export"} else None
    written: dict[str, tuple[Path, tuple[Any, ...], Future[int]]] = {}
    with ThreadPoolExecutor(1) as helper:  # deflating takes longer than writing, and waits for nothing
        for name in formats:
            path = folder / FILES[name]
            checked = rejected = None
            adapted = False if name == "onnx" and is_int8(network) else None
            if adapted is not None and calibration is not None:
                export_onnx(for_runtimes(deployed, calibration), path, image_size)
                checked = _compare(name, path, images, expected)
                adapted = _is_kept(path, checked, tolerance)
                rejected = None if adapted else checked
            if not adapted:
                _write(name, path, network, deployed, graph, image_size, class_names)
                checked = _compare(name, path, images, expected)
                _demand(name, path, checked, tolerance)
            written[name] = path, (checked, adapted, rejected), helper.submit(deflated_bytes, path)
    return {
        name: Artefact(path, path.stat().st_size, deflated.result(), *outcome)
        for name, (path, outcome, deflated) in written.items()
    }


def deflated_bytes(path: Path) -> int:
    """Size of a file after deflate (zlib, level 6)."""
    return len(zlib.compress(path.read_bytes(), DEFLATE_LEVEL))


def _write(
    name: str,
    path: Path,
    network: nn.Module,
    deployed: nn.Module,
    graph: Any,
    image_size: int,
    class_names: list[str] | None,
) -> None:
    if name == "onnx":
        export_onnx(graph, path, image_size)
    elif name == "torch_export":
        export_torch(graph, path, image_size)
    else:
        export_safetensors(network, path.parent, class_names, deployed)


def _compare(name: str, path: Path, images: Tensor | None, expected: Tensor | None) -> Parity | None:
    """Runs an artefact; None if there is nothing to run it on, or nothing that runs it."""
    if images is None or expected is None:
        return None
    if name == "onnx":
        runtime = next((r for r in ("onnxruntime", "openvino") if runtimes.missing(r) is None), None)
        if runtime is None:
            logger.warning("%s was not verified: install the extra `deploy` (onnxruntime, openvino)", path.name)
            return None
        got = runtimes.run(runtime, path, images)
    else:
        runtime = "PyTorch"
        got = logits_of(load_torch(path) if name == "torch_export" else load_recipe(path.parent), images)
    return parity.compare(expected, got, runtime)


def _is_kept(path: Path, found: Parity | None, tolerance: Tolerance) -> bool:
    """Whether an adapted graph may stay; otherwise says why not, and removes it."""
    figures = None if found is None else parity.shortfall(found, tolerance)
    if figures is None:
        return True
    path.unlink()
    logger.warning(
        "%s: adapted to INT8 runtimes it would not compute what the network computes: %s; it was written unadapted, "
        "and ONNX Runtime, which computes it partly in float, will be slower",
        path.name,
        figures,
    )
    return False


def _demand(name: str, path: Path, found: Parity | None, tolerance: Tolerance) -> None:
    """Raises UserError, and removes the artefact, if it computes something else."""
    if found is None:
        return
    try:
        parity.check(found, tolerance, path.name)
    except UserError:
        path.unlink()
        if name == "safetensors":
            (path.parent / RECIPE).unlink()
        raise
