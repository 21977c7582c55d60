"""What all losses share: construction, precision, gradients, errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from compresslens.distillation import DistillationLoss, HintLoss, LogitKDLoss, Outputs
from tests.distillation.samples import LOSSES, built, labels, outputs

LAYER_LOSSES = [loss for loss in LOSSES if loss().student_layers]


@pytest.mark.parametrize("loss_class", LOSSES)
class TestEveryLoss:
    def test_is_a_finite_float32_scalar_with_a_gradient(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(seed=1), outputs(channels=6, size=(2, 2), seed=2)
        value = built(loss_class, student, teacher)(student, teacher, labels(3))
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value > 0
        value.backward()
        gradient = student.features["layer1"].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0

    def test_sends_no_gradient_to_the_teacher(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(seed=1), outputs(seed=2)
        built(loss_class, student, teacher)(student, teacher, labels(3)).backward()
        assert teacher.features["layer1"].grad is None

    def test_is_zero_for_equal_networks(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(seed=1), outputs(seed=1)
        value = built(loss_class, student, teacher)(student, teacher, labels(3))
        assert float(value.detach()) == pytest.approx(0, abs=1e-6)
        value.backward()
        assert student.features["layer1"].grad.abs().max() < 1e-5  # type: ignore[union-attr]

    def test_batch_of_one(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(count=1, seed=1), outputs(count=1, seed=2)
        value = built(loss_class, student, teacher)(student, teacher, labels(1))
        value.backward()
        assert value.isfinite()
        assert student.features["layer1"].grad.isfinite().all()  # type: ignore[union-attr]

    def test_bfloat16_outputs_under_autocast_are_computed_in_float32(self, loss_class: type[DistillationLoss]) -> None:
        low = outputs(seed=1, dtype=torch.bfloat16), outputs(seed=2, dtype=torch.bfloat16)
        loss = built(loss_class, *low)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(*low, labels(3))
        assert value.dtype == torch.float32
        if loss_class.needs_teacher_gradient:  # its gradients come from the networks' own bfloat16 graph
            high = outputs(seed=1), outputs(seed=2)
            expected, tolerance = loss(*high, labels(3)), 0.05
        else:
            high = upcast(low[0]), upcast(low[1])
            expected, tolerance = loss(*high, labels(3)), 1e-6
        assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=tolerance)
        value.backward()
        assert low[0].features["layer1"].grad.isfinite().all()  # type: ignore[union-attr]

    def test_float64_stays_float64(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(seed=1, dtype=torch.float64), outputs(seed=2, dtype=torch.float64)
        assert built(loss_class, student, teacher)(student, teacher, labels(3)).dtype == torch.float64

    def test_leaves_the_students_graph_usable(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(seed=1), outputs(seed=2)
        loss = built(loss_class, student, teacher)
        cross_entropy = nn.functional.cross_entropy(student.logits, labels(3))
        total = cross_entropy + loss(student, teacher, labels(3)) + loss(student, teacher, labels(3))
        (gradient,) = torch.autograd.grad(total, student.logits)
        assert torch.isfinite(gradient).all()
        assert gradient.any()

    @pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
    def test_rejects_bad_weight(self, loss_class: type[DistillationLoss], weight: float) -> None:
        with pytest.raises(ValueError, match=rf"{loss_class.__name__}: weight is"):
            loss_class(weight=weight)

    def test_weight_is_left_to_the_caller(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(seed=1), outputs(seed=2)
        torch.manual_seed(0)
        values = []
        for weight in (0.0, 1.0, 3.0):
            loss = loss_class(weight=weight)
            loss.build(student, teacher)
            assert loss.weight == weight
            values.append(float(loss(student, teacher, labels(3)).detach()))
        assert values[0] == values[1] == values[2] > 0

    def test_has_no_parameters_where_shapes_agree(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(seed=1), outputs(seed=2)
        assert not list(built(loss_class, student, teacher).parameters())

    def test_from_yaml(self, loss_class: type[DistillationLoss]) -> None:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--losses", type=list[DistillationLoss])
        settings = {"weight": 0.5}
        if loss_class in LAYER_LOSSES:
            settings |= {"student_layers": ["a", "b"], "teacher_layers": ["c", "d"]}  # type: ignore[dict-item]
        config = parser.parse_object(
            {"losses": [{"class_path": f"compresslens.distillation.{loss_class.__name__}", "init_args": settings}]}
        )
        config = parser.parse_string(parser.dump(config))  # as in a run folder's config.yaml
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # jsonargparse < 4.49
        (loss,) = instantiate(config).losses
        assert type(loss) is loss_class
        assert loss.weight == 0.5
        if loss_class in LAYER_LOSSES:
            assert loss.student_layers == ("a", "b")
            assert loss.teacher_layers == ("c", "d")

    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 2**20), count=st.integers(1, 5), channels=st.integers(1, 5), side=st.integers(1, 5))
    def test_is_never_negative(
        self, loss_class: type[DistillationLoss], seed: int, count: int, channels: int, side: int
    ) -> None:
        student = outputs(count, 3, (3, 2), seed=seed, dtype=torch.float64)
        teacher = outputs(count, channels, (side, 3), seed=seed + 10, dtype=torch.float64)
        value = built(loss_class, student, teacher)(student, teacher, labels(count, seed))
        assert value.isfinite()
        assert value > -1e-12


def upcast(low: Outputs) -> Outputs:
    return Outputs(low.logits.float(), {name: tensor.float() for name, tensor in low.features.items()})


@pytest.mark.parametrize("loss_class", LAYER_LOSSES)
class TestLayers:
    def test_teacher_layers_default_to_the_students(self, loss_class: type[DistillationLoss]) -> None:
        loss = loss_class(student_layers=["layer2", "layer3"])
        assert loss.teacher_layers == ("layer2", "layer3")

    def test_pairs_are_summed(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(seed=1, dtype=torch.float64), outputs(seed=2, dtype=torch.float64)
        values = []
        for ours, theirs in (
            (["layer3"], ["layer4"]),
            (["layer2"], ["layer1"]),
            (["layer3", "layer2"], ["layer4", "layer1"]),
        ):
            loss = loss_class(student_layers=ours, teacher_layers=theirs)
            loss.build(student, teacher)
            values.append(float(loss(student, teacher, labels(3)).detach()))
        assert values[0] + values[1] == pytest.approx(values[2], rel=1e-12)

    def test_rejects_lists_of_different_length(self, loss_class: type[DistillationLoss]) -> None:
        with pytest.raises(ValueError, match="2 student_layers but 1 teacher_layers"):
            loss_class(student_layers=["layer1", "layer2"], teacher_layers=["layer1"])

    def test_rejects_no_layers(self, loss_class: type[DistillationLoss]) -> None:
        with pytest.raises(ValueError, match="student_layers is empty"):
            loss_class(student_layers=[])

    def test_rejects_a_string(self, loss_class: type[DistillationLoss]) -> None:
        with pytest.raises(ValueError, match=r"give a list: \[layer4\]"):
            loss_class(student_layers="layer4")

    def test_names_the_layer_that_was_not_tapped(self, loss_class: type[DistillationLoss]) -> None:
        student, teacher = outputs(seed=1), outputs(seed=2)
        loss = loss_class(student_layers=["layer4"], teacher_layers=["layer9"])
        with pytest.raises(ValueError, match="layer 'layer9' of the teacher was not tapped"):
            loss.build(student, teacher)

    def test_rejects_shapes_it_cannot_use(self, loss_class: type[DistillationLoss]) -> None:
        odd = Outputs(torch.zeros(2, 5), {"tokens": torch.zeros(2, 7, 3)})
        loss = loss_class(student_layers=["tokens"])
        if loss_class.__name__ == "RelationalKDLoss":  # any shape can be flattened
            loss.build(odd, odd)
            return
        with pytest.raises(ValueError, match=r"layer 'tokens' has shape \(2, 7, 3\)"):
            loss.build(odd, odd)

    def test_repr_names_the_layers(self, loss_class: type[DistillationLoss]) -> None:
        loss = loss_class(student_layers=["a", "b"], teacher_layers=["a", "c"], weight=2)
        assert "weight=2, a, b→c" in repr(loss)


@pytest.mark.parametrize("loss_class", [loss for loss in LOSSES if loss.cacheable or loss.needs_teacher_gradient])
def test_rejects_different_classes(loss_class: type[DistillationLoss]) -> None:
    student, teacher = outputs(), outputs()
    teacher = Outputs(teacher.logits[:, :4], teacher.features)
    with pytest.raises(ValueError, match=r"\(3, 5\), the teacher's \(3, 4\)"):
        loss_class().build(student, teacher)


@pytest.mark.parametrize("loss_class", [loss for loss in LOSSES if not loss.needs_teacher_gradient])
def test_teacher_from_inference_mode(loss_class: type[DistillationLoss]) -> None:
    student = outputs(seed=1)
    with torch.inference_mode():
        teacher = outputs(channels=6, seed=2, requires_grad=False)
    built(loss_class, student, teacher)(student, teacher, labels(3)).backward()
    assert student.features["layer1"].grad is not None


def test_which_losses_can_use_cached_logits() -> None:
    assert sorted(loss.__name__ for loss in LOSSES if loss.cacheable) == ["DecoupledKDLoss", "LogitKDLoss"]
    for loss in LOSSES:
        assert loss.cacheable == (not loss().student_layers)


def test_a_users_own_loss_needs_compute_only() -> None:
    class MarginLoss(DistillationLoss):
        def compute(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
            ours, theirs = self.paired_logits(student, teacher)
            return (ours.amax(1) - theirs.amax(1)).abs().mean()

    student, teacher = outputs(seed=1), outputs(seed=2)
    loss = MarginLoss(weight=2)
    loss.build(student, teacher)
    assert loss(student, teacher, labels(3)) > 0
    with pytest.raises(NotImplementedError, match=r"must implement compute\(\)"):
        DistillationLoss()(student, teacher, labels(3))


def test_only_adapters_enter_the_state_dict() -> None:
    student, teacher = outputs(channels=4), outputs(channels=6)
    keys = {loss.__name__: sorted(built(loss, student, teacher).state_dict()) for loss in LOSSES}
    assert keys.pop("HintLoss") == ["adapters.0.bias", "adapters.0.weight"]
    assert not any(keys.values())


def test_import_is_light() -> None:
    code = (
        "import sys, compresslens.distillation; "
        "heavy = {'timm', 'wandb', 'torchvision', 'pytorch_lightning', 'pandas', 'matplotlib', 'sklearn'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_losses_in_a_module_list_bring_their_adapters_to_the_optimizer() -> None:
    student, teacher = outputs(channels=4), outputs(channels=6)
    losses = nn.ModuleList([built(LogitKDLoss, student, teacher), built(HintLoss, student, teacher)])
    assert sum(parameter.numel() for parameter in losses.parameters()) == 4 * 6 + 6
