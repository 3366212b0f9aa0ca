"""Words of the field that stand on pages, each explained in a line."""

from __future__ import annotations

import re

# Word -> what it means, and how else it is written on a page (a regular expression).
_WORDS: dict[str, tuple[str, str]] = {
    "accuracy": ("Share of images that are classified correctly.", r"accuracy"),
    "AUROC": (
        "How often the score of an image that belongs is above that of one that does not; 0.5 is guessing, 1 perfect.",
        r"AUROC|ROC-AUC|ROC",
    ),
    "average precision": (
        "Mean precision over all thresholds of a class; 1 is perfect. mAP is its mean over classes.",
        r"average precision|mAP",
    ),
    "block": ("A square part of a scene; all its images lie in one split.", r"\d+ blocks?"),
    "calibration error (ECE)": (
        "Mean gap between a claimed probability and how often it is correct; 0 is perfect.",
        r"calibration error|ECE",
    ),
    "confidence": ("Probability that the model gives to its prediction.", r"confidence"),
    "corrected p": (
        "Probability of a difference this large by chance, raised for the number of comparisons; below 0.05 counts.",
        r"corrected p",
    ),
    "epoch": ("One pass of training over all training images.", r"epochs?"),
    "F1": ("Harmonic mean of precision and recall of a class; macro F1 is its mean over classes.", r"F1"),
    "group": ("Images that belong together, such as those of one field or patient; a fair split never divides one.",
              r"groups?"),
    "hash": ("A short fingerprint of an image; those of look-alikes differ in few bits.", r"hash(?:es)?"),
    "interval (95 %)": (
        "Range that the figure lies in for images like these with 95 % confidence; narrow with many images.",
        r"intervals?|between \d+ and \d+",
    ),
    "leak": (
        "A copy or a group of training images in a held-out split; it makes results too good.", r"leaks?|leaking"
    ),
    "log-loss": ("Error of the probabilities, heavy on sure mistakes; 0 is perfect.", r"log-loss|cross-entropy"),
    "multiply-adds": ("Arithmetic operations for one image, in billions; more take longer.", r"multiply-adds"),
    "parameters": ("Numbers that training adjusts; the size of a model.", r"parameters"),
    "precision": ("Of the images predicted as a class, the share that belong to it.", r"precision"),
    "prediction set": ("The classes that may be true, chosen to hold the true one as often as promised.",
                       r"prediction sets?"),
    "pre-trained": ("Weights from an earlier training on other images.", r"pre-trained|pre-training"),
    "recall": ("Of the images of a class, the share that are predicted as it.", r"recall"),
    "seed": ("Start of all random choices of a training run; other seeds give slightly other models.", r"seeds?"),
    "split": (
        "Training images teach the model, validation images choose its epoch, test images measure it.",
        r"splits?|test images|validation images|unseen images",
    ),
    "temperature": ("A number that all logits are divided by, so that probabilities match how often they are correct.",
                    r"temperature"),
}  # fmt: skip


def words_on(text: str) -> dict[str, str]:
    """The words of the field in a text, and what they mean.

    Args:
        text: What a page says.

    Returns:
        Word -> its explanation, in alphabetical order.
    """
    return {
        word: told
        for word, (told, written) in _WORDS.items()
        if re.search(rf"(?<!\w)(?:{written})(?!\w)", text, re.IGNORECASE)
    }
