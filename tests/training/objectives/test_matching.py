"""Teacher and center in closed form over three steps; the figures that show a collapse, and the warning."""

import copy
import logging

import pytest
import torch
from torch import nn

from modeling_siglip_ext.training.objectives import collapse
from modeling_siglip_ext.training.objectives.heads import ProjectionHead
from modeling_siglip_ext.training.objectives.matching import Matching, MatchingSettings
from modeling_siglip_ext.training.objectives.teacher import Teacher
from modeling_siglip_ext.training.optimizers.parameter_groups import kernel_names


SMALL = MatchingSettings(momentum=0.7, hidden=6, bottleneck=4, prototypes=5, center_momentum=0.9)
WIDTH = 3


def moved(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_a_teacher_after_three_steps():
    student = nn.Linear(3, 2).double()
    teacher = Teacher(student, 0.9)
    moved(student)  # between its making and the step where it joins
    teacher.begin(student)
    path = [student.weight.detach().clone()]
    for _ in range(3):
        moved(student)
        teacher(torch.zeros(1, 3, dtype=torch.float64))
        teacher.follow(student)
        teacher.follow(student)  # another objective that shares it
        path.append(student.weight.detach().clone())
    expected = 0.9**3 * path[0] + 0.1 * (0.9**2 * path[1] + 0.9 * path[2] + path[3])
    torch.testing.assert_close(teacher.average.weight, expected, rtol=1e-13, atol=1e-13)
    teacher.begin(student)  # of a resumed run
    torch.testing.assert_close(teacher.average.weight, expected, rtol=1e-13, atol=1e-13)


def test_a_teacher_that_was_not_used_rests():
    student = nn.Linear(3, 2)
    teacher = Teacher(student, 0.9)
    before = copy.deepcopy(teacher.state_dict())
    moved(student)
    teacher.follow(student)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_teacher_is_in_float32_and_in_eval_mode():
    student = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)).bfloat16()
    teacher = Teacher(student, 0.999).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher(torch.zeros(1, 64)).requires_grad
    weight = teacher.average[0].weight
    assert weight.dtype == torch.float32
    before = weight.clone()
    with torch.no_grad():
        student[0].weight += 0.01
    teacher.follow(student)
    # Every weight moves by a thousandth of the difference, far below bfloat16's resolution.
    torch.testing.assert_close(weight - before, 0.001 * (student[0].weight.float() - before), rtol=0.05, atol=1e-7)
    assert (weight != before).all()


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momenta_are_checked(momentum):
    with pytest.raises(ValueError, match="momentum"):
        Teacher(nn.Linear(1, 1), momentum)
    with pytest.raises(ValueError, match=r"^momentum"):
        MatchingSettings(momentum=momentum)


@pytest.mark.parametrize("name", ["student_temperature", "teacher_temperature", "prototypes", "hidden", "bottleneck"])
def test_settings_are_checked(name):
    with pytest.raises(ValueError, match=name):
        MatchingSettings(**{name: 0})


def plain_loss(head, wanted, center, student, teacher):
    """Of DINO's code, with the head as one piece."""
    targets = ((directions_of(wanted, teacher) - center) / 0.04).softmax(-1)
    return -(targets * (directions_of(head, student) / 0.1).log_softmax(-1)).sum(-1).mean()


def directions_of(head: ProjectionHead, features: torch.Tensor) -> torch.Tensor:
    hidden = head.mlp(features)
    weight = head.prototypes.weight
    return hidden / hidden.norm(dim=-1, keepdim=True) @ (weight / weight.norm(dim=-1, keepdim=True)).t()


def test_a_center_over_three_steps_of_two_chunks():
    """A step uses the center before it, and the teacher's head before it moves; unequal chunks count by their rows."""
    matching = Matching("test", WIDTH, SMALL).double()
    matching.begin()
    head, wanted, center = matching.head, copy.deepcopy(matching.head), torch.zeros(5, dtype=torch.float64)
    for _ in range(3):
        chunks = [torch.randn(rows, WIDTH, dtype=torch.float64) for rows in (2, 5)]
        for chunk in chunks:
            student = chunk + torch.randn_like(chunk)
            found = matching(student[:, None], chunk, torch.full((len(chunk),), 1 / len(chunk), dtype=chunk.dtype))
            assert found.item() == pytest.approx(plain_loss(head, wanted, center, student, chunk).item(), rel=1e-12)
        moved(head)
        matching.after_step()
        with torch.no_grad():
            center = 0.9 * center + 0.1 * directions_of(wanted, torch.cat(chunks)).mean(0)
            for own, followed in zip(wanted.parameters(), head.parameters()):
                own.copy_(0.7 * own + 0.3 * followed)
        torch.testing.assert_close(matching.center, center, rtol=1e-12, atol=1e-14)


def test_a_step_without_rows_leaves_the_center():
    matching = Matching("test", WIDTH, SMALL)
    matching.center.fill_(0.5)
    matching(torch.zeros(0, 1, WIDTH), torch.zeros(0, WIDTH), torch.zeros(0)).backward()
    matching.after_step()
    assert (matching.center == 0.5).all()
    assert matching.figures(lambda tensor: tensor) == {}


def test_figures_are_those_of_the_last_step():
    matching = Matching("test", WIDTH, SMALL)
    for _ in range(2):
        features = torch.randn(6, WIDTH)
        matching(features[:4, None], features[:4], torch.full((4,), 0.25))
        matching(features[4:, None], features[4:], torch.full((2,), 0.5))
        center = matching.center.clone()
        matching.after_step()
    targets = ((directions_of(matching.teacher.average, features) - center) / 0.04).softmax(-1)
    mean, unit = targets.mean(0), nn.functional.normalize(features, dim=-1)
    expected = {
        "teacher_entropy": -(targets * targets.log()).sum(-1).mean().item(),
        "mean_teacher_entropy": -(mean * mean.log()).sum().item(),
        # the mean squared distance from the mean
        "feature_spread": (unit - unit.mean(0)).square().sum(-1).mean().item(),
        "center_norm": matching.center.norm().item(),
    }
    # Between two steps of training the head has not moved here, so the teacher's is still the one of the step.
    assert matching.figures(lambda tensor: tensor) == pytest.approx(expected, rel=1e-4)


def test_weight_decay_takes_the_kernels_and_the_prototypes():
    head = ProjectionHead(WIDTH, 6, 4, 5)
    assert kernel_names(head) == ["mlp.0.weight", "mlp.2.weight", "mlp.4.weight", "prototypes.weight"]


HEALTHY = {"teacher_entropy": 1.9, "mean_teacher_entropy": 3.8, "feature_spread": 0.3}


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        (HEALTHY, None),
        ({**HEALTHY, "teacher_entropy": 0.01, "mean_teacher_entropy": 0.02}, "same prototype"),
        ({**HEALTHY, "teacher_entropy": 5.5, "mean_teacher_entropy": 5.52}, "same about everything"),
        ({**HEALTHY, "feature_spread": 0.0}, "features"),
    ],
)
def test_signs_of_collapse(caplog, figures, word):
    sign = collapse.sign_of_collapse(figures, rows=64, prototypes=256)
    assert sign is None if word is None else word in sign
    warning = collapse.CollapseWarning("masking")
    with caplog.at_level(logging.WARNING):
        warning.look(figures, 64, 256)
        assert not caplog.records, "fresh heads are not judged"
        warning.steps = collapse.GRACE
        warning.look(figures, 64, 256)
        warning.look(figures, 64, 256)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == (["masking"] if word else [])
