"""Features of an image: a small U-Net that computes at half the image's resolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
POOL = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
MODE = {2: "bilinear", 3: "trilinear"}


class Encoder(nn.Module):
    """Unit feature vectors for every voxel of an image, `[N, 1, *S]` -> `[N, channels, *S / stride]`.

    Voxels are first folded, two along each axis, into channels, so that nothing is computed on the full grid: that is
    where the time of a U-Net goes. With a stride of 1 they are unfolded at the end. Statistics are of one image (instance normalisation): what
    an image becomes does not depend on its batch mates.

    Args:
        dims: 2 or 3.
        channels: of the features.
        widths: channels at 1/2, 1/4, 1/8 ... of the resolution; as many scales as there are numbers.
        stride: voxel edge of the features, in voxels of the image, 1 or 2. With 2 an odd axis is rounded up.

    Raises:
        ValueError: when an argument or the image breaks this contract.

    Reference: Ronneberger et al., U-Net, MICCAI 2015; Shi et al., sub-pixel convolution, CVPR 2016.

    >>> import torch
    >>> features = Encoder(dims=2, channels=4, widths=(8, 8))(torch.rand(1, 1, 13, 10))
    >>> list(features.shape), bool((features.norm(dim=1) - 1).abs().max() < 1e-4)
    ([1, 4, 13, 10], True)
    """

    def __init__(
        self, *, dims: int = 3, channels: int = 16, widths: Sequence[int] = (32, 64, 96, 128), stride: int = 1
    ) -> None:
        super().__init__()
        if dims not in CONV:
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        if channels < 1 or len(widths) == 0 or min(widths) < 1:
            raise ValueError(f"channels and widths must be positive, got {channels} and {list(widths)}")
        if stride not in (1, 2):
            raise ValueError(f"the encoder's stride must be 1 or 2, got {stride}")
        self.dims, self.channels, self.stride = dims, channels, stride
        conv, pairs = CONV[dims], list(pairwise(widths))
        self.stem = conv(2**dims, widths[0], 1)
        self.down = nn.ModuleList(_Block(dims, width) for width in widths)
        self.widen = nn.ModuleList(conv(fine, coarse, 1) for fine, coarse in pairs)
        self.narrow = nn.ModuleList(conv(coarse, fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(_Block(dims, fine) for fine, _ in pairs)
        self.head = conv(widths[0], channels * (2**dims if stride == 1 else 1), 1)

    def forward(self, image: Tensor) -> Tensor:
        """The features, of unit length."""
        if image.ndim != self.dims + 2 or image.shape[1] != 1:
            raise ValueError(f"image must be [N, 1, *S] with {self.dims} axes, got {list(image.shape)}")
        size = image.shape[2:]
        x = self.stem(fold(pad_to_multiple(image - 0.5, 2)))
        skips: list[Tensor] = []
        for scale, block in enumerate(self.down):
            if scale:
                x = self.widen[scale - 1](POOL[self.dims](x, 2, ceil_mode=True))
            x = block(x)
            skips.append(x)
        for scale in reversed(range(len(self.up))):
            skip = skips[scale]
            x = functional.interpolate(self.narrow[scale](x), scale_factor=2.0, mode=MODE[self.dims])
            x = self.up[scale](crop(x, skip.shape[2:]) + skip)
        features = self.head(x) if self.stride == 2 else crop(unfold(self.head(x)), size)
        return functional.normalize(features, dim=1, eps=1e-6)


class _Block(nn.Module):
    """A convolution, instance normalisation and a leaky rectifier."""

    def __init__(self, dims: int, width: int) -> None:
        super().__init__()
        self.conv = CONV[dims](width, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(width, width)  # unlike InstanceNorm, it takes an image of one voxel

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.conv(x)), 0.1)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """An image with its last voxels repeated until every axis is a multiple.

    >>> import torch
    >>> pad_to_multiple(torch.zeros(1, 1, 5, 4), 4).shape
    torch.Size([1, 1, 8, 4])
    """
    missing = [-size % multiple for size in image.shape[2:]]
    pads = [count for size in reversed(missing) for count in (0, size)]
    return functional.pad(image, pads, mode="replicate") if any(missing) else image


def crop(image: Tensor, shape: Sequence[int]) -> Tensor:
    """The first voxels of an image along every axis.

    >>> import torch
    >>> crop(torch.zeros(1, 1, 5, 4), (3, 4)).shape
    torch.Size([1, 1, 3, 4])
    """
    return image[(..., *(slice(size) for size in shape))]


def fold(image: Tensor) -> Tensor:
    """Blocks of two voxels along every axis as channels, `[N, C, *S]` -> `[N, 2^d C, *S / 2]`.

    >>> import torch
    >>> fold(torch.arange(4.0).view(1, 1, 2, 2)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    batch, channels, *size = image.shape
    dims = len(size)
    split = image.reshape(batch, channels, *(part for n in size for part in (n // 2, 2)))
    order = (0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2))
    return split.permute(order).reshape(batch, channels * 2**dims, *(n // 2 for n in size))


def unfold(image: Tensor) -> Tensor:
    """The inverse of `fold`, `[N, 2^d C, *S]` -> `[N, C, *2 S]`.

    >>> import torch
    >>> image = torch.rand(1, 3, 4, 6)
    >>> torch.equal(unfold(fold(image)), image)
    True
    """
    batch, channels, *size = image.shape
    dims = len(size)
    split = image.reshape(batch, channels // 2**dims, *[2] * dims, *size)
    order = (0, 1, *(axis for a in range(dims) for axis in (2 + dims + a, 2 + a)))
    return split.permute(order).reshape(batch, channels // 2**dims, *(2 * n for n in size))
