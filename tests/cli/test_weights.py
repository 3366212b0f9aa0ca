"""``vitrail weights``, and weights to start training from, on the command line."""

import json
import pickle

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import vitrail
from tests.golden_files import read_golden
from tests.images import make_folder
from tests.weights.models import build
from vitrail.cli.arguments import repeat_set
from vitrail.cli.main import main
from vitrail.cli.weights import _parser
from vitrail.weights import BandRule

TINY = "--model.img_size 16 --model.patch_size 4 --model.embed_dim 24 --model.depth 2 --model.num_heads 3".split()
TRAIN = (
    "--trainer.max_epochs 1 --trainer.accelerator cpu --trainer.learning_rate 1e-30 --trainer.min_learning_rate 0 "
    "--trainer.weight_decay 0 --data.batch_size 8 --data.loader.num_workers 0 --run.tensorboard false"
).split()


def _ask(capsys, *words):
    capsys.readouterr()
    code = main(["weights", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def _fails(capsys, message, *words, code=1):
    got, out, err = _ask(capsys, *words)
    assert (got, out) == (code, "")
    assert err.startswith("vitrail: error: ")
    assert len(err.strip().splitlines()) == 1
    assert message in err


@pytest.fixture
def tiny(tmp_path):
    with torch.device("meta"):
        shapes = vitrail.create_model("vit_tiny_patch16_224", num_classes=7, in_chans=4).state_dict()
    path = tmp_path / "tiny.safetensors"
    save_file({key: torch.zeros(value.shape) for key, value in shapes.items()}, path, metadata={"who": "me"})
    return path


def test_what_a_file_is(tiny, capsys):
    code, out, _ = _ask(capsys, tiny)
    assert code == 0
    for line in (
        "source timm",
        "variant vit_tiny_patch16_224 with num_classes 7, in_chans 4",
        "classes 7",
        "image 4 bands, 224 x 224 pixels, patches of 16 x 16, on a grid of 14 x 14",
        "precision float32 (152)",
        "format safetensors",
        "metadata who: me",
        "152 loaded, 0 renamed, 0 resampled, 0 dropped, 0 missing, 0 unexpected",
    ):
        assert line in " ".join(out.split()), (line, out)


def test_json_holds_the_same(tiny, capsys):
    code, out, _ = _ask(capsys, tiny, "--json")
    record = json.loads(out)
    assert code == 0
    assert record["file"] == str(tiny)
    assert (record["family"], record["source"], record["num_classes"]) == ("vit", "timm", 7)
    assert record["inputs"] == [
        {"stream": "image", "bands": 4, "patch_size": [16, 16], "img_size": [224, 224], "grid": [14, 14]}
    ]
    assert record["parameters"] == sum(v.numel() for v in load_file(tiny).values())
    (fit,) = record["fits"]
    assert (fit["name"], fit["settings"]) == ("vit_tiny_patch16_224", {"in_chans": 4, "num_classes": 7})
    assert len(fit["report"]["loaded"]) == record["tensors"] == 152
    assert "model" not in record


def test_trying_a_model(tiny, capsys):
    code, out, _ = _ask(capsys, tiny, "--model", "vit_tiny_patch16_384")
    assert code == 1
    assert "has shape (7,) where the model has (1000,): another number of classes. --new-head leaves" in out
    code, out, _ = _ask(capsys, tiny, "--model", "vit_tiny_patch16_384", "--new-head")
    assert code == 1
    assert "refused: " in out
    assert "made for 4 bands, the model has 3" in out
    words = ("--model", "vit_tiny_patch16_384", "--new-head", "--bands", "mean", "--set", "patch_size=32")
    code, out, _ = _ask(capsys, tiny, *words)
    assert code == 0
    assert "resampled pos_embed: positions from 14 x 14 to 12 x 12, bicubic" in out
    assert "bands from 4 to 3: mean of all kernels, times 4/3; patches from 16 x 16 to 32 x 32" in out
    assert "new head: the model keeps its own head.weight" in out
    code, out, _ = _ask(capsys, tiny, *words, "--json")
    assert code == 0
    assert set(json.loads(out)["report"]["resampled"]) == {"pos_embed", "patch_embed.proj.weight"}
    nm = ("--bands", "wavelength", "--band-wavelengths", "400", "500")
    code, out, _ = _ask(capsys, tiny, "--model", "vit_tiny_patch16_224", "--set", "in_chans=2", "--new-head", *nm)
    assert code == 1
    assert "source-wavelengths for 4 bands" in out
    code, out, _ = _ask(capsys, tiny, "--model", "swin_tiny_patch4_window7_224", "--json")
    assert code == 1
    assert "not a checkpoint of Swin" in json.loads(out)["refused"]


def test_folders_and_tiny_files(tmp_path, capsys):
    vitrail.save_pretrained(build("hvt", 1), tmp_path)
    code, out, _ = _ask(capsys, tmp_path)
    assert code == 0
    assert "source vitrail" in " ".join(out.split())
    assert "spectral 4 bands, 32 x 32 pixels, patches of 4 x 4, on a grid of 8 x 8" in " ".join(out.split())
    state = {key: value.contiguous() for key, value in read_golden("token_learner_v11").state.items()}
    save_file(state, tmp_path / "layer.safetensors")
    code, out, _ = _ask(capsys, tmp_path / "layer.safetensors", "--json")
    assert json.loads(out)["family"] == "TokenLearner"


def test_misuse_is_one_line(tiny, tmp_path, capsys):
    _fails(capsys, "no file of weights at", tmp_path / "none")
    _fails(capsys, "holds no model.safetensors", tmp_path / "..")
    _fails(capsys, "the following arguments are required: FILE", code=2)
    _fails(capsys, "unknown model 'vit_tinny'", tiny, "--model", "vit_tinny", code=2)
    _fails(capsys, "did you mean '--new-head'", tiny, "--new-heads", code=2)
    _fails(capsys, "--set takes KEY=VALUE", tiny, "--model", "vit", "--set", "depth", code=2)
    _fails(capsys, "invalid choice: 'median'", tiny, "--model", "vit", "--bands", "median", code=2)
    _fails(capsys, "needs --band-wavelengths", tiny, "--model", "vit", "--bands", "wavelength", code=2)
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.safetensors")
    _fails(capsys, "of no family that vitrail knows", tmp_path / "resnet.safetensors")
    (tmp_path / "half.safetensors").write_bytes(tiny.read_bytes()[:5000])
    _fails(capsys, "truncated", tmp_path / "half.safetensors")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"args": print}))
    _fails(capsys, "run code", tmp_path / "x.pkl")
    _fails(capsys, "use hf://owner/name", "hf://x")


# -- training --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("images"), splits=("train", "val"), per_class=8)


def _train(capsys, folder, *words):
    capsys.readouterr()
    code = main(["train", "--model.name", "vit", *TINY, *TRAIN, "--run.dir", str(folder), *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def start(tmp_path):
    """A saved model of three bands and five classes."""
    model = build("vit", 1, img_size=16, patch_size=4)
    return model, vitrail.save_pretrained(model, tmp_path / "start")


@pytest.mark.slow
def test_training_starts_from_weights_with_a_new_head(images, start, tmp_path, capsys):
    model, folder = start
    data = ("--data.source", "folder", "--data.path", images)
    code, out, err = _train(capsys, tmp_path / "a", *data, "--model.weights", folder)
    assert code == 0, err
    assert f"weights of {folder}: source timm" in out
    assert "dropped head.bias, head.weight: new_head: the model keeps its own classifier" in out
    trained = load_file(tmp_path / "a" / "model.safetensors")
    assert torch.allclose(trained["blocks.0.attn.qkv.weight"], model.blocks[0].attn.qkv.weight, atol=1e-6)
    assert trained["head.weight"].shape == (2, 24)
    # The run is a place of weights itself, also with its head.
    code, out, err = _train(
        capsys, tmp_path / "b", *data, "--model.weights", tmp_path / "a", "--model.new_head", "false"
    )
    assert code == 0, err
    assert "0 dropped, 0 missing" in out
    assert torch.allclose(load_file(tmp_path / "b" / "model.safetensors")["head.weight"], trained["head.weight"])
    assert vitrail.from_pretrained(tmp_path / "b").num_classes == 2
    # Its recipe says all of it and runs again.
    recipe = yaml.safe_load((tmp_path / "b" / "recipe.yaml").read_text())
    assert recipe["model"]["new_head"] is False
    assert main(["train", str(tmp_path / "b" / "recipe.yaml"), "--run.dir", str(tmp_path / "c")]) == 0


@pytest.mark.slow
def test_training_on_other_bands_needs_a_rule(start, tmp_path, capsys):
    model, folder = start
    code, _, err = _train(capsys, tmp_path / "a", "--model.weights", folder)
    assert code == 1
    assert "made for 3 bands, the model has 1" in err
    assert "model.bands_rule" in err
    assert not (tmp_path / "a").exists()
    rules = {
        "mean": (["mean"], BandRule("mean")),
        "wavelength": (
            ["wavelength", "--model.band_wavelengths", "[700]"],
            BandRule("wavelength", (700,)),
        ),
    }
    for name, (words, rule) in rules.items():
        code, out, err = _train(capsys, tmp_path / name, "--model.weights", folder, "--model.bands_rule", *words)
        assert code == 0, err
        assert "bands from 3 to 1" in out
        wanted = rule.apply(model.patch_embed.proj.weight, 1, "image")[0]
        kernel = load_file(tmp_path / name / "model.safetensors")["patch_embed.proj.weight"]
        assert torch.allclose(kernel, wanted, atol=1e-6)
    recipe = yaml.safe_load((tmp_path / "wavelength" / "recipe.yaml").read_text())["model"]
    assert (recipe["bands_rule"], recipe["band_wavelengths"]) == ("wavelength", [700.0])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model.bands_rule", "mean"], 2, "model.weights must be given"),
        (["--model.weights", "x", "--model.bands_rule", "wavelength"], 2, "model.band_wavelengths must be given"),
        (["--model.weights", "x", "--model.band_wavelengths", "[5]"], 2, "model.band_wavelengths must be given"),
        (["--model.weights", "x", "--model.bands_rule", "median"], 2, "model.bands_rule must be one of"),
        (["--model.weights", "x", "--model.band_rule", "mean"], 2, "did you mean '--model.bands_rule'"),
        (["--model.weights", "nowhere.pth"], 1, "no file of weights at nowhere.pth"),
    ],
)
def test_wrong_starts(tmp_path, capsys, words, code, message):
    got, _, err = _train(capsys, tmp_path / "a", *words)
    assert got == code
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--set", "depth=2", "embed_dim=8", "f.pt"], ["depth=2", "embed_dim=8"]),
        (["--set", "depth=2", "f.pt", "--set", "a=[1, 2]", "b=x=y", "--json"], ["depth=2", "a=[1, 2]", "b=x=y"]),
        (["f=1.pt", "--set", "depth"], ["depth"]),
    ],
)
def test_several_settings_follow_one_option(words, wanted):
    arguments = _parser().parse_args(repeat_set(words))
    assert arguments.set == wanted
    assert arguments.file in words
