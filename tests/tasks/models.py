"""Tiny models and batches for the tests of the tasks."""

import torch

import vitrail
from vitrail.data.normalization import NormalizeStreams
from vitrail.models import list_families

# A model of each family, without a classifier, as pre-training has it; the fusions of HVT and a ViT with a fuser too.
SETTINGS = {
    "vit": {},
    "vit_pooled": {"class_token": False, "global_pool": "avg"},
    "vit_fuser": {"token_learner": {"num_tokens": 3, "fuse": True}},
    "swin": {},
    "maxvit": {},
    "hvt": {"spectral_chans": 0, "spectral_embed_dim": None},
    "hvt_two": {"fusion_heads": 2},
    "hvt_concat": {"fusion": "concat", "spectral_patch_size": 8},
}


def tiny(name, seed=0, **settings):
    family = list_families()[name.split("_")[0]]
    torch.manual_seed(seed)
    return vitrail.create_model(
        family.name, **{**family.test_config, **SETTINGS.get(name, {}), "num_classes": 0, **settings}
    )


def statistics(model):
    return NormalizeStreams({s.name: ([0.4] * s.chans, [0.3] * s.chans) for s in model.streams})


def batch_for(model, number=3, size=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        s.name: torch.rand(number, s.chans, *(size or s.size), generator=generator)
        for s in model.streams
    }  # fmt: skip
