"""Attention maps: where in an image a Perceiver looks.

Four handwritten digits make an image, and a Perceiver learns to name the one at the top left.
Prints the share of attention there, before and after; draws each latent in attention_maps.png.

    python -m examples.attention_maps
"""

import dataclasses

import haiku as hk
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from perceiver_jax import image_classifier, initialise

pixels, digits = load_digits(return_X_y=True)
pixels = (pixels.reshape(-1, 8, 8, 1) / 16 - 0.5).astype('f4')
generator, optimizer = np.random.default_rng(0), optax.adam(2e-3)


def images_of(numbers):  # [B, 4] of digits -> [B, 16, 16, 1]
    return pixels[numbers].reshape(-1, 2, 2, 8, 8, 1).swapaxes(2, 3).reshape(-1, 16, 16, 1)


@jax.jit
def update(params, state, images, labels):
    def loss(params):
        logits = network.apply(params, None, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    changes, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, changes), state


encoder = dict(num_latents=8, latent_channels=64, num_blocks=1, num_self_attends_per_block=2)
arguments = dict(num_classes=10, inputs=dict(num_bands=4, max_resolution=[8, 8]), encoder=encoder)
network = hk.transform(lambda images: image_classifier(images, is_training=True, **arguments))
new = initialise('image_classifier', arguments, front_end=dict(size=16, mean=[0.5]))
params, state = new.params, optimizer.init(new.params)
for _ in range(1000):
    chosen = generator.integers(1500, size=(64, 4))
    params, state = update(params, state, images_of(chosen), digits[chosen[:, 0]])
trained = dataclasses.replace(new, params=jax.device_get(params))
others = generator.integers(1500, len(digits), size=(300, 4))
for name, model in ('before', new), ('after', trained):
    right = model(images_of(others)).argmax(axis=-1) == digits[others[:, 0]]
    maps = model.attention('encoder/cross_attend_1', images_of(others)).reshape(300, -1, 16, 16)
    share = maps[..., :8, :8].sum(axis=(2, 3)).mean()  # of the latents, [B, 8, 16, 16]
    print(f'{name} training: accuracy {right.mean():.1%}, attention at the top left {share:.1%}')
figure, panels = plt.subplots(3, 8, figsize=(10, 4), layout='constrained')
for row, image, latents in zip(panels, images_of(others), np.array(maps), strict=False):
    for panel, weights in zip(row, latents, strict=True):
        panel.imshow(image[..., 0], cmap='gray')
        panel.imshow(weights, cmap='autumn', alpha=weights / weights.max())
        panel.axis('off')
figure.savefig('attention_maps.png')
