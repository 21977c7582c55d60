import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics import road as peer
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from torch import nn
from torchvision.transforms.functional import gaussian_blur

from compresslens.cams.faithfulness import deletion_auc, insertion_auc, probability_curves, road
from tests.references import cam_measures as reference


class Corner(nn.Module):
    """Class 1 is as probable as the mean brightness of the upper left quarter."""

    def forward(self, images):
        share = images[:, :, : images.shape[2] // 2, : images.shape[3] // 2].mean((1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([torch.zeros_like(share), (share / (1 - share)).log()], 1)


def network():
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 100, 4)
    )
    made[1].running_var.uniform_(0.01, 0.1)
    made.train()
    made[1].eval()  # mixed on purpose
    return made


def example(count=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 12, 12, generator=generator)
    return images, torch.arange(count) % 4, torch.rand(count, 12, 12, generator=generator)


def probability(net, label):
    def of(image):
        net.eval()
        with torch.no_grad():
            return net(torch.from_numpy(image)[None].float()).double().softmax(1)[0, label].item()

    return of


@pytest.mark.parametrize("ties", [False, True])
def test_insertion_and_deletion_are_the_slow_ones(ties):
    net, (images, classes, maps) = network(), example()
    maps = (maps * 4).floor() if ties else maps
    inserted = insertion_auc(net, images, classes, maps, steps=7, blur=(5, 2.0), chunk_size=5)
    deleted = deletion_auc(net, images, classes, maps, steps=7, chunk_size=5)
    black = deletion_auc(net, images, classes, maps, steps=7, fill=0.0)
    blurred = gaussian_blur(images, [5, 5], [2.0, 2.0])
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    for found, start, end in [
        (inserted, blurred, images),
        (deleted, images, mean),
        (black, images, torch.zeros_like(images)),
    ]:
        rows = zip(classes.tolist(), start.numpy(), end.numpy(), maps.numpy(), strict=True)
        expected = [reference.replacement_auc(probability(net, c), s, e, m, 7) for c, s, e, m in rows]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_closed_form_on_a_network_that_looks_at_a_corner():
    images, classes = torch.ones(1, 3, 8, 8), torch.tensor([1])
    right = torch.zeros(1, 8, 8)
    right[:, :4, :4] = 1
    # A quarter of the pixels decides: gone (in order) after a quarter of the way, or at the end of it.
    best = deletion_auc(Corner(), images, classes, right, steps=64, fill=0.0).item()
    worst = deletion_auc(Corner(), images, classes, 1 - right, steps=64, fill=0.0).item()
    assert best == pytest.approx(1 / 8, abs=1e-3)
    assert worst == pytest.approx(7 / 8, abs=1e-3)
    curve = probability_curves(Corner(), images, 0 * images, classes, right, 4)
    assert curve[0].tolist() == pytest.approx([1, 0, 0, 0, 0], abs=1e-5)


def test_the_ends_of_the_curve_are_the_images_and_chunks_do_not_matter():
    net, (images, classes, maps) = network(), example()
    curves = probability_curves(net, images, images.flip(0), classes, maps, 5)
    net.eval()
    with torch.no_grad():
        ends = [net(x).double().softmax(1).gather(1, classes[:, None])[:, 0] for x in (images, images.flip(0))]
    torch.testing.assert_close(curves[:, [0, -1]], torch.stack(ends, 1), rtol=1e-6, atol=1e-9)
    chunked = probability_curves(net, images, images.flip(0), classes, maps, 5, chunk_size=4)
    torch.testing.assert_close(chunked, curves, rtol=1e-6, atol=1e-9)
    scaled = probability_curves(net, images, images.flip(0), classes, maps * 3, 5)
    assert torch.equal(scaled, curves)  # only the order of the pixels matters


def test_road_is_that_of_pytorch_grad_cam():
    net, (images, classes, _) = network().eval(), example()
    # all values differ, so that their thresholds on values choose the same pixels as ours on ranks
    maps = torch.stack([torch.randperm(144).reshape(12, 12) / 144 for _ in images])
    found = road(net, images, classes, maps, fractions=(0.25, 0.5), noise=0.0)
    targets = [ClassifierOutputSoftmaxTarget(label) for label in classes.tolist()]
    noiseless = peer.NoisyLinearImputer(noise=0)
    scores = []
    for fraction in (0.25, 0.5):
        percentile = 100 * (1 - fraction)
        most = peer.RemoveMostRelevantFirst(percentile, noiseless)
        least = peer.RemoveLeastRelevantFirst(percentile, noiseless)
        least_first, most_first = (
            peer.PerturbationConfidenceMetric(way)(images, maps.numpy(), targets, net) for way in (least, most)
        )
        scores.append((least_first - most_first) / 2)
    np.testing.assert_allclose(found, np.mean(scores, 0), atol=1e-6)


def test_road_knows_a_right_map_from_a_wrong_one():
    images, classes = torch.zeros(2, 3, 8, 8), torch.tensor([1, 1])
    images[:, :, 1:3, 1:3] = 1
    right = images[:, 0].clone()
    right[1] = 1 - right[1]
    found = road(Corner(), images, classes, right, fractions=(0.1, 0.25), noise=0.0)
    assert found[0] > 0.05
    assert found[1] < -0.05


def test_noise_belongs_to_the_sample():
    net, (images, classes, maps) = network(), example()
    everything = road(net, images, classes, maps, fractions=(0.5,), samples=[7, 3, 5])
    last = road(net, images[2:], classes[2:], maps[2:], fractions=(0.5,), samples=torch.tensor([5]))
    torch.testing.assert_close(last, everything[2:], rtol=1e-6, atol=1e-9)
    for other in ({"seed": 1}, {"samples": [1, 2, 3]}, {"noise": 0.0}):
        settings = {"samples": [7, 3, 5], **other}
        assert not torch.equal(road(net, images, classes, maps, fractions=(0.5,), **settings), everything)


@pytest.mark.parametrize("measure", [insertion_auc, deletion_auc, road])
@pytest.mark.parametrize("fails", [False, True])
def test_the_network_and_the_random_state_are_left_alone(measure, fails):
    net, (images, classes, maps) = network(), example()
    classes = classes + 99 if fails else classes  # no such class
    before = [module.training for module in net.modules()]
    state, values = torch.get_rng_state(), [t.clone() for t in net.state_dict().values()]
    if fails:
        with pytest.raises((RuntimeError, IndexError)):
            measure(net, images, classes, maps)
    else:
        with torch.inference_mode():
            scores = measure(net, images, classes, maps)
        assert scores.shape == (3,)
        assert scores.dtype == torch.float64
    assert [module.training for module in net.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(values, net.state_dict().values(), strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_no_samples_give_no_scores():
    none = torch.empty(0, 3, 12, 12), torch.empty(0, dtype=torch.long), torch.empty(0, 12, 12)
    for measure in (insertion_auc, deletion_auc, road):
        assert measure(network(), *none).shape == (0,)


def test_wrong_arguments():
    net, (images, classes, maps) = network(), example()
    for measure in (insertion_auc, deletion_auc, road):
        with pytest.raises(ValueError, match="do not belong together"):
            measure(net, images, classes, maps[:, :6])
        with pytest.raises(ValueError, match="do not belong together"):
            measure(net, images, classes[:2], maps)
        with pytest.raises(ValueError, match="contains NaN"):
            measure(net, images, classes, maps * torch.nan)
    for steps in (0, 145):
        with pytest.raises(ValueError, match=f"steps is {steps}"):
            deletion_auc(net, images, classes, maps, steps=steps)
    with pytest.raises(ValueError, match="too small for a blur"):
        insertion_auc(net, images, classes, maps, blur=(25, 5.0))
    for fractions in ((), (0.0,), (1.0, 0.5)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            road(net, images, classes, maps, fractions=fractions)
