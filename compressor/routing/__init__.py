"""Layer-skip routing: every image runs only as many layers as it needs.

Reference: "Systematic Model Complexity Reduction by Elimination of Irrelevant Layers in Convolutional Neural Networks"
(Gadepally, Dhal, Kalafatis and Nowka).
"""
