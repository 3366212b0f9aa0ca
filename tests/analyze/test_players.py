"""Clips on a page: their text is that of the saved predictions, whatever the clip in the middle alone gives."""

import functools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from vitrail.analyze import players
from vitrail.analyze.explained import Explained
from vitrail.data.sources.base import ImageSource
from vitrail.explain.methods.maps import Explanation, StreamMap

CLASSES = ("a", "b", "c")


def _evaluation(logits, targets):
    keys = [f"{i}.mp4" for i in range(len(logits))]
    table = pd.DataFrame({"path": keys, "target": list(targets), "logits": list(logits)})
    return SimpleNamespace(name="test", run=SimpleNamespace(read_predictions=lambda name: table)), keys


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.fast_cases("False-0", "True-1")
def test_the_text_agrees_with_the_verdict(monkeypatch, seed, multi_label):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (9, 3))
    targets = rng.integers(0, 2, (9, 3)) if multi_label else rng.integers(0, 3, 9)
    evaluation, keys = _evaluation(logits, targets)
    explained = []

    def explain(trained, data, indices, methods, *, target):
        # The clip in the middle alone is another class each time.
        explained.append((indices, target))
        maps = torch.zeros(1, 2, 4, 4)
        yield Explained(
            key=keys[indices[0]], index=indices[0], pictures={}, true="", predicted="other", probability=1.0,
            explanations={"rollout": Explanation({"video": StreamMap(maps, maps)}, "rollout")},
            frames=np.zeros((2, 4, 4)),
        )  # fmt: skip

    monkeypatch.setattr(players, "explain_images", explain)
    trained = SimpleNamespace(card=SimpleNamespace(classes=CLASSES, multi_label=multi_label))
    source = SimpleNamespace(keys=keys)
    source.indices_of = functools.partial(ImageSource.indices_of, source)
    data = SimpleNamespace(source=source)
    found = players.animate_examples(evaluation, trained, data, ["rollout"])
    assert len(found) == players.MOST_CLIPS
    assert [one.correct for one in found] == sorted(one.correct for one in found)
    for one, (indices, target) in zip(found, explained, strict=True):
        own, wanted = logits[indices[0]], targets[indices[0]]
        best = int(own.argmax())
        assert target == best
        assert one.correct is one.prediction.endswith("(correct)")
        if multi_label:
            assert one.correct is bool(((own >= 0) == (wanted > 0)).all())
            probability = np.prod(1 / (1 + np.exp(-np.abs(own))))
        else:
            assert one.correct is bool(best == wanted)
            probability = np.exp(own[best]) / np.exp(own).sum()
            assert one.prediction.startswith(f"{CLASSES[best]} {probability:.0%}")
        assert f" {probability:.0%} (" in one.prediction
