"""The class activation maps as Lightning runs them: which images, which figures, and what they leave behind."""

from __future__ import annotations

import copy
import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from callbacks import Accuracy, BestCheckpoint, ClassActivationMaps, Results
from compresslens.cams import class_activation_maps
from compresslens.cams.baselines import centre_gaussian_maps, random_maps
from compresslens.cams.box_accuracy import best_box_overlaps, max_box_accuracy
from compresslens.cams.columns import ROAD_FRACTIONS, STEPS, blur_for
from compresslens.cams.faithfulness import deletion_auc, insertion_auc, road
from compresslens.cams.grid_pointing import cell_shares, choose_cells, confidences, mosaics
from compresslens.cams.localization import energy_in_mask, mask_area, pointing_game
from compresslens.cams.similarity import pearson_correlation, structural_similarity
from compresslens.errors import UserError
from compresslens.networks import PixelNetwork, record_change
from compresslens.quantization import calibrate, fake_quantize
from compresslens.statistics import bootstrap_interval, paired_difference_interval
from lightning_modules import ImageClassifier
from tests.lightning_modules.recipes import in_pixels
from tests.lightning_modules.test_classifier import everything
from tests.lightning_modules.tiny import (
    CLASSES,
    SIZE,
    Noise,
    NoiseData,
    TinyNetwork,
    in_process,
    on_two_ranks,
    traces,
    trainer,
    unequal,
)

QUICK: dict[str, Any] = {"faithfulness_samples": 7, "sanity_samples": 5, "mosaics": {2: 4}, "chunk_size": 16}
LOCALIZATION = {"cam/pointing_game", "cam/energy_in_mask", "cam/max_box_acc_v2"}
ANYWHERE = {"cam/insertion_auc", "cam/deletion_auc", "cam/grid_pointing"}


@pytest.fixture(autouse=True)
def quick_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all else here; one test does draw."""
    if request.node.name != "test_against_a_plain_loop[test-test]":
        for name in ("draw_examples", "draw_localization"):
            monkeypatch.setattr(
                f"compresslens.reporting.cam_figure.{name}", lambda path, **_: path.write_bytes(b"picture")
            )


class MaskedNoise(Noise):
    """Coloured noise on which somebody has marked an object; on every tenth image there is none."""

    def __getitem__(self, index: int) -> Any:
        mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        if index % 10 != 9:
            mask[index % 5 : index % 5 + 4, index % 7 : index % 7 + 5] = True
        return (*super().__getitem__(index), mask)


class MaskedData(NoiseData):
    def build_dataset(self, split: Any) -> MaskedNoise:
        return MaskedNoise(split, len(super().build_dataset(split)))


class Flattening(TinyNetwork):
    """Flattens its last maps, so it takes images of one size only."""

    def __init__(self, width: int = 6) -> None:
        super().__init__(width, dropout=0.0)
        self.classifier = nn.Linear(2 * width * (SIZE // 4) ** 2, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.layer2(self.layer1(images)).flatten(1))


@cache
def trained(width: int, seed: int = 0) -> PixelNetwork:
    return learned(TinyNetwork(width, dropout=0.0, seed=10 * width + seed))


def learned(backbone: TinyNetwork) -> PixelNetwork:
    """A network that knows the noise."""
    network = in_pixels(backbone)
    images, labels = everything(NoiseData(), "train")
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(50):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network.eval()


def pair(model: nn.Module | None = None) -> ImageClassifier:
    module = ImageClassifier(copy.deepcopy(trained(6)) if model is None else model)
    module.set_reference(copy.deepcopy(trained(8)))
    return module


def run(
    folder: Path,
    module: ImageClassifier,
    what: str = "test",
    callback: Any = None,
    data: NoiseData | None = None,
    **options: Any,
) -> Any:
    loop = trainer(folder, [Accuracy(), callback or ClassActivationMaps(**QUICK), Results()], **options)
    getattr(loop, what)(module, datamodule=data or MaskedData(), verbose=False)
    return json.loads((folder / "results.json").read_text())


def maps_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return class_activation_maps(network, images, labels)


def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images).softmax(1)


def mean(values: Tensor) -> float:
    return float(values[~values.isnan()].double().mean())


# The figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "part"), [("test", "test"), ("validate", "val")])
def test_against_a_plain_loop(tmp_path: Path, what: str, part: Any) -> None:
    module = pair()
    written = run(tmp_path, module, what)
    metrics, details = written["metrics"], written["details"]["cam"]
    samples = pd.read_parquet(tmp_path / "samples.parquet")

    dataset = MaskedData().dataset(part)
    images, labels = everything(MaskedData(), part)
    masks = torch.stack([dataset[index][2] for index in range(len(dataset))])
    networks = {"": module.model, "reference_": module.reference}
    maps = {prefix: maps_of(network, images, labels) for prefix, network in networks.items()}  # type: ignore[arg-type]
    measures: dict[str, Any] = {"pointing_game": pointing_game, "energy_in_mask": energy_in_mask}
    measures["max_box_acc_v2"] = lambda m, k: max_box_accuracy(best_box_overlaps(m, k)).per_sample
    for name, measure in measures.items():
        expected = {prefix: measure(of_network, masks) for prefix, of_network in maps.items()}
        for prefix, values in expected.items():
            column = samples[f"{prefix}cam_{name}"]
            np.testing.assert_allclose(column.to_numpy(), values.numpy(), rtol=1e-6, err_msg=name)
        found = metrics[f"cam/{name}"]
        assert found["value"] == pytest.approx(mean(expected[""]), rel=1e-6)
        assert found["reference"] == pytest.approx(mean(expected["reference_"]), rel=1e-6)
        assert found["n"] == int(masks.flatten(1).any(1).sum())
        assert found["ci95"][0] <= found["value"] <= found["ci95"][1]
        change = details["changes"][name]
        assert change["change"] == pytest.approx(found["value"] - found["reference"], abs=1e-7)
        assert change["ci95"][0] <= change["change"] <= change["ci95"][1]
    likeness = pearson_correlation(maps[""], maps["reference_"])
    assert metrics["cam/similarity"]["value"] == pytest.approx(mean(likeness))
    assert metrics["cam/similarity"]["reference"] is None
    assert details["similarity"]["all"]["ssim"]["value"] == pytest.approx(
        mean(structural_similarity(maps[""], maps["reference_"]))
    )
    right = {prefix: probabilities(network, images).argmax(1) == labels for prefix, network in networks.items()}  # type: ignore[arg-type]
    both = right[""] & right["reference_"]
    assert details["similarity"]["both_right"]["pearson"]["n"] == int((both & ~likeness.isnan()).sum())
    assert samples["cam_right"].tolist() == right[""].tolist()

    few = samples["cam_insertion_auc"].notna().to_numpy()
    assert few.sum() == samples["cam_deletion_auc"].notna().sum() == 7
    assert sorted(labels[few].tolist()) == list(range(7)), "one of each class"
    some = images[few], labels[few], maps[""][few]
    insertion = insertion_auc(module.model, *some, steps=STEPS, blur=blur_for(images))
    assert samples.loc[few, "cam_insertion_auc"].tolist() == pytest.approx(insertion.tolist(), rel=1e-5)
    deletion = deletion_auc(module.model, *some, steps=STEPS)
    assert metrics["cam/deletion_auc"]["value"] == pytest.approx(mean(deletion), rel=1e-5)
    assert metrics["cam/deletion_auc"]["n"] == 7

    fewer = samples["cam_road"].notna().to_numpy()
    assert fewer.sum() == 2, "a quarter"
    assert (few & fewer).sum() == 2, "of those"
    numbers = np.flatnonzero(fewer)
    noise = random_maps(numbers, SIZE, SIZE)
    for prefix, name in (("", "model"), ("reference_", "reference")):
        network: Any = networks[prefix]
        found = {key: details["faithfulness"][key][name] for key in ("insertion_auc", "deletion_auc", "road")}
        at_random = insertion_auc(network, images[fewer], labels[fewer], noise, steps=STEPS, blur=blur_for(images))
        random_deletion = deletion_auc(network, images[fewer], labels[fewer], noise, steps=STEPS)
        for key, values in (("insertion_auc", at_random), ("deletion_auc", random_deletion)):
            own = samples.loc[fewer, f"{prefix}cam_{key}"].mean()
            assert samples.loc[fewer, f"{prefix}cam_{key}_random"].tolist() == pytest.approx(values.tolist(), rel=1e-5)
            assert found[key]["random"]["value"] == pytest.approx(mean(values), rel=1e-5)
            assert found[key]["map_minus_random"]["change"] == pytest.approx(own - mean(values), abs=1e-6)
            assert found[key]["map_minus_random"]["n"] == 2
        of_map = (images[fewer], labels[fewer], maps[prefix][fewer])
        imputed = road(network, *of_map, fractions=ROAD_FRACTIONS, samples=numbers)
        assert samples.loc[fewer, f"{prefix}cam_road"].tolist() == pytest.approx(imputed.tolist(), abs=1e-5)
        assert (found["road"]["value"], found["road"]["n"]) == (pytest.approx(mean(imputed), abs=1e-5), 2)
    change = details["faithfulness"]["road"]["change"]
    of_pairs = samples.loc[fewer, "cam_road"] - samples.loc[fewer, "reference_cam_road"]
    assert (change["change"], change["n"]) == (pytest.approx(of_pairs.mean(), abs=1e-9), 2)

    assert {name for name in metrics if name.startswith("cam")} == LOCALIZATION | ANYWHERE | {"cam/similarity"}
    centre = energy_in_mask(centre_gaussian_maps(len(images), SIZE, SIZE), masks)
    assert details["baselines"]["centre_gaussian"]["energy_in_mask"]["value"] == pytest.approx(mean(centre))
    assert details["mask_area"]["value"] == pytest.approx(float(mask_area(masks).mean()))
    assert set(details["pxap"]) == {"model", "reference", "centre_gaussian", "random"}
    assert set(details["box_thresholds"]) == {"model", "reference", "centre_gaussian", "random"}
    assert details["images"] == {"wanted": len(images), "covered": len(images)}
    assert details["sanity"]["n"] == 5
    assert f"{len(images) // 10} images have an empty mask and are left out where masks are needed" in details["notes"]
    assert details["settings"]["mosaics"] == {"2x2": 4}
    for name in ("cam_examples", "cam_localization"):
        picture = (tmp_path / "figures" / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") if part == "test" else picture == b"picture"


def by_hand(module: ImageClassifier, images: Tensor, labels: Tensor, shrink: bool) -> dict[str, list[float]]:
    """Mean score of each of 4 mosaics: one map at a time."""
    networks = {"value": module.model, "reference": module.reference}
    sure = [confidences(probabilities(network, images), labels) for network in networks.values()]  # type: ignore[arg-type]
    chosen = choose_cells(labels, torch.stack(sure).amin(0), cells=2, count=4)
    scores: dict[str, list[float]] = {name: [] for name in networks}
    for name, network in networks.items():
        for row in chosen:
            mosaic = mosaics(images, row[None])
            if shrink:
                mosaic = F.interpolate(mosaic, (SIZE, SIZE), mode="bilinear", antialias=True)
            of_cells = []
            for cell, index in enumerate(row.tolist()):
                found = maps_of(network, mosaic, labels[index : index + 1])[:, None]  # type: ignore[arg-type]
                large = F.interpolate(found, (2 * SIZE, 2 * SIZE), mode="bilinear")[:, 0]
                of_cells.append(float(cell_shares(large if shrink else found[:, 0], 2)[0, cell]))
            scores[name].append(float(np.mean(of_cells)))
    return scores


def test_mosaics_against_one_map_at_a_time(tmp_path: Path) -> None:
    module = pair()
    written = run(tmp_path, module, data=NoiseData())
    expected = by_hand(module, *everything(NoiseData(), "test"), shrink=False)
    metric, details = written["metrics"]["cam/grid_pointing"], written["details"]["cam"]["grid_pointing"]["2x2"]
    assert metric["value"] == pytest.approx(np.mean(expected["value"]), rel=1e-5)
    assert metric["reference"] == pytest.approx(np.mean(expected["reference"]), rel=1e-5)
    assert metric["ci95"] == pytest.approx(bootstrap_interval(expected["value"]), rel=1e-5)
    assert (metric["n"], details["mosaics"], details["chance"], details["shrunk"]) == (4, 4, 0.25, False)
    assert details["reference"]["value"] == metric["reference"]


def test_data_without_masks(tmp_path: Path) -> None:
    written = run(tmp_path, pair(), data=NoiseData())
    assert {name for name in written["metrics"] if name.startswith("cam")} == ANYWHERE | {"cam/similarity"}
    details = written["details"]["cam"]
    assert "the data has no masks of the objects: localization is judged by the Grid Pointing Game alone" in str(
        details["notes"]
    )
    assert not {"pxap", "baselines", "mask_area"} & set(details)
    assert set(details["changes"]) == {"insertion_auc", "deletion_auc"}
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["cam_examples.npz", "cam_examples.png"]


def test_without_a_reference(tmp_path: Path) -> None:
    written = run(tmp_path, ImageClassifier(copy.deepcopy(trained(6))))
    assert {name for name in written["metrics"] if name.startswith("cam")} == LOCALIZATION | ANYWHERE
    assert all(metric["reference"] is None for metric in written["metrics"].values())
    assert not {"similarity", "changes"} & set(written["details"]["cam"])
    faithfulness = written["details"]["cam"]["faithfulness"]
    assert {name: set(found) for name, found in faithfulness.items()} == {
        name: {"model"} for name in ("insertion_auc", "deletion_auc", "road")
    }
    assert set(written["details"]["cam"]["grid_pointing"]["2x2"]) == {"model", "mosaics", "chance", "shrunk"}
    columns = pd.read_parquet(tmp_path / "samples.parquet").columns
    assert "cam_energy_in_mask" in columns
    assert not [name for name in columns if name.startswith("reference")]
    assert (tmp_path / "figures" / "cam_examples.png").is_file()


def test_what_is_switched_off(tmp_path: Path) -> None:
    off = ClassActivationMaps(faithfulness_samples=0, sanity_samples=0, mosaics={}, samples=14)
    written = run(tmp_path, pair(), callback=off)
    details, metrics = written["details"]["cam"], written["metrics"]
    assert (details["sanity"], details["faithfulness"], details["grid_pointing"]) == (None, None, {})
    assert "cam/grid_pointing" not in metrics
    assert (metrics["cam/insertion_auc"]["value"], metrics["cam/insertion_auc"]["n"]) == (None, 0)
    assert metrics["cam/similarity"]["n"] == 14
    assert set(details["changes"]) == {"pointing_game", "energy_in_mask", "max_box_acc_v2"}


def test_too_few_classes_for_mosaics_is_said(tmp_path: Path) -> None:
    both = ClassActivationMaps(**{**QUICK, "mosaics": {3: 2, 2: 3}})
    written = run(tmp_path / "some", pair(), callback=both)
    details = written["details"]["cam"]
    assert any("mosaics of 3×3 need confident images of 9 classes, and only" in note for note in details["notes"])
    assert set(details["grid_pointing"]) == {"2x2"}
    assert written["metrics"]["cam/grid_pointing"]["n"] == 3, "of the first that there are"

    unsure = in_pixels(TinyNetwork(6))
    written = run(tmp_path / "none", pair(unsure))
    assert "cam/grid_pointing" not in written["metrics"]
    assert any("mosaics of 2×2 need" in note for note in written["details"]["cam"]["notes"])


def test_no_mask_at_all_and_maps_that_say_nothing(tmp_path: Path) -> None:
    """Figures that do not exist are null, not zero, and nothing breaks."""

    class Empty(MaskedNoise):
        def __getitem__(self, index: int) -> Any:
            image, label, mask = super().__getitem__(index)
            return image, label, torch.zeros_like(mask)

    class EmptyData(NoiseData):
        def build_dataset(self, split: Any) -> Empty:
            return Empty(split, len(super().build_dataset(split)))

    blank = copy.deepcopy(trained(6))
    blank.backbone.classifier.weight.data.zero_()  # type: ignore[union-attr, operator]
    written = run(tmp_path, pair(blank), data=EmptyData())
    for name in LOCALIZATION:
        metric = written["metrics"][name]
        assert (metric["value"], metric["ci95"], metric["n"]) == (None, None, 0)
    assert written["metrics"]["cam/similarity"]["n"] == 0
    details = written["details"]["cam"]
    assert "43 images have an empty mask and are left out where masks are needed" in details["notes"]
    assert "43 maps of the model are constant: nothing speaks for the class" in details["notes"]
    assert details["sanity"] is None
    assert details["pxap"]["model"] is None
    assert (tmp_path / "figures" / "cam_localization.png").is_file()


def test_a_time_budget_says_what_it_covered(tmp_path: Path) -> None:
    callback = ClassActivationMaps(**{**QUICK, "chunk_size": 8}, time_budget=1e-9)
    written = run(tmp_path, pair(), callback=callback)
    details = written["details"]["cam"]
    assert details["images"] == {"wanted": 43, "covered": 8}
    assert "the time was up after 8 of 43 images; the figures are of those" in details["notes"]
    assert written["metrics"]["cam/similarity"]["n"] <= 8
    assert details["grid_pointing"]["2x2"]["mosaics"] == 2, "of the covered ones"


@pytest.mark.parametrize("method", ["cam", "layer_cam", "eigen_cam"])
def test_another_method_and_layer(tmp_path: Path, method: Any) -> None:
    callback = ClassActivationMaps(**QUICK, method=method, layer="layer2", reference_layer="layer2.2")
    module = pair()
    written = run(tmp_path, module, callback=callback)
    images, labels = everything(MaskedData(), "test")
    maps = [
        class_activation_maps(network, images, labels, method=method, layer="layer2")
        for network in (module.model, module.reference)
        if network is not None
    ]
    expected = mean(pearson_correlation(*maps))
    assert written["metrics"]["cam/similarity"]["value"] == pytest.approx(expected, rel=1e-6)


# Networks that take images of one size only ---------------------------------------------------------------------------


def rounded() -> PixelNetwork:
    return copy.deepcopy(_rounded())


@cache
def _rounded() -> PixelNetwork:
    network = copy.deepcopy(trained(6))
    fake_quantize(network)
    calibrate(network, [everything(NoiseData(), "train")[0]])
    return network


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda: learned(Flattening()), "mat1 and mat2 shapes cannot be multiplied", id="flattening"),
        pytest.param(rounded, "Guard failed", id="fake quantizers", marks=pytest.mark.slow),  # captured for a size
    ],
)
def test_mosaics_are_shrunk_for_both_networks_alike(tmp_path: Path, make: Any, reason: str) -> None:
    torch.manual_seed(0)
    module = pair(make())
    module.train()
    before = copy.deepcopy(module.model.state_dict())
    written = run(tmp_path, module, callback=ClassActivationMaps(**{**QUICK, "chunk_size": 7}), data=NoiseData())
    details = written["details"]["cam"]
    assert written["metrics"]["cam/similarity"]["value"] > 0.2
    (note,) = [note for note in details["notes"] if "shrunk" in note]
    assert note.startswith(
        "the mosaics of 2×2 images were shrunk to the size of one, for all networks alike, since the"
    )
    assert f"the model takes no larger images ({reason}" in note
    assert details["grid_pointing"]["2x2"]["shrunk"] is True
    expected = by_hand(module, *everything(NoiseData(), "test"), shrink=True)
    metric = written["metrics"]["cam/grid_pointing"]
    assert metric["value"] == pytest.approx(np.mean(expected["value"]), rel=1e-4)
    assert metric["reference"] == pytest.approx(np.mean(expected["reference"]), rel=1e-4)
    assert unequal(before, module.model.state_dict()) == []


def test_too_little_memory_says_nothing_of_the_network(tmp_path: Path) -> None:
    class Large(TinyNetwork):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[2] > SIZE:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(images)

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        run(tmp_path, pair(learned(Large(6, dropout=0.0))), data=NoiseData())


# A second reference ---------------------------------------------------------------------------------------------------


def saved(path: Path, network: nn.Module, **more: Any) -> str:
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "architecture": "tiny", "changes": [], **more}, path)
    return str(path)


def test_the_floor_of_two_seeds(tmp_path: Path) -> None:
    second = trained(8, seed=1)
    saved(tmp_path / "seed1" / "checkpoints" / "best.ckpt", second)
    callback = ClassActivationMaps(**QUICK, second_reference=str(tmp_path / "seed1"))
    module = pair()
    state = torch.get_rng_state()
    written = run(tmp_path, module, callback=callback)
    assert torch.equal(torch.get_rng_state(), state)
    images, labels = everything(MaskedData(), "test")
    networks: list[Any] = [module.model, module.reference, second]
    ours, theirs, seconds = (maps_of(network, images, labels) for network in networks)
    likeness, floor = pearson_correlation(ours, theirs), pearson_correlation(seconds, theirs)
    found = written["details"]["cam"]["similarity"]["second_reference"]
    assert found["pearson"]["value"] == pytest.approx(mean(floor))
    assert found["pearson"]["n"] == int((~floor.isnan()).sum())
    assert found["ssim"]["value"] == pytest.approx(mean(structural_similarity(seconds, theirs)))
    assert 0 < found["top_area_iou"]["value"] <= 1
    right = probabilities(second, images).argmax(1) == labels
    assert found["right"]["value"] == pytest.approx(float(right.double().mean()))
    known = ~likeness.isnan() & ~floor.isnan()
    change = found["model_minus_second"]["pearson"]
    assert change["n"] == int(known.sum()) > 10
    assert change["change"] == pytest.approx(float((likeness - floor)[known].mean()))
    assert change["ci95"] == pytest.approx(paired_difference_interval(likeness[known].numpy(), floor[known].numpy()))
    samples = pd.read_parquet(tmp_path / "samples.parquet")
    np.testing.assert_allclose(samples["second_reference_cam_similarity"], floor.numpy(), rtol=1e-6)
    assert written["details"]["cam"]["settings"]["second_reference"] == str(tmp_path / "seed1")
    assert "second_reference" not in str(sorted(written["metrics"]))


def test_a_second_reference_is_loaded_once_and_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "seed1.ckpt", trained(8, seed=1))
    loads: list[str] = []

    def counted(network: Any, path: str, **options: Any) -> None:
        from compresslens.networks import load_weights

        loads.append(path)
        load_weights(network, path, **options)

    monkeypatch.setattr("callbacks.cam_networks.load_weights", counted)
    states = []
    for name, second in (("with", path), ("without", None)):
        callback = ClassActivationMaps(**QUICK, second_reference=second, every_n_epochs=1)
        module = pair()
        module.optimizer = partial(torch.optim.SGD, lr=0.01)  # type: ignore[assignment]
        loop = trainer(tmp_path / name, [callback, BestCheckpoint(), Results()], max_epochs=1)
        pl.seed_everything(0, verbose=False)
        loop.fit(module, datamodule=NoiseData())
        loop.test(module, datamodule=NoiseData(), verbose=False)
        states.append(torch.load(tmp_path / name / "checkpoints" / "best.ckpt", weights_only=True))
    assert loads == [path]
    assert states[0]["state_dict"].keys() == states[1]["state_dict"].keys()
    assert unequal(states[0]["state_dict"], states[1]["state_dict"]) == []
    assert states[0]["callbacks"].keys() == states[1]["callbacks"].keys()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: str(folder / "nothing"), "second_reference: there are no weights at"),
        (
            lambda folder: saved(folder / "own.ckpt", trained(8)),
            "holds the weights of the reference itself; name a run",
        ),
        (lambda folder: saved(folder / "narrow.ckpt", trained(6)), "second_reference: .* does not fit 'tiny'"),
        (
            lambda folder: saved(folder / "classes.ckpt", in_pixels(TinyNetwork(8, classes=5))),
            "has 5 classes, but 7 are wanted",
        ),
        (
            lambda folder: saved(folder / "other.ckpt", trained(8, seed=1), architecture="large"),
            "holds a 'large', not a 'tiny'",
        ),
    ],
)
def test_second_references_that_do_not_fit(tmp_path: Path, make: Any, message: str) -> None:
    callback = ClassActivationMaps(**QUICK, second_reference=make(tmp_path))
    with pytest.raises(UserError, match=message):
        run(tmp_path / "run", pair(), callback=callback)


def test_a_second_reference_needs_a_plain_first_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "seed1.ckpt", trained(8, seed=1))
    alone, bare, compressed = (ImageClassifier(copy.deepcopy(trained(6))) for _ in range(3))
    bare.set_reference(copy.deepcopy(trained(8)).backbone)
    compressed.set_reference(copy.deepcopy(trained(8)))
    record_change(compressed.reference, {"kind": "remove_channels"})  # type: ignore[arg-type]
    unfit = r"needs a reference that compresslens\.networks\.create_network made and that is not compressed"
    for module, message in ((alone, "needs a reference to compare it with"), (bare, unfit), (compressed, unfit)):
        with pytest.raises(UserError, match=message):
            run(tmp_path, module, callback=ClassActivationMaps(**QUICK, second_reference=path))


@pytest.mark.slow
def test_a_compressed_network_is_no_second_reference(tmp_path: Path) -> None:
    path = saved(tmp_path / "int8.ckpt", rounded(), changes=rounded().changes)
    module = pair()
    module.set_reference(copy.deepcopy(trained(6)))
    with pytest.raises(UserError, match="holds a compressed network, not a reference"):
        run(tmp_path, module, callback=ClassActivationMaps(**QUICK, second_reference=path))


# What it leaves behind ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fail", [False, True])
def test_everything_is_put_back(tmp_path: Path, fail: bool) -> None:
    module, changed = pair(), []
    networks: list[Any] = [module.model, module.reference]
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)

    class Watched(ClassActivationMaps):
        calls = 0

        def on_test_epoch_end(self, *arguments: Any) -> None:
            self.before = traces(networks)
            try:
                super().on_test_epoch_end(*arguments)
            finally:
                self.after = traces(networks)

        def _maps(self, *arguments: Any) -> Tensor:
            self.calls += 1
            if fail and self.calls == 2:  # the first one with shuffled weights
                changed.append(unequal(self.before["weights"], traces(networks)["weights"]))
                raise RuntimeError("in the middle of it")
            return super()._maps(*arguments)

    callback = Watched(**QUICK)
    if fail:
        with pytest.raises(RuntimeError, match="in the middle of it"):
            run(tmp_path, module, callback=callback)
    else:
        run(tmp_path, module, callback=callback)
    assert unequal(callback.before, callback.after) == []
    assert [len(names) > 0 for names in changed] == [True] * fail


def test_a_fit_and_its_end(tmp_path: Path) -> None:
    """It can be watched epoch by epoch, the training is bitwise the same, and the test at the end has the figures."""
    states = []
    for callbacks in ([], [ClassActivationMaps(**QUICK, every_n_epochs=2), Results()]):
        pl.seed_everything(0, verbose=False)
        module = pair(copy.deepcopy(trained(6)))
        module.optimizer = partial(torch.optim.SGD, lr=0.01)  # type: ignore[assignment]
        loop = trainer(tmp_path, callbacks, max_epochs=3)
        loop.fit(module, datamodule=MaskedData())
        states.append(module.model.state_dict())
    assert unequal(states[0], states[1]) == []
    assert {name for name in loop.callback_metrics if "cam" in name} == {
        f"val/{name}" for name in LOCALIZATION | ANYWHERE | {"cam/similarity"}
    }
    assert not (tmp_path / "results.json").exists()
    pictures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert pictures == ["cam_examples_epoch1.png", "cam_localization_epoch1.png"]
    loop.test(module, datamodule=MaskedData(), verbose=False)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["split"] == "test"
    assert written["metrics"]["cam/similarity"]["n"] > 30
    assert (tmp_path / "figures" / "cam_examples.png").is_file()


def test_maps_are_in_float32_whatever_the_evaluation_is_in(tmp_path: Path) -> None:
    one, other = (
        run(tmp_path / precision, pair(), precision=precision)["metrics"] for precision in ("32-true", "bf16-mixed")
    )
    assert all(one[name] == other[name] for name in one if name.startswith("cam"))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_networks_of_another_precision(tmp_path: Path, precision: Any) -> None:
    path = saved(tmp_path / "seed1.ckpt", trained(8, seed=1))
    callback = ClassActivationMaps(**QUICK, second_reference=path)
    written = run(tmp_path, pair(), callback=callback, precision=precision)
    plain = run(tmp_path / "plain", pair())
    for name in ("cam/similarity", "cam/energy_in_mask"):
        assert written["metrics"][name]["value"] == pytest.approx(plain["metrics"][name]["value"], abs=0.03)


# Several processes ----------------------------------------------------------------------------------------------------


def look_on(folder: Path, devices: int, second: str, samples: int) -> None:
    torch.set_num_threads(1)
    callback = ClassActivationMaps(samples, second_reference=second, **{**QUICK, "chunk_size": 7})
    strategy = "ddp" if devices > 1 else "auto"
    loop = trainer(folder, [Accuracy(), callback, Results()], devices=devices, strategy=strategy)
    loop.test(pair(), datamodule=MaskedData(), verbose=False)


def close(one: Any, other: Any) -> bool:
    """Whether two nested structures agree but for the rounding of batches of another size."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == (pytest.approx(other, rel=1e-5, abs=1e-6) if isinstance(other, float) else other)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [30, 1])
def test_the_number_of_processes_does_not_matter(tmp_path: Path, samples: int) -> None:
    """Not even if one of them has no image."""
    one, two = tmp_path / "one", tmp_path / "two"
    second = saved(tmp_path / "seed1.ckpt", trained(8, seed=1))
    assert in_process(look_on, one, 1, second, samples) == 0
    assert on_two_ranks(look_on, two, 2, second, samples) == [0, 0]
    first, other = (json.loads((folder / "results.json").read_text()) for folder in (one, two))
    assert close(first["metrics"], other["metrics"])
    assert close(first["details"]["cam"], other["details"]["cam"])
    assert first["metrics"]["cam/similarity"]["n"] > samples // 2
    frames = [pd.read_parquet(folder / "samples.parquet") for folder in (one, two)]
    pd.testing.assert_frame_equal(frames[0], frames[1], rtol=1e-5, atol=1e-6)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "ClassActivationMaps: samples is 0"),
        ({"faithfulness_samples": -1}, "ClassActivationMaps: faithfulness_samples is -1; it must be at least 0"),
        ({"sanity_samples": -1}, "sanity_samples is -1; it must be at least 0"),
        ({"chunk_size": 0}, "chunk_size is 0; it must be at least 1"),
        ({"mosaics": {1: 3}}, r"mosaics is \{1: 3\}; it needs 2 cells and 1 mosaic or more"),
        ({"mosaics": {2: 0}}, r"mosaics is \{2: 0\}"),
        ({"method": "saliency"}, "method is 'saliency'; it must be one of cam, grad_cam"),
        ({"every_n_epochs": 0}, "every_n_epochs is 0"),
        ({"time_budget": 0.0}, "time_budget is 0.0"),
    ],
)
def test_settings_that_make_no_sense(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassActivationMaps(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "layer3"}, r"cannot look at the model: there is no layer 'layer3' .* Nearest: layer"),
        ({"reference_layer": "layr2"}, "cannot look at the reference: there is no layer 'layr2'"),
        ({"layer": "classifier"}, "cannot look at the model: layer 'classifier' returns 1×7, not a map"),
        ({"method": "score_cam", "layer": "nowhere"}, "cannot look at the model: there is no layer 'nowhere'"),
        ({"method": "cam", "layer": "layer1"}, "cannot look at the model: method 'cam' needs logits that are a linear"),
    ],
)
def test_what_cannot_be_looked_at_is_noticed_before_the_fit(tmp_path: Path, options: Any, message: str) -> None:
    module = pair()
    before = copy.deepcopy(module.model.state_dict())
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, [ClassActivationMaps(**options), Results()], max_epochs=1).fit(module, datamodule=NoiseData())
    assert unequal(before, module.model.state_dict()) == []
