"""Tiny random models of every family, and inputs of odd sizes for them."""

import torch

import vitrail
from vitrail.models.base import VisionModel
from vitrail.models.facts import Stream

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


class KnownModel(VisionModel):
    """Two classes; the logit of class 1 is the mean of some pixels of the first band times ``gain``, that of 0 is 0."""

    def __init__(self, mask, bands=3, gain=8.0):
        super().__init__()
        self.mask, self.bands, self.gain = mask, bands, gain
        self.num_classes, self.feature_info, self.config = 2, [], None
        self.scale = torch.nn.Parameter(torch.ones(()))

    @property
    def streams(self):
        return (Stream("image", self.bands, tuple(self.mask.shape)),)

    def forward(self, x):
        logit = self.gain * self.scale * (x[:, 0] * self.mask).sum((1, 2)) / self.mask.sum()
        return torch.stack([torch.zeros_like(logit), logit], dim=1)

    ends = property(lambda self: ())
    embed = forward_embedded = forward_features = run_levels = None
    forward_head = reset_classifier = set_grad_checkpointing = no_weight_decay = layer_groups = None


def known_case(size=24, batch=12, seed=0):
    """A model that sees a square alone, images in which it is bright, and where it is."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(size, size)
    top, left = size // 6, size // 2
    mask[top : top + size // 4, left : left + size // 4] = 1
    images = 0.3 * torch.randn(batch, 3, size, size, generator=generator)
    images[:, 0] += mask
    return KnownModel(mask), images, mask.bool().expand(batch, -1, -1)
