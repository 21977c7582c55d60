"""What a ResNet needs to look at small images: another stem, finer last maps."""

from typing import Any, Literal

from torch import nn

from compresslens.errors import UserError

Stem = Literal["auto", "imagenet", "small", "small_stride2"]
OutputStride = Literal[8, 16, 32]

SMALL_IMAGE = 64
"""Up to this side in pixels, "auto" gives a ResNet the small-image stem."""


def is_resnet(backbone: nn.Module) -> bool:
    """Whether the backbone is timm's or torchvision's ResNet class (which wide ResNets and ResNeXts share)."""
    from timm.models.resnet import ResNet as TimmResNet
    from torchvision.models import ResNet as TorchvisionResNet

    return isinstance(backbone, TimmResNet | TorchvisionResNet)


def resolve_stem(backbone: nn.Module, stem: Stem, image_size: int, architecture: str) -> Stem:
    """Turns "auto" into a definite stem and refuses a small stem on anything but a ResNet.

    Raises:
        UserError: If the stem is unknown, or does not exist for this architecture.
    """
    if stem not in ("auto", "imagenet", "small", "small_stride2"):
        raise UserError(f"unknown stem '{stem}': choose auto, imagenet, small or small_stride2.")
    if stem == "auto":
        return "small" if image_size <= SMALL_IMAGE and is_resnet(backbone) else "imagenet"
    if stem != "imagenet" and not is_resnet(backbone):
        raise UserError(f"stem '{stem}' is for ResNets only, and '{architecture}' is none: use stem 'auto'.")
    return stem


def apply_stem(backbone: Any, stem: Stem) -> None:
    """Replaces a ResNet's stem in place by the one for small images.

    "small" is the stem of He et al. 2016 (https://arxiv.org/abs/1512.03385, section 4.2): a 3×3 convolution of stride 1
    and no pooling, so the maps are four times as fine. "small_stride2" has stride 2: twice as fine.
    """
    if stem == "imagenet":
        return
    channels = backbone.bn1.num_features
    convolution = nn.Conv2d(3, channels, 3, stride=2 if stem == "small_stride2" else 1, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    backbone.conv1 = convolution
    backbone.maxpool = nn.Identity()


def apply_output_stride(backbone: Any, output_stride: OutputStride, architecture: str) -> None:
    """Makes the last maps of a ResNet finer: 16 sets the stride of the last stage to 1, 8 of the last two.

    The filters are not dilated, as is usual where class activation maps are to localize: Zhou et al. 2016
    (https://arxiv.org/abs/1512.04150) cut late layers for the sake of finer maps, Choe et al. 2020
    (https://arxiv.org/abs/2001.07437) set late strides to 1. No parameter changes shape. The values hold for the
    ImageNet stem; with "small" all strides are four times smaller, with "small_stride2" twice.

    Raises:
        UserError: If the value is not 8, 16 or 32, or the architecture is not a ResNet.
    """
    if output_stride == 32:
        return
    if output_stride not in (8, 16):
        raise UserError(f"output_stride is {output_stride}: choose 8, 16 or 32.")
    if not is_resnet(backbone):
        raise UserError(f"output_stride is for ResNets only, and '{architecture}' is none: leave it at 32.")
    stages = [backbone.layer4] if output_stride == 16 else [backbone.layer3, backbone.layer4]
    for stage in stages:
        first_block = stage[0]
        for name, module in list(first_block.named_modules()):
            if getattr(module, "stride", 1) in (1, (1, 1)):
                continue
            if isinstance(module, nn.AvgPool2d) and module.kernel_size in (2, (2, 2)):
                # the average pooling on the shortcut of "D" variants: it only serves the stride
                first_block.set_submodule(name, nn.Identity())
            else:
                module.stride = (1, 1) if isinstance(module.stride, tuple) else 1
