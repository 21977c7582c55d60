"""`model.pt2`: a graph of ATen operators with its weights, for PyTorch without this package."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compresslens.errors import UserError
from compresslens.export.quiet import quiet
from compresslens.export.ready import BATCH, cannot_export, example, write

# Where the operators came from: file names of this machine, and several times the size of the graph itself.
_ORIGIN = ("stack_trace", "from_node", "source_fn_stack", "torch_fn", "nn_module_stack")


def capture(network: Any, image_size: int) -> Any:
    """The `torch.export.ExportedProgram` of a network, for batches of 1 to 4096 images, without traces of its origin.

    Args:
        network: in eval mode, on the CPU (see `ready`); an exported program is returned as it is.
        image_size: side of the images.

    Raises:
        UserError: torch cannot follow the network.
    """
    if isinstance(network, torch.export.ExportedProgram):
        return network
    shapes = ({0: torch.export.Dim("batch", min=1, max=BATCH)},)
    try:
        with torch.no_grad():
            program = torch.export.export(network, (example(image_size),), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of many kinds
        raise cannot_export(network, "a graph", error) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in _ORIGIN:
                node.meta.pop(key, None)
    return program


def export_torch(network: Any, path: Path, image_size: int) -> None:
    """Writes a `.pt2` file; `torch.export.load(path).module()` runs it (INT8: after `import torchao`).

    Args:
        network: from pixels N×3×S×S in [0, 1] to logits, in eval mode, on the CPU (see `ready`); or what `capture` has
            made of it.
        path: the file.
        image_size: S.

    Raises:
        UserError: torch cannot follow the network, or the file cannot be written.
    """
    program = capture(network, image_size)
    example, program._example_inputs = program._example_inputs, None  # it would be stored like a weight
    buffer = io.BytesIO()  # in a file, torch would name the archive's folder after the file
    try:
        torch.export.save(program, buffer)
    except Exception as error:
        raise cannot_export(network, "a .pt2 file", error) from error
    finally:
        program._example_inputs = example
    write(path, buffer.getvalue())


def load_torch(path: Path) -> nn.Module:
    """The network of a `.pt2` file, for evaluation only.

    Raises:
        UserError: it cannot be read.
    """
    register_quantized_operators()
    try:
        return torch.export.load(path).module()
    except Exception as error:
        raise UserError(f"{path} cannot be read as a .pt2 file: {' '.join(str(error).split())[:200]}") from error


def register_quantized_operators() -> None:
    """Tells PyTorch the operators that INT8 graphs consist of."""
    with quiet("torch.utils._pytree"):
        import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401
