"""ViT with a distillation token: both classifiers, what reads class tokens, and what is refused."""

import pytest
import torch

import vitrail
from vitrail.errors import ConfigError
from vitrail.explain import attention_maps, attention_rollout

SETTINGS = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5,
            "dist_token": True}  # fmt: skip


def test_both_classifiers_in_distilled_training_alone():
    torch.manual_seed(0)
    model = vitrail.create_model("vit", **SETTINGS)
    x = torch.randn(3, 3, 16, 16)
    assert not torch.equal(model.head.weight, model.head_dist.weight)
    assert model(x).shape == (3, 5)
    assert model.set_distilled_training()
    first, second = model.train()(x)
    assert torch.allclose(model.eval()(x), (first + second) / 2, atol=1e-6)
    model.set_distilled_training(False)
    assert model.train()(x).shape == (3, 5)
    plain = vitrail.create_model("vit", **{**SETTINGS, "dist_token": False})
    assert not plain.set_distilled_training()
    assert plain.train()(x).shape == (3, 5)


def test_pooled_features_and_explanations_read_both_tokens():
    model = vitrail.create_model("vit", **SETTINGS).eval()
    x = torch.randn(2, 3, 16, 16)
    features = model.forward_features(x)
    assert features.shape == (2, 18, 16)
    pooled = model.forward_head(features, pre_logits=True)
    assert torch.allclose(pooled, (features[:, 0] + features[:, 1]) / 2)
    assert attention_rollout(model, x).tokens.shape == (2, 4, 4)
    assert attention_maps(model, x).query == "class"


def test_both_classifiers_are_replaced():
    model = vitrail.create_model("vit", **SETTINGS)
    model.reset_classifier(3)
    assert model.head_dist.weight.shape == (3, 16)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 16)
    assert "dist_token" in model.no_weight_decay()


@pytest.mark.parametrize("other", [{"class_token": False, "global_pool": "avg"}, {"num_class_tokens": 2},
                                   {"global_pool": "avg"}, {"fc_norm": True}])  # fmt: skip
def test_unfit_settings_are_refused(other):
    with pytest.raises(ConfigError, match="dist_token stands beside one class token"):
        vitrail.create_model("vit", **SETTINGS, **other)
