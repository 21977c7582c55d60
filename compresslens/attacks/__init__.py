"""Attacks: is the compressed network still as hard to fool?"""

from compresslens.attacks.carlini_wagner import carlini_wagner_l2
from compresslens.attacks.ray import ray_search
from compresslens.attacks.result import AttackResult, Evaluation, concatenate, least_distance

__all__ = ["AttackResult", "Evaluation", "carlini_wagner_l2", "concatenate", "least_distance", "ray_search"]
