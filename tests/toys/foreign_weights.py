"""Tiny models of every released kind under our names, DeepMind's and Hugging Face's.

The names are written out here, to be told apart from the table that is tested.
"""

import numpy as np

# ours | DeepMind's | Hugging Face's | layout
# Hugging Face has `weight` for `w` and `scale`, `bias` for `b` and `offset`.
CROSS_ATTEND = """
norm_queries:scale    | layer_norm:scale        | attention.self.layernorm1.weight | vector
norm_queries:offset   | layer_norm:offset       | attention.self.layernorm1.bias   | vector
norm_inputs:scale     | layer_norm_1:scale      | attention.self.layernorm2.weight | vector
norm_inputs:offset    | layer_norm_1:offset     | attention.self.layernorm2.bias   | vector
norm_mlp:scale        | layer_norm_2:scale      | layernorm.weight                 | vector
norm_mlp:offset       | layer_norm_2:offset     | layernorm.bias                   | vector
attention/query:w     | attention/linear:w      | attention.self.query.weight      | linear
attention/query:b     | attention/linear:b      | attention.self.query.bias        | vector
attention/key:w       | attention/linear_1:w    | attention.self.key.weight        | linear
attention/key:b       | attention/linear_1:b    | attention.self.key.bias          | vector
attention/value:w     | attention/linear_2:w    | attention.self.value.weight      | linear
attention/value:b     | attention/linear_2:b    | attention.self.value.bias        | vector
attention/output:w    | attention/linear_3:w    | attention.output.dense.weight    | linear
attention/output:b    | attention/linear_3:b    | attention.output.dense.bias      | vector
mlp/hidden:w          | mlp/linear:w            | mlp.dense1.weight                | linear
mlp/hidden:b          | mlp/linear:b            | mlp.dense1.bias                  | vector
mlp/output:w          | mlp/linear_1:w          | mlp.dense2.weight                | linear
mlp/output:b          | mlp/linear_1:b          | mlp.dense2.bias                  | vector
"""
SELF_ATTEND = """
norm_attention:scale  | layer_norm:scale        | attention.self.layernorm1.weight | vector
norm_attention:offset | layer_norm:offset       | attention.self.layernorm1.bias   | vector
norm_mlp:scale        | layer_norm_1:scale      | layernorm.weight                 | vector
norm_mlp:offset       | layer_norm_1:offset     | layernorm.bias                   | vector
""" + '\n'.join(CROSS_ATTEND.splitlines()[7:])

IMAGENET = """
decoder:query | classification_decoder/~/basic_decoder/~/trainable_position_encoding:pos_embs | perceiver.decoder.decoder.output_position_encodings.position_embeddings | matrix
decoder/query_decoder/output:w | classification_decoder/~/basic_decoder/output:w | perceiver.decoder.decoder.final_layer.weight | linear
decoder/query_decoder/output:b | classification_decoder/~/basic_decoder/output:b | perceiver.decoder.decoder.final_layer.bias | vector
"""  # noqa: E501
LEARNED = """
inputs/conv1x1:w | image_preprocessor/~/conv2_d:w | perceiver.input_preprocessor.convnet_1x1.weight | conv1x1
inputs/conv1x1:b | image_preprocessor/~/conv2_d:b | perceiver.input_preprocessor.convnet_1x1.bias | vector
inputs/position_encoding:positions | image_preprocessor/~_build_network_inputs/trainable_position_encoding:pos_embs | perceiver.input_preprocessor.position_embeddings.position_embeddings | matrix
inputs/position_encoding/projection:w | image_preprocessor/~_build_network_inputs/position_encoding_projector/linear:w | perceiver.input_preprocessor.positions_projection.weight | linear
inputs/position_encoding/projection:b | image_preprocessor/~_build_network_inputs/position_encoding_projector/linear:b | perceiver.input_preprocessor.positions_projection.bias | vector
"""  # noqa: E501
CONV = """
inputs/conv7x7:w | image_preprocessor/~/conv2_d_downsample/~/conv:w | perceiver.input_preprocessor.convnet.conv.weight | conv7x7
inputs/conv7x7/batch_norm:scale | image_preprocessor/~/conv2_d_downsample/~/batchnorm:scale | perceiver.input_preprocessor.convnet.batchnorm.weight | channels
inputs/conv7x7/batch_norm:offset | image_preprocessor/~/conv2_d_downsample/~/batchnorm:offset | perceiver.input_preprocessor.convnet.batchnorm.bias | channels
inputs/conv7x7/batch_norm:mean | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/mean_ema:average | perceiver.input_preprocessor.convnet.batchnorm.running_mean | channels
inputs/conv7x7/batch_norm:variance | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema:average | perceiver.input_preprocessor.convnet.batchnorm.running_var | channels
inputs/conv7x7/batch_norm:mean_hidden | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/mean_ema:hidden | - | channels
inputs/conv7x7/batch_norm:variance_hidden | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema:hidden | - | channels
inputs/conv7x7/batch_norm:counter | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/mean_ema:counter | perceiver.input_preprocessor.convnet.batchnorm.num_batches_tracked | counter
inputs/conv7x7/batch_norm:counter | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema:counter | perceiver.input_preprocessor.convnet.batchnorm.num_batches_tracked | counter
"""  # noqa: E501
FLOW = """
inputs/projection:w | image_preprocessor/patches_linear:w | perceiver.input_preprocessor.conv_after_patches.weight | linear
inputs/projection:b | image_preprocessor/patches_linear:b | perceiver.input_preprocessor.conv_after_patches.bias | vector
decoder/output:w | flow_decoder/~/basic_decoder/output:w | perceiver.decoder.decoder.final_layer.weight | linear
decoder/output:b | flow_decoder/~/basic_decoder/output:b | perceiver.decoder.decoder.final_layer.bias | vector
"""  # noqa: E501
LANGUAGE = """
inputs:embeddings | embed:embeddings | perceiver.input_preprocessor.embeddings.weight | matrix
inputs/position_encoding:positions | trainable_position_encoding:pos_embs | perceiver.input_preprocessor.position_embeddings.weight | matrix
output_queries:positions | basic_decoder/~/trainable_position_encoding:pos_embs | perceiver.decoder.output_position_encodings.position_embeddings | matrix
output:b | embedding_decoder:bias | embedding_decoder.bias | vector
"""  # noqa: E501
VIDEO = """
inputs:audio_padding | multimodal_preprocessor/audio_padding:pos_embs | perceiver.input_preprocessor.padding.audio | row
inputs:video_padding | multimodal_preprocessor/image_padding:pos_embs | perceiver.input_preprocessor.padding.image | row
inputs:label_padding | multimodal_preprocessor/label_padding:pos_embs | perceiver.input_preprocessor.padding.label | row
inputs:audio_mask_token | multimodal_preprocessor/audio_mask_token:pos_embs | perceiver.input_preprocessor.mask.audio | row
inputs:video_mask_token | multimodal_preprocessor/image_mask_token:pos_embs | perceiver.input_preprocessor.mask.image | row
inputs:label_mask_token | multimodal_preprocessor/label_mask_token:pos_embs | perceiver.input_preprocessor.mask.label | row
output_queries:audio_padding | multimodal_decoder/~decoder_query/audio_padding:pos_embs | perceiver.decoder.padding.audio | row
output_queries:video_padding | multimodal_decoder/~decoder_query/image_padding:pos_embs | perceiver.decoder.padding.image | row
output_queries:label_padding | multimodal_decoder/~decoder_query/label_padding:pos_embs | perceiver.decoder.padding.label | row
label_query:positions | classification_decoder/~/basic_decoder/~/trainable_position_encoding:pos_embs | perceiver.decoder.modalities.label.decoder.output_position_encodings.position_embeddings | matrix
decoder/output:w | multimodal_decoder/~/basic_decoder/output:w | perceiver.decoder.decoder.final_layer.weight | linear
decoder/output:b | multimodal_decoder/~/basic_decoder/output:b | perceiver.decoder.decoder.final_layer.bias | vector
audio_output:w | audio_postprocessor/linear:w | perceiver.output_postprocessor.modalities.audio.classifier.weight | linear
audio_output:b | audio_postprocessor/linear:b | perceiver.output_postprocessor.modalities.audio.classifier.bias | vector
video_output:w | projection_postprocessor/linear:w | perceiver.output_postprocessor.modalities.image.classifier.weight | linear
video_output:b | projection_postprocessor/linear:b | perceiver.output_postprocessor.modalities.image.classifier.bias | vector
label_output:w | classification_postprocessor/linear:w | perceiver.output_postprocessor.modalities.label.classifier.weight | linear
label_output:b | classification_postprocessor/linear:b | perceiver.output_postprocessor.modalities.label.classifier.bias | vector
"""  # noqa: E501

CLASS_DECODER = (
    'decoder/query_decoder/cross_attend/',
    'classification_decoder/~/basic_decoder/cross_attention/',
    'perceiver.decoder.decoder.decoding_cross_attention.',
)
DECODERS = {
    'imagenet_fourier': (IMAGENET, *CLASS_DECODER),
    'imagenet_learned': (IMAGENET + LEARNED, *CLASS_DECODER),
    'imagenet_conv': (IMAGENET + CONV, *CLASS_DECODER),
    'optical_flow': (
        FLOW,
        'decoder/cross_attend/',
        'flow_decoder/~/basic_decoder/cross_attention/',
        'perceiver.decoder.decoder.decoding_cross_attention.',
    ),
    'mlm_bytes': (
        LANGUAGE,
        'decoder/cross_attend/',
        'basic_decoder/cross_attention/',
        'perceiver.decoder.decoding_cross_attention.',
    ),
    'video_autoencoding': (
        VIDEO,
        'decoder/cross_attend/',
        'multimodal_decoder/~/basic_decoder/cross_attention/',
        'perceiver.decoder.decoder.decoding_cross_attention.',
    ),
}
SHAPES = {  # ours
    'vector': (5,),
    'matrix': (3, 5),
    'linear': (3, 5),
    'conv1x1': (3, 5),
    'conv7x7': (7, 7, 3, 5),
    'channels': (5,),
    'row': (5,),
    'counter': (),
}
DEEPMIND = {
    'conv1x1': lambda x: x[None, None],
    'channels': lambda x: x[None, None, None],
    'row': lambda x: x[None],
}
HUGGINGFACE = {
    'linear': lambda x: x.T,
    'conv1x1': lambda x: x.T[:, :, None, None],
    'conv7x7': lambda x: np.einsum('hwio->oiwh', x),
    'row': lambda x: x[None],
    'counter': np.int64,
}
STATE = ('mean', 'variance', 'mean_hidden', 'variance_hidden', 'counter')


def rows(text, *prefixes):
    for line in filter(None, text.splitlines()):
        *names, layout = (field.strip() for field in line.split('|'))
        yield *(prefix + name for prefix, name in zip(prefixes, names, strict=True)), layout


def three_trees(kind):
    """A tiny model of a kind with two self-attends: ours, DeepMind's and Hugging Face's arrays."""
    text, *decoder = DECODERS[kind]
    encoder = 'encoder' if kind == 'video_autoencoding' else 'perceiver_encoder'
    table = [
        (
            'encoder:latents',
            f'{encoder}/~/trainable_position_encoding:pos_embs',
            'perceiver.embeddings.latents',
            'matrix',
        ),
        *rows(
            CROSS_ATTEND,
            'encoder/cross_attend_1/',
            f'{encoder}/~/cross_attention/',
            'perceiver.encoder.cross_attention.',
        ),
        *rows(
            SELF_ATTEND,
            'encoder/block_1/self_attend_1/',
            f'{encoder}/~/self_attention/',
            'perceiver.encoder.self_attends.0.',
        ),
        *rows(
            SELF_ATTEND,
            'encoder/block_1/self_attend_2/',
            f'{encoder}/~/self_attention_1/',
            'perceiver.encoder.self_attends.1.',
        ),
        *rows(CROSS_ATTEND, *decoder),
        *rows(text, '', '', ''),
    ]
    random = np.random.default_rng(3)
    ours, deepmind, hugging_face = {}, {}, {}
    for our_name, deepmind_name, hugging_face_name, layout in table:
        if layout == 'counter':
            array = np.array(7, np.int32)
        else:
            array = random.normal(size=SHAPES[layout]).astype(np.float32)
        ours[our_name] = array
        deepmind[deepmind_name] = DEEPMIND.get(layout, np.asarray)(array)
        if hugging_face_name != '-':
            hugging_face[hugging_face_name] = HUGGINGFACE.get(layout, np.asarray)(array)
    return ours, deepmind, hugging_face


def as_trees(arrays):
    """Haiku's trees of parameters and state, from names 'module:parameter'."""
    params, state = {}, {}
    for name, array in arrays.items():
        module, parameter = name.split(':')
        tree = state if '_ema' in module or parameter in STATE else params
        tree.setdefault(module, {})[parameter] = array
    return params, state


def assert_same(ours, theirs):
    """The same names, dtypes and bits, in a nest of dictionaries and tuples."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_same(ours[name], theirs[name])
    elif isinstance(theirs, tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, strict=True)
