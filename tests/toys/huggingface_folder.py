"""Small models that transformers could have, and folders as it saves them."""

import copy
import json

import jax
import numpy as np

from perceiver_jax import RELEASED
from perceiver_jax.weights import foreign_files, translation
from perceiver_jax.weights.huggingface_config import to_config
from perceiver_jax.weights.pretrained import Pretrained


def small_model(kind, num_heads=4, seed=0):
    """A model of a released kind, of few and narrow latents, with random weights."""
    released = RELEASED[kind]
    arguments, front_end = copy.deepcopy(released.arguments), copy.deepcopy(released.front_end)
    arguments['encoder'] |= dict(
        num_latents=3, latent_channels=16, num_self_attends_per_block=1, num_blocks=2
    )
    arguments['encoder']['self_attend']['num_heads'] = num_heads
    if 'num_classes' in arguments:
        arguments['num_classes'] = 5
    if kind.startswith('imagenet'):
        arguments['decoder']['query_channels'] = 16
    if kind == 'imagenet_learned':
        arguments['decoder']['cross_attend']['use_query_residual'] = True
        front_end['size'] = 6
    elif kind == 'optical_flow':
        arguments['inputs']['max_resolution'] = front_end['tile'] = [8, 12]
    elif kind == 'mlm_bytes':
        arguments['inputs'] = dict(vocabulary_size=19, channels=24, max_length=9)
        for part in ('cross_attend', 'self_attend'):
            arguments['encoder'][part] |= dict(num_heads=num_heads, qk_channels=32, v_channels=16)
        arguments['decoder']['cross_attend']['v_channels'] = 24
        front_end['length'] = 9
    elif kind == 'video_autoencoding':
        for part in (arguments['inputs'], arguments['queries']):
            part['video']['max_resolution'], part['audio']['max_resolution'] = [2, 5, 5], [64]
        arguments['inputs']['audio']['samples_per_patch'] = 8
        arguments['queries']['label_channels'] = 12
        arguments['decoder']['output_channels'] = 20
        front_end.update(num_frames=2, size=20, sample_rate=32 * 25)
    model = Pretrained(released.function, arguments, front_end, {}, {})
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(seed)
    params, state = jax.tree.map(
        lambda x: np.asarray(rng.normal(size=x.shape, scale=0.3)).astype(x.dtype), shapes
    )
    return Pretrained(released.function, arguments, front_end, dict(params), dict(state))


def config_of(kind, model):
    return to_config(
        kind, model.arguments, model.front_end, model.classes, activation=model.activation
    )


def write_folder(folder, kind, model, **changes):
    """Writes a folder as transformers saves a model, with some values changed in its config."""
    tensors = translation.to_huggingface(model.params, model.state)
    foreign_files.write_huggingface(folder / 'model.safetensors', tensors)
    config = {**config_of(kind, model), **changes}
    (folder / 'config.json').write_text(json.dumps(config))
