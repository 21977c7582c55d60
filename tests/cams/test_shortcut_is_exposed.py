"""A network that goes by the background is as accurate as one that reads the digit, and its maps give it away.

Both networks are judged on the same images: test digits, which neither has seen, on the training backgrounds, mostly
that of the digit's class. It is what one holds out who does not know of the shortcut. On backgrounds that say nothing,
accuracy alone would tell the two apart; the maps might not: where the background speaks for another class, only the
digit is left to speak for the true one, whatever the network usually goes by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslens.cams import maps_and_logits
from compresslens.cams.localization import energy_in_mask, mask_area
from compresslens.statistics import paired_difference_interval
from datamodules.mnist_scenes import SceneDataset, SceneStyle

SHORTCUT = 0.95
EPOCHS, BATCH, RATE = 3, 64, 0.1

pytestmark = pytest.mark.slow


class Small(nn.Module):
    """Five convolutions, 64 → 8 pixels, 71,000 parameters; takes pixels."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.blocks = nn.Sequential(
                *block(3, 16, 2), *block(16, 32, 2), *block(32, 32, 1), *block(32, 64, 2), *block(64, 64, 1)
            )
            self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.blocks(2 * images - 0.5).mean((2, 3)))


def block(before: int, after: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]


@dataclass(frozen=True)
class Judged:
    """Of each image: whether the network is right, and the energy of the true class's map in the mask."""

    right: npt.NDArray[np.bool_]
    energy: npt.NDArray[np.float64]


def scenes(shortcut: float) -> SceneStyle:
    """The look of the default data."""
    return SceneStyle(64, "paste", dimming=(0.2, 0.5), digit_size=(0.56, 0.81), shortcut=shortcut)


def trained(shortcut: float) -> nn.Module:
    """From the same initial weights, on the same digits in the same order, whatever the shortcut."""
    data = SceneDataset("train", scenes(shortcut), seed=0, scenes_per_digit=2)
    labels = torch.from_numpy(data.targets)
    network = Small(seed=0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = EPOCHS * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator)[: len(labels) // BATCH * BATCH].split(BATCH):
            loss = F.cross_entropy(network(pixels(data.images[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def pixels(images: Tensor) -> Tensor:
    return (images.float() / 255).contiguous(memory_format=torch.channels_last)


def judged(network: nn.Module, data: SceneDataset) -> Judged:
    labels = torch.from_numpy(data.targets)
    maps, logits = maps_and_logits(network, pixels(data.images), labels)
    return Judged((logits.argmax(1) == labels).numpy(), energy_in_mask(maps, data.masks).numpy())


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """Trained with the shortcut, and without it."""
    return trained(SHORTCUT), trained(0.0)


@pytest.fixture(scope="module")
def with_shortcut() -> SceneDataset:
    """1,000 test digits on backgrounds like those of the training data with the shortcut."""
    return SceneDataset("test", scenes(SHORTCUT), seed=0, backgrounds="train")


def test_accuracy_hides_the_shortcut_and_localization_exposes_it(
    networks: tuple[nn.Module, nn.Module], with_shortcut: SceneDataset
) -> None:
    misled, control = (judged(network, with_shortcut) for network in networks)
    assert misled.right.mean() > 0.9, "on what it was trained for"
    assert misled.right.mean() > control.right.mean() - 0.03, "accuracy does not tell them apart"
    low, high = paired_difference_interval(misled.energy, control.energy)
    assert high < 0, f"energy in mask must fall; its change is {low:.3f} to {high:.3f}"
    few = slice(None, None, 8)  # as many images as a run looks at by default, of all classes
    assert paired_difference_interval(misled.energy[few], control.energy[few])[1] < 0
    for found in (misled, control):
        assert found.energy.mean() > mask_area(with_shortcut.masks).mean(), (
            "both go by the digit, too: it is a matter of degree"
        )


def test_it_is_a_shortcut_and_the_control_has_none(networks: tuple[nn.Module, nn.Module]) -> None:
    """The same digits, on backgrounds drawn at random."""
    plain = SceneDataset("test", scenes(0.0), seed=0, backgrounds="train")
    misled, control = (judged(network, plain) for network in networks)
    assert control.right.mean() > 0.9, "on what it was trained for"
    assert misled.right.mean() < control.right.mean() - 0.2, "without its background it is lost"
