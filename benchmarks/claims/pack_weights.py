"""Make the file that ships of a finished training.

python benchmarks/claims/pack_weights.py out/brain/best.pt deqreg/weights/brain.safetensors --spacing 1
"""

import argparse
from pathlib import Path

import torch

from deqreg.nets import DEQReg
from deqreg.nets.pretrained import save_weights


def pack(source: Path, out: Path, spacing: float, strides: list[int]) -> None:
    """The averaged weights of the best validation, with the levels that inference runs through."""
    content = torch.load(source, map_location="cpu", weights_only=True)
    net = DEQReg(**{**content["net"], "strides": strides})
    net.load_state_dict(content["weights"])
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(out, net, spacing=spacing, step=content["step"], validation=content["validation"])
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, step {content['step']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--spacing", type=float, required=True, help="millimetres of the images it was trained on")
    parser.add_argument("--strides", type=int, nargs="+", default=[4, 2], help="levels of inference")
    arguments = parser.parse_args()
    pack(arguments.source, arguments.out, arguments.spacing, arguments.strides)
