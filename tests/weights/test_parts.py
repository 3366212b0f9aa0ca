"""Parts of other libraries' checkpoints that the models here lack: folded, left out with a report, or refused."""

import dataclasses
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import vitrail
from tests.tiers import in_turn
from tests.weights.models import FAMILIES, build, snapshot, unchanged
from vitrail.cli.main import main
from vitrail.errors import WeightsError
from vitrail.models.recognise import recognise
from vitrail.weights.checkpoint import unwrap

# -- distillation ----------------------------------------------------------------------------------------


def _distilled(model, layout):
    """The state of a distilled ViT whose other weights are a model's."""
    state = snapshot(model)
    dim = state["cls_token"].shape[-1]
    token, row = torch.randn(1, 1, dim), torch.randn(1, 1, dim)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], row, state["pos_embed"][:, 1:]], dim=1)
    head = {"weight": torch.randn(5, dim), "bias": torch.randn(5)}
    if layout == "timm":
        return {**state, "dist_token": token, **{f"head_dist.{k}": v for k, v in head.items()}}
    out = {}
    for key, value in state.items():
        new = key.replace("cls_token", "deit.embeddings.cls_token").replace(
            "pos_embed", "deit.embeddings.position_embeddings"
        )
        new = new.replace("patch_embed.proj", "deit.embeddings.patch_embeddings.projection")
        new = new.replace("blocks.", "deit.encoder.layer.").replace("norm1", "layernorm_before")
        new = new.replace("norm2", "layernorm_after").replace("attn.proj", "attention.output.dense")
        new = new.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        new = {"norm.weight": "deit.layernorm.weight", "norm.bias": "deit.layernorm.bias"}.get(new, new)
        new = new.replace("head.", "cls_classifier.")
        if "attn.qkv" in new:
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[new.replace("attn.qkv", f"attention.attention.{name}")] = part
        else:
            out[new] = value
    out["deit.embeddings.distillation_token"] = token
    return {**out, **{f"distillation_classifier.{k}": v for k, v in head.items()}}


@pytest.mark.fast_cases("False-timm", "True-timm")
@pytest.mark.parametrize("layout", ["timm", "huggingface"])
@pytest.mark.parametrize("new_head", [False, True])
def test_distillation_is_left_out_and_reported_as_changing_outputs(layout, new_head, tmp_path, capsys):
    model, other = build("vit", 1), build("vit", 2)
    state = _distilled(model, layout)
    report = vitrail.load_weights(other, state, new_head=new_head)
    assert report.source == layout
    if not new_head:
        assert unchanged(other, snapshot(model))  # the row of the distillation token is the one that is left out
    assert set(report.changes_outputs) == {
        "dist_token", "head_dist.weight", "head_dist.bias", "row 1 of pos_embed",
    }  # fmt: skip
    assert "changes outputs: dropped" in str(report)
    assert recognise(unwrap(state, "x"), "x").inputs[0].grid == (4, 4)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "deit.safetensors")
    settings = ["embed_dim=24", "depth=2", "num_heads=2", "img_size=32", "patch_size=8", "num_classes=5"]
    main(["weights", str(tmp_path / "deit.safetensors"), "--model", "vit", *(f"--set={word}" for word in settings)])
    assert "changes outputs: dropped dist_token" in capsys.readouterr().out


def test_distilled_positions_are_resampled_without_the_row():
    small, other = build("vit", 1), build("vit", 2, img_size=48)
    expected = build("vit", 3, img_size=48)
    vitrail.load_weights(other, _distilled(small, "timm"))
    vitrail.load_weights(expected, small.state_dict())
    assert unchanged(other, snapshot(expected))


@pytest.mark.parametrize("layout", ["timm", "huggingface"])
def test_a_model_with_the_token_keeps_distillation(layout):
    """The model with the setting has all of it, and the mean of both classifiers as logits."""
    plain = build("vit", 1)
    state = _distilled(plain, layout)
    model = build("vit", 2, dist_token=True)
    report = vitrail.load_weights(model, state)
    assert not report.changes_outputs
    assert not report.dropped
    token = next(value for key, value in state.items() if key.endswith(("dist_token", "distillation_token")))
    assert torch.equal(model.dist_token, token)
    x = torch.randn(2, 3, 32, 32)
    features = model.eval().forward_features(x)
    expected = (model.head(features[:, 0]) + model.head_dist(features[:, 1])) / 2
    assert torch.allclose(model(x), expected, atol=1e-6)
    # New classes: both classifiers start afresh.
    fresh = build("vit", 3, dist_token=True, num_classes=7)
    report = vitrail.load_weights(fresh, state, new_head=True)
    assert set(report.new_head) == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}


@pytest.mark.parametrize("layout", ["timm", "huggingface"])
def test_distilled_weights_are_recognised_as_distilled(layout):
    state = _distilled(build("vit", 1), layout)
    facts = recognise(unwrap(state, "x"), "x")
    assert facts.family == "vit"
    assert facts.settings["dist_token"] is True
    assert facts.inputs[0].grid == (4, 4)


# -- refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "shape", "setting"),
    [
        ("reg_token", (1, 4, 24), "reg_tokens=4"),
        # DINOv2's name: its table has no positions of register tokens.
        ("register_tokens", (1, 4, 24), "reg_tokens=4, no_embed_class=true"),
        ("blocks.0.ls1.gamma", (24,), "init_values=1e-05"),
        ("blocks.0.gamma_1", (24,), "init_values=1e-05"),
        ("blocks.0.attn.q_norm.weight", (12,), "qk_norm=true"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "teacher."])
@pytest.mark.fast_cases(
    "-reg_token-shape0-reg_tokens=4",
    "-blocks.0.ls1.gamma-shape2-init_values=1e-05",
    "-blocks.0.attn.q_norm.weight-shape4-qk_norm=true",
    "teacher.-register_tokens-shape1-reg_tokens=4, no_embed_class=true",
)
def test_other_architectures_are_refused_with_the_settings_of_theirs(key, shape, setting, wrapper):
    model = build("vit", 2)
    before = snapshot(model)
    state = {wrapper + name: value for name, value in {**build("vit", 1).state_dict(), key: torch.zeros(shape)}.items()}
    with pytest.raises(WeightsError, match=rf"[Bb]uild the model with {setting}, as that of the weights"):
        vitrail.load_weights(model, state, new_head=True)
    assert unchanged(model, before)


# -- training --------------------------------------------------------------------------------------------

TRAINING = [
    "criterion.weight", "loss.log_vars", "contrastive_loss.queue", "projection_head.0.weight",
    "projection_head.1.bias", "projector.fc.weight", "proj_head.weight", "predictor.0.weight", "prototypes.weight",
    "mask_token", "decoder.0.weight", "decoder_embed.weight", "decoder_pos_embed",
    "decoder_blocks.0.attn.qkv.weight", "logit_scale", "temperature", "queue", "queue_ptr", "center", "n_averaged",
    "train_acc.confmat", "val_metrics.f1.tp", "pixel_mean", "std", "normalize.mean",
]  # fmt: skip


@pytest.mark.fast_cases("-swin")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wrapped", ["", "model."])
def test_what_training_scripts_keep_beside_a_model_is_left_out(family, wrapped):
    model, other = build(family, 1), build(family, 2)
    extra = {key: torch.zeros(2, 3) for key in TRAINING if key not in model.state_dict()}
    state = {wrapped + key: value for key, value in {**model.state_dict(), **extra}.items()}
    report = vitrail.load_weights(other, state)
    assert unchanged(other, snapshot(model))
    assert set(report.dropped) == set(extra)
    assert not report.changes_outputs
    assert recognise(unwrap(state, "x"), "x").family == family


PARTS = ["norm_pre.weight", "fc_norm.weight", "rope.freqs", "blocks.0.adapter.weight", "extra"]


@pytest.mark.parametrize(("key", "family"), in_turn(PARTS, FAMILIES))
def test_what_may_take_part_in_the_logits_is_refused(family, key):
    model = build(family, 2)
    before = snapshot(model)
    with pytest.raises(WeightsError, match=f"1 unexpected .{key}. keys .* allow_unexpected="):
        vitrail.load_weights(model, {**build(family, 1).state_dict(), key: torch.zeros(4)})
    assert unchanged(model, before)


# -- the research code's projection between streams of unequal width -------------------------------------


class _Fusion(nn.Module):
    """The fusion as the research code computes it, with torch's own attention."""

    def __init__(self, dim, context_dim, heads):
        super().__init__()
        self.project = nn.Linear(context_dim, dim)
        self.prompt = nn.Parameter(torch.randn(1, 1, dim))
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x, context):
        context = self.project(context) + self.prompt
        x = self.norm1(x + self.attention(x, context, context, need_weights=False)[0])
        return self.norm2(x + self.ffn(x))


def _research_names(model, fusion):
    """A model's encoders and head under the research code's names, with another fusion."""
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith("fusion."):
            continue
        stream, _, rest = key.partition(".")
        if stream in ("rgb", "spectral") and rest.startswith("stages."):
            _, index, rest = rest.split(".", 2)
            if rest.startswith("downsample."):
                index, rest = int(index) - 1, rest.replace("downsample.", "downsample_layer.")
            state[f"{stream}_stages.{index}.{rest}"] = value
        elif stream in ("rgb", "spectral"):
            state[f"norm_{stream}_final_encoder.{rest[5:]}" if rest.startswith("norm.") else f"{stream}_{rest}"] = value
        else:
            state[key.replace("head_norm.", "classifier_head_norm.").replace("head.", "classifier_head.")] = value
    for key, value in fusion.state_dict().items():
        new = key.replace("project.", "spectral_to_dfca_proj.")
        new = (
            new
            if new != key
            else "dfca_module." + key.replace("prompt", "disease_mask_param").replace("attention.", "cross_attention.")
        )
        state[new] = value.clone()
    return state


@pytest.mark.fast_cases("4")
@pytest.mark.parametrize("seed", range(6))
def test_the_projection_of_the_research_code_is_folded_exactly(seed):
    rng = random.Random(seed)
    heads = rng.choice([1, 2, 4])
    width, spectral = 8 * rng.choice([2, 3]), 8 * rng.choice([1, 4])
    settings = {"embed_dim": width, "spectral_embed_dim": spectral, "fusion_heads": heads, "num_heads": (2, 4)}
    model, original = build("hvt", 1, **settings), build("hvt", 2, **settings)
    torch.manual_seed(seed)
    reference = _Fusion(2 * width, 2 * spectral, heads).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    state = _research_names(original, reference)
    assert state["spectral_to_dfca_proj.weight"].shape == (2 * width, 2 * spectral)
    report = vitrail.load_weights(model, state)
    assert report.source == "hvit"
    assert not report.missing
    assert any("folded spectral_to_dfca_proj" in note for note in report.notes)
    seen = {}
    model.fusion.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs, output=output))
    with torch.no_grad():
        model(*(torch.randn(2, *stream.shape) for stream in model.streams))
        x, context = (tokens.flatten(1, 2) for tokens in seen["inputs"])
        assert (reference(x, context) - seen["output"].flatten(1, 2)).abs().max() < 1e-5
        # In double precision nothing but rounding is left.
        wide = reference.double()(x.double(), context.double())
        exact = vitrail.create_model("hvt", **dataclasses.asdict(model.config)).double().eval()
        vitrail.load_weights(exact, {key: value.double() for key, value in state.items()})
        ours = exact.fusion(*(tokens.double() for tokens in seen["inputs"])).flatten(1, 2)
        assert (wide - ours).abs().max() < 1e-12
    assert not model.fusion.prompt.any()
    facts = recognise(unwrap(state, "x"), "x")
    assert (facts.family, facts.source) == ("hvt", "hvit")


def test_a_projection_of_other_widths_is_one_error():
    settings = {"embed_dim": 16, "spectral_embed_dim": 8}
    original = build("hvt", 1, **settings)
    state = _research_names(original, _Fusion(32, 16, 2))
    state["spectral_to_dfca_proj.weight"] = torch.zeros(24, 16)
    with pytest.raises(WeightsError, match="cannot be read as hvit"):
        vitrail.load_weights(build("hvt", 2, **settings), state)
