"""Which parameters decay, how fast each layer learns, and the schedule against its formula."""

import math
import random

import pytest
import torch
from torch import nn

import vitrail
from tests.weights.models import FAMILIES, build
from vitrail.config.schema import TrainerConfig
from vitrail.errors import ConfigError
from vitrail.models.features_only import FeatureEncoder
from vitrail.tasks import parameter_groups, warmup_cosine, warmup_steps_down
from vitrail.tasks.optim import build_schedule


@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast_cases("hvt-0.7", "maxvit-0.7", "swin-1.0", "vit-0.7")
def test_groups_hold_every_parameter_once(family, layer_decay):
    model = build(family, 1)
    groups = parameter_groups(model, 0.3, 0.01, layer_decay)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    exempt = model.no_weight_decay()
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if parameter.ndim <= 1 or name in exempt else 0.3)
    assert groups[0]["lr"] == 0.01


def test_layers_before_the_classifier_learn_slower():
    model = vitrail.create_model("vit", img_size=8, patch_size=4, embed_dim=8, depth=3, num_heads=2, num_classes=2)
    rate = {id(p): group["lr"] for group in parameter_groups(model, 0.1, 1.0, 0.5) for p in group["params"]}
    names = {name: rate[id(p)] for name, p in model.named_parameters()}
    assert names["head.weight"] == names["norm.bias"] == 1.0
    assert names["blocks.2.mlp.fc1.weight"] == 0.5
    assert names["blocks.0.attn.qkv.bias"] == 0.125
    assert names["patch_embed.proj.weight"] == names["pos_embed"] == 0.0625


def test_frozen_parameters_are_left_out():
    model = build("vit", 1)
    model.head.weight.requires_grad_(False)
    assert all(p is not model.head.weight for g in parameter_groups(model, 0.1) for p in g["params"])


def test_warmup_and_cosine():
    factor = warmup_cosine(100, 10, 0.05)
    assert [factor(i) for i in range(10)] == pytest.approx([(i + 1) / 11 for i in range(10)])
    for step in (10, 37, 64, 99):
        expected = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90))
        assert factor(step) == pytest.approx(expected)
    assert factor(100) == factor(1000) == pytest.approx(0.05)
    with pytest.raises(ConfigError, match="warm-up"):
        warmup_cosine(10, 10, 0.0)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [parameter], "lr": 0.25}], lr=1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25 / 11)


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "Sequential": lambda model: nn.Sequential(nn.Flatten(0, 0), model),
    "encoder": FeatureEncoder,
    "compiled encoder": lambda model: torch.compile(FeatureEncoder(model), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.fast_cases("hvt-compiled encoder", "maxvit-compiled encoder", "swin-encoder", "vit-encoder")
def test_a_wrapper_has_the_groups_of_the_model_inside(family, wrap):
    model = build(family, 1)
    wrapped = wrap(model)
    found, expected = (parameter_groups(one, 0.1, 0.01, 0.6) for one in (wrapped, model))
    assert [[id(p) for p in group["params"]] for group in found] == [[id(p) for p in g["params"]] for g in expected]
    assert {id(p) for group in found for p in group["params"]} == {id(p) for p in wrapped.parameters()}


def test_parameters_beside_the_model_are_not_left_out():
    both = nn.Sequential(nn.Linear(2, 2), build("vit", 1))
    with pytest.raises(ConfigError, match=r"^0.weight is trained beside the model"):
        parameter_groups(both, 0.1)
    both[0].requires_grad_(False)
    assert parameter_groups(both, 0.1)
    with pytest.raises(ConfigError, match="only models of vitrail can be sorted into groups, not Linear"):
        parameter_groups(nn.Linear(2, 2), 0.1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("layer_decay", 75), ("layer_decay", 0.0), ("layer_decay", -0.5), ("layer_decay", math.nan), ("learning_rate", -1),
     ("learning_rate", math.inf), ("weight_decay", -0.1), ("weight_decay", math.nan)],
)  # fmt: skip
@pytest.mark.fast_cases("layer_decay-nan", "learning_rate-inf", "weight_decay-nan")
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must be .*, got {value!r}$"):
        parameter_groups(build("vit", 1), **{"weight_decay": 0.1, name: value})


@pytest.mark.parametrize(("warmup", "floor"), [(-1, 0.0), (1, -0.1), (1, 1.5), (1, math.nan)])
def test_schedules_out_of_range_are_refused(warmup, floor):
    with pytest.raises(ConfigError, match="must be"):
        warmup_cosine(10, warmup, floor)
    with pytest.raises(ConfigError, match="must be"):
        warmup_steps_down([5], 0.1, warmup, floor)


def _rates(scheduler_of, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = scheduler_of(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("seed", range(3))
def test_steps_are_those_of_torch(seed):
    """By steps as torch's MultiStepLR and StepLR, whose epochs are counted in steps here."""
    rng = random.Random(seed)
    per_epoch, epochs, gamma = rng.randint(2, 7), rng.randint(6, 12), rng.choice([0.1, 0.5])
    milestones = sorted(rng.sample(range(1, epochs), 3))
    common = {"max_epochs": epochs, "gamma": gamma, "warmup_epochs": 0.0, "min_learning_rate": 0.0,
              "learning_rate": 0.5}  # fmt: skip
    config = TrainerConfig(schedule="multistep", milestones=tuple(milestones), **common)
    schedulers = torch.optim.lr_scheduler
    ours = _rates(lambda o: schedulers.LambdaLR(o, build_schedule(config, per_epoch * epochs)), per_epoch * epochs)
    theirs = _rates(lambda o: schedulers.MultiStepLR(o, [m * per_epoch for m in milestones], gamma), per_epoch * epochs)
    assert ours == pytest.approx(theirs, rel=1e-9)
    size = rng.randint(1, 4)
    config = TrainerConfig(schedule="step", step_size=size, **common)
    ours = _rates(lambda o: schedulers.LambdaLR(o, build_schedule(config, per_epoch * epochs)), per_epoch * epochs)
    theirs = _rates(lambda o: schedulers.StepLR(o, size * per_epoch, gamma), per_epoch * epochs)
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_warm_up_floor_and_constant():
    factor = build_schedule(
        TrainerConfig(max_epochs=10, schedule="multistep", milestones=(4, 6, 8), learning_rate=1.0,
                      min_learning_rate=0.01, warmup_epochs=2), 100
    )  # fmt: skip
    assert [factor(step) for step in (0, 20, 39, 40, 60, 80, 99)] == pytest.approx(
        [1 / 21, 1, 1, 0.1, 0.01, 0.01, 0.01]
    )
    constant = build_schedule(TrainerConfig(max_epochs=10, schedule="constant", warmup_epochs=0), 100)
    assert {constant(step) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"milestones": (3,)}, "milestones belongs to trainer.schedule multistep, and it is cosine"),
        ({"gamma": 0.5, "schedule": "constant"}, "gamma belongs to trainer.schedule multistep and step"),
        ({"schedule": "multistep"}, "milestones must be increasing epochs above 0"),
        ({"schedule": "multistep", "milestones": (3, 3)}, "milestones must be increasing"),
        ({"schedule": "step"}, "step_size must be above 0"),
        ({"schedule": "step", "step_size": 2, "gamma": 1.0}, "gamma must be above 0 and below 1"),
    ],
)
def test_schedules_with_unfit_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainerConfig(**settings)
