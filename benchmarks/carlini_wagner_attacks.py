"""The attacks that `carlini_wagner.py` compares: ours, and the peers' with their own settings.

All get the same images in one batch and give back images. What a peer does not find, it marks in its own way (black
images, the input itself): whether an image is adversarial is decided by the benchmark alone.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from compresslens.attacks import carlini_wagner_l2

CHUNK = 64
Run = Callable[[nn.Module, Tensor, Tensor], Any]


@dataclass(frozen=True)
class Attack:
    """An attack and how it is to be run.

    Attributes:
        package: module that must be importable.
        run: from network, images and labels to adversarial images, or to an `AttackResult`.
        quick: run it in every round; else once.
        networks: those that it is run on by default.
    """

    package: str
    run: Run
    quick: bool = False
    networks: tuple[str, ...] = ("standard", "adversarial")


def ours(network: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Any:
    """`compresslens.attacks.carlini_wagner_l2`; its result holds more than the images."""
    return carlini_wagner_l2(network, images, labels, chunk_size=CHUNK, **options)


def foolbox(network: nn.Module, images: Tensor, labels: Tensor, attack: str, **options: Any) -> Tensor:
    """An attack of foolbox with its defaults."""
    import foolbox

    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    adversarials, _, _ = getattr(foolbox.attacks, attack)(**options)(model, images, labels, epsilons=None)
    return adversarials


def torchattacks(network: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """torchattacks has no search over c: it stays 1."""
    import torchattacks

    return torchattacks.CW(network, steps=steps)(images, labels)


def art(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Defaults, but for the batch: one image at a time would be slower still."""
    from art.attacks.evasion import CarliniL2Method
    from art.estimators.classification import PyTorchClassifier

    logging.getLogger("art").setLevel(logging.WARNING)
    with torch.no_grad():
        classes = network(images[:1]).shape[1]
    shape = tuple(images.shape[1:])
    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), shape, classes, clip_values=(0, 1), device_type="cpu"
    )
    attack = CarliniL2Method(classifier, batch_size=len(images), verbose=False)
    return torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))


def adv_lib(network: nn.Module, images: Tensor, labels: Tensor, attack: str, **options: Any) -> Tensor:
    """An attack of adv-lib."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the plotting that it imports
        import adv_lib.attacks

    return getattr(adv_lib.attacks, attack)(network, images, labels, **options)


EVERYWHERE = ("standard", "adversarial", "fake_quant")
FOOLBOX_CW = partial(foolbox, attack="L2CarliniWagnerAttack", steps=1000)
# Pixels that are not rounded to 8 bits let DDN come nearer than its default does.
DDN = partial(adv_lib, attack="ddn", steps=1000, levels=None)
ALMA = partial(adv_lib, attack="alma", num_steps=1000)
ADV_LIB_CW = partial(adv_lib, attack="carlini_wagner_l2", max_iterations=1000)

ATTACKS: dict[str, Attack] = {
    "projection_40": Attack("compresslens", partial(ours, evaluations=40), quick=True, networks=EVERYWHERE),
    "projection_100": Attack("compresslens", partial(ours, evaluations=100), quick=True, networks=EVERYWHERE),
    "projection_60_refine_40": Attack("compresslens", partial(ours, evaluations=60, refine=40), quick=True),
    "projection_40_refine_60": Attack("compresslens", partial(ours, evaluations=40, refine=60), networks=EVERYWHERE),
    "adam": Attack("compresslens", partial(ours, solver="adam")),
    "torchattacks_cw_100": Attack("torchattacks", partial(torchattacks, steps=100), quick=True),
    "foolbox_ddn_100": Attack("foolbox", partial(foolbox, attack="DDNAttack", steps=100), quick=True),
    "art_cw": Attack("art", art),
    "torchattacks_cw_1000": Attack("torchattacks", partial(torchattacks, steps=1000)),
    "foolbox_ddn_1000": Attack("foolbox", partial(foolbox, attack="DDNAttack", steps=1000)),
    "adv_lib_ddn_1000": Attack("adv_lib", DDN, networks=EVERYWHERE),
    # The first step's length: 0.1 is what its authors used for small colour images, 1 what AttackBench uses.
    "adv_lib_alma_1000": Attack("adv_lib", partial(ALMA, init_lr_distance=0.1)),
    "adv_lib_alma_1000_far": Attack("adv_lib", partial(ALMA, init_lr_distance=1)),
    "adv_lib_pdgd_500": Attack("adv_lib", partial(adv_lib, attack="pdgd", num_steps=500)),
    "foolbox_cw_9x1000": Attack("foolbox", FOOLBOX_CW),
    "adv_lib_cw_9x1000": Attack("adv_lib", ADV_LIB_CW, networks=()),
}
BASE = "projection_40"


def missing(package: str) -> bool:
    """Whether a peer is not installed (adv-lib also needs visdom, though only to plot)."""
    needed = ("adv_lib", "visdom") if package == "adv_lib" else (package,)
    return any(find_spec(name) is None for name in needed)
