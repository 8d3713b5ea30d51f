"""Builders of the programs that are measured, in JAX; see `harness.Build`.

Each runs in a process of its own, so jax is imported within the functions.
"""

from benchmarks.harness import Program, compiled


def random_array(*shape):
    """Makes a float32 jax array of normal random numbers, the same in each process."""
    import jax.numpy as jnp
    import numpy as np

    return jnp.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))


def pixels(batch: int, side: int, dtype: str = 'float32', grid: bool = True):
    """Makes random images whose pixels have Fourier positions of 64 bands: 261 channels.

    Args:
      batch: Number of images.
      side: Their height and width.
      dtype: Dtype of the channels.
      grid: Whether they are a `FourierGrid`; if not, its array.
    """
    from perceiver_jax.grids import fourier_grid

    images = random_array(batch, side, side, 3).astype(dtype)
    elements = fourier_grid(images, 64, (side, side))
    return elements if grid else elements.array()


def cross_attend(implementation: str, side: int, grid: bool, passes) -> dict[str, Program]:
    """Builds one cross-attend of 512 latents, 1,024 channels, to the pixels of an image.

    Args:
      implementation: An implementation of `attend`, or 'reference' for benchmarks/reference.py.
      side: Height and width of the image.
      grid: Whether the program takes a grid or its array; the reference takes an array.
      passes: The programs to build: 'forward', 'gradient', 'gradient, inputs too'.

    Returns:
      The programs, by pass. Norms and MLP are included.
    """
    import haiku as hk
    import jax
    import jax.numpy as jnp

    from benchmarks import reference
    from perceiver_jax import CrossAttend

    latents, inputs = random_array(1, 512, 1024), pixels(1, side, grid=grid)
    how = 'plain' if implementation == 'reference' else implementation

    def forward(queries, inputs):
        return CrossAttend(implementation=how, name='look')(queries, inputs, is_training=True)

    module = hk.without_apply_rng(hk.transform(forward))
    one = jnp.zeros((1, 1, inputs.shape[-1]))
    params = jax.jit(module.init)(jax.random.key(0), latents[:, :1], one)

    def apply(params, queries, inputs):
        if implementation == 'reference':
            return reference.cross_attend(params, 'look', queries, inputs)
        return module.apply(params, queries, inputs)

    def loss(*arguments):
        return apply(*arguments).sum()

    functions = {
        'forward': apply,
        'gradient': jax.grad(loss, (0, 1)),  # of weights and latents: the inputs are data
        'gradient, inputs too': jax.grad(loss, (0, 1, 2)),  # of a grid: of its contents
    }
    return {which: compiled(functions[which], params, latents, inputs) for which in passes}


def attention_to_pixels(
    implementation: str, batch: int, dtype: str, grid: bool, num_queries: int = 512, side: int = 224
) -> dict[str, Program]:
    """Builds the attention of queries to the normalised pixels of images, without what is around.

    Args:
      implementation: An implementation of `attend`; of grids 'auto' or 'pallas'.
      batch: Number of images.
      dtype: Dtype of queries and pixels.
      grid: Whether the program takes a grid or its array.
      num_queries: Queries of each image.
      side: Height and width of the images.

    Returns:
      The output, pass 'forward', and the gradient of the queries, pass 'gradient'.
    """
    import jax

    from perceiver_jax import attend
    from perceiver_jax.grid_keys import attend_to_grid
    from perceiver_jax.layers import normalise

    elements = pixels(batch, side, dtype, grid)
    query = random_array(batch, num_queries, elements.shape[-1]).astype(dtype)
    scale = elements.shape[-1] ** -0.5
    kernel = 'compiled' if implementation == 'pallas' else None
    how = dict(scale=scale, prepare_key=normalise, implementation=implementation)

    def forward(query, elements):
        if grid:
            return attend_to_grid(query, elements, None, scale=scale, kernel=kernel)
        query, key = query[:, :, None], elements[:, :, None]
        return attend(query, key, None, **how)[:, :, 0]

    def gradient(query, elements):
        output, transpose = jax.vjp(lambda query: forward(query, elements), query)
        return transpose(output)[0]  # a gradient that no compiler knows

    functions = {'forward': forward, 'gradient': gradient}
    return {which: compiled(f, query, elements) for which, f in functions.items()}


def imagenet_model(variant: str, implementation: str, changes=None):
    """Returns `(initialise, apply)` of a model of configs/imagenet.py.

    Args:
      variant: A variant of configs/imagenet.py.
      implementation: An implementation of `attend`, 'unrolled' for 'auto' without scanned blocks,
        or 'reference' for benchmarks/reference.py, whose state is its positions.
      changes: Model arguments that replace those of the config; dictionaries are merged.
    """
    import haiku as hk
    import jax.numpy as jnp

    from benchmarks import reference
    from configs import imagenet
    from perceiver_jax import image_classifier

    model = imagenet.get_config(variant).model.to_dict()
    for name, fields in (changes or {}).items():
        model[name] = {**model[name], **fields} if isinstance(fields, dict) else fields
    if implementation == 'unrolled':
        model['encoder']['scan'] = False
    if implementation in ('plain', 'pallas'):
        model.update(implementation=implementation)
    transformed = hk.transform_with_state(
        lambda images, is_training: image_classifier(images, is_training=is_training, **model)
    )
    if implementation == 'reference':

        def init(rng, images, is_training):
            params, _ = transformed.init(rng, images, is_training)
            how = model['inputs']['num_bands'], model['inputs']['max_resolution']
            return params, jnp.asarray(reference.fourier_positions(images.shape[1:3], *how))

        def classify(params, positions, images, _):
            return reference.image_classifier(params, images, positions, **model), positions

        return init, classify

    def apply(params, state, images, is_training):
        return transformed.apply(params, state, None, images, is_training)

    return transformed.init, apply


def image_forward(implementation: str, variant: str, batch: int = 1) -> dict[str, Program]:
    """Builds a full-size classifier of images of 224x224; see `imagenet_model`."""
    import jax

    init, apply = imagenet_model(variant, implementation)
    images = random_array(batch, 224, 224, 3)
    params, state = jax.jit(init, static_argnums=2)(jax.random.key(0), images, False)
    forward = compiled(lambda p, s, x: apply(p, s, x, False)[0], params, state, images)
    return {'forward': forward}


SMALL = dict(
    encoder=dict(num_latents=128, latent_channels=256, num_blocks=1, num_self_attends_per_block=6),
    decoder=dict(query_channels=256),
)


def training_step(
    implementation: str, variant: str, size: int, batch: int, changes=None, flops=None
) -> dict[str, Program]:
    """Builds loss, gradients and an AdamW update of an image classifier; see `imagenet_model`."""
    import jax
    import jax.numpy as jnp
    import optax

    init, apply = imagenet_model(variant, implementation, changes)
    images, labels = random_array(batch, size, size, 3), jnp.arange(batch) % 1000
    params, model_state = jax.jit(init, static_argnums=2)(jax.random.key(0), images[:1], False)
    optimizer = optax.adamw(1e-3)

    def step(params, model_state, state, images, labels):
        def loss(params):
            logits, new_state = apply(params, model_state, images, True)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return loss, new_state

        (value, model_state), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), model_state, state, value

    arguments = params, model_state, optimizer.init(params), images, labels
    return {'training step': compiled(step, *arguments, donate=(0, 1, 2), flops=flops)}


def flow_forward(implementation: str, batch: int = 1, dtype: str = 'float32'):
    """Builds the released flow model on pairs of 368x496 frames."""
    import haiku as hk
    import jax
    import jax.numpy as jnp

    from benchmarks import reference
    from perceiver_jax import RELEASED, optical_flow

    model = {**RELEASED['optical_flow'].arguments, 'dtype': dtype}
    frames = random_array(batch, 2, 368, 496, 3)
    how = 'plain' if implementation == 'reference' else implementation
    transformed = hk.without_apply_rng(
        hk.transform(lambda x: optical_flow(x, is_training=False, implementation=how, **model))
    )
    params = jax.jit(transformed.init)(jax.random.key(0), frames[:1])
    if implementation != 'reference':
        return {'forward': compiled(transformed.apply, params, frames)}
    how = model['inputs']['num_bands'], model['inputs']['max_resolution']
    positions = jnp.asarray(reference.fourier_positions(frames.shape[2:4], *how))

    def estimate(params, frames, positions):
        return reference.optical_flow(params, frames, positions, **model)

    return {'forward': compiled(estimate, params, frames, positions)}
