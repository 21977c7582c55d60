"""Low-rank factorization: convolutions and linear layers as sequences of cheaper ones."""

from compresslens.low_rank.factorize import apply_plan, factorize, plan_factorization, rebuild
from compresslens.low_rank.selection import Method

__all__ = ["Method", "apply_plan", "factorize", "plan_factorization", "rebuild"]
