"""Checkpoints by the names of DINO, DINOv2 and DeiT, of their authors and of transformers.

Names: facebookresearch/dino, vision_transformer.py and main_dino.py; facebookresearch/dinov2,
dinov2/models/vision_transformer.py and dinov2/layers; transformers, convert_dinov2_to_hf.py and
convert_dinov2_with_registers_to_hf.py.
"""

import argparse

import pytest
import torch
import torch.nn.functional as F

import vitrail
from vitrail.errors import WeightsError
from vitrail.models.recognise import recognise
from vitrail.weights.read import unwrap

DIM, HEADS, DEPTH, PATCH, GRID = 16, 2, 2, 4, 5
SMALL = {"embed_dim": DIM, "num_heads": HEADS, "depth": DEPTH, "patch_size": PATCH, "img_size": PATCH * GRID}
DINOV2 = {"init_values": 1e-5}
GATED = {"mlp_layer": "swiglu", "mlp_ratio": 1.5}
REGISTERS = {"reg_tokens": 4, "no_embed_class": True}


def encoder(dim=DIM, depth=DEPTH, patch=PATCH, grid=GRID, *, scale=False, gated=False, registers=0, make=torch.randn):
    """Tensors of DINO's encoder by its authors' names; with the options those of DINOv2."""
    state = {
        "cls_token": make(1, 1, dim),
        "pos_embed": make(1, grid * grid + 1, dim),
        "patch_embed.proj.weight": make(dim, 3, patch, patch),
        "patch_embed.proj.bias": make(dim),
        "norm.weight": make(dim),
        "norm.bias": make(dim),
    }
    if scale:
        state["mask_token"] = make(1, dim)
    if registers:
        state["register_tokens"] = make(1, registers, dim)
    hidden = dim * 3 // 2 if gated else dim * 4
    first, last = ("w12", "w3") if gated else ("fc1", "fc2")
    layers = {
        "attn.qkv": (3 * dim, dim),
        "attn.proj": (dim, dim),
        f"mlp.{first}": (2 * hidden if gated else hidden, dim),
        f"mlp.{last}": (dim, hidden),
    }
    for i in range(depth):
        for name in ("norm1", "norm2"):
            state |= {f"blocks.{i}.{name}.weight": make(dim), f"blocks.{i}.{name}.bias": make(dim)}
        for name, shape in layers.items():
            state |= {f"blocks.{i}.{name}.weight": make(*shape), f"blocks.{i}.{name}.bias": make(shape[0])}
        if scale:
            state |= {f"blocks.{i}.ls{part}.gamma": make(dim) for part in (1, 2)}
    return state


def dino_head(make=torch.randn):
    return {
        "mlp.0.weight": make(8, DIM),
        "mlp.0.bias": make(8),
        "mlp.2.weight": make(4, 8),
        "mlp.2.bias": make(4),
        "last_layer.weight_g": make(9, 1),
        "last_layer.weight_v": make(9, 4),
    }


def to_transformers(state):
    """Rename as transformers' conversion of DINOv2 does."""
    names = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "attn.proj": "attention.output.dense",
        "blocks": "encoder.layer",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "w12": "weights_in",
        "w3": "weights_out",
    }
    out = {}
    for key, value in state.items():
        if key in ("cls_token", "mask_token", "register_tokens"):
            out[f"embeddings.{key}"] = value
            continue
        if key == "pos_embed":
            out["embeddings.position_embeddings"] = value
            continue
        if key.startswith("norm."):
            out[f"layernorm.{key.removeprefix('norm.')}"] = value
            continue
        if ".attn.qkv." in key:
            block, kind = key.split(".")[1], key.rpartition(".")[2]
            for part, rows in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = rows
            continue
        for old, new in names.items():
            key = key.replace(old, new)
        out[key] = value
    return out


def reference_features(state, x, gated=False):
    """Class token after the last norm, as the authors' forward computes it."""
    tokens = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    tokens = tokens.flatten(2).transpose(1, 2)
    tokens = torch.cat([state["cls_token"].expand(len(x), -1, -1), tokens], dim=1) + state["pos_embed"]
    if "register_tokens" in state:
        tokens = torch.cat([tokens[:, :1], state["register_tokens"].expand(len(x), -1, -1), tokens[:, 1:]], dim=1)

    def linear(name, value):
        return F.linear(value, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, value):
        return F.layer_norm(value, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    for i in range(DEPTH):
        block = f"blocks.{i}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens))
        q, k, v = qkv.unflatten(-1, (3, HEADS, DIM // HEADS)).permute(2, 0, 3, 1, 4)
        attended = ((q @ k.transpose(-2, -1)) * (DIM // HEADS) ** -0.5).softmax(-1) @ v
        branch = linear(f"{block}.attn.proj", attended.transpose(1, 2).flatten(2))
        tokens = tokens + branch * state.get(f"{block}.ls1.gamma", 1)
        hidden = norm(f"{block}.norm2", tokens)
        if gated:
            first, second = linear(f"{block}.mlp.w12", hidden).chunk(2, dim=-1)
            branch = linear(f"{block}.mlp.w3", F.silu(first) * second)
        else:
            branch = linear(f"{block}.mlp.fc2", F.gelu(linear(f"{block}.mlp.fc1", hidden)))
        tokens = tokens + branch * state.get(f"{block}.ls2.gamma", 1)
    return norm("norm", tokens)[:, 0]


KINDS = {
    "dino": ({}, {}),
    "dinov2": ({"scale": True}, DINOV2),
    "dinov2 giant": ({"scale": True, "gated": True}, DINOV2 | GATED),
    "dinov2 registers": ({"scale": True, "registers": 4}, DINOV2 | REGISTERS),
    "dinov2 giant registers": ({"scale": True, "gated": True, "registers": 4}, DINOV2 | GATED | REGISTERS),
}


def chunked(state, size):
    """Rename blocks as DINOv2 does with ``block_chunks``: chunks are padded, so that blocks keep their index."""

    def rename(key):
        head, _, rest = key.partition(".")
        return f"blocks.{int(rest.split('.')[0]) // size}.{rest}" if head == "blocks" else key

    return {rename(key): value for key, value in state.items()}


WRITERS = {
    "authors": lambda state: state,
    "authors, chunked": lambda state: chunked(state, max(1, sum("norm1.bias" in key for key in state) // 2)),
    "transformers": to_transformers,
    "transformers, classifier": lambda state: {
        f"dinov2{'_with_registers' if 'register_tokens' in state else ''}.{key}": value
        for key, value in to_transformers(state).items()
    },
}


@torch.no_grad()
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.fast_cases("dino-transformers", "dinov2 giant-authors", "dinov2 registers-transformers")
def test_features_are_those_of_the_authors(kind, writer):
    options, settings = KINDS[kind]
    torch.manual_seed(len(kind))
    state = encoder(**options)
    model = vitrail.create_model("vit", **SMALL, **settings, num_classes=0).eval()
    vitrail.load_weights(model, WRITERS[writer](state))
    x = torch.randn(2, 3, PATCH * GRID, PATCH * GRID)
    expected = reference_features(state, x, gated=options.get("gated", False))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.fast_cases("dino-authors")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_recognised(kind, writer):
    options, settings = KINDS[kind]
    state = WRITERS[writer](encoder(192, 12, 14, 16, **options, make=torch.zeros))
    facts = recognise(unwrap(state, "it"), "it")
    assert (facts.family, facts.source) == ("vit", "timm" if "authors" in writer else "huggingface")
    assert facts.fits, facts.problem
    found = facts.fits[0].settings
    assert {key: found.get(key) for key in settings} == settings
    assert found["patch_size"] == (14, 14)
    assert facts.inputs[0].grid == (16, 16)
    assert not facts.fits[0].report.resampled


@torch.no_grad()
def test_the_teacher_of_a_training_checkpoint_of_dino_is_loaded():
    student, teacher = encoder(), encoder()
    checkpoint = {
        "student": {f"module.backbone.{key}": value for key, value in student.items()}
        | {f"module.head.{key}": value for key, value in dino_head().items()},
        "teacher": {f"backbone.{key}": value for key, value in teacher.items()}
        | {f"head.{key}": value for key, value in dino_head().items()},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small"),
        "dino_loss": {"center": torch.zeros(1, 9)},
    }
    model = vitrail.create_model("vit", **SMALL, num_classes=0)
    vitrail.load_weights(model, checkpoint)
    assert all(torch.equal(value, teacher[key]) for key, value in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_the_teacher_of_a_training_checkpoint_of_dinov2_is_loaded(size):
    teacher = encoder(depth=6, scale=True)
    head = {f"dino_head.{key}": value for key, value in dino_head().items()}
    backbone = {f"backbone.{key}": value for key, value in chunked(teacher, size).items()}
    model = vitrail.create_model("vit", **(SMALL | {"depth": 6}), **DINOV2, num_classes=0)
    vitrail.load_weights(model, {"teacher": backbone | head})
    assert all(torch.equal(value, teacher[key]) for key, value in model.state_dict().items())


def test_chunks_of_equal_indices_are_refused():
    state = chunked(encoder(), 1)
    state = {key.replace("blocks.1.1.", "blocks.1.0."): value for key, value in state.items()}
    model = vitrail.create_model("vit", **SMALL, num_classes=0)
    with pytest.raises(WeightsError, match=r"blocks\.0\.norm1\.weight twice"):
        vitrail.load_weights(model, state)


@torch.no_grad()
def test_both_classifiers_of_a_distilled_deit_are_loaded():
    state = encoder()
    state |= {"dist_token": torch.randn(1, 1, DIM), "pos_embed": torch.randn(1, GRID * GRID + 2, DIM)}
    for head in ("head", "head_dist"):
        state |= {f"{head}.weight": torch.randn(7, DIM), f"{head}.bias": torch.randn(7)}
    model = vitrail.create_model("vit", **SMALL, num_classes=7, dist_token=True)
    report = vitrail.load_weights(model, {"model": state})
    assert not report.changes_outputs
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("writer", WRITERS)
def test_a_model_with_positions_for_registers_refuses_those_of_dinov2(writer):
    model = vitrail.create_model("vit", **SMALL, **DINOV2, reg_tokens=4, num_classes=0)
    with pytest.raises(WeightsError, match="no_embed_class"):
        vitrail.load_weights(model, WRITERS[writer](encoder(scale=True, registers=4)))
