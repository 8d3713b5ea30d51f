import hashlib
import json

import jax
import ml_collections
import numpy as np
import pytest
from safetensors.numpy import save

from configs import imagenet, modelnet40
from experiments.open_model import load_workdir
from experiments.tasks import make_task
from experiments.training.checkpointing import Checkpoints
from experiments.training.checks import check_resumable
from perceiver_jax import initialise, load
from perceiver_jax.weights.upgrade import upgrade_arguments

BEFORE = dict(
    num_classes=5,
    inputs=dict(num_bands=2, max_resolution=[6, 6]),
    encoder=dict(
        num_latents=7,
        latent_channels=12,
        num_blocks=2,
        num_self_attends_per_block=1,
        num_cross_attend_heads=2,
        num_self_attend_heads=3,
        cross_attend_qk_channels=4,
        cross_attend_v_channels=6,
        self_attend_qk_channels=9,
        self_attend_v_channels=15,
        cross_attend_widening_factor=2,
        self_attend_widening_factor=3,
        use_query_residual=False,
        dropout_rate=0.25,
        scan=True,
    ),
    decoder=dict(query_channels=8, use_query_residual=False),
)
TODAY = dict(
    num_classes=5,
    inputs=dict(num_bands=2, max_resolution=[6, 6]),
    encoder=dict(
        num_latents=7,
        latent_channels=12,
        num_blocks=2,
        num_self_attends_per_block=1,
        scan=True,
        cross_attend=dict(
            num_heads=2,
            qk_channels=4,
            v_channels=6,
            widening_factor=2,
            use_query_residual=False,
            dropout_rate=0.25,
        ),
        self_attend=dict(
            num_heads=3, qk_channels=9, v_channels=15, widening_factor=3, dropout_rate=0.25
        ),
    ),
    decoder=dict(query_channels=8, cross_attend=dict(use_query_residual=False)),
)
IMAGE = dict(size=6, crop_fraction=0.9, mean=[0.5] * 3, std=[0.2] * 3)
IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)


def test_every_old_key_has_its_place():
    assert upgrade_arguments(BEFORE) == TODAY
    assert 'num_cross_attend_heads' in BEFORE['encoder']  # what was passed is not changed
    decoder = dict(output_channels=3, num_heads=2, qk_channels=4, v_channels=6, widening_factor=2)
    assert upgrade_arguments(dict(decoder=decoder)) == dict(
        decoder=dict(
            output_channels=3,
            cross_attend=dict(num_heads=2, qk_channels=4, v_channels=6, widening_factor=2),
        )
    )


@pytest.mark.parametrize('arguments', [TODAY, dict(encoder={}, decoder=None), {}])
def test_what_is_of_today_stays(arguments):
    assert upgrade_arguments(arguments) == arguments


def test_a_folder_of_format_1_loads_and_computes_the_same(tmp_path):
    model = initialise('image_classifier', TODAY, IMAGE)
    weights = save(
        {
            f'params:{module}:{name}': np.asarray(value, order='C')
            for module, values in model.params.items()
            for name, value in values.items()
        }
    )
    (tmp_path / 'weights.safetensors').write_bytes(weights)
    about = dict(
        format='perceiver_jax 1',
        function='image_classifier',
        arguments=BEFORE,
        front_end=IMAGE,
        classes=list('abcde'),
        description='d',
        licence='l',
        sha256=hashlib.sha256(weights).hexdigest(),
    )
    (tmp_path / 'model.json').write_text(json.dumps(about, indent=2))
    loaded = load(tmp_path)
    assert loaded.arguments == TODAY
    assert loaded.activation == 'softmax'
    assert (loaded.classes, loaded.description, loaded.licence) == (list('abcde'), 'd', 'l')
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))
    loaded.save(tmp_path / 'again')
    assert json.loads((tmp_path / 'again' / 'model.json').read_text())['arguments'] == TODAY


# What config.json held under 'model' before, where it was other than today.
ENCODERS_BEFORE = {
    imagenet: dict(num_cross_attend_heads=1, num_self_attend_heads=4),
    modelnet40: dict(num_cross_attend_heads=1, num_self_attend_heads=4, dropout_rate=0.0),
}


def config_before(config, encoder):
    """What was in config.json when the fields of attention stood in the encoder's."""
    written = json.loads(json.dumps(config.to_dict()))
    for name in ('cross_attend', 'self_attend'):
        del written['model']['encoder'][name]
    written['model']['encoder'].update(encoder)
    return written


@pytest.mark.parametrize('configs', ENCODERS_BEFORE)
def test_a_run_from_before_is_resumed(tmp_path, configs):
    config = configs.get_config('demo')
    written = config_before(config, ENCODERS_BEFORE[configs])
    (tmp_path / 'config.json').write_text(json.dumps(written))
    (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
    check_resumable(tmp_path, config)
    other = ml_collections.ConfigDict(config.to_dict())
    other.model.encoder.self_attend.num_heads = 8
    with pytest.raises(ValueError, match='model.encoder.self_attend.num_heads was 4 and is 8'):
        check_resumable(tmp_path, other)


def test_a_run_from_before_is_a_model(tmp_path):
    config = imagenet.get_config('demo')
    task = make_task(config)
    params, state = jax.tree.map(np.asarray, task.init(jax.random.key(0)))
    params['decoder/output']['w'] = np.random.default_rng(0).normal(size=(96, 10)).astype('f')
    written = config_before(config, ENCODERS_BEFORE[imagenet])
    (tmp_path / 'config.json').write_text(json.dumps(written))
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, {'params': params, 'state': state}, wall_seconds=1, score=0.5)
    checkpoints.close()
    model = load_workdir(tmp_path)
    digits = np.random.default_rng(1).normal(size=(2, 8, 8, 1)).astype(np.float32)
    expected = task.pretrained(params, state)(digits)
    np.testing.assert_array_equal(model(digits), expected)
