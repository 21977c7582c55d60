"""The networks that `carlini_wagner.py` attacks: a standard and an adversarially trained one, and one in INT8."""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresslens.networks import PixelNetwork
from compresslens.quantization import calibrate, fake_quantize
from datamodules import MNISTScenes

IMAGE_SIZE = 32
CLASSES = 10
SCENES_PER_DIGIT = 4
BATCH = 64
EPOCHS = {"standard": 10, "adversarial": 8}
LEARNING_RATE = 4e-3
RADIUS = 1.0  # L2 of the training attack, in pixel units
TRAINING_STEPS = 3
CALIBRATION_IMAGES = 512
LEAST_ACCURACY = {"standard": 0.9, "adversarial": 0.8, "fake_quant": 0.9}


class Block(nn.Module):
    """Residual block of two 3×3 convolutions (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(features))


class SmallResNet(nn.Module):
    """Three blocks of 16, 32 and 64 channels at 16×16, 8×8 and 4×4 of 32×32 pixels; 78,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(images)).mean((2, 3)))


Images = tuple[Tensor, Tensor]


def scenes(data: MNISTScenes, split: str) -> Images:
    """All images of a split, float32 N×3×32×32 in [0, 1], and their labels."""
    samples = data.dataset(split).samples  # type: ignore[arg-type]
    # In memory they lie with the channels last, where convolutions take another time and round in another way. A loader
    # would hand them out contiguous, so that is what all attacks and the network's own time are measured on.
    images = samples.images.contiguous().float() / 255  # type: ignore[attr-defined]
    return images, torch.from_numpy(samples.targets)  # type: ignore[attr-defined]


def prepare(names: list[str], cache: Path | None) -> tuple[dict[str, nn.Module], Images]:
    """The networks, trained (or read from the cache) and in eval mode, and the test images.

    Raises:
        SystemExit: a network is too inaccurate for its robustness to mean anything.
    """
    data = MNISTScenes(image_size=IMAGE_SIZE, scenes_per_digit=SCENES_PER_DIGIT)
    training, test = scenes(data, "train"), scenes(data, "test")
    networks: dict[str, nn.Module] = {}
    for name in names:
        if name == "fake_quant":
            network = copy.deepcopy(networks.get("standard") or trained("standard", training, cache))
            fake_quantize(network)
            network.eval()
            generator = torch.Generator().manual_seed(0)
            chosen = torch.randperm(len(training[0]), generator=generator)[:CALIBRATION_IMAGES]
            calibrate(network, training[0][chosen].split(BATCH))
        else:
            network = trained(name, training, cache)
        networks[name] = network
        accuracy = float((predictions(network, test[0]) == test[1]).double().mean())
        print(f"{name}: accuracy {accuracy:.1%} on {len(test[0])} test images", flush=True)
        if accuracy < LEAST_ACCURACY[name]:
            sys.exit(f"{name} was to reach {LEAST_ACCURACY[name]:.0%}")
    return networks, test


def trained(name: str, images: Images, cache: Path | None) -> nn.Module:
    """A network from the cache, or else trained."""
    torch.manual_seed(0)
    network = PixelNetwork(SmallResNet(), (0.25,) * 3, (0.25,) * 3, "small_resnet", CLASSES, IMAGE_SIZE)
    recipe = hashlib.sha256(inspect.getsource(sys.modules[__name__]).encode()).hexdigest()[:8]
    file = cache / f"{name}_{recipe}.pt" if cache else None
    if file is not None and file.is_file():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    began = time.process_time()
    train(network, images, EPOCHS[name], towards_boundary if name == "adversarial" else None)
    print(f"{name}: trained in {time.process_time() - began:.0f} CPU seconds", file=sys.stderr, flush=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), file)
    return network.eval()


def train(
    network: nn.Module,
    images: Images,
    epochs: int,
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor] | None,
) -> None:
    """AdamW with a one-cycle learning rate; `attack` turns each batch into what is trained on."""
    batches = len(images[0]) // BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(images[0]))[: batches * BATCH].view(batches, BATCH):
            inputs, labels = images[0][rows], images[1][rows]
            if attack is not None:
                inputs = attack(network.eval(), inputs, labels)
            loss = F.cross_entropy(network.train()(inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def towards_boundary(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Projected gradient ascent within an L2 ball (Madry et al. 2018), from a random start."""
    start = torch.randn_like(images)
    points = images + RADIUS / 2 * start / lengths(start)
    for _ in range(TRAINING_STEPS):
        points = points.clamp(0, 1).requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(points), labels, reduction="sum"), points)
        moved = points.detach() + 2 * RADIUS / TRAINING_STEPS * gradient / lengths(gradient) - images
        points = images + moved * (RADIUS / lengths(moved)).clamp_max(1)
    return points.clamp(0, 1).detach()


def lengths(images: Tensor) -> Tensor:
    """L2 norm of each image, N×1×1×1, not zero."""
    return torch.linalg.vector_norm(images, dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def predictions(network: nn.Module, images: Tensor) -> Tensor:
    """Classes N."""
    return torch.cat([network(part).argmax(1) for part in images.split(100)])
