"""Models as the modules that other libraries expect: timm's protocol, torch.fx, Grad-CAM, encoders, HF's Trainer."""

import random

import pytest
import torch
from torch import nn

import vitrail
from tests.models.test_module import CASES, build, inputs_of
from tests.peers import import_peer
from vitrail.explain import explain
from vitrail.models import list_families

pytestmark = pytest.mark.peers

ONE_STREAM = [case for case in CASES if not case.startswith("hvt") or case == "hvt of one stream"]
# Four levels at the strides that decoders expect of a pyramid.
PYRAMIDS = {
    "swin": {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 4, "patch_size": 4},
    "maxvit": {"stem_width": 8, "embed_dim": (8, 16, 16, 24), "depths": (1, 1, 1, 1), "dim_head": 8, "window_size": 2},
    "hvt": {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "patch_size": 4},
}
VIT = {"patch_size": 16, "embed_dim": 24, "depth": 4, "num_heads": 3}


@pytest.fixture(scope="module")
def timm():
    module = import_peer("timm")
    import_peer("torchvision")
    for family, settings in {**PYRAMIDS, "vit": VIT}.items():
        _register(module, family, {"img_size": 64, **settings})
    return module


def _register(timm, family, settings):
    """What a user writes so that timm.create_model, and what is built on it, finds a model of vitrail."""

    def make(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **changes):
        return vitrail.create_model(family, **{**settings, **changes})

    make.__name__, make.__module__ = f"vitrail_{family}", __name__
    timm.models.register_model(make)


# The logic of timm 1.0.31's tests/test_models.py, written anew.


@pytest.mark.parametrize("case", CASES)
def test_forward_and_backward(case):
    model = build(case)
    logits = model(*inputs_of(model, 2))
    logits.mean().backward()
    assert logits.shape == (2, 5)
    assert torch.isfinite(logits).all()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_the_default_configuration(case):
    model = build(case).eval()
    cfg, inputs = model.default_cfg, inputs_of(model, 1)
    state = model.state_dict()
    assert set(cfg) >= {"url", "num_classes", "input_size", "pool_size", "mean", "std", "first_conv", "classifier"}
    assert f"{cfg['first_conv']}.weight" in state
    assert f"{cfg['classifier']}.weight" in state
    assert cfg["input_size"] == tuple(inputs[0].shape[1:])
    with torch.no_grad():
        features = model.forward_features(*inputs)
        assert model.get_classifier().out_features == model.num_classes
        pre_logits = model.forward_head(features, pre_logits=True)
        assert pre_logits.shape == (1, model.head_hidden_size)
        model.reset_classifier(0)
        assert model(*inputs).shape == pre_logits.shape
        model.reset_classifier(0, "")
        assert model(*inputs).ndim == features.ndim
        model.reset_classifier(7, global_pool="avg")
        assert model(*inputs).shape == (1, 7)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_forward_intermediates(timm, case):
    model = build(case).eval()
    inputs = inputs_of(model, 1)
    feature_info = model.feature_info
    if len(model.streams) == 1:
        feature_info = timm.models.FeatureInfo(model.feature_info, tuple(range(len(model.feature_info)))).info
    features, maps = model.forward_intermediates(*inputs, output_fmt="NCHW")
    assert len(maps) == len(feature_info)
    for level, info in zip(maps, feature_info, strict=True):
        assert level.shape[1] == info["num_chs"]
        assert level.shape[2] == inputs[0].shape[2] // info["reduction"]
    assert torch.equal(model.forward_head(features), model(*inputs))
    last = min(2, len(maps))
    for pair in model.forward_intermediates(*inputs, indices=last, return_prefix_tokens=True, intermediates_only=True):
        assert isinstance(pair, tuple) == bool(model.num_prefix_tokens)


@torch.no_grad()
@pytest.mark.parametrize("case", ONE_STREAM)
def test_timms_feature_networks(timm, case):
    levels = len(build(case).feature_info)
    for indices in {tuple(range(levels)), (levels - 1,)}:
        model = build(case).eval()
        inputs, expected = inputs_of(model), model.forward_intermediates(*inputs_of(model), intermediates_only=True)
        for kind in ("FeatureGetterNet", "FeatureGraphNet", "FeatureHookNet"):
            settings = {"default_hook_type": "forward"} if kind == "FeatureHookNet" else {}
            network = getattr(timm.models._features, kind, None) or getattr(timm.models, kind)
            maps = network(build(case).eval(), indices, **settings)(*inputs)
            for level, index in zip(maps, indices, strict=True):
                assert level.numel() >= expected[index].numel() or "fuser" in case
            if kind == "FeatureGetterNet":
                assert all(torch.equal(level, expected[i]) for level, i in zip(maps, indices, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_torchvision_extracts_blocks_attention_and_mlps(case):
    import_peer("torchvision")
    from torchvision.models.feature_extraction import create_feature_extractor

    model = build(case).eval()
    inputs = inputs_of(model)
    seen, parts = {}, []
    for name, module in model.named_modules():
        inside, _, last = name.rpartition(".")
        # Steps that depend on the size of the map are one node: attention, embedding, merging, TokenLearner.
        opaque = ("token_learners", "token_fusers", "stem.", "embed.", "downsample.", "attn.", "attn_pool.")
        whole = any(part in name for part in opaque)
        if not whole and (last in ("attn", "mlp", "fc1", "conv", "conv1_1x1", "norm1") or inside.endswith("blocks")):
            parts.append(name)
            module.register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
    model(*inputs)
    expected = dict(seen)
    # torchvision gives a node to one name, and the last node of a stage is that of its last block.
    blocks = [name for name in parts if name.rpartition(".")[0].endswith("blocks")]
    levels = [info.name for info in model.feature_info]
    for names in (blocks, sorted(set(parts) - set(blocks)), levels):
        extracted = create_feature_extractor(model, names)(*inputs)
        assert sorted(extracted) == sorted(names)
        for name, value in extracted.items():
            torch.testing.assert_close(value, expected.get(name, value), rtol=1e-4, atol=1e-5)


# Encoders for segmentation.


@pytest.mark.parametrize("decoder", ["Unet", "UnetPlusPlus", "FPN", "MAnet", "Linknet", "UPerNet", "Segformer"])
@pytest.mark.parametrize("family", PYRAMIDS)
def test_segmentation_models_take_timm_names(timm, family, decoder):
    smp = import_peer("segmentation_models_pytorch")
    rng = random.Random(f"{family}{decoder}")
    bands, classes, batch = rng.randint(1, 9), rng.randint(1, 4), rng.randint(2, 3)
    height, width = (32 * rng.randint(2, 4) for _ in range(2))
    network = getattr(smp, decoder)(f"tu-vitrail_{family}", encoder_weights=None, in_channels=bands, classes=classes)
    masks = network(torch.rand(batch, bands, height, width))
    assert masks.shape == (batch, classes, height, width)
    masks.square().mean().backward()
    assert sum(bool(p.grad is not None and p.grad.any()) for p in network.encoder.parameters()) > 10


def test_segmentation_transformer_over_vit(timm):
    smp = import_peer("segmentation_models_pytorch")
    network = smp.DPT("tu-vitrail_vit", encoder_weights=None, in_channels=4, classes=2)
    masks = network(torch.rand(2, 4, 64, 64))
    assert masks.shape == (2, 2, 64, 64)
    masks.mean().backward()


@pytest.mark.parametrize("case", CASES)
def test_torchvisions_pyramid_network_over_every_family(case):
    import_peer("torchvision")
    from torchvision.ops import FeaturePyramidNetwork

    name, changes = CASES[case]
    rng = random.Random(case)
    bands = rng.randint(1, 7)
    settings = {**list_families()[name].test_config, **changes, "in_chans": bands}
    encoder = vitrail.create_model(name, features_only=True, **settings)
    inputs = [torch.rand(2, s.chans, 40, 48) for s in encoder.model.streams]
    pyramid = FeaturePyramidNetwork(encoder.feature_info.channels(), 8)
    maps = pyramid({str(i): level for i, level in enumerate(encoder(*inputs))})
    sum(level.square().mean() for level in maps.values()).backward()
    assert {level.shape[1] for level in maps.values()} == {8}


# Class activation maps.


class _Image(nn.Module):
    """A model of two streams as one of the image alone."""

    def __init__(self, model, spectral):
        super().__init__()
        self.model, self.spectral = model, spectral

    def forward(self, x):
        return self.model(x, self.spectral[: len(x)])


def _as_map(output):
    if output.ndim == 3:
        side = int(output.shape[1] ** 0.5)  # the grids here are squares
        output = output[:, -side * side :].reshape(len(output), side, side, -1)
        return output.permute(0, 3, 1, 2)
    return output.permute(0, 3, 1, 2)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam", "eigencam"])
@pytest.mark.parametrize("case", CASES)
def test_class_activation_maps_equal_pytorch_grad_cam(case, method):
    cam = import_peer("pytorch_grad_cam")
    classes = {"gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "layercam": "LayerCAM", "eigencam": "EigenCAM"}
    model = build(case).eval()
    inputs = inputs_of(model, 2)
    ours = explain(model, inputs, method, **({} if method == "eigencam" else {"target": [1, 3]}))
    network = _Image(model, inputs[1]) if len(inputs) == 2 else model
    # With a class token the patches of the last block are not read: the block before is, as in its documentation.
    name = _target_layer(model)
    transform = None if model.channels_first else _as_map
    targets = [cam.utils.model_targets.ClassifierOutputTarget(c) for c in (1, 3)]
    layers = [model.get_submodule(name)]
    with getattr(cam, classes[method])(network, layers, reshape_transform=transform) as tool:
        theirs = torch.from_numpy(tool(input_tensor=inputs[0], targets=targets))
    assert theirs.shape == ours.map.shape
    assert torch.isfinite(theirs).all()
    if method in ("gradcam", "layercam") and "fuser" not in case:
        # Theirs is scaled to 0..1 before it is interpolated by OpenCV.
        a, b = ours.map.flatten(1), theirs.flatten(1)
        for x, y in zip(a, b, strict=True):
            if float(x.max()) > 0:
                assert torch.corrcoef(torch.stack([x, y]))[0, 1] > 0.9


def _target_layer(model):
    names = [info.name for info in model.feature_info]
    own = [name for name in names if not name.startswith("spectral.")]
    return own[
        -2 if model.global_pool == "token" and len(own) > 1 and own[-1] == f"blocks.{len(model.blocks) - 1}" else -1
    ]


# Hugging Face's Trainer.


class _Labelled(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def activation_checkpointing_enable(self, **settings):
        self.model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, **settings):
        self.model.gradient_checkpointing_enable(**settings)

    def forward(self, pixel_values, labels=None, spectral=None):
        logits = self.model(pixel_values) if spectral is None else self.model(pixel_values, spectral)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", sorted(list_families("image")))
def test_hugging_faces_trainer(name, checkpointing, tmp_path):
    import_peer("accelerate")
    transformers = import_peer("transformers")
    safetensors = pytest.importorskip("safetensors.torch")
    model = build(name)
    names = ("pixel_values", "spectral")
    rows = [
        {**{n: x[0] for n, x in zip(names, inputs_of(model, 1, seed), strict=False)}, "labels": seed % 5}
        for seed in range(8)
    ]
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        disable_tqdm=True, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = transformers.Trainer(_Labelled(model), settings, train_dataset=rows)
    trainer.train()
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    saved = safetensors.load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    again = build(name)
    again.load_state_dict({key.removeprefix("model."): value for key, value in saved.items()})
    inputs = inputs_of(model)
    assert torch.equal(again.eval()(*inputs), model.eval()(*inputs))


@pytest.mark.parametrize("report_to", [[], ["tensorboard"]], ids=["no log", "tensorboard"])
@pytest.mark.parametrize("name", sorted(list_families("image")))
def test_hugging_faces_trainer_of_the_model_itself(name, report_to, tmp_path):
    import_peer("accelerate")
    transformers = import_peer("transformers")

    class Trainer(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            labels = inputs.pop("labels")
            logits = model(**inputs)
            loss = nn.functional.cross_entropy(logits, labels)
            return (loss, {"logits": logits}) if return_outputs else loss

    model = build(name)
    names = ["image", "spectral"] if len(model.streams) == 2 else ["x"]
    rows = [
        {**{n: x[0] for n, x in zip(names, inputs_of(model, 1, seed), strict=True)}, "labels": seed % 5}
        for seed in range(4)
    ]
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, eval_steps=1, eval_strategy="steps", report_to=report_to,
        use_cpu=True, per_device_train_batch_size=2, load_best_model_at_end=True, gradient_checkpointing=True,
        bf16=True, label_names=["labels"], disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.predict(rows).predictions.shape == (4, 5)
