"""A task that trains in a moment: classes of noisy points; with all that the loop must carry."""

import haiku as hk
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

FEATURES, CLASSES, EVAL_EXAMPLES = 5, 3, 37
CENTRES = np.random.default_rng(0).normal(size=(CLASSES, FEATURES)).astype(np.float32)


def get_config(**train):
    """A config with what the loop reads; keyword arguments go into config.train."""
    sizes = dict(batch_size=32, epochs=None, steps=6, accumulate_steps=1, freeze=(), ema_decay=0.0)
    intervals = dict(
        log_every_steps=2, evaluate_every_steps=4, checkpoint_every_steps=2, keep_checkpoints=2
    )
    return ml_collections.ConfigDict(
        dict(
            task='toy',
            seed=7,
            parallel='jit',
            init_from='',
            data=dict(path='', num_workers=0),
            train={**sizes, **intervals, **train},
            optimizer=dict(
                learning_rate=0.02,
                schedule=dict(kind='constant'),
                b1=0.9,
                b2=0.999,
                eps=1e-6,
                weight_decay=0.1,
                clip_norm=10.0,
                trust_ratio=True,
                loaded_scale=1.0,
            ),
            evaluation=dict(batch_size=16),
        )
    )


class ToyTask:
    """See experiments.tasks.Task; the loop asks nothing of `describe`."""

    metric = 'top1'
    higher_is_better = True
    loss_unit = 'nats'
    num_train_examples = 320
    num_eval_examples = EVAL_EXAMPLES
    data_name = eval_data_name = 'toy'
    paper_eval_data = False
    eval_paper_value = None
    known_classes = None
    paper_value = None

    def __init__(self, config):
        self.config = config
        self.broken = 0  # examples at the front of each global batch that count as broken
        self.poisoned_step = None  # the update whose batch holds a NaN
        self.on_step = lambda step: None  # called before the batch of each update is made

        def forward(inputs, is_training):
            hidden = hk.nets.MLP([7], activate_final=True, activation=jax.nn.gelu)(inputs)
            average = hk.ExponentialMovingAverage(0.9)
            average(hidden.mean(0), update_stats=is_training)
            return hk.Linear(CLASSES, name='output')(hidden)

        self.model = hk.transform_with_state(forward)

    def train_batches(self, start_step):
        step = start_step
        while True:
            self.on_step(step)
            batch = self._examples(seed=(1, step), count=self.config.train.batch_size)
            batch['index'] = np.arange(len(batch['label']), dtype=np.uint32)
            batch['broken'] = (batch['index'] < self.broken).astype(np.int32)
            if step + 1 == self.poisoned_step:
                batch['inputs'][-1, 0] = np.nan
            yield self._own_part(batch)
            step += 1

    def eval_batches(self):
        batch_size = self.config.evaluation.batch_size
        examples = self._examples(seed=2, count=-(-EVAL_EXAMPLES // batch_size) * batch_size)
        examples['index'] = np.arange(len(examples['label']), dtype=np.uint32)
        examples['mask'] = examples['index'] < EVAL_EXAMPLES
        for start in range(0, EVAL_EXAMPLES, batch_size):
            yield self._own_part({k: x[start : start + batch_size] for k, x in examples.items()})

    def init(self, rng):
        return self.model.init(rng, jnp.zeros((1, FEATURES)), is_training=True)

    def loss(self, params, state, rng, batch):
        def noise(index):  # belongs to the example, wherever it is computed
            return jax.random.normal(jax.random.fold_in(rng, index), (FEATURES,))

        inputs = batch['inputs'] + 0.1 * jax.vmap(noise)(batch['index'])
        logits, state = self.model.apply(params, state, None, inputs, is_training=True)
        log_probabilities = jax.nn.log_softmax(logits)
        labels = batch['label'][:, None]
        loss = -jnp.take_along_axis(log_probabilities, labels, axis=1).mean()
        return loss, (state, {'top1': (logits.argmax(-1) == batch['label']).mean()})

    def predict(self, params, state, batch):
        logits, _ = self.model.apply(params, state, None, batch['inputs'], is_training=False)
        return {'logits': logits, 'label': batch['label']}

    def summarise(self, predictions):
        logits, labels = predictions['logits'], predictions['label']
        assert logits.shape == (EVAL_EXAMPLES, CLASSES)
        return {
            'top1': float(np.mean(logits.argmax(-1) == labels)),
            'mean_logit': float(np.mean(logits)),
        }

    def draw(self, subfigure, params, state, predictions):
        assert predictions['index'].tolist() == list(range(EVAL_EXAMPLES))
        subfigure.subplots().imshow(params['output']['w'])

    def _examples(self, seed, count):
        rng = np.random.default_rng(seed)
        labels = rng.integers(CLASSES, size=count).astype(np.int32)
        noise = rng.normal(size=(count, FEATURES)).astype(np.float32)
        return {'inputs': CENTRES[labels] + noise, 'label': labels}

    def _own_part(self, batch):
        def part(x):
            return np.split(x, jax.process_count())[jax.process_index()]

        return {k: part(x) for k, x in batch.items()}
