"""The loss over prototypes: against loops in float64, in pieces, and in float32 whatever autocast says."""

import math

import pytest
import torch

from modeling_siglip_ext.training.objectives import prototype_loss as module
from modeling_siglip_ext.training.objectives.heads import unit
from modeling_siglip_ext.training.objectives.prototype_loss import prototype_loss


WARM, SHARP = 0.1, 0.04


def problem(rows: int, views: int, prototypes: int = 7, width: int = 5, dtype=torch.float64) -> dict:
    generator = torch.Generator().manual_seed(rows * 10 + views)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "student": unit(draw(rows, views, width)),
        "prototypes": unit(draw(prototypes, width)),
        "teacher": unit(draw(rows, width)),
        "teacher_prototypes": unit(draw(prototypes, width)),
        "center": 0.1 * draw(prototypes),
        "weights": draw(rows).abs(),
    }


def looped(student, prototypes, teacher, teacher_prototypes, center, weights) -> float:
    """The definition, number by number."""

    def distribution(vector, directions, shift, temperature):
        logits = [
            (sum(a * b for a, b in zip(vector, direction)) - offset) / temperature
            for direction, offset in zip(directions, shift)
        ]
        total = sum(math.exp(logit) for logit in logits)
        return [math.exp(logit) / total for logit in logits]

    none = [0.0] * len(center)
    loss = 0.0
    for row, weight in enumerate(weights.tolist()):
        wanted = distribution(teacher[row].tolist(), teacher_prototypes.tolist(), center.tolist(), SHARP)
        for view in student[row].tolist():
            found = distribution(view, prototypes.tolist(), none, WARM)
            loss -= weight / student.shape[1] * sum(p * math.log(q) for p, q in zip(wanted, found))
    return loss


@pytest.mark.parametrize(("rows", "views"), [(6, 8), (9, 1)], ids=["vectors", "patches"])
@pytest.mark.parametrize("held", [1, 2**24])
def test_the_loss_is_its_definition(monkeypatch, rows, views, held):
    monkeypatch.setattr(module, "LOGITS", held)
    given = problem(rows, views)
    found = prototype_loss(**given, temperatures=(WARM, SHARP))
    assert found.loss.item() == pytest.approx(looped(**given), rel=1e-12)
    targets = ((given["teacher"] @ given["teacher_prototypes"].t() - given["center"]) / SHARP).softmax(-1)
    torch.testing.assert_close(found.probabilities, targets.sum(0), rtol=1e-12, atol=1e-14)
    assert found.entropy.item() == pytest.approx(-(targets * targets.log()).sum().item(), rel=1e-12)


@pytest.mark.parametrize("held", [14, 2**24])
def test_gradients_go_to_the_student_alone(monkeypatch, held):
    """Against numerical ones, whole and in pieces."""
    monkeypatch.setattr(module, "LOGITS", held)
    given = problem(4, 2)
    student, prototypes = given.pop("student").requires_grad_(), given.pop("prototypes").requires_grad_()
    others = {name: tensor.requires_grad_() for name, tensor in given.items()}

    def loss(student, prototypes):
        return 3 * prototype_loss(student, prototypes, **others, temperatures=(WARM, SHARP)).loss

    assert torch.autograd.gradcheck(loss, (student, prototypes), fast_mode=False)
    loss(student, prototypes).backward()
    assert all(tensor.grad is None for tensor in others.values())


def test_no_rows_are_no_loss():
    given = problem(1, 2)
    given |= {name: given[name][:0].requires_grad_() for name in ("student", "teacher", "weights")}
    found = prototype_loss(**given, temperatures=(WARM, SHARP))
    found.loss.backward()
    assert found.loss.item() == 0


def test_autocast_does_not_reach_it():
    given = problem(64, 1, prototypes=4096, width=64, dtype=torch.float32)
    given["student"].requires_grad_()
    plain = prototype_loss(**given, temperatures=(WARM, SHARP))
    (expected,) = torch.autograd.grad(plain.loss, given["student"])
    with torch.autocast("cpu", torch.bfloat16):
        found = prototype_loss(**given, temperatures=(WARM, SHARP))
        (gradient,) = torch.autograd.grad(found.loss, given["student"])
    assert found.loss.dtype == gradient.dtype == torch.float32
    assert torch.equal(found.loss, plain.loss)
    assert torch.equal(gradient, expected)
