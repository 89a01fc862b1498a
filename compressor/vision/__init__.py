"""Images: torchvision by one door, and how an image file becomes what a network takes."""
