"""Glossary of the field's terms: the one table behind docs/glossary.md and the glossaries of pages."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A term of the field.

    Attributes:
        name: The term.
        section: Part of the glossary.
        meaning: One or two plain sentences.
        source: The paper that introduced or defined it; empty for common terms.
        pattern: Regular expression of its spellings on pages; pages explain only terms with a pattern.
    """

    name: str
    section: str
    meaning: str
    source: str = ""
    pattern: str = ""


_MODEL, _TRAIN, _EXPLAIN, _EVALUATE, _DATA = "Architecture", "Training", "Explanation", "Evaluation", "Data"
_VASWANI = "Vaswani et al. 2017, arXiv:1706.03762"
_VIT = "Dosovitskiy et al. 2021, arXiv:2010.11929"
_SWIN = "Liu et al. 2021, arXiv:2103.14030"

# fmt: off
TERMS: tuple[Term, ...] = (
    Term("attention", _MODEL, "Each token becomes a weighted mean of values; the weights are the softmax of scaled "
         "products of its query with all keys.", _VASWANI),
    Term("block", _MODEL, "One layer of a transformer: attention and an MLP, each with a norm and a residual sum.",
         _VASWANI),
    Term("class token", _MODEL, "A learned token beside the patches; the classifier reads it after the last block.",
         _VIT),
    Term("cross-attention", _MODEL, "Attention with queries from one set of tokens, keys and values from another.",
         _VASWANI),
    Term("embedding", _MODEL, "Vector of numbers that represents a patch, a token or an image."),
    Term("grid attention", _MODEL, "Attention among tokens at equal distances over the whole map.",
         "Tu et al. 2022, arXiv:2204.01697"),
    Term("head", _MODEL, "One of several attentions that run in parallel in a layer, each on its own part of the "
         "channels. The classification head is the last layer, from features to logits.", _VASWANI),
    Term("logits", _MODEL, "Outputs of a classifier before softmax or sigmoid, one for each class."),
    Term("MBConv", _MODEL, "Convolution block that expands the channels, convolves each one alone and projects back.",
         "Sandler et al. 2018, arXiv:1801.04381"),
    Term("MLP", _MODEL, "Two linear layers with an activation between them, applied to each token alone; the wide "
         "middle is the hidden layer.", _VASWANI),
    Term("multiply-adds", _MODEL, "Arithmetic operations for one image, in billions; more take longer.",
         pattern=r"multiply-adds"),
    Term("parameters", _MODEL, "Numbers that training adjusts; the size of a model.", pattern=r"parameters"),
    Term("patch", _MODEL, "Square part of an image that becomes one token.", _VIT),
    Term("patch merging", _MODEL, "Concatenation and projection of 2 x 2 neighbouring tokens; halves the grid.", _SWIN),
    Term("position embedding", _MODEL, "Vectors added to tokens that encode their positions, which attention would "
         "otherwise ignore.", _VASWANI),
    Term("query, key, value", _MODEL, "Three linear projections of a token. A query is compared with keys; the values "
         "of similar keys are averaged.", _VASWANI),
    Term("register token", _MODEL, "Learned token without a position that the classifier does not read; it removes "
         "artefacts from attention maps.", "Darcet et al. 2024, arXiv:2309.16588"),
    Term("relative position bias", _MODEL, "Learned score for each offset between two tokens, added to their product.",
         _SWIN),
    Term("shift", _MODEL, "Cyclic roll of the token map by half a window in every second block; connects windows.",
         _SWIN),
    Term("stage", _MODEL, "Blocks of one resolution in a hierarchical model."),
    Term("stream", _MODEL, "One of several inputs of a model, such as RGB image and spectral bands."),
    Term("token", _MODEL, "Vector that a transformer processes: one for each patch, and extra ones such as the class "
         "token.", _VIT),
    Term("TokenLearner", _MODEL, "Layer that reduces all tokens to a few weighted means with learned weights.",
         "Ryoo et al. 2021, arXiv:2106.11297"),
    Term("window", _MODEL, "Square group of neighbouring tokens; window attention stays inside of it.", _SWIN),

    Term("augmentation", _TRAIN, "Random changes of training images that keep their class."),
    Term("CutMix, MixUp", _TRAIN, "Pasting or blending of two images; the target becomes shares of both classes.",
         "Yun et al. 2019, arXiv:1905.04899; Zhang et al. 2018, arXiv:1710.09412"),
    Term("EMA", _TRAIN, "Exponential moving average of the weights over training steps, used for evaluation.",
         "Polyak & Juditsky 1992"),
    Term("epoch", _TRAIN, "One pass of training over all training images.", pattern=r"epochs?"),
    Term("fine-tuning", _TRAIN, "Training that starts from pre-trained weights."),
    Term("label smoothing", _TRAIN, "Targets that leave a small share to all other classes.",
         "Szegedy et al. 2016, arXiv:1512.00567"),
    Term("layer decay", _TRAIN, "Learning rates that fall by a factor from block to block towards the input.",
         "Bao et al. 2022, arXiv:2106.08254"),
    Term("MAE, SimMIM", _TRAIN, "Pre-training that masks patches and predicts their pixels.",
         "He et al. 2022, arXiv:2111.06377; Xie et al. 2022, arXiv:2111.09886"),
    Term("pre-trained", _TRAIN, "Weights from an earlier training on other images.",
         pattern=r"pre-trained|pre-training"),
    Term("seed", _TRAIN, "Start of all random choices of a training run; other seeds give slightly other models.",
         pattern=r"seeds?"),
    Term("SimCLR", _TRAIN, "Pre-training that pulls two augmented views of an image together and pushes others apart.",
         "Chen et al. 2020, arXiv:2002.05709"),
    Term("stochastic depth", _TRAIN, "Random skipping of residual branches in training (drop path).",
         "Huang et al. 2016, arXiv:1603.09382"),
    Term("warm-up", _TRAIN, "Rise of the learning rate over the first epochs.", "Goyal et al. 2017, arXiv:1706.02677"),

    Term("attention rollout", _EXPLAIN, "Product of the attention matrices of all layers, each averaged with the "
         "identity: the share of each patch in the output.", "Abnar & Zuidema 2020, arXiv:2005.00928"),
    Term("deletion, insertion", _EXPLAIN, "Change of the class score while the most relevant pixels are removed from, "
         "or added to, an image; the area under the curve measures faithfulness.",
         "Petsiuk et al. 2018, arXiv:1806.07421"),
    Term("faithfulness", _EXPLAIN, "Agreement of an attribution map with the effect of pixels on the output."),
    Term("Grad-CAM", _EXPLAIN, "Sum of a layer's channels, weighted by the mean gradient of the class score.",
         "Selvaraju et al. 2017, arXiv:1610.02391"),
    Term("integrated gradients", _EXPLAIN, "Gradients averaged along the line from a baseline to the image, times the "
         "difference.", "Sundararajan et al. 2017, arXiv:1703.01365"),
    Term("relevance", _EXPLAIN, "Number for each patch or pixel that states its contribution to an output; also called "
         "attribution.", "Bach et al. 2015, doi:10.1371/journal.pone.0130140"),
    Term("sanity check", _EXPLAIN, "Comparison of attribution maps before and after the weights are randomised; a map "
         "that stays the same does not explain the model.", "Adebayo et al. 2018, arXiv:1810.03292"),

    Term("accuracy", _EVALUATE, "Share of images, or of labelled points, that are classified correctly.",
         pattern=r"accuracy"),
    Term("AUROC", _EVALUATE, "How often the score of an image that belongs is above that of one that does not; 0.5 is "
         "guessing, 1 perfect.", "Fawcett 2006, doi:10.1016/j.patrec.2005.10.010", r"AUROC|ROC-AUC|ROC"),
    Term("average precision", _EVALUATE, "Mean precision over all thresholds of a class; 1 is perfect. mAP is its mean "
         "over classes.", "Everingham et al. 2010, doi:10.1007/s11263-009-0275-4", r"average precision|(?-i:mAP)"),
    Term("calibration error (ECE)", _EVALUATE, "Mean gap between a claimed probability and how often it is correct; 0 "
         "is perfect.", "Guo et al. 2017, arXiv:1706.04599", r"calibration error|ECE"),
    Term("confidence", _EVALUATE, "Probability that the model gives to its prediction.", pattern=r"confidence"),
    Term("corrected p", _EVALUATE, "Probability of a difference this large by chance, raised for the number of "
         "comparisons; below 0.05 counts.", "Holm 1979", r"corrected p"),
    Term("corruption", _EVALUATE, "Noise, blur, weather or compression added to test images at five severities.",
         "Hendrycks & Dietterich 2019, arXiv:1903.12261"),
    Term("coverage", _EVALUATE, "Share of images that are answered, or of prediction sets that hold the true class."),
    Term("F1", _EVALUATE, "Harmonic mean of precision and recall of a class; macro F1 is its mean over classes.",
         pattern=r"F1"),
    Term("interval (95 %)", _EVALUATE, "Range that the figure lies in for images like these with 95 % confidence; "
         "narrow with many images.", "Efron & Tibshirani 1993", r"intervals?|between \d+ and \d+"),
    Term("IoU, mIoU", _EVALUATE, "Points of a part that are labelled as such, as a share of the points that are of the "
         "part or labelled as such; mIoU is the mean over the parts that occur. 1 is perfect.",
         "Everingham et al. 2010, doi:10.1007/s11263-009-0275-4", r"m?IoU|intersection over union"),
    Term("log-loss", _EVALUATE, "Error of the probabilities, heavy on sure mistakes; 0 is perfect.",
         pattern=r"log-loss|cross-entropy"),
    Term("out-of-distribution", _EVALUATE, "Images of another kind than the training images.",
         "Hendrycks & Gimpel 2017, arXiv:1610.02136"),
    Term("precision", _EVALUATE, "Of the images predicted as a class, the share that belong to it.",
         pattern=r"precision"),
    Term("prediction set", _EVALUATE, "The classes that may be true, chosen to hold the true one as often as promised.",
         "conformal prediction: Angelopoulos & Bates 2021, arXiv:2107.07511", r"prediction sets?"),
    Term("recall", _EVALUATE, "Of the images of a class, the share that are predicted as it.", pattern=r"recall"),
    Term("risk-coverage curve", _EVALUATE, "Error of the answered images against their share, from the most confident "
         "on.", "Geifman & El-Yaniv 2017, arXiv:1705.08500"),
    Term("selective prediction", _EVALUATE, "Classification that abstains where the confidence is below a threshold.",
         "Geifman & El-Yaniv 2017, arXiv:1705.08500"),
    Term("temperature", _EVALUATE, "A number that all logits are divided by, so that probabilities match how often "
         "they are correct.", "Guo et al. 2017, arXiv:1706.04599", r"temperature"),
    Term("test-time augmentation", _EVALUATE, "Mean of the logits over fixed views of an image, such as flips."),

    Term("band", _DATA, "One channel of an image, such as red or near infrared."),
    Term("group", _DATA, "Images that belong together, such as those of one field or patient; a fair split never "
         "divides one.", pattern=r"groups?"),
    Term("hash", _DATA, "A short fingerprint of an image; those of look-alikes differ in few bits.",
         "Zauner 2010 (perceptual hashes)", r"hash(?:es)?"),
    Term("leak", _DATA, "A copy or a group of training images in a held-out split; metrics on it are overestimated.",
         pattern=r"leaks?|leaking"),
    Term("multi-label", _DATA, "Data whose images have any number of classes each."),
    Term("scene block", _DATA, "A square part of a scene; all its images lie in one split.", pattern=r"\d+ blocks?"),
    Term("split", _DATA, "Training images teach the model, validation images choose its epoch, test images measure it.",
         pattern=r"splits?|(?:test|validation|unseen) (?:images|clips|point clouds|inputs)"),
)
# fmt: on


def terms_in(text: str) -> dict[str, str]:
    """Find the terms of a text that pages explain.

    Args:
        text: Text of a page.

    Returns:
        Term -> meaning, in alphabetical order.
    """
    found = [t for t in TERMS if t.pattern and re.search(rf"(?<!\w)(?:{t.pattern})(?!\w)", text, re.IGNORECASE)]
    return {term.name: term.meaning for term in sorted(found, key=lambda term: term.name.casefold())}


def glossary_markdown() -> str:
    """Format docs/glossary.md: all terms by section, each with a heading to link to."""
    lines = [
        "# Glossary",
        "",
        "Terms of the papers that the documentation, errors and pages use. Pages of `vitrail report` explain the terms "
        "that stand on them in the same words. Generated by `make glossary` from `src/vitrail/report/glossary.py`.",
    ]
    for section in dict.fromkeys(term.section for term in TERMS):
        terms = sorted((term for term in TERMS if term.section == section), key=lambda term: term.name.casefold())
        lines += ["", f"## {section}"]
        for term in terms:
            source = f" *{term.source}.*" if term.source else ""
            lines += ["", f"### {term.name}", "", f"{term.meaning}{source}"]
    return "\n".join(lines) + "\n"
