"""The architecture as a straightforward reading of the papers states it, for comparison.

Each input element is projected to a key and a value, the whole matrix of attention weights is in
memory, blocks are written out one after the other. It takes our parameters and gives our outputs;
nothing in it is fast on purpose or slow on purpose. Parameters are `{module: {name: array}}`, and
`name` is the module's; arrays are `[B, elements, channels]`.
"""

import jax
import jax.numpy as jnp
import numpy as np


def linear(params, name, x):
    """Applies a linear layer to the last axis."""
    p = params[name]
    return x @ p['w'].astype(x.dtype) + jax.lax.broadcast_to_rank(p['b'].astype(x.dtype), x.ndim)


def layer_norm(params, name, x):
    """Applies layer normalisation to the last axis, in float32."""
    p = params[name]
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    variance = wide.var(-1, keepdims=True)
    wide = (wide - mean) * jax.lax.rsqrt(variance + 1e-5)
    scale, offset = (jax.lax.broadcast_to_rank(p[name], x.ndim) for name in ('scale', 'offset'))
    return (wide * scale + offset).astype(x.dtype)


def attention(params, name, inputs_q, inputs_kv, num_heads):
    """Computes multi-head attention of `inputs_q` to `inputs_kv`, and its output projection."""

    def heads(x):
        return x.reshape(*x.shape[:-1], num_heads, -1)

    query = heads(linear(params, f'{name}/query', inputs_q))
    key = heads(linear(params, f'{name}/key', inputs_kv))
    value = heads(linear(params, f'{name}/value', inputs_kv))
    logits = jnp.einsum('bthf,bshf->bhts', query, key) / jnp.sqrt(query.shape[-1]).astype(key.dtype)
    weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(value.dtype)
    seen = jnp.einsum('bhts,bshv->bthv', weights, value)
    return linear(params, f'{name}/output', seen.reshape(*seen.shape[:2], -1))


def mlp(params, name, x):
    """Applies layer normalisation and the MLP of one hidden layer."""
    x = layer_norm(params, f'{name}/norm_mlp', x)
    x = jax.nn.gelu(linear(params, f'{name}/mlp/hidden', x))
    return linear(params, f'{name}/mlp/output', x)


def cross_attend(params, name, queries, inputs, use_query_residual=True):
    """Computes a cross-attend: attention of one head, then the MLP."""
    x = attention(
        params,
        f'{name}/attention',
        layer_norm(params, f'{name}/norm_queries', queries),
        layer_norm(params, f'{name}/norm_inputs', inputs),
        num_heads=1,
    )
    if use_query_residual:
        x = queries + x
    return x + mlp(params, name, x)


def self_attend(params, name, x, num_heads):
    """Computes a self-attend: attention of the elements to each other, then the MLP."""
    normal = layer_norm(params, f'{name}/norm_attention', x)
    x = x + attention(params, f'{name}/attention', normal, normal, num_heads)
    return x + mlp(params, name, x)


def encode(params, inputs, encoder):
    """Returns the latents, by the fields of `Encoder`; as many cross-attends as blocks, or one."""
    num_heads = encoder.get('self_attend', {}).get('num_heads', 8)
    latents = params['encoder']['latents'].astype(inputs.dtype)
    latents = jnp.broadcast_to(latents, (inputs.shape[0], *latents.shape))
    for i in range(encoder.get('num_blocks', 8)):
        if i < encoder.get('num_cross_attends', 1):
            latents = cross_attend(params, f'encoder/cross_attend_{min(i, 1) + 1}', latents, inputs)
        for j in range(encoder.get('num_self_attends_per_block', 6)):
            name = f'encoder/block_1/self_attend_{j + 1}'
            latents = self_attend(params, name, latents, num_heads)
    return latents


def fourier_positions(shape, num_bands, max_resolution):
    """Returns Fourier features `[prod(shape), A * (2 K + 1)]`, computed once on the host."""
    axes = [np.linspace(-1.0, 1.0, n) for n in shape]
    positions = np.stack(np.meshgrid(*axes, indexing='ij'), -1).reshape(-1, len(shape))
    frequencies = np.stack([np.linspace(1.0, mu / 2, num_bands) for mu in max_resolution])
    angles = np.pi * (positions[:, :, None] * frequencies).reshape(len(positions), -1)
    return np.concatenate([positions, np.sin(angles), np.cos(angles)], -1).astype(np.float32)


def with_positions(contents, positions):
    """Concatenates contents `[B, M, C]` with positions `[M, P]`."""
    positions = jnp.broadcast_to(positions, (len(contents), *positions.shape))
    return jnp.concatenate([contents, positions.astype(contents.dtype)], -1)


def image_classifier(params, images, positions, *, encoder, decoder=None, dtype='float32', **_):
    """Returns logits `[B, classes]` from images `[B, height, width, 3]` and their positions."""
    images = images.astype(dtype)
    pixels = images.reshape(len(images), -1, images.shape[-1])
    latents = encode(params, with_positions(pixels, positions), encoder)
    if decoder is None:
        return linear(params, 'decoder/output', latents.astype(jnp.float32).mean(1))
    query = params['decoder']['query'].astype(dtype)
    query = jnp.broadcast_to(query, (len(images), *query.shape))
    name = 'decoder/query_decoder'
    output = cross_attend(
        params,
        f'{name}/cross_attend',
        query,
        latents,
        use_query_residual=decoder.get('cross_attend', {}).get('use_query_residual', True),
    )
    return linear(params, f'{name}/output', output[:, 0].astype(jnp.float32))


def optical_flow(params, frames, positions, *, encoder, dtype='float32', **_):
    """Returns flow `[B, height, width, 2]` from frames `[B, 2, height, width, 3]`."""
    batch, _, height, width, _ = frames.shape
    padded = jnp.pad(frames.astype(dtype), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [
        padded[:, frame, i : i + height, j : j + width]
        for frame in range(2)
        for i in range(3)
        for j in range(3)
    ]
    contents = linear(params, 'inputs/projection', jnp.concatenate(patches, -1))
    elements = with_positions(contents.reshape(batch, height * width, -1), positions)
    latents = encode(params, elements, encoder)
    flow = cross_attend(params, 'decoder/cross_attend', elements, latents, use_query_residual=False)
    flow = linear(params, 'decoder/output', flow.astype(jnp.float32))
    return flow.reshape(batch, height, width, 2) / 100 * 20
