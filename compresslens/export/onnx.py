"""`model.onnx`: one file, batches of any size, INT8 as pairs of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from compresslens.errors import UserError
from compresslens.export.onnx_bias import round_biases
from compresslens.export.onnx_padding import move_padding
from compresslens.export.quiet import quiet
from compresslens.export.ready import cannot_export, write
from compresslens.export.torch_export import capture

OPSET = 21
INPUT, OUTPUT = "images", "logits"
_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir")


def export_onnx(network: Any, path: Path, image_size: int) -> None:
    """Writes an ONNX file with the input `images` (batch×3×S×S, pixels in [0, 1]) and the output `logits`.

    Args:
        network: from pixels to logits, in eval mode, on the CPU (see `ready`); or what `torch_export.capture` has made
            of it.
        path: the file.
        image_size: S.

    Raises:
        UserError: the packages onnx and onnxscript are missing, the network cannot be translated, or the file cannot
            be written.
    """
    check_packages()
    program = capture(network, image_size)
    try:
        with quiet(*_CHATTY):
            translated: Any = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamic_shapes=({0: "batch"},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # of many kinds
        raise cannot_export(network, "ONNX", error) from error
    move_padding(translated.model)
    round_biases(translated.model)
    _forget_origin(translated.model)
    write(path, translated.model_proto.SerializeToString())


def check_packages() -> None:
    """Raises UserError unless what writes ONNX files is installed."""
    absent = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"export to ONNX needs the package {absent[0]}: pip install {' '.join(absent)}")


def _forget_origin(model: Any) -> None:
    """Removes from an `onnx_ir` model what names this machine's files or repeats the graph as text."""
    model.metadata_props.clear()
    model.doc_string = None
    graphs = [model.graph, *model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
                value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
