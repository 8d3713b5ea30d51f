"""Narrow networks of Hugging Face's transformers, with weights drawn from a seed under our names.

`python -m tests.toys.torch_networks` writes what they compute to tests/golden/baselines.npz; it
needs torch and transformers, but neither jax nor this project's package.
"""

import re
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent.parent / 'golden' / 'baselines.npz'
IMAGES = (2, 21, 30, 5)  # odd and even sides: paddings and remainders differ
PATCH, VIT_IMAGES = 3, (2, 15, 15, 5)
NUM_CLASSES = 7

# Modules of transformers -> ours, where layers count from 0 and ours from 1.
NAMES = [
    (r'classifier(\.1)?', 'decoder/output'),
    (r'resnet\.embedder\.embedder\.convolution', 'network/stem'),
    (r'resnet\.embedder\.embedder\.normalization', 'network/stem_norm'),
    (r'resnet\.encoder\.stages\.(\d)\.layers\.(\d)\.layer\.(\d)\.conv\w+', '{}_{}/conv_{}'),
    (r'resnet\.encoder\.stages\.(\d)\.layers\.(\d)\.layer\.(\d)\.norm\w+', '{}_{}/norm_{}'),
    (r'resnet\.encoder\.stages\.(\d)\.layers\.(\d)\.shortcut\.conv\w+', '{}_{}/shortcut'),
    (r'resnet\.encoder\.stages\.(\d)\.layers\.(\d)\.shortcut\.norm\w+', '{}_{}/shortcut_norm'),
    (r'vit\.embeddings\.patch_embeddings\.projection', 'network/patches'),
    (r'vit\.layernorm', 'network/norm'),
    (r'vit\.layers\.(\d)\.attention\.q_proj', 'self_attend_{}/attention/query'),
    (r'vit\.layers\.(\d)\.attention\.k_proj', 'self_attend_{}/attention/key'),
    (r'vit\.layers\.(\d)\.attention\.v_proj', 'self_attend_{}/attention/value'),
    (r'vit\.layers\.(\d)\.attention\.o_proj', 'self_attend_{}/attention/output'),
    (r'vit\.layers\.(\d)\.layernorm_before', 'self_attend_{}/norm_attention'),
    (r'vit\.layers\.(\d)\.layernorm_after', 'self_attend_{}/norm_mlp'),
    (r'vit\.layers\.(\d)\.mlp\.fc1', 'self_attend_{}/mlp/hidden'),
    (r'vit\.layers\.(\d)\.mlp\.fc2', 'self_attend_{}/mlp/output'),
]
WHOLE = {
    'vit.embeddings.cls_token': 'network:class_token',
    'vit.embeddings.position_embeddings': 'network/position_encoding:positions',
}
OF_NORMS = {'weight': 'scale', 'bias': 'offset', 'running_mean': 'mean', 'running_var': 'variance'}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of one of our arrays, by its name 'module:leaf'; hidden averages are not used."""
    rng = np.random.default_rng([*name.encode()])
    values = rng.normal(size=shape).astype(np.float32)
    leaf = name.split(':')[1]
    if leaf == 'w':
        return values / np.sqrt(np.prod(shape[:-1])).astype(np.float32)
    return np.exp(values / 4) if leaf in ('scale', 'variance') else values / 2


def images(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def outputs() -> dict[str, np.ndarray]:
    """The logits that torch computes, by the kind of the network."""
    import transformers

    resnet = transformers.ResNetConfig(
        num_channels=IMAGES[-1],
        embedding_size=4,
        hidden_sizes=[16, 32],
        depths=[2, 2],
        layer_type='bottleneck',
        num_labels=NUM_CLASSES,
    )
    vit = transformers.ViTConfig(
        image_size=VIT_IMAGES[1],
        patch_size=PATCH,
        num_channels=VIT_IMAGES[-1],
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        hidden_act='gelu_pytorch_tanh',
        layer_norm_eps=1e-5,
        num_labels=NUM_CLASSES,
    )
    return {
        'resnet': _logits(transformers.ResNetForImageClassification(resnet), images(IMAGES)),
        'vit': _logits(transformers.ViTForImageClassification(vit), images(VIT_IMAGES)),
    }


def our_name(name: str) -> str:
    """The name 'module:leaf' of what has this name in transformers."""
    if name in WHOLE:
        return WHOLE[name]
    module, leaf = name.rsplit('.', 1)
    ours = [
        template.format(*(int(x) + 1 for x in match.groups() if x and x.isdigit()))
        for pattern, template in NAMES
        if (match := re.fullmatch(pattern, module))
    ]
    assert len(ours) == 1, name
    ours = re.sub(r'^(\d)_(\d)/', r'network/stage_\1_block_\2/', ours[0])
    ours = re.sub(r'^self_attend', 'network/block/self_attend', ours)
    return f'{ours}:{OF_NORMS[leaf] if "norm" in ours.split("/")[-1] else leaf[0]}'


def _logits(model, values: np.ndarray) -> np.ndarray:
    import torch

    weights = model.state_dict()
    for name, value in weights.items():
        if not name.endswith('num_batches_tracked'):
            weights[name] = torch.from_numpy(_drawn(our_name(name), tuple(value.shape)))
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(values).permute(0, 3, 1, 2)).logits.numpy()


def _drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Our values in torch's layout."""
    if len(shape) == 4:  # a kernel: [out, in, height, width] for our [height, width, in, out]
        out, channels, height, width = shape
        ours = (height, width, channels, out)
        of_patch = (height * width * channels, out)
        values = draw(name, of_patch if name == 'network/patches:w' else ours)
        return np.ascontiguousarray(values.reshape(ours).transpose(3, 2, 0, 1))
    if len(shape) == 3:  # class token and positions
        return draw(name, shape[1:])[None]
    return np.ascontiguousarray(draw(name, shape[::-1]).T) if len(shape) == 2 else draw(name, shape)


if __name__ == '__main__':
    np.savez(GOLDEN, **outputs())
