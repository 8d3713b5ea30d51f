"""What the networks of the papers' comparison read: elements on a grid, contents and positions.

Each of them begins with a linear layer, a convolution or a projection. Of [contents, positions] it
is the sum of two, and positions are the same in every image: their half is computed once for a
whole batch. With 64 bands a pixel has 3 channels of contents and 258 of positions.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from perceiver_jax.grids import FourierGrid, permutation
from perceiver_jax.sharding import for_each_example, reshape_examples


@dataclasses.dataclass(frozen=True)
class Elements:
    """Input elements on a grid of two axes.

    Attributes:
      contents: `[B, rows, columns, C]`.
      positions: `[1, rows, columns, P]`, the channels behind the contents that are the same in all
        examples, in the dtype of `contents`; None: there are none.
    """

    contents: Array
    positions: Array | None = None

    @property
    def channels(self) -> int:
        """C + P."""
        return self.contents.shape[-1] + (0 if self.positions is None else self.positions.shape[-1])

    def linear(self, apply: Callable[[Array, Array], Array], w: Array) -> Array:
        """Applies a linear layer to contents and positions side by side.

        Args:
          apply: A function of elements and weights that is linear in both.
          w: Weights `[..., C + P, channels]`.

        Returns:
          What the function returns of `[B, rows, columns, C + P]` and `w`, up to rounding.
        """
        if self.positions is None:
            return apply(self.contents, w)
        channels = self.contents.shape[-1]
        of_contents = apply(self.contents, w[..., :channels, :])
        return of_contents + apply(self.positions, w[..., channels:, :])

    def written_out(self) -> 'Elements':
        """Returns the same elements with their positions among the contents."""
        if self.positions is None:
            return self
        positions = for_each_example(self.positions[0], self.contents)
        return Elements(jnp.concatenate([self.contents, positions], axis=-1))


def on_a_grid(elements: Array | FourierGrid, rows: int, columns: int) -> Elements:
    """Puts input elements on a grid, in their order.

    Args:
      elements: `[B, rows * columns, C]`, or a grid of them, which may be shuffled: the network then
        sees each pixel, with its position, at another place.
      rows: Rows of the grid.
      columns: Columns of the grid.
    """
    if not isinstance(elements, FourierGrid):
        return Elements(reshape_examples(elements, rows, columns, elements.shape[-1]))
    contents, seed = elements.contents, elements.permutation_seed
    no_contents = jnp.zeros((1, *elements.positions.shape, 0), elements.dtype)
    positions = dataclasses.replace(elements, contents=no_contents).array()
    if seed is not None:
        contents = reshape_examples(contents, rows * columns, contents.shape[-1])
        contents = contents[:, permutation(seed, rows * columns)]
        contents = reshape_examples(contents, rows, columns, contents.shape[-1])
    return Elements(contents, positions.reshape(1, rows, columns, -1))
