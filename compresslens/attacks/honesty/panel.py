"""All checks together: can the distances be believed?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from compresslens.attacks.honesty.check import Check

OF_GRADIENTS = ("deterministic", "black_box", "noise", "transfer", "gradients", "unbounded", "descent")


def panel(checks: Sequence[Check]) -> tuple[Literal["ok", "unreliable"], str]:
    """The verdict on the distances of a network, and the sentence that goes with it.

    It speaks of the measurement alone. Distances that can be believed may be short or long.

    Returns:
        "unreliable" if any check fails, or none could be made.
    """
    failed = [check for check in checks if check.verdict == "fail"]
    warned = [check for check in checks if check.verdict == "warn"]
    passed = [check for check in checks if check.verdict == "pass"]
    masked = [check.reason for check in failed if check.name in OF_GRADIENTS]
    weak = [check.reason for check in failed if check.name not in OF_GRADIENTS]
    if masked:
        return "unreliable", f"unreliable: gradients are masked because {'; '.join(masked + weak)}"
    if weak:
        return (
            "unreliable",
            f"unreliable: the attack misses nearer adversarials or is inconsistent, as {'; '.join(weak)}",
        )
    if not passed and not warned:
        return "unreliable", "unreliable: nothing could be checked"
    text = f"no sign of masked gradients: {len(passed)} of {len(checks)} checks passed"
    if warned:
        text += f"; to be looked at: {'; '.join(check.reason for check in warned)}"
    return "ok", text
