"""The five parts of a recipe: data, model, task, trainer and run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from vitrail.config.augment import augment_settings
from vitrail.errors import ConfigError

# What a run may be judged by.
Monitor = Literal["val_accuracy", "val_balanced_accuracy", "val_f1_macro", "val_map", "val_loss"]


def _require(condition: bool, name: str, wanted: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{name} must be {wanted}, got {value!r}")


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split, sized and batched.

    Attributes:
        source: "digits" (scikit-learn's 1,797 handwritten digits), "folder" (images in one folder a class), "table" (a
            CSV or Parquet file with the columns path and label, and split, group or spectral where there are any),
            "parquet" (Parquet files that hold the images themselves, as the Hugging Face hub has them), "hf" (a data
            set of the hub by its name, or one of its library's on this machine; needs the extra hf), "arrays" (.npy,
            .npz or .mat: images, or a scene with a label plane that is cut into patches), "synthetic_leaves" (drawn by
            the code: RGB and five spectral bands, for trying things out) or "unlabelled" (all images in a folder, at
            any depth; for pre-training).
        path: The folder, with train/, val/ (and test/) inside, or class folders to split; the table, in which paths
            are relative to its folder; the Parquet file or the folder of them; owner/name of a data set on the hub; the
            file of arrays.
        img_size: Height and width in pixels that images are brought to; the model's when not given.
        resize: "crop" scales the shorter side and cuts the centre, "squash" scales both sides.
        color: Bands of a folder's images: "rgb" (3) or "gray" (1).
        on_band_mismatch: What to do with an image of other bands: "error", or "convert" it.
        spectral: Second stream for models of two where the data brings none: "none", or "edges", the horizontal and
            vertical slope of each image. Edges hold nothing that the image does not; they are for trying two-stream
            models without a second sensor.
        band_names: Names of the bands in the images, in the files' order. Naming them is how TIFF files of any number
            of bands and of 8, 16 or 32 bits are read; without names images are pictures of the bands of ``color``.
        wavelengths: Of these bands in nm.
        bands: Which bands make the image stream, in order; all when not given. A name with * or ? stands for all that
            match and are not taken yet.
        spectral_bands: Which make the spectral stream; the second files' (or the source's own) when not given, and no
            stream when empty ([]).
        scale: The value that becomes 1 (values above it are cut off, and counted by ``vitrail data stats``); for
            integers the largest of their type when not given, for floats it must be given.
        spectral_path: A folder with a second file for each image, at the same place and of the same stem.
        spectral_band_names: Names of the bands in the second files.
        spectral_wavelengths: Of these in nm.
        spectral_scale: Their value that becomes 1, as for ``scale``.
        statistics: File that ``vitrail data stats --out`` wrote, by which images are normalised; when not given the
            statistics of 500 training images.
        subset: Configuration of a data set of the hub, where it has several.
        image_column: Column of a Parquet file or a data set of the hub with the images; the only one when not given.
        label_column: Its column with the labels; "label" when not given.
        class_names: Names for labels that are numbers, in order (for labels 1, 2, ... too).
        cube: Name of the images or the scene in a file of arrays; the largest array when not given.
        labels: Name of the labels there, or another file: a number for each image; or a plane of numbers over the
            scene (0 is unlabelled), or a plane of shares for each class, of which the largest counts.
        grid: Height and width of a scene that is stored as (bands, pixels); nRow and nCol of the file if it has them.
        patch: Side of the patches cut from a scene, in pixels.
        stride: Pixels from one patch to the next; as many as ``patch`` makes tiles.
        block: Side of the blocks, in pixels, that a scene is split by; three patches when not given.
        num_images: How many synthetic leaves.
        seed: Of the synthetic leaves.
        split: How images that are not split already are split. "stratified": each image by its own hash, so that a
            new one moves no other, and of each class about the wanted share; "exact": exactly that share of each
            class, where a new image may move one at each border (collections that never grow are always split so);
            "grouped": whole groups by their hash; "block": a scene's blocks, which is how scenes are always split.
        group: What makes a group: a column of the table ("group" when not given), or a regular expression that is
            searched in the path, whose first parenthesis (or whole match) names the group.
        fold: Number of the fold, from 0, that is the test split (or the validation split, where a test split is given).
        num_folds: How many folds there are.
        on_unreadable: What to do with files that cannot be read: "error" names them all before anything begins;
            "skip" goes on without them and lists them in the run folder.
        cache: Keep decoded images in memory.
        val_fraction: Share of each class held out for validation, where the data has no such split.
        test_fraction: Share of each class held out for testing, where the data has no such split; of unlabelled images
            none is.
        label_fraction: Share of each class's training images whose labels are used, at least one image; the others are
            left out of training, and pre-training takes all. A smaller share is part of a larger one; of several
            labels an image's rarest is its class here.
        label_seed: Which share that is.
        label_separator: Where a table's label holds several labels of an image, what stands between them, for example
            ";"; one label an image when not given.
        sampling: "shuffle" takes each training image once an epoch; "balanced" takes as many in all, those of rare
            classes more often and those of frequent ones less.
        augment: "none", "light" (small shifts, turns and zooms), "standard" (random crops, flips and colour), "strong"
            (RandAugment, erasing, mixup and CutMix as well) or "leaf" (any way round, gentle colours).
        augment_settings: Single settings that take the place of the preset's, for example ``{mixup: 0.2}``; those of
            :class:`vitrail.config.augment.AugmentSettings`.
        batch_size: Images a step; "auto" measures training steps and takes the smallest that is about as fast as any.
        num_workers: Processes that decode images; 0 decodes in the main process, -1 takes one a core (at most 8)
            for folders and 0 for what lies in memory.
    """

    source: str = "digits"
    path: str | None = None
    img_size: int | tuple[int, int] | None = None
    resize: Literal["crop", "squash"] = "crop"
    color: Literal["rgb", "gray"] = "rgb"
    on_band_mismatch: Literal["error", "convert"] = "error"
    spectral: Literal["none", "edges"] = "none"
    band_names: tuple[str, ...] | None = None
    wavelengths: tuple[float, ...] | None = None
    bands: tuple[str, ...] | None = None
    spectral_bands: tuple[str, ...] | None = None
    scale: float | None = None
    spectral_path: str | None = None
    spectral_band_names: tuple[str, ...] | None = None
    spectral_wavelengths: tuple[float, ...] | None = None
    spectral_scale: float | None = None
    statistics: str | None = None
    subset: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    class_names: tuple[str, ...] | None = None
    cube: str | None = None
    labels: str | None = None
    grid: tuple[int, int] | None = None
    patch: int = 9
    stride: int = 1
    block: int | None = None
    num_images: int = 1200
    seed: int = 0
    split: Literal["stratified", "exact", "grouped", "block"] = "stratified"
    group: str | None = None
    fold: int | None = None
    num_folds: int = 5
    on_unreadable: Literal["error", "skip"] = "error"
    cache: bool = False
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    label_fraction: float = 1.0
    label_seed: int = 0
    label_separator: str | None = None
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    augment: Literal["none", "light", "standard", "strong", "leaf"] = "none"
    augment_settings: dict[str, Any] = field(default_factory=dict)
    batch_size: int | Literal["auto"] = 64
    num_workers: int = -1

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A value out of range.
        """
        _require(self.batch_size == "auto" or self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        _require(self.num_workers >= -1, "data.num_workers", "at least -1", self.num_workers)
        for name in ("val_fraction", "test_fraction"):
            _require(0 <= getattr(self, name) < 1, f"data.{name}", "at least 0 and below 1", getattr(self, name))
        _require(0 < self.label_fraction <= 1, "data.label_fraction", "above 0 and at most 1", self.label_fraction)
        held_out = self.val_fraction + self.test_fraction
        _require(held_out < 1, "data.val_fraction + data.test_fraction", "below 1", held_out)
        self._check_bands()
        for name in ("patch", "stride", "num_images", "block"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"data.{name}", "at least 1", value)
        _require(self.num_folds >= 2, "data.num_folds", "at least 2", self.num_folds)
        if self.fold is not None:
            _require(0 <= self.fold < self.num_folds, "data.fold", f"from 0 to {self.num_folds - 1}", self.fold)
            rest = 1 - 1 / self.num_folds
            _require(self.val_fraction < rest, "data.val_fraction", f"below the {rest:g} beside a fold", held_out)
        if self.group is not None:
            _require(self.split == "grouped", "data.split", "grouped where data.group is given", self.split)
        _require(self.label_separator != "", "data.label_separator", "at least one character", self.label_separator)
        if self.source != "table":
            _require(
                self.label_separator is None, "data.label_separator", "left out but for tables", self.label_separator
            )
        augment_settings(self.augment, self.augment_settings)

    @property
    def images_a_step(self) -> int:
        """The batch size as a number.

        Raises:
            ConfigError: It is "auto" still, which training alone settles.
        """
        if self.batch_size == "auto":
            raise ConfigError("data.batch_size auto is settled by training; give a number here")
        return self.batch_size

    def _check_bands(self) -> None:
        for names, waves in (
            ("band_names", "wavelengths"),
            ("spectral_band_names", "spectral_wavelengths"),
        ):
            given, nm = getattr(self, names), getattr(self, waves)
            if nm is not None:
                _require(given is not None, f"data.{names}", f"given where data.{waves} are", given)
                _require(len(nm) == len(given), f"data.{waves}", f"{len(given)} numbers, one a band", nm)
                _require(all(0 < v < math.inf for v in nm), f"data.{waves}", "above 0 and finite, in nm", nm)
        for names in ("band_names", "spectral_band_names", "bands", "spectral_bands"):
            given = getattr(self, names)
            if given is not None:
                _require(names == "spectral_bands" or len(given) > 0, f"data.{names}", "at least one name", given)
                _require(all(given), f"data.{names}", "names that are not empty", given)
                _require(len(set(given)) == len(given), f"data.{names}", "different names", given)
        for name in ("scale", "spectral_scale"):
            value = getattr(self, name)
            _require(value is None or 0 < value < math.inf, f"data.{name}", "above 0 and finite", value)


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and the settings in which it differs from its variant.

    Attributes:
        name: A variant or a family.
        weights: What to start from: a file of weights, a run folder, or hf://owner/name on the Hugging Face hub;
            random weights when not given.
        new_head: Whether the classifier starts fresh, or with the weights' own (of as many classes).
        bands_rule: How kernels for the weights' bands become kernels for the data's, where these differ: "mean"
            (every band gets the mean kernel), "repeat" (the kernels in turn) or "wavelength" (interpolated at
            band_wavelengths). Without a rule other bands are refused.
        band_wavelengths: Of the data's bands in nm, for bands_rule "wavelength".
        settings: The family's settings (``img_size``, ``embed_dim``, ...); in a recipe they stand beside ``name``.
    """

    name: str = "vit_tiny_patch16_224"
    weights: str | None = None
    new_head: bool = True
    bands_rule: Literal["mean", "repeat", "wavelength"] | None = None
    band_wavelengths: tuple[float, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the settings belong together.

        Raises:
            ConfigError: A rule without weights, or wavelengths and their rule without each other.
        """
        _require(self.weights is not None or self.bands_rule is None, "model.weights", "given", self.weights)
        by_wavelength = self.bands_rule == "wavelength"
        wanted = "given, in nm, for bands_rule wavelength and for no other"
        _require(
            by_wavelength == (self.band_wavelengths is not None),
            "model.band_wavelengths",
            wanted,
            self.band_wavelengths,
        )


# The tasks without labels, and the settings that each has, with its defaults. None is for the task to choose.
PRETRAINING: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.2, "projection_dim": 128, "view_min_scale": 0.2, "color_strength": 0.5},
    "mae": {"mask_ratio": 0.75, "normalize_target": True, "loss_on": "masked", "decoder_dim": None, "decoder_depth": 4},
    "simmim": {
        "mask_ratio": 0.6, "spectral_mask_ratio": None, "mask_size": None, "normalize_target": False,
        "loss_on": "masked",
    },
}  # fmt: skip


@dataclass(frozen=True)
class TaskConfig:
    """What is optimised.

    Attributes:
        name: "classification" for `vitrail train`; for `vitrail pretrain`, which needs no labels, "simclr" (two views
            of an image are to be alike, those of two images are not), "mae" (a ViT sees a few patches and a decoder
            reconstructs the others) or "simmim" (any model reconstructs what was masked).
        label_smoothing: Share of the target spread over all classes, 0 to below 1.
        loss: "cross_entropy", or "focal", which gives less weight to images that are already classified well; "bce",
            binary cross-entropy, for several labels an image and for no other data.
        focal_gamma: How much less: the power of one minus the probability of the true class.
        class_weights: "none", or "balanced": each class weighs in inverse proportion to its training images; of several
            labels, each weighs as much where it is there as where it is not.
        temperature: simclr: what similarities are divided by, 0.2 when not given.
        projection_dim: simclr: width of the vectors that are compared, 128 when not given.
        view_min_scale: simclr: smallest share of an image that a view may show, 0.2 when not given.
        color_strength: simclr: how strongly a view changes colours, 0 to 1; 0.5 when not given.
        mask_ratio: mae, simmim: share of each image that is masked, 0.75 and 0.6 when not given. Of two streams either
            may be 1, reconstructed from the other alone, or 0, shown whole and not reconstructed.
        spectral_mask_ratio: simmim: the same for the spectral stream; ``mask_ratio`` when not given.
        mask_size: simmim: side of a masked square in pixels, a multiple of the model's first stride; when not given,
            the largest doubling of that stride of which six fit along the image's shorter side (32 at 224 pixels).
        normalize_target: mae, simmim: reconstruct each square by its own mean and deviation; true and false when
            not given.
        loss_on: mae, simmim: "masked" pixels (when not given), or "all".
        decoder_dim: mae: width of the decoder; half of the model's, as a multiple of 32, when not given.
        decoder_depth: mae: its blocks, 4 when not given.
        watch_every: Pre-training: epochs between measurements of what has been learned (nearest neighbours and linear
            probe, where images have one label each; RankMe, alignment, uniformity); 0 for none, 1 when not given.
    """

    name: Literal["classification", "simclr", "mae", "simmim"] = "classification"
    label_smoothing: float = 0.1
    loss: Literal["cross_entropy", "focal", "bce"] = "cross_entropy"
    focal_gamma: float = 2.0
    class_weights: Literal["none", "balanced"] = "none"
    temperature: float | None = None
    projection_dim: int | None = None
    view_min_scale: float | None = None
    color_strength: float | None = None
    mask_ratio: float | None = None
    spectral_mask_ratio: float | None = None
    mask_size: int | None = None
    normalize_target: bool | None = None
    loss_on: Literal["masked", "all"] | None = None
    decoder_dim: int | None = None
    decoder_depth: int | None = None
    watch_every: int | None = None

    def __post_init__(self) -> None:
        """Check ranges, and fill in what the task has by default.

        Raises:
            ConfigError: A value out of range, or a setting of another task.
        """
        self._settle()
        self._check_pretraining()
        _require(0 <= self.label_smoothing < 1, "task.label_smoothing", "at least 0, below 1", self.label_smoothing)
        _require(0 <= self.focal_gamma < math.inf, "task.focal_gamma", "at least 0 and finite", self.focal_gamma)

    def _settle(self) -> None:
        """Fill in the defaults of the task, and refuse the settings of others."""
        defaults = dict(PRETRAINING.get(self.name, {}))
        if defaults:
            defaults["watch_every"] = 1
        for setting in dataclasses.fields(self)[1:]:  # the first is the name
            name, value = setting.name, getattr(self, setting.name)
            owners = [task for task, settings in PRETRAINING.items() if name in settings or name == "watch_every"]
            owners = owners or ["classification"]
            if self.name not in owners and value != setting.default:
                raise ConfigError(
                    f"task.{name} belongs to {' and '.join(owners)}, and task.name is {self.name}; leave it out"
                )
            if value is None and name in defaults:
                object.__setattr__(self, name, defaults[name])

    def _check_pretraining(self) -> None:
        for name, low, high, wanted in (
            ("mask_ratio", 0, 1, "from 0 to 1"),
            ("spectral_mask_ratio", 0, 1, "from 0 to 1"),
            ("color_strength", 0, 1, "from 0 to 1"),
            ("mask_size", 1, math.inf, "at least 1"),
            ("projection_dim", 1, math.inf, "at least 1"),
            ("decoder_depth", 1, math.inf, "at least 1"),
            ("watch_every", 0, math.inf, "at least 0"),
        ):
            value = getattr(self, name)
            _require(value is None or low <= value <= high, f"task.{name}", wanted, value)
        for name in ("temperature", "view_min_scale"):
            value = getattr(self, name)
            _require(value is None or 0 < value <= 1, f"task.{name}", "above 0 and at most 1", value)
        width = self.decoder_dim
        _require(width is None or (width > 0 and width % 32 == 0), "task.decoder_dim", "a multiple of 32", width)


@dataclass(frozen=True)
class TrainerConfig:
    """How it is optimised, and on what.

    Attributes:
        max_epochs: Passes over the training split.
        max_minutes: Time after which training ends, validation among it, where the epochs have not ended it; the
            learning rate then falls by the clock. 0 for no limit.
        learning_rate: Of AdamW after the warm-up; "auto" tries a range of rates in 80 steps and takes one
            between that at which the loss falls fastest and that at which it is lowest.
        min_learning_rate: At the end of the cosine.
        weight_decay: On weights; biases, norms, positions and class tokens have none.
        layer_decay: Factor on the learning rate from each group of layers to the one before it, the classifier's
            being 1; below 1 for fine-tuning.
        freeze_epochs: Epochs at the start in which the classifier alone is trained.
        unfreeze_every: After these, epochs until one more group of layers is trained, from the classifier back to the
            patches; 0 trains all of them at once.
        accumulate: Steps whose gradients are added up before the weights move.
        ema_decay: Of the exponential moving average of the weights, which is validated and kept in place of the
            weights themselves; 0 for none.
        grad_checkpointing: Compute activations twice instead of keeping them: less memory, more time.
        compile: Compile the model with torch.compile: slower to begin, and at each size of images, faster after that.
        progressive_sizes: Heights of smaller images to train on first, in equal parts of the epochs before the last
            part, which is at the full size; validation is at the full size always.
        warmup_epochs: Over which the learning rate rises linearly from near 0.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        early_stopping_patience: Epochs without a better value before it stops; 0 never stops early.
        early_stopping_monitor: Which value that is, as for ``monitor``.
        monitor: What "best" means: highest "val_accuracy" (of several labels: all of an image's right),
            "val_balanced_accuracy" (the mean of the classes'; one label an image), "val_f1_macro" or "val_map" (mean
            average precision; several labels), or lowest "val_loss".
        accelerator: "auto", "cpu", "gpu", "cuda", "mps" or "tpu".
        devices: How many processes, each with its share of every batch; one a GPU, or any number on a CPU.
        num_nodes: Machines with as many devices each.
        strategy: How several processes train together: "ddp", each with the whole model; "fsdp", each with its share of
            the weights, gradients and moments, gathered a block at a time: less memory for more to send; "auto" is ddp
            where there are several. One process has nobody to share with and takes auto alone.
        precision: "auto", which takes "bf16-mixed" where the hardware multiplies bfloat16 itself and "32-true"
            elsewhere; or "32-true", "bf16-mixed", "16-mixed", "bf16-true", as Lightning names them.
        deterministic: Refuse operations whose result differs from run to run.
    """

    max_epochs: int = 20
    max_minutes: float = 0.0
    learning_rate: float | Literal["auto"] = 1e-3
    min_learning_rate: float = 1e-6
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    freeze_epochs: int = 0
    unfreeze_every: int = 0
    accumulate: int = 1
    ema_decay: float = 0.0
    grad_checkpointing: bool = False
    compile: bool = False
    progressive_sizes: tuple[int, ...] = ()
    warmup_epochs: float = 2.0
    gradient_clip: float = 1.0
    early_stopping_patience: int = 0
    early_stopping_monitor: Monitor = "val_loss"
    monitor: Monitor = "val_accuracy"
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A value out of range.
        """
        _require(self.max_epochs >= 1, "trainer.max_epochs", "at least 1", self.max_epochs)
        rate = self.learning_rate
        _require(rate == "auto" or 0 < rate < math.inf, "trainer.learning_rate", "above 0 and finite", rate)
        _require(0 < self.layer_decay <= 1, "trainer.layer_decay", "above 0 and at most 1", self.layer_decay)
        _require(self.accumulate >= 1, "trainer.accumulate", "at least 1", self.accumulate)
        _require(0 <= self.ema_decay < 1, "trainer.ema_decay", "at least 0 and below 1", self.ema_decay)
        low, high = self.min_learning_rate, math.inf if rate == "auto" else rate
        wanted = (
            f"between 0 and the learning rate {rate}" if rate == "auto" else f"between 0 and the learning rate {rate:g}"
        )
        _require(0 <= low <= high and low < math.inf, "trainer.min_learning_rate", wanted, low)
        for name in (
            "max_minutes",
            "weight_decay",
            "warmup_epochs",
            "gradient_clip",
            "early_stopping_patience",
            "freeze_epochs",
            "unfreeze_every",
        ):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"trainer.{name}", "at least 0 and finite", value)
        for name in ("devices", "num_nodes"):
            _require(getattr(self, name) >= 1, f"trainer.{name}", "at least 1", getattr(self, name))
        self._check_strategy()

    def _check_strategy(self) -> None:
        if self.strategy != "auto" and self.devices * self.num_nodes == 1:
            raise ConfigError(
                f"trainer.strategy {self.strategy!r} is for several processes, and trainer.devices 1 asks for one; "
                "raise trainer.devices, or use trainer.strategy auto"
            )
        if self.strategy != "fsdp":
            return
        for name, refused, remedy in (
            ("ema_decay", self.ema_decay > 0, "leave it out"),
            ("compile", self.compile, "leave it out"),
            ("precision", self.precision == "16-mixed", "use bf16-mixed"),
            ("accelerator", self.accelerator in ("mps", "tpu"), "use gpu or cpu"),
        ):
            if refused:
                raise ConfigError(
                    f"trainer.{name} {getattr(self, name)!r} cannot be had with trainer.strategy 'fsdp', which shares "
                    f"the model out among processes; {remedy}, or use trainer.strategy ddp"
                )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate as a number.

        Raises:
            ConfigError: It is "auto" still, which training alone settles.
        """
        if self.learning_rate == "auto":
            raise ConfigError("trainer.learning_rate auto is settled by training; give a number here")
        return self.learning_rate


@dataclass(frozen=True)
class RunConfig:
    """Where the run is written, and its seed.

    Attributes:
        dir: The run folder; ``runs/`` and the model's name when not given. A folder that holds a run is refused
            unless it is resumed or overwritten.
        seed: Of initial weights, order of the images, and augmentation.
        overwrite: Delete the run that the folder holds.
        tensorboard: Write TensorBoard events beside metrics.csv.
        explain_images: While it trains, draw what the model looks at in so many fixed validation images, into
            figures/explanations (and to TensorBoard); 0 for none. What is trained does not depend on it.
        explain_every: Epochs from one drawing to the next; the last is always drawn.
        explain_method: By which method (``vitrail explain --methods`` lists them), each image for its own class where
            the method explains one.
    """

    dir: str | None = None
    seed: int = 0
    overwrite: bool = False
    tensorboard: bool = True
    explain_images: int = 0
    explain_every: int = 5
    explain_method: str = "rollout"

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A value out of range.
        """
        _require(self.dir != "", "run.dir", "the name of a folder, or left out", self.dir)
        _require(0 <= self.seed < 2**32, "run.seed", "between 0 and 4294967295", self.seed)
        _require(0 <= self.explain_images <= 32, "run.explain_images", "from 0 to 32", self.explain_images)
        _require(self.explain_every >= 1, "run.explain_every", "at least 1", self.explain_every)


@dataclass(frozen=True)
class Recipe:
    """All that a run is made from.

    Attributes:
        data: Which images.
        model: Which model.
        task: What is optimised.
        trainer: How it is optimised.
        run: Where it is written.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Check what concerns two parts.

        Raises:
            ConfigError: A batch that does not divide among the processes, or drawings of a model that is sharded.
        """
        processes = self.trainer.devices * self.trainer.num_nodes
        wanted = f"a multiple of the {processes} processes that share it"
        size = self.data.batch_size
        _require(size == "auto" or size % processes == 0, "data.batch_size", wanted, size)
        if self.run.explain_images and self.trainer.strategy == "fsdp":
            raise ConfigError(
                f"run.explain_images {self.run.explain_images} cannot be had with trainer.strategy 'fsdp': the process "
                "that draws has a share of the model only; leave it out and use `vitrail explain` on the run, or use "
                "trainer.strategy ddp"
            )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The recipe as nested plain values, the model's settings beside its name, as YAML has them."""
        content = dataclasses.asdict(self)
        content["model"] = {k: v for k, v in content["model"].items() if k != "settings"} | self.model.settings
        return {part: {k: _plain(v) for k, v in values.items()} for part, values in content.items()}

    @property
    def run_dir(self) -> str:
        """The run folder, also where the recipe does not name one."""
        return self.run.dir or f"runs/{self.model.name}"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
