"""Small models of random settings, and the state of a model to compare with."""

import torch

import vitrail
from vitrail.models import list_families

FAMILIES = sorted(list_families("image"))


def build(family, seed=0, **settings):
    torch.manual_seed(seed)
    return vitrail.create_model(family, **{**list_families()[family].test_config, **settings}).eval()


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def unchanged(model, before):
    after = model.state_dict()
    return list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)


def kernel_names(model):
    return [key for key in type(model).input_kernels if key in model.state_dict()]


def random_size(rng, patch, most=6):
    return (patch * rng.randint(2, most), patch * rng.randint(2, most))
