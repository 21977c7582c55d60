"""Reading the output of named layers during a forward pass: shared by distillation, t-SNE and CAMs."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.networks.names import nearest


@contextmanager
def feature_taps(network: nn.Module, names: Iterable[str], *, start_graph: bool = False) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of layers while the block is active.

    Example:
        >>> with feature_taps(network, ["features", "layer3"]) as taps:
        ...     logits = network(images)
        >>> taps["layer3"].shape  # N×C×H×W

    Args:
        network: Any module; the inside of compiled modules is reached (they run uncompiled within the block, because
            compiled code ignores hooks).
        names: "features" is the input of the final classifier, N×D (the spatial mean where that is a convolution over a
            map; after the dropout in front of the classifier, if any). Anything else is a layer's dotted name,
            looked up in `network.backbone` first, then in `network`.
        start_graph: Start the autograd graph at the first tapped layer. What runs before it runs without autograd, what
            follows the forward pass in the block runs with it, so `torch.autograd.grad(score(logits), taps[name])`
            works whatever the caller's mode (`no_grad`, `inference_mode`), at the cost of the layers after the tap.

    Yields:
        A dictionary from name to output in the last forward pass; of a layer that runs more than once, the last output.
        It stays readable after the block. The tensors are what the layers returned, even if the next works in place.

    Raises:
        UserError: If a layer does not exist, or does not return a tensor.
    """
    root = unwrap(network)
    # resolve all names first: a misspelt one must not leave hooks behind
    layers = {name: find_layer(root, classifier_name(root) if name == "features" else name) for name in names}
    taps: dict[str, Tensor] = {}
    with ExitStack() as stack:
        if any(_is_compiled(module) for module in network.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if start_graph:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.callback(root.register_forward_pre_hook(_disable_grad).remove)
            stack.callback(root.register_forward_hook(_enable_grad).remove)
        for name, layer in layers.items():
            if name == "features":
                handle = layer.register_forward_pre_hook(_tap_input(taps, start_graph))
            else:
                handle = layer.register_forward_hook(_tap_output(taps, name, start_graph))
            stack.callback(handle.remove)
        yield taps


def find_layer(network: nn.Module, name: str) -> nn.Module:
    """Returns the layer of that dotted name, looked up in `network.backbone` first, then in `network`.

    Raises:
        UserError: If there is none; the nearest names are given.
    """
    root = unwrap(network)
    for base in (_backbone(root), root):
        layer = _descend(base, name)
        if layer is not None:
            return layer
    options = [layer.removeprefix("backbone.") for layer in _named_layers(root)]
    raise UserError(f"there is no layer '{name}' in {_describe(network)}. Nearest: {nearest(name, options, count=3)}.")


def classifier_name(network: nn.Module) -> str:
    """Returns the dotted name, relative to the backbone, of the layer that computes the logits.

    It is the layer within what timm calls the classifier that has as many outputs as there are classes, else the last
    linear layer, else the last convolution (SqueezeNet). A backbone that is a graph says so itself (`classifier_name`).

    Raises:
        UserError: If there is no such layer, or several.
    """
    backbone = _backbone(network)
    if isinstance(known := getattr(backbone, "classifier_name", None), str):
        return known  # a graph, whose operators are no layers
    layers = {name: m for name, m in _named_layers(backbone).items() if isinstance(m, nn.Linear | nn.Conv2d)}
    if hasattr(backbone, "get_classifier"):
        classifier = backbone.get_classifier()
        inside = set(classifier.modules()) if isinstance(classifier, nn.Module) else set()
        found = [name for name, m in layers.items() if m in inside and len(m.weight) == backbone.num_classes]
    else:
        linear = [name for name, m in layers.items() if isinstance(m, nn.Linear)]
        found = (linear or list(layers))[-1:]
    if len(found) != 1:
        raise UserError(f"{_describe(network)} has no single linear or convolutional layer as its classifier.")
    return found[0]


def replace_classifier(network: nn.Module, num_classes: int) -> None:
    """Puts a new, randomly initialised final classifier with `num_classes` outputs in place of the present one."""
    root: Any = unwrap(network)
    backbone = _backbone(root)
    name = classifier_name(root)
    old: Any = find_layer(root, name)
    bias = old.bias is not None
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias)
    else:
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size, old.stride, old.padding, bias=bias)
    backbone.set_submodule(name, new.to(old.weight))
    for owner in (root, backbone):
        if hasattr(owner, "num_classes"):
            owner.num_classes = num_classes


def unwrap(module: nn.Module) -> nn.Module:
    """Looks through `torch.compile`'s wrapper."""
    return getattr(module, "_orig_mod", module)


def _backbone(network: nn.Module) -> Any:
    root = unwrap(network)
    return unwrap(getattr(root, "backbone", root))


def _descend(module: nn.Module, name: str) -> nn.Module | None:
    for part in name.split("."):
        child = module._modules.get(part)
        if child is None:
            return None
        module = unwrap(child)
    return module


def _named_layers(network: nn.Module) -> dict[str, nn.Module]:
    layers = {}
    for name, module in network.named_modules(remove_duplicate=False):
        name = ".".join(part for part in name.split(".") if part != "_orig_mod")
        if name:
            layers[name] = unwrap(module)
    return layers


def _describe(network: nn.Module) -> str:
    return getattr(unwrap(network), "architecture", type(unwrap(network)).__name__)


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _disable_grad(*_: Any) -> None:
    torch.set_grad_enabled(False)


def _enable_grad(*_: Any) -> None:
    torch.set_grad_enabled(True)


def _start_graph(value: Tensor) -> Tensor:
    """Makes `value` a leaf that requires a gradient, unless the graph has already begun before it."""
    torch.set_grad_enabled(True)
    if value.requires_grad:
        return value
    value = value.clone() if value.is_inference() else value
    return value.detach().requires_grad_()


def _tap_output(taps: dict[str, Tensor], name: str, start_graph: bool) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise UserError(f"layer '{name}' returns a {type(output).__name__}, not a tensor: tap a layer inside it.")
        taps[name] = _start_graph(output) if start_graph else output
        # what follows may work in place (ReLU, residual sums), and must not overwrite the tap
        return taps[name].clone()

    return hook


def _tap_input(taps: dict[str, Tensor], start_graph: bool) -> Callable[..., tuple[Tensor]]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        value = inputs[0]
        if value.ndim == 4 and value.shape[2:].numel() > 1:
            value = _start_graph(value) if start_graph else value
            taps["features"] = value.mean((2, 3))
            return (value,)
        features = value.flatten(1)
        taps["features"] = _start_graph(features) if start_graph else features
        return (taps["features"].reshape(value.shape),)

    return hook
