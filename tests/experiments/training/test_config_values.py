import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.training.config_values import check_values
from perceiver_jax.errors import Refused


@pytest.mark.parametrize(
    'config, message',
    [
        (dict(seed=2**32), 'config.seed is 4294967296, it must be a whole number, at least 0 and '),
        (dict(seed=True), 'config.seed is True, it must be a whole number'),
        (dict(seed=1.0), 'config.seed is 1.0, it must be a whole number'),
        (
            dict(augmentation=dict(point_scale=(0.9,))),
            'config.augmentation.point_scale is .0.9,., it must be two values .smallest, largest.',
        ),
        (dict(augmentation=dict(axis_scale=2.0)), 'config.augmentation.axis_scale is 2.0, it must'),
        (dict(augmentation=dict(axis_scale=(1.1, 0.9))), 'config.augmentation.axis_scale is .1.1'),
        (dict(optimizer=dict(eps=float('nan'))), 'config.optimizer.eps is nan, .* at least 0'),
        (dict(optimizer=dict(b1=1.0)), 'config.optimizer.b1 is 1.0, .* less than 1'),
        (dict(optimizer=dict(clip_norm=0)), 'config.optimizer.clip_norm is 0, .* more than 0'),
        (
            dict(model=dict(dtype='float64')),
            "model.dtype is 'float64', .* one of float32, bfl",
        ),
        (dict(model=dict(dtype=['float32'])), 'config.model.dtype is'),
        (dict(model=dict(encoder=3)), 'config.model.encoder is 3, and it holds keys'),
        (dict(model='m'), "config.model is 'm', and it holds keys"),
        (dict(model=dict(encoder=dict(num_latents=0))), 'config.model.encoder.num_latents is 0,'),
        (dict(data=dict(on_broken='x' * 1000)), r'on_broken is .x{90,99}\.\.\., it must be one of'),
    ],
)
def test_the_key_its_value_and_what_is_allowed_are_named(config, message):
    with pytest.raises(Refused, match=message):
        check_values(ConfigDict(config))


def test_what_is_allowed():
    check_values(
        ConfigDict(
            dict(
                seed=np.int64(2**32 - 1),
                mine=dict(key=-3),  # a key that nobody knows here
                augmentation=dict(crop_area=None, axis_scale=[1, np.float32(1.5)]),
                train=dict(epochs=3, steps=None),
                model=dict(decoder=None),
                optimizer=dict(learning_rate=1),
            )
        )
    )
