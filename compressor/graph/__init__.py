"""Who is tied to whom: every channel of every parameter, followed through the whole network."""

from compressor.graph.capture import capture
from compressor.graph.channels import Channels, Group, Place, Site
from compressor.graph.trace import Trace, trace

__all__ = ["Channels", "Group", "Place", "Site", "Trace", "capture", "trace"]
