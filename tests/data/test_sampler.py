import subprocess
import sys

import numpy as np
import pytest

from ddag_jax.data.sampler import IdentitySampler, Sample, steps_per_epoch
from ddag_jax.errors import UserError

RNG = np.random.default_rng(0)
image_labels = RNG.permutation(np.repeat(np.arange(10), 12))
# Unequal numbers of images: two infrared of each identity and more, by chance.
image_infrared = RNG.random(120) < 0.3
for label in range(10):
    image_infrared[np.flatnonzero(image_labels == label)[:4]] = [True, True, False, False]


def make_sampler(seed: int = 0, identities: int = 4, images: int = 3) -> IdentitySampler:
    return IdentitySampler(
        image_labels,
        image_infrared,
        identities_per_batch=identities,
        images_per_identity=images,
        seed=seed,
    )


def equal(one: Sample, two: Sample) -> bool:
    return all(map(np.array_equal, one, two))


def test_batch_is_balanced() -> None:
    sampler = make_sampler()
    for step in range(50):
        labels, visible, infrared = sampler.sample(0, step)
        assert labels.dtype == np.int32
        assert visible.dtype == infrared.dtype == np.int64
        assert labels.shape == (4,)
        assert visible.shape == infrared.shape == (4, 3)
        assert len(set(labels)) == 4
        assert (image_labels[visible] == labels[:, None]).all()
        assert (image_labels[infrared] == labels[:, None]).all()
        assert not image_infrared[visible].any()
        assert image_infrared[infrared].all()


def test_every_image_is_drawn_and_equally_often_within_its_identity() -> None:
    sampler = make_sampler()
    samples = [sampler.sample(0, step) for step in range(4000)]
    labels = np.concatenate([sample.labels for sample in samples])
    np.testing.assert_allclose(np.bincount(labels) / len(labels), 0.1, rtol=0.06)
    for part, modality in (("visible", ~image_infrared), ("infrared", image_infrared)):
        drawn = np.concatenate([getattr(sample, part).ravel() for sample in samples])
        counts = np.bincount(drawn, minlength=120)
        for label in range(10):
            mine = counts[(image_labels == label) & modality]
            np.testing.assert_allclose(mine / mine.sum(), 1 / len(mine), rtol=0.15)


def test_images_are_drawn_with_replacement() -> None:
    sampler = make_sampler(images=40)  # more than there are
    assert sampler.sample(0, 0).infrared.shape == (4, 40)


def test_seed_epoch_and_step_decide_and_nothing_else() -> None:
    sampler = make_sampler(seed=3)
    first = sampler.sample(5, 7)
    for epoch, step in [(0, 0), (7, 5), (5, 8)]:
        assert not equal(first, sampler.sample(epoch, step))
    np.random.seed(1)  # noqa: NPY002
    assert equal(first, sampler.sample(5, 7))
    assert equal(first, make_sampler(seed=3).sample(5, 7))
    assert not equal(first, make_sampler(seed=4).sample(5, 7))


def test_draw_is_pinned() -> None:
    """A run that resumes under a newer version must see the same batches."""
    labels, visible, infrared = make_sampler(seed=1).sample(2, 3)
    assert labels.tolist() == PINNED[0]
    assert visible[0].tolist() == PINNED[1]
    assert infrared[0].tolist() == PINNED[2]


PINNED = ([6, 7, 1, 5], [58, 46, 105], [32, 118, 29])


def test_too_few_identities() -> None:
    assert make_sampler(identities=10).sample(0, 0).labels.shape == (10,)
    with pytest.raises(UserError, match=r"training\.identities_per_batch: 11, .* only 10 "):
        make_sampler(identities=11)


def test_steps_per_epoch_of_the_published_runs() -> None:
    assert steps_per_epoch(22258, 11909, 8, 4) == 696
    assert steps_per_epoch(2060, 2060, 8, 4) == 65


def test_never_imports_jax() -> None:
    code = "import sys, ddag_jax.data.sampler; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
