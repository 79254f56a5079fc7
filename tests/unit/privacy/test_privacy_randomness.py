"""Sampling and noise: keystream, shapes of distributions, what they report, what cannot be done with them.

The statistical tests run on a fixed key, so they pass or fail for ever; the bound in each is such that a right
generator under a random key fails with probability at most 1e-6 (Hoeffding, Dvoretzky-Kiefer-Wolfowitz or a normal
tail at 5 standard errors, each stated).
"""

import copy
import math
import os
import pickle
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fakes.core import FakeEntropy
from modelkeep_platform.core.errors import UnprocessableError
from modelkeep_platform.privacy.keystream import Keystream
from modelkeep_platform.privacy.mechanism import build_mechanism
from modelkeep_platform.privacy.noise import GaussianNoise
from modelkeep_platform.privacy.plan import MechanismPlan, RanMechanism
from modelkeep_platform.privacy.sampling import PoissonSampler

FIVE_SIGMA = 5.0  # a two-sided normal tail of 5.8e-7


def noise(seed: int = 0, sigma: float = 1.0, norm: float = 1.0) -> GaussianNoise:
    return GaussianNoise(entropy=FakeEntropy(seed), noise_multiplier=sigma, clip_norm=norm)


def sampler(records: int, rate: float, seed: int = 0) -> PoissonSampler:
    return PoissonSampler(entropy=FakeEntropy(seed), records=records, sample_rate=rate)


def test_the_keystream_is_aes_256_ctr() -> None:
    source = FakeEntropy()
    key, block = source.random_bytes(32), source.random_bytes(16)
    expected = Cipher(AES(key), CTR(block)).encryptor().update(bytes(800))
    stream = Keystream(entropy=FakeEntropy())
    found = b"".join(stream.words(count).tobytes() for count in (1, 2, 0, 3, 94))
    assert found == expected


def test_words_are_given_out_once() -> None:
    stream = Keystream(entropy=FakeEntropy())
    seen = np.concatenate([stream.words(1000) for _ in range(100)])
    assert len(np.unique(seen)) == len(seen)


def test_streams_of_one_source_differ() -> None:
    entropy = FakeEntropy()
    assert not np.array_equal(Keystream(entropy=entropy).words(4), Keystream(entropy=entropy).words(4))


@pytest.mark.parametrize("holder", [lambda: Keystream(entropy=FakeEntropy()), noise, lambda: sampler(3, 0.5)])
def test_a_keystream_is_neither_copied_nor_stored(holder: Callable[[], object]) -> None:
    for copying in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor stored"):
            copying(holder())
    with pytest.raises(TypeError, match="neither copied nor stored"):
        copy.copy(Keystream(entropy=FakeEntropy()))


def test_a_fork_cannot_repeat_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Keystream(entropy=FakeEntropy())
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    with pytest.raises(RuntimeError, match="does not survive a fork"):
        stream.words(1)


def test_the_key_is_not_shown() -> None:
    assert repr(Keystream(entropy=FakeEntropy())) == "Keystream(…)"


def test_noise_has_the_normal_distribution() -> None:
    # Dvoretzky-Kiefer-Wolfowitz: P(sup |F_n - F| > t) <= 2 exp(-2 n t²) = 1e-6.
    count = 200_000
    values = np.sort(noise().step(count))
    expected = np.array([NormalDist().cdf(x) for x in values])
    steps = np.arange(count + 1) / count
    distance = max(np.max(np.abs(steps[1:] - expected)), np.max(np.abs(steps[:-1] - expected)))
    assert distance < math.sqrt(math.log(2e6) / (2 * count))


def test_noise_has_tails_beyond_24_bit_uniforms() -> None:
    # Of 4·10^6 values, about 2.2e-9·10^6 lie beyond 6σ; what shows is that nothing is cut at 4.5σ: 27 expected
    # beyond it, at most 5 with probability below 1e-6 (Poisson).
    values = np.concatenate([noise().step(1_000_000) for _ in range(4)])
    assert np.sum(np.abs(values) > 4.5) > 5
    # The largest possible value, from the smallest 53-bit uniform, is beyond the 5.85 of 24 bits.
    assert math.sqrt(-2.0 * math.log(0.5 * 2.0**-53)) == pytest.approx(8.65, abs=0.01)


def test_noise_is_scaled_by_multiplier_and_norm() -> None:
    # The variance of n normals has standard error √(2/n); five of them.
    count = 100_000
    values = noise(sigma=3.0, norm=0.5).step(count) / 1.5
    assert abs(np.mean(values)) < FIVE_SIGMA / math.sqrt(count)
    assert abs(np.mean(values**2) - 1.0) < FIVE_SIGMA * math.sqrt(2.0 / count)


def test_noise_of_neighbouring_places_and_steps_is_uncorrelated() -> None:
    count = 100_000
    source = noise()
    first, second = source.step(count), source.step(count)
    for left, right in ((first[:-1], first[1:]), (first, second), (first[: count // 2], first[count // 2 :])):
        assert abs(np.mean(left * right)) < FIVE_SIGMA / math.sqrt(len(left))
        assert abs(np.mean(left**2 * right**2) - 1.0) < FIVE_SIGMA * math.sqrt(8.0 / len(left))


@pytest.mark.parametrize("count", [0, 1, 2, 7, 2**17 + 3])
def test_noise_has_the_asked_length_and_is_float64(count: int) -> None:
    values = noise().step(count)
    assert values.shape == (count,)
    assert values.dtype == np.float64
    assert np.all(np.isfinite(values))


def test_each_record_joins_with_the_sample_rate() -> None:
    # The sum of 200 000 coin tosses of probability 0.1: standard deviation √(n q (1-q)); five of them.
    source = sampler(1000, 0.1)
    samples = [source.sample() for _ in range(200)]
    total = sum(len(sample) for sample in samples)
    assert abs(total - 20_000) < FIVE_SIGMA * math.sqrt(200_000 * 0.09)
    counts = np.bincount(np.concatenate(samples), minlength=1000)
    # Each record's own count over 200 steps: Hoeffding at 1e-6/1000 for each of the 1000.
    assert np.max(np.abs(counts - 20)) < math.sqrt(200 * math.log(2e9) / 2)
    sizes = np.array([len(sample) for sample in samples])
    assert sizes.std() > 1.0  # a Poisson sample has no fixed size


def test_records_join_independently() -> None:
    source = sampler(2, 0.5)
    both = sum(len(source.sample()) == 2 for _ in range(4000))
    assert abs(both - 1000) < FIVE_SIGMA * math.sqrt(4000 * 3 / 16)


def test_samples_are_ascending_indices() -> None:
    sample = sampler(5000, 0.3).sample()
    assert sample.dtype == np.int64
    assert np.all(np.diff(sample) > 0)
    assert sample.min() >= 0
    assert sample.max() < 5000


def test_full_sampling_takes_everybody_and_no_records_give_an_empty_sample() -> None:
    assert np.array_equal(sampler(100, 1.0).sample(), np.arange(100))
    empty = sampler(0, 0.5)
    assert empty.sample().shape == (0,)
    assert empty.ran_steps == 1


def test_large_tables_are_sampled_block_by_block() -> None:
    sample = sampler(2**20 + 5, 1.0).sample()
    assert len(sample) == 2**20 + 5
    assert sample[-1] == 2**20 + 4


def test_the_probability_is_never_above_the_rate() -> None:
    for rate in (0.1, 1 / 3, 1e-9, 0.9999999999999999):
        assert int(sampler(1, rate)._threshold) / 2.0**53 <= rate


def test_a_negative_number_of_records_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer than no records"):
        sampler(-1, 0.5)


@pytest.mark.parametrize(("sigma", "norm"), [(0.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, math.inf)])
def test_noise_of_senseless_scale_is_refused(sigma: float, norm: float) -> None:
    with pytest.raises(UnprocessableError):
        noise(sigma=sigma, norm=norm)


def test_a_mechanism_reports_what_its_objects_ran() -> None:
    plan = MechanismPlan(
        noise_multiplier=2.0, sample_rate=0.5, steps=9, clip_norm=0.25, n_public=10, delta=1e-5, epsilon=1.0
    )
    mechanism = build_mechanism(plan, entropy=FakeEntropy(), records=12)
    assert mechanism.ran() == RanMechanism(steps=0, noise_multiplier=2.0, sample_rate=0.5, clip_norm=0.25)
    mechanism.sampler.sample()
    mechanism.noise.step(3)
    mechanism.sampler.sample()
    assert mechanism.ran().steps == 2


def test_two_mechanisms_of_one_plan_draw_differently() -> None:
    plan = MechanismPlan(
        noise_multiplier=2.0, sample_rate=0.5, steps=9, clip_norm=0.25, n_public=10, delta=1e-5, epsilon=1.0
    )
    entropy = FakeEntropy()
    first, second = (build_mechanism(plan, entropy=entropy, records=64) for _ in range(2))
    assert not np.array_equal(first.noise.step(8), second.noise.step(8))
    assert not np.array_equal(first.sampler.sample(), second.sampler.sample())
