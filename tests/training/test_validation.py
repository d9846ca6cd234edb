"""What a validation counts, and which of two is the better."""

import json

import pytest
import torch

from deqreg import io
from deqreg.data import Pairs, load_cases, read_dataset
from deqreg.equilibrium import Phantom, Picard
from deqreg.training.config import Loss
from deqreg.training.processes import Processes
from deqreg.training.validation import better, validate
from tests.training.standin import StandIn, write_dataset


def test_a_pair_without_a_common_label_has_no_part_in_the_dice(tmp_path):
    write_dataset(tmp_path, count=6)
    content = json.loads((tmp_path / "dataset.json").read_text())
    labels = io.read_image(tmp_path / "2_labels.nii.gz")
    io.write_volume(tmp_path / "2_labels.nii.gz", torch.full_like(labels.data, 7), labels.affine)
    content["registration_val"] += [{"fixed": "./2.nii.gz", "moving": "./3.nii.gz"}]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    listed = read_dataset(tmp_path).validation_pairs
    cases = load_cases([case for pair in listed for case in pair])
    torch.manual_seed(0)
    net, here = StandIn(Picard(max_steps=3), Phantom(steps=1)), Processes(0, 1, torch.device("cpu"))
    both, alone = (validate(net, Pairs(pairs, cases), Loss(), here) for pairs in (listed, listed[:1]))
    assert (both["dice"], both["dice_before"]) == (alone["dice"], alone["dice_before"])


@pytest.mark.parametrize("name", ["dice", "tre", "similarity"])
def test_a_number_beats_none(name):
    nan = float("nan")
    assert better({name: 0.5}, {name: nan})
    assert not better({name: nan}, {name: 0.5})
