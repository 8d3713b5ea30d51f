"""ImageNet's input pipeline: seconds for `NUM_IMAGES` generated JPEGs of 500x375 pixels."""

import numpy as np

from benchmarks.harness import Program, Report, compare

NUM_IMAGES = 256
BATCH = 64


class Jpegs:
    """A source of smooth colours with noise, in about as many bytes as photographs take."""

    classes = ['none']

    def __init__(self):
        import cv2

        rng = np.random.default_rng(0)
        self.encoded = []
        for _ in range(16):
            coarse = rng.integers(256, size=(12, 16, 3)).astype(np.uint8)
            image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC).astype(float)
            image = np.clip(image + rng.normal(scale=12, size=image.shape), 0, 255)
            self.encoded.append(cv2.imencode('.jpg', image.astype(np.uint8))[1].tobytes())

    def __len__(self):
        return NUM_IMAGES

    def __getitem__(self, index):
        encoded = self.encoded[index % len(self.encoded)]
        return {'encoded': encoded, 'label': 0, 'name': str(index)}


def build() -> dict[str, Program]:
    """Builds decoding, the two transforms, and training batches; each run makes `NUM_IMAGES`."""
    from absl import flags

    from configs import imagenet
    from experiments.data import pipeline
    from experiments.imagenet.transforms import EvalTransform, TrainTransform
    from perceiver_jax.front_ends.images import decode_image

    flags.FLAGS(['benchmark'])  # Grain's workers ask for parsed flags
    config, source = imagenet.get_config('io_fourier'), Jpegs()
    train = TrainTransform(**config.images, **config.augmentation)
    evaluate = EvalTransform(**config.images, crop_fraction=config.evaluation.crop_fraction)
    rng = np.random.default_rng(0)

    def each(function):
        return Program(lambda: [function(source[i]) for i in range(NUM_IMAGES)])

    def batches(num_workers):
        stream = pipeline.train_batches(
            source, train, batch_size=BATCH, seed=0, num_workers=num_workers
        )
        return Program(lambda: [next(stream) for _ in range(NUM_IMAGES // BATCH)])

    return {
        'decode': each(lambda example: decode_image(example['encoded'], 3)),
        'evaluation': each(evaluate),
        'training': each(lambda example: train(example, rng)),
        'batches, a thread': batches(0),
        'batches, 2 workers': batches(2),
    }


def input_pipeline(report: Report) -> None:
    """Measures the transforms on one core, and training batches by a thread or two processes."""
    compare(report.name, f'{NUM_IMAGES} images', {'ours': (build, {})}, repeats=3, report=report)
