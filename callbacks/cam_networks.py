"""The networks that the class activation map callback looks at: whether it can, and a second reference."""

from __future__ import annotations

import copy

import torch
from torch import nn

from compresslens.cams import Method, maps_and_logits
from compresslens.errors import UserError
from compresslens.networks import PixelNetwork
from compresslens.networks.changes import changes_of
from compresslens.networks.modes import device_of, dtype_of
from compresslens.networks.taps import unwrap
from compresslens.networks.weights import load_weights


def check_maps_of(network: nn.Module, image_size: int, method: Method, layer: str | None, name: str) -> None:
    """Tries a grey image, so that a wrong name is noticed before the fit, not after it.

    Args:
        network: left as it was.
        image_size: side of the image.
        method: of the maps.
        layer: of the network.
        name: of the network, for the message.

    Raises:
        UserError: there are no such maps of that network.
    """
    images = torch.full((1, 3, image_size, image_size), 0.5, device=device_of(network), dtype=dtype_of(network))
    # Score-CAM would take as many forward passes as the layer has channels, and asks for the same layers.
    tried: Method = "eigen_cam" if method == "score_cam" else method
    try:
        maps_and_logits(network, images, method=tried, layer=layer)
    except UserError as error:
        raise UserError(f"ClassActivationMaps cannot look at the {name}: {error}") from error


def load_second_reference(reference: nn.Module | None, path: str) -> PixelNetwork:
    """A network like the reference with weights of another training.

    Args:
        reference: left as it was.
        path: a run folder, or a file of weights; see `compresslens.networks.weights.load_weights`.

    Returns:
        A frozen network in eval mode, where the reference is.

    Raises:
        UserError: there is no reference, or it is not of the kind that weights can be loaded into; the weights are
            missing, do not fit, or are the reference's own.
    """
    if reference is None:
        raise UserError("ClassActivationMaps: second_reference needs a reference to compare it with: set it to null")
    network = copy.deepcopy(unwrap(reference))
    if not isinstance(network, PixelNetwork) or changes_of(network):
        raise UserError(
            "ClassActivationMaps: second_reference needs a reference that compresslens.networks.create_network made "
            "and that is not compressed: set it to null"
        )
    try:
        load_weights(network, path, replace_head=False)
    except UserError as error:
        raise UserError(f"ClassActivationMaps: second_reference: {error}") from error
    if changes_of(network):
        raise UserError(f"ClassActivationMaps: second_reference: {path} holds a compressed network, not a reference")
    own = unwrap(reference).state_dict()
    if all(torch.equal(value, own[name]) for name, value in network.state_dict().items()):
        raise UserError(
            f"ClassActivationMaps: second_reference: {path} holds the weights of the reference itself; name a run of "
            "another seed"
        )
    return network.requires_grad_(False).eval()
