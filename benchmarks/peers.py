"""Hugging Face transformers' Perceiver in the cases of `cases`, eager and through torch.compile.

Its models have one cross-attend, random weights here. Gradients and updates as its users write
them: PyTorch's autograd and AdamW.
"""

import importlib.util
import sys
import time

from benchmarks.harness import Build, Program

IMAGENET = dict(
    d_model=261,
    num_latents=512,
    d_latents=1024,
    num_blocks=8,
    num_self_attends_per_block=6,
    num_self_attention_heads=8,
    num_cross_attention_heads=1,
    attention_probs_dropout_prob=0.0,
    num_labels=1000,
)
SMALL = dict(num_latents=128, d_latents=256, num_blocks=1)
CONV = {**IMAGENET, 'd_model': 322}
FLOW = {
    **IMAGENET,
    'd_model': 322,
    'num_latents': 2048,
    'd_latents': 512,
    'num_blocks': 1,
    'num_self_attends_per_block': 24,
    'num_self_attention_heads': 16,
    'train_size': [368, 496],
}


def installed(*names: str) -> bool:
    """Returns whether all these packages are installed; imports none."""
    return all(importlib.util.find_spec(name) for name in names)


def implementations(build: Build, **arguments) -> dict[str, tuple[Build, dict]]:
    """Returns a case of this file, eager and compiled, if torch and transformers are installed.

    Args:
      build: A builder of this file.
      **arguments: Its arguments, except the implementation.

    Returns:
      Builder and arguments by implementation, as `harness.compare` takes them; empty if torch or
      transformers is not installed.
    """
    if not installed('torch', 'transformers'):
        print('torch and transformers are not installed: not compared with')
        return {}
    return {
        name: (build, {**arguments, 'implementation': name})
        for name in ('transformers', 'transformers, compiled')
    }


def _model(name: str, config: dict, implementation: str, dtype: str):
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.PerceiverConfig(**config))
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    model = model.to(device)
    wanted = getattr(torch, dtype)

    def autocast():  # float32 weights, as ours
        return torch.autocast(device, wanted, enabled=wanted != torch.float32)

    call = model
    if implementation == 'transformers, compiled':
        # torch.compile asks all modules for their `torch`; this one of Haiku's raises then.
        sys.modules.pop('haiku.experimental.flax', None)
        call = torch.compile(model)
    return model, call, device, autocast


def _program(run, device: str, compiles: bool, flops: float | None = None) -> Program:
    import torch

    def finish():
        result = run()
        if device == 'cuda':
            torch.cuda.synchronize()
        return result

    start = time.perf_counter()
    finish()
    seconds = time.perf_counter() - start if compiles else None  # with the first run
    peak = torch.cuda.max_memory_allocated if device == 'cuda' else None
    return Program(finish, seconds, flops, peak)


def forward(
    implementation: str,
    name: str,
    config: dict,
    shape: tuple[int, ...],
    dtype: str = 'float32',
    flops: float | None = None,
) -> dict[str, Program]:
    """Builds a model on random inputs, without gradients.

    Args:
      implementation: 'transformers', or 'transformers, compiled' for torch.compile.
      name: A class of transformers.
      config: Arguments of `PerceiverConfig`.
      shape: Shape of the inputs.
      dtype: Type of the arithmetic; weights are float32.
      flops: Operations of a run; None if the rate is not asked for.
    """
    import torch

    model, call, device, autocast = _model(name, config, implementation, dtype)
    model.eval()
    inputs = torch.randn(shape, device=device)

    def run():
        with torch.inference_mode(), autocast():
            return call(inputs=inputs).logits

    return {'forward': _program(run, device, call is not model, flops)}


def image_forward(implementation: str, variant: str) -> dict[str, Program]:
    """Builds the Fourier model on an image of 224x224; the ICML Perceiver cannot be expressed."""
    assert variant == 'io_fourier'
    shape = 1, 3, 224, 224
    return forward(implementation, 'PerceiverForImageClassificationFourier', IMAGENET, shape)


def flow_forward(
    implementation: str,
    batch: int = 1,
    dtype: str = 'float32',
    size=(368, 496),
    changes: dict | None = None,
    flops: float | None = None,
):
    """Builds the flow model on 3x3 patches, which its preprocessing extracts elsewhere."""
    shape, config = (batch, 2, 27, *size), {**FLOW, **(changes or {}), 'train_size': list(size)}
    return forward(implementation, 'PerceiverForOpticalFlow', config, shape, dtype, flops)


def attention(
    implementation: str,
    batch: int,
    num_queries: int,
    num_keys: int,
    channels: int,
    num_heads: int = 1,
) -> dict[str, Program]:
    """Builds PyTorch's attention, as `cases.attention` ours.

    Args:
      implementation: 'PyTorch': whatever kernel `scaled_dot_product_attention` chooses.
      batch: Number of examples.
      num_queries: Queries of each example.
      num_keys: Keys of each example, which are the values too.
      channels: Channels of a head.
      num_heads: Number of heads.

    Returns:
      The output, pass 'forward', and the gradients of queries and keys, pass 'gradient'; the latter
      with the output, which autograd needs.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    query, key, cotangent = (
        torch.randn(batch, num_heads, length, channels, device=device, dtype=torch.bfloat16)
        for length in (num_queries, num_keys, num_queries)
    )
    differentiated = query.clone().requires_grad_(), key.clone().requires_grad_()

    def output():
        with torch.inference_mode():
            return scaled_dot_product_attention(query, key, key)

    def gradient():
        output = scaled_dot_product_attention(differentiated[0], *2 * [differentiated[1]])
        return torch.autograd.grad(output, differentiated, cotangent)

    flops = 4 * batch * num_queries * num_keys * num_heads * channels
    return {
        'forward': _program(output, device, False, flops),
        'gradient': _program(gradient, device, False, 3 * flops),
    }


def training_step(
    implementation: str,
    variant: str,
    size: int,
    batch: int,
    changes: dict | None = None,
    dtype: str = 'float32',
    flops: float | None = None,
) -> dict[str, Program]:
    """Builds loss, gradients and an AdamW update of an image classifier."""
    import torch

    name, config = {
        'io_fourier': ('PerceiverForImageClassificationFourier', IMAGENET),
        'io_conv': ('PerceiverForImageClassificationConvProcessing', CONV),
    }[variant]
    model, call, device, autocast = _model(
        name, {**config, **(changes or {})}, implementation, dtype
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.arange(batch, device=device) % 1000

    def run():
        optimizer.zero_grad()
        with autocast():
            logits = call(inputs=images).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return {'training step': _program(run, device, call is not model, flops)}
