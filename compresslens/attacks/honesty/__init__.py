"""Checks for false robustness: can the distances that an attack finds be believed?"""

from compresslens.attacks.honesty.check import Check, Curve
from compresslens.attacks.honesty.examine import examine
from compresslens.attacks.honesty.panel import panel

__all__ = ["Check", "Curve", "examine", "panel"]
