"""The features of a network, read while it runs anyhow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, fx, nn

from compresslens.errors import UserError
from compresslens.networks.taps import feature_taps, unwrap
from compresslens.quantization.graphs import flat_graph, interpreted

FEATURES, LOGITS = "features", "logits"
_CLASSIFIERS = ("aten.linear", "aten.addmm", "aten.conv")


@contextmanager
def tapped_features(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects what goes into the final classifier and what comes out, without a pass of its own.

    Args:
        network: as created here; also with fake quantizers, where the features are rounded as the classifier gets them.

    Yields:
        A dictionary with the "features" of the last forward pass, N×D (the spatial mean where the classifier is a
        convolution over a map), and its "logits" N×K. Whoever takes them out sees whether there was another pass.

    Raises:
        UserError: the network has no single classifier.
    """
    graph = flat_graph(network)
    with ExitStack() as stack:
        # without a layer it still lets compiled parts run uncompiled, which a graph's nodes need, too
        taps = stack.enter_context(feature_taps(network, [FEATURES] if graph is None else []))
        if graph is not None:
            stack.enter_context(_in_graph(graph, taps))
        handle = unwrap(network).register_forward_hook(lambda _network, _images, logits: taps.update(logits=logits))
        stack.callback(handle.remove)
        yield taps


@contextmanager
def _in_graph(graph: fx.GraphModule, taps: dict[str, Tensor]) -> Iterator[None]:
    """Collects the features in a flat graph of operators, which has no layers to hook."""
    found = [node for node in graph.graph.nodes if str(node.target).startswith(_CLASSIFIERS)]
    if not found:
        raise UserError(
            "the graph has no linear layer or convolution, so it has no features in front of its classifier"
        )

    def keep(value: Tensor) -> Tensor:
        taps[FEATURES] = value.mean((2, 3)) if value.ndim == 4 else value.flatten(1)
        return value

    with interpreted(graph, found[-1].args[0], keep):
        yield
