"""Lightning shells: when and with what, never how."""

from lightning_modules.classifier import ImageClassifier
from lightning_modules.distillation import Distillation

__all__ = ["Distillation", "ImageClassifier"]
