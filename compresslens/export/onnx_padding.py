"""Moves padding with zeros into the convolution behind it, through the rounding in between."""

from __future__ import annotations

from typing import Any


def move_padding(model: Any) -> None:
    """Changes an `onnx_ir` model in place: in Pad → QuantizeLinear → DequantizeLinear → Conv, the last one pads.

    That is exact, since zero is rounded to zero. Networks that pad unevenly ("same" padding) need a Pad, which the
    runtimes of INT8 files would compute in float.
    """
    import onnx_ir

    for pad in [node for node in model.graph if node.op_type == "Pad"]:
        amounts, readers = _zeros_around(pad), _readers(pad)
        convolutions = [node for node in readers if node.op_type == "Conv"]
        if amounts is None or not convolutions:
            continue
        for convolution in convolutions:
            own = convolution.attributes["pads"].as_ints()
            total = [before + more for before, more in zip(own, amounts, strict=True)]
            convolution.attributes["pads"] = onnx_ir.AttrInt64s("pads", total)
        for node in readers:
            if node.op_type != "Conv":
                node.outputs[0].shape = pad.inputs[0].shape
        pad.outputs[0].replace_all_uses_with(pad.inputs[0])
        model.graph.remove(pad, safe=True)


def _zeros_around(pad: Any) -> list[int] | None:
    """The padding of the two sides of an image, as a convolution's attribute has it; None if it is another padding."""
    mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
    amounts = pad.inputs[1].const_value
    value = pad.inputs[2].const_value if len(pad.inputs) > 2 and pad.inputs[2] is not None else None
    if mode != "constant" or amounts is None or (value is not None and float(value.numpy()) != 0):
        return None
    numbers = amounts.numpy().tolist()
    if len(numbers) != 8 or any(number < 0 for number in numbers) or any(numbers[i] for i in (0, 1, 4, 5)):
        return None
    return [*numbers[2:4], *numbers[6:8]]


def _readers(pad: Any) -> list[Any]:
    """What follows up to the convolutions; nothing if there is anything else, or another output."""
    found: list[Any] = []
    pending = [(pad.outputs[0], "QuantizeLinear", "DequantizeLinear", "Conv")]
    while pending:
        value, expected, *rest = pending.pop()
        uses = list(value.uses())
        if not uses or value.is_graph_output() or any(u.node.op_type != expected or u.idx != 0 for u in uses):
            return []
        found += [use.node for use in uses]
        pending += [(use.node.outputs[0], *rest) for use in uses if rest]  # type: ignore[misc]
    return found
