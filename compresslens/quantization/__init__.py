"""Quantization: INT8 as processors compute it, and fewer bits with learned steps as a simulation."""

from compresslens.quantization.fake_quant import calibrate, fake_quantize
from compresslens.quantization.int8 import convert, deployable
from compresslens.quantization.learned_steps import learn_steps, quantized_layers
from compresslens.quantization.lsq_packing import packed_state, unpack_state

__all__ = [
    "calibrate",
    "convert",
    "deployable",
    "fake_quantize",
    "learn_steps",
    "packed_state",
    "quantized_layers",
    "unpack_state",
]
