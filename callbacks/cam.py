"""Does the compressed network still look at the right thing? Its class activation maps, measured and drawn."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from callbacks.accuracy import Columns, gather
from callbacks.cam_mosaics import GridFindings, Mosaics, grid_pointing_findings
from callbacks.cam_report import EXAMPLES, figures, notes, pictures
from callbacks.probe import Findings, Probe
from callbacks.probe_images import Chunk, Share
from compresslens.cams import Method, maps_and_logits
from compresslens.cams import columns as per_image
from compresslens.cams import findings as overall
from compresslens.cams.columns import MODEL, REFERENCE
from compresslens.cams.grid_pointing import confidences
from compresslens.cams.shapes import constant
from compresslens.errors import UserError


class ClassActivationMaps(Probe):
    """Writes the `cam/*` metrics, per-sample values and the figures `cam_examples` and `cam_localization`.

    All maps are of the image's true class, so model and reference are asked the same question. A model with fake
    quantizers is looked at as that; its gradients go straight through the rounding.

    Args:
        samples: number of images; None: the data's own number (`data.probe_samples`).
        method: of the maps, see `compresslens.cams.class_activation_maps`.
        layer: of the model, whose output is weighted; None: what goes into the global pooling.
        reference_layer: of the reference.
        faithfulness_samples: images on which insertion and deletion are measured, 34 forward passes each; 0: none.
        sanity_samples: images on which it is checked that shuffling the model's weights destroys the maps; 0: none.
        mosaics: number of mosaics of the Grid Pointing Game by the cells along their sides; the first is the metric
            `cam/grid_pointing`. Empty: none.
        chunk_size: images at a time.
        every_n_epochs: see `Probe`.
        time_budget: seconds after which no further chunk is begun; None: no limit.
    """

    name = "cam"

    def __init__(
        self,
        samples: int | None = None,
        method: Method = "grad_cam",
        layer: str | None = None,
        reference_layer: str | None = None,
        faithfulness_samples: int = 32,
        sanity_samples: int = 16,
        mosaics: dict[int, int] | None = None,
        chunk_size: int = 32,
        every_n_epochs: int | None = None,
        time_budget: float | None = None,
    ) -> None:
        super().__init__(samples, every_n_epochs, time_budget)
        options = {"faithfulness_samples": (faithfulness_samples, 0), "sanity_samples": (sanity_samples, 0)}
        for option, (value, least) in (options | {"chunk_size": (chunk_size, 1)}).items():
            if value < least:
                raise UserError(f"ClassActivationMaps: {option} is {value}; it must be at least {least}")
        self.mosaics: Mosaics = {2: 24, 3: 8} if mosaics is None else mosaics
        for cells, count in self.mosaics.items():
            if cells < 2 or count < 1:
                raise UserError(
                    f"ClassActivationMaps: mosaics is {self.mosaics}; it needs 2 cells and 1 mosaic or more"
                )
        self.method = method
        self.layers = {MODEL: layer, REFERENCE: reference_layer}
        self.faithfulness_samples = faithfulness_samples
        self.sanity_samples = sanity_samples
        self.chunk_size = chunk_size

    def measure(self, module: Any, share: Share) -> Findings:
        """Looks at this rank's share, chunk by chunk, and gathers."""
        networks = {MODEL: module.model} | ({} if module.reference is None else {REFERENCE: module.reference})
        batches: list[Columns] = []
        pixels: list[Columns] = []
        shown: list[Columns] = []
        for chunk in share.chunks(self.chunk_size):
            maps, columns = self._look(chunk, networks)
            if chunk.masks is not None:
                pixels.append({"index": chunk.indices[:1]})
                for prefix, of_network in (maps | per_image.baseline_maps(chunk.indices, chunk.masks)).items():
                    columns |= per_image.localization_columns(prefix, of_network, chunk.masks)
                    pixels[-1] |= per_image.pixel_columns(prefix, of_network, chunk.masks)
                columns |= per_image.area_column(chunk.masks)
            batches.append(columns)
            if sum(len(part["index"]) for part in shown) < EXAMPLES:
                shown.append(pictures(chunk, maps, columns))
        samples, pixel_counts, examples = gather(batches), gather(pixels) if pixels else {}, gather(shown)
        thresholds = overall.add_box_accuracy(samples)
        grids = grid_pointing_findings(self._maps, networks, samples, share, self.mosaics)
        return Findings(
            metrics=overall.map_metrics(samples) | grids.metrics,
            details=self._details(samples, pixel_counts, thresholds, share.total, grids),
            columns={name: samples[name] for name in samples if name.startswith(("index", "cam_", "reference_cam_"))},
            figures=figures(samples, examples, module.trainer.datamodule.class_names, self.method),
        )

    def _maps(self, prefix: str, network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        return maps_and_logits(network, images, classes, method=self.method, layer=self.layers[prefix])[0]

    def _look(self, chunk: Chunk, networks: dict[str, nn.Module]) -> tuple[dict[str, Tensor], Columns]:
        """The maps of all networks, and what is noted of each image."""
        images, labels = chunk.images, chunk.labels
        columns: Columns = {"index": chunk.indices, "label": labels.cpu().numpy()}
        maps = {}
        few = chunk.positions < self.faithfulness_samples
        for prefix, network in networks.items():
            options: dict[str, Any] = {"method": self.method, "layer": self.layers[prefix]}
            maps[prefix], logits = maps_and_logits(network, images, labels, **options)
            probabilities = logits.softmax(1)
            columns[f"{prefix}cam_blank"] = constant(maps[prefix]).cpu().numpy()
            columns[f"{prefix}cam_right"] = (logits.argmax(1) == labels).cpu().numpy()
            columns[f"{prefix}cam_probability"] = probabilities.gather(1, labels[:, None])[:, 0].cpu().numpy()
            columns[f"{prefix}cam_predicted"] = logits.argmax(1).cpu().numpy()
            columns[f"{prefix}cam_confidence"] = confidences(probabilities, labels).cpu().numpy()
            columns |= per_image.faithfulness_columns(prefix, network, images, labels, maps[prefix], few)
        if REFERENCE in maps:
            columns |= per_image.similarity_columns(maps[MODEL], maps[REFERENCE])
        checked = chunk.positions < self.sanity_samples
        columns |= per_image.sanity_columns(partial(self._maps, MODEL), networks[MODEL], images, labels, checked)
        return maps, columns

    def _details(
        self,
        samples: Columns,
        pixels: Columns,
        thresholds: dict[str, tuple[float, ...]],
        total: int,
        grids: GridFindings,
    ) -> dict[str, Any]:
        """How it was measured, and what is not a metric of its own."""
        layers = {"layer": self.layers[MODEL], "reference_layer": self.layers[REFERENCE]}
        settings = {"method": self.method, **layers, "classes": "true", "chunk_size": self.chunk_size}
        settings |= {"faithfulness_samples": self.faithfulness_samples, "sanity_samples": self.sanity_samples}
        details: dict[str, Any] = {
            "settings": settings,
            "images": {"wanted": total, "covered": len(samples["index"])},
            "sanity": overall.sanity(samples["sanity"]),
            "grid_pointing": grids.details,
        }
        if pixels:
            details["pxap"] = overall.average_precision(pixels)
            details["baselines"] = overall.baselines(samples)
            details["mask_area"] = overall.mean_summary(samples["cam_mask_area"])
            details["box_thresholds"] = {prefix.rstrip("_") or "model": list(t) for prefix, t in thresholds.items()}
        if "cam_similarity" in samples:
            details["changes"] = overall.changes(samples)
            details["similarity"] = overall.similarities(samples)
        details["notes"] = notes(samples, details, grids.notes)
        return details
