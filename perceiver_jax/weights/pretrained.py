"""A model with its weights: call it, ask what it attends to, save it, export it.

model = load('imagenet_fourier_position_encoding.pystate')  # see `loading`
logits = model(images)
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from perceiver_jax import limits
from perceiver_jax.errors import Refused
from perceiver_jax.files import write_whole
from perceiver_jax.models import MODELS
from perceiver_jax.position_encoding import resample_positions
from perceiver_jax.recording import record_attention
from perceiver_jax.weights.transfer import HEADS
from perceiver_jax.weights.trees import Tree, check_fit

FORMAT = 'perceiver_jax 2'  # of model.json


@dataclasses.dataclass(frozen=True, eq=False)
class Pretrained:
    """A model with its weights; call it as a function.

    `dataclasses.replace` makes variants of it, such as one that computes in bfloat16. The weights
    are copied to the device at the first call: later changes of the arrays have no effect.

    Attributes:
      function: Name of a function of `perceiver_jax.models`, one of `MODELS`.
      arguments: Keyword arguments of the function, but `is_training`.
      front_end: What inputs go through before, as arguments of `perceiver_jax.front_ends`.
      params: Haiku's parameters: module name -> parameter name -> array.
      state: Haiku's state, such as running averages: module name -> name -> array.
      classes: Names of the labels; None: not known.
      description: What the model is, in a sentence.
      licence: Licence of the weights; empty: not known.
      activation: What makes probabilities of the model's logits: 'softmax' or 'sigmoid'; None: it
        returns no logits. Left out, it is the one that the function is usually trained with.

    Raises:
      Refused: There is no such function or activation.
    """

    function: str
    arguments: Mapping[str, Any]
    front_end: Mapping[str, Any]
    params: Tree = dataclasses.field(repr=False)
    state: Tree = dataclasses.field(repr=False)
    classes: Sequence[str] | None = None
    description: str = ''
    licence: str = ''
    activation: str | None = 'usual'

    def __post_init__(self):
        if self.function not in list(MODELS):  # a list: in a damaged file it may be unhashable
            raise Refused(f'there is no model {self.function!r:.80}; there are {", ".join(MODELS)}')
        if self.activation == 'usual':
            object.__setattr__(self, 'activation', _USUAL_ACTIVATIONS[self.function])
        if self.activation not in ('softmax', 'sigmoid', None):
            raise Refused(
                f"activation is 'softmax', 'sigmoid' or None, not {self.activation!r:.80}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Returns what is pickled and copied: the fields, not what calls compiled of them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Runs the forward pass in evaluation mode, compiled once for each shape of its inputs.

        Args:
          *inputs: Arrays, as the function takes them.
          **named: Further arrays by the names of the function's arguments, such as `input_mask`.

        Returns:
          What the function returns.

        Raises:
          Refused: They are no arrays, or not of the shapes that the function takes.
        """
        return self._apply(*self._weights, *_as_arrays(inputs, named))

    def attention(
        self, module_name: str, *inputs: Any, call: int = 0, logits: bool = False, **named: Any
    ) -> Array:
        """Computes the attention weights of one module, or its logits, which a call does not keep.

        Args:
          module_name: A module that attends, such as 'encoder/cross_attend_1', or
            'decoder/cross_attend'.
          *inputs: Arrays, as the function takes them.
          call: Which of its applications, where the model applies a module more than once. Queries
            that are decoded in several chunks do not count.
          logits: Whether to compute what is before the softmax, as the papers draw it: products of
            queries and keys, biases included, times 1 / sqrt(F). Where a mask hides a key they are
            the lowest finite float32, -3.4e38.
          **named: Further arrays by the names of the function's arguments, such as `input_mask`.

        Returns:
          `[B, H, T, S]` float32.

        Raises:
          Refused: There is no such module, or it is not applied that often.

        Source: Perceiver, figure 3 and appendix E show the logits as pictures.
        """
        arrays = _as_arrays(inputs, named)
        return self._attention(*self._weights, *arrays, module_name, call, bool(logits))

    def example(self, batch: int | Any = 1) -> tuple[Any, ...]:
        """Returns shapes and dtypes of what the model is called with.

        Args:
          batch: Size of the batch, a number or a symbolic size of `jax.export`.

        Returns:
          Positional arguments of a call, with `jax.ShapeDtypeStruct` in place of arrays.
        """
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((batch, *x[0]), x[1]),
            _EXAMPLES[self.function](self.front_end),
            is_leaf=lambda x: isinstance(x, tuple),
        )
        return tuple(shapes)

    def features(self, *inputs: Any, **named: Any) -> Array:
        """Computes what the output layer of a classifier makes logits of.

        Args:
          *inputs: Arrays, as the function takes them.
          **named: Further arrays by the names of the function's arguments, such as `input_mask`.

        Returns:
          Float32: the mean of the latents `[B, D]`; with `ClassQueryDecoder`, what its query
          decodes, `[B, query_channels]`.

        Raises:
          Refused: The model is no classifier, or the inputs are not those of a call.
        """
        self._head()
        return self._features(*self._weights, *_as_arrays(inputs, named))

    def with_classes(self, names: Sequence[str], seed: int = 0) -> 'Pretrained':
        """Returns a classifier of other classes: its output layer is new, all else stays.

        Args:
          names: Names of the classes, one for each logit.
          seed: Seed of the new output layer's random weights.

        Returns:
          A model without a description, since it has learned nothing of these classes yet. It has
          the same arrays but for the output layer's.

        Raises:
          Refused: The model is no classifier, or the names are no list of different texts.
        """
        head = self._head()
        is_list = isinstance(names, Sequence) and not isinstance(names, str)
        if not is_list or not all(isinstance(name, str) for name in names):
            raise Refused(f'classes are a list of names, not {names!r:.80}')
        if not names or len({*names}) < len(names):
            raise Refused(f'classes are different names, at least one, not {names!r:.80}')
        arguments = {**self.arguments, 'num_classes': len(names)}
        model = dataclasses.replace(
            self, arguments=arguments, classes=[*names], description='', params={}, state={}
        )
        new = jax.jit(lambda rng: {head: model.init(rng)[0][head]})(jax.random.key(seed))
        return dataclasses.replace(model, params={**self.params, **_to_host(new)}, state=self.state)

    def at_size(self, size: int) -> 'Pretrained':
        """Returns an image classifier for square images of another size.

        Fourier positions fit any size, in the coordinates [-1, 1] of the image; learned ones are
        resampled by `resample_positions`.

        Args:
          size: Side of the images in pixels.

        Returns:
          A model for images of that size, with the same other weights.

        Raises:
          Refused: The model is no image classifier, or `size` is no positive integer.
        """
        if self.function != 'image_classifier':
            raise Refused(f'{self.function} is no image classifier: it has no image size.')
        if not isinstance(size, int) or size < 1:
            raise Refused(f'size is a number of pixels, not {size!r}.')
        params, module = self.params, 'inputs/position_encoding'
        if module in params:
            quarter = 4 if self.arguments['inputs']['contents'] == 'conv7x7' else 1
            rows, new_rows = (-(-side // quarter) for side in (self.front_end['size'], size))
            positions = resample_positions(
                params[module]['positions'], grid=(rows, rows), new_grid=(new_rows, new_rows)
            )
            params = {**params, module: {**params[module], 'positions': np.asarray(positions)}}
        return dataclasses.replace(self, params=params, front_end={**self.front_end, 'size': size})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a folder with `weights.safetensors` and `model.json`, atomically.

        Args:
          path: The folder, which must not exist yet, or be empty.

        Raises:
          Refused: The folder exists and is not empty, or `load` would refuse what is to be written:
            the weights do not fit the arguments, or the classes are not those of the logits.
        """
        from safetensors.numpy import save

        path = Path(path)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise Refused(f'{path} exists already; a model is saved to a new folder.')
        about = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        trees = {name: about.pop(name) for name in ('params', 'state')}
        arrays = {
            f'{kind}:{module}:{name}': np.asarray(value, order='C')
            for kind, tree in trees.items()
            for module, values in tree.items()
            for name, value in values.items()
        }
        try:
            text = json.dumps(about, default=_plain)
        except (TypeError, ValueError) as error:
            raise Refused(f'{path}/model.json cannot say this model: {error!s:.200}') from None
        model_of(json.loads(text), trees, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f'.{path.name}-') as folder:
            whole = Path(folder, 'whole')
            whole.mkdir()
            weights = save(arrays)
            (whole / 'weights.safetensors').write_bytes(weights)
            about = {'format': FORMAT, **about, 'sha256': hashlib.sha256(weights).hexdigest()}
            text = json.dumps(about, indent=2, default=_plain) + '\n'
            (whole / 'model.json').write_text(text, 'utf-8')
            os.replace(whole, path)

    def export(
        self, path: str | os.PathLike, platforms: Sequence[str] = ('cpu', 'cuda', 'tpu')
    ) -> None:
        """Writes the forward pass, weights included, as one StableHLO file for any batch size.

        What `jax.export.deserialize` returns of its bytes runs without this package and without
        Haiku: `.call(images)`.

        Args:
          path: The file.
          platforms: Platforms that it can run on, in the names of `jax.export`.
        """
        (batch,) = jax.export.symbolic_shape('batch')
        weights = self._weights

        def forward(*inputs):
            return self._forward(*weights, inputs, {})

        exported = jax.export.export(jax.jit(forward), platforms=platforms)(*self.example(batch))
        write_whole(path, bytes(exported.serialize()))

    def init(self, rng: Array) -> tuple[Tree, Tree]:
        """Returns new, random parameters and state; the weights the model has play no part.

        Args:
          rng: A key of `jax.random`.

        Returns:
          Parameters and state, each module name -> name -> array.
        """
        inputs = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.example())
        return self._transformed(inputs, {}).init(rng)

    @functools.cached_property
    def _weights(self) -> tuple[Tree, Tree]:
        with jax.ensure_compile_time_eval():  # also when first asked for while jax traces
            return jax.device_put((self.params, self.state))

    @functools.cached_property
    def _apply(self):
        return jax.jit(self._forward)

    def _head(self) -> str:
        """The module that makes the logits of a classifier."""
        heads = [head for head in HEADS.get(self.function, ()) if head in self.params]
        if not heads:
            raise Refused(f'{self.function} is no classifier; these are: {", ".join(HEADS)}.')
        return heads[0]

    @functools.cached_property
    def _features(self):
        head = self._head()

        def features(params, state, inputs, named):
            met = []

            def look(next_method, args, kwargs, context):
                if context.method_name == '__call__' and context.module.module_name == head:
                    met.append(args[0])
                return next_method(*args, **kwargs)

            with hk.intercept_methods(look):
                self._forward(params, state, inputs, named)
            (x,) = met  # [B, D], or [B, 1, E] of a query
            return x.reshape(len(x), -1)

        return jax.jit(features)

    def _forward(self, params, state, inputs, named):
        return self._transformed(inputs, named).apply(params, state, None)[0]

    def _transformed(self, inputs, named):
        model = MODELS[self.function]
        return hk.transform_with_state(
            lambda: model(*inputs, **named, is_training=False, **self.arguments)
        )

    @functools.cached_property
    def _attention(self):
        def attention(params, state, inputs, named, module_name, call, logits):
            with record_attention(module_name, logits=logits) as recorded:
                self._forward(params, state, inputs, named)
            if not recorded:
                known = sorted(
                    name.removesuffix('/attention/query')
                    for name in params
                    if name.endswith('/attention/query')
                )
                raise Refused(f'No module {module_name!r} attends; these do: {known}.')
            if not 0 <= call < len(recorded):
                raise Refused(
                    f'{module_name} is applied {len(recorded)} times: there is no call {call}.'
                )
            return recorded[call]

        return jax.jit(attention, static_argnums=(4, 5, 6))


def _audio_visual_example(x):
    samples = x['num_frames'] * x['sample_rate'] // x['frames_per_second']
    wave = (samples, 1)
    shapes = {
        'audio': wave,
        'filterbank': wave,
        'video': (x['num_frames'], x['size'], x['size'], 3),
    }
    if x['log_mel']:
        shapes['spectrogram'] = (samples // x['log_mel']['hop'], x['log_mel']['num_bins'])
    return [{name: (shapes[name], jnp.float32) for name in x['modalities']}]


# What makes probabilities of a model's logits; None: it returns none.
_USUAL_ACTIVATIONS = {
    'image_classifier': 'softmax',
    'point_classifier': 'softmax',
    'optical_flow': None,
    'masked_language_model': 'softmax',
    'video_autoencoder': 'softmax',  # of the label
    'audio_visual_classifier': 'sigmoid',
    'image_baseline': 'softmax',
    'point_baseline': 'softmax',
}


def _image_example(x):
    return [((x['size'], x['size'], len(x['mean'])), jnp.float32)]


def _point_example(x):
    return [((x['num_points'], 3), jnp.float32)]


# What a model is called with: shapes without the batch, and dtypes.
_EXAMPLES: dict[str, Callable[[Mapping[str, Any]], list]] = {
    'image_classifier': _image_example,
    'image_baseline': _image_example,
    'point_classifier': _point_example,
    'point_baseline': _point_example,
    'optical_flow': lambda x: [((2, *x['tile'], 3), jnp.float32)],
    'audio_visual_classifier': _audio_visual_example,
    'masked_language_model': lambda x: [((x['length'],), jnp.int32), ((x['length'],), jnp.bool_)],
    'video_autoencoder': lambda x: [
        ((x['num_frames'], x['size'], x['size'], 3), jnp.float32),
        ((x['num_frames'] * x['sample_rate'] // x['frames_per_second'], 1), jnp.float32),
    ],
}


def initialise(
    function: str, arguments: Mapping[str, Any], front_end: Mapping[str, Any], seed: int = 0
) -> Pretrained:
    """Makes a model with new, random weights.

    Args:
      function: Name of a function of `perceiver_jax.models`.
      arguments: Keyword arguments of the function, but `is_training`.
      front_end: What its inputs go through before; gives their sizes.
      seed: Seed of the random weights.

    Returns:
      The model, ready to be called.

    Raises:
      Refused: There is no such function, or its arguments do not fit together.
    """
    model = Pretrained(
        function=function, arguments=arguments, front_end=front_end, params={}, state={}
    )
    params, state = jax.jit(model.init)(jax.random.key(seed))
    return dataclasses.replace(model, params=_to_host(params), state=_to_host(state))


def _plain(value: Any) -> Any:
    """Returns what JSON has for other mappings, and for NumPy's numbers."""
    return value.item() if isinstance(value, np.generic) else dict(value)


def model_of(about: Mapping[str, Any], trees: Mapping[str, Tree], path: Path) -> Pretrained:
    """Makes the model of what a folder of ours holds.

    Args:
      about: The fields of `Pretrained` but the weights.
      trees: Its `params` and `state`.
      path: The folder, for messages.

    Raises:
      Refused: There is no such model, the weights do not fit its arguments, or the classes are not
        those of its logits.
    """
    try:
        model = Pretrained(**about, params=trees['params'], state=trees['state'])
    except Refused as error:
        raise Refused(f'{path}/model.json: {error}') from None
    check_weights(model, f'{path} (model.json, weights.safetensors)')
    _check_classes(model, path)
    return model


def check_weights(model: Pretrained, source: str | Path) -> None:
    """Checks that a model's weights are those that its arguments ask for.

    Args:
      model: The model.
      source: Where it comes from, for messages.

    Raises:
      Refused: The arguments make no model, one example of its inputs takes more memory than
        `limits` allows, or the weights do not fit: names and shapes are listed.
    """
    try:
        check_inputs(model)
        params, state = jax.eval_shape(model.init, jax.random.key(0))
    except Exception as error:  # arguments that are unknown, missing or mean nothing
        raise Refused(
            f'{source}: its arguments make no {model.function}: {error!s:.200}'
        ) from error
    check_fit(model.params, model.state, params, state, source)


def check_inputs(model: Pretrained) -> None:
    """Checks the memory that one example of a model's inputs takes, as its front end makes it.

    Args:
      model: The model.

    Raises:
      Refused: It takes more than `limits` allows.
    """
    arrays = jax.tree.leaves(model.example())
    needed = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    limits.check_bytes('one example of its inputs', needed)


def _check_classes(model: Pretrained, source: Path) -> None:
    """Refuses names that are no names, or more names than the model has logits."""
    names, count = model.classes, model.arguments.get('num_classes', 0)
    if names is None:
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Refused(f'{source}: classes are a list of names, not {names!r:.80}')
    if len(names) > count:  # there may be fewer: weights of before have more logits than classes
        raise Refused(f'{source}: it names {len(names):,} classes, and num_classes is {count:,}')


def _as_arrays(inputs: tuple, named: dict) -> tuple[tuple, dict]:
    try:
        return jax.tree.map(jnp.asarray, (inputs, named), is_leaf=lambda x: isinstance(x, list))
    except TypeError as error:
        raise Refused(f'A model is called with arrays: {error}') from None


def _to_host(tree) -> Tree:
    return jax.tree.map(np.array, {module: dict(values) for module, values in tree.items()})
