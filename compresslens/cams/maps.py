"""Class activation maps: where a network looks when it names a class."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslens.cams.gradient_free import eigen_cam, plain_cam, score_cam
from compresslens.cams.layers import Pass, tapped_pass
from compresslens.errors import UserError
from compresslens.networks.modes import input_gradients
from compresslens.quantization.graphs import is_converted

Method = Literal["cam", "grad_cam", "grad_cam_plus_plus", "hires_cam", "layer_cam", "score_cam", "eigen_cam"]
GRADIENT_FREE = ("cam", "eigen_cam", "score_cam")


def class_activation_maps(
    network: nn.Module,
    images: Tensor,
    classes: Tensor | None = None,
    *,
    method: Method = "grad_cam",
    layer: str | None = None,
) -> Tensor:
    """Maps of where a network looks.

    The network runs once, in eval mode, without autocast, and without autograd up to the layer; only the gradient of
    what follows is computed. It is left as found: modes, gradients, hooks, random state. Callers may be in
    `torch.no_grad` or `torch.inference_mode`, parameters may be frozen.

    Methods, all equal to pytorch-grad-cam's within 1e-5 (but for the sign of "eigen_cam", which is arbitrary there):

    - "cam": Zhou et al. 2016; only where a linear classifier follows a global average pooling;
    - "grad_cam": Selvaraju et al. 2017, equations 1 and 2;
    - "grad_cam_plus_plus": Chattopadhyay et al. 2018, equation 19;
    - "hires_cam": Draelos & Carin 2020; "layer_cam": Jiang et al. 2021, equations 4 to 6;
    - "score_cam": Wang et al. 2020; as many forward passes as the layer has channels;
    - "eigen_cam": Muhammad & Yeasin 2020; knows no class.

    Behind a global average pooling and one linear layer, "cam", "grad_cam" and "hires_cam" are the same map.

    Args:
        network: a convolutional network from pixels to logits N×K: plain, pruned, factorized, quantized (fake
            quantizers, learned steps, or converted to INT8), compiled.
        images: N×3×H×W, floating-point, on the network's device.
        classes: N integers in [0, K), or N×J: several of each image, whose maps share a forward pass (but for
            "score_cam"); None: the predicted ones.
        method: see above. A converted INT8 network has no gradient, so only "cam", "eigen_cam" and "score_cam" work.
        layer: dotted name of the layer whose output N×C×h×w is weighted, the same name for a network and its quantized
            form; None: what goes into the global pooling. For "cam", a name costs a second forward pass.

    Returns:
        N×H×W (or N×J×H×W) float32 in [0, 1], on the images' device: negative evidence clipped, scaled to [0, 1] before
        and after enlarging it bilinearly. An image's map does not depend on the other images. It is all zeros where it
        is constant or nothing speaks for the class, and where it is not finite. Without images: 0×H×W (or 0×J×H×W).

    Raises:
        ValueError: images are not N×3×H×W floating-point; classes do not fit; the method is unknown.
        UserError: there is no such layer, or no suitable one; the network has no gradient, or no suitable head.
    """
    return maps_and_logits(network, images, classes, method=method, layer=layer)[0]


def maps_and_logits(
    network: nn.Module,
    images: Tensor,
    classes: Tensor | None = None,
    *,
    method: Method = "grad_cam",
    layer: str | None = None,
) -> tuple[Tensor, Tensor]:
    """As `class_activation_maps`, with the logits N×K of the same forward pass (float32, without a graph)."""
    _check_images(images)
    if method not in get_args(Method):
        raise ValueError(f"method is '{method}'; it must be one of {', '.join(get_args(Method))}")
    if method not in GRADIENT_FREE and is_converted(network):
        raise UserError(
            f"method '{method}' needs a gradient, which a converted INT8 network does not have: use one of "
            f"{', '.join(GRADIENT_FREE)}, or the network with fake quantizers that it was converted from"
        )
    with input_gradients(network):
        images = images.detach().clone() if images.is_inference() else images.detach()
        if len(images) == 0:
            with torch.no_grad():
                logits = network(images.new_zeros(1, *images.shape[1:]))[:0]
            several = () if classes is None else classes.shape[1:]
            return images.new_zeros((0, *several, *images.shape[2:]), dtype=torch.float32), logits.float()
        found = tapped_pass(network, images, layer)
        logits = found.logits.detach()
        classes = _checked_classes(classes, logits)
        maps = _maps(network, images, found, classes.view(len(images), -1), method, layer)
        return scaled(maps.flatten(0, 1), images.shape[2:]).view(*classes.shape, *images.shape[2:]), logits.float()


def _maps(network: nn.Module, images: Tensor, found: Pass, classes: Tensor, method: str, layer: str | None) -> Tensor:
    """N×J×h×w of classes N×J, neither clipped nor scaled."""
    activations = found.activations.detach()
    activations = activations.to(torch.promote_types(activations.dtype, torch.float32))
    if method == "eigen_cam":
        return eigen_cam(activations)[:, None].expand(-1, classes.shape[1], -1, -1)
    pooling = found.pooling
    if method == "cam" and pooling is None:
        pooling = tapped_pass(network, images, None).pooling

    def of_class(number: Tensor) -> Tensor:
        if method == "score_cam":
            return score_cam(network, images, activations, number)
        if method == "cam":
            assert pooling is not None
            return plain_cam(activations, found.logits.detach(), pooling, number)
        gradients = _gradients(found, number, method, layer, keep_graph=classes.shape[1] > 1)
        return gradient_maps(activations, gradients.to(activations.dtype), method)

    return torch.stack([of_class(number) for number in classes.unbind(1)], 1)


def gradient_maps(activations: Tensor, gradients: Tensor, method: str) -> Tensor:
    """Weighs a layer's output by the gradient of the class's logit.

    Args:
        activations: N×C×h×w.
        gradients: N×C×h×w.
        method: "grad_cam", "grad_cam_plus_plus", "hires_cam" or "layer_cam".

    Returns:
        N×h×w, neither clipped nor scaled.
    """
    if method == "grad_cam":
        return torch.einsum("nchw,nc->nhw", activations, gradients.mean((2, 3)))
    if method == "hires_cam":
        return (activations * gradients).sum(1)
    if method == "layer_cam":
        return (activations * gradients.relu()).sum(1)
    square = gradients.square()
    # with the 1e-6 of pytorch-grad-cam; where the gradient is 0, so is what alpha is multiplied by
    alpha = square / (2 * square + activations.sum((2, 3), keepdim=True) * (square * gradients) + 1e-6)
    return torch.einsum("nchw,nc->nhw", activations, (alpha * gradients.relu()).sum((2, 3)))


def scaled(maps: Tensor, size: torch.Size) -> Tensor:
    """Clips maps N×h×w at 0, and scales them to [0, 1] and to a size H×W: N×H×W float32.

    It scales before and after enlarging, as pytorch-grad-cam does: between the centres of pixels that lie far apart the
    enlarged map may not reach 1. What is not finite becomes zeros.
    """
    maps = torch.where(maps.isfinite().all(2).all(1)[:, None, None], maps, 0).float().relu()
    maps = F.interpolate(_to_unit_range_(maps)[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return _to_unit_range_(maps)


def _to_unit_range_(maps: Tensor) -> Tensor:
    """In place."""
    maps.sub_(maps.amin((1, 2), keepdim=True))
    return maps.div_(maps.amax((1, 2), keepdim=True) + 1e-7)


def _gradients(found: Pass, classes: Tensor, method: str, layer: str | None, keep_graph: bool) -> Tensor:
    """Gradients N×C×h×w of each image's own logit."""
    gradients = None
    if found.logits.requires_grad:
        score = found.logits.gather(1, classes[:, None]).sum()
        (gradients,) = torch.autograd.grad(score, found.activations, retain_graph=keep_graph, allow_unused=True)
    if gradients is None:
        where = "what is pooled" if layer is None else f"layer '{layer}'"
        raise UserError(
            f"method '{method}' needs a gradient, but none reaches {where} from the logits: name another layer, or use "
            f"one of {', '.join(GRADIENT_FREE)}"
        )
    return gradients


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:] or not images.is_floating_point():
        shape = "×".join(str(size) for size in images.shape)
        raise ValueError(f"images must be N×3×H×W and floating-point; these are {shape}, {images.dtype}")


def _checked_classes(classes: Tensor | None, logits: Tensor) -> Tensor:
    if classes is None:
        return logits.argmax(1)
    number, total = logits.shape
    fits = classes.ndim in (1, 2) and len(classes) == number and classes.numel() > 0
    if not fits or classes.is_floating_point() or classes.dtype == torch.bool:
        raise ValueError(
            f"classes must be {number} integers, one per image, or {number}×J; these are {tuple(classes.shape)}"
        )
    classes = classes.to(logits.device, torch.int64)
    if int(classes.min()) < 0 or int(classes.max()) >= total:
        raise ValueError(
            f"classes must be 0 to {total - 1}; they reach from {int(classes.min())} to {int(classes.max())}"
        )
    return classes
