"""Settings of other types and values without meaning are one-line errors, never a guess."""

import copy
import dataclasses
import json
import pickle
import typing

import pytest

import vitrail
from vitrail.errors import ConfigError
from vitrail.models import list_families

WRONG = [
    ("vit", {"img_size": 32.0}, "img_size must be a whole number or a pair of whole numbers, got 32.0"),
    ("swin", {"img_size": None}, "img_size"),
    ("swin", {"window_size": 3.5}, "window_size"),
    ("hvt", {"depths": 2}, "depths must be a list of whole numbers, got 2"),
    ("hvt", {"num_heads": None}, "num_heads"),
    ("hvt", {"attention": None}, "attention must be 'global' or a whole number or a pair"),
    ("hvt", {"attention": 3.0}, "attention"),
    ("vit", {"mlp_ratio": "4"}, "mlp_ratio must be a finite number, got '4'"),
    ("swin", {"drop_path_rate": "0.1"}, "drop_path_rate"),
    ("vit", {"token_learner": {"layer": 1.0}}, r"token_learner\.layer must be a whole number or none, got 1\.0"),
    ("vit", {"token_learner": {"fuse": "no"}}, r"token_learner\.fuse must be true or false, got 'no'"),
    ("vit", {"token_learner": {"layers": 1}}, r"no setting 'token_learner\.layers'.*layer"),
    ("swin", {"mlp_ratio": float("nan")}, "mlp_ratio"),
    ("maxvit", {"mlp_ratio": float("inf")}, "mlp_ratio"),
    ("swin", {"mlp_ratio": 1e-4}, "width of at least 1"),
    ("hvt", {"mlp_ratio": 1e-4}, "width of at least 1"),
    ("vit", {"class_token": "false"}, "class_token must be true or false"),
    ("swin", {"qkv_bias": "false"}, "qkv_bias"),
    ("swin", {"mask_padding": 1}, "mask_padding"),
    ("maxvit", {"embed_dim": (3, 3), "depths": (1, 1), "dim_head": 3}, "embed_dim must be at least 4"),
    ("maxvit", {"flavour": "keras"}, "flavour must be 'tf' or 'torchvision'"),
    ("hvt", {"fusion": True}, "fusion"),
    ("vit", {"num_classes": True}, "num_classes"),
]


@pytest.mark.parametrize(("family", "settings", "message"), WRONG)
def test_is_refused(family, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        vitrail.create_model(family, **settings)
    assert "\n" not in str(caught.value)


def test_lists_and_mappings_will_do():
    model = vitrail.create_model(
        "vit", img_size=[16, 24], patch_size=8, embed_dim=16, depth=2, num_heads=2, drop_path_rate=0,
        token_learner={"num_tokens": 2, "layer": 1},
    )  # fmt: skip
    assert model.config.img_size == (16, 24)
    assert vitrail.create_model("vit", **{**vars(model.config)}).config == model.config


@pytest.mark.parametrize("name", sorted(list_families()))
def test_configs_stand_where_trainer_expects_its_own(name):
    model = vitrail.create_model(name, **list_families()[name].test_config)
    config = copy.deepcopy(model.config)
    model.config.use_cache = False
    assert model.config == config
    assert json.loads(model.config.to_json_string()) == json.loads(json.dumps(model.config.to_dict()))
    assert "use_cache" not in model.config.to_dict()
    assert pickle.loads(pickle.dumps(model.config)) == config
    for wrong in ("num_classes", "num_head"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(model.config, wrong, 3)


def _choices():
    for name, family in list_families().items():
        for setting, hint in typing.get_type_hints(family.config).items():
            if typing.get_origin(hint) is typing.Literal:
                yield name, setting, typing.get_args(hint)


@pytest.mark.parametrize("value", ["bilinear", 1, None, ["avg"]])
@pytest.mark.parametrize(("name", "setting", "choices"), _choices())
@pytest.mark.fast_cases(
    "hvt-global_pool-choices1-bilinear",
    "maxvit-global_pool-choices5-bilinear",
    "swin-global_pool-choices9-bilinear",
    "swin3d-global_pool-choices11-bilinear",
    "vit-patch_embed-choices13-bilinear",
    "vivit-attention-choices18-bilinear",
    "vn_transformer-global_pool-choices27-bilinear",
    "vnt-global_pool-choices28-bilinear",
)
def test_a_config_refuses_values_that_are_none_of_its_choices(name, setting, choices, value):
    family = list_families()[name]
    with pytest.raises(ConfigError) as caught:
        family.config(**{**family.test_config, setting: value})
    assert str(caught.value) == f"{setting} must be {' or '.join(map(repr, choices))}, got {value!r}"
