"""What compression buys in latency and bytes: float, INT8, half the multiply-accumulates, and both, beside peers.

    python benchmarks/artefacts.py                                            # all models, all installed runtimes
    python benchmarks/artefacts.py --models resnet18 --runtimes openvino --rounds 50

Every variant of a network is exported and run in the same runtime, one image of 224x224 at a time, in one thread, in
turns with all others, so that what else the machine does hits them alike. Printed are the median over the rounds, its
quartiles, how many times faster than the float network in the same runtime (median and quartiles of the ratio within
each round), and the bytes of the file, deflated.

Peers: NNCF's post-training quantization for OpenVINO, and ONNX Runtime's own static quantization (uint8 activations,
int8 weights per channel), each of the same float ONNX file, calibrated on the same images, in its own runtime.

Weights are random, except for EfficientNet-Lite0's from the package (extra `weights`): they do not matter for the time.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import say
from torch import Tensor, nn

from compresslens.export import Format, Tolerance, export_model, runtimes
from compresslens.export.artefacts import FILES, deflated_bytes
from compresslens.export.latency import interleaved, processor, speedup, summary
from compresslens.networks import create_network
from compresslens.pruning.channel_pruning import ChannelPruning
from compresslens.pruning.channels import remove_channels
from compresslens.pruning.targets import Target
from compresslens.quantization import calibrate, fake_quantize

SIZE = 224
CALIBRATION_IMAGES = 32
LOADS = 5
MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {"architecture": "resnet18"},
    "resnet50": {"architecture": "resnet50"},
    "mobilenetv2": {"architecture": "mobilenetv2_100"},
    "efficientnet_lite0": {"architecture": "tf_efficientnet_lite0", "weights": "package"},
}
INT8 = ("INT8", "half MACs, INT8")
NNCF, ORT = "INT8 by NNCF", "INT8 by ONNX Runtime"


def main() -> None:
    """Prints one table for each model and runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = [name for name in runtimes.RUNTIMES if name != "eager" and runtimes.missing(name) is None]
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--runtimes", nargs="+", choices=list(runtimes.RUNTIMES), default=installed)
    parser.add_argument("--rounds", type=int, default=30, help="turns of each variant, of three timed calls each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-peers", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.WARNING)
    print(f"{processor()}, {arguments.threads} thread(s), batch 1, {SIZE}x{SIZE}")
    print(", ".join(f"{name} {runtimes.version(name)}" for name in arguments.runtimes))
    images = photo_crops(CALIBRATION_IMAGES)
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            artefacts = write_variants(name, Path(folder), images)
            if not arguments.without_peers:
                artefacts |= write_peers(Path(folder), artefacts["float"], images, arguments.runtimes)
            for runtime in arguments.runtimes:
                measure(name, runtime, artefacts, arguments.rounds, arguments.threads)


def photo_crops(count: int) -> Tensor:
    """Random squares of the two photographs that scikit-learn ships (CC-BY-2.0).

    Returns:
        Float32 N×3×224×224 in [0, 1].
    """
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    generator = np.random.default_rng(0)
    crops = []
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = (int(generator.integers(0, side - SIZE)) for side in photo.shape[:2])
        crops.append(photo[top : top + SIZE, left : left + SIZE])
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous().float() / 255


def write_variants(model: str, folder: Path, images: Tensor) -> dict[str, Path]:
    """Exports a network's variants; returns the folder of each."""
    network: nn.Module = create_network(num_classes=1000, image_size=SIZE, **MODELS[model])
    if "weights" not in MODELS[model]:
        settle(network, images)
    variants: dict[str, Callable[[nn.Module], None]] = {
        "float": lambda _: None,
        "INT8": partial(quantize, images=images),
        "half MACs": halve,
        "half MACs, INT8": lambda copied: (halve(copied), quantize(copied, images))[0],
    }
    folders = {}
    for variant, change in variants.items():
        say(f"{model}: {variant}")
        changed = copy.deepcopy(network).eval()
        change(changed)
        folders[variant] = folder / variant
        anything = Tolerance(None, 0.0)  # classes that random weights tell apart are as good as ties
        formats: tuple[Format, ...] = ("onnx", "torch_export")
        export_model(changed, folders[variant], SIZE, images, images, formats, tolerance=anything)
    return folders


@torch.no_grad()
def settle(network: nn.Module, images: Tensor) -> None:
    """Gives random weights running statistics that fit them, so that activations neither explode nor vanish."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.uniform_(0.5, 1)  # some begin with 0, and a file of zeros would be small for no merit of ours
        norm.momentum = None  # the mean of all batches seen
    network.train()
    network(images)
    for norm in norms:
        norm.momentum = 0.1


def halve(network: nn.Module) -> None:
    """Removes channels until half of the multiply-accumulates are left; widths are multiples of 8."""
    pruning = ChannelPruning(Target("macs", 0.5), round_to=8)
    removals = pruning.removals(network, SIZE, pruning.budget(network, SIZE))
    remove_channels(network, SIZE, removals)


def quantize(network: nn.Module, images: Tensor) -> None:
    """Post-training quantization to INT8."""
    fake_quantize(network)
    network.eval()
    calibrate(network, images.split(8))


def write_peers(folder: Path, ours: Path, images: Tensor, wanted: list[str]) -> dict[str, Path]:
    """Lets the peers quantize our float ONNX file; each for its own runtime."""
    source, written = ours / FILES["onnx"], {}
    if "openvino" in wanted:
        say(NNCF)
        written[NNCF] = folder / NNCF
        written[NNCF].mkdir()
        by_nncf(source, written[NNCF] / "model.xml", images)
    if "onnxruntime" in wanted:
        say(ORT)
        written[ORT] = folder / ORT
        written[ORT].mkdir()
        by_onnx_runtime(source, written[ORT] / FILES["onnx"], images)
    return written


def by_nncf(source: Path, target: Path, images: Tensor) -> None:
    """`nncf.quantize` with its defaults."""
    with redirect_stdout(sys.stderr):
        import nncf
        import openvino

        model = openvino.Core().read_model(str(source))
        data = nncf.Dataset([image[None].numpy() for image in images])
        openvino.save_model(nncf.quantize(model, data, subset_size=len(images)), str(target), compress_to_fp16=False)


def by_onnx_runtime(source: Path, target: Path, images: Tensor) -> None:
    """`onnxruntime.quantization.quantize_static`, as its documentation recommends for x86: QDQ, u8s8, per channel."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"images": image[None].numpy()} for image in images])

        def get_next(self) -> Any:
            return next(self.rest, None)

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )


def measure(model: str, runtime: str, artefacts: dict[str, Path], rounds: int, threads: int) -> None:
    """Times all variants in one runtime, and prints them.

    The same file loaded twice can differ by 5 % for as long as it stays loaded, by where in memory it came to lie. So
    all are loaded several times, in different orders (but compiled only once, which takes long).
    """
    files = {}
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for variant, folder in artefacts.items():
        if (variant == NNCF and runtime != "openvino") or (variant == ORT and runtime != "onnxruntime"):
            continue
        files[variant] = folder / ("model.xml" if variant == NNCF else FILES[runtimes.FILES[runtime]])
    medians: dict[str, list[list[float]]] = {variant: [] for variant in files}
    loads = 1 if runtime == "compiled" else LOADS
    order, generator = list(files), random.Random(0)
    for number in range(loads):
        generator.shuffle(order)
        say(f"{model} in {runtime}, {number + 1} of {loads}")
        calls = {v: partial(runtimes.load(runtime, files[v], 1, SIZE, threads), image) for v in order}
        for variant, latency in interleaved(calls, rounds=math.ceil(rounds / loads)).items():
            medians[variant] += [[median] for median in latency.rounds]
    times = {variant: summary(rounds_of_one) for variant, rounds_of_one in medians.items()}
    print(f"\n{model} in {runtime}")
    print(
        f"{'variant':24}{'median ms':>10}{'quartiles':>18}{'x faster':>10}{'quartiles':>16}{'MB':>8}{'x smaller':>10}"
    )
    whole = size(files["float"])
    for variant, found in times.items():
        ratio, (slow, fast) = speedup(times["float"], found)
        low, high = found.quartiles
        print(
            f"{variant:24}{found.median:10.2f}{f'{low:.2f} to {high:.2f}':>18}{ratio:10.2f}"
            f"{f'{slow:.2f} to {fast:.2f}':>16}{size(files[variant]) / 1e6:8.2f}{whole / size(files[variant]):10.2f}",
            flush=True,
        )
    for peer in (NNCF, ORT):
        if peer in times:
            ratio, (slow, fast) = speedup(times[peer], times["INT8"])
            print(f"our INT8 is {ratio:.2f} times as fast as {peer} ({slow:.2f} to {fast:.2f})", flush=True)


def size(path: Path) -> int:
    """Deflated bytes of an artefact (OpenVINO's has its weights beside it)."""
    weights = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    return sum(deflated_bytes(part) for part in [path, *weights])


if __name__ == "__main__":
    main()
