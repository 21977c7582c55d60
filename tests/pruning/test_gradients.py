from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compresslens.errors import UserError
from compresslens.pruning.gradients import loss_gradients
from compresslens.pruning.untouched import left_as_found
from tests.lightning_modules.tiny import CLASSES, TinyNetwork
from tests.pruning.networks import trained


def batches(*sizes: int) -> list[tuple[torch.Tensor, torch.Tensor, str]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.rand(size, 3, 12, 12, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
            "masks",
        )
        for size in sizes
    ]


def test_the_gradient_of_the_mean_over_all_images() -> None:
    network = trained(TinyNetwork()).double()
    data = [(images.double(), labels, rest) for images, labels, rest in batches(5, 2)]
    gradients = loss_gradients(network, data)
    network.eval()
    images, labels = torch.cat([batch[0] for batch in data]), torch.cat([batch[1] for batch in data])
    epsilon = 1e-6
    for name, place in (("layer1.0.weight", (1, 2, 0, 1)), ("classifier.bias", (3,)), ("layer2.1.weight", (4,))):
        losses = []
        for step in (epsilon, -epsilon):
            moved = copy.deepcopy(network)
            with torch.no_grad():
                moved.get_parameter(name)[place] += step
                losses.append(F.cross_entropy(moved(images), labels).item())
        difference = (losses[0] - losses[1]) / (2 * epsilon)
        assert gradients[name][place].item() == pytest.approx(difference, rel=1e-4, abs=1e-7)
    (exact,) = torch.autograd.grad(F.cross_entropy(network(images).float(), labels), [network.layer1[0].weight])
    torch.testing.assert_close(gradients["layer1.0.weight"], exact, rtol=1e-5, atol=1e-7)


def test_frozen_and_unused_parameters_have_one_too() -> None:
    network = TinyNetwork().requires_grad_(False)
    network.spare = nn.Linear(2, 2)  # type: ignore[assignment]
    gradients = loss_gradients(network, batches(3))
    assert gradients["layer1.0.weight"].abs().sum() > 0
    assert gradients["spare.weight"].abs().sum() == 0
    assert set(gradients) == {name for name, _ in network.named_parameters()}


def test_no_images() -> None:
    with pytest.raises(UserError, match="set calibration_samples"):
        loss_gradients(TinyNetwork(), [])


def test_the_network_is_left_as_it_was() -> None:
    network = TinyNetwork().train()
    network.layer1.eval()
    network.layer1[0].weight.requires_grad_(False)
    network.classifier.weight.grad = torch.ones_like(network.classifier.weight)
    gradient = network.classifier.weight.grad
    before, modes = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with torch.no_grad():
        loss_gradients(network, batches(3))
        assert not torch.is_grad_enabled()
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.classifier.weight.grad is gradient
    assert gradient.eq(1).all()
    assert network.layer2[0].weight.grad is None
    trained_ = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert trained_ == ["layer1.0.weight"]
    assert torch.equal(torch.get_rng_state(), state)


def test_left_as_found_after_an_error_and_with_new_parameters() -> None:
    network = TinyNetwork().to(memory_format=torch.channels_last).train()
    weight = network.layer2[0].weight.requires_grad_(False)

    def fail() -> None:
        with left_as_found(network):
            assert not network.training
            assert weight.requires_grad
            network.layer2[0].weight = nn.Parameter(torch.ones(3, 4, 3, 3))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert network.layer2.training
    new = network.layer2[0].weight
    assert not new.requires_grad
    assert new.is_contiguous(memory_format=torch.channels_last)
