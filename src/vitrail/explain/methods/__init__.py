"""Explanation methods. Importing this package registers them all."""

from vitrail.explain.methods import attention_gradients as attention_gradients
from vitrail.explain.methods import cam as cam
from vitrail.explain.methods import controls as controls
from vitrail.explain.methods import input_gradients as input_gradients
from vitrail.explain.methods import layer_attention as layer_attention
from vitrail.explain.methods import occlusion as occlusion
from vitrail.explain.methods import rollout as rollout
from vitrail.explain.methods import token_maps as token_maps
