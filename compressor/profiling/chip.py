"""What the chip likes: numbers of channels that its vector units take whole."""

import torch

# ONNX Runtime packs the channels of a feature map in blocks of this many before it convolves, and falls back to a
# slower way where they do not fill the blocks.
_WIDE, _OTHER = 16, 8


def preferred_multiple(capability: str | None = None) -> tuple[int, str]:
    """The multiple that widths should be rounded to on this machine, and why.

    `capability` is torch's name of the CPU's vector instructions, such as "AVX512"; this machine's where left out.

    Example:
        preferred_multiple("AVX512")[0]      # 16
    """
    found = torch.backends.cpu.get_cpu_capability() if capability is None else capability
    if found.upper().startswith("AVX512"):
        return _WIDE, f"ONNX Runtime convolves in blocks of {_WIDE} channels on a chip with AVX-512"
    return _OTHER, f"ONNX Runtime convolves in blocks of {_OTHER} channels on a chip without AVX-512 ({found})"
