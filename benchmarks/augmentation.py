"""What augmentation costs: each change on a batch of images, beside kornia's module for it, on one core.

    python benchmarks/augmentation.py --batch 64 --size 224

Processor seconds, not the clock's, the least of several rounds in alternation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import kornia.augmentation as K
import torch
from torch import Tensor

from vitrail.config.augment import PRESETS, augment_settings
from vitrail.data.augment import Mixing, build_augmentation

COLOR = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.05, "color_probability": 0.8}
# What is measured -> our settings, and kornia's way to the same.
CASES: dict[str, tuple[dict[str, object], Callable[[tuple[int, int]], torch.nn.Module] | None]] = {
    "crop and flip": (
        {"crop_area": (0.35, 1.0), "flip_horizontal": 0.5},
        lambda size: torch.nn.Sequential(K.RandomResizedCrop(size, (0.35, 1.0)), K.RandomHorizontalFlip()),
    ),
    "turn, shift, zoom": (
        {"rotate": 10.0, "translate": 0.1, "zoom": (0.9, 1.1)},
        lambda size: K.RandomAffine(10.0, (0.1, 0.1), (0.9, 1.1), p=1.0),
    ),
    "colour": (COLOR, lambda size: K.ColorJitter(0.3, 0.3, 0.3, 0.05, p=0.8)),
    "RandAugment": ({"auto": "randaugment"}, lambda size: K.auto.RandAugment(n=2, m=9)),
    "TrivialAugment": ({"auto": "trivialaugment"}, lambda size: K.auto.TrivialAugment()),
    "blur of half": ({"blur": 0.5}, lambda size: K.RandomGaussianBlur((13, 13), (0.2, 2.0), p=0.5)),
    "erasing of half": ({"erase": 0.5}, lambda size: K.RandomErasing(p=0.5)),
    "band dropout": ({"band_dropout": 0.1}, None),
    "mixup": ({"mixup": 0.8}, lambda size: K.RandomMixUpV2(data_keys=["input"])),
    "CutMix": ({"cutmix": 1.0}, lambda size: K.RandomCutMixV2(data_keys=["input"], use_correct_lambda=True)),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.rand(arguments.batch, 3, arguments.size, arguments.size)
    target = torch.arange(arguments.batch) % 10

    def ours(settings: dict[str, object]) -> Callable[[], object]:
        values = augment_settings("none", settings)
        if values.mixes:
            mix = Mixing(values, 10)
            return lambda: mix({"image": x}, target)
        augment = build_augmentation("none", 3, settings)
        assert augment is not None
        return lambda: augment({"image": x})

    def theirs(make: Callable[[tuple[int, int]], torch.nn.Module]) -> Callable[[], Tensor]:
        module = make((arguments.size, arguments.size))
        return lambda: module(x)

    jobs: dict[tuple[str, str], Callable[[], object]] = {}
    for name, (settings, make) in CASES.items():
        jobs[name, "vitrail"] = ours(settings)
        if make is not None:
            jobs[name, "kornia"] = theirs(make)
    for preset in PRESETS:
        augment = build_augmentation(preset, 3)
        if augment is not None:
            jobs[f"preset {preset} (without mixing)", "vitrail"] = lambda augment=augment: augment({"image": x})
    least = dict.fromkeys(jobs, float("inf"))
    for _ in range(arguments.rounds):
        for key, job in jobs.items():
            start = time.process_time()
            job()
            least[key] = min(least[key], time.process_time() - start)
    print(f"ms for {arguments.batch} x 3 x {arguments.size} x {arguments.size}, one core\n")
    print("| | vitrail | kornia |\n| --- | ---: | ---: |")
    for name in dict.fromkeys(name for name, _ in jobs):
        other = least.get((name, "kornia"))
        print(f"| {name} | {1e3 * least[name, 'vitrail']:.0f} | {'' if other is None else f'{1e3 * other:.0f}'} |")


if __name__ == "__main__":
    main()
