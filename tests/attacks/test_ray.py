import pytest
import torch
from torch import nn

from compresslens.attacks import ray_search


@pytest.fixture
def linear():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = 0.4 + 0.2 * torch.rand(20, 3, 2, 2)  # a forward pass of 16 or more rounds as the search does
    return net, images, net(images).argmax(1)


def to_the_boundary(net, images, labels):
    """The perturbation onto the nearest boundary, from algebra."""
    weight, logits = net[1].weight.detach(), net(images).detach()
    normals = weight[labels][:, None] - weight[None]
    gaps = logits.gather(1, labels[:, None]) - logits
    distance = (gaps / normals.norm(dim=2)).scatter(1, labels[:, None], torch.inf)
    least, rival = distance.min(1)
    normal = normals[torch.arange(len(labels)), rival]
    return least, (-least[:, None] * normal / normal.norm(dim=1, keepdim=True)).view_as(images)


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_finds_the_boundary_on_the_ray_whatever_the_length_of_the_direction(linear, scale):
    net, images, labels = linear
    distance, direction = to_the_boundary(net, images, labels)
    result = ray_search(net, images, labels, scale * direction, steps=16)
    assert result.success.all()
    assert (net(result.adversarials).argmax(1) != labels).all()
    assert torch.allclose(result.l2, distance.double(), rtol=1e-3)
    assert (result.gradient_evaluations == 0).all()


def test_a_direction_that_leads_nowhere_fails(linear):
    net, images, labels = linear
    _, direction = to_the_boundary(net, images, labels)
    direction[:3] = 0
    result = ray_search(net, images, labels, direction)
    assert result.success.tolist() == [False] * 3 + [True] * 17
    assert torch.isinf(result.l2[:3]).all()
    assert torch.equal(result.adversarials[:3], images[:3])


def test_a_misclassified_image_is_a_success_at_distance_zero(linear):
    net, images, labels = linear
    result = ray_search(net, images, (labels + 1) % 3, torch.zeros_like(images))
    assert result.l2.tolist() == [0.0] * 20


def test_classes_that_the_network_does_not_have_are_refused(linear):
    net, images, labels = linear
    with pytest.raises(ValueError, match="labels go up to 3 but the network has 3 classes"):
        ray_search(net, images, torch.full_like(labels, 3), images)
    with pytest.raises(ValueError, match="targets go up to 7 but the network has 3 classes"):
        ray_search(net, images, labels, images, targets=torch.full_like(labels, 7))


def test_other_shapes_are_refused(linear):
    net, images, labels = linear
    with pytest.raises(ValueError, match="directions have shape"):
        ray_search(net, images, labels, images[:2])
