"""Regression on irregular points: the circle that two thirds of a cloud's points lie on.

Points are input elements in any order; an input mask makes a batch of clouds of 12 to 48 points.
Prints how far centre and radius are off, beside least squares (dotted in regression.png).

    python -m examples.regression
"""

import haiku as hk
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

from perceiver_jax import AverageDecoder, Encoder, fourier_features


def draw_clouds(generator, size=64):  # -> [B, 48, 2], which are there [B, 48], circles [B, 3]
    circles = generator.uniform([-0.5, -0.5, 0.2], 0.5, (size, 3)).astype('f4')
    angles = generator.uniform(0, 2 * np.pi, (size, 48))
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    points = circles[:, None, :2] + circles[:, None, 2:] * ring
    is_stray = generator.random((size, 48, 1)) < 1 / 3
    points = np.where(is_stray, generator.uniform(-1, 1, points.shape), points)
    return points.astype('f4'), np.arange(48) < generator.integers(12, 49, (size, 1)), circles


@hk.transform
def model(points, there):  # [B, M, 2], [B, M] -> [B, 3]
    elements = fourier_features(points, num_bands=4, max_resolution=[8, 8])
    encoder = Encoder(num_latents=8, latent_channels=64, num_blocks=1, num_self_attends_per_block=2)
    return AverageDecoder(3)(encoder(elements, there, is_training=True))


@jax.jit
def update(params, state, points, there, circles):
    def loss(params):
        return ((model.apply(params, None, points, there) - circles) ** 2).mean()

    changes, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, changes), state


generator, optimizer = np.random.default_rng(0), optax.adam(2e-3)
params = model.init(jax.random.key(0), *draw_clouds(generator)[:2])
state = optimizer.init(params)
for _ in range(600):
    params, state = update(params, state, *draw_clouds(generator))
points, there, circles = draw_clouds(generator, 300)
rows = np.insert(2 * points, 2, 1, axis=2) * there[..., None]  # x^2 + y^2 = 2 a x + 2 b y + c
a, b, c = np.einsum('bim,bm->ib', np.linalg.pinv(rows), (points**2).sum(axis=2))
found = np.array([a, b, np.sqrt(a**2 + b**2 + c)]).T, model.apply(params, None, points, there)
figure, panels = plt.subplots(1, 4, figsize=(10, 2.8), layout='constrained')
for name, style, guesses in zip(('least squares', 'Perceiver'), (':', '-'), found, strict=True):
    print(f'{name}: x, y and radius off by {np.abs(guesses - circles).mean(axis=0).round(3)}')
    for i, panel in enumerate(panels):
        panel.plot(*points[i, there[i]].T, '.', color='0.5')
        panel.add_patch(plt.Circle(guesses[i, :2], guesses[i, 2], fill=False, linestyle=style))
        panel.set(xlim=(-1, 1), ylim=(-1, 1), aspect='equal')
figure.savefig('regression.png')
