"""Names of settings in other libraries, and names that look alike and mean something else."""

from __future__ import annotations

from collections.abc import Iterable

from vitrail.config.renamed import earlier
from vitrail.errors import closest, nearest

# Name elsewhere -> the settings here that mean the same, the first that is known.
_SAME: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate",),
    "base_lr": ("learning_rate",),
    "max_lr": ("learning_rate",),
    "min_lr": ("min_learning_rate",),
    "wd": ("weight_decay",),
    "epochs": ("max_epochs",),
    "num_epochs": ("max_epochs",),
    "num_train_epochs": ("max_epochs",),
    "warmup": ("warmup_epochs",),
    "lr_scheduler": ("schedule",),
    "scheduler": ("schedule",),
    "sched": ("schedule",),
    "lr_scheduler_type": ("schedule",),
    "lr_gamma": ("gamma",),
    "decay_rate": ("gamma",),
    "decay_milestones": ("milestones",),
    "lr_steps": ("milestones",),
    "bs": ("batch_size",),
    "batch": ("batch_size",),
    "per_device_train_batch_size": ("batch_size",),
    "workers": ("num_workers",),
    "smoothing": ("label_smoothing",),
    "patience": ("early_stopping_patience",),
    "early_stopping": ("early_stopping_patience",),
    "clip_grad": ("gradient_clip",),
    "grad_clip": ("gradient_clip",),
    "clip_grad_norm": ("gradient_clip",),
    "max_grad_norm": ("gradient_clip",),
    "gradient_clip_val": ("gradient_clip",),
    "accumulate_grad_batches": ("accumulate",),
    "gradient_accumulation_steps": ("accumulate",),
    "grad_accum_steps": ("accumulate",),
    "gradient_checkpointing": ("grad_checkpointing",),
    "ema": ("ema_decay",),
    "model_ema_decay": ("ema_decay",),
    "gpus": ("devices",),
    "amp": ("precision",),
    "fp16": ("precision",),
    "bf16": ("precision",),
    "device": ("accelerator",),
    "root": ("path",),
    "data_dir": ("path",),
    "dataset": ("source", "path"),
    "output_dir": ("dir",),
    "pretrained": ("weights",),
    "checkpoint": ("weights",),
    "classes": ("num_classes",),
    "n_classes": ("num_classes",),
    "num_labels": ("num_classes",),
    "channels": ("in_chans",),
    "num_channels": ("in_chans",),
    "in_channels": ("in_chans",),
    "image_size": ("img_size",),
    "input_size": ("img_size",),
    "size": ("img_size",),
    "patch": ("patch_size",),
    "window": ("window_size",),
    "partition_size": ("window_size",),
    "heads": ("num_heads",),
    "n_heads": ("num_heads",),
    "num_attention_heads": ("num_heads",),
    "head_dim": ("dim_head",),
    "dim": ("embed_dim",),
    "width": ("embed_dim",),
    "hidden_dim": ("embed_dim",),
    "hidden_size": ("embed_dim",),
    "layers": ("depth", "depths"),
    "num_layers": ("depth", "depths"),
    "num_hidden_layers": ("depth", "depths"),
    "depth": ("depths",),
    "depths": ("depth",),
    "pool": ("global_pool",),
    "pooling": ("global_pool",),
    "cls_token": ("class_token",),
    "drop_path": ("drop_path_rate",),
    "stochastic_depth": ("drop_path_rate",),
    "stochastic_depth_prob": ("drop_path_rate",),
    "dropout": ("drop_rate",),
    "dropout_rate": ("drop_rate",),
    "head_drop_rate": ("drop_rate",),
    "drop": ("proj_drop_rate",),
    "proj_drop": ("proj_drop_rate",),
    "hidden_dropout_prob": ("proj_drop_rate",),
    "attn_drop": ("attn_drop_rate",),
    "attention_dropout": ("attn_drop_rate",),
    "attn_dropout": ("attn_drop_rate",),
    "attention_probs_dropout_prob": ("attn_drop_rate",),
}
# Name -> the setting that its user may want instead, and how the two differ; {} is the setting.
_DIFFERENT: dict[str, tuple[str, str]] = {
    "mlp_dim": ("mlp_ratio", "{} gives the hidden width of an MLP as a multiple of the token width"),
    "intermediate_size": ("mlp_ratio", "{} gives the hidden width of an MLP as a multiple of the token width"),
    "steps": ("max_epochs", "training is counted in passes over the images: {}"),
    "max_steps": ("max_epochs", "training is counted in passes over the images: {}"),
    "warmup_steps": ("warmup_epochs", "the warm-up is counted in passes over the images: {}"),
    "warmup_ratio": ("warmup_epochs", "the warm-up is counted in passes over the images: {}"),
    "min_lr_ratio": ("min_learning_rate", "{} is the learning rate at the end itself, not a share of the first"),
    "blr": ("learning_rate", "{} is used as it is, whatever the batch size"),
    "momentum": ("weight_decay", "training uses AdamW, which has no momentum to set; {} is its regularisation"),
}  # fmt: skip


def suggest(name: str, choices: Iterable[str]) -> str:
    """Phrase that names the setting that an unknown one was meant for, to append to an error message.

    A name of another library is mapped to the setting of the same meaning; a name that only looks like a setting gets a
    sentence on the difference; any other the nearest spelling.

    Args:
        name: Name as the user wrote it, dotted or not, with or without ``--``.
        choices: Known settings, written alike.

    Returns:
        As :func:`vitrail.errors.closest`.
    """
    known = sorted(set(choices))
    group, plain = _split(name)
    part = group.split(".")[0]
    same = [_find(other, group, known) for other in (plain, *_SAME.get(plain, ()))]
    # A setting of the same part comes first.
    same.sort(key=lambda found: bool(part) and not any(_split(option)[0].split(".")[0] == part for option in found))
    for found in filter(None, same):
        return f"; did you mean {' or '.join(map(repr, found))}?"
    if plain in _DIFFERENT:
        other, sentence = _DIFFERENT[plain]
        if found := _find(other, group, known):
            return f"; {sentence.format(found[0])}"
    # What all names of a part begin with makes none of them more alike.
    siblings = [option for option in known if part in ("", _split(option)[0].split(".")[0])]
    near = nearest(plain, {setting for option in siblings for setting in _names(option)})
    if near is not None:
        return f"; did you mean {' or '.join(map(repr, _find(near, group, siblings)))}?"
    return closest(plain, siblings) if siblings else closest(name, known)


def _split(name: str) -> tuple[str, str]:
    """Split a dotted name into its part and group, empty without one, and the setting."""
    group, _, last = name.removeprefix("--").rpartition(".")
    return group, last


def _names(option: str) -> set[str]:
    """Return the name of a setting within its group, and that of earlier versions."""
    return {_split(option)[1], _split(earlier(option.removeprefix("--")))[1]}


def _find(setting: str, group: str, known: Iterable[str]) -> list[str]:
    """Return the known names of a setting: those of the same group, else of the same part, else all."""
    found = [name for name in known if setting in _names(name)]
    part = group.split(".")[0]
    return (
        [name for name in found if _split(name)[0] == group]
        or [name for name in found if _split(name)[0].split(".")[0] == part]
        or found
    )
