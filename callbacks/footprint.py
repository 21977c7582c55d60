"""Parameters, multiply-accumulates, bytes, memory and latency, beside the reference's."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import nn

from callbacks.export import Export
from callbacks.results import Results
from compresslens.errors import UserError
from compresslens.export import Artefact, export_model, ready
from compresslens.export.artefacts import suitable_formats
from compresslens.export.comparison import Comparison, compare_latency
from compresslens.export.latency import processor
from compresslens.export.runtimes import FILES, RUNTIMES, Runtime, missing, version
from compresslens.footprint import count_macs, count_parameters, peak_memory, weights_bytes, zero_share
from compresslens.reporting.metric import Metric

NOTABLE_ZEROS = 0.01
NO_SPEEDUP = "no dense speed-up: zeros are stored, not skipped"

logger = logging.getLogger(__name__)

Comparisons = dict[tuple[str, int], Comparison]


class Footprint(pl.Callback):
    """Writes the `footprint/*` metrics when a test (also the one that ends a fit) or a validation starts.

    Where `callbacks.Export` has just written artefacts, their bytes and latencies are measured, too; the reference is
    exported likewise, into a temporary folder, and timed in turns with the model, in the same runtime. What was timed
    where stands in the details of `results.json`.

    Args:
        runtimes: any of "openvino", "onnxruntime", "compiled" and "eager"; None: those that are installed. The first
            of them, in this order, gives `latency_ms` and `speedup`.
        batches: numbers of images of a call; 1 must be among them.
        threads: that a call may use.
        seconds: about how long each pair is timed.
    """

    def __init__(
        self,
        runtimes: list[Runtime] | None = None,
        batches: tuple[int, ...] = (1, 32),
        threads: int = 1,
        seconds: float = 1.0,
    ) -> None:
        for name in runtimes or ():
            if lack := missing(name):
                raise UserError(f"Footprint cannot measure in {name}: {lack}")
        if 1 not in batches or min(batches) < 1 or threads < 1:
            raise UserError("Footprint: batches must be positive and include 1, threads must be at least 1")
        self.wanted = RUNTIMES if runtimes is None else [name for name in RUNTIMES if name in runtimes]
        self.batches = batches
        self.threads = threads
        self.seconds = seconds

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Complains at once, not after the fit, if there is nowhere to write to, or Export comes too late."""
        Results.of(trainer)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        later = callbacks[callbacks.index(self) :]
        if any(isinstance(callback, Export) for callback in later):
            raise UserError("put callbacks.Export before callbacks.Footprint, which measures what it writes")

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures on rank zero."""
        self._measure(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Measures on rank zero, unless this is the validation within a fit."""
        if trainer.state.fn == "validate":
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, module: Any) -> None:
        if trainer.is_global_zero:
            began = time.monotonic()
            metrics, details = self._metrics(trainer, module)
            Results.of(trainer).record(trainer, "footprint", metrics, time.monotonic() - began, details)
        trainer.strategy.barrier("footprint")  # others would disturb what is timed

    def _metrics(self, trainer: Any, module: Any) -> tuple[dict[str, Metric], dict[str, Any]]:
        image_size = trainer.datamodule.image_size
        artefacts = next((c.artefacts for c in trainer.callbacks if isinstance(c, Export)), {})
        details: dict[str, Any] = {"device": processor(), "threads": self.threads}
        values, others = footprint(module.model, image_size, artefacts), {}
        timed: Comparisons = {}
        with tempfile.TemporaryDirectory() as folder:
            theirs, refused = self._export_reference(module.reference, Path(folder), image_size, artefacts)
            if module.reference is not None:
                others = footprint(module.reference, image_size, theirs or {})
            if refused:
                del others["bytes"]  # of the weights alone: not what the model's are of
            if artefacts:
                timed, lacking = self._time(artefacts, theirs, image_size)
                lacking |= refused
                details |= {"artefacts": {name: artefact.as_json() for name, artefact in artefacts.items()}}
                details |= {"not_measured": lacking, "latency": latency_details(timed)}
                details |= {"versions": {runtime: version(runtime) for runtime, _ in timed}}
        details["bytes"] = "onnx" if "onnx" in artefacts else next(iter(artefacts), "weights")
        details["notes"] = [NO_SPEEDUP] if zero_share(module.model) > NOTABLE_ZEROS else []
        metrics = {name: Metric(value, reference=others.get(name)) for name, value in values.items()}
        metrics |= latency_metrics(timed)
        return {f"footprint/{name}": metric for name, metric in metrics.items()}, details

    def _export_reference(
        self, reference: nn.Module | None, folder: Path, image_size: int, artefacts: dict[str, Artefact]
    ) -> tuple[dict[str, Artefact] | None, dict[str, str]]:
        """Exports the reference in the model's formats, as far as they suit it; also says why that is impossible."""
        if reference is None or not artefacts:
            return None, {}
        formats = [name for name in suitable_formats(reference) if name in artefacts]
        try:
            return export_model(reference, folder, image_size, formats=formats), {}
        except UserError as error:  # no reason to lose what the training was for
            logger.warning("the reference is not measured as an artefact: %s", error)
            return None, {"reference": str(error)}

    def _time(
        self, artefacts: dict[str, Artefact], theirs: dict[str, Artefact] | None, image_size: int
    ) -> tuple[Comparisons, dict[str, str]]:
        """Times the model and its reference in each runtime; also says why there is nothing of some of them."""
        model = {name: artefact.path for name, artefact in artefacts.items()}
        reference = None if theirs is None else {name: artefact.path for name, artefact in theirs.items()}
        timed: Comparisons = {}
        lacking: dict[str, str] = {}
        for runtime in self.wanted:
            lack = missing(runtime)
            if lack is None and FILES[runtime] not in artefacts:
                lack = f"callbacks.Export does not write {FILES[runtime]}"
            if lack is not None:
                lacking[runtime] = lack
                continue
            for batch in self.batches:
                try:
                    timed[runtime, batch] = compare_latency(
                        runtime, model, reference, image_size, batch, self.threads, self.seconds
                    )
                except UserError as error:  # no reason to lose what the training was for
                    lacking[runtime] = str(error)
                    logger.warning("latency was not measured: %s", error)
                    break
        return timed, lacking


def footprint(network: Any, image_size: int, artefacts: dict[str, Artefact]) -> dict[str, int]:
    """Counts of one network.

    Args:
        network: left as it was.
        image_size: side of its images.
        artefacts: of that network, by format; `bytes` are those of the ONNX file after deflate, or else of the first
            artefact, or else of the weights as they would be exported.
    """
    parameters, nonzero = count_parameters(network)
    deployed = ready(network)
    counts = {
        "parameters": parameters,
        "nonzero_parameters": nonzero,
        "macs": count_macs(deployed, image_size),
        "peak_memory_bytes": peak_memory(deployed, image_size),
    }
    sizes = {name: artefact.deflated for name, artefact in artefacts.items()}
    whole = sizes.get("onnx") or next(iter(sizes.values()), None)
    counts["bytes"] = weights_bytes(deployed) if whole is None else whole
    return counts | {f"bytes_{name}": size for name, size in sizes.items()}


def latency_metrics(timed: Comparisons) -> dict[str, Metric]:
    """One metric for each runtime and batch; latency and speed-up of a single image in the first runtime."""
    metrics = {}
    for (runtime, batch), found in timed.items():
        calls = len(found.model.rounds)
        reference = None if found.reference is None else found.reference.median
        metric = Metric(found.model.median, n=calls, reference=reference)
        metrics[f"latency_ms_{runtime}_b{batch}"] = metric
        if batch == 1 and "latency_ms" not in metrics:
            metrics["latency_ms"] = metric
            if found.speedup is not None:
                metrics["speedup"] = Metric(found.speedup, n=calls)
    return metrics


def latency_details(timed: Comparisons) -> dict[str, Any]:
    """Quartiles and speed-up by runtime and batch, and which runtime gives the headline figures."""
    details: dict[str, Any] = {"runtime": next((runtime for runtime, batch in timed if batch == 1), None)}
    return details | {f"{runtime}_b{batch}": found.as_json() for (runtime, batch), found in timed.items()}
