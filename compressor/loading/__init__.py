"""Open a model safely, whatever file it comes in, and write compressor's own checkpoint."""
