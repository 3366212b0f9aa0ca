"""The five parts of a recipe: data, model, task, trainer and run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from vitrail.config.checks import expand_homes, require
from vitrail.config.data import DataConfig
from vitrail.config.data_groups import GROUPS
from vitrail.errors import ConfigError

# Metrics that choose the best epoch.
Monitor = Literal["val_accuracy", "val_balanced_accuracy", "val_f1_macro", "val_map", "val_miou", "val_loss"]


@dataclass(frozen=True)
class ModelConfig:
    """Model, its weights, and the settings that override its variant.

    Attributes:
        name: A variant or a family.
        weights: Initial weights: a file, a run folder, or hf://owner/name on the Hugging Face hub;
            random weights when not given.
        weights_key: Weights to load from a file that holds several: their path or prefix in it ("model",
            "student.backbone"). When not given, an average of the weights or a teacher comes first; the run says so.
        allow_missing: Names or shell patterns of the model's keys that the weights may lack.
        allow_unexpected: Names or shell patterns of keys of the weights that may be left out.
        normalization: Statistics for the normalisation of images: those of the "data", or the mean and standard
            deviation that the "weights" give, stream by stream. Where the two differ, the run prints both.
        new_head: Whether the classifier starts fresh, or with the weights' own (of as many classes).
        bands_rule: Rule that converts kernels for the weights' bands to the data's, where these differ: "mean"
            (every band gets the mean kernel), "repeat" (the kernels in turn) or "wavelength" (interpolated at
            band_wavelengths). Without a rule other bands are refused.
        band_wavelengths: Wavelengths of the data's bands in nm, for bands_rule "wavelength".
        source_wavelengths: Wavelengths of the weights' bands in nm, for bands_rule "wavelength"; when not given, three
            bands are red, green and blue.
        settings: The family's settings (``img_size``, ``embed_dim``, ...); in a recipe they stand beside ``name``.
    """

    name: str = "vit_tiny_patch16_224"
    weights: str | None = None
    weights_key: str | None = None
    allow_missing: tuple[str, ...] = ()
    allow_unexpected: tuple[str, ...] = ()
    normalization: Literal["data", "weights"] = "data"
    new_head: bool = True
    bands_rule: Literal["mean", "repeat", "wavelength"] | None = None
    band_wavelengths: tuple[float, ...] | None = None
    source_wavelengths: tuple[float, ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check combinations of settings.

        Raises:
            ConfigError: A setting of weights without weights, or wavelengths and their rule without each other.
        """
        expand_homes("model", self, ("weights",))
        for name in ("bands_rule", "weights_key", "allow_missing", "allow_unexpected"):
            needless = self.weights is None and bool(getattr(self, name))
            require(not needless, "model.weights", f"given, for model.{name}", self.weights)
        by_data = self.weights is not None or self.normalization == "data"
        require(by_data, "model.normalization", "data without model.weights", self.normalization)
        by_wavelength = self.bands_rule == "wavelength"
        wanted = "given, in nm, for bands_rule wavelength and for no other"
        require(
            by_wavelength == (self.band_wavelengths is not None),
            "model.band_wavelengths",
            wanted,
            self.band_wavelengths,
        )
        needless = self.source_wavelengths is not None and not by_wavelength
        require(
            not needless, "model.source_wavelengths", "left out without bands_rule wavelength", self.source_wavelengths
        )


# The tasks without labels, and the settings that each has, with its defaults. None is for the task to choose.
PRETRAINING: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.2, "projection_dim": 128, "view_min_scale": 0.2, "color_strength": 0.5},
    "mae": {"mask_ratio": None, "normalize_target": True, "loss_on": "masked", "decoder_dim": None, "decoder_depth": 4},
    "simmim": {
        "mask_ratio": 0.6, "spectral_mask_ratio": None, "mask_size": None, "normalize_target": False,
        "loss_on": "masked",
    },
}  # fmt: skip
# The settings that tasks have for themselves, with their defaults.
_SETTINGS_OF: dict[str, dict[str, Any]] = {
    **PRETRAINING,
    "distill": {"teacher": None, "distillation": "soft", "alpha": 0.5, "temperature": 3.0},
}


@dataclass(frozen=True)
class TaskConfig:
    """Task and its loss.

    Attributes:
        name: "classification" for `vitrail train`, "distill", which also learns from a teacher's predictions, or
            "parts", a class for each point of a cloud (``data.points.part``); for `vitrail pretrain`, which needs no
            labels, "simclr" (two views of an image are to be alike, those of two images are not), "mae" (the model sees
            a few patches and a decoder reconstructs the others) or "simmim" (any model reconstructs what was masked).
        label_smoothing: Share of the target spread over all classes, 0 to below 1.
        loss: "cross_entropy", or "focal", which gives less weight to images that are already classified well; "bce",
            binary cross-entropy, for multi-label data alone.
        focal_gamma: Exponent gamma of the focal weight (1 - p)^gamma, p the probability of the true class.
        class_weights: "none", or "balanced": each class weighs in inverse proportion to its training images; of several
            labels, each weighs as much where it is there as where it is not.
        teacher: distill: a run folder, or the folder of an export, with the classes and bands of the data.
        distillation: distill: "soft" (when not given), the teacher's probabilities at ``temperature``, or "hard", its
            class. A model with ``dist_token`` learns it with that token.
        alpha: distill: weight of the teacher in the loss, 0 to 1; 0.5 when not given.
        temperature: simclr: divisor of the similarities, 0.2 when not given. distill: divisor of the logits,
            3 when not given.
        projection_dim: simclr: width of the vectors that are compared, 128 when not given.
        view_min_scale: simclr: smallest share of an image that a view may show, 0.2 when not given.
        color_strength: simclr: how strongly a view changes colours, 0 to 1; 0.5 when not given.
        mask_ratio: mae, simmim: share of each image that is masked, 0.75 and 0.6 when not given; of clips, for mae
            alone, the share of each slice of time, the same place in all of them, 0.9 when not given. Of two streams
            either may be 1, reconstructed from the other alone, or 0, shown whole and not reconstructed.
        spectral_mask_ratio: simmim: the same for the spectral stream; ``mask_ratio`` when not given.
        mask_size: simmim: side of a masked square in pixels, a multiple of the model's first stride; when not given,
            the largest doubling of that stride of which six fit along the image's shorter side (32 at 224 pixels).
        normalize_target: mae, simmim: reconstruct each square by its own mean and deviation (of clips each band of a
            tubelet); true and false when not given.
        loss_on: mae, simmim: "masked" pixels (when not given), or "all".
        decoder_dim: mae: width of the decoder; half of the model's, as a multiple of 32, when not given.
        decoder_depth: mae: its blocks, 4 when not given.
        watch_every: Pre-training: epochs between evaluations of the representation (nearest neighbours and linear
            probe, where images have one label each; RankMe, alignment, uniformity); 0 for none, 1 when not given.
    """

    name: Literal["classification", "distill", "parts", "simclr", "mae", "simmim"] = "classification"
    label_smoothing: float = 0.1
    loss: Literal["cross_entropy", "focal", "bce"] = "cross_entropy"
    focal_gamma: float = 2.0
    class_weights: Literal["none", "balanced"] = "none"
    teacher: str | None = None
    distillation: Literal["hard", "soft"] | None = None
    alpha: float | None = None
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
        """Check ranges and fill in the defaults of the task.

        Raises:
            ConfigError: A value out of range, or a setting of another task.
        """
        self._fill_defaults()
        self._check_pretraining()
        self._check_distillation()
        require(0 <= self.label_smoothing < 1, "task.label_smoothing", "at least 0, below 1", self.label_smoothing)
        require(0 <= self.focal_gamma < math.inf, "task.focal_gamma", "at least 0 and finite", self.focal_gamma)

    def _fill_defaults(self) -> None:
        """Fill in the defaults of the task, and refuse the settings of others."""
        defaults = dict(_SETTINGS_OF.get(self.name, {}))
        if self.name in PRETRAINING:
            defaults["watch_every"] = 1
        for setting in dataclasses.fields(self)[1:]:  # the first is the name
            name, value = setting.name, getattr(self, setting.name)
            owners = [task for task, settings in _SETTINGS_OF.items() if name in settings]
            owners = list(PRETRAINING) if name == "watch_every" else owners or ["classification", "distill", "parts"]
            if self.name not in owners and value != setting.default:
                raise ConfigError(
                    f"task.{name} belongs to {' and '.join(owners)}, and task.name is {self.name}; leave it out"
                )
            if value is None and name in defaults:
                object.__setattr__(self, name, defaults[name])

    def _check_distillation(self) -> None:
        if self.name != "distill":
            return
        expand_homes("task", self, ("teacher",))
        if self.teacher is None:
            raise ConfigError("task.teacher is missing: the run folder or export that task.name distill learns from")
        if self.loss == "bce":
            raise ConfigError("task.name distill needs one label an image; use task.loss cross_entropy or focal")
        alpha, temperature = self.alpha, self.temperature
        require(alpha is not None and 0 <= alpha <= 1, "task.alpha", "from 0 to 1", alpha)
        above = temperature is not None and 0 < temperature < math.inf
        require(above, "task.temperature", "above 0 and finite", temperature)

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
            require(value is None or low <= value <= high, f"task.{name}", wanted, value)
        for name in ("temperature", "view_min_scale"):
            value = getattr(self, name)
            if self.name != "distill":
                require(value is None or 0 < value <= 1, f"task.{name}", "above 0 and at most 1", value)
        width = self.decoder_dim
        require(width is None or (width > 0 and width % 32 == 0), "task.decoder_dim", "a multiple of 32", width)


@dataclass(frozen=True)
class TrainerConfig:
    """Optimisation and hardware.

    Attributes:
        max_epochs: Passes over the training split.
        max_minutes: Time after which training ends, validation among it, where the epochs have not ended it; the
            learning rate then falls by the clock. 0 for no limit.
        learning_rate: Learning rate of AdamW after the warm-up; "auto" tries a range of rates in 80 steps and takes one
            between that at which the loss falls fastest and that at which it is lowest.
        min_learning_rate: Final learning rate of the cosine; the lowest one of the other schedules.
        schedule: Learning rate after the warm-up: "cosine" to min_learning_rate, "multistep" (times ``gamma`` after
            each of ``milestones``), "step" (times ``gamma`` every ``step_size`` epochs) or "constant".
        milestones: Epochs of schedule multistep, increasing.
        step_size: Epochs between two steps of schedule step.
        gamma: Factor of each step, above 0 and below 1; 0.1 when not given.
        weight_decay: Weight decay of AdamW; biases, norms, positions and class tokens have none.
        layer_decay: Factor on the learning rate from each group of layers to the one before it, the classifier's
            being 1; below 1 for fine-tuning.
        freeze_epochs: Epochs at the start in which the classifier alone is trained.
        unfreeze_every: Epochs, after ``freeze_epochs``, until one more group of layers is trained, from the classifier
            back to the patches; 0 trains all of them at once.
        accumulate: Steps whose gradients are added up before the weights move.
        ema_decay: Decay of the exponential moving average of the weights, which is validated and kept in place of the
            weights themselves; 0 for none.
        grad_checkpointing: Compute activations twice instead of keeping them: less memory, more time.
        compile: Compile the model with torch.compile: slower to begin, and at each size of images, faster after that.
        progressive_sizes: Heights of smaller images to train on first, in equal parts of the epochs before the last
            part, which is at the full size; validation is at the full size always.
        warmup_epochs: Epochs in which the learning rate rises linearly from near 0.
        gradient_clip: Largest norm of the gradient; 0 does not clip.
        early_stopping_patience: Epochs without a better value before it stops; 0 never stops early.
        early_stopping_monitor: Validation value for early stopping, as for ``monitor``.
        monitor: Value that defines the best epoch: highest "val_accuracy" (multi-label: all labels of an image
            correct), "val_balanced_accuracy" (the mean of the classes'; one label an image), "val_f1_macro", "val_map"
            (mean average precision; multi-label) or "val_miou" (mean intersection over union; parts), or lowest
            "val_loss". When not given, val_miou for ``task.name parts`` and val_accuracy for others.
        accelerator: "auto", "cpu", "gpu", "cuda", "mps" or "tpu".
        devices: Number of processes, each with its share of every batch; one per GPU, or any number on a CPU.
        num_nodes: Machines with as many devices each.
        strategy: Strategy of several processes: "ddp", each with the whole model; "fsdp", each with its share of
            the weights, gradients and moments, gathered a block at a time: less memory for more to send; "auto" is ddp
            where there are several. One process has nobody to share with and takes auto alone.
        precision: "auto", which takes "bf16-mixed" where the hardware multiplies bfloat16 itself and a few timed
            steps of the model gain at least 10 % by it, "32-true" elsewhere; or "32-true", "bf16-mixed", "16-mixed",
            "bf16-true", as Lightning names them.
        deterministic: Refuse operations whose result differs from run to run.
    """

    max_epochs: int = 20
    max_minutes: float = 0.0
    learning_rate: float | Literal["auto"] = 1e-3
    min_learning_rate: float = 1e-6
    schedule: Literal["cosine", "multistep", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = ()
    step_size: float | None = None
    gamma: float | None = None
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
    monitor: Monitor | None = None
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
        require(self.max_epochs >= 1, "trainer.max_epochs", "at least 1", self.max_epochs)
        rate = self.learning_rate
        require(rate == "auto" or 0 < rate < math.inf, "trainer.learning_rate", "above 0 and finite", rate)
        require(0 < self.layer_decay <= 1, "trainer.layer_decay", "above 0 and at most 1", self.layer_decay)
        require(self.accumulate >= 1, "trainer.accumulate", "at least 1", self.accumulate)
        require(0 <= self.ema_decay < 1, "trainer.ema_decay", "at least 0 and below 1", self.ema_decay)
        low, high = self.min_learning_rate, math.inf if rate == "auto" else rate
        wanted = (
            f"between 0 and the learning rate {rate}" if rate == "auto" else f"between 0 and the learning rate {rate:g}"
        )
        require(0 <= low <= high and low < math.inf, "trainer.min_learning_rate", wanted, low)
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
            require(0 <= value < math.inf, f"trainer.{name}", "at least 0 and finite", value)
        for name in ("devices", "num_nodes"):
            require(getattr(self, name) >= 1, f"trainer.{name}", "at least 1", getattr(self, name))
        self._check_schedule()
        self._check_strategy()

    def _check_schedule(self) -> None:
        """Check that the schedule has its settings and no others; fill in gamma."""
        for name, value, owners in (
            ("milestones", self.milestones, ("multistep",)),
            ("step_size", self.step_size, ("step",)),
            ("gamma", self.gamma, ("multistep", "step")),
        ):
            if value not in (None, ()) and self.schedule not in owners:
                raise ConfigError(
                    f"trainer.{name} belongs to trainer.schedule {' and '.join(owners)}, and it is {self.schedule}; "
                    "leave it out"
                )
        if self.schedule == "multistep":
            points = self.milestones
            rising = all(a < b for a, b in zip((0.0, *points), points, strict=False))
            require(bool(points) and rising, "trainer.milestones", "increasing epochs above 0", points)
        if self.schedule == "step":
            size = self.step_size
            require(size is not None and 0 < size < math.inf, "trainer.step_size", "above 0 and finite", size)
        if self.schedule in ("multistep", "step"):
            gamma = 0.1 if self.gamma is None else self.gamma
            require(0 < gamma < 1, "trainer.gamma", "above 0 and below 1", gamma)
            object.__setattr__(self, "gamma", gamma)

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
                    f"trainer.{name} {getattr(self, name)!r} is not supported with trainer.strategy 'fsdp', which "
                    f"shards the model over processes; {remedy}, or use trainer.strategy ddp"
                )

    @property
    def peak_learning_rate(self) -> float:
        """Return the learning rate as a number.

        Raises:
            ConfigError: It is "auto" still, which only training resolves.
        """
        if self.learning_rate == "auto":
            raise ConfigError("trainer.learning_rate auto is resolved by training; give a number here")
        return self.learning_rate


@dataclass(frozen=True)
class RunConfig:
    """Run folder, seed and explanations during training.

    Attributes:
        dir: The run folder; ``runs/`` and the model's name when not given. A folder that holds a run is refused
            unless it is resumed or overwritten.
        seed: Seed of initial weights, order of the images, and augmentation.
        overwrite: Delete the run that the folder holds.
        tensorboard: Write TensorBoard events beside metrics.csv.
        explain_images: Number of fixed validation images whose attribution maps are drawn during training, into
            figures/explanations (and to TensorBoard); 0 for none. Training does not depend on it.
        explain_every: Epochs from one drawing to the next; the last is always drawn.
        explain_method: Attribution method (``vitrail explain --methods`` lists them), each image for its own class
            where the method explains one; "auto" is rollout where the model has one, else gradcam.
    """

    dir: str | None = None
    seed: int = 0
    overwrite: bool = False
    tensorboard: bool = True
    explain_images: int = 0
    explain_every: int = 5
    explain_method: str = "auto"

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: A value out of range.
        """
        expand_homes("run", self, ("dir",))
        require(self.dir != "", "run.dir", "the name of a folder, or left out", self.dir)
        require(0 <= self.seed < 2**32, "run.seed", "between 0 and 4294967295", self.seed)
        require(0 <= self.explain_images <= 32, "run.explain_images", "from 0 to 32", self.explain_images)
        require(self.explain_every >= 1, "run.explain_every", "at least 1", self.explain_every)


@dataclass(frozen=True)
class Recipe:
    """Settings of a run.

    Attributes:
        data: Images, splits and batches.
        model: Model and its first weights.
        task: Task and its loss.
        trainer: Optimisation and hardware.
        run: Run folder and seed.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        """Check combinations of settings of two parts; fill in the monitor by the task.

        Raises:
            ConfigError: A batch that does not divide among the processes, rare classes that are corrected for twice,
                labels of points that are an input or that the task does not learn, or drawings of a model that is
                sharded.
        """
        if self.trainer.monitor is None:
            monitor: Monitor = "val_miou" if self.task.name == "parts" else "val_accuracy"
            object.__setattr__(self, "trainer", dataclasses.replace(self.trainer, monitor=monitor))
        self._check_labels_of_points()
        processes = self.trainer.devices * self.trainer.num_nodes
        wanted = f"a multiple of the {processes} processes that share it"
        size = self.data.batch_size
        require(size == "auto" or size % processes == 0, "data.batch_size", wanted, size)
        # Weights of binary cross-entropy balance presence and absence of each label, not the labels.
        twice = self.data.loader.sampling == "balanced" and self.task.class_weights == "balanced"
        if twice and self.task.loss != "bce":
            raise ConfigError(
                "data.loader.sampling 'balanced' and task.class_weights 'balanced' correct for rare classes twice, "
                "which then count for more than frequent ones; leave one of them out"
            )
        if self.run.explain_images and self.trainer.strategy == "fsdp":
            raise ConfigError(
                f"run.explain_images {self.run.explain_images} is not supported with trainer.strategy 'fsdp': the "
                "process that draws has a shard of the model; leave it out and use `vitrail explain` on the run, or "
                "use trainer.strategy ddp"
            )

    def _check_labels_of_points(self) -> None:
        part, features = self.data.points.part, self.data.points.features or ()
        if part is None:
            return
        if self.task.name != "parts":
            raise ConfigError(
                f"data.points.part {part!r} requires task.name parts, got task.name {self.task.name}; omit it, or use "
                "task.name parts"
            )
        if part in features:
            raise ConfigError(
                f"data.points.features {list(features)} has the labels of points (data.points.part {part!r}), which "
                "the model is to predict; leave them out of data.points.features"
            )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Convert to nested plain values, the model's settings beside its name, as in YAML."""
        content = dataclasses.asdict(self)
        content["model"] = {k: v for k, v in content["model"].items() if k != "settings"} | self.model.settings
        return {part: {k: plain(v) for k, v in values.items()} for part, values in content.items()}

    @property
    def run_dir(self) -> str:
        """The run folder; ``runs/`` and the model's name if the recipe names none."""
        return self.run.dir or f"runs/{self.model.name}"


def flat_settings(recipe: Recipe) -> dict[str, Any]:
    """List the settings of a recipe: dotted name -> plain value; groups of data are resolved into their settings."""
    result: dict[str, Any] = {}
    for part, values in recipe.to_dict().items():
        for key, value in values.items():
            if part == "data" and key in GROUPS:
                result |= {f"data.{key}.{name}": inner for name, inner in value.items()}
            else:
                result[f"{part}.{key}"] = value
    return result


def plain(value: Any) -> Any:
    """Convert dataclasses and tuples inside a value to the dicts and lists of JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    return value
