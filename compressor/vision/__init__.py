"""Images: torchvision by one door, and how an image file becomes what a network takes.

Beside torch the door is opened at once: after `import compressor.vision` other packages can import torchvision, too.
"""

import sys

if sys.modules.get("torch") is not None:
    from compressor.vision import door as door
