"""Networks by name: timm or torchvision CNNs that take pixels in [0, 1], weights, and taps for their features."""

from compresslens.networks.create import create_network
from compresslens.networks.pixel_network import PixelNetwork
from compresslens.networks.taps import classifier_name, feature_taps, replace_classifier
from compresslens.networks.weights import load_weights

__all__ = [
    "PixelNetwork",
    "classifier_name",
    "create_network",
    "feature_taps",
    "load_weights",
    "replace_classifier",
]
