"""Files that other programs can run, checked against the network they came from, and what running them costs."""

from compresslens.export.artefacts import FORMATS, Artefact, Format, export_model
from compresslens.export.onnx import export_onnx
from compresslens.export.parity import Parity, Tolerance, compare
from compresslens.export.ready import is_int8, is_rounded, ready
from compresslens.export.safetensors_recipe import export_safetensors, load_recipe
from compresslens.export.torch_export import export_torch, load_torch

__all__ = [
    "FORMATS",
    "Artefact",
    "Format",
    "Parity",
    "Tolerance",
    "compare",
    "export_model",
    "export_onnx",
    "export_safetensors",
    "export_torch",
    "is_int8",
    "is_rounded",
    "load_recipe",
    "load_torch",
    "ready",
]
