"""Class activation maps by several libraries, each as its documentation has it: images in, N×H×W maps out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslens.cams import class_activation_maps

LAYER = "layer4"
METHODS = ("grad_cam", "layer_cam", "hires_cam")
OURS, OURS_NAMED = "compresslens", "compresslens, layer named"
PACKAGES = {"pytorch-grad-cam": "pytorch_grad_cam", "captum": "captum", "torchcam": "torchcam"}
_GRAD_CAM = {"grad_cam": "GradCAM", "layer_cam": "LayerCAM", "hires_cam": "HiResCAM"}
_TORCHCAM = {"grad_cam": "GradCAM", "layer_cam": "LayerCAM"}

Maps = Callable[[nn.Module, Tensor], Tensor]


@dataclass(frozen=True)
class Library:
    """One way to maps by one method.

    Attributes:
        maps: of the predicted classes, N×H×W; captum and torchcam scale them in other ways than the others.
        same_scale: whether the maps should equal ours.
    """

    maps: Maps
    same_scale: bool


def libraries(method: str) -> dict[str, Library]:
    """Those that have the method and are installed, by name."""
    found = {
        OURS: Library(partial(_ours, method=method, layer=None), True),
        OURS_NAMED: Library(partial(_ours, method=method, layer=LAYER), True),
    }
    if find_spec("pytorch_grad_cam"):
        found["pytorch-grad-cam"] = Library(partial(_pytorch_grad_cam, name=_GRAD_CAM[method]), True)
    if find_spec("captum") and method == "grad_cam":
        found["captum"] = Library(_captum, False)
    if find_spec("torchcam") and method in _TORCHCAM:
        found["torchcam"] = Library(partial(_torchcam, name=_TORCHCAM[method]), False)
    return found


def _ours(network: nn.Module, images: Tensor, method: str, layer: str | None) -> Tensor:
    return class_activation_maps(network, images, method=method, layer=layer)  # type: ignore[arg-type]


def _pytorch_grad_cam(network: nn.Module, images: Tensor, name: str) -> Tensor:
    import pytorch_grad_cam

    with getattr(pytorch_grad_cam, name)(network, [network.get_submodule(LAYER)]) as method:
        return torch.from_numpy(method(images, None))


def _captum(network: nn.Module, images: Tensor) -> Tensor:
    """captum asks for classes: they are taken from the logits of its own forward pass."""
    from captum.attr import LayerAttribution, LayerGradCam

    logits: list[Tensor] = []

    def predicted(points: Tensor) -> Tensor:
        logits.append(network(points))
        return logits[-1].gather(1, logits[-1].argmax(1, keepdim=True))[:, 0]

    method = LayerGradCam(predicted, network.get_submodule(LAYER))
    maps = method.attribute(images, relu_attributions=True)
    return LayerAttribution.interpolate(maps, images.shape[2:], "bilinear")[:, 0]


def _torchcam(network: nn.Module, images: Tensor, name: str) -> Tensor:
    from torchcam import methods

    with getattr(methods, name)(network, LAYER) as method:
        logits = network(images)
        maps = method(logits.argmax(1).tolist(), logits)[0]
    return F.interpolate(maps[:, None], images.shape[2:], mode="bilinear")[:, 0]
