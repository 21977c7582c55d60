"""Does the compressed network still look at the right thing? Its class activation maps, measured and drawn."""

from __future__ import annotations

from functools import partial
from typing import Any, get_args

import pytorch_lightning as pl
from torch import Tensor, nn

from callbacks.accuracy import gather
from callbacks.cam_mosaics import Mosaics, grid_pointing_findings
from callbacks.cam_networks import check_maps_of, load_second_reference
from callbacks.cam_report import EXAMPLES, details, figures, kept, pictures
from callbacks.probe import Findings, Probe
from callbacks.probe_images import Chunk, Share
from compresslens.cams import Method, maps_and_logits
from compresslens.cams import columns as per_image
from compresslens.cams import findings as overall
from compresslens.cams.columns import SECOND
from compresslens.cams.grid_pointing import confidences
from compresslens.cams.shapes import constant
from compresslens.errors import UserError
from compresslens.samples import MODEL, REFERENCE, Columns

KEPT = ("index", "cam_", f"{REFERENCE}cam_", f"{SECOND}cam_")  # beginnings of what goes to `samples.parquet`


class ClassActivationMaps(Probe):
    """Writes the `cam/*` metrics, per-sample values and the figures `cam_examples` and `cam_localization`.

    All maps are of the image's true class, so model and reference are asked the same question. A model with fake
    quantizers is looked at as that; its gradients go straight through the rounding.

    Args:
        samples: number of images; None: the data's own number (`data.probe_samples`).
        method: of the maps, see `compresslens.cams.class_activation_maps`.
        layer: of the model, whose output is weighted, by its name before compression; None: what goes into the global
            pooling.
        reference_layer: of the reference.
        second_reference: weights of the reference's architecture that were trained with another seed: a run folder, or
            a file. How like the reference's its maps are is the floor for the model's similarity: no compression lies
            between those two. None: there is no such floor.
        faithfulness_samples: images on which insertion and deletion are measured, 22 forward passes each; on a quarter
            of them also with random maps, and ROAD, another 28; 0: none.
        sanity_samples: images on which it is checked that shuffling the model's weights destroys the maps; 0: none.
        mosaics: number of mosaics of the Grid Pointing Game by the cells along their sides; the first that there are
            images for is the metric `cam/grid_pointing`. Empty: none. None: 24 of 2×2 and 8 of 3×3.
        chunk_size: images at a time.
        every_n_epochs: see `Probe`.
        time_budget: seconds after which no further chunk is begun; mosaics are then made of the images that were
            covered. None: no limit.
    """

    name = "cam"

    def __init__(
        self,
        samples: int | None = None,
        method: Method = "grad_cam",
        layer: str | None = None,
        reference_layer: str | None = None,
        second_reference: str | None = None,
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
        if method not in get_args(Method):
            raise UserError(
                f"ClassActivationMaps: method is '{method}'; it must be one of {', '.join(get_args(Method))}"
            )
        self.mosaics: Mosaics = {2: 24, 3: 8} if mosaics is None else mosaics
        for cells, count in self.mosaics.items():
            if cells < 2 or count < 1:
                raise UserError(
                    f"ClassActivationMaps: mosaics is {self.mosaics}; it needs 2 cells and 1 mosaic or more"
                )
        self.method = method
        self.layers = {MODEL: layer, REFERENCE: reference_layer, SECOND: reference_layer}
        self.second_reference = second_reference
        self.faithfulness_samples = faithfulness_samples
        self.sanity_samples = sanity_samples
        self.chunk_size = chunk_size
        self._second: nn.Module | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Complains at once if there are no such maps of the networks; loads the second reference."""
        super().setup(trainer, pl_module, stage)
        module: Any = pl_module
        if stage == "predict":
            return
        if self.second_reference is not None and self._second is None:
            self._second = load_second_reference(module.reference, self.second_reference)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        for prefix, network in _networks(module).items():
            name = "reference" if prefix else "model"
            check_maps_of(network, data.image_size, self.method, self.layers[prefix], name)

    def measure(self, module: Any, share: Share) -> Findings:
        """Looks at this rank's share, chunk by chunk, and gathers."""
        networks = _networks(module)
        if self._second is not None:
            self._second.to(module.device, module.dtype)
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
        samples, pixel_counts, examples = gather(batches), gather(pixels), gather(shown)
        thresholds = overall.add_box_accuracy(samples)
        grids = grid_pointing_findings(self._maps, networks, samples, share, self.mosaics, self.chunk_size)
        names = module.trainer.datamodule.class_names
        return Findings(
            metrics=overall.map_metrics(samples) | grids.metrics,
            details={
                "settings": self._settings(),
                **details(samples, pixel_counts, thresholds, share.total, grids.details, grids.notes),
            },
            columns={name: values for name, values in samples.items() if name.startswith(KEPT)},
            figures=figures(samples, examples, names, self.method),
            arrays={"cam_examples": kept(examples, names)},
        )

    def _maps(self, prefix: str, network: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
        return maps_and_logits(network, images, classes, method=self.method, layer=self.layers[prefix])[0]

    def _look(self, chunk: Chunk, networks: dict[str, nn.Module]) -> tuple[dict[str, Tensor], Columns]:
        """The maps of model and reference, and what is noted of each image."""
        images, labels = chunk.images, chunk.labels
        columns: Columns = {"index": chunk.indices, "label": labels.cpu().numpy()}
        maps = {}
        few, fewer = (chunk.positions < count for count in (self.faithfulness_samples, self.faithfulness_samples / 4))
        for prefix, network in networks.items():
            options: dict[str, Any] = {"method": self.method, "layer": self.layers[prefix]}
            maps[prefix], logits = maps_and_logits(network, images, labels, **options)
            probabilities = logits.softmax(1)
            columns[f"{prefix}cam_blank"] = constant(maps[prefix]).cpu().numpy()
            columns[f"{prefix}cam_right"] = (logits.argmax(1) == labels).cpu().numpy()
            columns[f"{prefix}cam_probability"] = probabilities.gather(1, labels[:, None])[:, 0].cpu().numpy()
            columns[f"{prefix}cam_predicted"] = logits.argmax(1).cpu().numpy()
            columns[f"{prefix}cam_confidence"] = confidences(probabilities, labels).cpu().numpy()
            looked_at = network, images, labels, maps[prefix]
            columns |= per_image.faithfulness_columns(prefix, *looked_at, few)
            columns |= per_image.control_columns(prefix, *looked_at, fewer, chunk.indices)
        if REFERENCE in maps:
            columns |= per_image.similarity_columns(MODEL, maps[MODEL], maps[REFERENCE])
        if self._second is not None:
            options = {"method": self.method, "layer": self.layers[SECOND]}
            of_second, logits = maps_and_logits(self._second, images, labels, **options)
            columns[f"{SECOND}cam_right"] = (logits.argmax(1) == labels).cpu().numpy()
            columns |= per_image.similarity_columns(SECOND, of_second, maps[REFERENCE])
        checked = chunk.positions < self.sanity_samples
        columns |= per_image.sanity_columns(partial(self._maps, MODEL), networks[MODEL], images, labels, checked)
        return maps, columns

    def _settings(self) -> dict[str, Any]:
        layers = {"layer": self.layers[MODEL], "reference_layer": self.layers[REFERENCE]}
        settings: dict[str, Any] = {"method": self.method, **layers, "classes": "true"}
        settings |= {"second_reference": self.second_reference}
        settings |= {"faithfulness_samples": self.faithfulness_samples, "faithfulness_steps": per_image.STEPS}
        settings |= {"road_fractions": list(per_image.ROAD_FRACTIONS)}
        settings |= {"sanity_samples": self.sanity_samples, "chunk_size": self.chunk_size}
        return settings | {"mosaics": {f"{cells}x{cells}": count for cells, count in self.mosaics.items()}}


def _networks(module: Any) -> dict[str, nn.Module]:
    """By the prefix of their columns."""
    return {MODEL: module.model} | ({} if module.reference is None else {REFERENCE: module.reference})
