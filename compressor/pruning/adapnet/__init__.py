"""AdapNet: prunes, merges and inserts filters while the network trains, judged by the concepts in its feature maps."""
