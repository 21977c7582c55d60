import pytest
import torch
from torch import nn

from compresslens.networks.modes import evaluation_mode, full_float32, input_gradients


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


def precisions():
    """The settings of torch in its newer and, where they can be told, in its older way."""
    backends = torch.backends
    found = [
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
    ]
    settings = [part.fp32_precision for part in found]
    try:
        return settings, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return settings, None, None


@pytest.fixture
def settings():
    """Puts torch's settings back; in the older way they begin as torch itself has them."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    yield
    for part in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
        part.fp32_precision = "ieee"
    for part in (torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        part.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


CHOICES = {
    "default": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "newer": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "newer, of convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", [input_gradients, evaluation_mode])
@pytest.mark.parametrize("choice", CHOICES)
def test_products_are_of_full_precision_meanwhile(settings, choice, mode, fails):
    CHOICES[choice]()
    before = precisions()
    with pytest.raises(ZeroDivisionError) if fails else torch.no_grad(), mode(network()):
        with full_float32():
            pass
        assert precisions()[0] == ["ieee"] * 5
        if not choice.startswith("newer"):  # compilers ask in the older way, which must not contradict the newer
            assert precisions()[1:] == ("highest", False)
        if fails:
            raise ZeroDivisionError
    assert precisions() == before
