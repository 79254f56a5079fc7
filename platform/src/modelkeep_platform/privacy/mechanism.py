"""The running mechanism: sampler and noise built from one frozen plan, and what they say they did."""

from dataclasses import dataclass

from modelkeep_platform.core.ports import Entropy
from modelkeep_platform.privacy.noise import GaussianNoise
from modelkeep_platform.privacy.plan import MechanismPlan, RanMechanism
from modelkeep_platform.privacy.sampling import PoissonSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """A sampler and a noise source of one run; never reused for another."""

    sampler: PoissonSampler
    noise: GaussianNoise

    def ran(self) -> RanMechanism:
        """Return what ran, taken from the objects that ran and not from the request."""
        return RanMechanism(
            steps=max(self.sampler.ran_steps, self.noise.ran_steps),
            noise_multiplier=self.noise.noise_multiplier,
            sample_rate=self.sampler.sample_rate,
            clip_norm=self.noise.clip_norm,
        )


def build_mechanism(plan: MechanismPlan, *, entropy: Entropy, records: int) -> Mechanism:
    """Build sampler and noise for one run of `plan`.

    Args:
        plan: what was charged.
        entropy: the operating system's in production; each part draws its own key.
        records: the true number of records; private.
    """
    return Mechanism(
        sampler=PoissonSampler(entropy=entropy, records=records, sample_rate=plan.sample_rate),
        noise=GaussianNoise(entropy=entropy, noise_multiplier=plan.noise_multiplier, clip_norm=plan.clip_norm),
    )
