"""The configuration: from YAML to a checked tree and back."""

import pytest

from deqreg.configuration import build, plain
from deqreg.equilibrium import Anderson, Implicit, Picard
from deqreg.training import read_config
from deqreg.training.config import CHOICES, Config, Data

pytest.importorskip("yaml")


def read(tmp_path, text, *changes):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return read_config(path, changes)


LEAST = "output: out\ndata: {dataset: data}\n"


def test_defaults_are_the_dataclasses(tmp_path):
    assert read(tmp_path, LEAST) == Config("out", Data("data"))


def test_everything_can_be_said(tmp_path):
    config = read(
        tmp_path,
        LEAST
        + """
model: {channels: 8}
solver: {kind: picard, tol: 1e-4}
adjoint:
  kind: implicit
  solver: {kind: anderson, max_steps: 12}
augmentation: {flip: [0, 2]}
optimiser: {betas: [0.8, 0.9], rate: 1e-3}
""",
        "data.spacing=2",
        "steps=7",
    )
    assert config.solver == Picard(tol=1e-4)
    assert config.adjoint == Implicit(Anderson(max_steps=12))
    assert config.model == {"channels": 8}
    assert config.augmentation.flip == (0, 2)
    assert (config.optimiser.betas, config.optimiser.rate) == ((0.8, 0.9), 1e-3)
    assert (config.data.spacing, config.steps) == (2.0, 7)
    assert build(Config, plain(config, CHOICES), CHOICES) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 10", "output must be given"),
        (LEAST + "stesp: 3", "stesp is not known: did you mean steps?"),
        (LEAST + "optimiser: {warm_up: 3}", "optimiser.warm_up is not known: did you mean warmup?"),
        (
            LEAST + "adjoint: {kind: implicit, solver: {kind: anderson, memroy: 3}}",
            "adjoint.solver.memroy is not known",
        ),
        (LEAST + "adjoint: {kind: magic}", "adjoint.kind must be one of implicit, phantom, unrolled, got 'magic'"),
        (LEAST + "steps: many", "steps must be a whole number, got 'many'"),
        (LEAST + "steps: 1.5", "steps must be a whole number"),
        (LEAST + "steps: true", "steps must be a whole number"),
        (LEAST + "steps: 0", "steps must be at least 1, got 0"),
        (LEAST + "loss: {window: 4}", "loss: window must be odd"),
        (LEAST + "loss: 3", "loss must be a mapping"),
        (LEAST + "augmentation: {flip: 0}", "augmentation.flip must be a list"),
        (LEAST + "precision: half", "precision must be one of"),
        ("[]", "must be a mapping"),
        ("a: [", "not YAML"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the message is what is compared
        read(tmp_path, text)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"), [("steps", "NAME=VALUE"), ("steps.more=1", "goes below steps"), ("data.size=1", "not known")]
)
def test_wrong_changes_are_said(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, LEAST + "steps: 3", change)
