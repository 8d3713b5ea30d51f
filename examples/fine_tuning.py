"""Fine-tuning: a saved model learns other classes from a few images of each.

A Perceiver learns the handwritten digits 0 to 6 and is saved. Loaded again, it gets a new output
layer for 7, 8 and 9, and learns them from five images of each. Prints the accuracy on their others.

    python -m examples.fine_tuning
"""

import dataclasses
import tempfile

import haiku as hk
import jax
import numpy as np
import optax
from sklearn.datasets import load_digits

from perceiver_jax import image_classifier, initialise, load, parameter_labels

pixels, digits = load_digits(return_X_y=True)
images = (pixels.reshape(-1, 8, 8, 1) / 16 - 0.5).astype('f4')


def train(model, images, labels, steps, frozen=()):  # -> the model after these updates
    network = hk.transform(lambda x: image_classifier(x, is_training=True, **model.arguments))
    kinds = parameter_labels(model.params, dict.fromkeys(frozen, 'frozen'), default='trained')
    rules = {'trained': optax.adam(2e-3), 'frozen': optax.set_to_zero()}
    optimizer = optax.multi_transform(rules, kinds)

    @jax.jit
    def update(params, state, images, labels):
        def loss(params):
            logits = network.apply(params, None, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    params, state, generator = model.params, optimizer.init(model.params), np.random.default_rng(0)
    for _ in range(steps):
        chosen = generator.integers(len(labels), size=32)
        params, state = update(params, state, images[chosen], labels[chosen])
    return dataclasses.replace(model, params=jax.device_get(params))


encoder = dict(num_latents=8, latent_channels=32, num_blocks=1, num_self_attends_per_block=2)
arguments = dict(num_classes=7, inputs=dict(num_bands=4, max_resolution=[8, 8]), encoder=encoder)
base = initialise('image_classifier', arguments, front_end=dict(size=8, mean=[0.5]))
old, new = np.flatnonzero(digits < 7), np.flatnonzero(digits >= 7)
with tempfile.TemporaryDirectory() as folder:
    train(base, images[old], digits[old], steps=500).save(f'{folder}/digits_0_to_6')
    saved = load(f'{folder}/digits_0_to_6').with_classes(['7', '8', '9'])
few = np.concatenate([new[digits[new] == digit][:5] for digit in (7, 8, 9)])
others = np.setdiff1d(new, few)
starts = (saved, []), (saved, ['encoder']), (base.with_classes(['7', '8', '9']), [])
names = 'the saved model', 'the saved model, its encoder frozen', 'nothing'
for name, (start, frozen) in zip(names, starts, strict=True):
    tuned = train(start, images[few], digits[few] - 7, steps=300, frozen=frozen)
    right = tuned(images[others]).argmax(axis=-1) == digits[others] - 7
    print(f'from {name}: {right.mean():.1%}')
