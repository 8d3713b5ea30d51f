"""The Perceiver and Perceiver IO in pure Haiku.

Building blocks are Haiku modules; whole models are functions to be called inside
`hk.transform_with_state`.
"""

from perceiver_jax.attention import (
    Attention,
    CrossAttend,
    Mlp,
    SelfAttend,
    attend,
    attention_weights,
    record_attention,
)
from perceiver_jax.checkpoints import from_deepmind
from perceiver_jax.decoder import AverageDecoder, ClassQueryDecoder, QueryDecoder
from perceiver_jax.encoder import Encoder, schedule
from perceiver_jax.inputs import ImageInputs
from perceiver_jax.models import image_classifier
from perceiver_jax.position_encoding import LearnedPositions, fourier_features, grid_positions

__all__ = [
    # Attention
    'attend',
    'attention_weights',
    'record_attention',
    'Attention',
    'Mlp',
    'CrossAttend',
    'SelfAttend',
    # Positions
    'grid_positions',
    'fourier_features',
    'LearnedPositions',
    # Inputs -> latents -> outputs
    'ImageInputs',
    'Encoder',
    'schedule',
    'AverageDecoder',
    'QueryDecoder',
    'ClassQueryDecoder',
    # Whole models
    'image_classifier',
    # Weights
    'from_deepmind',
]
