import zlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compresslens.export.torch_export import capture
from compresslens.footprint import count_macs, count_parameters, peak_memory, weights_bytes, zero_share
from compresslens.networks import create_network
from tests.references.footprint import macs_by_layers, peak_of_a_chain


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 12, (1, 3), dilation=2, groups=2),
        nn.ConvTranspose2d(12, 6, 2, stride=2, groups=3),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


@pytest.fixture(scope="module")
def resnet18() -> Iterator[nn.Module]:
    from torchvision.models import resnet18

    return resnet18()


def test_parameters_are_counted_once_and_without_buffers() -> None:
    first, last = nn.Linear(3, 3), nn.Linear(3, 3)
    last.weight = first.weight
    first.requires_grad_(False)
    with torch.no_grad():
        first.weight.fill_(1).view(-1)[:4] = 0
        first.bias.fill_(1)
        last.bias.fill_(1)
    network = nn.Sequential(first, nn.BatchNorm1d(3), last)
    # weight 9, two biases of 3, BatchNorm 3 + 3 of which the 3 biases are zero
    assert count_parameters(network) == (9 + 3 + 3 + 6, 5 + 3 + 3 + 3)
    assert count_parameters(nn.ReLU()) == (0, 0)


def test_macs_of_resnet18_are_those_of_the_literature(resnet18: nn.Module) -> None:
    # He et al. 2016, table 1: 1.8e9; torchvision's documentation: 1.81e9.
    assert count_macs(resnet18, 224) == 1_814_073_344
    assert count_parameters(resnet18)[0] == 11_689_512


@pytest.mark.parametrize("size", [12, 17])
def test_macs_are_half_the_flops_of_torch(size: int) -> None:
    network = small_network().eval()
    with FlopCounterMode(display=False) as flops:
        network(torch.zeros(1, 3, size, size))
    assert count_macs(network, size) * 2 == flops.get_total_flops()


@pytest.mark.parametrize(
    "architecture",
    ["resnet18", "resnet50", "mobilenetv2_100", "tf_efficientnet_lite0", "efficientnet_b0", "densenet121"],
)
def test_macs_are_those_of_the_layers(architecture: str) -> None:
    network = create_network(architecture, 10, image_size=64, stem="imagenet").eval()
    assert count_macs(network, 64) == macs_by_layers(network, 64)


def test_macs_of_a_graph_without_modules(resnet18: nn.Module) -> None:
    graph = capture(resnet18.eval(), 64).module()
    assert not [module for module in graph.modules() if isinstance(module, nn.Conv2d)]
    assert count_macs(graph, 64) == count_macs(resnet18, 64) == macs_by_layers(resnet18, 64)


def test_macs_by_hand() -> None:
    assert count_macs(nn.Conv2d(3, 5, 3, padding=1, bias=True), 8) == 5 * 8 * 8 * 9 * 3
    assert count_macs(nn.Conv2d(3, 6, 5, padding=2, groups=3), 8) == 6 * 8 * 8 * 25
    assert count_macs(nn.ConvTranspose2d(3, 4, 2, stride=2), 8) == 3 * 8 * 8 * 4 * 4
    assert count_macs(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), 2) == 12 * 7
    shared = nn.Conv2d(3, 3, 1)
    assert count_macs(nn.Sequential(shared, shared), 4) == 2 * 9 * 16
    assert count_macs(nn.ReLU(), 4) == 0


def test_macs_leave_the_network_as_it_was() -> None:
    network = small_network().train()
    network[1].eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    expected = count_macs(network, 12)
    with torch.inference_mode():
        assert count_macs(network, 12) == expected
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(not module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_macs_clean_up_after_an_error() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("broken")

    network = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        count_macs(network, 4)
    assert network.training
    assert not network.layer._forward_hooks


def test_zero_share() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2))
    with torch.no_grad():
        network[0].weight.fill_(1)[:2] = 0
        network[2].weight.fill_(1)
        network[2].bias.zero_()
    assert zero_share(network) == 6 / (12 + 8)
    assert zero_share(nn.ReLU()) == 0


@pytest.mark.parametrize("batch", [1, 5])
def test_peak_memory_of_a_chain(batch: int) -> None:
    chain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 32, 1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512, 2)
    )
    chain[3].register_buffer("unused", torch.zeros(7))
    assert peak_memory(chain, 16, batch) == peak_of_a_chain(chain, torch.zeros(batch, 3, 16, 16))
    with torch.inference_mode():
        assert peak_memory(chain, 16, batch) == peak_of_a_chain(chain, torch.zeros(batch, 3, 16, 16))


def test_peak_memory_counts_no_views_and_what_is_in_place_once() -> None:
    weight = 4 * 8 * 3
    plain = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU())
    in_place = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(inplace=True), nn.Flatten())
    images, maps = 4 * 3 * 100, 4 * 8 * 100
    assert peak_memory(plain, 10) == weight + images + 2 * maps
    assert peak_memory(in_place, 10) == weight + images + maps


def test_weights_bytes_is_the_size_of_the_deflated_file() -> None:
    from safetensors.torch import save

    network = small_network()
    expected = len(zlib.compress(save(dict(network.state_dict())), 6))
    assert weights_bytes(network) == expected
    assert weights_bytes(network.to(memory_format=torch.channels_last)) == expected
    assert weights_bytes(network.eval()) == expected


def test_weights_bytes_shrinks_with_precision_and_zeros_and_counts_shared_weights_once() -> None:
    first, second = nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False)
    network = nn.Sequential(first, second)
    full = weights_bytes(network)
    assert full == pytest.approx(80_000 * 0.93, rel=0.05)
    assert weights_bytes(network.half()) < 0.6 * full
    network.float()
    with torch.no_grad():
        first.weight.zero_()
    assert weights_bytes(network) < 0.55 * full
    first.weight = second.weight
    assert weights_bytes(network) < 0.55 * full
    assert weights_bytes(nn.ReLU()) < 100
