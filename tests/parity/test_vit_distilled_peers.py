"""Distilled ViT against timm's: names, logits of each classifier, and their mean."""

import pytest
import torch

import vitrail
from tests.peers import import_peer

pytestmark = pytest.mark.peers


def test_logits_are_those_of_timm():
    timm = import_peer("timm")
    torch.manual_seed(0)
    other = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7, depth=2, img_size=64).eval()
    for parameter in other.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.02)
    model = vitrail.create_model("deit_tiny_distilled_patch16_224", num_classes=7, depth=2, img_size=64).eval()
    report = vitrail.load_weights(model, other.state_dict())
    assert not report.missing
    assert not report.unexpected
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model(x), other(x), atol=1e-5)
        features = model.forward_features(x)
        pooled = other.forward_head(features, pre_logits=True)
        assert torch.allclose(model.forward_head(features, pre_logits=True), pooled, atol=1e-6)
        model.train().set_distilled_training()
        other.train().set_distilled_training()
        for ours, theirs in zip(model(x), other(x), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
