"""Which layers of a network can be factorized, and how."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from compresslens.errors import UserError
from compresslens.low_rank import cp, spatial_svd, svd, tucker
from compresslens.low_rank.uses import Use
from compresslens.networks.names import nearest
from compresslens.networks.taps import classifier_name, find_layer, unwrap

logger = logging.getLogger(__name__)

Method: TypeAlias = Literal["tucker", "spatial_svd", "cp"]


def check_method(method: str) -> None:
    """Raises UserError for a method that does not exist."""
    if method not in get_args(Method):
        raise UserError(f"unknown method '{method}'. Nearest: {nearest(method, get_args(Method))}.")


def decomposition(method: str) -> ModuleType:
    """The functions of a method: `spectra`, `fit_ranks`, `macs`, `structure` and `decompose`.

    Raises:
        UserError: there is no such method.
    """
    if method == "svd":
        return svd
    check_method(method)
    return {"tucker": tucker, "spatial_svd": spatial_svd, "cp": cp}[method]


def method_for(layer: nn.Module, method: Method) -> str:
    """The method itself, or "svd" for linear layers and 1×1 convolutions, which have nothing else to separate."""
    weight: Any = layer.weight
    return "svd" if weight[0, 0].numel() == 1 else method


def backbone_of(network: nn.Module) -> Any:
    """The module that names are relative to: `network.backbone` if there is one, else the network."""
    root = unwrap(network)
    return unwrap(getattr(root, "backbone", root))


def obstacle(layer: nn.Module) -> str | None:
    """Why a layer cannot be factorized, to be put after "it"; None if it can.

    Subclasses compute something of their own with their weight, so only known ones are touched.
    """
    kind = type(layer)
    if not (kind in (nn.Conv2d, nn.Linear) or _pads_by_input(layer)):
        return f"is a {kind.__name__}, not a plain two-dimensional convolution or linear layer"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"is a convolution in {layer.groups} groups"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "has hooks, which may change its weight or its output"
    return None


def check_layers(network: nn.Module, keep: Sequence[str], layers: Sequence[str] | None) -> None:
    """Checks names of layers as far as this is possible without running the network.

    Raises:
        UserError: a name is unknown, given as both to keep and to factorize, or of a layer that cannot be factorized.
    """
    both = sorted(set(keep) & set(layers or ()))
    if both:
        raise UserError(f"'{both[0]}' is to be kept and to be factorized: take it out of one of the lists")
    if layers is not None and not layers:
        raise UserError("the list of layers to factorize is empty: leave it out to have all that can be")
    for name in keep:
        find_layer(network, name)
    obstacles = _obstacles(network)
    for name in layers or ():
        _chosen(find_layer(network, name), name, obstacles)


def select_layers(
    network: nn.Module, uses: Mapping[nn.Module, Use], keep: Sequence[str], layers: Sequence[str] | None
) -> dict[str, Any]:
    """The layers to factorize where that pays, by their names relative to the backbone.

    Args:
        network: the network.
        uses: of the layers that run, in the order of running.
        keep: names of layers, or of modules with layers in them, to leave as they are.
        layers: names of layers or modules that are to be factorized; None: all but the first convolution and the
            classifier. Of a module, whatever can be factorized is taken.

    Raises:
        UserError: as in :func:`check_layers`.
    """
    check_layers(network, keep, layers)
    kept = {module for name in keep for module in find_layer(network, name).modules()}
    obstacles = _obstacles(network)
    for layer in obstacles:
        if obstacles[layer] is None and layer not in uses:
            obstacles[layer] = "does not run by itself"
    if layers is None:
        first = next((layer for layer in uses if isinstance(layer, nn.Conv2d)), None)
        chosen = {layer for layer, reason in obstacles.items() if reason is None and layer is not first}
        _tell({name: obstacles[layer] for name, layer in _named(network).items() if layer not in kept})
    else:
        chosen = {layer for name in layers for layer in _chosen(find_layer(network, name), name, obstacles)}
    return {name: layer for name, layer in _named(network).items() if layer in chosen - kept}


def _obstacles(network: nn.Module) -> dict[nn.Module, str | None]:
    """For each convolution and linear layer why it cannot be factorized, or None."""
    backbone = backbone_of(network)
    names = Counter(module for _, module in backbone.named_modules(remove_duplicate=False))
    owners = Counter(id(parameter) for module in backbone.modules() for parameter in module._parameters.values())
    classifier = find_layer(network, classifier_name(network))
    found: dict[nn.Module, str | None] = {}
    for layer in _named(network).values():
        if layer is classifier:
            found[layer] = "is the classifier"
        elif names[layer] > 1 or any(owners[id(parameter)] > 1 for parameter in layer.parameters(recurse=False)):
            found[layer] = "shares its weight with another layer"
        else:
            found[layer] = obstacle(layer)
    return found


def _named(network: nn.Module) -> dict[str, nn.Module]:
    """Convolutions of all kinds and linear layers by their names relative to the backbone."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    modules: Iterable[tuple[str, nn.Module]] = backbone_of(network).named_modules()
    return {name.replace("_orig_mod.", ""): module for name, module in modules if isinstance(module, kinds)}


def _chosen(module: nn.Module, name: str, obstacles: Mapping[nn.Module, str | None]) -> list[nn.Module]:
    """The layers that the user means by a name.

    Raises:
        UserError: it is a layer that cannot be factorized, or a module without any that can.
    """
    if module in obstacles:
        if obstacles[module] is not None:
            raise UserError(f"'{name}' cannot be factorized: it {obstacles[module]}")
        return [module]
    inside = [layer for layer in module.modules() if layer in obstacles and obstacles[layer] is None]
    if not inside:
        raise UserError(f"'{name}' cannot be factorized: there is no layer in it that can")
    return inside


def _tell(reasons: Mapping[str, str | None]) -> None:
    """Logs which layers are left alone, once per reason; as a warning where that may come as a surprise."""
    for reason in dict.fromkeys(reason for reason in reasons.values() if reason is not None):
        names = [name for name, other in reasons.items() if other == reason]
        expected = reason.endswith("groups") or reason == "is the classifier"
        logger.log(
            logging.INFO if expected else logging.WARNING,
            "not factorized, since it %s: %s%s",
            *(reason, names[0], f" and {len(names) - 1} more" if len(names) > 1 else ""),
        )


def _pads_by_input(layer: nn.Module) -> bool:
    """Whether it is timm's `Conv2dSame` (timm is not imported for other layers)."""
    if not type(layer).__module__.startswith("timm."):
        return False
    from timm.layers import Conv2dSame

    return type(layer) is Conv2dSame
