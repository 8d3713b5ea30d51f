"""Builders of the programs that are measured, in JAX; see `harness.Build`.

Each runs in a process of its own, so jax is imported within the functions.
"""

import functools
import importlib
from collections.abc import Mapping

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


def attention(
    implementation: str,
    batch: int,
    num_queries: int,
    num_keys: int,
    channels: int,
    num_heads: int = 1,
    chunk_size: int | None = None,
    with_errors: bool = False,
) -> dict[str, Program]:
    """Builds attention in bfloat16 to keys that are the values too.

    Args:
      implementation: An implementation of `attend`.
      batch: Number of examples.
      num_queries: Queries of each example.
      num_keys: Keys of each example.
      channels: Channels of a head.
      num_heads: Number of heads.
      chunk_size: Keys of a chunk; None: as `attend` chooses.
      with_errors: Whether rows tell relative errors, see `with_relative_errors`.

    Returns:
      The output, pass 'forward', and the gradients of queries and keys, pass 'gradient'.
    """
    import jax
    import jax.numpy as jnp

    from perceiver_jax import attend

    query, key, cotangent = (
        jax.random.normal(jax.random.key(i), (batch, length, num_heads, channels), 'bfloat16')
        for i, length in enumerate((num_queries, num_keys, num_queries))
    )

    def forward(query, key, implementation=implementation):
        # The definition has no chunks.
        size = None if implementation == 'plain' else chunk_size
        return attend(query, key, key, implementation=implementation, chunk_size=size)

    def gradient(query, key, cotangent, implementation=implementation):
        transpose = jax.vjp(lambda *x: forward(*x, implementation), query, key)[1]
        return transpose(cotangent)

    flops = 4 * batch * num_queries * num_keys * num_heads * channels
    programs = {
        'forward': compiled(forward, query, key, flops=flops),
        'gradient': compiled(gradient, query, key, cotangent, flops=3 * flops),
    }
    if not with_errors:
        return programs
    query, key, cotangent = (x.astype(jnp.float32) for x in (query, key, cotangent))
    return with_relative_errors(
        programs,
        {
            'forward': (functools.partial(forward, implementation='plain'), query, key),
            'gradient': (
                functools.partial(gradient, implementation='plain'),
                query,
                key,
                cotangent,
            ),
        },
    )


def attention_to_pixels(
    implementation: str,
    batch: int,
    dtype: str,
    grid: bool,
    num_queries: int = 512,
    side: int = 224,
    with_errors: bool = False,
) -> dict[str, Program]:
    """Builds the attention of queries to the normalised pixels of images, without what is around.

    Args:
      implementation: An implementation of `attend`; of grids 'auto' or 'pallas'.
      batch: Number of images.
      dtype: Dtype of queries and pixels.
      grid: Whether the program takes a grid or its array.
      num_queries: Queries of each image.
      side: Height and width of the images.
      with_errors: Whether rows tell relative errors, see `with_relative_errors`.

    Returns:
      The output, pass 'forward', and the gradient of the queries, pass 'gradient': images are data.
    """
    import jax
    import jax.numpy as jnp

    from perceiver_jax import attend
    from perceiver_jax.grid_keys import attend_to_grid
    from perceiver_jax.grids import fourier_grid
    from perceiver_jax.layers import normalise

    images = random_array(batch, side, side, 3).astype(dtype)

    def pixels_of(images):
        return fourier_grid(images, 64, (side, side))

    channels = pixels_of(images).shape[-1]
    query, cotangent = (
        jax.random.normal(jax.random.key(i), (batch, num_queries, channels), dtype) for i in (1, 2)
    )
    scale = channels**-0.5

    def to_grid(query, elements):
        kernel = 'compiled' if implementation == 'pallas' else None
        return attend_to_grid(query, elements, None, scale=scale, kernel=kernel)

    def to_array(query, elements, implementation=implementation):
        how = dict(scale=scale, prepare_key=normalise, implementation=implementation)
        return attend(query[:, :, None], elements[:, :, None], None, **how)[:, :, 0]

    def gradient(forward, query, elements, cotangent):
        transpose = jax.vjp(lambda query: forward(query, elements), query)[1]
        return transpose(cotangent)[0]

    forward = to_grid if grid else to_array
    elements = pixels_of(images) if grid else pixels_of(images).array()
    flops = 4 * batch * num_queries * side**2 * channels
    programs = {
        'forward': compiled(forward, query, elements, flops=flops),
        'gradient': compiled(
            functools.partial(gradient, forward), query, elements, cotangent, flops=2 * flops
        ),
    }
    if not with_errors:
        return programs
    images, query, cotangent = (x.astype(jnp.float32) for x in (images, query, cotangent))
    elements = pixels_of(images).array()
    definition = functools.partial(to_array, implementation='plain')
    return with_relative_errors(
        programs,
        {
            'forward': (definition, query, elements),
            'gradient': (functools.partial(gradient, definition), query, elements, cotangent),
        },
    )


def with_relative_errors(
    programs: dict[str, Program], definitions: Mapping[str, tuple]
) -> dict[str, Program]:
    """Adds to each program how far it is from its definition: |x - y| / |y|, the worst array's.

    Args:
      programs: What was built, by pass.
      definitions: Functions that compute the same, each with its arguments, the same numbers in
        float32; their products are computed in full precision here.

    Returns:
      The programs, with 'relative_error' in `more`.
    """
    import jax
    import jax.numpy as jnp

    def error(x, y):
        return float(
            jnp.linalg.norm(x.astype(jnp.float32).ravel() - y.ravel()) / jnp.linalg.norm(y)
        )

    found = {}
    for which, program in programs.items():
        with jax.default_matmul_precision('highest'):  # a GPU's float32 products are in tf32
            function, *arguments = definitions[which]
            expected = jax.jit(function)(*arguments)
        errors = jax.tree.leaves(jax.tree.map(error, program.run(), expected))
        found[which] = program._replace(more={'relative_error': max(errors), **program.more})
    return found


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

    init, apply = imagenet_model(variant, implementation, changes)
    images, labels = random_array(batch, size, size, 3), jnp.arange(batch) % 1000
    params, model_state = jax.jit(init, static_argnums=2)(jax.random.key(0), images[:1], False)
    return adamw_step(apply, _cross_entropy, params, model_state, images, labels, flops)


def task_training_step(
    implementation: str,
    task: str,
    variant: str,
    shape: tuple[int, ...],
    batch: int,
    changes=None,
    flops=None,
) -> dict[str, Program]:
    """Builds loss, gradients and an AdamW update of the model of ModelNet40 or of optical flow.

    Args:
      implementation: An implementation of `attend`.
      task: 'modelnet40' or 'flow'.
      variant: A variant of its config.
      shape: Shape of an example: `[M, 3]` points, or two frames `[2, height, width, 3]`.
      batch: Number of examples.
      changes: Model arguments that replace those of the config; dictionaries are merged.
      flops: Operations of a step; None if the rate is not asked for.
    """
    import haiku as hk
    import jax
    import jax.numpy as jnp

    function, model = task_model(
        task, variant, {**(changes or {}), 'implementation': implementation}
    )
    transformed = hk.transform_with_state(lambda x, is_training: function(x, is_training, **model))
    inputs = random_array(batch, *shape)
    if task == 'flow':
        targets, loss = random_array(batch, *shape[1:3], 2), _end_point_error
    else:
        targets, loss = jnp.arange(batch) % model['num_classes'], _cross_entropy
    init = jax.jit(transformed.init, static_argnums=2)
    params, model_state = init(jax.random.key(0), inputs[:1], False)

    def apply(params, state, x, is_training):
        return transformed.apply(params, state, None, x, is_training)

    return adamw_step(apply, loss, params, model_state, inputs, targets, flops)


def adamw_step(apply, loss_of, params, model_state, inputs, targets, flops) -> dict[str, Program]:
    """Builds loss, gradients and an AdamW update.

    Args:
      apply: `(params, state, inputs, is_training) -> (outputs, state)`.
      loss_of: `(outputs, targets) -> loss`.
      params: Parameters.
      model_state: State of the model.
      inputs: A batch of inputs.
      targets: What the loss compares with.
      flops: Operations of a step; None if the rate is not asked for.
    """
    import jax
    import optax

    optimizer = optax.adamw(1e-3)

    def step(params, model_state, state, inputs, targets):
        def loss(params):
            outputs, new_state = apply(params, model_state, inputs, True)
            return loss_of(outputs, targets), new_state

        (value, new_state), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), new_state, state, value

    arguments = params, model_state, optimizer.init(params), inputs, targets
    return {'training step': compiled(step, *arguments, donate=(0, 1, 2), flops=flops)}


def _cross_entropy(logits, labels):
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _end_point_error(flow, targets):
    import jax.numpy as jnp

    return jnp.sqrt(jnp.square(flow - targets).sum(-1) + 1e-6).mean()


def task_model(task: str, variant: str, changes=None):
    """Returns the function of a task's model, `(inputs, is_training, **arguments)`, and arguments.

    Tasks themselves import what reads their data, which a machine that measures may lack.

    Args:
      task: 'imagenet', 'modelnet40' or 'flow'.
      variant: A variant of its config.
      changes: Model arguments that replace those of the config; dictionaries are merged.
    """
    from perceiver_jax import models

    config = importlib.import_module(f'configs.{task}').get_config(variant)
    with config.unlocked():
        config.model.update(changes or {})
    names = dict(imagenet='image_classifier', modelnet40='point_classifier', flow='optical_flow')
    function = getattr(models, names[task])

    def call(example, is_training, /, **model):
        return function(example, is_training=is_training, **model)

    return call, config.model.to_dict()


def forward_flops(task: str, variant: str, shape: tuple[int, ...]) -> int:
    """Counts the operations of a task's model, as `--mode=describe`.

    Args:
      task: See `task_model`.
      variant: A variant of its config.
      shape: Shape of an example.
    """
    import jax

    from experiments.training.describe import describe_model

    function, model = task_model(task, variant)

    def forward(inputs, implementation):
        return function(inputs, False, **{**model, 'implementation': implementation})

    example = jax.ShapeDtypeStruct((1, *shape), 'float32')
    return describe_model(forward, example)['forward_flops']


def flow_forward(
    implementation: str,
    batch: int = 1,
    dtype: str = 'float32',
    size=(368, 496),
    encoder=None,
    flops=None,
):
    """Builds the released flow model on pairs of frames.

    Args:
      implementation: An implementation of `attend`, or 'reference' for benchmarks/reference.py.
      batch: Number of pairs.
      dtype: Dtype of the computation; weights are float32.
      size: Height and width of the frames.
      encoder: Fields that replace those of the released model.
      flops: Operations of a run; None if the rate is not asked for.
    """
    import haiku as hk
    import jax
    import jax.numpy as jnp

    from benchmarks import reference
    from perceiver_jax import RELEASED, optical_flow

    model = {**RELEASED['optical_flow'].arguments, 'dtype': dtype}
    model['encoder'] = {**model['encoder'], **(encoder or {})}
    frames = random_array(batch, 2, *size, 3)
    how = 'plain' if implementation == 'reference' else implementation
    transformed = hk.without_apply_rng(
        hk.transform(lambda x: optical_flow(x, is_training=False, implementation=how, **model))
    )
    params = jax.jit(transformed.init)(jax.random.key(0), frames[:1])
    if implementation != 'reference':
        return {'forward': compiled(transformed.apply, params, frames, flops=flops)}
    how = model['inputs']['num_bands'], model['inputs']['max_resolution']
    positions = jnp.asarray(reference.fourier_positions(frames.shape[2:4], *how))

    def estimate(params, frames, positions):
        return reference.optical_flow(params, frames, positions, **model)

    return {'forward': compiled(estimate, params, frames, positions, flops=flops)}
