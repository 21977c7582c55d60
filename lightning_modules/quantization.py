"""Quantization-aware training, and post-training quantization as the case of no epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.pruning.layers import weight_layers, weights_of
from compresslens.pruning.masks import MaskedWeights, nonzero_masks
from lightning_modules.compression import Compression

Scheme = Literal["int8", "learned_steps"]


class QuantizationAwareTraining(Compression):
    """Trains `network` with rounded weights and activations, so that it bears to be computed with few bits.

    `model` stays differentiable (straight-through). Its ranges are first set on training images; with
    `trainer.max_epochs: 0` that is all that happens: post-training quantization.

    Schemes:

    * "int8": what x86 processors compute (Jacob et al. 2018): torchao's graph, which
      `compresslens.quantization.convert` turns into an INT8 network.
    * "learned_steps": steps of weights and activations are learned, too (LSQ, Esser et al. 2020). A study of 2 to 8
      bits: no hardware here computes with fewer than 8.

    Weights that are exactly zero in `network` were pruned by an earlier run: they stay zero.

    Args:
        network: the trained float network, e.g. `create_network(..., weights="runs/baseline_resnet18/latest")`.
        scheme: see above.
        weight_bits: 8 for "int8"; 2 to 8, or 32 for none, for "learned_steps".
        activation_bits: likewise.
        edge_bits: bits of the first convolution and of the classifier in "learned_steps".
        float_layers: names of layers that are not quantized.
        calibration_samples: training images that ranges are first set on.
        freeze_observers_after: share of the training after which the ranges of activations stay ("int8" only).
        freeze_batchnorm_after: share of the training after which batch normalization keeps its running statistics. Too
            early, while the learning rate is high, that makes the training diverge.
        tolerance: for "int8": greatest loss of validation accuracy by quantization before training, relative to the
            float network's. neural-compressor then looks for as few float layers as that takes. None: no such search.
        tuning_trials: how many selections of float layers are tried at most.
        tuning_samples: validation images that accuracy is measured on meanwhile.
        options: those of `Compression`.
    """

    def __init__(
        self,
        network: nn.Module,
        scheme: Scheme = "int8",
        weight_bits: int = 8,
        activation_bits: int = 8,
        edge_bits: int = 8,
        float_layers: list[str] | None = None,
        calibration_samples: int = 256,
        freeze_observers_after: float = 0.5,
        freeze_batchnorm_after: float = 0.9,
        tolerance: float | None = None,
        tuning_trials: int = 6,
        tuning_samples: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        if scheme == "int8" and (weight_bits, activation_bits) != (8, 8):
            raise UserError("scheme 'int8' has 8 bits: use scheme 'learned_steps' for other numbers of bits")
        if scheme != "int8" and tolerance is not None:
            raise UserError("tolerance is for scheme 'int8': name float_layers instead")
        if tolerance is not None and not 0 <= tolerance < 1:
            raise UserError(f"tolerance is {tolerance}; it must be in [0, 1)")
        for name, share in (
            ("freeze_observers_after", freeze_observers_after),
            ("freeze_batchnorm_after", freeze_batchnorm_after),
        ):
            if not 0 <= share <= 1:
                raise UserError(f"{name} is {share}; it is a share of the training in [0, 1]")
        if min(calibration_samples, tuning_trials, tuning_samples) < 1:
            raise UserError("calibration_samples, tuning_trials and tuning_samples must be at least 1")
        self.scheme = scheme
        self.weight_bits = weight_bits
        self.activation_bits = activation_bits
        self.edge_bits = edge_bits
        self.float_layers = float_layers or []
        self.calibration_samples = calibration_samples
        self.freeze_observers_after = freeze_observers_after
        self.freeze_batchnorm_after = freeze_batchnorm_after
        self.tolerance = tolerance
        self.tuning_trials = tuning_trials
        self.tuning_samples = tuning_samples
        self._steps = 0
        self._pruned: MaskedWeights | None = None

    def setup(self, stage: str) -> None:
        """Checks the precision: rounded values must not be rounded a second time, to bfloat16."""
        super().setup(stage)
        if stage == "fit" and self.trainer.precision not in ("32-true", "64-true"):
            raise UserError(
                f"quantization-aware training needs trainer.precision 32-true, not {self.trainer.precision}"
            )

    def compress(self) -> None:
        """Puts in the quantizers and sets their ranges on training images."""
        from compresslens.quantization import calibrate, fake_quantize, learn_steps

        self.model.to(self.trainer.strategy.root_device)
        if self.scheme == "learned_steps":
            bits = (self.weight_bits, self.activation_bits)
            learn_steps(self.model, self._calibration_images(), *bits, edge_bits=self.edge_bits, keep=self.float_layers)
            return
        float_layers = self.float_layers if self.tolerance is None else self._tune(self.tolerance)
        fake_quantize(self.model, float_layers)
        calibrate(self.model, self._calibration_images())

    def on_train_start(self) -> None:
        """Computes how long the training is going to be."""
        trainer: Any = self.trainer
        self._steps = self.steps_in(trainer.max_epochs, trainer.max_steps)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Freezes what is due, by the number of the step alone: a continued run does the same."""
        super().on_train_batch_start(batch, batch_idx)
        share = self.trainer.global_step / self._steps
        freeze(self.model, share >= self.freeze_observers_after, share >= self.freeze_batchnorm_after)

    def on_fit_start(self) -> None:
        """Looks up which weights are zero in the network as it was given, so that a continued fit knows, too."""
        super().on_fit_start()
        layers = weights_of(weight_layers(self._original[0]))
        now = dict(self.model.named_parameters())
        weights = {name: now[parameter_name(f"{name}.weight", now)] for name in layers}
        self._pruned = MaskedWeights(weights, nonzero_masks(layers))

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """A step of the optimizer, after which what was pruned is zero again."""
        super().optimizer_step(*arguments, **options)
        if self._pruned is not None:
            self._pruned.apply()

    def on_validation_start(self) -> None:
        """Gives all processes rank zero's ranges, each having seen other images since the last step."""
        if self.trainer.state.fn == "fit" and self.trainer.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _calibration_images(self) -> Iterable[Tensor]:
        data = self._data
        if not hasattr(data, "calibration_loader"):
            raise UserError(f"{type(data).__name__} has no calibration_loader: derive it from ImageDataModule")
        device = self.trainer.strategy.root_device
        for batch in data.calibration_loader(self.calibration_samples):
            yield batch[0].to(device).contiguous(memory_format=self.memory_format)

    def _tune(self, tolerance: float) -> list[str]:
        """Names of the layers that stay in float, chosen on rank zero."""
        from compresslens.quantization.autotune import choose_float_layers

        chosen: list[str] = []
        if self.trainer.is_global_zero:
            chosen = choose_float_layers(
                self.model,
                list(self._calibration_images()),
                self._accuracy(),
                tolerance,
                self.float_layers,
                self.tuning_trials,
            )
        return self.trainer.strategy.broadcast(chosen)

    def _accuracy(self) -> Callable[[nn.Module], float]:
        """Measures top-1 accuracy on the first validation images of a class-balanced selection."""
        from torch.utils.data import DataLoader, Subset

        from datamodules.selection import balanced_indices

        data, device = self._data, self.trainer.strategy.root_device
        indices = balanced_indices(data.labels("val"), self.tuning_samples, data.seed).tolist()
        loader = DataLoader(Subset(data.dataset("val"), indices), data.eval_batch_size)

        @torch.no_grad()
        def accuracy(network: nn.Module) -> float:
            hits = [network(batch[0].to(device)).argmax(1).cpu() == batch[1] for batch in loader]
            return float(torch.cat(hits).double().mean())

        return accuracy


def parameter_name(name: str, parameters: Mapping[str, nn.Parameter]) -> str:
    """What a parameter of the float network is called in the quantized one, which may be a graph."""
    return name if name in parameters else name.replace("backbone.", "backbone.graph.", 1)


def freeze(network: nn.Module, observers: bool, batchnorm: bool) -> None:
    """Freezes, or lets move, the ranges of activations and the statistics of batch normalization."""
    from compresslens.quantization.fake_quant import quantized_graph

    graph = quantized_graph(network)
    if graph is not None:
        graph.observers_frozen, graph.batchnorm_frozen = observers, batchnorm
        return
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = network.training and not batchnorm
