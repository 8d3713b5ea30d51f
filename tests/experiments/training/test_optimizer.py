import jax
import numpy as np
import optax
import pytest

from experiments.training.optimizer import decays, make_optimizer
from perceiver_jax.weights.trees import flatten

LAMB = dict(
    learning_rate=0.03,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    weight_decay=0.1,
    clip_norm=2.0,
    trust_ratio=True,
)
SHAPES = {
    'encoder/latents': {'embeddings': (5, 3)},
    'encoder/layer_norm': {'scale': (3,), 'offset': (3,)},
    'output': {'w': (3, 2), 'b': (2,)},
}


def random_tree(rng, scale):
    return {
        module: {
            name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in x.items()
        }
        for module, x in SHAPES.items()
    }


def lamb_by_hand(
    params,
    all_gradients,
    *,
    learning_rate,
    b1,
    b2,
    eps,
    weight_decay,
    clip_norm,
    trust_ratio,
):
    """LAMB in NumPy, one tensor at a time; AdamW without the trust ratio."""
    first, second = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    for step, gradients in enumerate(all_gradients, start=1):
        leaves = jax.tree.leaves(gradients)
        global_norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in leaves))
        clip = min(1.0, clip_norm / global_norm)
        for module, tensors in params.items():
            for name, w in tensors.items():
                g = clip * gradients[module][name]
                m = first[module][name] = b1 * first[module][name] + (1 - b1) * g
                v = second[module][name] = b2 * second[module][name] + (1 - b2) * g**2
                update = (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + eps)
                if name in ('w', 'embeddings'):
                    update = update + weight_decay * w
                norms = np.linalg.norm(w), np.linalg.norm(update)
                ratio = norms[0] / norms[1] if trust_ratio and min(norms) > 0 else 1.0
                tensors[name] = w - learning_rate * ratio * update
    return params


@pytest.mark.parametrize('trust_ratio', [True, False], ids=['LAMB', 'AdamW'])
@pytest.mark.parametrize('gradient_scale', [0.1, 30.0], ids=['not clipped', 'clipped'])
def test_two_steps_equal_those_by_hand(gradient_scale, trust_ratio):
    settings = {**LAMB, 'trust_ratio': trust_ratio}
    rng = np.random.default_rng(3)
    params = random_tree(rng, 1.0)
    params['output']['b'][:] = 0  # a tensor of norm 0: its trust ratio is 1
    gradients = [random_tree(rng, gradient_scale) for _ in range(2)]
    gradients[0]['encoder/layer_norm']['offset'][:] = 0  # an update of norm 0 at first

    optimizer, _ = make_optimizer(10, 5, schedule=dict(kind='constant'), **settings)
    update = jax.jit(optimizer.update)
    actual, opt_state = params, optimizer.init(params)
    for gradient in gradients:
        updates, opt_state = update(gradient, opt_state, actual)
        actual = optax.apply_updates(actual, updates)
    expected = lamb_by_hand(jax.tree.map(np.array, params), gradients, **settings)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-5), actual, expected)


@pytest.mark.parametrize('gradient_scale', [0.1, 30.0], ids=['not clipped', 'clipped'])
def test_two_steps_of_sgd_equal_those_by_hand(gradient_scale):
    rng = np.random.default_rng(5)
    params = random_tree(rng, 1.0)
    gradients = [random_tree(rng, gradient_scale) for _ in range(2)]
    settings = dict(learning_rate=0.03, momentum=0.9, weight_decay=0.1, clip_norm=2.0)
    optimizer, _ = make_optimizer(10, 5, schedule=dict(kind='constant'), **settings)
    actual, opt_state = params, optimizer.init(params)
    for gradient in gradients:
        updates, opt_state = jax.jit(optimizer.update)(gradient, opt_state, actual)
        actual = optax.apply_updates(actual, updates)
    for module, tensors in params.items():
        for name, w in tensors.items():
            velocity = np.zeros_like(w)
            for gradient in gradients:
                norm = np.sqrt(
                    sum((g.astype(np.float64) ** 2).sum() for g in jax.tree.leaves(gradient))
                )
                g = min(1.0, 2.0 / norm) * gradient[module][name]
                velocity = 0.9 * velocity + g + (0.1 * w if name in ('w', 'embeddings') else 0)
                w = w - 0.03 * velocity
            np.testing.assert_allclose(actual[module][name], w, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('trust_ratio', [True, False], ids=['LAMB', 'AdamW'])
def test_what_was_loaded_learns_at_its_own_rate(trust_ratio):
    settings = {**LAMB, 'trust_ratio': trust_ratio, 'schedule': dict(kind='constant')}
    rng = np.random.default_rng(4)
    params, gradients = random_tree(rng, 1.0), random_tree(rng, 30.0)  # clipped, and they decay
    loaded = {'encoder/latents:embeddings', 'output:b', 'of/another:w'}
    updates = []
    for scale in (1.0, 0.5):
        optimizer, _ = make_optimizer(10, 5, loaded_scale=scale, loaded=loaded, **settings)
        updates.append(flatten(optimizer.update(gradients, optimizer.init(params), params)[0]))
    for name, update in updates[0].items():
        assert np.abs(update).max() > 0
        factor = 0.5 if name in loaded else 1.0
        np.testing.assert_array_equal(updates[1][name], factor * update, name)


def test_biases_and_norms_do_not_decay():
    assert decays(SHAPES) == {
        'encoder/latents': {'embeddings': True},
        'encoder/layer_norm': {'scale': False, 'offset': False},
        'output': {'w': True, 'b': False},
    }


def rates(steps, total_steps=100, steps_per_epoch=10.5, **schedule):
    return [
        float(make_optimizer(total_steps, steps_per_epoch, schedule=schedule, **LAMB)[1](step))
        for step in steps
    ]


def test_constant():
    np.testing.assert_allclose(rates([0, 50, 1000], kind='constant'), [0.03] * 3)


def test_step_falls_at_the_first_update_after_each_boundary():
    # Epochs 2 and 4 end after 21 and 42 updates.
    actual = rates([20, 21, 41, 42], kind='step', boundary_epochs=(2, 4), factor=0.1)
    np.testing.assert_allclose(actual, [0.03, 0.003, 0.003, 0.0003], rtol=1e-6)


def test_flat_cosine_is_flat_then_halves_half_way_down():
    actual = rates([0, 50, 60, 75, 100], kind='flat_cosine', flat_fraction=0.5)
    fifth = 0.5 * (1 + np.cos(np.pi / 5))
    np.testing.assert_allclose(actual, 0.03 * np.array([1, 1, fifth, 0.5, 0]), atol=1e-9)


def test_cosine_warms_up_from_the_first_update():
    actual = rates([0, 1, 3, 4, 52, 100], kind='cosine', warmup_steps=4)
    np.testing.assert_allclose(actual, 0.03 * np.array([0.25, 0.5, 1, 1, 0.5, 0]), atol=1e-9)
    np.testing.assert_allclose(rates([0, 50], kind='cosine', warmup_steps=0), [0.03, 0.015])


def test_a_run_must_be_longer_than_its_warm_up():
    with pytest.raises(ValueError, match='warmup_steps is 10, and the run has 10 updates'):
        make_optimizer(10, 5, schedule=dict(kind='cosine', warmup_steps=10), **LAMB)


@pytest.mark.parametrize(
    ('schedule', 'message'),
    [
        (dict(kind='linear'), "kind is 'linear', it must be one of constant, step"),
        (dict(kind='step', factor=0.1), r"\['factor'\] .* takes \['boundary_epochs', 'factor'\]"),
        (dict(kind='constant', warmup=3), r"\['warmup'\] .* 'constant' takes \[\]"),
    ],
)
def test_schedules_refuse_what_they_do_not_know(schedule, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(10, 5, schedule=schedule, **LAMB)
