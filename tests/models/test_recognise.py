"""What a file of weights is said to be, against what it was made from."""

import random

import pytest
import torch

import vitrail
from tests.golden_files import FOLDER, read_golden
from tests.weights.models import FAMILIES, build
from vitrail.errors import WeightsError
from vitrail.models import list_families
from vitrail.models.recognise import recognise
from vitrail.weights.read import read_checkpoint, unwrap

GOLDEN = {
    "vit_timm_cls": ("vit", "timm"),
    "vit_timm_gap": ("vit", "timm"),
    "vit_timm_any_size": ("vit", "timm"),
    "vit_hf": ("vit", "huggingface"),
    "swin_timm": ("swin", "timm"),
    "swin_microsoft": ("swin", "microsoft"),
    "swin_torchvision": ("swin", "torchvision"),
    "swin_torchvision_any_size": ("swin", "torchvision"),
    "swin_hf": ("swin", "huggingface"),
    "maxvit_timm_tf": ("maxvit", "timm"),
    "maxvit_torchvision": ("maxvit", "torchvision"),
    "hvt_rgb": ("hvt", "hvit"),
    "hvt_dual_concat": ("hvt", "hvit"),
    "hvt_dual_dfca": ("hvt", "hvit"),
    "token_learner_v1": ("TokenLearner", "scenic"),
    "token_learner_v11": ("TokenLearner", "scenic"),
    "token_fuser": ("TokenFuser", "scenic"),
}


def test_every_golden_file_is_tried():
    """Those of image models and their layers; the tests of clips and points read their own."""
    tried = {*list_families("image"), "token"}
    assert {p.stem for p in FOLDER.glob("*.safetensors") if p.stem.split("_")[0] in tried} == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.fast_cases(
    "vit_timm_gap", "vit_hf", "swin_microsoft", "maxvit_timm_tf", "hvt_rgb", "hvt_dual_dfca", "token_learner_v11"
)
def test_golden_files(name):
    golden = read_golden(name)
    facts = recognise(unwrap(golden.state, name), name)
    assert (facts.family, facts.source) == GOLDEN[name]
    assert facts.tensors == len(golden.state)
    assert facts.parameters == sum(value.numel() for value in golden.state.values())
    assert not facts.fits
    assert facts.problem
    if facts.family.startswith("Token"):
        assert facts.num_classes is None
        assert f"vitrail.layers.{facts.family}" in facts.problem
        return
    config = golden.config
    assert facts.num_classes == config.get("num_classes", 10)
    assert [i.stream for i in facts.inputs] == ["image", "spectral"][: 2 if "dual" in name else 1]
    assert facts.inputs[0].bands == 3
    if facts.family in ("vit", "hvt"):
        size, patch = torch.tensor(config["img_size"]).expand(2).tolist(), config["patch_size"]
        assert facts.inputs[0].img_size == tuple(size)
        assert facts.inputs[0].patch_size == (patch, patch)
        assert facts.inputs[0].grid == (size[0] // patch, size[1] // patch)
    else:
        assert facts.inputs[0].img_size is None
        assert facts.window_size == (4, 4)


SMALL = [
    ("vit_tiny_patch16_384", {}),
    ("vit_tiny_patch16_224_tokenlearner8_fuser", {}),
    ("vit_tiny_patch16_224", {}),
    ("vit_tiny_patch16_224_tokenlearner16", {}),
    ("vit_small_patch32_224", {}),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    ("vit_tiny_patch16_224", {"patch_size": (14, 14), "img_size": (98, 98)}),
    ("swin_tiny_patch4_window7_224", {}),
    ("swin_tiny_patch4_window7_224", {"window_size": (5, 5)}),
    ("hvt_tiny", {}),
    (
        "hvt_tiny",
        {
            "spectral_chans": 7,
            "spectral_embed_dim": 16,
            "spectral_img_size": (64, 64),
            "spectral_patch_size": (8, 8),
            "fusion": "concat",
        },
    ),
]


@pytest.mark.fast_cases("vit_tiny_patch16_384-settings0")
@pytest.mark.parametrize(("name", "settings"), SMALL)
def test_variants_are_found_from_shapes_alone(name, settings):
    rng = random.Random(str((name, settings)))
    use = {"num_classes": rng.choice([0, 1000, rng.randint(1, 3000)]), "in_chans": rng.choice([3, rng.randint(1, 20)])}
    with torch.device("meta"):
        wanted = vitrail.create_model(name, **settings, **use)
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in wanted.state_dict().items()}
    facts = recognise(unwrap(state, name), name)
    assert facts.problem == ""
    assert [fit.name for fit in facts.fits] == [name]
    assert facts.num_classes == use["num_classes"]
    assert facts.inputs[0].bands == use["in_chans"]
    with torch.device("meta"):
        again = vitrail.create_model(facts.fits[0].name, **facts.fits[0].settings)
    assert again.config == wanted.config
    assert len(facts.fits[0].report.loaded) == len(state)
    assert not facts.fits[0].report.resampled


@pytest.mark.fast_cases("vnt_tiny", "vn_transformer_32")
@pytest.mark.parametrize("name", vitrail.list_models())
def test_every_variant_is_found(name):
    with torch.device("meta"):
        wanted = vitrail.create_model(name)
    if sum(value.numel() for value in wanted.state_dict().values()) > 1.5e8:
        pytest.skip("takes more memory than a test should")
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in wanted.state_dict().items()}
    facts = recognise(unwrap(state, name), name)
    assert [(fit.name, fit.settings) for fit in facts.fits] == [(name, {})]


@pytest.mark.fast_cases("None-vit", "size1-hvt", "size1-vit")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [None, (48, 32)])
def test_own_files_say_it_themselves(family, size, tmp_path):
    model = build(family, 1, in_chans=5, **({"img_size": size} if size else {}))
    vitrail.save_pretrained(model, tmp_path)
    facts = recognise(read_checkpoint(tmp_path / "model.safetensors"), "x")
    assert (facts.source, facts.family, facts.format) == ("vitrail", family, "safetensors")
    assert [fit.name for fit in facts.fits] == [family]
    assert vitrail.create_model(family, **facts.fits[0].settings).config == model.config
    if family in ("vit", "hvt"):
        assert facts.inputs[0].img_size == tuple(model.config.img_size)
    assert facts.to_dict()["inputs"][0]["bands"] == 5


def test_what_is_wrong_with_the_numbers_is_said():
    state = {**build("vit").state_dict(), "norm.weight": torch.full((24,), float("nan"))}
    state["head.weight"] = state["head.weight"].half()
    facts = recognise(unwrap(state, "x"), "x")
    assert facts.not_finite == {"norm.weight": 24}
    assert facts.dtypes == {"float32": len(state) - 1, "float16": 1}
    assert facts.bytes == 4 * facts.parameters - 2 * state["head.weight"].numel()


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 3, 3)},
        {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "pos_embed": torch.zeros(1, 4, 8),
         "blocks.0.attn.qkv.weight": torch.zeros(24, 8), **{f"other.{i}": torch.zeros(1) for i in range(9)}},
    ],
)  # fmt: skip
def test_unknown_files(state):
    with pytest.raises(WeightsError, match=r"of no family that vitrail knows \(.*hvt, maxvit, .*swin, .*vit\b"):
        recognise(unwrap(state, "x"), "x")


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_a_known_layout_with_damaged_tensors_keeps_its_error(part):
    state = dict(read_golden("vit_hf").state)
    key = next(key for key in state if key.endswith(f"{part}.weight"))
    state[key] = state[key][:-1]
    with pytest.raises(WeightsError, match=r"have different shapes"):
        recognise(unwrap(state, "x"), "x")
