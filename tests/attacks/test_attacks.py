import foolbox
import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from torch import nn

from hf_robust_transfer.attacks import LOSSES, fgsm, pgd
from hf_robust_transfer.modeling import PixelClassifier
from hf_robust_transfer.threat_model import ThreatModel

LINF, L2 = ThreatModel("linf", "8/255"), ThreatModel("l2", 0.5)
FAMILIES = ["timm-convnext", "hf-vit", "timm-wrn"]


@pytest.fixture
def classifier(tiny):
    return PixelClassifier(*tiny("timm-wrn")).double().eval()


def cross_entropy_of(classifier, images, labels):
    with torch.no_grad():
        return nn.functional.cross_entropy(classifier(images), labels, reduction="none")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("norm", "eps"), [("linf", 2 / 255), ("linf", 8 / 255), ("linf", 0.3), ("l2", 0.1), ("l2", 2.0)])
@pytest.mark.parametrize(("steps", "relative_step"), [(1, 1.0), (5, 0.4)])
def test_pgd_gives_the_images_that_foolbox_gives(tiny, digit_batch, family, norm, eps, steps, relative_step):
    classifier = PixelClassifier(*tiny(family)).double().eval()
    images, labels = digit_batch(dtype=torch.float64)
    attack_class = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    attack = attack_class(abs_stepsize=relative_step * eps, steps=steps, random_start=False)
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    theirs = attack.run(model, images, foolbox.criteria.Misclassification(labels), epsilon=eps)
    ours = pgd(
        classifier, images, labels, ThreatModel(norm, eps), steps=steps, step_size=relative_step * eps, random_start=False
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert not torch.equal(ours, images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_gives_the_images_that_foolbox_gives(classifier, digit_batch, norm):
    images, labels = digit_batch(dtype=torch.float64)
    attack = foolbox.attacks.LinfFastGradientAttack() if norm == "linf" else foolbox.attacks.L2FastGradientAttack()
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    theirs = attack.run(model, images, foolbox.criteria.Misclassification(labels), epsilon=0.2)
    ours = fgsm(classifier, images, labels, ThreatModel(norm, 0.2))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert not torch.equal(ours, images)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_targeted_attack_gives_the_images_that_foolbox_gives_and_nears_the_target(classifier, digit_batch, norm):
    images, labels = digit_batch(dtype=torch.float64)
    targets, threat_model = (labels + 3) % 10, ThreatModel(norm, 0.3)
    attack = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    attack = attack(abs_stepsize=0.05, steps=6, random_start=False)
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    theirs = attack.run(model, images, foolbox.criteria.TargetedMisclassification(targets), epsilon=0.3)
    ours = pgd(classifier, images, targets, threat_model, steps=6, step_size=0.05, random_start=False, targeted=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (cross_entropy_of(classifier, ours, targets) < cross_entropy_of(classifier, images, targets)).all()


def test_the_losses_equal_their_formulas():
    generator = np.random.default_rng(0)
    logits, clean = generator.normal(size=(2, 6, 5)) * 4
    labels = np.array([0, 1, 2, 3, 4, 0])
    expected = {
        "cross_entropy": [-log_softmax(row)[label] for row, label in zip(logits, labels, strict=True)],
        "margin": [max(np.delete(row, label)) - row[label] for row, label in zip(logits, labels, strict=True)],
        "kl": rel_entr(softmax(clean, 1), softmax(logits, 1)).sum(1),
    }
    assert LOSSES.keys() == expected.keys()
    for name, values in expected.items():
        computed = LOSSES[name](torch.tensor(logits), torch.tensor(labels), torch.tensor(clean))
        np.testing.assert_allclose(computed.numpy(), values, rtol=1e-10)


def test_the_margin_is_positive_exactly_where_the_label_is_not_predicted():
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 4
    assert torch.equal(LOSSES["margin"](logits, labels, logits) > 0, logits.argmax(1) != labels)


def test_a_margin_step_on_a_linear_classifier_goes_along_the_difference_of_two_rows():
    layer = nn.Linear(12, 3, bias=False).double()
    classifier = nn.Sequential(nn.Flatten(), layer)
    images = torch.full((1, 3, 2, 2), 0.5, dtype=torch.float64)
    logits = classifier(images)[0]
    label = int(logits.argmax())
    runner_up = int(logits.argsort()[-2])
    direction = (layer.weight[runner_up] - layer.weight[label]).detach().view(1, 3, 2, 2)
    attacked = pgd(
        classifier, images, torch.tensor([label]), LINF, steps=1, step_size=0.02, random_start=False, loss="margin"
    )
    torch.testing.assert_close(attacked, images + 0.02 * direction.sign())


def test_one_kl_step_from_the_random_start_follows_the_gradient_of_the_kl(classifier, digit_batch):
    images, labels = digit_batch(count=4, dtype=torch.float64)
    start = pgd(classifier, images, labels, L2, steps=0, seed=3)
    attacked = pgd(classifier, images, labels, L2, steps=1, step_size=0.1, loss="kl", seed=3)
    point = start.clone().requires_grad_()
    clean, noisy = classifier(images).softmax(1).detach(), classifier(point).softmax(1)
    (gradient,) = torch.autograd.grad((clean * (clean.log() - noisy.log())).sum(), point)
    expected = start + 0.1 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    delta = expected - images
    expected = images + delta * (0.5 / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp(max=1)
    torch.testing.assert_close(attacked, expected.clamp(0, 1), rtol=0, atol=1e-9)


@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_more_steps_reach_a_higher_loss(classifier, digit_batch, threat_model, loss):
    images, labels = digit_batch(dtype=torch.float64)
    with torch.no_grad():
        clean = classifier(images)
        reached = [
            LOSSES[loss](classifier(pgd(classifier, images, labels, threat_model, steps=steps, loss=loss)), labels, clean)
            for steps in (0, 2, 12)
        ]
    assert reached[0].mean() < reached[1].mean() < reached[2].mean()
    assert (reached[2] > reached[0]).all()


def test_the_default_step_is_a_quarter_of_the_radius(classifier, digit_batch):
    images, labels = digit_batch(dtype=torch.float64)
    for steps in (1, 3):
        default = pgd(classifier, images, labels, LINF, steps=steps, random_start=False)
        assert torch.equal(
            default, pgd(classifier, images, labels, LINF, steps=steps, step_size=2 / 255, random_start=False)
        )


@pytest.mark.parametrize("loss", list(LOSSES))
def test_restarts_are_never_worse_than_one_run_for_any_sample(classifier, digit_batch, loss):
    images, labels = digit_batch(dtype=torch.float64)
    options = {"steps": 2, "step_size": 2 / 255, "loss": loss, "seed": 5}
    with torch.no_grad():
        clean = classifier(images)
        one, several = (
            LOSSES[loss](classifier(pgd(classifier, images, labels, LINF, restarts=restarts, **options)), labels, clean)
            for restarts in (1, 5)
        )
    assert (several >= one - 1e-12).all()
    assert (several > one).any()


def test_targeted_restarts_are_never_farther_from_the_target(classifier, digit_batch):
    images, labels = digit_batch(dtype=torch.float64)
    one, several = (
        pgd(classifier, images, (labels + 1) % 10, LINF, steps=2, restarts=restarts, targeted=True) for restarts in (1, 5)
    )
    targets = (labels + 1) % 10
    assert (cross_entropy_of(classifier, several, targets) <= cross_entropy_of(classifier, one, targets) + 1e-12).all()
    assert not torch.equal(one, several)


@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("restarts", [1, 3])
def test_a_sample_is_attacked_alike_in_whatever_batch_it_comes(classifier, digit_batch, threat_model, restarts):
    images, labels = digit_batch(dtype=torch.float64)
    indices = torch.tensor([100, 7, 3, 55, 21, 8, 1, 9])
    options = {"steps": 3, "restarts": restarts, "seed": 11}
    whole = pgd(classifier, images, labels, threat_model, indices=indices, **options)
    for rows in ([4, 2, 0, 7, 6, 5, 3, 1], [3, 5], [6]):
        part = pgd(classifier, images[rows], labels[rows], threat_model, indices=indices[rows], **options)
        torch.testing.assert_close(part, whole[rows], rtol=0, atol=1e-9)


def test_another_seed_or_index_gives_another_start_and_the_same_ones_the_same(classifier, digit_batch):
    images, labels = digit_batch(dtype=torch.float64)
    first = pgd(classifier, images, labels, LINF, steps=0, seed=1)
    assert torch.equal(first, pgd(classifier, images, labels, LINF, steps=0, seed=1, indices=torch.arange(8)))
    assert not torch.equal(first, pgd(classifier, images, labels, LINF, steps=0, seed=2))
    assert not torch.equal(first, pgd(classifier, images, labels, LINF, steps=0, seed=1, indices=torch.arange(8) + 1))


def test_attacking_leaves_the_global_random_state_alone(classifier, digit_batch):
    images, labels = digit_batch(dtype=torch.float64)
    before = torch.get_rng_state()
    pgd(classifier, images, labels, L2, steps=1, restarts=2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
@pytest.mark.parametrize("attack", [pgd, fgsm])
def test_the_result_is_allowed_detached_and_of_the_images_dtype(tiny, digit_batch, attack, threat_model):
    classifier = PixelClassifier(*tiny("hf-vit"))
    images, labels = digit_batch()
    given = images.clone().requires_grad_()
    attacked = attack(classifier, given, labels, threat_model, step_size=1.0, random_start=True)
    assert attacked.dtype == torch.float32 and not attacked.requires_grad and given.grad is None
    assert attacked.min() >= 0 and attacked.max() <= 1
    assert threat_model.distance(attacked.double(), images.double()).max() <= threat_model.eps + 1e-6
    assert torch.equal(given, images)


class Breaks(nn.Module):
    """A convolutional classifier with every kind of state an attack could disturb; it raises on its nth forward pass."""

    def __init__(self, breaks_at=None):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Flatten()
        )
        self.head = nn.Linear(144, 10)
        self.breaks_at, self.passes = breaks_at, 0

    def forward(self, images):
        self.passes += 1
        if self.passes == self.breaks_at:
            raise RuntimeError("out of memory, say")
        return self.head(self.body(images))


def everything_about(model):
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    }


@pytest.fixture
def mixed():
    """A model in the middle of an optimizer step, with modules in both modes and parameters that train and do not."""
    model = Breaks()
    model(torch.rand(4, 3, 8, 8)).sum().backward()
    model.train()
    model.body[1].eval()
    model.head.eval()
    model.body[0].bias.requires_grad_(False)
    model.head.weight.requires_grad_(False)
    return model


def assert_unchanged(before, after):
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("attack", [pgd, fgsm])
def test_the_model_is_untouched(mixed, digit_batch, attack):
    before = everything_about(mixed)
    attacked = attack(mixed, *digit_batch(), LINF)
    assert_unchanged(before, everything_about(mixed))
    assert not torch.equal(attacked, digit_batch()[0])


@pytest.mark.parametrize(("attack", "breaks_at"), [(fgsm, 1), (pgd, 1), (pgd, 2), (pgd, 7)])
def test_the_model_is_untouched_also_when_it_raises_in_the_middle(mixed, digit_batch, attack, breaks_at):
    before = everything_about(mixed)
    mixed.breaks_at = mixed.passes + breaks_at
    with pytest.raises(RuntimeError, match="out of memory"):
        attack(mixed, *digit_batch(), LINF)
    assert_unchanged(before, everything_about(mixed))


def test_a_hugging_face_model_in_training_is_untouched(tiny, digit_batch, kind):
    classifier = PixelClassifier(*tiny(kind)).train()
    images, labels = digit_batch(32 if "resnet" in kind else 8, 2)
    before = everything_about(classifier)
    attacked = pgd(classifier, images, labels, LINF, steps=2, loss="kl", restarts=2)
    assert_unchanged(before, everything_about(classifier))
    assert all(before["flags"].values()) and all(before["modes"].values())
    assert not torch.equal(attacked, images)


def test_the_model_is_attacked_in_eval_mode(digit_batch):
    images, labels = digit_batch()
    model = Breaks()
    in_eval = pgd(model.eval(), images, labels, LINF, steps=3)
    assert torch.equal(pgd(model.train(), images, labels, LINF, steps=3), in_eval)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("loss", list(LOSSES))
def test_it_works_where_gradients_are_switched_off(classifier, digit_batch, around, loss):
    images, labels = digit_batch(dtype=torch.float64)
    expected = pgd(classifier, images, labels, LINF, steps=3, loss=loss, restarts=2)
    with around():
        images, labels = digit_batch(dtype=torch.float64)  # inference tensors, in inference mode
        attacked = pgd(classifier, images, labels, LINF, steps=3, loss=loss, restarts=2, indices=torch.arange(8))
        assert torch.equal(attacked, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
def test_under_autocast_the_images_stay_float32_and_the_loss_rises_as_in_float32(tiny, digit_batch, dtype, threat_model):
    classifier = PixelClassifier(*tiny("hf-vit"))
    images, labels = digit_batch()
    with torch.autocast("cpu", dtype):
        attacked = pgd(classifier, images, labels, threat_model, steps=5)
    assert attacked.dtype == torch.float32
    clean, low = (cross_entropy_of(classifier, shown, labels) for shown in (images, attacked))
    full = cross_entropy_of(classifier, pgd(classifier, images, labels, threat_model, steps=5), labels)
    assert (low > clean).all()
    assert (low - clean).mean() > 0.8 * (full - clean).mean()


@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
def test_the_memory_format_changes_nothing(classifier, digit_batch, threat_model):
    images, labels = digit_batch(dtype=torch.float64)
    expected = pgd(classifier, images, labels, threat_model, steps=3)
    attacked = pgd(classifier, images.to(memory_format=torch.channels_last), labels, threat_model, steps=3)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", [pgd, fgsm])
def test_a_classifier_may_be_a_plain_function(digit_batch, attack):
    images, labels = digit_batch()
    weight = torch.randn(192, 10, generator=torch.Generator().manual_seed(0))
    attacked = attack(lambda shown: shown.flatten(1) @ weight, images, labels, LINF, step_size=0.01)
    before, after = (nn.functional.cross_entropy(shown.flatten(1) @ weight, labels) for shown in (images, attacked))
    assert after > before


@pytest.mark.parametrize("attack", [pgd, fgsm])
def test_a_radius_of_zero_gives_the_clean_images(classifier, digit_batch, attack):
    images, labels = digit_batch(dtype=torch.float64)
    for norm in ("linf", "l2"):
        torch.testing.assert_close(attack(classifier, images, labels, ThreatModel(norm, 0)), images, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "cross_entropy, margin, kl"),
        ({"steps": -1}, "steps=-1"),
        ({"restarts": 0}, "restarts=0"),
        ({"restarts": 2, "random_start": False}, "random start"),
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": -0.1}, "step_size"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(classifier, digit_batch, options, message):
    images, labels = digit_batch(dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        pgd(classifier, images, labels, LINF, **options)


def test_in_fp16_the_attack_finds_the_gradient_of_confident_samples_too():
    torch.manual_seed(0)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    images = torch.rand(8, 3, 4, 4)
    labels = classifier(images).argmax(1)
    with torch.no_grad():
        classifier[1].weight *= 30  # probabilities within 1e-4 of 1, whose gradients are below what fp16 can hold
    with torch.autocast("cpu", torch.float16):
        half = pgd(classifier, images, labels, LINF, steps=1, random_start=False)
    full = pgd(classifier, images, labels, LINF, steps=1, random_start=False)
    agree = ((half - images).sign() == (full - images).sign()).float().mean()
    assert agree > 0.95


def test_a_model_that_returns_an_output_is_attacked_as_its_logits_are(tiny, digit_batch):
    model, _ = tiny("hf-vit")
    images, labels = digit_batch()
    for attack in (pgd, fgsm):
        expected = attack(lambda shown: model(shown).logits, images, labels, LINF)
        assert torch.equal(attack(model, images, labels, LINF), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_do(classifier, digit_batch, dtype):
    images, labels = digit_batch(dtype=torch.float64)
    options = {"steps": 2, "indices": torch.arange(8, dtype=torch.int32)}
    assert torch.equal(
        pgd(classifier, images, labels.to(dtype), LINF, **options), pgd(classifier, images, labels, LINF, steps=2)
    )


def test_without_the_check_of_values_types_and_shapes_are_looked_at_all_the_same(classifier, digit_batch):
    images, labels = digit_batch(dtype=torch.float64)
    assert torch.equal(
        pgd(classifier, images, labels, LINF, steps=2, check=False), pgd(classifier, images, labels, LINF, steps=2)
    )
    with pytest.raises(ValueError, match="labels"):
        pgd(classifier, images, labels[:2], LINF, check=False)
    with pytest.raises(ValueError, match="images lie between"):
        pgd(classifier, 2 * images, labels, LINF)
