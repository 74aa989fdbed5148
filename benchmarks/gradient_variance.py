"""Noise of the training gradient: weighted flow matching against implicit tilt matching.

python benchmarks/gradient_variance.py [SYSTEM]

The first step of the ladder, where the old field is known exactly: a = 0, the Gaussian base. The
trained field equals the old one there, and both objectives have the same mean gradient; printed
is the ratio of their variances (traces of the covariance) for steps h of a given conditional ESS.
"""

import torch
from conditions import arguments, begin, row
from torch import Tensor

from boltztilt.energy import relative_reward
from boltztilt.networks.perceptron import Perceptron
from boltztilt.sampling.flow import resting_rate
from boltztilt.systems.system import System, load_system
from boltztilt.tilt.interpolant import Bridge, Pairs, draw_times, interpolate
from boltztilt.tilt.objectives import implicit_target, tilt_weights
from boltztilt.tilt.schedule import choose_step

CONDITIONAL_ESS = (0.99, 0.95, 0.9, 0.8, 0.5)
OBJECTIVES = {"itm": 1.0, "wfm": 0.0}  # the control variate that makes the difference
SMALLEST_NOISE = 0.005


def bridges(system: System, n: int, step: float, generator: torch.Generator) -> Bridge:
    """Points between independent draws of the base, weighted by exp(h r) of their ends."""
    starts, ends = (system.base.sample(n, generator) for _ in range(2))
    rewards = relative_reward(system.potential.energy(ends), system.base, ends)
    weights = tilt_weights(step * rewards).float()
    return interpolate(Pairs(starts, ends, weights), draw_times(n, 1, SMALLEST_NOISE, generator))


def old_field(bridge: Bridge) -> Tensor:
    """The exact field at a = 0: between two equal Gaussians."""
    return resting_rate(bridge.times)[:, None, None] * bridge.positions


def gradient(network: Perceptron, bridge: Bridge, control_variate: float) -> Tensor:
    """The gradient of one batch by all parameters, where the trained field is the old one."""
    old = old_field(bridge)
    learned = network(bridge.times, bridge.positions)
    new = old + learned - learned.detach()
    target = implicit_target(old, new, bridge.rates, bridge.weights, control_variate)
    errors = (new - target).square().sum(dim=(-1, -2))
    loss = (bridge.times * errors).mean()
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, network.parameters())])


def variance(gradients: list[Tensor]) -> float:
    """The trace of the covariance of the gradients."""
    return float(torch.stack(gradients).double().var(dim=0).sum())


def main() -> None:
    parser = arguments(__doc__, n=256)
    parser.add_argument("system", nargs="?", default="lj13")
    parser.add_argument("--batches", type=int, default=400, help="batches of n pairs")
    options = begin(parser)
    system = load_system(options.system)
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    network = Perceptron(system.n_atoms, system.n_dims, n_hidden=32)
    ends = system.base.sample(100_000, generator)
    rewards = relative_reward(system.potential.energy(ends), system.base, ends)
    for target in CONDITIONAL_ESS:
        step = choose_step(rewards, 1.0, target)
        gradients: dict[str, list[Tensor]] = {name: [] for name in OBJECTIVES}
        for _ in range(options.batches):
            bridge = bridges(system, options.n, step, generator)
            for name, control_variate in OBJECTIVES.items():
                gradients[name].append(gradient(network, bridge, control_variate))
        ratio = variance(gradients["wfm"]) / variance(gradients["itm"])
        row(f"conditional ESS {target}", f"h = {step:.2e}", f"variance WFM / ITM = {ratio:.1f}")


if __name__ == "__main__":
    main()
