"""Weights from files: Lightning checkpoints, plain state dicts, safetensors, and run folders."""

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compresslens.errors import UserError
from compresslens.networks.changes import apply_changes
from compresslens.networks.names import first_line
from compresslens.networks.pixel_network import PixelNetwork
from compresslens.networks.taps import classifier_name

logger = logging.getLogger(__name__)

# where the backbone's keys may stand: in Lightning modules, this package's networks, DataParallel, by themselves
_PREFIXES = ("model.backbone.", "backbone.", "model.", "module.backbone.", "module.", "")
# auxiliary classifiers in torchvision's files for GoogLeNet and Inception; the networks here are built without
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


def load_weights(network: PixelNetwork, path: str | Path, replace_head: bool = True) -> None:
    """Loads weights from a file into the network, in place and strictly.

    Where the file is a checkpoint of a compressed network, the network's structure is changed likewise first.

    Args:
        network: The network to fill.
        path: A .ckpt (Lightning; the network's keys start with "model."), .pth, .pt or .safetensors file, or a run
            folder, of which checkpoints/best.ckpt is taken. No code in the file is ever executed.
        replace_head: What to do if the file has another number of classes: keep the network's own, newly initialised
            classifier (True) or raise (False).

    Raises:
        UserError: If the file is missing, unreadable, holds more than plain data, or does not fit the network.
    """
    file = find_checkpoint(path)
    content = _read(file)
    saved_architecture = _saved_architecture(content)
    if saved_architecture and _plain(saved_architecture) != _plain(network.architecture):
        raise UserError(f"{file} holds a '{saved_architecture}', not a '{network.architecture}'.")
    apply_changes(network, content.get("changes", []) if isinstance(content, Mapping) else [])
    load_backbone(network, _backbone_state(network, _state_dict(content, file)), str(file), replace_head)


def find_checkpoint(path: str | Path) -> Path:
    """Returns the file to read: the path itself, or checkpoints/best.ckpt in it if it is a run folder.

    Raises:
        UserError: If there is no such file.
    """
    path = Path(path).expanduser()
    file = path / "checkpoints" / "best.ckpt" if path.name == "latest" or path.is_dir() else path
    if file.is_file():
        return file
    hint = ""
    if "latest" in path.parts[1:]:
        name = path.parts[path.parts.index("latest") - 1]
        hint = f": no run named '{name}' has finished; train it first (train.py does, where a config requires it)"
    elif len(path.parts) == 1 and not path.suffix:
        hint = ": weights are 'package', 'timm', the path of a file or run folder, or none"
    raise UserError(f"there are no weights at {file}{hint}.")


def load_backbone(network: PixelNetwork, state: dict[str, Tensor], source: str, replace_head: bool = True) -> None:
    """Loads a backbone's state dict strictly, except for a classifier with another number of classes.

    Args:
        network: The network whose backbone is filled.
        state: The backbone's tensors by name; left unchanged.
        source: Where they come from, for messages.
        replace_head: See `load_weights`.

    Raises:
        UserError: If they do not fit.
    """
    own = network.backbone.state_dict()
    state = dict(state)
    head = classifier_name(network)
    weight = state.get(f"{head}.weight")
    classes = network.num_classes if weight is None else len(weight)
    if classes != network.num_classes:
        if not replace_head:
            raise UserError(f"{source} has {classes} classes, but {network.num_classes} are wanted.")
        state |= {key: value for key, value in own.items() if key.startswith(f"{head}.")}
    _check_fit(own, state, network.architecture, source)
    network.backbone.load_state_dict(state)
    if classes != network.num_classes:
        logger.warning(
            "%s has %d classes: the classifier for %d is newly initialised.", source, classes, network.num_classes
        )


def _check_fit(own: dict[str, Tensor], state: dict[str, Tensor], architecture: str, source: str) -> None:
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    if missing or unexpected:
        detail = [f"{len(missing)} tensors are missing, such as {missing[0]}"] if missing else []
        detail += [f"{len(unexpected)} are not part of it, such as {unexpected[0]}"] if unexpected else []
        raise UserError(f"{source} does not hold a '{architecture}': {'; '.join(detail)}.")
    for key, value in own.items():
        if value.shape != state[key].shape:
            shapes = f"{key} is {_shape(state[key])} in the file and {_shape(value)} in the network"
            stem = " (another stem?)" if key.startswith("conv1.") else ""
            raise UserError(f"{source} does not fit '{architecture}': {shapes}{stem}.")


def _shape(value: Tensor) -> str:
    return "×".join(map(str, value.shape)) or "a scalar"


def _read(file: Path) -> Any:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        detail = f", and this one asks for {found[1]}" if found else ""
        raise UserError(f"{file} was refused: weights may hold tensors and simple values only{detail}.") from error
    except Exception as error:  # corrupt files raise whatever the parser stumbles over
        raise UserError(f"{file} cannot be read as weights: {first_line(error)}") from error


def _state_dict(content: Any, file: Path) -> dict[str, Tensor]:
    content = content if isinstance(content, Mapping) else {}
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError(f"{file} holds no state dict.")
    return {key.replace("_orig_mod.", ""): value for key, value in state.items()}


def _backbone_state(network: PixelNetwork, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Picks the keys of the backbone, under the prefix that explains most of them."""
    own = network.backbone.state_dict().keys()
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + key in state for key in own))
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in state.items() if key in own or not key.startswith(_AUXILIARY)}


def _saved_architecture(content: Any) -> str | None:
    """The architecture that a checkpoint of this project names in its top level, if it is one."""
    name = content.get("architecture") if isinstance(content, Mapping) else None
    return name if isinstance(name, str) else None


def _plain(architecture: str) -> str:
    return architecture.removeprefix("timm/").split(".")[0]
