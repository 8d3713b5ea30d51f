import json

import numpy as np
import pytest

from experiments import open_model
from tests.toys.demo_run import IMAGES, write_demo_run


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    write_demo_run(workdir)
    return workdir


def test_a_run_is_a_model(workdir):
    model = open_model.open_model(workdir)
    assert model(IMAGES).shape == (2, 10)
    assert model.classes == [str(n) for n in range(10)]
    assert model.front_end == dict(size=8, crop_fraction=1.0, mean=[0.3], std=[0.38])
    assert model.description == f'imagenet, step 5 of {workdir}.'
    best = open_model.open_model(workdir, best=True)
    assert 'step 3' in best.description
    assert np.abs(best(IMAGES) - model(IMAGES)).max() > 1e-3


def test_a_config_that_takes_too_much_is_refused(workdir, tmp_path):
    (tmp_path / 'checkpoints').symlink_to(workdir / 'checkpoints')
    config = json.loads((workdir / 'config.json').read_text())
    config['model']['encoder'].update(num_blocks=1000, num_self_attends_per_block=999)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    message = f'{tmp_path}/config.json.*: .*there are 999,000 self-attends, expected at most'
    with pytest.raises(ValueError, match=message):
        open_model.open_model(tmp_path)


def test_what_is_no_run_says_so(workdir, tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(ValueError, match='config.json is not the config of a run'):
        open_model.open_model(tmp_path)
    config = json.loads((workdir / 'config.json').read_text())
    changed = {**config, 'augmentation': {**config['augmentation'], 'jitter_scales': 1}}
    (tmp_path / 'config.json').write_text(json.dumps(changed))
    with pytest.raises(ValueError, match='config.json is not the config of a run: .*jitter_scales'):
        open_model.open_model(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match='no checkpoint in'):
        open_model.open_model(tmp_path)
