import math

import pytest
import torch
from torch import nn

from compresslens.cams.sanity import depends_on_weights, randomization_similarity, shuffled_weights
from compresslens.cams.similarity import pearson_correlation
from compresslens.errors import UserError
from compresslens.networks.modes import evaluation_mode


def network():
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    )
    made.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(8, 5))
    return made.to(memory_format=torch.channels_last)


def bits(net):
    return {name: value.clone() for name, value in [*net.named_parameters(), *net.named_buffers()]}


def same(a, b):
    return [torch.equal(a[name], b[name]) for name in a]


def plain_cam(net, images, classes):
    """CAM of a network whose head is mean and linear."""
    with torch.no_grad():
        return torch.einsum("nchw,nc->nhw", net[:5](images), net[7].weight[classes])


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_weights_move_within_the_block_and_are_back_after_it(fails, mode):
    net = network()
    net[3].bias.requires_grad_(False)
    images, before, state = torch.rand(2, 3, 8, 8), bits(net), torch.get_rng_state()
    flags = [(p.requires_grad, p.grad, p.data_ptr(), p.stride()) for p in net.parameters()]
    with pytest.raises(ZeroDivisionError) if fails else mode(), mode(), shuffled_weights(net) as shuffled:
        assert shuffled is net
        within = bits(net)
        with torch.no_grad():
            net.eval()(images)
        if fails:
            raise ZeroDivisionError
    for name in ("0.weight", "3.weight", "7.weight", "7.bias"):
        assert not torch.equal(within[name], before[name])
        assert torch.equal(within[name].flatten().sort().values, before[name].flatten().sort().values)
    assert all(same(before, bits(net)))
    assert flags == [(p.requires_grad, p.grad, p.data_ptr(), p.stride()) for p in net.parameters()]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_share_counts_from_the_classifier_down_and_the_seed_decides():
    net = network()
    before = bits(net)
    with shuffled_weights(net, share=0.01):  # one tensor at least: the classifier's bias
        changed = {name for name, value in bits(net).items() if not torch.equal(value, before[name])}
    assert changed == {"7.bias"}
    with shuffled_weights(net, share=0.5):
        changed = {name for name, value in bits(net).items() if not torch.equal(value, before[name])}
    assert changed == {"3.weight", "3.bias", "7.weight", "7.bias"}
    drawn = []
    for seed in (0, 0, 1):
        with shuffled_weights(net, seed=seed):
            drawn.append(bits(net)["3.weight"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_shared_weights_are_shuffled_once_and_compiled_networks_are_reached():
    net = network()
    net.append(nn.Linear(5, 5)).append(nn.Linear(5, 5))
    net[9].weight = net[8].weight
    before = bits(net)
    compiled = torch.compile(net, backend="eager")
    images = torch.rand(2, 3, 8, 8)
    net.eval()
    with torch.no_grad():
        plain = compiled(images)
        with shuffled_weights(compiled):
            assert net[9].weight is net[8].weight
            torch.testing.assert_close(compiled(images), net(images))
            assert not torch.allclose(compiled(images), plain)
        assert torch.equal(compiled(images), plain)
    assert all(same(before, bits(net)))


def test_int8_weights_in_buffers_are_shuffled_and_scales_are_not():
    net = nn.Module()
    net.register_buffer("weight", torch.arange(-8, 8, dtype=torch.int8).reshape(4, 4))
    net.register_buffer("scales", torch.rand(4))
    net.register_buffer("zero_points", torch.zeros(4, dtype=torch.int8))
    before = bits(net)
    with shuffled_weights(net):
        assert same(before, bits(net)) == [False, True, True]
    assert all(same(before, bits(net)))


@pytest.mark.slow
def test_quantized_networks_are_shuffled_and_stay_as_they_were():
    from compresslens.networks import create_network  # slow to import
    from compresslens.quantization import calibrate, deployable, fake_quantize

    twin = create_network("resnet18", num_classes=10, image_size=32)
    images = torch.rand(4, 3, 32, 32)
    fake_quantize(twin)
    calibrate(twin, [images])
    for net in (twin.train(), deployable(twin)):
        with torch.no_grad():
            net(images)  # the twin observes ranges, and says so in its buffers
        before = bits(net)
        with shuffled_weights(net), evaluation_mode(net):
            shuffled = net(images)
        with evaluation_mode(net):
            logits = net(images)
        assert shuffled.isfinite().all()
        assert (shuffled - logits).abs().max() > 0.01
        after = bits(net)
        observing = {name for name in after if name.endswith("observer_enabled")}
        assert bool(observing) == (net is twin)
        assert not any(after[name].any() for name in observing)  # as befits evaluation
        assert all(torch.equal(before[name], after[name]) for name in after if name not in observing)


def test_maps_of_weights_are_destroyed_and_maps_of_edges_are_not():
    net, images, classes = network().eval(), torch.rand(6, 3, 16, 16), torch.arange(6) % 5
    before = bits(net)

    def edges(_network, images, _classes):
        return images.mean(1).diff(dim=2).abs()

    found = randomization_similarity(edges, net, images, classes)
    assert found.shape == (6, 3)
    torch.testing.assert_close(found, torch.ones_like(found))
    assert not depends_on_weights(found[:, -1])
    found = randomization_similarity(plain_cam, net, images, classes, similarity=pearson_correlation)
    with shuffled_weights(net, 1.0):
        expected = plain_cam(net, images, classes)
    torch.testing.assert_close(found[:, 2], pearson_correlation(plain_cam(net, images, classes), expected))
    assert found.mean(0)[2] < 0.5
    assert depends_on_weights(found[:, -1])
    assert all(same(before, bits(net)))


def test_a_map_that_becomes_constant_is_destroyed_and_one_that_was_is_unknown():
    net, images, classes = network(), torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    original = net[0].weight.clone()

    def maps(network, images, _classes):
        values = images[:, 0].clone()
        values[1] = 0
        return values if torch.equal(network[0].weight, original) else torch.zeros_like(values)

    found = randomization_similarity(maps, net, images, classes, shares=(1.0,))
    assert found[0].item() == 0
    assert found[1].isnan()
    assert depends_on_weights(found[:, 0])


def test_the_verdict():
    assert depends_on_weights(torch.tensor([0.4, math.nan, 0.5]))
    assert not depends_on_weights(torch.tensor([0.4, 0.6]))
    assert not depends_on_weights(torch.tensor([0.4, 0.5]), threshold=0.3)
    with pytest.raises(ValueError, match="every map was constant"):
        depends_on_weights(torch.tensor([math.nan]))


def test_wrong_arguments():
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share is"), shuffled_weights(network(), share):
            pytest.fail("the block must not run")
    with pytest.raises(UserError, match="no weights"), shuffled_weights(nn.ReLU()):
        pytest.fail("the block must not run")
