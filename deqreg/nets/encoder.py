"""Features of an image: a small U-Net that computes at half the image's resolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
POOL = {2: functional.avg_pool2d, 3: functional.avg_pool3d}
MODE = {2: "bilinear", 3: "trilinear"}

# Voxels whose labels are read at once: the probabilities of 145 labels then stay in the cache.
_VOXELS = 4096


class Encoder(nn.Module):
    """Feature vectors for every voxel of an image, `[N, 1, *S]` -> `[N, channels, *S / stride]`.

    Voxels are first folded, two along each axis, into channels, so that nothing is computed on the full grid: that is
    where the time of a U-Net goes. With a stride of 1 they are unfolded at the end. Statistics are of one image
    (instance normalisation): what an image becomes does not depend on its batch mates.

    Features are unit vectors, or, of an encoder that knows labels, the mean of the labels' codes under the
    probabilities that it gives them: two voxels are near each other where they are likely to be of one label.

    Args:
        dims: 2 or 3.
        channels: of the features.
        widths: channels at 1/2, 1/4, 1/8 ... of the resolution; as many scales as there are numbers.
        stride: voxel edge of the features, in voxels of the image, 1 or 2. With 2 an odd axis is rounded up.
        labels: how many it tells apart, the background, which is the first, included; None for unit vectors. Needs a
            stride of 2.

    Raises:
        ValueError: when an argument or the image breaks this contract.

    Reference: Ronneberger et al., U-Net, MICCAI 2015; Shi et al., sub-pixel convolution, CVPR 2016.

    >>> import torch
    >>> features = Encoder(dims=2, channels=4, widths=(8, 8))(torch.rand(1, 1, 13, 10))
    >>> list(features.shape), bool((features.norm(dim=1) - 1).abs().max() < 1e-4)
    ([1, 4, 13, 10], True)
    """

    def __init__(
        self,
        *,
        dims: int = 3,
        channels: int = 16,
        widths: Sequence[int] = (32, 64, 96, 128),
        stride: int = 1,
        labels: int | None = None,
    ) -> None:
        super().__init__()
        if dims not in CONV:
            raise ValueError(f"dims must be 2 or 3, got {dims}")
        if channels < 1 or len(widths) == 0 or min(widths) < 1:
            raise ValueError(f"channels and widths must be positive, got {channels} and {list(widths)}")
        if stride not in (1, 2):
            raise ValueError(f"the encoder's stride must be 1 or 2, got {stride}")
        if labels is not None and (labels < 2 or stride != 2):
            raise ValueError(f"labels must be at least 2, with a stride of 2, got {labels} and {stride}")
        self.dims, self.channels, self.stride = dims, channels, stride
        conv, pairs = CONV[dims], list(pairwise(widths))
        self.stem = conv(2**dims, widths[0], 1)
        self.down = nn.ModuleList(_Block(dims, width) for width in widths)
        self.widen = nn.ModuleList(conv(fine, coarse, 1) for fine, coarse in pairs)
        self.narrow = nn.ModuleList(conv(coarse, fine, 1) for fine, coarse in pairs)
        self.up = nn.ModuleList(_Block(dims, fine) for fine, _ in pairs)
        # at all scales but the finest, where a block takes as long as all of these
        self.more = nn.ModuleList(_Block(dims, coarse, starts=0.0) for _, coarse in pairs)
        if labels is None:
            self.head = conv(widths[0], channels * (2**dims if stride == 1 else 1), 1)
        else:
            self.head = Labels(widths[0], labels, channels)

    def forward(self, image: Tensor) -> Tensor:
        """The features."""
        x = self.trunk(image)
        if isinstance(self.head, Labels):
            return self.head(x)
        features = self.head(x) if self.stride == 2 else crop(unfold(self.head(x)), image.shape[2:])
        return functional.normalize(features, dim=1, eps=1e-6)

    def trunk(self, image: Tensor) -> Tensor:
        """What the head reads, `[N, widths[0], *S / 2]`."""
        if image.ndim != self.dims + 2 or image.shape[1] != 1:
            raise ValueError(f"image must be [N, 1, *S] with {self.dims} axes, got {list(image.shape)}")
        x = _pointwise(self.stem, fold(pad_to_multiple(image - 0.5, 2)))
        skips: list[Tensor] = []
        for scale, block in enumerate(self.down):
            if scale:
                x = _pointwise(self.widen[scale - 1], self._resized(pad_to_multiple(x, 2), 0.5))
            x = block(x)
            skips.append(x)
        skips.pop()
        for scale in reversed(range(len(self.up))):
            x = self._resized(_pointwise(self.narrow[scale], x + self.more[scale](x)), 2.0)
            x = self.up[scale](_joined(x, skips.pop()))
        return x

    def _resized(self, x: Tensor, factor: float) -> Tensor:
        """At another scale; at half of it each voxel is the mean of a block of two along every axis."""
        return functional.interpolate(x, scale_factor=factor, mode=MODE[self.dims])


class Labels(nn.Module):
    """Codes of the labels that a voxel may have, `[N, width, *S]` -> `[N, channels, *S]`.

    `sum_k p_k c_k`, `p = softmax(W_2 rectified(W_1 x))`: the codes `c_k` are random unit vectors, the background's is
    zero. Distances are about those of the probabilities themselves, to a part in `sqrt(channels)` (Johnson &
    Lindenstrauss, 1984).

    Args:
        width: channels of what it reads.
        labels: how many, the background included.
        channels: of a code.

    >>> codes = Labels(8, 5, 16)(torch.rand(1, 8, 6, 6))
    >>> list(codes.shape), bool((codes.norm(dim=1) <= 1).all())
    ([1, 16, 6, 6], True)
    """

    def __init__(self, width: int, labels: int, channels: int) -> None:
        super().__init__()
        self.hidden, self.logits = nn.Linear(width, 2 * width), nn.Linear(2 * width, labels)
        codes = functional.normalize(torch.randn(labels, channels), dim=1)
        codes[0] = 0
        self.register_buffer("codes", codes)

    def read(self, x: Tensor) -> Tensor:
        """Logits of voxels `[P, width]`, `[P, labels]`."""
        return self.logits(functional.leaky_relu(self.hidden(x), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """The codes."""
        codes, voxels = self.get_buffer("codes"), x.flatten(2).transpose(1, 2).flatten(0, 1)
        # a hundred labels of all voxels at once would be the largest tensor there is
        parts = [self.read(part).softmax(1) @ codes for part in voxels.split(_VOXELS)]
        mean = torch.cat(parts).view(x.shape[0], -1, codes.shape[1])
        return mean.transpose(1, 2).reshape(x.shape[0], -1, *x.shape[2:])


class _Block(nn.Module):
    """A convolution, instance normalisation and a leaky rectifier; `starts` is the normalisation's first weight."""

    def __init__(self, dims: int, width: int, starts: float = 1.0) -> None:
        super().__init__()
        self.conv = CONV[dims](width, width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(width, width)
        nn.init.constant_(self.norm.weight, starts)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm  # not by itself: it refuses an image of one voxel, which small ones come to
        x = torch.group_norm(self.conv(x), norm.num_groups, norm.weight, norm.bias, norm.eps)
        return functional.leaky_relu(x, 0.1, inplace=True)


def _pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution with a kernel of one voxel as the product of matrices that it is, channels last."""
    weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
    return functional.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def _joined(x: Tensor, skip: Tensor) -> Tensor:
    """The sum of both, of skip's extents, in the memory of x: another array would be the network's largest."""
    return crop(x, skip.shape[2:]).to(skip.dtype).add_(skip)


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
    """Blocks of two voxels along every axis as channels, last in memory, `[N, C, *S]` -> `[N, 2^d C, *S / 2]`.

    >>> import torch
    >>> fold(torch.arange(4.0).view(1, 1, 2, 2)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    batch, channels, *size = image.shape
    dims = len(size)
    split = image.reshape(batch, channels, *(part for n in size for part in (n // 2, 2)))
    order = (0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2))
    return split.permute(order).reshape(batch, *(n // 2 for n in size), channels * 2**dims).movedim(-1, 1)


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
