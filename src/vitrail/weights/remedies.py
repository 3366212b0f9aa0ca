"""Remedies in errors, in the syntax of Python, a recipe or ``vitrail weights``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spelling:
    """Syntax of the options of :func:`~vitrail.weights.load.load_weights` in errors.

    Attributes:
        options: Option -> how it is written with a value, which ``{}`` stands for. An option that is not there does
            not exist there, and no error may advise it.
        switches: Option that is on or off -> how it is switched on.
        setting: Spelling of a setting of the model, with its name and value; empty where the model is given.
        sets_classes: Whether the number of classes is such a setting, and does not follow from the data.
    """

    options: Mapping[str, str]
    switches: Mapping[str, str]
    setting: str = ""
    sets_classes: bool = True

    def settings(self, values: Mapping[str, Any]) -> str:
        """Format settings of the model with their values; empty where the model is given."""
        if not self.setting:
            return ""
        joint = " " if self.setting.startswith("--") else ", "
        return joint.join(self.setting.format(name, _as_text(value)) for name, value in values.items())

    def has(self, option: str) -> bool:
        """Return whether the option exists."""
        return option in self.options or option in self.switches

    def on(self, option: str) -> str:
        """Format a switch that is on."""
        return self.switches[option]

    def give(self, option: str, value: str | Sequence[str] | None = None) -> str:
        """Format an option with a value; the name alone without one."""
        form = self.options[option]
        if value is None:
            return form.replace("={}", "").replace(" {}", "").strip()
        text = value if isinstance(value, str) else list(value)
        if form.startswith("--"):
            return form.format(text if isinstance(text, str) else " ".join(f"'{item}'" for item in text))
        return form.format(repr(text) if "=" in form else json.dumps(text))

    def band_rule(self) -> str:
        """List all rules for other bands, with their effects."""
        return ", ".join(
            f"{self.give('bands', rule)} ({what})"
            for rule, what in (
                ("mean", "every band gets their mean"),
                ("repeat", "them in turn"),
                ("wavelength", f"interpolated, with {self.give('band_wavelengths')}"),
            )
        )


def _as_text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


PYTHON = Spelling(
    options={
        "source": "source={}",
        "key": "key={}",
        "bands": "bands={}",
        "band_wavelengths": "band_wavelengths={}",
        "source_wavelengths": "source_wavelengths={}",
        "allow_missing": "allow_missing={}",
        "allow_unexpected": "allow_unexpected={}",
    },
    switches={"new_head": "new_head=True", "spectral_from_image": "spectral_from_image=True"},
    setting="{}={}",
)
# create_model(checkpoint_path=...), which has none of these options itself.
CREATE = Spelling(
    options={option: f"load_weights(model, FILE, {form})" for option, form in PYTHON.options.items()},
    switches={option: f"load_weights(model, FILE, {form})" for option, form in PYTHON.switches.items()},
    setting=PYTHON.setting,
)
RECIPE = Spelling(
    options={
        "key": "model.weights_key {}",
        "bands": "model.bands_rule {}",
        "band_wavelengths": "model.band_wavelengths {}",
        "source_wavelengths": "model.source_wavelengths {}",
        "allow_missing": "model.allow_missing {}",
        "allow_unexpected": "model.allow_unexpected {}",
    },
    switches={"new_head": "model.new_head true"},
    setting="model.{} {}",
    sets_classes=False,
)
COMMAND = Spelling(
    options={
        "source": "--source {}",
        "key": "--key {}",
        "bands": "--bands {}",
        "band_wavelengths": "--band-wavelengths {}",
        "source_wavelengths": "--source-wavelengths {}",
        "allow_missing": "--allow-missing {}",
        "allow_unexpected": "--allow-unexpected {}",
    },
    switches={"new_head": "--new-head"},
    setting="--set {}={}",
)

# Weights of a run or a saved model: their model is described beside them, and nothing about them is an option.
RUN = Spelling({}, {})


def spellings() -> dict[str, Any]:
    """Return all spellings by context."""
    return {"Python": PYTHON, "create_model": CREATE, "a recipe": RECIPE, "vitrail weights": COMMAND}
