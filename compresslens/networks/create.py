"""Classification CNNs of timm and torchvision, by name."""

import logging
import re
import ssl
import urllib.error
import urllib.request
from typing import Any

from torch import nn

from compresslens.errors import UserError
from compresslens.networks.names import first_line, nearest
from compresslens.networks.package_weights import package_state_dict
from compresslens.networks.pixel_network import PixelNetwork
from compresslens.networks.stems import OutputStride, Stem, apply_output_stride, apply_stem, resolve_stem
from compresslens.networks.taps import classifier_name
from compresslens.networks.weights import load_backbone, load_weights

logger = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def create_network(
    architecture: str,
    num_classes: int,
    weights: str | None = None,
    image_size: int = 224,
    stem: Stem = "auto",
    output_stride: OutputStride = 32,
    replace_head: bool = True,
) -> PixelNetwork:
    """Creates a CNN that maps pixels in [0, 1] to logits, normalization included.

    Args:
        architecture: Any classification CNN of timm or torchvision. A plain name is timm's if timm knows it;
            "timm/..." and "torchvision/..." settle it. timm's weight tags ("resnet50.a1_in1k") are understood.
        num_classes: Number of logits.
        weights: None (random), "package" (ImageNet weights from a pip package: EfficientNet-Lite0/1/2), "timm"
            (timm's from the hub), or the path of a file or run folder (see `load_weights`).
        image_size: Side in pixels of the images the network is meant for.
        stem: First layers of a ResNet. "imagenet": as published. "small": 3×3 convolution of stride 1, no max-pooling
            (He et al. 2016, section 4.2). "small_stride2": the same with stride 2. "auto": "small" for a ResNet on
            images of at most 64 pixels, else as published. Weights from "timm" and "package" leave a small stem newly
            initialised; files must fit it.
        output_stride: For ResNets: 16 sets the stride of the last stage to 1, 8 of the last two, without dilation,
            as is usual where class activation maps are to localize: finer maps at more computation.
        replace_head: If the weights have another number of classes: newly initialise the classifier (True) or raise.

    Raises:
        UserError: If a name is unknown, the architecture is not a CNN, or the weights cannot be had or do not fit.
    """
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}: it must be at least 1.")
    library, name = _find_architecture(architecture)
    backbone = _build(library, name, num_classes)
    if not _is_cnn(backbone):
        raise UserError(f"'{architecture}' is not a CNN: choose a convolutional network without self-attention.")
    classifier_name(backbone)  # replacing and tapping it relies on there being exactly one
    stem = resolve_stem(backbone, stem, image_size, architecture)
    if weights == "timm":
        backbone = _build_pretrained(library, name, num_classes, replace_head)
    network = PixelNetwork(backbone, *_normalization(library, name, backbone), architecture, num_classes, image_size)
    network.recipe = {
        **{"architecture": architecture, "num_classes": num_classes, "image_size": image_size},
        **{"stem": stem, "output_stride": output_stride},
    }
    if weights == "package":
        state = package_state_dict(backbone, name.split(".")[0] if library == "timm" else architecture)
        load_backbone(network, state, "the package", replace_head)
    apply_stem(backbone, stem)
    apply_output_stride(backbone, output_stride, architecture)
    if weights is not None and weights not in ("timm", "package"):
        load_weights(network, weights, replace_head)
    elif weights is not None and stem != "imagenet":
        logger.warning("%s weights do not include a '%s' stem: it is newly initialised.", weights, stem)
    return network


def _find_architecture(architecture: str) -> tuple[str, str]:
    """Returns the library ("timm" or "torchvision") and the name in it."""
    import timm
    import torchvision

    torchvision_names = torchvision.models.list_models(module=torchvision.models)
    library, _, name = architecture.rpartition("/")
    if library in ("", "timm") and timm.is_model(name):
        return "timm", name
    if library in ("", "torchvision") and name in torchvision_names:
        return "torchvision", name
    options = {"timm": timm.list_models(), "torchvision": torchvision_names}
    near = nearest(name, options.get(library, [*options["timm"], *options["torchvision"]]))
    prefix = f"{library}/" if library in options else ""
    raise UserError(f"unknown architecture '{architecture}'. Nearest: {prefix}{near}.")


def _build(library: str, name: str, num_classes: int) -> nn.Module:
    if library == "torchvision":
        import torchvision

        # without auxiliary classifiers, the networks return a plain tensor in training, too
        options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    import timm

    try:
        return timm.create_model(name, num_classes=num_classes)
    except RuntimeError as error:
        if "pretrained tag" not in str(error):
            raise
        plain, _, tag = name.partition(".")
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{plain}.*")]
        raise UserError(f"'{plain}' has no weights tagged '{tag}'. Nearest: {plain}.{nearest(tag, tags)}.") from error


def _build_pretrained(library: str, name: str, num_classes: int, replace_head: bool) -> nn.Module:
    import timm

    alternatives = "use weights 'package' (EfficientNet-Lite0/1/2), the path of a file, or none"
    config = timm.get_pretrained_cfg(name) if library == "timm" else None
    if config is None or not config.has_weights:  # timm itself would silently start from random weights
        raise UserError(f"timm has no weights for '{name}': {alternatives}.")
    if config.num_classes != num_classes and not replace_head:
        raise UserError(f"timm's '{name}' has {config.num_classes} classes, but {num_classes} are wanted.")
    file = _cached_file(config.hf_hub_id)
    if file is None and config.hf_hub_id and not _hub_answers():
        raise UserError(f"timm's weights for '{name}' need the hub, which does not answer: {alternatives}.")
    try:
        overlay = {"file": file} if file else None
        backbone = timm.create_model(name, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay)
    except Exception as error:  # the hub's client raises errors of several libraries
        raise UserError(
            f"timm's weights for '{name}' could not be had ({first_line(error)}): {alternatives}."
        ) from error
    if config.num_classes != num_classes:
        logger.warning(
            "timm's '%s' has %d classes: the classifier for %d is newly initialised.",
            name,
            config.num_classes,
            num_classes,
        )
    return backbone


def _cached_file(hub_id: str | None) -> str | None:
    """The weights in the hub client's cache: used as they are, so that no network is needed."""
    import huggingface_hub

    file = huggingface_hub.try_to_load_from_cache(hub_id, "model.safetensors") if hub_id else None
    return file if isinstance(file, str) else None


def _hub_answers() -> bool:
    """Whether the hub can be reached: without it, its client would retry for most of a minute."""
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        return isinstance(getattr(error, "reason", None), ssl.SSLError)  # the client may know other certificates
    return True


def _normalization(library: str, name: str, backbone: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if library == "timm":
        return backbone.pretrained_cfg["mean"], backbone.pretrained_cfg["std"]
    if name in ("googlenet", "inception_v3"):
        # torchvision's weights expect this: its own networks convert from ImageNet's values (transform_input)
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    return IMAGENET_MEAN, IMAGENET_STD


def _is_cnn(backbone: nn.Module) -> bool:
    """Whether neighbouring pixels mix by convolutions: several beyond the patch embedding, and no self-attention."""
    spatial = [
        module
        for module in backbone.modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1 and module.kernel_size != module.stride
    ]
    attention = any(  # by its class, or by its query projection
        "Attention" in type(module).__name__ or re.search(r"(^|\.)(q|qk|qkv|query)$", name)
        for name, module in backbone.named_modules()
    )
    return len(spatial) >= 3 and not attention
