"""Suggestions for mistaken names."""

import pytest

from vitrail import list_models
from vitrail.errors import closest, first_line, plural


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("vit_tny", "vit_tiny_patch16_"),
        ("swin_tiny", "swin_tiny_patch4_window7_224"),
        ("swin_smal_patch4", "swin_small_patch4_window7_224"),
        ("maxvit_bse", "maxvit_base_tf_"),
        ("hvt_tny", "hvt_tiny"),
        ("vit_small_patch16_225", "vit_small_patch16_224"),
    ],
)
@pytest.mark.fast_cases("swin_tiny-swin_tiny_patch4_window7_224", "vit_small_patch16_225-vit_small_patch16_224")
def test_a_model_is_found_by_its_first_words(name, start):
    assert closest(name, list_models()).startswith(f"; did you mean '{start}")


def test_settings():
    known = ["embed_dim", "depth", "num_heads", "drop_path_rate"]
    assert closest("embed", known) == "; did you mean 'embed_dim'?"
    assert closest("deptj", known) == "; did you mean 'depth'?"
    assert closest("heads", known) == "; did you mean 'num_heads'?"
    assert closest("xyz", known) == "; known: depth, drop_path_rate, embed_dim, num_heads"
    assert closest("xyz", [f"{c}{n}" for c in "abc" for n in range(9)]) == ""


@pytest.mark.parametrize(("name", "known"), [("--batch", ["--out", "--json", "--run"]), ("--zz", ["--tta", "--out"])])
def test_dashes_make_no_option_alike(name, known):
    assert "did you mean" not in closest(name, known)


@pytest.mark.parametrize(
    ("number", "what", "text"),
    [
        (1, "class", "1 class"),
        (0, "image", "0 images"),
        (2, "class", "2 classes"),
        (2, "branch", "2 branches"),
        (2, "patch", "2 patches"),
        (2, "epoch", "2 epochs"),
        (1200, "image", "1,200 images"),
    ],
)
def test_a_noun_is_in_the_plural_unless_the_number_is_1(number, what, text):
    assert plural(number, what) == text


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("\n a \nb"), "a "), (AttributeError(), "AttributeError"), (OSError(" \n"), "OSError")],
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line
