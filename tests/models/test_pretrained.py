"""Models saved to a folder, and built again from nothing else."""

import itertools
import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import vitrail
from tests.tiers import in_turn
from tests.weights.models import FAMILIES, build, snapshot, unchanged
from vitrail.errors import ConfigError, RunError, WeightsError
from vitrail.models import list_families
from vitrail.models.features_only import FeatureEncoder
from vitrail.runs import ModelCard, RunFolder, StreamCard
from vitrail.runs.trained import write_trained
from vitrail.weights import BandRule

CHANGES = {
    "vit": {"token_learner": {"num_tokens": 3, "layer": 1}, "class_token": False, "global_pool": "avg"},
    "swin": {"window_size": (2, 4), "mask_padding": False},
    "maxvit": {"window_size": None, "img_size": 96, "flavour": "torchvision"},
    "hvt": {"fusion": "concat", "attention": (2, 3), "missing_spectral": "learned", "spectral_patch_size": 8},
}


def _answer(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return model(*(torch.randn(2, *stream.shape, generator=generator) for stream in model.streams))


@pytest.mark.fast_cases("True-vit")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", [True, False])
def test_saved_and_built_again(family, change, tmp_path):
    model = build(family, 1, **(CHANGES[family] if change else {}))
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) * 0.1)
        else:
            value.fill_(7)
    assert vitrail.save_pretrained(model, tmp_path / "deep" / "x") == tmp_path / "deep" / "x"
    assert sorted(p.name for p in (tmp_path / "deep" / "x").iterdir()) == ["model.json", "model.safetensors"]
    for where in (tmp_path / "deep" / "x", str(tmp_path / "deep" / "x"), tmp_path / "deep" / "x" / "model.safetensors"):
        again = vitrail.from_pretrained(where)
        assert not again.training
        assert again.config == model.config
        assert again.name == family
        assert unchanged(again, snapshot(model))
        assert torch.equal(_answer(again), _answer(model))


@pytest.mark.slow
def test_the_variant_is_remembered(tmp_path):
    model = vitrail.create_model("hvt_tiny", num_classes=3, img_size=64)
    model.reset_classifier(4)
    vitrail.save_pretrained(model, tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    assert card["name"] == "hvt_tiny"
    assert card["settings"]["num_classes"] == 4
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == "hvt_tiny"
    assert json.loads(metadata["settings"]) == card["settings"]
    again = vitrail.from_pretrained(tmp_path)
    assert again.name == "hvt_tiny"
    assert again.config == model.config


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_folder_is_a_model(family, tmp_path):
    model = build(family, 1)
    settings = dict(vitrail.models.list_families()[family].test_config)
    stream = StreamCard(("red", "green", "blue"), (0.0,) * 3, (1.0,) * 3, (32, 32))
    card = ModelCard(family, settings, tuple("abcde"), {"image": stream})
    write_trained(RunFolder(tmp_path), model.state_dict(), card)
    assert unchanged(vitrail.from_pretrained(tmp_path), snapshot(model))
    other = build(family, 2)
    vitrail.load_weights(other, tmp_path)
    assert unchanged(other, snapshot(model))


@pytest.mark.parametrize("seed", range(4))
def test_built_again_with_other_settings(seed, tmp_path):
    rng = random.Random(seed)
    old = (8 * rng.randint(1, 6), 8 * rng.randint(1, 6))
    model = build("vit", 1, img_size=old)
    vitrail.save_pretrained(model, tmp_path)
    with pytest.raises(WeightsError, match="new_head=True"):
        vitrail.from_pretrained(tmp_path, num_classes=9)
    with pytest.raises(WeightsError, match="bands="):
        vitrail.from_pretrained(tmp_path, in_chans=4)
    new = (8 * rng.randint(1, 6), 8 * rng.randint(1, 6))
    other = vitrail.from_pretrained(tmp_path, num_classes=9, new_head=True, in_chans=4, bands="mean", img_size=new)
    assert _answer(other).shape == (2, 9)
    wanted = BandRule("mean").apply(model.patch_embed.proj.weight, 4, "image")[0]
    assert torch.equal(other.patch_embed.proj.weight, wanted)
    # At the old size the new positions, resampled back, are not the old ones; the tokens' trunk is.
    assert torch.equal(other.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    smaller = vitrail.from_pretrained(tmp_path, patch_size=4)
    assert smaller.grid == (old[0] // 4, old[1] // 4)


def test_facts_travel(tmp_path):
    model = build("vit", 1)
    vitrail.save_pretrained(model, tmp_path, {"classes": ["ä", "b"], "bands": ["nir"]})
    card = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert card["classes"] == ["ä", "b"]
    assert unchanged(vitrail.from_pretrained(tmp_path), snapshot(model))
    with pytest.raises(ConfigError, match="reserved keys name"):
        vitrail.save_pretrained(model, tmp_path, {"name": "x"})
    with pytest.raises(ConfigError, match="plain values"):
        vitrail.save_pretrained(model, tmp_path, {"classes": {1, 2}})
    assert json.loads((tmp_path / "model.json").read_text(encoding="utf-8")) == card


def test_places_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    for folder in (file, file / "below"):
        with pytest.raises(RunError, match="file"):
            vitrail.save_pretrained(build("vit"), folder)
    assert file.read_text() == "precious"


@pytest.mark.slow_cases('{"name": "swin"}-does not fit|has shape')
@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{half", "is damaged"),
        ("[]", "does not describe a model"),
        ('{"settings": {}}', "it has no name"),
        ('{"name": "vit", "settings": 3}', "its settings are 3"),
        ('{"name": "vit", "settings": {"depth": "two"}}', "depth"),
        ('{"name": "vit", "settings": {"token_learner": 3}}', "token_learner"),
        ('{"name": "vitt"}', "unknown model 'vitt'"),
        ('{"name": "swin"}', "does not fit|has shape"),
    ],
)
def test_damaged_descriptions(tmp_path, card, message):
    vitrail.save_pretrained(build("vit"), tmp_path)
    (tmp_path / "model.json").write_text(card)
    with pytest.raises((WeightsError, ConfigError), match=message):
        vitrail.from_pretrained(tmp_path)


def test_files_that_do_not_say_what_they_are(tmp_path):
    vitrail.save_pretrained(build("vit"), tmp_path)
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match=r"does not say which model it is of.*vitrail weights"):
        vitrail.from_pretrained(tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match="no file of weights at"):
        vitrail.from_pretrained(tmp_path / "none")
    with pytest.raises(ConfigError, match="did you mean 'num_classes'"):
        vitrail.from_pretrained(tmp_path, num_clases=3)


def test_a_model_of_no_family(tmp_path):
    model = build("vit")
    model.config = object()
    with pytest.raises(ConfigError, match="no registered family"):
        vitrail.save_pretrained(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def _norm(model):
    return next((name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm))


def _replace(model, path, part):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, part)


def _other_epsilon(model):
    _norm(model)[1].eps = 1e-3


def _norm_without_bias(model):
    path, norm = _norm(model)
    _replace(model, path, torch.nn.LayerNorm(norm.normalized_shape, bias=False))


def _other_activation(model):
    path = next(name for name, m in model.named_modules() if type(m).__name__ == "Gelu")
    _replace(model, path, torch.nn.ReLU())


def _overlapping(model):
    path, old = next((name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d))
    size, width = old.kernel_size, old.out_channels
    _replace(model, path, torch.nn.Conv2d(old.in_channels, width, size, padding=1, stride=old.stride[0] - 1))


def _own_mixer(model):
    path = next(name for name, _ in model.named_modules() if name.endswith(".attn"))
    _replace(model, path, torch.nn.Identity())


def _own_forward(model):
    path = next(name for name, _ in model.named_modules() if name.endswith(".mlp"))
    mlp = model.get_submodule(path)
    usual = mlp.forward
    mlp.forward = lambda x: 2 * usual(x)


CHANGED_PARTS = {
    "epsilon": (_other_epsilon, "norm.*is LayerNorm.* instead of LayerNorm"),
    "no bias": (_norm_without_bias, "bias is missing"),
    "activation": (_other_activation, "is ReLU instead of Gelu"),
    "overlapping patches": (_overlapping, r"(stride|shape|missing|does not run|instead of)"),
    "own mixer": (_own_mixer, "attn"),
    "own forward": (_own_forward, "mlp gives another output"),
}


@pytest.mark.slow_cases("own mixer-hvt")
@pytest.mark.parametrize(("part", "family"), in_turn(CHANGED_PARTS, FAMILIES))
def test_a_changed_model_is_not_saved_as_what_it_is_not(family, part, tmp_path):
    change, message = CHANGED_PARTS[part]
    model = build(family, 1)
    for parameter in model.parameters():  # so that every part counts
        parameter.data.normal_(std=0.2)
    change(model.train())
    with pytest.raises(ConfigError, match=f"its settings build another one: .*{message}"):
        vitrail.save_pretrained(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert model.training


@pytest.mark.fast_cases("swin", "vit")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_replaced_classifier_is_saved_with_its_classes(family, tmp_path):
    model = build(family, 1).eval()
    path = model.classifier
    _replace(model, path, torch.nn.Linear(model.num_features, 9))
    state = torch.random.get_rng_state()
    vitrail.save_pretrained(model, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = vitrail.from_pretrained(tmp_path)
    assert again.num_classes == 9
    assert torch.equal(_answer(again), _answer(model))
    _replace(model, path, torch.nn.Sequential(torch.nn.Linear(model.num_features, 6), torch.nn.Linear(6, 9)))
    with pytest.raises(ConfigError, match=r"head.*is not part of it"):
        vitrail.save_pretrained(model, tmp_path)


def test_a_model_with_shared_batch_norms_is_saved(tmp_path):
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(build("maxvit", 1)).half()
    model.stages[0].blocks[0].conv.norm1.momentum = 0.3
    vitrail.save_pretrained(model.float(), tmp_path)
    assert unchanged(vitrail.from_pretrained(tmp_path), snapshot(model))


# -- encoders, wrappers and timm's arguments --------------------------------------------------------------


def _levels(encoder):
    generator = torch.Generator().manual_seed(0)
    inner = encoder.model if isinstance(encoder, FeatureEncoder) else encoder
    with torch.no_grad():
        return encoder(*(torch.randn(2, s.chans, *s.size, generator=generator) for s in inner.streams))


@pytest.mark.fast_cases("vit")
@pytest.mark.parametrize("family", FAMILIES)
def test_pretrained_encoders(family, tmp_path):
    model = build(family, 1)
    vitrail.save_pretrained(model, tmp_path / "whole")
    expected = _levels(FeatureEncoder(build(family, 1)))
    settings = list_families()[family].test_config
    loaded = vitrail.create_model(family, **settings, features_only=True).eval()
    report = vitrail.load_weights(loaded, tmp_path / "whole")
    assert set(report.dropped.values()) == {"an encoder has no classifier"}
    assert not report.missing
    again = vitrail.from_pretrained(tmp_path / "whole", features_only=True)
    vitrail.save_pretrained(loaded, tmp_path / "encoder")
    saved = vitrail.from_pretrained(tmp_path / "encoder")
    created = vitrail.create_model(
        family, **settings, features_only=True, checkpoint_path=str(tmp_path / "whole" / "model.safetensors")
    ).eval()
    for encoder in (loaded, again, saved, created):
        assert isinstance(encoder, FeatureEncoder)
        assert all(map(torch.equal, _levels(encoder), expected))
    last = vitrail.from_pretrained(tmp_path / "whole", features_only=True, out_indices=(-1,))
    assert torch.equal(_levels(last)[0], expected[-1])
    vitrail.save_pretrained(nn.DataParallel(last), tmp_path / "last")
    for where in (tmp_path / "last", tmp_path / "last" / "model.safetensors"):
        reloaded = vitrail.from_pretrained(where)
        assert reloaded.feature_info.out_indices == last.feature_info.out_indices
        assert torch.equal(_levels(reloaded)[0], expected[-1])
    assert vitrail.from_pretrained(tmp_path / "last", out_indices=(0,)).feature_info.out_indices == (0,)
    assert not isinstance(vitrail.from_pretrained(tmp_path / "last", features_only=False), FeatureEncoder)


def test_errors_of_a_checkpoint_path_name_options_that_exist(tmp_path):
    settings = list_families()["vit"].test_config
    vitrail.save_pretrained(build("vit", 1, num_classes=5), tmp_path)
    file = str(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"load_weights\(model, FILE, new_head=True\) leaves .* with num_classes=5$"):
        vitrail.create_model("vit", **{**settings, "num_classes": 7}, checkpoint_path=file)
    encoder = vitrail.create_model("vit", **{**settings, "num_classes": 7}, features_only=True, checkpoint_path=file)
    assert encoder.model.num_classes == 0


WRAPPERS = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "DataParallel": nn.DataParallel,
    "Sequential": nn.Sequential,
    "encoder in parallel": lambda model: nn.DataParallel(FeatureEncoder(model)),
}


@pytest.mark.fast_cases("compiled-hvt")
@pytest.mark.parametrize(("wrapper", "family"), list(itertools.product(WRAPPERS, FAMILIES)))
def test_wrapped_models_are_loaded_and_saved_as_the_model_inside(family, wrapper, tmp_path):
    source, model = build(family, 1), build(family, 2)
    wrapped = WRAPPERS[wrapper](model)
    vitrail.load_weights(wrapped, source.state_dict())
    expected = {key: value for key, value in source.state_dict().items() if key in model.state_dict()}
    assert unchanged(model, expected)
    vitrail.save_pretrained(wrapped, tmp_path)
    again = vitrail.from_pretrained(tmp_path)
    assert unchanged(again.model if isinstance(again, FeatureEncoder) else again, expected)


def test_a_module_beside_the_model_is_loaded_past_and_not_saved(tmp_path):
    model = build("vit", 2)
    both = nn.Sequential(nn.BatchNorm2d(3), model)
    vitrail.load_weights(both, build("vit", 1).state_dict())
    assert unchanged(model, build("vit", 1).state_dict())
    with pytest.raises(ConfigError, match=r"holds other modules beside a model .* can be saved; give \[1\]$"):
        vitrail.save_pretrained(both, tmp_path)
    with pytest.raises(ConfigError, match="only models of vitrail can be given weights, not Linear"):
        vitrail.load_weights(nn.Linear(2, 2), {})


@pytest.mark.parametrize("argument", [{"pretrained": True}, {"pretrained_cfg": {"file": "x"}}, {"cache_dir": "x"}])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin", "maxvit", "hvt"])
@pytest.mark.fast_cases("vit_tiny_patch16_224-argument1", "hvt-argument1")
def test_weights_that_come_with_a_library(name, argument):
    with pytest.raises(
        ConfigError, match=r"no weights come with vitrail; use from_pretrained\(.*load_weights\("
    ) as caught:
        vitrail.create_model(name, **argument)
    assert ("hf://timm/vit_tiny_patch16_224.TAG" in str(caught.value)) == name.startswith("vit")
    assert vitrail.create_model("vit", **list_families()["vit"].test_config, pretrained=False, pretrained_cfg=None)


def test_a_checkpoint_path_is_loaded(tmp_path):
    source = build("vit", 1)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    settings = list_families()["vit"].test_config
    assert unchanged(
        vitrail.create_model("vit", **settings, checkpoint_path=tmp_path / "weights.pth"), snapshot(source)
    )
    with pytest.raises(WeightsError, match="no file"):
        vitrail.create_model("vit", **settings, checkpoint_path=str(tmp_path / "none.pth"))
