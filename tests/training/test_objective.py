"""What is made small: the parts of the loss, the iterates on the way, the estimate of the Jacobian."""

from dataclasses import replace

import pytest
import torch

from deqreg import losses, ops
from deqreg.data import Pairs, load_cases, read_dataset
from deqreg.data.pairs import all_pairs
from deqreg.equilibrium import Anderson, Phantom, Unrolled, fixed_point
from deqreg.training.config import Loss
from deqreg.training.objective import Objective, Recorder, jacobian_norm, registration_losses
from tests.training.standin import StandIn, write_config, write_dataset

pytest.importorskip("yaml")
CPU, LABELLED = torch.device("cpu"), Loss(window=5, dice=1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("blobs"))


def batch_of(config, places=(0, 1)):
    listed = read_dataset(config.data.dataset)
    pairs = Pairs(all_pairs(listed.training), load_cases(listed.training), 0, config.augmentation)
    return pairs.shuffled(list(places), torch.device("cpu"))


def generator():
    return torch.Generator().manual_seed(0)


def test_the_loss_is_the_weighted_sum(data, tmp_path):
    batch = batch_of(write_config(tmp_path, data))
    u = 0.3 * torch.randn(2, 2, 24, 20, generator=generator())
    found = registration_losses(u, batch, Loss(window=5, smoothness=0.5, folding=2.0, dice=3.0))
    assert set(found) == {"similarity", "smoothness", "folding", "soft_dice", "loss"}
    expected = found["similarity"] + 0.5 * found["smoothness"] + 2 * found["folding"] + 3 * found["soft_dice"]
    torch.testing.assert_close(found["loss"], expected)
    warped = ops.warp(batch.moving, u)
    torch.testing.assert_close(found["similarity"], losses.lncc(batch.fixed, warped, window=5).mean())


def test_a_pair_without_labels_or_mask_adds_nothing_and_takes_nothing(data, tmp_path):
    config = write_config(tmp_path, data)
    listed = read_dataset(config.data.dataset).training
    cases = load_cases(listed)
    inside = torch.zeros(24, 20, dtype=torch.bool)
    inside[4:20, 3:15] = True
    cases[listed[0].image] = replace(cases[listed[0].image], mask=inside)
    cases[listed[1].image] = replace(cases[listed[1].image], labels=None)
    # the first with labels and a mask, the second with neither
    pairs = Pairs([(listed[0], listed[0]), (listed[1], listed[1])], cases)
    u = 0.3 * torch.randn(2, 2, 24, 20, generator=generator())
    together = registration_losses(u, pairs.shuffled(sorted((0, 1), key=pairs.sampler.__getitem__), CPU), LABELLED)
    apart = [registration_losses(u[i : i + 1], pairs.listed(i, CPU), LABELLED) for i in (0, 1)]
    assert "soft_dice" not in apart[1]
    torch.testing.assert_close(together["soft_dice"], apart[0]["soft_dice"] / 2)
    torch.testing.assert_close(together["similarity"], (apart[0]["similarity"] + apart[1]["similarity"]) / 2)


def test_known_displacements_count_for_synthetic_pairs_alone(data, tmp_path):
    config = write_config(tmp_path, data, augmentation__synthetic=0.5)
    batch = next(b for b in (batch_of(config, (p, p + 1)) for p in range(20)) if b.known.tolist() == [True, False])
    found = registration_losses(batch.truth, batch, Loss(known=1.0))
    assert found["known"] < 1e-3 * 1.5  # what `endpoint_error` grants, a thousandth of a unit
    off = registration_losses(batch.truth + torch.tensor([2.0, 0.0]).view(1, 2, 1, 1), batch, Loss(known=1.0))
    # 2 voxels of 1.5 mm in one pair of two
    torch.testing.assert_close(off["known"], torch.tensor(1.5), atol=1e-3, rtol=0)


def test_iterates_are_drawn_evenly_and_in_their_order():
    counts = torch.zeros(10)
    for seed in range(600):
        recorder = Recorder(lambda z: z, 3, torch.Generator().manual_seed(seed), always=True)
        for step in range(10):
            recorder(torch.tensor([float(step)]))
        kept = [int(state) for state in recorder.states()]
        assert kept == sorted(set(kept))
        assert len(kept) == 3
        counts[kept] += 1
    # 180 expected each, binomial with a standard deviation of 11
    assert (counts - 180).abs().max() < 55


@pytest.mark.parametrize(("adjoint", "evaluated"), [(Phantom(steps=2), 7), (Unrolled(steps=6), 6)])
def test_only_the_solver_is_recorded(adjoint, evaluated):
    rate = torch.tensor(0.5, requires_grad=True)
    unrolled = isinstance(adjoint, Unrolled)
    recorder = Recorder(lambda z: rate * z + 1, 100, generator(), always=unrolled)
    solver = Anderson(memory=1, tol=0, max_steps=8, patience=None)
    fixed_point(recorder, torch.zeros(1, 1), solver=solver, adjoint=adjoint)
    # the first evaluation of a solver is its look for gradients, at the start, which is no iterate of interest
    assert len(recorder.states()) == evaluated
    assert not any(state.requires_grad for state in recorder.states())


def test_corrections_add_losses_on_the_way(data, tmp_path):
    """Their sum is that of the losses one step from each of the recorded iterates, the later the heavier."""
    config = write_config(tmp_path, data, jacobian__weight=0, correction__decay=0.5, correction__weight=2.0)
    batch = batch_of(config)
    torch.manual_seed(0)
    net = StandIn(config.solver, config.adjoint)
    found, _ = Objective(net, config)(batch, generator())
    update, start = net.prepare(batch.fixed_input, batch.moving_input)
    recorder = Recorder(update, 2, generator())
    solution = fixed_point(recorder, start, solver=net.solver, adjoint=net.adjoint)
    states = [update(z) for z in recorder.states()] + [solution.value]
    parts = [registration_losses(net.displacement(z, (24, 20)), batch, config.loss)["loss"] for z in states]
    torch.testing.assert_close(found["loss"], parts[2] + 2 * parts[1] + 2 * 0.5 * parts[0])


def test_the_jacobian_estimate_is_the_frobenius_norm():
    matrix = torch.randn(6, 6, generator=generator())
    z = torch.randn(4000, 6, generator=generator())
    found = jacobian_norm(lambda z: torch.tanh(z) @ matrix.T, torch.zeros_like(z), 1e-3, generator())
    # 4000 samples of a sum of squares leave about 2 % of it; the tangent at 0 is the identity
    torch.testing.assert_close(found, matrix.square().sum() / 6, rtol=0.08, atol=0)


def test_the_jacobian_estimate_has_a_gradient():
    rate = torch.tensor(0.7, requires_grad=True)
    norm = jacobian_norm(
        lambda z: (rate * z[0], 0 * z[1]), (torch.zeros(1, 500), torch.zeros(1, 500)), 0.01, generator()
    )
    (gradient,) = torch.autograd.grad(norm, rate)
    torch.testing.assert_close(norm.detach(), torch.tensor(0.245), rtol=0.2, atol=0)  # 0.7^2 / 2, of 500 numbers
    torch.testing.assert_close(gradient, 2 * norm.detach() / 0.7, rtol=1e-3, atol=0)
