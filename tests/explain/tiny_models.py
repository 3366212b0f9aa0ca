"""Tiny random models of every family, and inputs of odd sizes for them."""

import torch

import vitrail

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 4, "in_chans": 3}
HVT = {"img_size": 24, "patch_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "num_classes": 4}
SETTINGS = {
    "vit token": ("vit", VIT),
    "vit mean": ("vit", {**VIT, "class_token": False, "global_pool": "avg"}),
    "vit token mean": ("vit", {**VIT, "global_pool": "avg"}),
    "vit learner": ("vit", {**VIT, "token_learner": {"num_tokens": 3, "layer": 2}}),
    "vit learner last": ("vit", {**VIT, "token_learner": {"num_tokens": 3, "layer": 3}, "class_token": False,
                                 "global_pool": "avg"}),
    "vit fuser": ("vit", {**VIT, "token_learner": {"num_tokens": 3, "layer": 1, "fuse": True}}),
    "vit fuser mean": ("vit", {**VIT, "token_learner": {"num_tokens": 3, "layer": 1, "fuse": True},
                               "global_pool": "avg"}),
    "swin": ("swin", {"img_size": 32, "patch_size": 4, "embed_dim": 8, "depths": (1, 2), "num_heads": (2, 4),
                      "window_size": 3, "num_classes": 4}),
    "maxvit": ("maxvit", {"img_size": 32, "stem_width": 8, "embed_dim": (8, 16), "depths": (1, 2), "dim_head": 8,
                          "window_size": 2, "num_classes": 4}),
    "hvt": ("hvt", HVT),
    "hvt two streams": ("hvt", {**HVT, "spectral_chans": 5, "spectral_embed_dim": 12, "spectral_patch_size": 3}),
    "hvt two streams concat": ("hvt", {**HVT, "spectral_chans": 5, "spectral_embed_dim": 12, "fusion": "concat"}),
}  # fmt: skip


def tiny_model(name, seed=0):
    """A model in evaluation mode whose weights are larger than at initialisation, so that classes differ."""
    torch.manual_seed(seed)
    family, settings = SETTINGS[name]
    model = vitrail.create_model(family, **settings)
    gain, noise = (1.0, 0.03) if family == "maxvit" else (1.5, 0.1)  # its convolutions begin large enough
    for parameter in model.parameters():
        parameter.data.mul_(gain).add_(torch.randn_like(parameter), alpha=noise)
    return model.eval()


def tiny_inputs(model, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(21, 18), (19, 23)]
    return tuple(
        torch.randn(batch, stream.chans, *size, generator=generator)
        for stream, size in zip(model.streams, sizes, strict=False)
    )
