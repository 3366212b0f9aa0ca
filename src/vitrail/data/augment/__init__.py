"""Random augmentation of training batches, and the fixed views of test-time augmentation."""

from vitrail.data.augment.mixing import Mixing
from vitrail.data.augment.pipeline import Augmentation, build_augmentation

__all__ = ["Augmentation", "Mixing", "build_augmentation"]
