"""Filters for warnings of libraries that a user of vitrail cannot act on."""

from __future__ import annotations

import logging
import warnings

# Pattern of the message -> reason.
_SILENCED = {
    r".*does not have many workers.*": "data.loader.num_workers is chosen by the machine, or by the recipe",
    r"This DataLoader will create.*": "a number of workers that was asked for",
    r".*isinstance\(treespec, LeafSpec\).*": "Lightning's own use of torch",
    r".*number of training batches.*": "log_every_n_steps is not a setting of a recipe",
    r".*Checkpoint directory.*exists and is not empty.*": "the run folder is checked before",
    r".*callbacks used to create the checkpoint need to be provided.*": "a patience that has been taken back",
    r".*torch.jit.script.*": "torchmetrics' own use of torch",
    r".*sync_dist=True.*": "metrics of several processes are reduced by torchmetrics",
    r".*defined a `validation_step` but have no `val_dataloader`.*": "pre-training may have no validation images",
    r".*You're using the WeightAveraging callback with a model that overrides.*": "an average of shards is refused",
    r".*FSDP2-wrapped module .* returned a view tensor.*": "no model changes in place what a block gives",
    r"Encountered `nan` values in tensor.*": "refused with a message of our own",
    r".*AMP with fp16 is not supported on CPU.*": "refused with a message of our own",
}


def silence_libraries() -> None:
    """Silence Lightning's notes about itself and the warnings listed here, for the rest of the process."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for pattern in _SILENCED:
        warnings.filterwarnings("ignore", message=pattern)
