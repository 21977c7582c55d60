import pytest
import torch
from torch import nn

from compresslens.networks.modes import input_gradients


def network():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.LazyLinear(3))
    net(torch.rand(2, 3, 6, 6))
    net.train()
    net[1].eval()  # mixed on purpose
    net[0].weight.requires_grad_(False)
    return net


def state(net):
    flags = [module.training for module in net.modules()]
    return flags, [p.requires_grad for p in net.parameters()], [p.grad for p in net.parameters()]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails):
    net = network()
    before, buffers = state(net), [b.clone() for b in net.buffers()]
    random = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError) if fails else torch.no_grad(), input_gradients(net):
        assert not any(module.training for module in net.modules())
        assert not any(p.requires_grad for p in net.parameters())
        images = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        net(images).sum().backward()
        assert images.grad is not None
        if fails:
            raise ZeroDivisionError
    assert state(net) == before
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_gradients_whatever_the_mode_of_the_caller(mode):
    net = network()
    with mode(), input_gradients(net):
        images = torch.rand(2, 3, 6, 6).requires_grad_()
        logits = net(images)
        assert logits.dtype == torch.float32
        (gradient,) = torch.autograd.grad(logits.sum(), images)
        assert gradient.abs().sum() > 0
