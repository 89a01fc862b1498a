"""What to cut: each method looks at a network and makes plans; none of them changes a shape."""
