"""What a network is: architectures, specs, layers, names of tensors, complexity. Opens no file."""
