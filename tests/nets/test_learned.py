from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from deqreg import ops
from deqreg.equilibrium import Anderson, Implicit, Phantom, Picard, Unrolled, fixed_point
from deqreg.nets import DEQReg, Encoder, RecurrentUpdate
from deqreg.nets.encoder import Labels
from deqreg.nets.pretrained import load_weights, packaged, save_weights
from tests.nets.test_variational import bump, texture

SMALL = {"channels": 4, "widths": (8, 8), "hidden": 4}


def small(dims: int, seed: int = 0, **settings: object) -> DEQReg:
    torch.manual_seed(seed)
    return DEQReg(**{"dims": dims, **SMALL, **settings})  # type: ignore[arg-type]


def randomise(net: DEQReg) -> DEQReg:
    """The last layer away from zero, as training leaves it."""
    torch.nn.init.constant_(net.update.out.parametrizations.weight.original0, 0.1)  # type: ignore[union-attr, arg-type]
    return net


@pytest.mark.parametrize("shape", [(25, 20), (13, 10, 11), (8, 1)])
def test_features_are_unit_vectors_on_any_grid_and_ignore_batch_mates(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder, images = Encoder(dims=len(shape), channels=4, widths=(8, 8)), torch.rand(2, 1, *shape)
    features = encoder(images)
    assert features.shape == (2, 4, *shape)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, *shape), atol=1e-4, rtol=0)
    torch.testing.assert_close(encoder(images[1:]), features[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(25, 20), (13, 10, 12)])
def test_features_of_half_the_resolution_and_what_they_register(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = small(len(shape), encoder_stride=2, strides=(4, 2))
    images = torch.rand(2, 1, 1, *shape)
    features = net.encoder(images[0]), net.encoder(images[1])
    assert features[0].shape == (1, net.encoder.channels, *(-(-n // 2) for n in shape))
    u, _ = net(*images, features=features)
    assert u.shape == (1, len(shape), *shape)
    torch.testing.assert_close(net(*images)[0], u)
    with pytest.raises(ValueError, match="multiples of the encoder's, 2"):
        small(len(shape), encoder_stride=2, strides=(2, 1))


def test_the_coarsest_level_alone_is_a_network_of_the_same_weights() -> None:
    net = randomise(small(2, strides=(4, 2))).eval()
    alone = small(2, seed=1, strides=(4,)).eval()
    alone.load_state_dict(net.state_dict())
    images = torch.rand(2, 1, 1, 24, 20)
    torch.testing.assert_close(net.coarsest()(*images)[0], alone(*images)[0])
    assert net.coarsest().encoder is net.encoder


@pytest.mark.parametrize("shape", [(25, 20), (34, 33, 36)])  # the second has more voxels than are read at once
def test_features_of_labels_are_their_codes_under_their_probabilities(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = Encoder(dims=len(shape), channels=6, widths=(8, 8), stride=2, labels=5)
    images = torch.rand(2, 1, *shape)
    assert isinstance(encoder.head, Labels)
    assert not encoder.head.codes[0].any()
    trunk, features = encoder.trunk(images), encoder(images)
    assert features.shape == (2, 6, *(-(-n // 2) for n in shape))
    expected = encoder.head.read(trunk.movedim(1, -1)).softmax(-1) @ encoder.head.codes
    torch.testing.assert_close(features, expected.movedim(-1, 1))


def test_labels_need_features_of_half_the_resolution() -> None:
    with pytest.raises(ValueError, match="labels must be at least 2, with a stride of 2, got 5 and 1"):
        Encoder(dims=2, labels=5)


def test_features_move_with_the_image() -> None:
    """By a multiple of what is folded and pooled, away from the faces: what an update aligns is where the image is."""
    torch.manual_seed(0)
    encoder, image = Encoder(dims=2, channels=4, widths=(8, 8)).eval(), torch.zeros(1, 1, 64, 64)
    image[..., 24:40, 24:40] = texture(16, 16)
    moved = encoder(image.roll((8, 4), (2, 3))).roll((-8, -4), (2, 3))
    # the faces have a small part in the statistics of the instance; a voxel off, unit vectors differ by tenths
    torch.testing.assert_close(moved[..., 20:44, 20:44], encoder(image)[..., 20:44, 20:44], atol=0.01, rtol=0)


@pytest.mark.parametrize("shape", [(40, 36), (26, 24, 28)])
def test_an_untrained_network_already_registers(shape: tuple[int, ...]) -> None:
    """It starts as the classical update: half of a known displacement is found, and nothing folds."""
    moving, truth = texture(*shape), bump(*shape)
    fixed, inside = ops.warp(moving, truth), truth.norm(dim=1) > 0.5
    # the mean of four: a single one's random features leave 0.37 to 0.52
    fields = [small(len(shape), seed=seed, strides=(2, 1))(fixed, moving)[0] for seed in range(4)]
    left = torch.stack([(u - truth).norm(dim=1)[inside].mean() for u in fields]).mean()
    assert left < 0.5 * truth.norm(dim=1)[inside].mean()
    assert min(ops.jacobian_determinant(u).min() for u in fields) > 0


def test_last_layer_starts_at_zero_only_around_the_classical_step() -> None:
    weights = [RecurrentUpdate(dims=2, bridge=bridge).out.weight.abs().max() for bridge in (True, False)]
    assert weights[0] == 0
    assert weights[1] > 0


@pytest.mark.parametrize("bridge", [True, False])
def test_every_weight_that_is_trained_has_a_gradient(bridge: bool) -> None:
    """Data-parallel training refuses those that have none."""
    net = small(2, bridge=bridge)
    net(texture(24, 20), texture(24, 20, seed=1))[0].square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None] == []
    net.load_state_dict(small(2, seed=1).state_dict())


@pytest.mark.parametrize(("kernel", "bridge"), [(1, True), (3, True), (3, False)])
def test_autocast_keeps_the_state_in_single_precision(kernel: int, bridge: bool) -> None:
    torch.manual_seed(0)
    update = RecurrentUpdate(dims=2, hidden=4, kernel=kernel, bridge=bridge)
    features = torch.nn.functional.normalize(torch.randn(2, 1, 6, 20, 20), dim=2)
    parts = features.split(1)
    exact = update.on(*parts)(update.start(features[0]))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = update.on(*parts)(update.start(features[0]))
    for a, b in zip(exact, rounded, strict=True):
        torch.testing.assert_close(b, a, atol=0.02, rtol=0)  # bfloat16 has 8 bits, and the state is below 1


@pytest.mark.parametrize("labels", [None, 5])
def test_autocast_registers_with_any_head(labels: int | None) -> None:
    net = small(2, encoder_stride=2, strides=(4, 2), labels=labels, solver=Picard(max_steps=3))
    images = texture(24, 20), texture(24, 20, seed=1)
    exact, _ = net(*images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, solution = net(*images)
    assert [part.dtype for part in solution.value] == [torch.float32] * 2
    # the 8 bits of bfloat16 leave features about a percent off, and the field not much more
    assert (rounded - exact).norm() < 0.05 * exact.norm()
    rounded.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("kernel", [1, 3])
def test_features_may_come_in_parts_and_a_distance_may_count_more(kernel: int) -> None:
    torch.manual_seed(0)
    update = RecurrentUpdate(dims=2, hidden=4, kernel=kernel)
    fixed, moving = torch.randn(2, 1, 6, 20, 20)
    u, h = update.start(fixed)
    whole = update.on([2 * fixed], [2 * moving])((u + 0.3, h))
    parts = update.on(fixed.split([4, 2], dim=1), moving.split([4, 2], dim=1), weight=4.0)((u + 0.3, h))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)  # sums of other orders, in single precision


def test_memory_is_bounded_and_no_step_is_longer_than_allowed() -> None:
    torch.manual_seed(0)
    update = RecurrentUpdate(dims=2, hidden=4, gain=1e4, longest_step=0.2, smooth_field=0.0)
    features = torch.nn.functional.normalize(torch.randn(2, 1, 6, 20, 20), dim=2)
    f, (u, h) = update.on(*features.split(1)), update.start(features[0])
    for _ in range(5):
        moved, h = f((u, h))
        # composing interpolates the field before, which makes it no longer than it was
        assert (moved - u).norm(dim=1).max() < 0.2 + 2 * u.norm(dim=1).max() + 1e-5
        assert h.abs().max() <= 1
        u = moved
    assert f(update.start(features[0]))[0].norm(dim=1).max() <= 0.2 + 1e-6


def test_samples_do_not_see_each_other() -> None:
    net = randomise(small(2, solver=Anderson(max_steps=8, norm="rms")))
    fixed, moving = (torch.cat([texture(24, 20, seed=s), texture(24, 20, seed=s + 1)]) for s in (0, 2))
    together, alone = net(fixed, moving)[0][1:], net(fixed[1:], moving[1:])[0]
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("strides", [(1,), (2,), (4, 2), (4, 2, 1)])
@pytest.mark.parametrize("shape", [(25, 20), (11, 9, 10)])
def test_any_size_and_any_levels(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    net = small(len(shape), strides=strides, solver=Anderson(max_steps=3, norm="rms"))
    u, solution = net(torch.rand(2, 1, *shape), torch.rand(2, 1, *shape))
    assert u.shape == (2, len(shape), *shape)
    u.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert solution.steps.shape == (2,)


def test_a_start_is_kept_where_it_is_right() -> None:
    moving, truth = texture(32, 32), bump(32, 32)
    net = small(2, strides=(2, 1), solver=Picard(max_steps=1))
    u, _ = net(ops.warp(moving, truth), moving, start=truth)
    inside = truth.norm(dim=1) > 0.5
    assert (u - truth).norm(dim=1)[inside].mean() < 0.3 * truth.norm(dim=1)[inside].mean()


def test_config_rebuilds_the_network(tmp_path: object) -> None:
    net = randomise(small(2, strides=(4, 1), kernel=3, contrast=0.4))
    again = DEQReg(**net.config())
    again.load_state_dict(net.state_dict())
    images = texture(20, 20), texture(20, 20, seed=1)
    assert torch.equal(net(*images)[0], again(*images)[0])


@pytest.mark.parametrize("shape", [(16, 14), (10, 9, 8)])
def test_implicit_gradient_is_that_of_unrolling_to_convergence(shape: tuple[int, ...]) -> None:
    net = randomise(small(len(shape), strides=(1,), kernel=3, gain=1.0)).double()
    moving = texture(*shape).double()
    fixed = ops.warp(moving, bump(*shape, height=0.8).double())
    draw = torch.Generator().manual_seed(1)
    target = torch.randn(1, len(shape), *shape, generator=draw, dtype=torch.float64)

    def gradient(adjoint: Implicit | Unrolled) -> Tensor:
        net.zero_grad()
        f, z0 = net.prepare(fixed, moving)
        solution = fixed_point(f, z0, solver=Anderson(memory=8, tol=1e-12, max_steps=400), adjoint=adjoint)
        assert isinstance(solution.value, tuple)
        assert solution.residuals[-1].max() < 1e-9
        (net.displacement(solution.value, shape) * target).sum().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    implicit = gradient(Implicit(solver=Anderson(memory=8, tol=1e-10, max_steps=400)))
    unrolled = gradient(Unrolled(steps=500))
    assert (implicit - unrolled).norm() < 1e-5 * unrolled.norm()


def test_training_steps_lower_the_loss() -> None:
    net = small(2, strides=(1,), solver=Anderson(max_steps=10, norm="rms"), adjoint=Phantom(steps=3))
    moving, truth = texture(32, 32), bump(32, 32)
    fixed = ops.warp(moving, truth)
    optimiser, errors = torch.optim.Adam(net.parameters(), lr=5e-3), []
    for _ in range(15):
        error = (net(fixed, moving)[0] - truth).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < 0.8 * errors[0]


def test_weights_that_ship_are_those_of_a_3d_network_at_1_mm() -> None:
    pytest.importorskip("safetensors")
    net, facts = load_weights(packaged("brain"))
    assert (net.encoder.dims, facts["spacing"]) == (3, 1.0)
    assert not any(p.requires_grad for p in net.parameters())


def test_files_that_are_no_weights(tmp_path: object) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    broken, foreign = (tmp_path / name for name in ("broken", "foreign"))  # type: ignore[operator]
    broken.write_bytes(b"no weights at all")
    safetensors.save_file({"weight": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_weights(broken)
    with pytest.raises(ValueError, match="must say how its network is built"):
        load_weights(foreign)


def test_weights_survive_the_file_to_half_precision(tmp_path: object) -> None:
    pytest.importorskip("safetensors")
    net = randomise(small(2))
    save_weights(tmp_path / "net.safetensors", net, spacing=1.5)  # type: ignore[operator]
    again, facts = load_weights(tmp_path / "net.safetensors")  # type: ignore[operator]
    assert facts == {"spacing": 1.5}
    for name, value in net.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, atol=1e-3, rtol=1e-3)


def test_weights_that_cannot_be_written_leave_those_that_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"a part")
        raise OSError("no space left on device")

    monkeypatch.setattr(pytest.importorskip("safetensors.torch"), "save_file", full)
    (tmp_path / "net.safetensors").write_bytes(b"precious")
    with pytest.raises(OSError, match="no space"):
        save_weights(tmp_path / "net.safetensors", small(2))
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"precious"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DEQReg(strides=(1, 2)), r"strides must fall, each a multiple of the next, got \[1, 2\]"),
        (lambda: DEQReg(solver=[Anderson()]), "solver must be one, or one for each of 2 levels, got 1"),
        (lambda: DEQReg(dims=4), "dims must be 2 or 3, got 4"),
        (lambda: DEQReg(channels=0), "channels and widths must be positive"),
        (lambda: RecurrentUpdate(kernel=2), "hidden must be positive and kernel odd, got 8 and 2"),
        (lambda: RecurrentUpdate(gain=0), "gain and longest_step must be positive"),
        (lambda: small(2)(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 9)), r"moving must be as fixed, \[1, 1, 8, 8\]"),
        (lambda: small(2)(torch.rand(1, 2, 8, 8), torch.rand(1, 2, 8, 8)), r"image must be \[N, 1, \*S\] with 2 axes"),
    ],
)
def test_errors_state_the_contract(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
