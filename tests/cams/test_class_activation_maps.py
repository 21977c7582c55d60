"""Maps, against their definitions, pytorch-grad-cam, and what is known of them."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from compresslens.cams import class_activation_maps, maps_and_logits
from compresslens.cams.gradient_free import eigen_cam
from compresslens.cams.maps import scaled
from compresslens.errors import UserError
from compresslens.networks import create_network
from tests.cams.networks import CLASSES, POOLED, Small, adaptive, factorized, images, mean, scores, small
from tests.lightning_modules.tiny import TinyNetwork
from tests.references import class_activation_maps as reference

GRADIENT = ("grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam")
ANY_LAYER = ("eigen_cam", "score_cam", *GRADIENT)
CLASS = torch.tensor([4, 0, 2])


@pytest.mark.parametrize("method", GRADIENT)
@pytest.mark.parametrize("end", POOLED)
def test_against_the_definition(end: Any, method: Any) -> None:
    network, x = small(end), images(5)
    classes = torch.arange(5)
    maps, logits = maps_and_logits(network, x, classes, method=method)
    exact: Any = copy.deepcopy(network).double()
    for row, number in enumerate(classes.tolist()):
        with torch.no_grad():
            activations = exact.maps(x[row : row + 1].double())[0].numpy()
        gradients = reference.gradient(lambda point: exact.end(exact, point.clone()), activations, number)
        raw = reference.weighted(method, activations, gradients)
        np.testing.assert_allclose(maps[row].numpy(), reference.scaled(raw, 16, 16), atol=1e-5)
    assert (maps.amax((1, 2)) > 0.99).sum() >= 2, "the others have nothing that speaks for the class"
    torch.testing.assert_close(logits, network(x).detach(), rtol=0, atol=0)
    assert not logits.requires_grad


def peer(name: str, network: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        method: Any = getattr(pytorch_grad_cam, name)(network, [layer])
        return torch.from_numpy(method(x, [ClassifierOutputTarget(number) for number in CLASS.tolist()]))


PEERS = {
    "grad_cam": "GradCAM",
    "grad_cam_plus_plus": "GradCAMPlusPlus",
    "hires_cam": "HiResCAM",
    "layer_cam": "LayerCAM",
}


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        ("test_resnet", "layer4"),
        pytest.param("resnet18", "layer4", marks=pytest.mark.slow),
        ("mobilenetv3_small_050", "blocks"),  # squeeze-and-excitation; the pooling in front of a convolution
        ("mobilenetv2_050", "bn2"),
        ("convnext_atto", "stages"),  # layers that work on N×h×w×C; a normalized vector
        ("torchvision/squeezenet1_1", "classifier.2"),  # class scores are pooled
        pytest.param("densenet121", "features", marks=pytest.mark.slow),
        pytest.param("torchvision/alexnet", "features", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", "bn2", marks=pytest.mark.slow),
        pytest.param("torchvision/shufflenet_v2_x0_5", "conv5", marks=pytest.mark.slow),
        pytest.param("torchvision/googlenet", "inception5b", marks=pytest.mark.slow),
        pytest.param("seresnet50", "layer4", marks=pytest.mark.slow),
        pytest.param("regnetx_002", "final_conv", marks=pytest.mark.slow),
    ],
)
def test_what_is_pooled_is_the_default_and_equals_pytorch_grad_cam(architecture: str, layer: str) -> None:
    torch.manual_seed(0)
    size = 160 if "alexnet" in architecture else 64
    network: Any = create_network(architecture, CLASSES, image_size=size, stem="imagenet").eval()
    x = images(size=size)
    for method, name in PEERS.items():
        expected = peer(name, network, network.backbone.get_submodule(layer), x)
        for chosen in (None, layer):
            maps = class_activation_maps(network, x, CLASS, method=method, layer=chosen)  # type: ignore[arg-type]
            torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5)


def test_an_earlier_layer_equals_pytorch_grad_cam() -> None:
    network: Any = create_network("test_resnet", CLASSES, image_size=64).eval()
    for method, name in PEERS.items():
        expected = peer(name, network, network.backbone.layer2, images(size=64))
        maps = class_activation_maps(network, images(size=64), CLASS, method=method, layer="layer2")  # type: ignore[arg-type]
        torch.testing.assert_close(maps, expected, rtol=0, atol=1e-5)


def test_score_cam_equals_pytorch_grad_cam() -> None:
    network = TinyNetwork(20).eval()  # 40 channels: more than go through the network at a time
    maps = class_activation_maps(network, images(), CLASS, method="score_cam")
    torch.testing.assert_close(maps, peer("ScoreCAM", network, network.layer2, images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 20, 3, 4), (3, 5, 4, 4)])
def test_eigen_cam_equals_pytorch_grad_cam_but_for_its_sign(shape: tuple[int, ...]) -> None:
    from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

    activations = torch.rand(shape, generator=torch.Generator().manual_seed(0)) ** 3
    expected = torch.from_numpy(get_2d_projection(activations.numpy())).double()
    found = eigen_cam(activations)
    signs = (found * expected).sum((1, 2), keepdim=True).sign()
    torch.testing.assert_close(found, signs * expected, rtol=0, atol=1e-5)


def test_eigen_cam_points_to_where_activations_are_high() -> None:
    """A blob, in some channels: the first component is its shape, whatever its sign."""
    blob = torch.zeros(6, 6)
    blob[1:3, 3:5] = 1
    channels = torch.tensor([3.0, 1.0, 0.0, 2.0])
    raw = eigen_cam((channels[:, None, None] * blob)[None])
    torch.testing.assert_close(raw[0], (channels.norm() * (blob - blob.mean())).double())
    maps = scaled(raw, torch.Size((6, 6)))
    torch.testing.assert_close(maps[0], blob)


@pytest.mark.parametrize("end", [mean, adaptive, factorized])
def test_behind_pooling_and_a_linear_layer_three_methods_are_one(end: Any) -> None:
    network, x = small(end), images()
    cam, grad_cam, hires_cam = (
        class_activation_maps(network, x, CLASS, method=method)  # type: ignore[arg-type]
        for method in ("cam", "grad_cam", "hires_cam")
    )
    torch.testing.assert_close(cam, grad_cam, rtol=0, atol=1e-5)
    torch.testing.assert_close(cam, hires_cam, rtol=0, atol=1e-5)
    assert (cam.amax((1, 2)) > 0.99).any()


def test_cam_by_its_equation() -> None:
    network, x = small(), images()
    with torch.no_grad():
        raw = torch.einsum("nchw,nc->nhw", network.maps(x), network.fc.weight[CLASS])
    maps = class_activation_maps(network, x, CLASS, method="cam")
    for found, expected in zip(maps, raw.double().numpy(), strict=True):
        np.testing.assert_allclose(found.numpy(), reference.scaled(expected, 16, 16), atol=1e-5)


def test_cam_of_pooled_scores_is_the_score() -> None:
    network, x = small(scores), images()
    with torch.no_grad():
        raw = network.scores(network.maps(x))[torch.arange(3), CLASS]
    maps = class_activation_maps(network, x, CLASS, method="cam")
    torch.testing.assert_close(maps, scaled(raw, torch.Size((16, 16))))


@pytest.mark.parametrize(
    "end", [end for end in POOLED if end.__name__ not in ("mean", "adaptive", "by_keyword", "factorized")]
)
def test_cam_needs_a_linear_head(end: Any) -> None:
    with pytest.raises(UserError, match="linear function of the layer's spatial mean"):
        class_activation_maps(small(end), images(), method="cam")


def test_cam_of_a_named_layer() -> None:
    network = TinyNetwork().eval()
    named = class_activation_maps(network, images(), method="cam", layer="layer2")
    assert torch.equal(named, class_activation_maps(network, images(), method="cam"))
    with pytest.raises(UserError, match="linear function"):
        class_activation_maps(network, images(), method="cam", layer="layer1")


@pytest.mark.parametrize("method", ["cam", "eigen_cam", "score_cam", *GRADIENT])
def test_predicted_classes_are_the_default(method: Any) -> None:
    network, x = small(), images()
    found, logits = maps_and_logits(network, x, method=method)
    assert torch.equal(found, class_activation_maps(network, x, logits.argmax(1), method=method))
    assert found.shape == (3, 16, 16)
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


@pytest.mark.parametrize("method", ["cam", "eigen_cam", "score_cam", *GRADIENT])
def test_rows_do_not_depend_on_the_batch(method: Any) -> None:
    network, x = small(adaptive), images(5)
    whole = class_activation_maps(network, x, method=method)
    broken = x.clone()
    broken[1] = torch.nan
    for row in (0, 2, 4):
        alone = class_activation_maps(network, x[row : row + 1], method=method)[0]
        torch.testing.assert_close(alone, whole[row], rtol=0, atol=1e-5)
    beside = class_activation_maps(network, broken, method=method)
    assert not beside[1].any(), "all zeros where nothing is finite"
    torch.testing.assert_close(beside[[0, 2, 3, 4]], whole[[0, 2, 3, 4]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["cam", "eigen_cam", "score_cam", *GRADIENT])
def test_a_constant_map_is_zero(method: Any) -> None:
    network = small()
    with torch.no_grad():
        network.conv2.weight.zero_()
        network.conv2.bias.fill_(1.0)
    assert not class_activation_maps(network, images(), method=method).any()


def test_where_nothing_speaks_for_the_class_the_map_is_zero() -> None:
    network = small()
    with torch.no_grad():
        network.fc.weight.copy_(-network.fc.weight.abs())
    assert not class_activation_maps(network, images()).any()


@pytest.mark.parametrize(
    ("method", "layer"),
    [*((method, None) for method in ("cam", *ANY_LAYER)), *((method, "conv1") for method in ANY_LAYER)],
)
def test_several_classes_of_an_image(method: Any, layer: str | None) -> None:
    network, x = small(), images()
    several = torch.stack([CLASS, (CLASS + 1) % CLASSES, CLASS, torch.zeros_like(CLASS)], 1)
    maps, logits = maps_and_logits(network, x, several, method=method, layer=layer)
    for number, column in enumerate(several.unbind(1)):
        one, of_one = maps_and_logits(network, x, column, method=method, layer=layer)
        torch.testing.assert_close(maps[:, number], one, rtol=0, atol=1e-6)
        assert torch.equal(logits, of_one)


def test_several_classes_take_one_forward_pass() -> None:
    network, passes = small(), []
    network.conv2.register_forward_hook(lambda *_: passes.append(1))
    class_activation_maps(network, images(), torch.zeros(3, 4, dtype=torch.int64))
    assert len(passes) == 1


def test_images_need_not_be_square_and_maps_are_on_their_grid() -> None:
    x = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    for method in ("grad_cam", "score_cam", "eigen_cam"):
        assert class_activation_maps(small(), x, method=method).shape == (2, 12, 20)  # type: ignore[arg-type]


finite = st.floats(-100, 100, width=32)


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (2, 3, 4), elements=finite), st.integers(3, 9), st.integers(4, 11))
def test_scaling(values: Any, height: int, width: int) -> None:
    found = scaled(torch.from_numpy(values), torch.Size((height, width)))
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    for one, raw in zip(found, values.astype(np.float64), strict=True):
        np.testing.assert_allclose(one.numpy(), reference.scaled(raw, height, width), atol=1e-4)


# Bad input ------------------------------------------------------------------------------------------------------------


def test_no_images() -> None:
    for method in ("grad_cam", "cam", "score_cam", "eigen_cam"):
        maps, logits = maps_and_logits(small(), images(0), method=method)  # type: ignore[arg-type]
        assert (maps.shape, maps.dtype, logits.shape) == ((0, 16, 16), torch.float32, (0, CLASSES))
    assert class_activation_maps(small(), images(0), torch.zeros(0, 4, dtype=torch.int64)).shape == (0, 4, 16, 16)


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(3, 16, 16),
        torch.rand(2, 1, 16, 16),
        torch.rand(2, 16, 16, 3),
        torch.rand(2, 3, 0, 16),
        torch.ones(2, 3, 16, 16, dtype=torch.uint8),
    ],
)
def test_images_of_the_wrong_kind(x: Tensor) -> None:
    with pytest.raises(ValueError, match="images must be N×3×H×W and floating-point; these are"):
        class_activation_maps(small(), x)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (torch.tensor([0, 1, CLASSES]), "classes must be 0 to 4; they reach from 0 to 5"),
        (torch.tensor([-1, 1, 2]), "they reach from -1 to 2"),
        (torch.tensor([0, 1]), "classes must be 3 integers, one per image"),
        (torch.tensor(1), "classes must be 3 integers"),
        (torch.zeros(3, 0, dtype=torch.int64), "classes must be 3 integers, one per image, or 3×J"),
        (torch.zeros(2, 3, dtype=torch.int64), "classes must be 3 integers"),
        (torch.zeros(3, 1, 1, dtype=torch.int64), "classes must be 3 integers"),
        (torch.tensor([[0, 1], [0, CLASSES], [0, 0]]), "they reach from 0 to 5"),
        (torch.tensor([0.0, 1.0, 2.0]), "classes must be 3 integers"),
    ],
)
def test_classes_that_do_not_fit(classes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_activation_maps(small(), images(), classes)


def test_an_unknown_method() -> None:
    unknown: Any = "gradcam"
    with pytest.raises(ValueError, match="method is 'gradcam'; it must be one of cam, grad_cam, "):
        class_activation_maps(small(), images(), method=unknown)


def test_networks_without_a_gradient_are_refused() -> None:
    def cut(network: Small, maps: Tensor) -> Tensor:
        return mean(network, maps).detach()

    with pytest.raises(
        UserError, match="'layer_cam' needs a gradient, but none reaches what is pooled from the logits"
    ):
        class_activation_maps(small(cut), images(), method="layer_cam")
    assert class_activation_maps(small(cut), images(), method="cam").any()
