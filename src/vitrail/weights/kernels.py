"""Adapt the first convolution to other bands by a stated rule, and to other patch sizes by resampling."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.errors import ConfigError, WeightsError, plural
from vitrail.weights.remedies import PYTHON, Spelling

BandRuleName = Literal["mean", "repeat", "wavelength"]
BAND_RULES: tuple[str, ...] = get_args(BandRuleName)
Wavelengths = Sequence[float] | Mapping[str, Sequence[float]]

# Red, green and blue of a colour image, in nm (the centres of Sentinel-2's bands 4, 3 and 2).
RGB_NM = (665.0, 560.0, 490.0)


class InputKernel(NamedTuple):
    """Convolution over the input bands of a model.

    Attributes:
        stream: The input that it takes, as the model's streams are called.
        is_patch: Whether it projects whole patches, so that another patch size means resampling it.
    """

    stream: str
    is_patch: bool = True


def kernels_of_stem(stem: nn.Module, in_chans: int) -> dict[str, InputKernel]:
    """Find the stem's convolution of the bands, which loading adapts to other bands; none leaves nothing to adapt."""
    for name, part in stem.named_modules():
        if isinstance(part, nn.Conv2d) and part.in_channels == in_chans and part.groups == 1:
            return {f"stem.{name}.weight" if name else "stem.weight": InputKernel("image", is_patch=False)}
    return {}


@dataclass(frozen=True)
class BandRule:
    """Rule that converts kernels to other bands.

    Every rule scales by the number of old over the number of new bands, so that the response keeps its size:
    ``mean`` keeps that to an image of equal bands exactly.

    Attributes:
        name: "mean", "repeat" or "wavelength".
        wavelengths: Wavelengths of the model's bands in nm, for "wavelength"; by stream for a model of several.
        source_wavelengths: Wavelengths of the checkpoint's bands in nm; those of red, green and blue for three bands of
            an image when not given.
        spelling: Spelling of options in the remedies of errors.
    """

    name: BandRuleName
    wavelengths: Wavelengths | None = None
    source_wavelengths: Wavelengths | None = None
    spelling: Spelling = field(default=PYTHON, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            ConfigError: An unknown rule, wavelengths missing or without use, or no wavelengths in nm.
        """
        if self.name not in BAND_RULES:
            raise ConfigError(f"bands must be one of {', '.join(BAND_RULES)}, got {self.name!r}")
        if self.name == "wavelength" and self.wavelengths is None:
            raise ConfigError(
                f"{self._rule} needs {self.spelling.give('band_wavelengths')}: a wavelength in nm for each band"
            )
        for name in ("wavelengths", "source_wavelengths"):
            given = getattr(self, name)
            if given is None:
                continue
            label = self.spelling.give("band_wavelengths" if name == "wavelengths" else name)
            if self.name != "wavelength":
                raise ConfigError(f"{label} needs {self._rule}, got {self.spelling.give('bands', self.name)}")
            plain: Wavelengths = (
                {stream: _parse_wavelengths(values, label) for stream, values in given.items()}
                if isinstance(given, Mapping)
                else _parse_wavelengths(given, label)
            )
            object.__setattr__(self, name, plain)

    @property
    def _rule(self) -> str:
        return self.spelling.give("bands", "wavelength")

    def applies(self, kernel: Tensor, in_chans: int, stream: str) -> bool:
        """Return whether a kernel must or may change: other number of bands, or other wavelengths where given."""
        if kernel.shape[1] != in_chans:
            return True
        return self.name == "wavelength" and len(_of_stream(self.wavelengths, stream) or ()) == in_chans

    def apply(self, kernel: Tensor, in_chans: int, stream: str) -> tuple[Tensor, str]:
        """Compute the kernels of other bands.

        Args:
            kernel: Shape ``(out, S, kh, kw)``.
            in_chans: Bands that are wanted, M.
            stream: The input they are of, to choose among wavelengths by stream.

        Returns:
            Shape ``(out, M, kh, kw)``, and what was done (empty where that changed nothing).

        Raises:
            WeightsError: Wavelengths that do not fit the numbers of bands.
        """
        bands = kernel.shape[1]
        mixing, how = self._mixing(bands, in_chans, stream)
        if bands == in_chans and torch.equal(mixing, torch.eye(bands, dtype=mixing.dtype)):
            return kernel, ""
        scaled = mixing * (bands / in_chans)
        # Summed band by band in double precision; the result has the checkpoint's own precision.
        mixed = torch.einsum("ms,oshw->omhw", scaled.to(kernel.device), kernel.double())
        scale = "" if bands == in_chans else f", times {bands}/{in_chans}"
        return mixed.to(kernel.dtype), f"bands from {bands} to {in_chans}: {how}{scale}"

    def _mixing(self, bands: int, in_chans: int, stream: str) -> tuple[Tensor, str]:
        """Compute the share of each old band in each new one, ``(M, S)``, rows summing to 1, with a description."""
        if self.name == "mean":
            return torch.full((in_chans, bands), 1 / bands, dtype=torch.float64), "mean of all kernels"
        mixing = torch.zeros(in_chans, bands, dtype=torch.float64)
        if self.name == "repeat":
            for band in range(in_chans):
                mixing[band, band % bands] = 1
            left_out = f" (the first {in_chans} only)" if in_chans < bands else ""
            return mixing, f"kernels repeated in turn{left_out}"
        new = self._checked(self.wavelengths, in_chans, stream, "band_wavelengths")
        source = self.source_wavelengths
        if source is None and bands == 3 and stream != "spectral":
            source = RGB_NM
        old = self._checked(source, bands, stream, "source_wavelengths")
        if len(set(old)) < bands:
            raise WeightsError(
                f"{self.spelling.give('source_wavelengths')} must differ from each other to interpolate, got {_nm(old)}"
            )
        for band, wavelength in enumerate(new):
            for index, share in _interpolation(old, wavelength):
                mixing[band, index] += share
        return mixing, f"interpolated linearly from {_nm(old)} to {_nm(new)}"

    def _checked(self, given: Wavelengths | None, bands: int, stream: str, name: str) -> tuple[float, ...]:
        values = _of_stream(given, stream)
        if values is None or len(values) != bands:
            got = "none" if values is None else plural(len(values), "value")
            option = self.spelling.give(name)
            raise WeightsError(f"{self._rule} needs {option} for {plural(bands, 'band')} of {stream!r}, got {got}")
        return values


def _parse_wavelengths(values: Any, label: str) -> tuple[float, ...]:
    """Convert numbers of any library to Python floats."""
    try:
        plain = () if isinstance(values, str) else tuple(math.nan if isinstance(v, bool) else float(v) for v in values)
    except (TypeError, ValueError):
        plain = ()
    if not plain or not all(math.isfinite(v) and v > 0 for v in plain):
        raise ConfigError(f"{label} must be wavelengths in nm, one per band, got {values!r}")
    return plain


def _of_stream(given: Wavelengths | None, stream: str) -> tuple[float, ...] | None:
    values = given.get(stream) if isinstance(given, Mapping) else given
    return None if values is None else tuple(float(v) for v in values)


def _nm(wavelengths: Sequence[float]) -> str:
    shown = [f"{w:g}" for w in wavelengths]
    if len(shown) > 8:
        shown = [*shown[:3], "...", shown[-1]]
    return ", ".join(shown) + " nm"


def _interpolation(old: Sequence[float], wavelength: float) -> list[tuple[int, float]]:
    """Return old bands and their shares at a wavelength; beyond the ends the last band alone."""
    order = sorted(range(len(old)), key=lambda i: old[i])
    sorted_old = [old[i] for i in order]
    right = bisect.bisect_left(sorted_old, wavelength)
    if right == 0:
        return [(order[0], 1.0)]
    if right == len(old):
        return [(order[-1], 1.0)]
    low, high = sorted_old[right - 1], sorted_old[right]
    share = (wavelength - low) / (high - low)
    return [(order[right - 1], 1 - share), (order[right], share)]


def make_band_rule(
    bands: str | None,
    band_wavelengths: Wavelengths | None,
    source_wavelengths: Wavelengths | None = None,
    spelling: Spelling = PYTHON,
) -> BandRule | None:
    """Build the rule of the given options; None if none is given.

    Raises:
        ConfigError: An unknown rule, or wavelengths without one.
    """
    if bands is None:
        if band_wavelengths is not None or source_wavelengths is not None:
            raise ConfigError(f"wavelengths of bands need {spelling.give('bands', 'wavelength')}")
        return None
    return BandRule(cast(BandRuleName, bands), band_wavelengths, source_wavelengths, spelling)


def resize_patches(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """Resample patch kernels so that resized patches give the old responses, or the nearest ones.

    With ``B`` the bicubic (antialiased) resize of an old patch to the new size, the new kernel is
    ``pinv(B)^T w``: for enlarged patches ``<Bx, w'> = <x, w>`` for every patch ``x``; for reduced ones the
    expected squared difference is least.

    Args:
        kernel: Shape ``(out, bands, kh, kw)``.
        size: Height and width of a patch that are wanted.

    Returns:
        Shape ``(out, bands, *size)``; the kernel itself when the sizes are equal.

    Source: Beyer et al. 2023 (FlexiViT), arXiv:2212.08013, section 3.4.
    """
    old = (kernel.shape[2], kernel.shape[3])
    if old == size:
        return kernel
    units = torch.eye(old[0] * old[1], dtype=torch.float64, device=kernel.device).reshape(-1, 1, *old)
    # Row i holds the resized unit patch i: this is B transposed.
    resize = F.interpolate(units, size=size, mode="bicubic", antialias=True, align_corners=False).flatten(1)
    flat = kernel.double().flatten(2) @ torch.linalg.pinv(resize).t()
    resized: Tensor = flat.reshape(*kernel.shape[:2], *size).to(kernel.dtype)
    return resized


def fit_input_kernel(
    key: str,
    kernel: Tensor,
    wanted: torch.Size,
    role: InputKernel,
    rule: BandRule | None,
    where: str,
    spelling: Spelling = PYTHON,
) -> tuple[Tensor, str]:
    """Adapt the first convolution's kernel to another number of bands and another patch size.

    Args:
        key: Its name, for errors.
        kernel: Shape ``(out, bands, kh, kw)``; of tubelets ``(out, bands, frames, kh, kw)``.
        wanted: The shape the model has. A kernel of patches for one of tubelets gets all but its frames.
        role: Position and purpose of the kernel in the model.
        rule: Rule that makes the kernels of other bands; None refuses.
        where: The checkpoint's name, for errors.
        spelling: Spelling of options in the remedies of errors.

    Returns:
        The kernel and what was done; one of another shape still where it is not for this model at all.

    Raises:
        WeightsError: Other bands without a rule, or with one whose wavelengths do not fit.
    """
    if len(wanted) == 5:
        patch = torch.Size((*wanted[:2], *wanted[3:]))
        if kernel.ndim == 4:
            return fit_input_kernel(key, kernel, patch, role, rule, where, spelling)
        if kernel.ndim != 5 or kernel.shape[0] != wanted[0] or kernel.shape[2] != wanted[2]:
            return kernel, ""
        # Each frame of a tubelet is a kernel of its own.
        frames = kernel.transpose(1, 2).flatten(0, 1)
        alone = torch.Size((frames.shape[0], *patch[1:]))
        frames, how = fit_input_kernel(key, frames, alone, role, rule, where, spelling)
        return frames.reshape(wanted[0], wanted[2], *frames.shape[1:]).transpose(1, 2), how
    if kernel.ndim != 4 or len(wanted) != 4 or kernel.shape[0] != wanted[0]:
        return kernel, ""
    done: list[str] = []
    if rule is not None and rule.applies(kernel, wanted[1], role.stream):
        kernel, how = rule.apply(kernel, wanted[1], role.stream)
        done += [how] if how else []
    if kernel.shape[1] != wanted[1]:
        raise WeightsError(
            f"{where}: {key} is made for {plural(kernel.shape[1], 'band')}, the model has {wanted[1]}; choose how to "
            f"make the kernels of its bands: {spelling.band_rule()}"
        )
    if role.is_patch and kernel.shape[2:] != wanted[2:]:
        old, new = (f"{shape[2]} x {shape[3]}" for shape in (kernel.shape, wanted))
        kernel = resize_patches(kernel, (wanted[2], wanted[3]))
        done.append(f"patches from {old} to {new}: pseudo-inverse of the bicubic resize (FlexiViT)")
    return kernel, "; ".join(done)
