"""Lightning shells: when and with what, never how."""

from lightning_modules.classifier import ImageClassifier
from lightning_modules.compression import Compression
from lightning_modules.distillation import Distillation
from lightning_modules.low_rank import FactorizeAndFinetune
from lightning_modules.pruning import PruneAndFinetune
from lightning_modules.quantization import QuantizationAwareTraining

__all__ = [
    "Compression",
    "Distillation",
    "FactorizeAndFinetune",
    "ImageClassifier",
    "PruneAndFinetune",
    "QuantizationAwareTraining",
]
