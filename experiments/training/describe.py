"""The size and cost of a model, from shapes alone: nothing is allocated or compiled."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
from jax.extend import core

from perceiver_jax.encoder import Encoder


def describe_model(forward: Callable[..., Any], *inputs: Any) -> dict[str, Any]:
    """Measures a model in evaluation mode.

    Args:
      forward: Calls the model; a function to be transformed by Haiku that takes, besides its
        arguments, the `implementation` of attention.
      *inputs: Shapes of the function's arguments, for one example: trees of `ShapeDtypeStruct`.

    Returns:
      `parameters` (their number), and the operations of one example: matrix products and
      convolutions, a multiplication and an addition counted separately; norms, softmax and
      activations are left out. `forward_flops` are counted as the papers do, with every projection
      of every input element, `computed_flops` are those of the program that runs. For a model with
      an `Encoder` also the shapes of its `inputs` `[M, C]` and `latents` `[N, D]`.
    """
    sizes: dict[str, Any] = {}

    def measure(next_call, args, kwargs, context):
        result = next_call(*args, **kwargs)
        if isinstance(context.module, Encoder) and context.method_name == '__call__':
            sizes.update(inputs=list(args[0].shape[1:]), latents=list(result.shape[1:]))
        return result

    def model(implementation):
        return hk.transform_with_state(functools.partial(forward, implementation=implementation))

    def flops(implementation):
        apply = model(implementation).apply
        return count_flops(lambda p, s, *x: apply(p, s, None, *x)[0], params, state, *inputs)

    with hk.intercept_methods(measure):
        params, state = jax.eval_shape(model('plain').init, jax.random.key(0), *inputs)
    return {
        **sizes,
        'parameters': sum(math.prod(p.shape) for p in jax.tree.leaves(params)),
        'forward_flops': flops('plain'),
        # What 'auto' computes, but on all machines: no count sees into a GPU's fused kernel.
        'computed_flops': flops('chunked'),
    }


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Counts multiplications plus additions of a function's matrix products and convolutions.

    Args:
      function: Any function that jax can trace.
      *args: Arguments of the function, arrays or shapes.

    Returns:
      The count; the body of a `scan` counts once for each of its iterations, a kernel of Pallas
      once for each place of its grid, that of `jax.shard_map` once for each of its devices, and of
      the branches of a `cond` that with the most counts.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def count_jaxpr(jaxpr: core.Jaxpr) -> int:
    """Counts as `count_flops` does.

    Args:
      jaxpr: What jax traced.
    """
    total = 0
    for equation in jaxpr.eqns:
        operation, params = equation.primitive.name, equation.params
        if operation == 'dot_general':
            (contracted, _), _ = params['dimension_numbers']
            left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
            if not contracted:  # nothing is added up: a broadcast, see `for_each_example`
                continue
            total += 2 * math.prod(out) * math.prod(left[i] for i in contracted)
        elif operation == 'conv_general_dilated':
            # An output value sums over all axes of the kernel but that of the output channels.
            kernel, out = _shape(equation.invars[1]), _shape(equation.outvars[0])
            out_channels = kernel[params['dimension_numbers'].rhs_spec[0]]
            total += 2 * math.prod(out) * math.prod(kernel) // out_channels
        else:
            inner = [count_jaxpr(jaxpr) for jaxpr in _jaxprs(tuple(params.values()))]
            assert operation != 'while' or not any(inner), 'how often it runs is not known'
            repeats = 1
            if operation == 'scan':
                repeats = params['length']
            elif operation == 'pallas_call':
                repeats = math.prod(params['grid_mapping'].grid)
            elif operation == 'shard_map':
                sizes = params['mesh'].shape
                repeats = math.prod(sizes[axis] for axis in params['newly_manual_axes'])
            total += max(inner) if operation == 'cond' else repeats * sum(inner)
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    """Finds the programs in an equation's parameters: of jit, scan, remat, custom gradients."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [inner for item in value for inner in _jaxprs(item)]
    return []


def describe_table(sizes: Mapping[str, Any]) -> str:
    """Writes the sizes and cost of a model beside the paper's.

    Args:
      sizes: What a task's `describe()` returned; `inputs` and `latents` may be missing.

    Returns:
      The lines of a table.
    """
    paper = sizes['paper']
    rows = [('', 'here', f'paper ({paper["source"]})' if paper['source'] else 'paper')]
    if 'inputs' in sizes:
        rows.append(('inputs (M x C)', '{:,} x {:,}'.format(*sizes['inputs']), ''))
    if 'latents' in sizes:
        rows.append(('latents (N x D)', '{:,} x {:,}'.format(*sizes['latents']), ''))
    rows += [
        ('parameters', short(sizes['parameters']), short(paper['parameters'])),
        ('forward FLOPs', short(sizes['forward_flops']), short(paper['flops'])),
        ('computed FLOPs', short(sizes['computed_flops']), ''),
        (paper['metric'], '', '' if paper['value'] is None else f'{paper["value"]:.3f}'),
    ]
    return '\n'.join(f'{name:<16}{here:>16}  {other:<}'.rstrip() for name, here, other in rows)


def short(count: float | None) -> str:
    """Abbreviates a number: 44_912_254 -> '44.9M', 706_279_096_320 -> '706.3B', None -> ''."""
    if count is None:
        return ''
    return f'{count / 1e9:,.1f}B' if count >= 1e9 else f'{count / 1e6:,.1f}M'
