"""Losses that teach a compressed student what its teacher knows. Torch only; one file per loss."""

from compresslens.distillation.attention_transfer_loss import AttentionTransferLoss
from compresslens.distillation.class_activation_loss import ClassActivationLoss
from compresslens.distillation.decoupled_kd_loss import DecoupledKDLoss
from compresslens.distillation.distillation_loss import DistillationLoss
from compresslens.distillation.hint_loss import HintLoss
from compresslens.distillation.logit_kd_loss import LogitKDLoss
from compresslens.distillation.outputs import Outputs
from compresslens.distillation.relational_kd_loss import RelationalKDLoss

__all__ = [
    "AttentionTransferLoss",
    "ClassActivationLoss",
    "DecoupledKDLoss",
    "DistillationLoss",
    "HintLoss",
    "LogitKDLoss",
    "Outputs",
    "RelationalKDLoss",
]
