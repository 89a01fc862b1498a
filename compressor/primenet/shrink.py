"""Windows and strides that bring maps of one size to exactly another, with operators that every runtime has."""

Size = tuple[int, int]


def pooling(size: Size, target: Size) -> tuple[Size, Size]:
    """Kernel and stride of a pooling without padding that makes `target` of `size`, both (height, width).

    For each side n -> m the stride is floor(n / m) and the kernel what is then left over: n - (m - 1) * stride.
    """
    stride = strides(size, target)
    height, width = (n - (m - 1) * s for n, m, s in zip(size, target, stride))
    return (height, width), stride


def strides(size: Size, target: Size) -> Size:
    """The largest strides with which maps of `size` do not become smaller than `target`."""
    return size[0] // target[0], size[1] // target[1]


def strided(size: Size, stride: Size) -> Size:
    """Height and width that a convolution with odd kernel, equal padding and this stride leaves."""
    return -(-size[0] // stride[0]), -(-size[1] // stride[1])
