import json
from importlib import metadata

import pytest
import torch

from deqreg import _C
from deqreg.cli import main


def test_json(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"] == torch.__version__
    assert facts["instruction_set"] == _C.instruction_set()
    assert "baseline" in facts["instruction_sets_compiled"]
    assert facts["threads"] == torch.get_num_threads()
    assert len(facts["cuda_devices"]) == torch.cuda.device_count()


def test_a_checkout_that_was_never_installed(capsys, monkeypatch):
    found = metadata.version

    def version(name):
        if name == "deqreg":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(metadata, "version", version)
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deqreg"] == "not installed"
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert not stop.value.code
    assert capsys.readouterr().out == "deqreg not installed\n"


def test_text(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "deqreg"
    assert any(line.split()[:3] == ["instruction", "set", _C.instruction_set()] for line in lines)
