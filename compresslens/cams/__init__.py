"""Class activation maps."""

from compresslens.cams.maps import Method, class_activation_maps, maps_and_logits

__all__ = ["Method", "class_activation_maps", "maps_and_logits"]
