"""What users may rely on: the names that vitrail gives, and what importing it costs."""

import subprocess
import sys

import vitrail

PUBLIC = {
    "__version__",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_weights",
    "register_family",
    "save_pretrained",
}


def test_public_names_stay():
    assert set(vitrail.__all__) >= PUBLIC
    for name in vitrail.__all__:
        assert getattr(vitrail, name) is not None
    assert set(vitrail.__all__) <= set(dir(vitrail))


def test_rooms_keep_their_names():
    from vitrail import config, data, deploy, evaluate, explain, layers, report, runs, train, weights

    wanted = {
        config: {"Recipe", "DataConfig", "ModelConfig", "TaskConfig", "TrainerConfig", "RunConfig", "load_recipe"},
        data: {"open_data", "ImageData"},
        deploy: {"open_files", "predict_files"},
        evaluate: {"evaluate"},
        explain: {"attention_distances", "attention_maps", "attention_rollout", "attribution", "band_importance",
                  "bias_and_content", "capture_attention", "deletion", "explain", "gradient_rollout", "insertion",
                  "list_methods", "measure", "position_similarities", "randomisation_check", "relative_biases",
                  "road", "spectral_regions", "stream_shares", "token_maps"},
        layers: {"Attention", "AttentionTap", "DropPath", "Mlp", "PatchEmbed", "TokenFuser", "TokenLayout",
                 "TokenLearner"},
        report: {"write_report"},
        runs: {"RunFolder", "TrainedModel", "load_trained"},
        train: {"train"},
        weights: {"BandRule", "LoadReport", "load_weights", "read_state_dict", "resize_patches"},
    }  # fmt: skip
    for room, names in wanted.items():
        assert names <= set(room.__all__), room.__name__
        for name in names:
            assert hasattr(room, name)


def _modules_after(code):
    script = f"import sys; {code}; print(' '.join(sys.modules))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_import_is_light():
    heavy = {"lightning", "kornia", "torchmetrics", "matplotlib", "pandas", "sklearn", "huggingface_hub"}
    assert not heavy & _modules_after("import vitrail; vitrail.create_model; vitrail.load_weights")
    assert "torch" not in _modules_after("import vitrail")


def test_help_does_not_import_torch():
    modules = _modules_after("from vitrail.cli.main import main; main(['--help'])")
    assert "torch" not in modules
    assert "jsonargparse" not in modules
