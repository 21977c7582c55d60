import copy

import pytest
import torch
from torch import nn

from compresslens.attacks import carlini_wagner_l2
from compresslens.attacks.margin import margin


@pytest.fixture(scope="module")
def linear():
    """A linear classifier, images in the middle of the box, and the distance that algebra gives."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    images = 0.4 + 0.2 * torch.rand(20, 3, 4, 4)
    with torch.no_grad():
        logits, weight = net(images), net[1].weight.double()
        labels = logits.argmax(1)
        gaps = logits.gather(1, labels[:, None]).double() - logits.double()
        lengths = (weight[labels][:, None] - weight[None]).norm(dim=2)
        distances = (gaps / lengths).scatter(1, labels[:, None], torch.inf)
    return net, images, labels, distances


@pytest.fixture(scope="module")
def curved():
    """A small convolutional network with black and white pixels in its images."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(288, 6),
    )
    images = (torch.rand(24, 3, 8, 8) * 1.6 - 0.3).clamp(0, 1)
    net(images)  # statistics of batch normalization
    net.eval()
    with torch.no_grad():
        labels = net(images).argmax(1)
    return net, images, labels


TANH = {"solver": "adam", "space": "tanh"}
SOLVERS = [{"solver": "projection"}, {"solver": "adam"}, TANH]


@pytest.mark.parametrize(
    ("options", "within"),
    [({}, 1e-3), ({"evaluations": 8}, 1e-2), ({"solver": "adam"}, 2e-2), (TANH, 2e-2)],
)
def test_closed_form_of_a_linear_classifier(linear, options, within):
    net, images, labels, distances = linear
    result = carlini_wagner_l2(net, images, labels, **options)
    assert result.success.all()
    ratio = result.l2 / distances.amin(1)
    assert ratio.min() > 1 - 1e-6
    assert ratio.max() < 1 + within


def test_closed_form_with_a_target(linear):
    net, images, labels, distances = linear
    targets = (labels + 1) % 5
    result = carlini_wagner_l2(net, images, labels, targets=targets)
    logits = net(result.adversarials)
    assert (logits.argmax(1) == targets).all()
    # another class than label and target may be in the way, so the pair's distance is a lower bound
    pair = distances.gather(1, targets[:, None])[:, 0]
    assert (result.l2 > pair * (1 - 1e-6)).all()
    others = logits.scatter(1, torch.stack([labels, targets], 1), -torch.inf).amax(1)
    alone = logits.gather(1, targets[:, None])[:, 0] - others > 1e-2
    assert alone.any()
    assert (result.l2 / pair)[alone].max() < 1.001


def test_closed_form_with_confidence(linear):
    net, images, labels, _ = linear
    weight, confidence = net[1].weight.detach().double(), 0.5
    result = carlini_wagner_l2(net, images, labels, confidence=confidence)
    with torch.no_grad():
        logits = net(images).double()
    gaps = logits.gather(1, labels[:, None]) - logits + confidence
    expected = (gaps / (weight[labels][:, None] - weight[None]).norm(dim=2)).scatter(1, labels[:, None], torch.inf)
    assert (margin(net(result.adversarials), labels) <= -confidence).all()
    assert (result.l2 / expected.amin(1)).max() < 1.001


@pytest.mark.parametrize("options", SOLVERS)
def test_what_is_returned_is_adversarial_in_the_box_and_as_far_as_it_says(curved, options):
    net, images, labels = curved
    result = carlini_wagner_l2(net, images, labels, **options)
    assert result.success.all()
    assert result.adversarials.amin() >= 0
    assert result.adversarials.amax() <= 1
    assert (net(result.adversarials).argmax(1) != labels).all()
    distances = (result.adversarials.double() - images.double()).flatten(1).norm(dim=1)
    assert torch.allclose(result.l2, distances, rtol=1e-12)
    assert (result.first_success >= 1).all()
    assert (result.first_success <= result.gradient_evaluations).all()


@pytest.mark.parametrize("options", SOLVERS)
def test_pixels_at_their_bounds_can_move(curved, options):
    net, images, labels = curved
    extreme = images.round()
    labels = net(extreme).argmax(1)
    result = carlini_wagner_l2(net, extreme, labels, **options)
    assert result.success.all()
    assert ((extreme == 0) & (result.adversarials > 0)).any()
    assert ((extreme == 1) & (result.adversarials < 1)).any()


@pytest.mark.parametrize("options", [*SOLVERS, {"refine": 10}])
@pytest.mark.parametrize(("count", "chunk_size"), [(2, 1), (19, 16), (19, 64)])
def test_the_others_of_the_batch_do_not_matter(curved, options, count, chunk_size):
    net, images, labels = curved
    whole = carlini_wagner_l2(net, images, labels, **options)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))[:count]
    part = carlini_wagner_l2(net, images[order], labels[order], chunk_size=chunk_size, **options)
    for name in ("adversarials", "success", "l2", "gradient_evaluations", "first_success"):
        assert torch.equal(getattr(whole, name)[order], getattr(part, name)), name


class Rounded(nn.Module):
    """Rounds its logits, and computes others in batches that are small: as CPU kernels do, if only by a last bit."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        logits = self.net(images) * 4
        if len(images) < 16:
            logits = logits.flip(1)
        return logits + (logits.round() - logits).detach()


@pytest.mark.parametrize("chunk_size", [1, 5, 16])
def test_small_chunks_of_rounded_logits(curved, chunk_size):
    """No forward pass is so small that the network computes in another way."""
    torch.manual_seed(3)
    network = Rounded(nn.Sequential(*curved[0][:-1], nn.Linear(288, 12)))  # more classes than the solver looks at
    images = curved[1]
    labels = network(images).argmax(1)
    whole = carlini_wagner_l2(network, images, labels)
    part = carlini_wagner_l2(network, images[:17], labels[:17], chunk_size=chunk_size)
    for name in ("adversarials", "success", "l2", "gradient_evaluations", "first_success"):
        assert torch.equal(getattr(whole, name)[:17], getattr(part, name)), name


class Scaled(nn.Module):
    def __init__(self, net, factor=1.0, constant=0.0):
        super().__init__()
        self.net, self.factor, self.constant = net, factor, constant

    def forward(self, images):
        return self.net(images) * self.factor + self.constant


@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.parametrize(("factor", "constant"), [(0.01, 0), (100, 0), (1, 50), (1, -50)])
def test_neither_scale_nor_constant_of_the_logits_matters(curved, options, factor, constant):
    net, images, labels = curved
    plain = carlini_wagner_l2(net, images, labels, **options)
    other = carlini_wagner_l2(Scaled(net, factor, constant), images, labels, **options)
    assert other.success.all()
    assert torch.allclose(other.l2.median(), plain.l2.median(), rtol=0.02)
    assert torch.allclose(other.l2.mean(), plain.l2.mean(), rtol=0.02)


def test_more_evaluations_do_not_harm(curved):
    net, images, labels = curved
    few, many = (carlini_wagner_l2(net, images, labels, evaluations=n) for n in (40, 100))
    assert many.l2.mean() <= few.l2.mean()
    assert (few.gradient_evaluations == 40).all()
    assert (many.gradient_evaluations == 100).all()


@pytest.mark.slow
def test_the_projection_is_not_weaker_than_the_papers_schedule(curved):
    net, images, labels = curved
    ours = carlini_wagner_l2(net, images[:16], labels[:16])
    paper = carlini_wagner_l2(net, images[:16], labels[:16], solver="adam", schedule="paper")
    assert (paper.gradient_evaluations == 9000).all()
    assert paper.success.all()
    assert ours.l2.mean() <= paper.l2.mean() * 1.001


@pytest.mark.parametrize("options", [*SOLVERS, {"refine": 10}])
def test_the_best_observed_point_is_the_one_returned_and_each_evaluation_is_observed(curved, options):
    net, images, labels = curved
    least, count = torch.full((24,), torch.inf, dtype=torch.float64), torch.zeros(24, dtype=torch.int64)

    def observe(evaluation):
        count.index_add_(0, evaluation.samples, torch.ones_like(evaluation.samples))
        distance = (evaluation.points.double() - images[evaluation.samples].double()).flatten(1).norm(dim=1)
        distance[evaluation.margins >= 0] = torch.inf
        least.scatter_reduce_(0, evaluation.samples, distance, "amin")

    result = carlini_wagner_l2(net, images, labels, observe=observe, **options)
    assert torch.allclose(result.l2, least, rtol=1e-6)
    chosen = result.gradient_evaluations - count  # gradients of the classes, before the first step
    assert (chosen == (0 if options.get("solver") == "adam" else 6)).all()


def test_a_misclassified_image_costs_nothing(curved):
    net, images, labels = curved
    wrong = (labels + 1) % 6
    wrong[5:] = labels[5:]
    result = carlini_wagner_l2(net, images, wrong)
    assert result.l2[:5].tolist() == [0.0] * 5
    assert result.gradient_evaluations[:5].tolist() == [0] * 5
    assert result.first_success[:5].tolist() == [0] * 5
    assert torch.equal(result.adversarials[:5], images[:5])
    assert result.success.all()


def test_a_network_without_gradients_fails_honestly(curved):
    net, images, labels = curved

    class Thresholded(nn.Module):
        def forward(self, x):
            return net((x > 0.5).float())

    labels = Thresholded()(images).argmax(1)
    result = carlini_wagner_l2(Thresholded(), images, labels, refine=5)
    assert not result.success.any()
    assert torch.isinf(result.l2).all()
    assert (result.first_success == -1).all()
    assert torch.equal(result.adversarials, images)
    assert (result.gradient_evaluations == 40).all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter(curved, mode):
    net, images, labels = curved
    expected = carlini_wagner_l2(net, images, labels)
    with mode():
        result = carlini_wagner_l2(net, images.clone(), labels.clone())
    assert torch.equal(result.l2, expected.l2)


def test_a_network_in_train_mode_is_attacked_in_eval_mode_and_left_as_it_was(curved):
    net, images, labels = curved
    expected = carlini_wagner_l2(net, images, labels)
    training = copy.deepcopy(net).train()
    before = {name: value.clone() for name, value in training.state_dict().items()}
    result = carlini_wagner_l2(training, images, labels)
    assert torch.equal(result.l2, expected.l2)
    assert all(module.training for module in training.modules())
    assert all(torch.equal(value, before[name]) for name, value in training.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in training.parameters())


def test_an_empty_batch_gives_an_empty_result(curved):
    net, images, labels = curved
    result = carlini_wagner_l2(net, images[:0], labels[:0])
    assert len(result) == 0
    assert result.adversarials.shape == (0, 3, 8, 8)


def test_two_classes():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images = 0.4 + 0.2 * torch.rand(8, 3, 2, 2)
    result = carlini_wagner_l2(net, images, net(images).argmax(1))
    assert result.success.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.full((4, 3, 8, 8), 1.5)}, "range from 1.5 to 1.5"),
        ({"images": torch.full((4, 3, 8, 8), torch.nan)}, "pixels in"),
        ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, "torch.uint8"),
        ({"labels": torch.tensor([0, 1, 2, 6])}, "labels go up to 6 but the network has 6 classes"),
        ({"labels": torch.tensor([0, 1, 2, -1])}, "contain -1"),
        ({"labels": torch.tensor([0, 1, 2])}, "one for each of 4 images"),
        ({"labels": torch.zeros(4)}, "torch.float32"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, "a target is the label itself"),
        ({"targets": torch.full((4,), 9)}, "targets go up to 9"),
        ({"confidence": -1.0}, "confidence is -1.0"),
        ({"confidence": float("nan")}, "confidence is nan"),
        ({"solver": "sgd"}, "'projection', 'adam'"),
        ({"schedule": "slow"}, "'fast', 'paper'"),
        ({"evaluations": 0}, "at least 1"),
        ({"refine": -1}, "at least 0"),
        ({"chunk_size": 0}, "at least 1"),
    ],
)
def test_bad_input_is_named(curved, change, message):
    net, images, _ = curved
    arguments = {"images": images[:4], "labels": torch.zeros(4, dtype=torch.int64)} | change
    with pytest.raises(ValueError, match=message):
        carlini_wagner_l2(net, **arguments)


def test_nan_logits_are_named(curved):
    _, images, labels = curved

    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :6] * torch.where(torch.arange(len(x)) == 2, torch.nan, 1.0)[:, None]

    with pytest.raises(ValueError, match="NaN for image 2"):
        carlini_wagner_l2(Broken(), images, labels)
