"""A run of the digits demo that was never trained, for tests of what is made of a run."""

import json

import jax
import numpy as np

from configs import imagenet
from experiments.tasks import make_task
from experiments.training.checkpointing import Checkpoints

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)


def write_demo_run(workdir):
    """Writes a run with Perceiver IO's decoder, which has names in the released models.

    Its checkpoints are those of step 3, the best, and of step 5.
    """
    config = imagenet.get_config('demo').unlock()
    config.model.encoder.num_cross_attends = 1
    config.model.decoder = dict(query_channels=7)
    (workdir / 'config.json').write_text(json.dumps(config.to_dict()))
    checkpoints = Checkpoints(workdir, keep=2)
    task = make_task(config)
    init = jax.jit(task.init)
    for step, score in ((3, 0.5), (5, 0.25)):
        params, state = jax.tree.map(np.asarray, init(jax.random.key(step)))
        checkpoints.save(step, {'params': params, 'state': state}, wall_seconds=1, score=score)
    checkpoints.close()
