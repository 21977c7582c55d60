"""Factorize and fine-tune: convolutions are replaced by sequences of smaller ones, which are trained further."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from compresslens.footprint import count_macs
from compresslens.low_rank.factorize import apply_plan, check_settings, plan_factorization
from compresslens.low_rank.selection import Method, check_layers
from compresslens.networks.changes import Change
from lightning_modules.compression import Compression


class FactorizeAndFinetune(Compression):
    """Replaces layers of `network` by low-rank ones when a fit begins, and trains what comes out.

    Only layers are replaced for which that saves multiply-accumulates; never the classifier, nor grouped convolutions.

    Args:
        network: the trained network to compress.
        method: for kernels larger than 1×1. "tucker": a smaller kernel between two 1×1 convolutions (Kim et al. 2016);
            "spatial_svd": a vertical and a horizontal convolution (Jaderberg et al. 2014); "cp": vertical and
            horizontal depthwise convolutions between two 1×1 ones (Lebedev et al. 2015). 1×1 convolutions and linear
            layers get a plain singular value decomposition.
        energy: share in (0, 1] of the squared singular values to keep in each layer; 1: fine-tuning and no more.
        macs: multiply-accumulates of the whole network to come down to, within 1 %: up to 1, a share of what they are
            now; above, their number. Exactly one of `energy` and `macs` must be given.
        keep_layers: layers, or modules with layers in them, to leave as they are, besides the classifier; names as
            in `network.backbone`.
        layers: layers or modules to factorize; None: all that can be but the first convolution.
        options: those of `Compression`.
    """

    def __init__(
        self,
        network: nn.Module,
        method: Method = "tucker",
        energy: float | None = None,
        macs: float | None = None,
        keep_layers: list[str] | None = None,
        layers: list[str] | None = None,
        **options: Any,
    ) -> None:
        check_settings(method, energy, macs)
        check_layers(network, keep_layers or [], layers)
        super().__init__(network, **options)
        self.method: Method = method
        self.energy = energy
        self.macs = macs
        self.keep_layers = keep_layers or []
        self.layers = layers

    def compress(self) -> None:
        """Factorizes, with the ranks that rank zero has found."""
        size = self._data.image_size
        before = count_macs(self.model, size)
        plan = plan_factorization(
            self.model,
            self.method,
            energy=self.energy,
            macs=self.macs,
            image_size=size,
            keep=self.keep_layers,
            layers=self.layers,
        )
        plan = self.trainer.strategy.broadcast(plan)
        apply_plan(self.model, plan)
        self.model.to(memory_format=self.memory_format)
        after = count_macs(self.model, size)
        rank_zero_info(f"factorized {len(plan)} layers: {after:,} multiply-accumulates, {after / before:.1%} of before")

    def rebuild(self, changes: list[Change]) -> None:
        """As for all compressions; new layers also get the memory format that the others have."""
        super().rebuild(changes)
        self.model.to(memory_format=self.memory_format)
