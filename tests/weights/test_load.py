"""Loading into another head, input, window, patch or set of bands; every refusal leaves the model as it was."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import vitrail
from tests.golden_files import FOLDER, read_golden, relative_error, run
from tests.tiers import fast_first, in_turn
from tests.weights.models import FAMILIES, build, kernel_names, random_size, snapshot, unchanged
from vitrail.errors import ConfigError, WeightsError
from vitrail.layers.positions import resample_positions
from vitrail.weights import BandRule, resize_patches

SOURCES = {
    "timm": ("vit_timm_cls", "vit", "timm"),
    "huggingface": ("vit_hf", "vit", "huggingface"),
    "microsoft": ("swin_microsoft", "swin", "microsoft"),
    "torchvision": ("swin_torchvision", "swin", "torchvision"),
}


def _inputs(model, batch=2):
    return [torch.randn(batch, *stream.shape) for stream in model.streams]


@pytest.mark.fast_cases("timm", "microsoft")
@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_found_from_files_and_files_from_state(name, tmp_path):
    golden_name, family, source = SOURCES[name]
    golden = read_golden(golden_name)
    golden.config.pop("drop_path_rate", None)
    golden.config.pop("stochastic_depth_prob", None)
    for kind in ("safetensors", "pth"):
        path = tmp_path / f"weights.{kind}"
        if kind == "safetensors":
            save_file({k: v.contiguous() for k, v in golden.state.items()}, path)
        else:
            torch.save({"model": golden.state, "epoch": 3}, path)
        model = vitrail.create_model(family, **golden.config)
        report = vitrail.load_weights(model, path)
        assert report.source == source
        assert sorted(report.loaded) == sorted(model.state_dict())
        assert relative_error(run(model, golden), golden.outputs["logits"]) < 1e-5
        said = ["took 'model'", "left out beside the weights: epoch"]
        assert report.notes == (said if kind == "pth" else [])


def test_a_safetensors_file_by_any_name(tmp_path):
    model = build("vit", 1)
    save_file(model.state_dict(), tmp_path / "weights.bin")
    other = build("vit", 2)
    vitrail.load_weights(other, tmp_path / "weights.bin")
    assert unchanged(other, snapshot(model))


def test_wrappers_and_prefixes_are_told(tmp_path):
    model = build("vit", 1)
    state = {f"module._orig_mod.{key}": value for key, value in model.state_dict().items()}
    torch.save({"model_ema": state, "model": {}, "epoch": 7}, tmp_path / "a.pth")
    other = build("vit", 2)
    report = vitrail.load_weights(other, tmp_path / "a.pth")
    assert unchanged(other, snapshot(model))
    assert report.notes == [
        "took 'model_ema'",
        f"removed the prefix 'module._orig_mod.' from {len(state)} names",
        "left out beside the weights: epoch",
    ]
    assert "took 'model_ema'" in str(report)


# -- heads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("classes", [0, 3, 5])
@pytest.mark.fast_cases("0-vit", "3-hvt", "3-maxvit", "3-swin", "3-vit")
def test_a_new_head_is_asked_for(family, classes):
    model, other = build(family, 1), build(family, 2, num_classes=classes)
    before = snapshot(other)
    if classes != 5:
        with pytest.raises(WeightsError, match="new_head=True"):
            vitrail.load_weights(other, model.state_dict())
        assert unchanged(other, before)
    report = vitrail.load_weights(other, model.state_dict(), new_head=True)
    after, theirs = other.state_dict(), model.state_dict()
    head = [key for key in {*after, *theirs} if key.startswith(type(model).classifier + ".")]
    assert head
    for key, value in after.items():
        # The head keeps its own values, also where the other would fit; all else is the checkpoint's.
        assert torch.equal(value, before[key] if key in head else theirs[key]), key
    assert set(report.new_head) == {key for key in head if key in after}
    assert not report.missing
    assert set(report.dropped) == {key for key in head if key in theirs}
    assert "new_head" in str(report)
    with torch.no_grad():
        inputs = _inputs(model)
        assert torch.equal(model.forward_features(*inputs), other.forward_features(*inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_without_a_head(family):
    headless = build(family, 1, num_classes=0)
    other = build(family, 2)
    before = snapshot(other)
    with pytest.raises(WeightsError, match="Only the classifier differs: new_head=True"):
        vitrail.load_weights(other, headless.state_dict())
    assert unchanged(other, before)
    report = vitrail.load_weights(other, headless.state_dict(), new_head=True)
    assert set(report.new_head) == set(before) - set(headless.state_dict())
    assert not report.missing


def test_a_new_head_needs_a_model_with_one():
    from vitrail.layers import TokenLearner

    layer = TokenLearner(8, 2)
    with pytest.raises(ConfigError, match="new_head needs a model"):
        vitrail.load_weights(layer, layer.state_dict(), new_head=True)


# -- bands -----------------------------------------------------------------------------------------------

BANDS = {"vit": "in_chans", "swin": "in_chans", "maxvit": "in_chans", "hvt": "in_chans"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("old", "new"), fast_first([(3, 7), (3, 1), (6, 3), (1, 4), (3, 2)], 2))
@pytest.mark.fast_cases("3-7-hvt")
def test_bands_by_a_stated_rule(family, old, new):
    model, other = build(family, 1, in_chans=old), build(family, 2, in_chans=new)
    before = snapshot(other)
    with pytest.raises(
        WeightsError, match=f"made for {old} bands?, the model has {new}.*'mean'.*'repeat'.*'wavelength'"
    ):
        vitrail.load_weights(other, model.state_dict())
    assert unchanged(other, before)
    key = kernel_names(model)[0]
    kernel = model.state_dict()[key]
    nm, source = [400 + 97.5 * i for i in range(new)], [800 - 60.0 * i for i in range(old)]
    for rule, extra in (
        ("mean", {}),
        ("repeat", {}),
        ("wavelength", {"band_wavelengths": {"image": nm}, "source_wavelengths": {"image": source}}),
    ):
        other.load_state_dict(before)
        report = vitrail.load_weights(other, model.state_dict(), bands=rule, **extra)
        made = BandRule(rule, nm, source) if rule == "wavelength" else BandRule(rule)
        assert torch.equal(other.state_dict()[key], made.apply(kernel, new, "image")[0])
        assert set(report.resampled) == {key}
        assert f"bands from {old} to {new}" in report.resampled[key]
        assert f"bands from {old} to {new}" in str(report)
        rest = {k: v for k, v in model.state_dict().items() if k != key}
        assert all(torch.equal(other.state_dict()[k], v) for k, v in rest.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_bands_with_mean_answer_as_before(family):
    model, other = build(family, 1), build(family, 2, in_chans=8)
    vitrail.load_weights(other, model.state_dict(), bands="mean")
    rest = _inputs(model)[1:]
    gray = torch.randn(2, 1, *model.streams[0].size)
    with torch.no_grad():
        before = model(gray.expand(-1, 3, -1, -1), *rest)
        after = other(gray.expand(-1, 8, -1, -1), *rest)
    assert torch.allclose(before, after, atol=1e-4)


def test_a_rule_without_need_changes_nothing():
    model, other = build("vit", 1), build("vit", 2)
    assert vitrail.load_weights(other, model.state_dict(), bands="mean").resampled == {}
    report = vitrail.load_weights(other, model.state_dict(), bands="wavelength", band_wavelengths=(665, 560, 490))
    assert report.resampled == {}
    # Three bands, but not red, green and blue: asked for by wavelength, their kernels change.
    report = vitrail.load_weights(other, model.state_dict(), bands="wavelength", band_wavelengths=(842, 665, 560))
    assert set(report.resampled) == {"patch_embed.proj.weight"}


def test_wrong_wavelengths_leave_the_model_alone():
    model, other = build("vit", 1), build("vit", 2, in_chans=5)
    before = snapshot(other)
    with pytest.raises(WeightsError, match="band_wavelengths for 5 bands of 'image', got 4 values"):
        vitrail.load_weights(other, model.state_dict(), bands="wavelength", band_wavelengths=(1, 2, 3, 4))
    with pytest.raises(ConfigError, match="bands must be one of"):
        vitrail.load_weights(other, model.state_dict(), bands="median")
    assert unchanged(other, before)


# -- two streams -----------------------------------------------------------------------------------------


def test_both_streams_may_have_other_bands():
    model = build("hvt", 1, in_chans=3, spectral_chans=4)
    other = build("hvt", 2, in_chans=5, spectral_chans=9)
    report = vitrail.load_weights(other, model.state_dict(), bands="repeat")
    assert set(report.resampled) == set(kernel_names(model))
    nm = {"image": (450, 500, 550, 600, 650), "spectral": tuple(range(700, 1600, 100))}
    theirs = {"image": (665, 560, 490), "spectral": (700, 900, 1100, 1300)}
    vitrail.load_weights(other, model.state_dict(), bands="wavelength", band_wavelengths=nm, source_wavelengths=theirs)
    wanted = BandRule("wavelength", nm, theirs).apply(
        model.state_dict()["spectral.patch_embed.proj.weight"], 9, "spectral"
    )[0]
    assert torch.equal(other.state_dict()["spectral.patch_embed.proj.weight"], wanted)


def test_the_spectral_stream_starts_from_the_image_only_if_asked():
    image = build("hvt", 1, spectral_chans=0, spectral_embed_dim=None)
    dual = build("hvt", 2, spectral_chans=6, spectral_embed_dim=None)
    before = snapshot(dual)
    with pytest.raises(WeightsError, match="missing"):
        vitrail.load_weights(dual, image.state_dict(), allow_missing=["fusion.*"])
    with pytest.raises(WeightsError, match=r"spectral\.patch_embed\.proj\.weight is made for 3 bands"):
        vitrail.load_weights(dual, image.state_dict(), allow_missing=["fusion.*"], spectral_from_image=True)
    assert unchanged(dual, before)
    report = vitrail.load_weights(
        dual, image.state_dict(), allow_missing=["fusion.*"], spectral_from_image=True, bands="mean"
    )
    state = dual.state_dict()
    spectral = [key for key in state if key.startswith("spectral.")]
    assert set(report.copied) == set(spectral)
    for key in spectral:
        if key != "spectral.patch_embed.proj.weight":
            assert torch.equal(state[key], state["rgb." + key.removeprefix("spectral.")]), key
    kernel = image.state_dict()["rgb.patch_embed.proj.weight"]
    assert torch.equal(state["spectral.patch_embed.proj.weight"], BandRule("mean").apply(kernel, 6, "spectral")[0])
    assert "copied spectral." in str(report)
    with pytest.raises(WeightsError, match="spectral stream of its own"):
        vitrail.load_weights(dual, dual.state_dict(), spectral_from_image=True)
    with pytest.raises(ConfigError, match="needs a model with a spectral stream"):
        vitrail.load_weights(image, image.state_dict(), spectral_from_image=True)


# -- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", ["vit", "hvt"])
@pytest.mark.fast_cases("vit-0", "hvt-2", "hvt-4")
def test_oblong_positions_when_the_settings_are_told(family, seed, tmp_path):
    rng = random.Random(seed)
    patch = families_patch(family)
    old, new = random_size(rng, patch), random_size(rng, patch)
    model, other = build(family, 1, img_size=old), build(family, 2, img_size=new)
    report = vitrail.load_weights(other, model.state_dict(), settings={"img_size": old, "patch_size": patch})
    _check_positions(model, other, old, new, patch, report)
    # A file that vitrail wrote tells them itself.
    vitrail.save_pretrained(model, tmp_path)
    other = build(family, 3, img_size=new)
    report = vitrail.load_weights(other, tmp_path / "model.safetensors")
    _check_positions(model, other, old, new, patch, report)


def families_patch(family):
    return {"vit": 8, "hvt": 4}[family]


def _check_positions(model, other, old, new, patch, report):
    key, prefix = ("pos_embed", 1) if "pos_embed" in model.state_dict() else ("rgb.pos_embed", 0)
    grids = [(size[0] // patch, size[1] // patch) for size in (old, new)]
    wanted = resample_positions(model.state_dict()[key], *grids, prefix)
    assert torch.equal(other.state_dict()[key], wanted)
    said = "positions from {} x {} to {} x {}, bicubic".format(*grids[0], *grids[1])
    assert report.resampled.get(key, said) == said
    assert (key in report.resampled) == (grids[0] != grids[1])


def test_oblong_positions_are_refused_when_nothing_tells_their_grid():
    model, other = build("vit", 1, img_size=(24, 40)), build("vit", 2, img_size=(32, 16))
    before = snapshot(other)
    with pytest.raises(WeightsError, match=r"pos_embed has shape \(1, 16, 24\)"):
        vitrail.load_weights(other, model.state_dict())
    assert unchanged(other, before)


def test_as_many_positions_on_another_grid_are_resampled_where_it_is_known():
    old, new = (16, 64), (32, 32)  # 2 x 8 and 4 x 4 patches
    model, other = build("vit", 1, img_size=old), build("vit", 2, img_size=new)
    report = vitrail.load_weights(other, model.state_dict(), settings={"img_size": old, "patch_size": 8})
    _check_positions(model, other, old, new, 8, report)
    assert report.resampled["pos_embed"] == "positions from 2 x 8 to 4 x 4, bicubic"


@pytest.mark.parametrize("family", ["swin", "maxvit"])
@pytest.mark.parametrize(("old", "new"), [((3, 5), (5, 3)), ((2, 3), (4, 4)), ((4, 4), (3, 2))])
@pytest.mark.fast_cases("old0-new0-maxvit", "old1-new1-swin")
def test_oblong_windows_when_the_settings_are_told(family, old, new):
    from vitrail.layers.positions import resample_relative_table

    size = {"img_size": 128}
    model, other = build(family, 1, window_size=old, **size), build(family, 2, window_size=new, **size)
    for key, value in model.state_dict().items():
        if key.endswith("relative_position_bias_table"):
            value.normal_()
    report = vitrail.load_weights(other, model.state_dict(), settings={"window_size": old})
    tables = [key for key in model.state_dict() if key.endswith("relative_position_bias_table")]
    assert set(report.resampled) == set(tables)
    for key in tables:
        wanted = resample_relative_table(model.state_dict()[key], old, new)
        assert torch.equal(other.state_dict()[key], wanted)
        assert f"from {old[0]} x {old[1]} to {new[0]} x {new[1]}" in report.resampled[key]


@pytest.mark.parametrize("family", ["vit", "swin", "hvt"])
@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 5), ((6, 4), (4, 6))])
@pytest.mark.fast_cases("4-8-hvt", "old2-new2-vit", "old2-new2-swin")
def test_another_patch_size(family, old, new):
    settings = {"spectral_patch_size": 4} if family == "hvt" else {}
    model = build(family, 1, patch_size=old, **settings)
    other = build(family, 2, patch_size=new, in_chans=4, **settings)
    told = {"img_size": 32, "patch_size": old, **settings}
    report = vitrail.load_weights(other, model.state_dict(), bands="mean", settings=told)
    key = kernel_names(model)[0]
    mixed = BandRule("mean").apply(model.state_dict()[key], 4, "image")[0]
    pair = new if isinstance(new, tuple) else (new, new)
    assert torch.equal(other.state_dict()[key], resize_patches(mixed, pair))
    assert "bands from 3 to 4" in report.resampled[key]
    assert "pseudo-inverse of the bicubic resize (FlexiViT)" in report.resampled[key]


@pytest.mark.parametrize("seed", range(4))
def test_larger_patches_of_a_larger_image_give_the_same_tokens(seed):
    rng = random.Random(seed)
    old = rng.randint(3, 8)
    new = old + rng.randint(1, 5)
    grid = (rng.randint(1, 4), rng.randint(1, 4))
    sizes = [(grid[0] * patch, grid[1] * patch) for patch in (old, new)]
    model = build("vit", 1, patch_size=old, img_size=sizes[0])
    other = build("vit", 2, patch_size=new, img_size=sizes[1])
    vitrail.load_weights(other, model.state_dict())
    # Each patch enlarged by itself, as section 3.4 has it.
    x = torch.randn(2, 3, *sizes[0])
    cells = x.unfold(2, old, old).unfold(3, old, old).permute(0, 2, 3, 1, 4, 5)
    large = F.interpolate(cells.flatten(0, 2), size=(new, new), mode="bicubic", antialias=True)
    large = large.view(2, *grid, 3, new, new).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, *sizes[1])
    with torch.no_grad():
        assert torch.allclose(model(x), other(large), atol=1e-4)


# -- what is said, and what is refused -------------------------------------------------------------------


def test_a_dry_run_tells_and_loads_nothing():
    model, other = build("swin", 1), build("swin", 2)
    before = snapshot(other)
    dry = vitrail.load_weights(other, model.state_dict(), dry_run=True)
    assert unchanged(other, before)
    assert dry == vitrail.load_weights(other, model.state_dict())
    assert unchanged(other, snapshot(model))
    with torch.device("meta"):
        empty = build("vit", 3)
    state = build("vit", 3).state_dict()
    assert len(vitrail.load_weights(empty, state, dry_run=True).loaded) == len(state)
    with pytest.raises(ConfigError, match="meta device"):
        vitrail.load_weights(empty, state)


def test_values_that_are_not_finite_are_loaded_and_said():
    model, other = build("vit", 1), build("vit", 2)
    state = snapshot(model)
    state["norm.weight"][:3] = float("nan")
    state["blocks.0.attn.qkv.weight"][0, 0] = float("-inf")
    report = vitrail.load_weights(other, state)
    assert report.not_finite == {"norm.weight": 3, "blocks.0.attn.qkv.weight": 1}
    assert "warning: 3 values of norm.weight not finite" in str(report)
    assert other.state_dict()["norm.weight"][:3].isnan().all()


def test_other_precisions_are_converted_and_said():
    model, other = build("vit", 1), build("vit", 2)
    state = {key: value.half() for key, value in model.state_dict().items()}
    report = vitrail.load_weights(other, state)
    assert report.notes == [f"{len(state)} tensors converted from float16 to float32"]
    assert other.state_dict()["norm.weight"].dtype == torch.float32
    # What float16 cannot hold is infinite in it, and said.
    state = snapshot(model)
    state["norm.weight"][0] = 1e6
    assert vitrail.load_weights(other.half(), state).not_finite == {"norm.weight": 1}


WRONG = [
    (lambda t: t.to(torch.int8), "is int8 where the model has float32"),
    (lambda t: t.to(torch.complex64), "is complex64"),
    (lambda t: t.to_sparse(), "sparse or quantised"),
    (lambda t: t.to("meta"), "without values"),
    (lambda t: t[:-1], "has shape"),
    (lambda t: t[..., None], "has shape"),
    (lambda t: torch.tensor(1.0), "has shape"),
]


@pytest.mark.parametrize(("family", "number"), in_turn(FAMILIES, range(len(WRONG)), each=2))
def test_one_wrong_tensor_is_refused_and_nothing_is_loaded(family, number):
    change, message = WRONG[number]
    model, other = build(family, 1), build(family, 2)
    rng = random.Random(str((family, message)))
    names = [k for k, v in model.state_dict().items() if v.is_floating_point() and v.ndim > 0 and len(v) > 1]
    before = snapshot(other)
    for key in rng.sample(names, 2):
        state = {**model.state_dict()}
        state[key] = change(state[key])
        with pytest.raises(WeightsError, match=message):
            vitrail.load_weights(other, state)
        assert unchanged(other, before)


@pytest.mark.parametrize(
    ("name", "family"), in_turn(sorted(path.stem for path in FOLDER.glob("*.safetensors")), FAMILIES)
)
@pytest.mark.fast_cases(
    "hvt_dual_concat-hvt",
    "swin_timm-maxvit",
    "swin_torchvision-swin",
    "videomae_hf_v5_names-vit",
    "vit_timm_gap-vit",
    "vn_graph-vit",
)
def test_checkpoints_of_other_models_are_refused(family, name):
    other = build(family, 2)
    before = snapshot(other)
    with pytest.raises(WeightsError):
        vitrail.load_weights(other, read_golden(name).state)
    assert unchanged(other, before)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_queries_keys_and_values_of_different_shapes(part):
    golden = read_golden("vit_hf")
    model = vitrail.create_model("vit", **golden.config)
    before = snapshot(model)
    key = next(k for k in golden.state if f".{part}" in k and k.endswith("weight"))
    golden.state[key] = torch.zeros(48, 47)
    with pytest.raises(WeightsError, match="different shapes"):
        vitrail.load_weights(model, golden.state)
    assert unchanged(model, before)


def _with_gates(state):
    """The same weights as timm's SwiGLU has them: gate and value apart."""
    gated = {}
    for key, value in state.items():
        if ".mlp.fc1." in key:
            halves = value.chunk(2)
            gated |= {key.replace("fc1", f"fc1_{part}"): half for part, half in zip("gx", halves, strict=True)}
        else:
            gated[key] = value
    return gated


def test_gates_and_values_are_merged():
    model, other = (build("vit", seed, mlp_layer="swiglu") for seed in (1, 2))
    vitrail.load_weights(other, _with_gates(model.state_dict()))
    assert unchanged(other, snapshot(model))


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t[..., None], lambda t: t.sum()])
@pytest.mark.parametrize("part", ["fc1_g.weight", "fc1_x.weight", "fc1_g.bias", "fc1_x.bias"])
def test_gates_and_values_of_different_shapes(part, change):
    model, other = (build("vit", seed, mlp_layer="swiglu") for seed in (1, 2))
    before = snapshot(other)
    state = _with_gates(model.state_dict())
    key = f"blocks.1.mlp.{part}"
    state[key] = change(state[key])
    with pytest.raises(WeightsError, match=r"the parts g, x of blocks\.1\.mlp\.fc1\.\w+ have different shapes"):
        vitrail.load_weights(other, state)
    assert unchanged(other, before)


def test_two_layouts_in_one_file():
    golden = read_golden("vit_hf")
    model = vitrail.create_model("vit", **golden.config)
    before = snapshot(model)
    golden.state["pos_embed"] = golden.state["vit.embeddings.position_embeddings"]
    with pytest.raises(WeightsError, match="mixes two layouts"):
        vitrail.load_weights(model, golden.state)
    assert unchanged(model, before)


def test_a_text_is_one_pattern():
    """Not one for each of its signs, of which the star would allow everything."""
    model = build("swin", 1)
    state = dict(list(build("swin", 2).state_dict().items())[:20])
    with pytest.raises(WeightsError, match="missing"):
        vitrail.load_weights(model, state, "vitrail", allow_missing="head.*")
    whole = build("swin", 2).state_dict()
    with pytest.raises(WeightsError, match="unexpected"):
        vitrail.load_weights(model, {**whole, "junk.weight": torch.zeros(1)}, allow_unexpected="x*")
    report = vitrail.load_weights(model, {**whole, "junk.weight": torch.zeros(1)}, "vitrail", allow_unexpected="junk.*")
    assert report.unexpected == ["junk.weight"]


def test_a_compiled_model_takes_weights():
    model, other = build("vit", 1), build("vit", 2)
    vitrail.load_weights(torch.compile(model, backend="eager"), other.state_dict())
    assert unchanged(model, snapshot(other))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_wavelengths_of_any_library(kind):
    model = build("vit", 1, in_chans=2)
    state = build("vit", 2, in_chans=3).state_dict()
    report = vitrail.load_weights(model, state, bands="wavelength", band_wavelengths=kind([665, 842.0]))
    assert "665" in str(report)
    for wrong in (5, np.array([-1.0, 2.0]), [True, 600], [float("nan"), 600]):
        with pytest.raises(ConfigError, match="wavelengths in nm"):
            vitrail.load_weights(model, state, bands="wavelength", band_wavelengths=wrong)
