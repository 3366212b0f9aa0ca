"""Classify long videos by clips that slide over them, and write videos with the decisions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from vitrail.data.dataset import ImageData
from vitrail.data.images import resize_picture
from vitrail.data.sources.base import unwrap_source
from vitrail.data.video.decode import each_frame
from vitrail.data.video.sliding import SlidingClips, Window, window_length
from vitrail.data.video.source import VideoSource
from vitrail.deploy.predict import describe_classes
from vitrail.errors import DataError
from vitrail.figures.animation import Mp4Writer
from vitrail.figures.captions import Captions
from vitrail.figures.display import enlarge
from vitrail.files import replacing
from vitrail.runs.trained import Classifier


@dataclass(frozen=True)
class VideoDecision:
    """Prediction for a video.

    Attributes:
        video: Index into the source.
        windows: Its clips.
        logits: Logits of each clip, shape ``(N, K)``.
    """

    video: int
    windows: Sequence[Window]
    logits: Tensor


def classify_videos(
    classifier: Classifier,
    videos: ImageData,
    *,
    window: float | None = None,
    step: float | None = None,
    batch_size: int = 32,
    tta: str = "none",
) -> Iterator[VideoDecision]:
    """Classify the clips that slide over each video.

    Args:
        classifier: The trained run or the export.
        videos: Videos from :func:`vitrail.deploy.open_files`.
        window: Length of a clip in seconds, for a run whose clips span whole videos.
        step: Seconds from one clip to the next; the length of a clip when not given.
        batch_size: Batch size.
        tta: Test-time augmentation; see :meth:`TrainedModel.classify`.

    A video that cannot be decoded to its end is left out where ``data.errors.on_unreadable`` is "skip".

    Raises:
        ConfigError: A window or a step that the run does not take.
        DataError: A video that cannot be decoded to its end.
    """
    source = video_source(videos)
    length = window_length(source.config, source.clip_size[0], window, step)

    def classify(chosen: Sequence[int]) -> Iterator[VideoDecision]:
        clips = SlidingClips(source, length, step, chosen)
        data = ImageData(
            clips, {"all": list(range(len(clips)))}, videos.config, videos.fill, seen_size=videos.seen_size
        )
        waiting: list[tuple[Window, Tensor]] = []
        for batch in data.batches(data.indices("all"), batch_size):
            logits = classifier.classify(batch, tta)[0].cpu()
            for index, row in zip(batch["index"].tolist(), logits, strict=True):
                waiting.append((clips.windows[index], row))
                if index + 1 == len(clips) or clips.windows[index + 1].video != clips.windows[index].video:
                    windows, rows = zip(*waiting, strict=True)
                    yield VideoDecision(windows[0].video, windows, torch.stack(rows))
                    waiting = []

    following = 0
    try:
        for decision in classify(range(len(source))):
            following = decision.video + 1
            yield decision
        return
    except DataError:
        if source.config.errors.on_unreadable != "skip":
            raise
    # A batch holds clips of several videos: one by one shows which of them is damaged.
    for video in range(following, len(source)):
        try:
            yield from classify([video])
        except DataError as error:
            leave_out(videos, video, error)


def video_source(videos: ImageData) -> VideoSource:
    """Return the source of videos from :func:`vitrail.deploy.open_files`."""
    source = unwrap_source(videos.source)
    assert isinstance(source, VideoSource), "open_files returns videos"
    return source


def leave_out(videos: ImageData, video: int, error: DataError) -> None:
    """Record a video that cannot be decoded to its end; raise the error unless unreadable files are skipped."""
    source = video_source(videos)
    if source.config.errors.on_unreadable != "skip":
        raise error
    source.left_out.append((source.keys[video], str(error).removeprefix(f"{source.video(video).path} ")))


def decision_table(
    classifier: Classifier, videos: ImageData, decisions: Sequence[VideoDecision], top_k: int = 5
) -> pd.DataFrame:
    """Build the table of decisions.

    Args:
        classifier: The trained run or the export.
        videos: The videos.
        decisions: Decisions of :func:`classify_videos`.
        top_k: Number of most likely classes.

    Returns:
        One row for each video, by the mean of its clips' logits, and below it one for each clip where there are
        several: ``path``, ``unit`` ("video" or "clip"), ``start`` and ``end`` in seconds, then the classes as
        :func:`vitrail.deploy.predict_files` has them.
    """
    rows = []
    for decision in decisions:
        key = videos.source.keys[decision.video]
        windows = decision.windows
        whole = Window(decision.video, windows[0].start, windows[-1].end)
        units = [("video", whole), *(("clip", window) for window in windows if len(windows) > 1)]
        logits = torch.cat([decision.logits.mean(dim=0, keepdim=True), decision.logits])[: len(units)]
        for (unit, window), classes in zip(units, describe_classes(classifier.card, logits, top_k), strict=True):
            times = {"start": round(window.start, 3), "end": round(window.end, 3)}
            rows.append({"path": key, "unit": unit, **times, **classes})
    return pd.DataFrame(rows)


def write_overlay(classifier: Classifier, videos: ImageData, decision: VideoDecision, path: Path) -> None:
    """Write a video (MP4, without sound) with the class and its probability below each frame.

    Each frame has the decision of the clip whose middle is nearest in time.

    Args:
        classifier: The trained run or the export.
        videos: The videos.
        decision: Decision for this video.
        path: The file.

    Raises:
        VitrailError: PyAV is not installed.
        DataError: The video cannot be decoded to its end.
        RunError: The file cannot be written.
    """
    index = video_source(videos).video(decision.video)
    best = [(row["class"], row["probability"]) for row in describe_classes(classifier.card, decision.logits, 1)]
    middles = torch.tensor([(window.start + window.end) / 2 for window in decision.windows])
    captions = Captions(index.size, classifier.card.classes)
    with replacing(path) as temporary, Mp4Writer(temporary, captions.size, index.rate) as writer:
        for time, frame in each_frame(index, "rgb"):
            nearest = int((middles - time).abs().argmin())
            frame = resize_picture(frame, index.size, "squash")  # pictures of a folder may differ in size
            pixels = enlarge(frame.permute(1, 2, 0).numpy(), captions.factor)
            writer.add(captions.below(pixels, *best[nearest], time), time)
