"""What a model looks at: captured from the model as it is, composed through all of its layers."""

from vitrail.explain import cam as cam
from vitrail.explain import controls as controls
from vitrail.explain import input_gradients as input_gradients
from vitrail.explain import occlusion as occlusion
from vitrail.explain.bands import BandImportance, BandScores, band_importance
from vitrail.explain.captum_metrics import infidelity, sensitivity
from vitrail.explain.capture import AttentionRecord, CapturedMixing, capture_attention
from vitrail.explain.faithfulness import Curve, deletion, insertion
from vitrail.explain.interface import Explanation, StreamMap, explain, list_methods
from vitrail.explain.localisation import energy_inside, mask_iou, pointing_game
from vitrail.explain.method_table import compare_methods, measure, score_methods
from vitrail.explain.randomisation import Randomisation, randomisation_check
from vitrail.explain.remove_and_debias import Road, road
from vitrail.explain.rollout import Rollout, attention_rollout
from vitrail.explain.token_maps import token_maps

__all__ = [
    "AttentionRecord",
    "BandImportance",
    "BandScores",
    "CapturedMixing",
    "Curve",
    "Explanation",
    "Randomisation",
    "Road",
    "Rollout",
    "StreamMap",
    "attention_rollout",
    "band_importance",
    "capture_attention",
    "compare_methods",
    "deletion",
    "energy_inside",
    "explain",
    "infidelity",
    "insertion",
    "list_methods",
    "mask_iou",
    "measure",
    "pointing_game",
    "randomisation_check",
    "road",
    "score_methods",
    "sensitivity",
    "token_maps",
]
