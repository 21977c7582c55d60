"""Networks by name: timm or torchvision CNNs that take pixels in [0, 1], weights, and taps for their features."""

from compresslens.networks.changes import apply_changes, changes_of, record_change
from compresslens.networks.create import create_network
from compresslens.networks.pixel_network import PixelNetwork
from compresslens.networks.taps import classifier_name, feature_taps, replace_classifier
from compresslens.networks.weights import load_weights

__all__ = [
    "PixelNetwork",
    "apply_changes",
    "changes_of",
    "classifier_name",
    "create_network",
    "feature_taps",
    "load_weights",
    "record_change",
    "replace_classifier",
]
