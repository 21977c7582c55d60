"""`model.safetensors` and `recipe.json`: the weights, and how this package builds the network around them.

Neither file holds code: the recipe names an architecture and the changes that compression made to it. An INT8 network
is stored as it is deployed: int8 weights and their scales among the tensors, scales of the activations in the recipe.
Weights of a network with learned steps take as many bits as their codes have.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.errors import UserError
from compresslens.export.ready import example, has_learned_steps, is_int8, ready, write
from compresslens.networks.changes import apply_changes, changes_of
from compresslens.networks.create import create_network
from compresslens.networks.taps import unwrap

FORMAT = 1
WEIGHTS, RECIPE = "model.safetensors", "recipe.json"
COMPRESSED = f"{WEIGHTS}.zz"
WORTH_COMPRESSING = 0.8
DEFLATE_LEVEL = 6


def export_safetensors(
    network: nn.Module, folder: Path, class_names: list[str] | None = None, deployed: nn.Module | None = None
) -> None:
    """Writes `model.safetensors` and `recipe.json`.

    If deflate (zlib, level 6) takes more than a fifth off, as it does where many weights are zero or repeated, a
    compressed copy `model.safetensors.zz` is written, too; it alone, without the plain file, is enough to load.

    Args:
        network: made by `create_network`, whatever was changed in it since.
        folder: where the files are to be.
        class_names: in the order of the logits.
        deployed: `ready(network)` if that is known already.

    Raises:
        UserError: the network was not made by `create_network`, or a file cannot be written.
    """
    check_recipe(network)
    root: Any = unwrap(network)
    deployed = ready(network) if deployed is None else deployed
    recipe: dict[str, Any] = {
        "format": FORMAT,
        "recipe": root.recipe,
        "changes": changes_of(root),
        "class_names": class_names,
        "input": f"RGB images N×3×{root.image_size}×{root.image_size}, float32 in [0, 1]",
        "normalization": {
            "note": "the network's first layer: (images - mean) / std",
            "mean": root.normalize.mean.flatten().tolist(),
            "std": root.normalize.std.flatten().tolist(),
        },
    }
    if is_int8(network):
        recipe["activation_scales"] = [list(scale) for scale in activation_scales(deployed)]
    content = serialized(deployed)
    compressed = zlib.compress(content, DEFLATE_LEVEL)
    write(folder / WEIGHTS, content)
    if len(compressed) < WORTH_COMPRESSING * len(content):
        write(folder / COMPRESSED, compressed)
    else:
        (folder / COMPRESSED).unlink(missing_ok=True)  # of an export before this one
    text = json.dumps(recipe, indent=2, ensure_ascii=False, allow_nan=False)
    write(folder / RECIPE, f"{text}\n".encode())


def check_recipe(network: nn.Module) -> None:
    """Raises UserError unless `create_network` made the network."""
    root = unwrap(network)
    if not getattr(root, "recipe", None):
        raise UserError(
            f"a {type(root).__name__} cannot be written as safetensors with a recipe, because create_network did not "
            "make it; leave this format out (formats of callbacks.Export), or use compresslens.networks.create_network"
        )


@torch.inference_mode(False)  # what is traced and rebuilt must be ordinary tensors
def load_recipe(folder: Path) -> nn.Module:
    """The network that `export_safetensors` wrote, in eval mode; of an INT8 network the INT8 graph.

    Raises:
        UserError: a file is missing or broken, or the weights do not fit the recipe.
    """
    recipe = _read_recipe(folder / RECIPE)
    state = _read_weights(folder)
    with torch.random.fork_rng([]):  # random weights, soon replaced
        network: nn.Module = create_network(**recipe["recipe"])
        apply_changes(network, recipe["changes"])
    if is_int8(network):
        from compresslens.quantization import calibrate

        # Only a network whose ranges are known can be converted; they are replaced by those of the recipe.
        calibrate(network, [example(recipe["recipe"]["image_size"])])
        network = ready(network)
        set_activation_scales(network, recipe["activation_scales"])
    if has_learned_steps(network):
        from compresslens.quantization import unpack_state

        state = unpack_state(state)
    _load_strictly(network, state, folder / WEIGHTS)
    return network.eval()


def distinct_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, each tensor dense and in its own memory, shared ones once."""
    tensors: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        if value.numel() and _place(value) in seen:
            continue
        seen.add(_place(value))
        # Overlapping views are refused and the memory format is no property of the weights, hence the copy.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors


def serialized(network: nn.Module) -> bytes:
    """The state dict in safetensors' format, each tensor in its own type; weights with learned steps are packed."""
    from safetensors.torch import save

    if has_learned_steps(network):
        from compresslens.quantization import packed_state

        return save(packed_state(network))
    return save(distinct_tensors(network))


def activation_scales(network: nn.Module) -> list[tuple[float, int]]:
    """Scale and zero point of every rounding of activations in an INT8 graph, in the order of the graph."""
    return [(float(node.args[1]), int(node.args[2])) for _, node in _roundings(network)]


def set_activation_scales(network: nn.Module, scales: list[tuple[float, int]]) -> None:
    """Writes them into the graph.

    Raises:
        UserError: there are more or fewer of them than places.
    """
    roundings = _roundings(network)
    if len(roundings) != len(scales):
        raise UserError(f"the recipe has {len(scales)} scales of activations, but the network needs {len(roundings)}")
    for (_, node), (scale, zero_point) in zip(roundings, scales, strict=True):
        node.args = (node.args[0], float(scale), int(zero_point), *node.args[3:])
    for graph in {id(graph): graph for graph, _ in roundings}.values():
        graph.recompile()


def _roundings(network: nn.Module) -> list[tuple[torch.fx.GraphModule, Any]]:
    """Nodes that round activations or read rounded ones, whose scale is written into the graph."""
    graphs = [module for module in network.modules() if isinstance(module, torch.fx.GraphModule)]
    return [
        (graph, node)
        for graph in graphs
        for node in graph.graph.nodes
        if "quantize_per_tensor" in str(node.target) and isinstance(node.args[1], float)
    ]


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    found = recipe.get("format") if isinstance(recipe, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} has format {found}, but this version reads format {FORMAT}")
    return recipe


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    path = folder / WEIGHTS if (folder / WEIGHTS).is_file() else folder / COMPRESSED
    try:
        content = path.read_bytes()
        return load(zlib.decompress(content) if path.name == COMPRESSED else content)
    except OSError as error:
        raise UserError(f"cannot read {folder / WEIGHTS}: {error.strerror or error}") from error
    except Exception as error:  # a broken file raises whatever the parser stumbles over
        raise UserError(f"{path} cannot be read as weights: {' '.join(str(error).split())[:200]}") from error


def _load_strictly(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    places = {_place(own[name]) for name in state if name in own}
    missing = [name for name, value in own.items() if name not in state and _place(value) not in places]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        what = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is not part of it"
        raise UserError(f"{path} does not fit its recipe: {what}")
    for name, value in state.items():
        if (own[name].shape, own[name].dtype) != (value.shape, value.dtype):
            raise UserError(
                f"{path} does not fit its recipe: {name} is {value.dtype} {tuple(value.shape)} in the file and "
                f"{own[name].dtype} {tuple(own[name].shape)} in the network"
            )
    network.load_state_dict(state, strict=False)


def _place(value: Tensor) -> tuple[Any, ...]:
    """What two tensors have in common if they are the same memory."""
    return value.device, value.data_ptr(), value.shape, value.stride(), value.dtype
